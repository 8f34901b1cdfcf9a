package upstream_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/breaker"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
	"github.com/meltemi-mesh/meltemi/filter/internal/timer"
	"github.com/meltemi-mesh/meltemi/filter/outlier"
	"github.com/meltemi-mesh/meltemi/filter/upstream"
)

// bed is a worker with one pool, whose cluster and clock the test plays.
type bed struct {
	t       testing.TB
	now     time.Duration
	timers  *timer.Wheel
	hosts   host.Hosts
	members *host.Members
	known   bool
	servers []*server // that were asked for, in that order
	buffers int       // that have not come back

	manager *upstream.Manager
	pool    *upstream.Pool
	seen    observer
}

// newBed has a pool of one host with options for few connections, which change may
// change.
func newBed(t testing.TB, traits codecs.Traits, change func(o *upstream.Options)) *bed {
	t.Helper()
	o := &upstream.Options{
		Shared: true, MinConnections: 1, MaxConnections: 4, MaxExclusive: 4, MaxRequests: 1000, MaxAge: time.Hour,
		IdleTimeout: time.Minute, TargetInFlight: 100, MaxPending: 100, MaxPendingBytes: 1 << 20, MaxPartialBytes: 1 << 20,
		BackoffMax: time.Second, Linger: time.Second,
	}
	if traits.Correlation == codecs.InOrder {
		o.Mode = upstream.InOrder
	}
	if change != nil {
		change(o)
	}
	b := &bed{t: t, now: time.Hour, known: true}
	b.timers = timer.New(b.now)
	b.has(1)
	shared := upstream.NewShared()
	shared.Inline()
	b.manager = upstream.NewManager(b, b.timers, shared, rand.New(rand.NewPCG(1, 2)))
	b.pool = b.manager.Pool(upstream.Key{Cluster: "c", Mode: o.Mode}, words{traits: traits}, o, &b.seen)
	t.Cleanup(b.finish)
	return b
}

// finish lets the pool go, with all that it has.
func (b *bed) finish() {
	for _, s := range b.servers {
		s.ends(host.Remote)
	}
	for range 100 {
		b.pass(time.Second)
		for _, s := range b.servers {
			s.ends(host.ConnectFailed)
		}
	}
	require.True(b.t, b.pool.Gone())
	require.Zero(b.t, b.buffers)
	_, running := b.timers.Next()
	require.False(b.t, running, "a timer is left")
}

// has gives the cluster n hosts.
func (b *bed) has(n int) { b.hosts = host.Hosts{Total: n, Healthy: n, Preferred: n} }

// pass lets time pass, from one timer to the next.
func (b *bed) pass(d time.Duration) {
	end := b.now + d
	for at, ok := b.timers.Next(); ok && at <= end; at, ok = b.timers.Next() {
		b.now = max(b.now, at)
		b.timers.Advance(b.now)
		b.manager.Flush()
	}
	b.now = end
}

// send sends a call of that name over a client's lines, if it has some.
func (b *bed) send(name string, ls *upstream.Lines, s upstream.Send) *caller {
	c := &caller{name: name}
	c.call.Init(c)
	if ls != nil {
		s.Line = ls.To(b.pool)
	}
	if s.Timeout == 0 {
		s.Timeout = time.Minute
	}
	s.Size = len(name)
	b.pool.Send(&c.call, &s)
	b.manager.Flush()
	return c
}

// sends sends calls without a line.
func (b *bed) sends(names ...string) (cs []*caller) {
	for _, name := range names {
		cs = append(cs, b.send(name, nil, upstream.Send{}))
	}
	return cs
}

// cancel ends a call whose answer nobody wants.
func (b *bed) cancel(c *caller) {
	c.call.Cancel()
	b.manager.Flush()
}

// up lets all servers that were asked for take their connections.
func (b *bed) up() {
	for i := 0; i < len(b.servers); i++ {
		if s := b.servers[i]; s.state == dialled && s.wanted != "" {
			s.ready(s.wanted)
		} else if s.state == dialled {
			s.ready(fmt.Sprint("h", i%max(1, b.hosts.Total)))
		}
	}
}

// open are the servers whose connections are in use.
func (b *bed) open() (open []*server) {
	for _, s := range b.servers {
		if s.state == serving && !s.ended {
			open = append(open, s)
		}
	}
	return open
}

// The bed is a host.Worker.

func (b *bed) Index() int                      { return 0 }
func (b *bed) Now() time.Duration              { return b.now }
func (b *bed) SetTimer(time.Duration)          {}
func (b *bed) Wake()                           {}
func (b *bed) Logf(host.Level, string, ...any) {}

func (b *bed) Buffer(n int) *host.Buffer {
	b.buffers++
	return &host.Buffer{B: make([]byte, 0, n), Host: b}
}

func (b *bed) Recycle(*host.Buffer) { b.buffers-- }

func (b *bed) ClusterHosts(string) (h host.Hosts, known, ok bool) { return b.hosts, b.known, true }
func (b *bed) ClusterMembers(string) *host.Members                { return b.members }

func (b *bed) Connect(t host.Target, ev host.UpstreamEvents) host.Upstream {
	s := &server{bed: b, ev: ev, wanted: t.Host}
	b.servers = append(b.servers, s)
	return s
}

type serverState uint8

const (
	dialled serverState = iota
	serving
	over
)

