package carrier

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/meltemi-mesh/meltemi/envoy-build/internal/loopback"
	"github.com/meltemi-mesh/meltemi/envoy-build/internal/process"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/host/mailbox"
)

// TestMain fails when a test leaves a goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// stage is a host that the test plays, in virtual time: its loopback listener, its
// workers, and what its tcp_proxy does. The workers run on the test's goroutine, in
// settle and advance.
type stage struct {
	t       *testing.T
	dialer  *loopback.Dialer
	panics  *process.Panics
	workers []*worker

	// world is what follows and all that the workers have: the test's, but for when
	// it waits.
	world   sync.Mutex
	log     []string
	dialled int
	arrived []*socket // have sent their prologue, and are on no worker yet
	sockets []*socket
	// balance chooses the worker of a connection. Without it that is the one with
	// the fewest, the first of equals.
	balance func() int
	// refuse, if set, is called with each connection; what it refuses is closed.
	refuse     func() bool
	generation uint32 // of the listener's configuration
}

// socket is the listener's end of a carrier.
type socket struct {
	net.Conn
	received []byte
	ended    bool
}

// play runs f on a stage with n workers whose loopback listener serves.
func play(t *testing.T, n int, f func(t *testing.T, s *stage)) {
	synctest.Test(t, func(t *testing.T) {
		s := &stage{t: t, generation: 1}
		logf := func(level host.Level, format string, args ...any) {
			if level > host.Debug {
				s.log = append(s.log, fmt.Sprintf(format, args...))
			}
		}
		s.panics = process.NewPanics(logf)
		s.dialer = loopback.New(s.connect, func(host.Level, string, ...any) {}, s.panics)
		for i := range n {
			w := &worker{s: s, index: i, clusters: map[string]host.Hosts{"one": {Total: 1, Healthy: 1, Preferred: 1}}}
			w.box = mailbox.New[func()](func() {})
			w.carriers = NewSet(w, s.dialer)
			s.workers = append(s.workers, w)
		}
		s.world.Lock()
		defer s.world.Unlock()
		defer func() {
			s.dialer.Close()
			s.wait(0)
			for _, k := range s.sockets {
				k.Close()
			}
			s.wait(0)
		}()
		s.dialer.Serve("@here")
		f(t, s)
	})
}

func (s *stage) connect(string) (net.Conn, error) {
	s.world.Lock()
	defer s.world.Unlock()
	s.dialled++
	dialing, accepted := net.Pipe()
	k := &socket{Conn: accepted}
	s.sockets = append(s.sockets, k)
	go k.drain(s)
	return dialing, nil
}

func (k *socket) drain(s *stage) {
	buf := make([]byte, 4096)
	for {
		n, err := k.Read(buf)
		s.world.Lock()
		first := len(k.received) == 0
		k.received = append(k.received, buf[:n]...)
		k.ended = err != nil
		if first && err == nil {
			s.arrived = append(s.arrived, k)
		}
		s.world.Unlock()
		if err != nil {
			return
		}
	}
}

// token reads the one TLV of a prologue.
func (k *socket) token() []byte {
	const header = 16
	body := k.received[header:][:binary.BigEndian.Uint16(k.received[header-2:])]
	addresses := 12
	if len(body) > 0 && k.received[header-3] == 0x21 {
		addresses = 36
	}
	return body[addresses+3:]
}

// marks are how many came behind the prologue.
func (k *socket) marks() int {
	return strings.Count(string(k.received[16+int(binary.BigEndian.Uint16(k.received[14:])):]), "\n")
}

func (s *stage) wait(d time.Duration) {
	s.world.Unlock()
	if d > 0 {
		time.Sleep(d)
	}
	synctest.Wait()
	s.world.Lock()
}

// settle lets happen what is to happen at this time.
func (s *stage) settle() {
	for again := true; again; {
		s.wait(0)
		again = len(s.arrived) > 0
		for _, k := range s.arrived {
			s.accept(k)
		}
		s.arrived = nil
		for _, w := range s.workers {
			again = w.run() || again
		}
	}
}

// advance lets time pass, step by step.
func (s *stage) advance(d time.Duration) {
	const step = 10 * time.Millisecond
	s.settle()
	for ; d > 0; d -= step {
		s.wait(min(d, step))
		s.settle()
	}
}

func (s *stage) accept(k *socket) {
	if s.refuse != nil && s.refuse() {
		k.Close()
		return
	}
	w := slices.MinFunc(s.workers, func(a, b *worker) int { return len(a.filters) - len(b.filters) })
	if s.balance != nil {
		w = s.workers[s.balance()]
	}
	w.accept(&filter{w: w, socket: k, token: k.token(), generation: s.generation})
}

