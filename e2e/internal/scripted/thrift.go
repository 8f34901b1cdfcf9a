package scripted

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// The types of Thrift messages.
const (
	ThriftCall      = 1
	ThriftReply     = 2
	ThriftException = 3
	ThriftOneway    = 4
)

// ThriftMessage is a framed message in the binary protocol. Its struct has
// either one string or nothing.
type ThriftMessage struct {
	Type   byte
	Method string
	SeqID  int32
	// Text is an argument (field 1), a result (field 0) or the text of an
	// exception (field 1).
	Text string
	// Kind is the type of an exception (field 2), if it is not 0. It is not read.
	Kind int32
}

// Bytes is the message with the length of its frame.
func (m ThriftMessage) Bytes() []byte {
	b := []byte{0, 0, 0, 0, 0x80, 1, 0, m.Type}
	b = binary.BigEndian.AppendUint32(b, uint32(len(m.Method)))
	b = append(b, m.Method...)
	b = binary.BigEndian.AppendUint32(b, uint32(m.SeqID))
	field := byte(1)
	if m.Type == ThriftReply {
		field = 0
	}
	if m.Text != "" {
		b = append(b, 11, 0, field)
		b = binary.BigEndian.AppendUint32(b, uint32(len(m.Text)))
		b = append(b, m.Text...)
	}
	if m.Kind != 0 {
		b = append(b, 8, 0, 2)
		b = binary.BigEndian.AppendUint32(b, uint32(m.Kind))
	}
	b = append(b, 0)
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

// parseThrift takes the first message off b. What is no such message gives one
// of type 0.
func parseThrift(b []byte) (m ThriftMessage, n int, whole bool) {
	if len(b) < 4 {
		return m, 0, false
	}
	n = 4 + int(binary.BigEndian.Uint32(b))
	if len(b) < n {
		return m, n, false
	}
	body := b[4:n]
	text := func() (string, bool) {
		if len(body) < 4 {
			return "", false
		}
		l := int(binary.BigEndian.Uint32(body))
		if l > len(body)-4 {
			return "", false
		}
		s := string(body[4 : 4+l])
		body = body[4+l:]
		return s, true
	}
	if len(body) < 4 || body[0] != 0x80 || body[1] != 1 {
		return m, n, true
	}
	kind := body[3]
	body = body[4:]
	method, ok := text()
	if !ok || len(body) < 5 {
		return m, n, true
	}
	m = ThriftMessage{Type: kind, Method: method, SeqID: int32(binary.BigEndian.Uint32(body))}
	if body = body[4:]; body[0] == 11 && len(body) > 3 {
		body = body[3:]
		m.Text, _ = text()
	}
	return m, n, true
}

// ThriftServer is a scripted server.
type ThriftServer struct {
	*acceptor
	requests atomic.Int64
}

// ServeThrift starts a server until the end of the test. It does with each
// message what behaviour does, which is called in the order of arrival, on the
// connection's goroutine.
func ServeThrift(t testing.TB, behaviour func(c *Conn, req ThriftMessage)) *ThriftServer {
	t.Helper()
	s := &ThriftServer{}
	s.acceptor = accept(t, "127.0.0.1:0", func(c *Conn, buf []byte) []byte {
		for {
			m, n, whole := parseThrift(buf)
			if !whole {
				return buf
			}
			buf = buf[n:]
			s.requests.Add(1)
			behaviour(c, m)
		}
	})
	return s
}

// Requests is how many messages have arrived.
func (s *ThriftServer) Requests() int64 { return s.requests.Load() }

// ThriftEcho answers calls with their own text.
func ThriftEcho(c *Conn, req ThriftMessage) {
	if req.Type == ThriftCall {
		req.Type = ThriftReply
		c.Write(req.Bytes())
	}
}

// ThriftClient is a scripted client.
type ThriftClient struct {
	*net.TCPConn
	t   testing.TB
	buf []byte
}

// DialThrift connects to 127.0.0.1:port until the end of the test.
func DialThrift(t testing.TB, port int) *ThriftClient {
	t.Helper()
	return &ThriftClient{TCPConn: Dial(t, port).TCPConn, t: t}
}

// Send writes bytes as they are.
func (c *ThriftClient) Send(b ...byte) {
	c.t.Helper()
	if _, err := c.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

// Ask sends one call.
func (c *ThriftClient) Ask(seqid int32, method, text string) {
	c.t.Helper()
	c.Send(ThriftMessage{Type: ThriftCall, Method: method, SeqID: seqid, Text: text}.Bytes()...)
}

// Read returns the next message. It fails the test when none comes.
func (c *ThriftClient) Read() ThriftMessage {
	c.t.Helper()
	m, err := c.tryRead()
	if err != nil {
		c.t.Fatalf("no message: %v", err)
	}
	return m
}

func (c *ThriftClient) tryRead() (ThriftMessage, error) {
	c.SetReadDeadline(time.Now().Add(patience))
	chunk := make([]byte, 64<<10)
	for {
		if m, n, whole := parseThrift(c.buf); whole {
			c.buf = c.buf[n:]
			return m, nil
		}
		n, err := c.TCPConn.Read(chunk)
		c.buf = append(c.buf, chunk[:n]...)
		if err != nil && n == 0 {
			return ThriftMessage{}, err
		}
	}
}

// Closed waits until the other side has closed the connection, and fails the
// test if it has said something.
func (c *ThriftClient) Closed() {
	c.t.Helper()
	m, err := c.tryRead()
	var ne net.Error
	switch {
	case err == nil:
		c.t.Fatalf("a message instead of the end: %+v", m)
	case errors.As(err, &ne) && ne.Timeout():
		c.t.Fatalf("the connection is still open after %v", patience)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
	default:
		c.t.Fatal(err)
	}
}