// server is the other end of a connection of the pool.
type server struct {
	bed   *bed
	ev    host.UpstreamEvents
	state serverState
	host  string
	// wanted is the host that the connection was to lead to, "" if any.
	wanted string
	ended  bool // it has got an end of stream
	got    []string
}

// event carries out what the pool does after an event of its host.
func (s *server) event(f func()) {
	f()
	s.bed.manager.Flush()
}

func (s *server) ready(addr string) {
	s.state, s.host = serving, addr
	s.event(func() { s.ev.Ready(addr) })
}

// ends is the end of the connection, or of the attempt to make it.
func (s *server) ends(r host.CloseReason) {
	if s.state != over {
		s.state = over
		s.event(func() { s.ev.Closed(r) })
	}
}

// says sends lines.
func (s *server) says(lines ...string) {
	text := []byte(strings.Join(lines, "\n") + "\n")
	s.event(func() { s.ev.Data([][]byte{text}, len(text)) })
}

// answers answers the calls that the server has got, in the order of places, all
// of them by their names.
func (s *server) answers(places ...int) {
	for _, i := range places {
		s.says(s.got[i])
	}
}

// names of the calls that it has got.
func (s *server) names() (names []string) {
	for _, line := range s.got {
		_, name, _ := strings.Cut(line, " ")
		names = append(names, name)
	}
	return names
}

// The server is a host.Upstream.

func (s *server) Write(b *host.Buffer) {
	s.got = append(s.got, strings.Split(strings.TrimSuffix(string(b.B), "\n"), "\n")...)
	b.Free()
}

func (s *server) ReadDisable(bool) {}

func (s *server) Close(graceful bool) {
	if s.ended = true; !graceful {
		s.state = over
		s.ev.Closed(host.Local)
	}
}

// caller is the owner of a call, and notes what becomes of it.
type caller struct {
	call     upstream.Call
	name     string
	held     int
	answered []string
	sent     int
	failures []upstream.Failure
}

func (c *caller) Hold()                       { c.held++ }
func (c *caller) Request() *codecs.Metadata   { return &codecs.Metadata{} }
func (c *caller) Sent()                       { c.sent++ }
func (c *caller) Answered(m *codecs.Metadata) { c.answered = append(c.answered, string(m.Raw)) }
func (c *caller) Failed(f *upstream.Failure)  { c.failures = append(c.failures, *f) }
func (c *caller) Streamed(*codecs.Metadata)   {}
func (c *caller) Blocked(bool)                {}

func (c *caller) Encode(dst []byte, id uint64) ([]byte, error) {
	return fmt.Appendf(dst, "%d %s\n", id, c.name), nil
}

// is tells how the call has ended: by its own answer, by another one, by its
// failure, or not yet.
func (c *caller) is() string {
	switch ends := len(c.answered) + len(c.failures) + c.sent; {
	case ends > 1:
		return fmt.Sprintf("ended %d times", ends)
	case c.sent > 0:
		return "sent"
	case len(c.answered) > 0 && c.answered[0] == c.name:
		return "answered"
	case len(c.answered) > 0:
		return "answered by " + c.answered[0]
	case len(c.failures) > 0:
		return fmt.Sprintf("%s, written %v", c.failures[0].Reason, c.failures[0].Written)
	case c.call.Waiting():
		return "waits"
	case c.call.Active():
		return "under way"
	}
	return "gone"
}

func all(cs []*caller) (are []string) {
	for _, c := range cs {
		are = append(are, c.is())
	}
	return are
}

// words is a protocol of lines, "id name"; an answer is the request. "away" says
// that the server leaves.
type words struct {
	codecs.Codec // none of its other methods is called
	traits       codecs.Traits
}

func (w words) Traits() codecs.Traits                      { return w.traits }
func (w words) NewDecoder(codecs.Direction) codecs.Decoder { return w }

func (words) Decode(b []byte, m *codecs.Metadata) (int, error) {
	line, _, whole := strings.Cut(string(b), "\n")
	if !whole {
		return len(b) + 1, nil
	}
	if line == "away" {
		m.Type = codecs.GoAway
		return len("away\n"), nil
	}
	var name string
	if _, err := fmt.Sscanf(line, "%d %s", &m.ID, &name); err != nil {
		return 0, err
	}
	m.Type, m.Raw = codecs.Response, []byte(name)
	return len(line) + 1, nil
}

// observer counts what the pool tells of its connections.
type observer struct {
	strays, failed int
	breaks         int // connections that a circuit breaker has forbidden
	detours        map[upstream.Detour]int
}

func (o *observer) Stray(*codecs.Metadata)                  { o.strays++ }
func (*observer) DecodingError(string, string, error, bool) {}
func (*observer) Closes(string, string, string)             {}
func (*observer) Starves()                                  {}
func (*observer) Panicked(*guard.Panic)                     {}
func (*observer) Event()                                    {}
func (o *observer) Detoured(_, _ string, d upstream.Detour) {
	if o.detours == nil {
		o.detours = map[upstream.Detour]int{}
	}
	o.detours[d]++
}
func (*observer) Unserved()                                        {}
func (o *observer) Breaks(string, breaker.Limit)                   { o.breaks++ }
func (*observer) Ejects(string, string, outlier.Ejection)          {}
func (*observer) Probes(string, string)                            {}
func (*observer) Ejected(int)                                      {}
func (*observer) Readmits(string, string)                          {}
func (o *observer) ConnectFailed(string, host.CloseReason, string) { o.failed++ }
