// Package scripted has Dubbo peers in plain Go that do exactly what a test
// says, also what no decent peer would do.
package scripted

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
)

// Conn is a connection that a server accepted.
type Conn struct {
	net.Conn
	// Nth connection of the server, from 1.
	Nth  int
	mu   sync.Mutex
	mute bool
}

// Write sends bytes as they are. Behaviours may call it from any goroutine;
// one call's bytes stay together.
func (c *Conn) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mute {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// Mute makes the connection silent: what is written from now on is not sent.
func (c *Conn) Mute() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mute = true
}

// Behaviour is what a server does with one request. It is called in the order
// of arrival, on the connection's goroutine.
type Behaviour func(c *Conn, req dubbotest.Parsed)

// Server is a scripted provider.
type Server struct {
	// Port it listens on.
	Port int

	l           net.Listener
	behaviour   atomic.Pointer[Behaviour]
	requests    atomic.Int64
	connections atomic.Int64
	heartbeats  atomic.Int64
	mu          sync.Mutex
	open        map[*Conn]bool
	done        sync.WaitGroup
}

// Serve starts a server until the end of the test.
func Serve(t testing.TB, b Behaviour) *Server {
	t.Helper()
	return ServeAt(t, "127.0.0.1:0", b)
}

// ServeAt is Serve at another address.
func ServeAt(t testing.TB, addr string, b Behaviour) *Server {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{l: l, Port: l.Addr().(*net.TCPAddr).Port, open: map[*Conn]bool{}}
	s.Set(b)
	s.done.Go(s.accept)
	t.Cleanup(s.Close)
	return s
}

// Set changes the behaviour from the next request on.
func (s *Server) Set(b Behaviour) { s.behaviour.Store(&b) }

// Requests is how many requests have arrived, oneway ones included, heartbeats
// not.
func (s *Server) Requests() int64 { return s.requests.Load() }

// Connections is how many connections were accepted.
func (s *Server) Connections() int64 { return s.connections.Load() }

// Heartbeats is how many heartbeat frames, questions or answers, have arrived.
func (s *Server) Heartbeats() int64 { return s.heartbeats.Load() }

// Open is how many connections are open.
func (s *Server) Open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

// Close ends the server and its connections.
func (s *Server) Close() {
	s.l.Close()
	s.Disconnect()
	s.done.Wait()
}

// Disconnect closes the open connections.
func (s *Server) Disconnect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		c.Close()
	}
}

// Send writes bytes on every open connection, unasked.
func (s *Server) Send(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		c.Write(b)
	}
}

func (s *Server) accept() {
	for {
		nc, err := s.l.Accept()
		if err != nil {
			return
		}
		c := &Conn{Conn: nc, Nth: int(s.connections.Add(1))}
		s.mu.Lock()
		s.open[c] = true
		s.mu.Unlock()
		s.done.Go(func() { s.serve(c) })
	}
}

func (s *Server) serve(c *Conn) {
	defer func() {
		c.Close()
		s.mu.Lock()
		delete(s.open, c)
		s.mu.Unlock()
	}()
	var buf []byte
	chunk := make([]byte, 64<<10)
	for {
		n, err := c.Read(chunk)
		buf = append(buf, chunk[:n]...)
		frames, rest := dubbotest.Parse(buf)
		for _, f := range frames {
			if f.Flags&0x20 != 0 {
				s.heartbeats.Add(1)
				if f.Flags&0xc0 == 0xc0 {
					c.Write(dubbotest.Frame(0x22, 20, f.ID, []byte{'N'}))
				}
				continue
			}
			s.requests.Add(1)
			(*s.behaviour.Load())(c, f)
		}
		buf = append(buf[:0], rest...)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				return
			}
			// The other side may still read: what was begun is finished.
			if cw, ok := c.Conn.(*net.TCPConn); ok {
				cw.CloseWrite()
			}
			return
		}
	}
}

// Answer makes an answer with that text.
func Answer(text string) Behaviour {
	return func(c *Conn, req dubbotest.Parsed) {
		if req.Flags&0x40 != 0 {
			c.Write(dubbotest.Response(req.ID, text))
		}
	}
}

// After delays another behaviour without holding up later requests.
func After(d time.Duration, b Behaviour) Behaviour {
	return func(c *Conn, req dubbotest.Parsed) { time.AfterFunc(d, func() { b(c, req) }) }
}

// Never does not answer.
func Never(*Conn, dubbotest.Parsed) {}

// Twice answers every request twice.
func Twice(c *Conn, req dubbotest.Parsed) {
	b := dubbotest.Response(req.ID, "twice")
	c.Write(append(b, b...))
}

// WrongID answers with an id that nobody asked with.
func WrongID(c *Conn, req dubbotest.Parsed) {
	c.Write(dubbotest.Response(req.ID+0x1_0000_0000_0000, "wrong id"))
}

// Garbage answers with bytes that are no frame.
func Garbage(c *Conn, _ dubbotest.Parsed) { c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) }

// HalfFrame answers with the beginning of an answer, and says no more on that
// connection.
func HalfFrame(c *Conn, req dubbotest.Parsed) {
	b := dubbotest.Response(req.ID, "half a frame")
	c.Write(b[:len(b)-4])
	c.Mute()
}

// CloseMidFrame is HalfFrame and then the end.
func CloseMidFrame(c *Conn, req dubbotest.Parsed) {
	HalfFrame(c, req)
	c.Close()
}

// Close closes the connection without an answer.
func Close(c *Conn, _ dubbotest.Parsed) { c.Close() }

// Reset closes it with a RST.
func Reset(c *Conn, _ dubbotest.Parsed) {
	c.Conn.(*net.TCPConn).SetLinger(0)
	c.Close()
}

// HugeLength answers with a header that announces two gigabytes.
func HugeLength(c *Conn, req dubbotest.Parsed) {
	b := dubbotest.Response(req.ID, "")
	copy(b[12:16], []byte{0x7f, 0xff, 0xff, 0xff})
	c.Write(b)
}
