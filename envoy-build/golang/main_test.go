package golang

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/host/hosttest"
)

// TestMain fails when a test leaves a goroutine behind.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/meltemi-mesh/meltemi/envoy-build/internal/process.upkeep"))
}

// envoy plays Envoy: one worker's thread, on which events come and what is posted is done,
// and the loopback listener, with a cluster of one server.
type envoy struct {
	t     *testing.T
	h     *Host
	log   lines
	todo  chan func()
	id    uint64
	alive sync.WaitGroup

	mu      sync.Mutex
	clients []*peer
	servers []*tunnelled
	// finalized are clients whose connection was released, in their order.
	released int
	over     bool // servers that come now are nobody's
}

// lines is a log.
type lines struct {
	mu sync.Mutex
	ls []string
}

func (l *lines) logf(_ host.Level, format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ls = append(l.ls, fmt.Sprintf(format, args...))
}

func (l *lines) all() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.ls, "\n")
}

// newEnvoy plays one whose loopback listener takes CONNECT, or not.
func newEnvoy(t *testing.T, m host.Module, connect bool) *envoy {
	e := &envoy{t: t, todo: make(chan func(), 10_000)}
	path := filepath.Join(t.TempDir(), "loopback")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	s := Settings{Connect: connect}
	s.Path = path
	e.h = New(m, s, e.log.logf)
	e.alive.Go(e.run)
	e.alive.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			e.alive.Go(func() { e.tunnel(c.(*net.UnixConn), connect) })
		}
	})
	t.Cleanup(func() {
		e.mu.Lock()
		for _, p := range e.clients {
			e.post(func() { p.end(true) })
		}
		e.mu.Unlock()
		done := make(chan struct{})
		e.post(func() { close(done) })
		<-done
		e.h.Close()
		l.Close()
		close(e.todo)
		e.mu.Lock()
		e.over = true
		for _, s := range e.servers {
			s.conn.Close()
		}
		e.mu.Unlock()
		e.alive.Wait()
		if t.Failed() {
			t.Log(e.log.all())
		}
	})
	return e
}

// run is the worker's thread.
func (e *envoy) run() {
	runtime.LockOSThread()
	for f := range e.todo {
		f()
	}
}

func (e *envoy) post(f func()) { e.todo <- f }

// peer is a client. As golang.Connection it is what Envoy shows of it.
type peer struct {
	e        *envoy
	c        *Client
	remote   string
	accepted atomic.Bool

	mu       sync.Mutex
	received []byte
	written  func(b []byte) // in place of received
	bytes    int
	writes   int
	closed   bool // on the worker's thread
	ended    bool
	released bool
}

func (e *envoy) Dial() hosttest.Peer { return e.dial(PluginName) }

func (e *envoy) dial(plugin string) *peer { return e.dialWith(plugin, func(*peer) {}) }

// dialWith has set change the client before it connects.
func (e *envoy) dialWith(plugin string, set func(p *peer)) *peer {
	e.mu.Lock()
	p := &peer{e: e, remote: fmt.Sprintf("10.0.0.2:%d", 1000+len(e.clients))}
	set(p)
	e.clients = append(e.clients, p)
	id := e.id
	e.mu.Unlock()
	e.post(func() {
		p.c = e.h.Accept(id, plugin, shown{p})
		p.accepted.Store(true)
	})
	return p
}

func (p *peer) Write(b []byte) {
	p.use("Write")
	b = append([]byte(nil), b...)
	p.e.post(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		switch {
		case p.closed:
			return
		case p.written != nil:
			p.written(b)
		default:
			p.received = append(p.received, b...)
		}
		p.bytes += len(b)
		p.writes++
	})
}

// Close is the client's.
func (p *peer) Close() { p.e.post(func() { p.end(true) }) }

func (p *peer) use(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.released {
		p.e.t.Errorf("%s behind Release", what)
	}
}

// Later has it told at the end of what is due.
func (p *peer) Later() bool {
	p.use("Later")
	p.e.post(func() {
		p.mu.Lock()
		closed := p.closed
		p.mu.Unlock()
		if !closed {
			p.c.Turned()
		}
	})
	return true
}

// shown is p as Envoy shows it: a Connection.
type shown struct{ *peer }

// Close is the host's.
func (p shown) Close(CloseType) {
	p.use("Close")
	p.e.post(func() { p.end(false) })
}

func (p *peer) Addresses() (local, remote string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return "10.0.0.1:20880", p.remote
}

func (p *peer) Release() {
	p.use("Release")
	p.mu.Lock()
	p.released = true
	p.mu.Unlock()
	p.e.mu.Lock()
	p.e.released++
	p.e.mu.Unlock()
}

