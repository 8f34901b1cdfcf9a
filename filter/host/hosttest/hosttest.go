// Package hosttest is a conformance suite for hosts: what the pipeline relies on, played
// by a module of its own that does as the tests say. It demands what package host
// promises, so that what works with one host works with every other.
package hosttest

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

// Stage is a host under test, and what is around it.
type Stage interface {
	// Load loads and publishes a configuration.
	Load(raw string) error
	// Dial connects a client to a listener with the last configuration.
	Dial() Peer
	// Servers are the connections to the cluster [Cluster], which has one host, in their
	// order.
	Servers() []Peer
	// Until lets things happen until done says true. It fails the test if it does not.
	Until(what string, done func() bool)
	// Counter is the value of a metric.
	Counter(name string) int64
}

// The clusters that a stage has. Of the second the only host takes no connection.
const (
	Cluster = "served"
	Refused = "refused"
)

// Peer is the other end of a connection.
type Peer interface {
	Send(b []byte)
	// Received is all that has come.
	Received() []byte
	// Close closes it.
	Close()
	// Ended reports whether the host has ended it, or its direction.
	Ended() bool
}

// Features are what a host may lack.
type Features struct {
	// HalfClose: what the server of an upstream connection answers that was closed
	// gracefully still comes when it has heard of that.
	HalfClose bool
	// Eager: a connection may be ready that never comes about, and fails later.
	Eager bool
}

// Run runs the suite. stage makes a host that runs m.
func Run(t *testing.T, f Features, stage func(t *testing.T, m host.Module) Stage) {
	for _, tc := range []struct {
		name string
		run  func(t *testing.T, s *suite)
	}{
		{"a connection from its begin to its end", life},
		{"what is not consumed comes again", rest},
		{"what was written goes before the end", flush},
		{"a closed connection takes nothing", gone},
		{"a client is not read for a while", unread},
		{"a client that sends much while it is not read", unreadMuch},
		{"a client that leaves while it is not read", unreadLeaves},
		{"a client that leaves while it is not read, and again", unreadLeavesTwice},
		{"what an event writes goes when it is over", batches},
		{"work from elsewhere", wakes},
		{"timers", timers},
		{"a connection to a server", upstream},
		{"a server ends it", serverEnds},
		{"a server ends it without a word", serverLeaves},
		{"it is closed", upstreamCloses},
		{"it is ended gracefully", graceful},
		{"it is closed before it is there", withdrawn},
		{"a server that is not there", refused},
		{"a server is not read for a while", serverUnread},
		{"much, both ways", much},
		{"panics", panics},
		{"a configuration is refused", refusal},
		{"metrics", counts},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := &module{t: t}
			s := &suite{t: t, m: m, f: f}
			s.Stage = stage(t, m)
			tc.run(t, s)
			m.check()
		})
	}
}

type suite struct {
	Stage
	t *testing.T
	m *module
	f Features
}

// open loads a configuration, connects a client, and waits for it.
func (s *suite) open() (Peer, *conn) {
	s.t.Helper()
	require.NoError(s.t, s.Load("{}"))
	p := s.Dial()
	return p, s.accepted(1)
}

func (s *suite) accepted(n int) *conn {
	s.t.Helper()
	s.Until("connections are accepted", func() bool { return len(s.m.all()) == n })
	return s.m.all()[n-1]
}

func (s *suite) receives(p Peer, want string) {
	s.t.Helper()
	s.Until(fmt.Sprintf("%.40q is received", want), func() bool { return string(p.Received()) == want })
}

func (s *suite) hears(c *recorder, want ...string) {
	s.t.Helper()
	defer func() {
		if s.t.Failed() {
			s.t.Logf("it has heard %q", c.events())
		}
	}()
	s.Until(strings.Join(want, ", "), func() bool { return strings.Join(c.events(), ", ") == strings.Join(want, ", ") })
}

// connects has c's worker connect to a server.
func (s *suite) connects(c *conn, cluster string) *up {
	u := &up{w: c.s.w}
	u.m = s.m
	s.m.do(c.s, func() { u.u = c.s.w.Connect(host.Target{Cluster: cluster}, u); u.returned.Store(true) })
	return u
}

func (s *suite) served(n int) Peer {
	s.t.Helper()
	s.Until("the server is connected", func() bool { return len(s.Servers()) == n })
	return s.Servers()[n-1]
}

// sets has f run on c's worker, and waits for it.
func (s *suite) sets(c *conn, f func()) {
	s.t.Helper()
	done := make(chan struct{})
	s.m.do(c.s, func() { f(); close(done) })
	s.Until("it is set", func() bool { return isClosed(done) })
}

