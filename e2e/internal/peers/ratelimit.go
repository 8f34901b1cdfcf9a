package peers

import (
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// RateLimiter is envoyproxy/ratelimit, with a Redis that outlives it.
type RateLimiter struct {
	*process
	t      testing.TB
	dir    string
	Socket string
}

// StartRateLimiter starts the server with a configuration of its own, in YAML. It ends
// with the test, and before that by Kill; Start has it run again, with what it knew.
func StartRateLimiter(t testing.TB, config string) *RateLimiter {
	t.Helper()
	needed(t, "ratelimit", "Go", buildRateLimit())
	l := &RateLimiter{t: t, dir: t.TempDir()}
	l.Socket = filepath.Join(l.dir, "grpc")
	configs := filepath.Join(l.dir, "ratelimit", "config")
	if err := os.MkdirAll(configs, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(configs, "config.yaml"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	Redis.Start(t, func() bool { return listens(l.redis()) }, "--port", "0", "--unixsocket", l.redis(), "--save", "", "--appendonly", "no")
	l.Start()
	return l
}

func (l *RateLimiter) redis() string { return filepath.Join(l.dir, "redis") }

func listens(socket string) bool {
	c, err := net.Dial("unix", socket)
	if err == nil {
		c.Close()
	}
	return err == nil
}

// Start starts the server, which does not run.
func (l *RateLimiter) Start() {
	l.t.Helper()
	os.Remove(l.Socket)
	l.process = start(l.t, "ratelimit", []string{filepath.Join(rateLimitBuild(), "ratelimit")}, []string{
		"DISABLE_STATS=true", "USE_STATSD=false", "REDIS_SOCKET_TYPE=unix", "REDIS_URL=" + l.redis(), "RUNTIME_ROOT=" + l.dir, "RUNTIME_SUBDIRECTORY=ratelimit",
		"RUNTIME_WATCH_ROOT=false", "RUNTIME_IGNOREDOTFILES=true", "GRPC_UDS=" + l.Socket,
		"HOST=127.0.0.1", "PORT=0", "DEBUG_HOST=127.0.0.1", "DEBUG_PORT=0",
	}, func([]byte) {})
	for end := time.Now().Add(30 * time.Second); !listens(l.Socket); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			l.t.Fatalf("ratelimit did not get ready:\n%s", l.log)
		}
	}
}

func rateLimitBuild() string { return filepath.Join(Root(), "build", "peers", "ratelimit") }

var buildRateLimit = sync.OnceValue(func() error {
	return run(filepath.Join(Root(), "e2e", "peers", "ratelimit"), "go", "build", "-trimpath", "-o", filepath.Join(rateLimitBuild(), "ratelimit"),
		"github.com/envoyproxy/ratelimit/src/service_cmd")
})
