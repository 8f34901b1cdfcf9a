package scripted

import (
	"errors"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs/brpc/brpctest"
)

// BRPCServer is a scripted server of baidu_std.
type BRPCServer struct {
	*acceptor
	requests atomic.Int64
}

// ServeBRPC starts a server until the end of the test. It does with each frame,
// of a call or of a stream, what behaviour does, which is called in the order of
// arrival, on the connection's goroutine.
func ServeBRPC(t testing.TB, behaviour func(c *Conn, f brpctest.Parsed)) *BRPCServer {
	t.Helper()
	s := &BRPCServer{}
	s.acceptor = accept(t, "127.0.0.1:0", func(c *Conn, buf []byte) []byte {
		// The frames are views, and a behaviour may keep them.
		frames, rest := brpctest.Parse(slices.Clone(buf))
		for _, f := range frames {
			if f.Magic == "PRPC" {
				s.requests.Add(1)
			}
			behaviour(c, f)
		}
		return rest
	})
	return s
}

// Requests is how many calls have arrived.
func (s *BRPCServer) Requests() int64 { return s.requests.Load() }

// BRPCEcho answers calls with their own body.
func BRPCEcho(c *Conn, f brpctest.Parsed) {
	c.Write(brpctest.Response{ID: f.ID, Body: f.Payload}.Bytes())
}

// BRPCClient is a scripted client.
type BRPCClient struct {
	*net.TCPConn
	t   testing.TB
	buf []byte
	got []brpctest.Parsed
}

// DialBRPC connects to 127.0.0.1:port until the end of the test.
func DialBRPC(t testing.TB, port int) *BRPCClient {
	t.Helper()
	return &BRPCClient{TCPConn: Dial(t, port).TCPConn, t: t}
}

// Send writes bytes as they are.
func (c *BRPCClient) Send(b []byte) {
	c.t.Helper()
	if _, err := c.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

// Read returns the next frame. It fails the test when none comes.
func (c *BRPCClient) Read() brpctest.Parsed {
	c.t.Helper()
	f, err := c.TryRead()
	if err != nil {
		c.t.Fatalf("no frame: %v", err)
	}
	return f
}

// TryRead returns the next frame, or why none came.
func (c *BRPCClient) TryRead() (brpctest.Parsed, error) {
	c.SetReadDeadline(time.Now().Add(patience))
	chunk := make([]byte, 64<<10)
	for len(c.got) == 0 {
		n, err := c.TCPConn.Read(chunk)
		c.buf = append(c.buf, chunk[:n]...)
		var rest []byte
		c.got, rest = brpctest.Parse(c.buf)
		// The frames are views of what was there.
		c.buf = append([]byte(nil), rest...)
		if err != nil && len(c.got) == 0 {
			return brpctest.Parsed{}, err
		}
	}
	f := c.got[0]
	c.got = c.got[1:]
	return f, nil
}

// Closed waits until the other side has closed the connection, and fails the
// test if it has said something.
func (c *BRPCClient) Closed() {
	c.t.Helper()
	f, err := c.TryRead()
	var ne net.Error
	switch {
	case err == nil:
		c.t.Fatalf("a frame instead of the end: %+v", f)
	case errors.As(err, &ne) && ne.Timeout():
		c.t.Fatalf("the connection is still open after %v", patience)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
	default:
		c.t.Fatal(err)
	}
}