// worker implements Worker.
type worker struct {
	s        *stage
	index    int
	carriers *Set
	filters  []*filter // alive
	box      *mailbox.Mailbox[func()]
	clusters map[string]host.Hosts
	unknown  bool // how many hosts there are
}

func (w *worker) Index() int                        { return w.index }
func (w *worker) Post(f func())                     { w.box.Post(f) }
func (w *worker) Guard(doing string, f func()) bool { return w.s.panics.Guard(doing, f) }
func (w *worker) ClusterHosts(cluster string) (h host.Hosts, known, ok bool) {
	h, known = w.clusters[cluster]
	return h, known, !w.unknown
}

// accept has a connection's filter appear, and reports whether it was taken.
func (w *worker) accept(f *filter) bool {
	if f.c = w.carriers.Arrived(f); f.c == nil {
		f.socket.Close()
		return false
	}
	w.filters = append(w.filters, f)
	return true
}

// run does what was posted, and what the filters were told.
func (w *worker) run() (any bool) {
	w.box.Run(func(f func()) { any = true; f() })
	for _, f := range slices.Clone(w.filters) {
		if f.closing && !f.closed {
			any = true
			f.end(true)
		}
	}
	return any
}

// connect asks for an upstream connection.
func (w *worker) connect(t host.Target) (*Carrier, *upstream) {
	ev := &upstream{}
	return w.carriers.Connect(t, ev), ev
}

// filter implements Filter.
type filter struct {
	w          *worker
	socket     *socket
	c          *Carrier
	token      []byte
	generation uint32
	state      map[string]string
	done       []string
	closing    bool
	closed     bool
	address    string
	wanted     string
	chosen     bool
	flags      uint64
}

func (f *filter) Token() []byte      { return f.token }
func (f *filter) Generation() uint32 { return f.generation }
func (f *filter) Closed() bool       { return f.closed }
func (f *filter) did(what string)    { f.done = append(f.done, what) }
func (f *filter) Continue(wanted string) {
	f.did("continue")
	f.wanted = wanted
}
func (f *filter) Send(b *host.Buffer)   { f.did("send " + string(b.B)); b.Free() }
func (f *filter) End()                  { f.did("end") }
func (f *filter) Close()                { f.closing = true; f.did("close") }
func (f *filter) Connected()            { f.did("connected") }
func (f *filter) Unblocked()            { f.did("unblocked") }
func (f *filter) Pause()                { f.did("pause") }
func (f *filter) Resume()               { f.did("resume") }
func (f *filter) Upstream() string      { return f.address }
func (f *filter) HasUpstream() bool     { return f.chosen }
func (f *filter) Flags() uint64         { return f.flags }
func (f *filter) State(k string) string { return f.state[k] }
func (f *filter) Principals() (ours, theirs string) {
	return f.state["ours"], f.state["theirs"]
}

func (f *filter) SetState(k, v string) {
	if f.state == nil {
		f.state = map[string]string{}
	}
	f.state[k] = v
}

// take returns what the filter was told since the last time.
func (f *filter) take() []string {
	done := f.done
	f.done = nil
	return done
}

// connect is tcp_proxy's, which reads the mark when it has a server.
func (f *filter) connect(address string) {
	f.address, f.chosen = address, true
	f.c.Mark(f.socket.marks(), false)
}

// end ends the connection.
func (f *filter) end(alive bool) {
	f.closed = true
	f.w.filters = slices.DeleteFunc(f.w.filters, func(o *filter) bool { return o == f })
	f.socket.Close()
	f.c.Closed(alive)
}

// upstream implements host.UpstreamEvents.
type upstream struct {
	events []string
	panics bool
}

func (u *upstream) event(format string, args ...any) {
	u.events = append(u.events, fmt.Sprintf(format, args...))
	if u.panics {
		panic("in an event")
	}
}

func (u *upstream) Ready(host string)             { u.event("ready %s", host) }
func (u *upstream) Data(bufs [][]byte, total int) { u.event("data %d %q", total, bufs) }
func (u *upstream) WriteBlocked(blocked bool)     { u.event("blocked %t", blocked) }
func (u *upstream) Closed(r host.CloseReason)     { u.event("%s", r) }
func (u *upstream) Aborted()                      { u.event("failed") }

// take returns what has happened since the last time.
func (u *upstream) take() []string {
	events := u.events
	u.events = nil
	return events
}

// buffer is one that counts how often it comes back.
type buffer struct {
	host.Buffer
	back int
}

func (b *buffer) Recycle(*host.Buffer) { b.back++ }

func bytes(s string) *buffer {
	b := &buffer{}
	b.B, b.Host = []byte(s), b
	return b
}

var (
	toOne  = host.Target{Cluster: "one"}
	source = netip.MustParseAddr("192.0.2.7")
)