// module is a host.Module that does as it is told.
type module struct {
	t       *testing.T
	refuse  error
	counter host.MetricID
	gauge   host.MetricID

	mu     sync.Mutex
	faults []string
	conns  []*conn
	shards []*shard
}

func (m *module) fault(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.faults = append(m.faults, fmt.Sprintf(format, args...))
}

func (m *module) check() {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	require.Empty(m.t, m.faults)
}

func (m *module) all() []*conn {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]*conn(nil), m.conns...)
}

// do has f run on a shard's worker.
func (m *module) do(s *shard, f func()) {
	s.mu.Lock()
	s.todo = append(s.todo, f)
	s.mu.Unlock()
	s.w.Wake()
}

func (m *module) NewConfig(c host.Config, _ []byte) (host.FilterConfig, error) {
	if m.refuse != nil {
		return nil, m.refuse
	}
	var err error
	if m.counter, err = c.DefineCounter("suite.count"); err != nil {
		return nil, err
	}
	m.gauge, err = c.DefineGauge("suite.gauge")
	return config{}, err
}

type config struct{}

func (config) Published() {}
func (config) Destroy()   {}

func (m *module) NewWorker(w host.Worker) host.Shard {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &shard{m: m, w: w}
	m.shards = append(m.shards, s)
	return s
}

// shard implements host.Shard.
type shard struct {
	m      *module
	w      host.Worker
	inside atomic.Int32
	open   bool // an event has not been ended by EndHook
	later  []func()
	runs   atomic.Int32

	mu   sync.Mutex
	todo []func()
}

// event is the begin of each call of the pipeline, and its end.
func (s *shard) event(what string) func() {
	if n := s.inside.Add(1); n != 1 {
		s.m.fault("%s: within another event", what)
	}
	s.open = true
	return func() { s.inside.Add(-1) }
}

func (s *shard) Accept(_ host.FilterConfig, d host.Downstream) host.DownstreamEvents {
	defer s.event("Accept")()
	c := &conn{s: s, d: d}
	c.m = s.m
	s.m.mu.Lock()
	s.m.conns = append(s.m.conns, c)
	s.m.mu.Unlock()
	return c
}

func (s *shard) Run() {
	defer s.event("Run")()
	s.runs.Add(1)
	s.mu.Lock()
	todo := s.todo
	s.todo = nil
	s.mu.Unlock()
	for _, f := range todo {
		f()
	}
}

func (s *shard) EndHook() {
	defer s.event("EndHook")()
	s.open = false
	later := s.later
	s.later = nil
	for _, f := range later {
		f()
	}
}

// recorder is what the events of a connection have in common.
type recorder struct {
	m      *module
	mu     sync.Mutex
	heard  []string
	bytes  []byte
	closed bool
}

func (r *recorder) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		r.m.fault("%s: behind the last event", fmt.Sprintf(format, args...))
	}
	r.heard = append(r.heard, fmt.Sprintf(format, args...))
}

func (r *recorder) events() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.heard...)
}

func (r *recorder) got() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return string(r.bytes)
}

func (r *recorder) take(bufs [][]byte, total int) []byte {
	var b []byte
	for _, v := range bufs {
		b = append(b, v...)
	}
	if len(b) != total {
		r.m.fault("Data: %d bytes, told to be %d", len(b), total)
	}
	return b
}

func (r *recorder) last() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
}

// conn implements host.DownstreamEvents.
type conn struct {
	recorder
	s      *shard
	d      host.Downstream
	onData func(b []byte) int // nil: all is consumed
	// onClosed is told of the end.
	onClosed func()
}

func (c *conn) Data(bufs [][]byte, total int, _ bool) int {
	defer c.s.event("Data")()
	b := c.take(bufs, total)
	if c.closed {
		c.m.fault("Data: behind the last event")
	}
	n := len(b)
	if c.onData != nil {
		n = c.onData(b)
	}
	c.mu.Lock()
	c.bytes = append(c.bytes, b[:n]...)
	c.mu.Unlock()
	return n
}

func (c *conn) WriteBlocked(bool) { defer c.s.event("WriteBlocked")() }

func (c *conn) Closed(remote bool) {
	defer c.s.event("Closed")()
	c.note("closed, remote %t", remote)
	c.last()
	if c.onClosed != nil {
		c.onClosed()
	}
}

func (c *conn) Aborted() {
	defer c.s.event("Aborted")()
	c.note("aborted")
}

