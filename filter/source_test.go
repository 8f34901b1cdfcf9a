package filter_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

const sourced = `{
	"stat_prefix": "t", "upstream": {"original_src": true},
	"protocol": {"name": "dubbo", "connection_mode": "EXCLUSIVE", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}},
	"route_config": {"routes": [{"route": {"cluster": "up"}}]}}`

// TestConnectionsWithASourceAreThoseOfOneClientAddress: a server that sees its
// clients' addresses never sees one client's requests under another's.
func TestConnectionsWithASourceAreThoseOfOneClientAddress(t *testing.T) {
	h := filtertest.New(t)
	up := h.Cluster("up", "h1")
	up.Serve = answer
	cfg := h.MustLoad(sourced)
	ips := []string{"10.1.0.1", "10.1.0.2", "10.1.0.1", "::ffff:10.1.0.2", "2001:db8::1"}
	for round := range uint64(3) {
		nameless := h.DialFrom(cfg, "") // of a socket in the file system
		for range 2 {                   // the pool is made, and found again
			nameless.Send(req(round))
			require.Len(t, replies(t, nameless), 1)
		}
		for _, ip := range ips {
			c := h.DialFrom(cfg, ip)
			c.Send(req(round))
			require.Len(t, replies(t, c), 1)
			c.Close()
		}
	}
	var sources []string
	for _, s := range up.Servers() {
		sources = append(sources, s.Source.String())
	}
	require.Equal(t, []string{"invalid IP", "10.1.0.1", "10.1.0.2", "2001:db8::1"}, sources)
}

// TestAConnectionOfAnotherClientsAddressIsGivenUp: where a circuit breaker allows no
// more of them, an address that is quiet does not keep out one that calls.
func TestAConnectionOfAnotherClientsAddressIsGivenUp(t *testing.T) {
	h := filtertest.New(t)
	up := h.Cluster("up", "h1")
	up.Serve = answer
	up.Fail = func() (host.CloseReason, bool) { return host.Overflow, len(up.Servers()) > 0 }
	cfg := h.MustLoad(sourced)
	for _, ip := range []string{"10.1.0.1", "10.1.0.2", "10.1.0.1"} {
		c := h.DialFrom(cfg, ip)
		c.Send(req(1))
		h.Advance(time.Second)
		f := one(t, c)
		require.EqualValues(t, 20, f.Status, f.Text())
		require.Len(t, up.Servers(), 1)
		require.Equal(t, ip, up.Servers()[0].Source.String())
	}

	// Nor is a connection kept for an address that calls no more.
	h.Advance(20 * time.Second)
	require.Empty(t, up.Servers())
}
