package scripted

import (
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
)

// patience bounds every wait of a client.
const patience = 20 * time.Second

// Client is a scripted consumer.
type Client struct {
	*net.TCPConn
	t   testing.TB
	buf []byte
	got []dubbotest.Parsed
}

// Dial connects to 127.0.0.1:port until the end of the test.
func Dial(t testing.TB, port int) *Client {
	t.Helper()
	return DialAt(t, fmt.Sprintf("127.0.0.1:%d", port))
}

// TryDial is Dial without an end of its own; the caller closes the client.
func TryDial(t testing.TB, port int) (*Client, error) {
	nc, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return nil, err
	}
	return &Client{TCPConn: nc.(*net.TCPConn), t: t}, nil
}

// NewClient is a client on a TCP connection, until the end of the test.
func NewClient(t testing.TB, nc net.Conn) *Client {
	t.Cleanup(func() { nc.Close() })
	return &Client{TCPConn: nc.(*net.TCPConn), t: t}
}

// DialAt is Dial of another address.
func DialAt(t testing.TB, addr string) *Client {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return NewClient(t, nc)
}

// DialFrom is DialAt from another IP address of this machine.
func DialFrom(t testing.TB, ip, addr string) *Client {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
	nc, err := d.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return NewClient(t, nc)
}

// Send writes bytes as they are.
func (c *Client) Send(b ...byte) {
	c.t.Helper()
	if _, err := c.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

// Ask sends one request.
func (c *Client) Ask(id uint64, r dubbotest.Request) {
	c.t.Helper()
	r.ID = id
	c.Send(r.Bytes()...)
}

// Read returns the next frame. It fails the test when none comes.
func (c *Client) Read() dubbotest.Parsed {
	c.t.Helper()
	f, err := c.TryRead()
	if err != nil {
		c.t.Fatalf("no frame: %v", err)
	}
	return f
}

// TryRead returns the next frame, or why none came.
func (c *Client) TryRead() (dubbotest.Parsed, error) {
	c.SetReadDeadline(time.Now().Add(patience))
	chunk := make([]byte, 64<<10)
	for len(c.got) == 0 {
		n, err := c.TCPConn.Read(chunk)
		c.buf = append(c.buf, chunk[:n]...)
		var rest []byte
		c.got, rest = dubbotest.Parse(c.buf)
		c.buf = append([]byte(nil), rest...)
		if err != nil && len(c.got) == 0 {
			return dubbotest.Parsed{}, err
		}
	}
	f := c.got[0]
	c.got = c.got[1:]
	return f, nil
}

// Answers reads n frames and returns them by id. An id that comes twice fails
// the test.
func (c *Client) Answers(n int) map[uint64]dubbotest.Parsed {
	c.t.Helper()
	answers := map[uint64]dubbotest.Parsed{}
	for range n {
		f := c.Read()
		if again, ok := answers[f.ID]; ok {
			c.t.Fatalf("request %d was answered twice: %q, %q", f.ID, again.Text(), f.Text())
		}
		answers[f.ID] = f
	}
	return answers
}

// Quiet proves that nothing more had been sent to the client: the answer to a
// heartbeat is the next frame.
func (c *Client) Quiet() {
	c.t.Helper()
	const id = 0x7eadbeef
	c.Send(dubbotest.Heartbeat(id)...)
	if f := c.Read(); f.ID != id || f.Flags&0x20 == 0 {
		c.t.Fatalf("an answer that nobody waits for: id %d, %q", f.ID, f.Text())
	}
}

// Closed waits until the other side has closed the connection. Frames that
// still come are returned.
func (c *Client) Closed() (frames []dubbotest.Parsed) {
	c.t.Helper()
	for {
		f, err := c.TryRead()
		if err == nil {
			frames = append(frames, f)
			continue
		}
		var ne net.Error
		if errors.As(err, &ne) && ne.Timeout() {
			c.t.Fatalf("the connection is still open after %v", patience)
		}
		return frames
	}
}