func (c *conn) write(s string) {
	b := c.s.w.Buffer(len(s))
	if len(b.B) != 0 || cap(b.B) < len(s) {
		c.m.fault("Buffer(%d): length %d, room for %d", len(s), len(b.B), cap(b.B))
	}
	b.B = append(b.B, s...)
	c.d.Write(b)
}

// up implements host.UpstreamEvents.
type up struct {
	recorder
	w        host.Worker
	u        host.Upstream
	returned atomic.Bool
	onData   func()
	addr     atomic.Pointer[string]
}

func (u *up) early(what string) {
	if !u.returned.Load() {
		u.m.fault("%s: before Connect has returned", what)
	}
}

func (u *up) Ready(addr string) { u.early("Ready"); u.addr.Store(&addr); u.note("ready") }

func (u *up) Data(bufs [][]byte, total int) {
	b := u.take(bufs, total)
	u.mu.Lock()
	u.bytes = append(u.bytes, b...)
	u.mu.Unlock()
	if u.onData != nil {
		u.onData()
	}
}

func (u *up) WriteBlocked(bool) {}

func (u *up) Closed(r host.CloseReason) { u.early("Closed"); u.note("%s", r); u.last() }

func (u *up) Aborted() { u.note("aborted") }

func (u *up) write(s string) {
	b := u.w.Buffer(len(s))
	b.B = append(b.B, s...)
	u.u.Write(b)
}

func life(t *testing.T, s *suite) {
	p, c := s.open()
	p.Send([]byte("hello"))
	s.Until("bytes come", func() bool { return c.got() == "hello" })
	s.m.do(c.s, func() { c.write("answer") })
	s.receives(p, "answer")
	require.Empty(t, c.events())
	p.Close()
	s.hears(&c.recorder, "closed, remote true")
	q := s.Dial()
	d := s.accepted(2)
	require.NotEqual(t, c.d.ID(), d.d.ID())
	require.NotEmpty(t, d.d.LocalAddress())
	require.NotEmpty(t, d.d.RemoteAddress())
	s.m.do(d.s, func() { d.d.Close(false) })
	s.hears(&d.recorder, "closed, remote false")
	s.Until("the client is closed", q.Ended)
}

func rest(_ *testing.T, s *suite) {
	p, c := s.open()
	var views []string
	var mu sync.Mutex
	s.sets(c, func() {
		c.onData = func(b []byte) int {
			mu.Lock()
			defer mu.Unlock()
			views = append(views, string(b))
			return len(b) / 3 * 3
		}
	})
	seen := func() string { mu.Lock(); defer mu.Unlock(); return strings.Join(views, "|") }
	p.Send([]byte("abcd"))
	s.Until("the first", func() bool { return seen() == "abcd" })
	p.Send([]byte("ef"))
	s.Until("the rest again", func() bool { return seen() == "abcd|def" && c.got() == "abcdef" })
}

func flush(_ *testing.T, s *suite) {
	p, c := s.open()
	s.m.do(c.s, func() {
		c.write("one ")
		c.write("two ")
		c.write("three")
		c.d.Close(true)
		c.write("too late")
	})
	s.receives(p, "one two three")
	s.Until("the end", p.Ended)
	s.hears(&c.recorder, "closed, remote false")
}

