package scripted

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
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

// acceptor is what servers of all protocols have in common.
type acceptor struct {
	// Port it listens on.
	Port int

	l           net.Listener
	read        func(c *Conn, buf []byte) (rest []byte)
	connections atomic.Int64
	mu          sync.Mutex
	open        map[*Conn]bool
	done        sync.WaitGroup
}

// accept listens until the end of the test. read is given what a connection has
// sent, with what it left before.
func accept(t testing.TB, addr string, read func(c *Conn, buf []byte) (rest []byte)) *acceptor {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return acceptOn(t, l, read)
}

// acceptOn is accept with a listener that is there.
func acceptOn(t testing.TB, l net.Listener, read func(c *Conn, buf []byte) (rest []byte)) *acceptor {
	t.Helper()
	s := &acceptor{l: l, Port: l.Addr().(*net.TCPAddr).Port, read: read, open: map[*Conn]bool{}}
	s.done.Go(s.accept)
	t.Cleanup(s.Close)
	return s
}

// Connections is how many connections were accepted.
func (s *acceptor) Connections() int64 { return s.connections.Load() }

// Open is how many connections are open.
func (s *acceptor) Open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

// Close ends the server and its connections.
func (s *acceptor) Close() {
	s.l.Close()
	s.Disconnect()
	s.done.Wait()
}

// Disconnect closes the open connections.
func (s *acceptor) Disconnect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		c.Close()
	}
}

// Send writes bytes on every open connection, unasked.
func (s *acceptor) Send(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		c.Write(b)
	}
}

func (s *acceptor) accept() {
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

func (s *acceptor) serve(c *Conn) {
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
		buf = append(buf[:0], s.read(c, buf)...)
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
