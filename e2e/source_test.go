package e2e

import (
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/missing"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// needTransparent skips where a process may not connect from addresses that are
// not its own.
func needTransparent(t *testing.T) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	require.NoError(t, err)
	defer syscall.Close(fd)
	if err := syscall.SetsockoptInt(fd, syscall.SOL_IP, syscall.IP_TRANSPARENT, 1); err != nil {
		missing.Skip(t, "connecting from clients' addresses needs CAP_NET_ADMIN: %v", err)
	}
}

// addressee answers with the address that it sees its client under.
func addressee(c *scripted.Conn, req dubbotest.Parsed) {
	host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
	c.Write(dubbotest.Response(req.ID, host))
}

// seen is an Envoy before a server that tells clients which address it sees,
// over IPv4, and over IPv6 to those that ask for "six".
func seen(t *testing.T, v variant) *envoytest.Envoy {
	t.Helper()
	s := scripted.Serve(t, addressee)
	six, err := net.Listen("tcp", "[::1]:0")
	require.NoError(t, err)
	scripted.ServeOn(t, six, addressee)

	config := envoytest.Dubbo("test", envoytest.Route("six", map[string]string{"method": "six"}), envoytest.Route("one", nil))
	config["protocol"].(envoytest.M)["connection_mode"] = "EXCLUSIVE"
	config["upstream"] = envoytest.M{"original_src": true, "idle_timeout": "1s"}
	listener := envoytest.Listener("dubbo", envoytest.Proxy(config))
	listener["address"] = envoytest.M{"socket_address": envoytest.M{"address": "::", "port_value": 0, "ipv4_compat": true}}
	o := v.options()
	o.Clusters = []envoytest.Resource{
		envoytest.Cluster("one", envoytest.At(s.Port)...),
		envoytest.Cluster("six", envoytest.Endpoint{Host: "::1", Port: six.Addr().(*net.TCPAddr).Port}),
	}
	o.Listeners = []envoytest.Resource{envoytest.LoopbackWithSources(envoytest.Socket()), listener}
	return envoytest.Start(t, o)
}

// TestServersSeeTheirClientsAddresses has clients at several addresses, each of
// which reaches the server under its own, on whichever worker it is.
func TestServersSeeTheirClientsAddresses(t *testing.T) {
	t.Parallel()
	needTransparent(t)
	everywhere(t, func(t *testing.T, v variant) {
		e := seen(t, v)
		clients := map[*scripted.Client]string{}
		for n := range 40 {
			ip := fmt.Sprintf("127.0.1.%d", 1+n/4)
			clients[scripted.DialFrom(t, ip, fmt.Sprintf("127.0.0.1:%d", e.Port("dubbo")))] = ip
		}
		own := scripted.DialAt(t, fmt.Sprintf("[::1]:%d", e.Port("dubbo")))
		for id := range uint64(5) {
			for c := range clients {
				c.Ask(id, dubbotest.Request{})
			}
			own.Ask(id, dubbotest.Request{Method: "six"})
			for c, ip := range clients {
				f := c.Read()
				require.EqualValues(t, statusOK, f.Status, f.Text())
				require.Equal(t, ip, f.Text())
			}
			f := own.Read()
			require.EqualValues(t, statusOK, f.Status, f.Text())
			require.Equal(t, "::1", f.Text())
		}
		checkCounters(t, e)
	})
}

// TestCarriersWithASourceFindTheBusierWorker: all clients are on one worker, so
// that it has many more carriers than the other.
func TestCarriersWithASourceFindTheBusierWorker(t *testing.T) {
	t.Parallel()
	needTransparent(t)
	once(t, func(t *testing.T, v variant) {
		e := seen(t, v)
		on := func(worker int) int64 {
			for _, n := range e.Stats(fmt.Sprintf("^listener[.][^@].*[.]worker_%d[.]downstream_cx_active$", worker)) {
				return n
			}
			return 0 // there is just one worker
		}
		clients := map[*scripted.Client]string{}
		for n := 1; len(clients) < 100; n++ {
			ip := fmt.Sprintf("127.0.%d.%d", 1+n/200, 1+n%200)
			c := scripted.DialFrom(t, ip, fmt.Sprintf("127.0.0.1:%d", e.Port("dubbo")))
			want := int64(len(clients) + 1)
			require.Eventually(t, func() bool { return on(0)+on(1) == want }, patience, time.Millisecond)
			if on(0) == want {
				clients[c] = ip
				continue
			}
			c.Close()
			require.Eventually(t, func() bool { return on(1) == 0 }, patience, time.Millisecond)
		}
		for c := range clients {
			c.Ask(1, dubbotest.Request{})
		}
		for c, ip := range clients {
			require.Equal(t, ip, c.Read().Text())
		}
		checkCounters(t, e)
	})
}

// TestCarriersWithASourceLeaveNoneBehind: what it takes to have them appear on
// the right worker does not add up. Clients come one by one, so that now one
// worker has more carriers and now the other.
func TestCarriersWithASourceLeaveNoneBehind(t *testing.T) {
	t.Parallel()
	needTransparent(t)
	once(t, func(t *testing.T, v variant) {
		e := seen(t, v)
		for n := range 200 {
			ip := fmt.Sprintf("127.0.1.%d", 1+n)
			c := scripted.DialFrom(t, ip, fmt.Sprintf("127.0.0.1:%d", e.Port("dubbo")))
			c.Ask(1, dubbotest.Request{})
			require.Equal(t, ip, c.Read().Text())
			c.Close()
		}
		e.WaitStat("cluster.one.upstream_cx_active", envoytest.Exactly(0))
		require.Eventually(t, func() bool {
			carriers := e.Stats("^listener[.]@[^.]+[.]downstream_cx_active$")
			require.Len(t, carriers, 1)
			for _, n := range carriers {
				if n > int64(4*v.workers) { // two are parked on each, or a few more
					return false
				}
			}
			return true
		}, patience, time.Second)
		checkCounters(t, e)
	})
}