func gone(_ *testing.T, s *suite) {
	p, c := s.open()
	done := make(chan struct{})
	s.sets(c, func() {
		// Not by Wake: a worker may be reached by its connections alone.
		c.onClosed = func() {
			c.s.later = append(c.s.later, func() {
				c.write("nobody reads this")
				c.d.ReadDisable(true)
				c.d.ReadDisable(false)
				c.d.Close(true)
				c.d.Close(false)
				close(done)
			})
		}
	})
	p.Close()
	s.hears(&c.recorder, "closed, remote true")
	s.Until("nothing", func() bool { return isClosed(done) })
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func unread(t *testing.T, s *suite) {
	p, c := s.open()
	s.sets(c, func() { c.d.ReadDisable(true); c.d.ReadDisable(true) })
	p.Send([]byte("waits"))
	s.sets(c, func() { c.d.ReadDisable(false) })
	require.Empty(t, c.got(), "one reason is left")
	s.m.do(c.s, func() { c.d.ReadDisable(false) })
	s.Until("it is read again", func() bool { return c.got() == "waits" })
}

func unreadMuch(_ *testing.T, s *suite) {
	p, c := s.open()
	want := pattern(3000)
	s.sets(c, func() {
		c.onData = func(b []byte) int {
			if len(b) > 1000 { // a piece, and then a pause
				c.d.ReadDisable(true)
				s.m.do(c.s, func() { c.d.ReadDisable(false) })
				return 1000
			}
			return len(b)
		}
	})
	p.Send(want)
	s.Until("it has come in pieces", func() bool { return c.got() == string(want) })
}

func unreadLeaves(t *testing.T, s *suite) {
	p, c := s.open()
	s.sets(c, func() { c.d.ReadDisable(true) })
	p.Send([]byte("last words"))
	p.Close()
	q := s.Dial() // by then its end may have been seen
	s.accepted(2)
	require.Empty(t, c.events())
	s.m.do(c.s, func() { c.d.ReadDisable(false) })
	s.Until("what it has sent", func() bool { return c.got() == "last words" })
	s.hears(&c.recorder, "closed, remote true")
	q.Close()
}

// unreadLeavesTwice: what it has sent last is again a reason not to read it.
func unreadLeavesTwice(_ *testing.T, s *suite) {
	p, c := s.open()
	s.sets(c, func() {
		c.d.ReadDisable(true)
		c.onData = func(b []byte) int {
			c.d.ReadDisable(true)
			return len(b)
		}
	})
	p.Send([]byte("last words"))
	p.Close()
	q := s.Dial()
	s.accepted(2)
	s.m.do(c.s, func() { c.d.ReadDisable(false) })
	s.Until("what it has sent", func() bool { return c.got() == "last words" })
	s.m.do(c.s, func() { c.d.ReadDisable(false) }) // by then a host may have read the end with it
	s.hears(&c.recorder, "closed, remote true")
	q.Close()
}

func batches(_ *testing.T, s *suite) {
	p, c := s.open()
	s.sets(c, func() {
		c.onData = func(b []byte) int {
			c.s.later = append(c.s.later, func() { c.write("c") })
			c.write("a")
			c.write("b")
			return len(b)
		}
	})
	p.Send([]byte("x"))
	s.receives(p, "abc")
}

func wakes(_ *testing.T, s *suite) {
	p, c := s.open()
	for i := range 5 {
		go s.m.do(c.s, func() { c.write(string(rune('a' + i))) })
	}
	s.Until("all of it is done", func() bool { return len(p.Received()) == 5 })
	// Also when no event brings it about, and while one runs.
	s.m.do(c.s, func() { s.m.do(c.s, func() { c.write("!") }) })
	s.Until("what one posts itself", func() bool { return len(p.Received()) == 6 })
}

func timers(t *testing.T, s *suite) {
	_, c := s.open()
	var first, then time.Duration
	s.sets(c, func() {
		c.s.w.SetTimer(time.Hour)
		c.s.w.SetTimer(20 * time.Millisecond)
		first = c.s.w.Now()
	})
	runs := c.s.runs.Load()
	s.Until("it fires", func() bool { return c.s.runs.Load() > runs })
	s.sets(c, func() { then = c.s.w.Now(); c.s.w.SetTimer(-1) })
	require.GreaterOrEqual(t, then-first, 20*time.Millisecond)
}

func upstream(t *testing.T, s *suite) {
	_, c := s.open()
	u := s.connects(c, Cluster)
	s.hears(&u.recorder, "ready")
	srv := s.served(1)
	s.m.do(c.s, func() { u.write("ping "); u.write("pong") })
	s.receives(srv, "ping pong")
	srv.Send([]byte("answer"))
	s.Until("the answer", func() bool { return u.got() == "answer" })
	require.Equal(t, []string{"ready"}, u.events())
}

func serverEnds(_ *testing.T, s *suite) {
	_, c := s.open()
	u := s.connects(c, Cluster)
	s.hears(&u.recorder, "ready")
	srv := s.served(1)
	srv.Send([]byte("bye"))
	srv.Close()
	s.hears(&u.recorder, "ready", host.Remote.String())
	s.Until("what it has said", func() bool { return u.got() == "bye" })
	s.m.do(c.s, func() { u.write("nobody"); u.u.ReadDisable(true); u.u.Close(true); u.u.Close(false) })
	s.sets(c, func() {}) // nothing comes of it
}

func serverLeaves(_ *testing.T, s *suite) {
	_, c := s.open()
	u := s.connects(c, Cluster)
	s.hears(&u.recorder, "ready")
	s.served(1).Close()
	if s.f.Eager { // there may have been no server
		s.hears(&u.recorder, "ready", host.ConnectFailed.String())
	} else {
		s.hears(&u.recorder, "ready", host.Remote.String())
	}
}

func upstreamCloses(_ *testing.T, s *suite) {
	_, c := s.open()
	u := s.connects(c, Cluster)
	s.hears(&u.recorder, "ready")
	srv := s.served(1)
	s.m.do(c.s, func() { u.u.Close(false) })
	s.hears(&u.recorder, "ready", host.Local.String())
	s.Until("the server's end", srv.Ended)
}

func graceful(_ *testing.T, s *suite) {
	_, c := s.open()
	u := s.connects(c, Cluster)
	s.hears(&u.recorder, "ready")
	srv := s.served(1)
	s.m.do(c.s, func() { u.write("last"); u.u.Close(true) })
	s.receives(srv, "last")
	s.Until("the server hears of it", srv.Ended)
	if !s.f.HalfClose {
		s.hears(&u.recorder, "ready", host.Local.String())
		return
	}
	srv.Send([]byte("answer"))
	srv.Close()
	// Whose end it was is not told alike.
	s.Until("its end", func() bool { return len(u.events()) == 2 })
	s.Until("the answer", func() bool { return u.got() == "answer" })
}

func withdrawn(_ *testing.T, s *suite) {
	_, c := s.open()
	u := &up{w: c.s.w}
	u.m = s.m
	s.m.do(c.s, func() {
		u.u = c.s.w.Connect(host.Target{Cluster: Cluster}, u)
		u.returned.Store(true)
		u.u.Close(false)
	})
	s.hears(&u.recorder, host.Local.String())
}

func refused(_ *testing.T, s *suite) {
	_, c := s.open()
	u := s.connects(c, Refused)
	if !s.f.Eager {
		s.hears(&u.recorder, host.ConnectFailed.String())
		return
	}
	s.Until("it has failed", func() bool {
		heard := u.events()
		return len(heard) > 0 && heard[len(heard)-1] == host.ConnectFailed.String()
	})
}

func serverUnread(t *testing.T, s *suite) {
	_, c := s.open()
	u := s.connects(c, Cluster)
	s.hears(&u.recorder, "ready")
	srv := s.served(1)
	s.sets(c, func() { u.u.ReadDisable(true) })
	srv.Send([]byte("waits"))
	other := s.connects(c, Cluster) // as a sign that time has passed
	s.hears(&other.recorder, "ready")
	require.LessOrEqual(t, len(u.got()), len("waits"))
	s.m.do(c.s, func() { u.u.ReadDisable(false) })
	s.Until("it is read", func() bool { return u.got() == "waits" })
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8)
	}
	return b
}

