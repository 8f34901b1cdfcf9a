package peers

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// ProviderOptions are options of a server process.
type ProviderOptions struct {
	Place
	// Name in the answers.
	Name string
	// Port; 0 is any that is free.
	Port int
	// Group and Version of both interfaces.
	Group, Version string
	// Heartbeat is the period of the server's own heartbeats; 0 leaves the
	// library's own.
	Heartbeat time.Duration
}

// Provider is a running server process.
type Provider struct {
	*process
	// Port it accepts connections on.
	Port int
}

func (l Library) provider(t testing.TB, o ProviderOptions) *Provider {
	t.Helper()
	if o.Name == "" {
		o.Name = string(l)
	}
	if l == Java && o.Port == 0 { // Dubbo does not tell which one the kernel would choose
		o.Port = RestartPort(t)
	}
	argv, env := l.providerCommand(o)
	return startProvider(t, string(l)+" provider "+o.Name, o.within(argv), env)
}

// startProvider starts a server program that tells its port.
func startProvider(t testing.TB, name string, argv, env []string) *Provider {
	t.Helper()
	p := &Provider{}
	ready := make(chan int, 1)
	p.process = start(t, name, argv, env, func(b []byte) {
		var line struct {
			Port int `json:"port"`
		}
		if err := json.Unmarshal(b, &line); err != nil || line.Port == 0 {
			t.Errorf("%s wrote %.200q", name, b)
			return
		}
		ready <- line.Port
	})
	select {
	case p.Port = <-ready:
	case <-p.exited:
		t.Fatalf("%s ended before it was ready", p.name)
	case <-time.After(Patience):
		t.Fatalf("%s is not ready after %v", p.name, Patience)
	}
	return p
}

// given are the ports that RestartPort has returned.
var given sync.Map

// RestartPort is a free port for somebody who is told where to listen, such as a
// provider that is to come back at the same one. It lies outside of the range from
// which the kernel serves port 0 and outgoing connections, and beyond those of Istio's,
// which are used in the sidecars' own namespaces, and no other test gets it, so it is
// free until it is used.
func RestartPort(t testing.TB) int {
	t.Helper()
	for range 1000 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 16_000+rand.IntN(14_000)))
		if err != nil {
			continue
		}
		l.Close()
		port := l.Addr().(*net.TCPAddr).Port
		if _, taken := given.LoadOrStore(port, true); !taken {
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}
