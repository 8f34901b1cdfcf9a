package scripted

import "testing"

// BytesServer is a server that knows no protocol.
type BytesServer struct{ *acceptor }

// ServeBytes starts a server until the end of the test. behaviour is given what
// a connection has sent, with what it left before, on the connection's
// goroutine.
func ServeBytes(t testing.TB, behaviour func(c *Conn, b []byte) (rest []byte)) *BytesServer {
	t.Helper()
	return &BytesServer{accept(t, "127.0.0.1:0", behaviour)}
}