// end is on the worker's thread.
func (p *peer) end(remote bool) {
	p.mu.Lock()
	was := p.closed
	p.closed, p.ended = true, true
	p.mu.Unlock()
	if !was && p.c != nil {
		p.c.Closed(remote)
	}
}

func (p *peer) Send(b []byte) {
	b = append([]byte(nil), b...)
	p.e.post(func() {
		p.mu.Lock()
		closed := p.closed
		p.mu.Unlock()
		if closed {
			return
		}
		half := len(b) / 2
		view := append([]byte(nil), b...)
		p.c.Data([][]byte{view[:half], view[half:]}, len(view), false)
		for i := range view { // Envoy drains it
			view[i] = 0xdb
		}
	})
}

func (p *peer) Received() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]byte(nil), p.received...)
}

func (p *peer) Ended() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended
}

// unknown is a cluster that Envoy does not know, of which CONNECT tells.
const unknown = "unknown"

// tunnelled is the server at the end of a tunnel.
type tunnelled struct {
	conn     *net.UnixConn
	mu       sync.Mutex
	received []byte
	ended    bool
}

func (e *envoy) tunnel(c *net.UnixConn, connect bool) {
	defer c.Close()
	head := make([]byte, 16)
	if _, err := io.ReadFull(c, head); err != nil {
		return
	}
	rest := make([]byte, binary.BigEndian.Uint16(head[14:]))
	if _, err := io.ReadFull(c, rest); err != nil {
		return
	}
	cluster := string(rest[15:]) // behind two IPv4 addresses and the header of the TLV
	if connect {
		var request []byte
		for !strings.HasSuffix(string(request), "\r\n\r\n") {
			var b [1]byte
			if _, err := c.Read(b[:]); err != nil {
				return
			}
			request = append(request, b[0])
		}
		if cluster == hosttest.Refused {
			io.WriteString(c, "HTTP/1.1 503 Service Unavailable\r\nx-meltemi-flags: UF\r\ncontent-length: 3\r\n\r\nbad")
			return
		}
		if cluster == unknown {
			io.WriteString(c, "HTTP/1.1 503 Service Unavailable\r\nx-meltemi-flags: NC\r\n\r\n")
			return
		}
		for _, part := range []string{"HTTP/1.1 200 OK\r\nX-Meltemi-", "Host: 10.0.0.3:20880\r\n\r", "\n"} {
			io.WriteString(c, part)
		}
	}
	if cluster != hosttest.Cluster {
		return
	}
	s := &tunnelled{conn: c}
	e.mu.Lock()
	e.servers = append(e.servers, s)
	late := e.over
	e.mu.Unlock()
	if late {
		return
	}
	b := make([]byte, 64<<10)
	for {
		n, err := c.Read(b)
		s.mu.Lock()
		s.received = append(s.received, b[:n]...)
		s.ended = err != nil
		s.mu.Unlock()
		if err != nil {
			// What it still says goes until it closes.
			if !errors.Is(err, io.EOF) {
				return
			}
			c.SetReadDeadline(time.Time{})
			e.untilClosed(c)
			return
		}
	}
}

// untilClosed waits until a test has closed the server's side.
func (e *envoy) untilClosed(c *net.UnixConn) {
	raw, err := c.SyscallConn()
	for err == nil {
		time.Sleep(time.Millisecond)
		err = raw.Control(func(uintptr) {})
	}
}

func (s *tunnelled) Send(b []byte) { s.conn.Write(b) }
func (s *tunnelled) Close()        { s.conn.Close() }

func (s *tunnelled) Received() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]byte(nil), s.received...)
}

func (s *tunnelled) Ended() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

// Load implements hosttest.Stage. Envoy takes whatever it is.
func (e *envoy) Load(raw string) error {
	id := e.h.Load(wrapped(e.t, raw))
	e.mu.Lock()
	e.id = id
	e.mu.Unlock()
	return nil
}

// wrapped is a plugin_config.
func wrapped(t *testing.T, raw string) []byte {
	a, err := anypb.New(wrapperspb.String(raw))
	require.NoError(t, err)
	b, err := proto.Marshal(a)
	require.NoError(t, err)
	return b
}

func (e *envoy) Servers() (ps []hosttest.Peer) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.servers {
		ps = append(ps, s)
	}
	return ps
}

// patience is how long something may take.
const patience = 30 * time.Second

func (e *envoy) Until(what string, done func() bool) {
	e.t.Helper()
	require.Eventually(e.t, done, patience, time.Millisecond, what)
}

func (e *envoy) Counter(name string) int64 {
	e.h.metrics.mu.Lock()
	defer e.h.metrics.mu.Unlock()
	return e.h.metrics.byName[name].value.Load()
}
