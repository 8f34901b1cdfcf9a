package peers

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
)

// Memcached is the server.
var Memcached = debian("memcached", "memcached", "memcached", "libmemcached-tools")

// MemcachedServer starts the server until the end of the test, and returns the path
// of the socket it listens on.
func MemcachedServer(t testing.TB) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "memcached")
	Memcached.Start(t, func() bool {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
		}
		return err == nil
	}, "-s", socket, "-u", "root", "-t", "2", "-m", "64")
	return socket
}

// Memccapable runs the program of that name, which tries what a server of
// memcached's text protocol can do.
func Memccapable(t testing.TB, port int) (output string, err error) {
	t.Helper()
	return Memcached.with("memccapable").Run(t, "-a", "-h", "127.0.0.1", "-p", strconv.Itoa(port))
}

// MemcachedLibraries are those for which there is a session.
var MemcachedLibraries = []string{"pymemcache", "python-memcached"}

// MemcachedSession goes through what a library in Python can do, with keys of a
// prefix.
func MemcachedSession(t testing.TB, library string, port int, prefix string) (output string, err error) {
	t.Helper()
	needed(t, library, "Python 3 with pip", fetchPythonMemcached())
	cmd := exec.Command("python3", filepath.Join(Root(), "e2e", "peers", "memcached", "session.py"), library, "127.0.0.1", strconv.Itoa(port), prefix)
	cmd.Env = append(os.Environ(), "PYTHONPATH="+pythonMemcached(), "PYTHONDONTWRITEBYTECODE=1")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

const (
	pymemcacheVersion      = "4.0.0"
	pythonMemcachedVersion = "1.62"
)

func pythonMemcached() string {
	return filepath.Join(Root(), "build", "peers", "memcached", "python-"+pymemcacheVersion+"-"+pythonMemcachedVersion)
}

var fetchPythonMemcached = sync.OnceValue(func() error {
	return fetch(pythonMemcached(), "python3", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
		"--target", ".", "pymemcache=="+pymemcacheVersion, "python-memcached=="+pythonMemcachedVersion)
})