// much: more than sockets hold.
func much(_ *testing.T, s *suite) {
	p, c := s.open()
	u := s.connects(c, Cluster)
	s.hears(&u.recorder, "ready")
	srv := s.served(1)
	want := string(pattern(3 << 20))
	s.m.do(c.s, func() {
		for i := 0; i < len(want); i += 100_000 {
			u.write(want[i:min(len(want), i+100_000)])
			c.write(want[i:min(len(want), i+100_000)])
		}
	})
	s.Until("the server has it", func() bool { return len(srv.Received()) == len(want) })
	s.receives(srv, want)
	s.receives(p, want)
	srv.Send([]byte(want))
	s.Until("the answer", func() bool { return len(u.got()) == len(want) })
}

func panics(_ *testing.T, s *suite) {
	p, c := s.open()
	q := s.Dial()
	d := s.accepted(2)
	u := s.connects(c, Cluster)
	s.hears(&u.recorder, "ready")
	srv := s.served(1)
	s.sets(c, func() {
		u.onData = func() { panic("on purpose") }
		c.onData = func([]byte) int { panic("on purpose") }
	})
	srv.Send([]byte("x"))
	s.hears(&u.recorder, "ready", "aborted", host.Local.String())
	p.Send([]byte("x"))
	s.hears(&c.recorder, "aborted", "closed, remote false")
	s.Until("it is closed", p.Ended)
	q.Send([]byte("lives"))
	s.Until("the other one lives", func() bool { return d.got() == "lives" })
	s.m.do(d.s, func() { d.write("on") })
	s.receives(q, "on")
}

func refusal(t *testing.T, s *suite) {
	require.NoError(t, s.Load("{}"))
	s.m.refuse = errors.New("no")
	s.Load("{ }") //nolint:errcheck // not every host can tell
	s.m.refuse = nil
	require.NoError(t, s.Load("{  }"))
	s.Dial()
	s.accepted(1)
}

func counts(_ *testing.T, s *suite) {
	_, c := s.open()
	s.m.do(c.s, func() {
		c.d.Count(s.m.counter, 3)
		c.d.Count(s.m.counter, 4)
		c.d.Add(s.m.gauge, 5)
		c.d.Add(s.m.gauge, -2)
	})
	s.Until("they count", func() bool { return s.Counter("suite.count") == 7 && s.Counter("suite.gauge") == 3 })
}
