// Package scripted has Dubbo and Thrift peers in plain Go that do exactly what
// a test says, also what no decent peer would do.
package scripted

import (
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
)

// Behaviour is what a server does with one request. It is called in the order
// of arrival, on the connection's goroutine.
type Behaviour func(c *Conn, req dubbotest.Parsed)

// Server is a scripted provider.
type Server struct {
	*acceptor
	behaviour  atomic.Pointer[Behaviour]
	requests   atomic.Int64
	heartbeats atomic.Int64
}

// Serve starts a server until the end of the test.
func Serve(t testing.TB, b Behaviour) *Server {
	t.Helper()
	return ServeAt(t, "127.0.0.1:0", b)
}

// ServeAt is Serve at another address.
func ServeAt(t testing.TB, addr string, b Behaviour) *Server {
	t.Helper()
	s := &Server{}
	s.Set(b)
	s.acceptor = accept(t, addr, s.read)
	return s
}

// ServeOn is Serve with a listener that is there.
func ServeOn(t testing.TB, l net.Listener, b Behaviour) *Server {
	t.Helper()
	s := &Server{}
	s.Set(b)
	s.acceptor = acceptOn(t, l, s.read)
	return s
}

// Set changes the behaviour from the next request on.
func (s *Server) Set(b Behaviour) { s.behaviour.Store(&b) }

// Requests is how many requests have arrived, oneway ones included, heartbeats
// not.
func (s *Server) Requests() int64 { return s.requests.Load() }

// Heartbeats is how many heartbeat frames, questions or answers, have arrived.
func (s *Server) Heartbeats() int64 { return s.heartbeats.Load() }

// read handles the frames of buf and returns what is left of it.
func (s *Server) read(c *Conn, buf []byte) []byte {
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
	return rest
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
