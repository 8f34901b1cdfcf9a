package peers

import (
	"cmp"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"
)

// BRPC is an implementation of baidu_std, bRPC's own protocol.
type BRPC string

// The implementations under test.
const (
	BRPCJava  BRPC = "brpc-java"
	JProtobuf BRPC = "jprotobuf"
)

// Server starts a server. It is ready when Server returns, and ends with the
// test.
func (l BRPC) Server(t testing.TB, name string) *Provider {
	return l.ServerIn(t, Place{}, name, 0)
}

// ServerIn is Server elsewhere, at a port, or at any if that is 0.
func (l BRPC) ServerIn(t testing.TB, at Place, name string, port int) *Provider {
	t.Helper()
	if port == 0 { // neither library tells which one the kernel would choose
		port = RestartPort(t)
	}
	argv := l.command(t, "Server", "-name", name, "-host", at.host(), "-port", strconv.Itoa(port))
	return startProvider(t, string(l)+" server "+name, at.within(argv), nil)
}

// BRPCOptions are options of a client.
type BRPCOptions struct {
	Place
	// Timeout of a call; 0 is javaTimeout.
	Timeout time.Duration
	// Connections is how many connections the client may open; 0 leaves the
	// library's own. With 1 all calls share one.
	Connections int
	// Chunk makes jprotobuf send what is larger in chunks of that many bytes.
	Chunk int
}

// Client starts a client that calls a port. It ends with the test.
func (l BRPC) Client(t testing.TB, port int, o BRPCOptions) *Consumer {
	t.Helper()
	timeout := cmp.Or(o.Timeout, javaTimeout)
	args := []string{"-addr", o.address(port), "-connections", strconv.Itoa(o.Connections), "-timeout", strconv.FormatInt(timeout.Milliseconds(), 10)}
	if o.Chunk > 0 {
		args = append(args, "-chunk", strconv.Itoa(o.Chunk))
	}
	return startConsumer(t, string(l)+" client", o.within(l.command(t, "Client", args...)), nil)
}

// command runs a program of the library, which is built once.
func (l BRPC) command(t testing.TB, program string, args ...string) []string {
	t.Helper()
	needed(t, string(l), "a JDK and Maven", buildBRPC())
	module, class := "brpcjava", "Brpc"
	if l == JProtobuf {
		module, class = "jprotobuf", "Jprotobuf"
	}
	return java(filepath.Join(brpcBuild(), module), "org.meltemi.test.brpc."+class+program, args)
}

func brpcBuild() string { return filepath.Join(Root(), "build", "peers", "brpc") }

var buildBRPC = sync.OnceValue(func() error { return maven("brpc", brpcBuild()) })
