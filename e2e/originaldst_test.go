package e2e

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// TestInboundClustersGoWhereTheClientWanted has servers at one port of several
// addresses and a cluster that goes to the address that the client connected
// to, as a sidecar's inbound clusters do. Connections to them must not be mixed.
func TestInboundClustersGoWhereTheClientWanted(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		const cluster = "inbound|20880||"
		port := peers.RestartPort(t)
		hosts := []string{"127.0.0.2", "127.0.0.3"}
		for _, h := range hosts {
			scripted.ServeAt(t, fmt.Sprintf("%s:%d", h, port), scripted.Answer(h))
		}
		o := v.options()
		inbound := envoytest.Resource{
			"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": cluster,
			"type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "1s",
			"original_dst_lb_config": envoytest.M{"upstream_port_override": port},
		}
		listener := envoytest.Listener("dubbo", envoytest.Proxy(toOne(cluster)))
		listener["address"] = envoytest.M{"socket_address": envoytest.M{"address": "0.0.0.0", "port_value": 0}}
		o.Clusters = []envoytest.Resource{inbound}
		o.Listeners = []envoytest.Resource{envoytest.Loopback(envoytest.Socket()), listener}
		e := envoytest.Start(t, o)

		clients := map[string]*scripted.Client{}
		for _, h := range hosts {
			for n := range 4 {
				clients[fmt.Sprint(h, "/", n)] = scripted.DialAt(t, fmt.Sprintf("%s:%d", h, e.Port("dubbo")))
			}
		}
		for id := range uint64(10) {
			for _, c := range clients {
				c.Ask(id, dubbotest.Request{})
			}
			for name, c := range clients {
				f := c.Read()
				require.EqualValues(t, statusOK, f.Status, f.Text())
				require.Equal(t, name[:len("127.0.0.2")], f.Text())
			}
		}
		// Nobody serves there.
		gone := scripted.DialAt(t, fmt.Sprintf("127.0.0.4:%d", e.Port("dubbo")))
		gone.Ask(1, dubbotest.Request{})
		require.NotEqualValues(t, statusOK, gone.Read().Status)
		checkCounters(t, e)
	})
}
