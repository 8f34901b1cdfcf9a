package e2e

import (
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
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
		if os.Getenv("CI") != "" {
			t.Fatalf("IP_TRANSPARENT: %v", err)
		}
		t.Skipf("connecting from clients' addresses needs CAP_NET_ADMIN: %v", err)
	}
}

// addressee answers with the address that it sees its client under.
func addressee(c *scripted.Conn, req dubbotest.Parsed) {
	host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
	c.Write(dubbotest.Response(req.ID, host))
}

// TestServersSeeTheirClientsAddresses has clients at several addresses, each of
// which reaches the server under its own, on whichever worker it is.
func TestServersSeeTheirClientsAddresses(t *testing.T) {
	needTransparent(t)
	everywhere(t, func(t *testing.T, v variant) {
		s := scripted.Serve(t, addressee)
		six, err := net.Listen("tcp", "[::1]:0")
		require.NoError(t, err)
		scripted.ServeOn(t, six, addressee)

		config := envoytest.Dubbo("test", envoytest.Route("six", map[string]string{"method": "six"}), envoytest.Route("one", nil))
		config["protocol"].(envoytest.M)["connection_mode"] = "EXCLUSIVE"
		config["upstream"] = envoytest.M{"original_src": true}
		listener := envoytest.Listener("dubbo", envoytest.Proxy(config))
		listener["address"] = envoytest.M{"socket_address": envoytest.M{"address": "::", "port_value": 0, "ipv4_compat": true}}
		o := v.options()
		o.Clusters = []envoytest.Resource{
			envoytest.Cluster("one", envoytest.At(s.Port)...),
			envoytest.Cluster("six", envoytest.Endpoint{Host: "::1", Port: six.Addr().(*net.TCPAddr).Port}),
		}
		o.Listeners = []envoytest.Resource{envoytest.LoopbackWithSources(envoytest.Socket()), listener}
		e := envoytest.Start(t, o)

		// The addresses are not alike on the two workers, so that carriers must be
		// dialled until they appear where they are wanted.
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
