package filter_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

// TestConnectionsWithASourceAreThoseOfOneClientAddress: a server that sees its
// clients' addresses never sees one client's requests under another's.
func TestConnectionsWithASourceAreThoseOfOneClientAddress(t *testing.T) {
	h := filtertest.New(t)
	up := h.Cluster("up", "h1")
	up.Serve = answer
	cfg := h.MustLoad(`{
		"stat_prefix": "t", "upstream": {"original_src": true},
		"protocol": {"name": "dubbo", "connection_mode": "EXCLUSIVE", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}},
		"route_config": {"routes": [{"route": {"cluster": "up"}}]}}`)
	ips := []string{"10.1.0.1", "10.1.0.2", "10.1.0.1", "::ffff:10.1.0.2", "2001:db8::1"}
	for round := range uint64(3) {
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
	require.Equal(t, []string{"10.1.0.1", "10.1.0.2", "2001:db8::1"}, sources)
}
