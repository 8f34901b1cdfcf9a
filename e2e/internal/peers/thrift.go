package peers

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"
)

// Thrift is an implementation of Apache Thrift.
type Thrift string

// The implementations under test.
const (
	ThriftGo     Thrift = "thrift-go"
	ThriftPython Thrift = "thrift-python"
	// ThriftNode is a client only, without headers. It sends all calls of a
	// service over one connection at once.
	ThriftNode Thrift = "thrift-node"
	// ThriftJava is a client only, without headers, of calls with strings and
	// numbers.
	ThriftJava Thrift = "thrift-java"
	// ThriftCpp is a client only, without zlib: that of Debian's 0.17 writes
	// beyond its own buffer.
	ThriftCpp Thrift = "thrift-cpp"
	// ThriftCppShared is a client only, whose calls are all in flight on one
	// connection: of the C++ library's clients the one for several threads.
	ThriftCppShared Thrift = "thrift-cpp-shared"
)

// Wire is the form that Thrift messages have.
type Wire struct {
	// Transport is framed, unframed or header.
	Transport string
	// Protocol is strict or lax, which is binary with and without a version, or
	// compact.
	Protocol string
	// Zlib compresses what a header transport carries.
	Zlib bool
}

func (w Wire) String() string {
	s := w.Transport + " " + w.Protocol
	if w.Zlib {
		s += " zlib"
	}
	return s
}

func (w Wire) flags() []string {
	flags := []string{"-transport", w.Transport, "-protocol", w.Protocol}
	if w.Zlib {
		flags = append(flags, "-zlib")
	}
	return flags
}

// Server starts a server. It is ready when Server returns, and ends with the
// test.
func (l Thrift) Server(t testing.TB, name string, w Wire) *Provider {
	t.Helper()
	return l.ServerAt(t, name, w, 0)
}

// ServerAt is Server at a port.
func (l Thrift) ServerAt(t testing.TB, name string, w Wire, port int) *Provider {
	t.Helper()
	return l.ServerIn(t, Place{}, name, w, port)
}

// ServerIn is ServerAt elsewhere.
func (l Thrift) ServerIn(t testing.TB, p Place, name string, w Wire, port int) *Provider {
	t.Helper()
	argv, env := l.command(t, "server", append(w.flags(), "-name", name, "-host", p.host(), "-port", strconv.Itoa(port)))
	return startProvider(t, string(l)+" server "+name, p.within(argv), env)
}

// Client starts a client that calls 127.0.0.1:port. It ends with the test. A
// call fails after timeout; 0 is 3 s, of Java's javaTimeout.
func (l Thrift) Client(t testing.TB, port int, w Wire, timeout time.Duration) *Consumer {
	t.Helper()
	return l.ClientIn(t, Place{}, port, w, timeout)
}

// ClientIn is Client elsewhere.
func (l Thrift) ClientIn(t testing.TB, p Place, port int, w Wire, timeout time.Duration) *Consumer {
	t.Helper()
	args := append(w.flags(), "-addr", p.address(port))
	switch {
	case timeout > 0:
	case l == ThriftNode:
		timeout = 3 * time.Second
	case l == ThriftJava:
		timeout = javaTimeout
	}
	switch {
	case timeout == 0:
	case l != ThriftGo:
		args = append(args, "-timeout", strconv.FormatInt(timeout.Milliseconds(), 10))
	default:
		args = append(args, "-timeout", timeout.String())
	}
	argv, env := l.command(t, "client", args)
	return startConsumer(t, string(l)+" client", p.within(argv), env)
}

func thriftSource() string { return filepath.Join(Root(), "e2e", "peers", "thrift") }
func thriftBuild() string  { return filepath.Join(Root(), "build", "peers", "thrift") }

// command runs a program of the library, which is built or fetched once per
// test binary.
func (l Thrift) command(t testing.TB, program string, args []string) (argv, env []string) {
	t.Helper()
	if l == ThriftPython {
		needed(t, string(l), "Python 3 with pip", fetchPythonThrift())
		return append([]string{"python3", filepath.Join(thriftSource(), "python", program+".py")}, args...),
			[]string{"PYTHONPATH=" + pythonThrift(), "PYTHONDONTWRITEBYTECODE=1"}
	}
	if l == ThriftNode {
		needed(t, string(l), "Node with npm", fetchNodeThrift())
		return append([]string{"node", filepath.Join(thriftSource(), "node", program+".js")}, args...),
			[]string{"NODE_PATH=" + filepath.Join(nodeThrift(), "node_modules")}
	}
	if l == ThriftJava {
		needed(t, string(l), "a JDK and Maven", buildJavaThrift())
		return java(javaThrift(), "org.meltemi.test.thrift.Client", args), nil
	}
	if l == ThriftCpp || l == ThriftCppShared {
		needed(t, string(l), "Debian with g++", buildCppThrift())
		if l == ThriftCppShared {
			args = append(args, "-shared")
		}
		return append([]string{filepath.Join(cppThrift(), program)}, args...), nil
	}
	needed(t, string(l), "Go", buildThrift())
	return append([]string{filepath.Join(thriftBuild(), program)}, args...), nil
}

var buildThrift = sync.OnceValue(func() error {
	return run(thriftSource(), "go", "build", "-trimpath", "-o", thriftBuild()+"/", "./server", "./client")
})

func javaThrift() string { return filepath.Join(thriftBuild(), "java") }

var buildJavaThrift = sync.OnceValue(func() error {
	return maven("thrift/java", javaThrift(), "dependency:copy-dependencies", "-DoutputDirectory="+filepath.Join(javaThrift(), "lib"))
})

func cppThrift() string { return filepath.Join(thriftBuild(), "cpp") }

// buildCppThrift builds the client in C++, unless it has not changed since it last
// did.
var buildCppThrift = sync.OnceValue(func() error {
	for _, tool := range []string{"g++", "apt-get", "dpkg"} {
		if _, err := exec.LookPath(tool); err != nil {
			return err
		}
	}
	src, built := filepath.Join(thriftSource(), "cpp"), filepath.Join(cppThrift(), "client")
	if !newer(src, built) && !newer(filepath.Join(thriftSource(), "echo.thrift"), built) {
		return nil
	}
	return run(src, "./build.sh", cppThrift())
})

const (
	pythonThriftVersion = "0.25.0"
	nodeThriftVersion   = "0.24.0"
)

func pythonThrift() string { return filepath.Join(thriftBuild(), "python-"+pythonThriftVersion) }
func nodeThrift() string   { return filepath.Join(thriftBuild(), "node-"+nodeThriftVersion) }

var fetchPythonThrift = sync.OnceValue(func() error {
	return fetch(pythonThrift(), "python3", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
		"--target", ".", "thrift=="+pythonThriftVersion)
})

var fetchNodeThrift = sync.OnceValue(func() error {
	if _, err := exec.LookPath("node"); err != nil {
		return err
	}
	return fetch(nodeThrift(), "npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", ".", "thrift@"+nodeThriftVersion)
})

// fetch makes a folder by a command that fills the one it runs in.
func fetch(to string, argv ...string) error {
	if _, err := exec.LookPath(argv[0]); err != nil {
		return err
	}
	if _, err := os.Stat(to); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(to), ".fetch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := run(tmp, argv...); err != nil {
		return err
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	return os.Rename(tmp, to)
}
