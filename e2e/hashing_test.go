package e2e

import (
	"cmp"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
	"github.com/meltemi-mesh/meltemi/filter/consistent"
)

// hashed is a cluster with one of Envoy's own consistent load balancers, and the table
// that we make of the same hosts.
type hashed struct {
	name   string
	policy consistent.Policy
	lb     envoytest.M
	at     []envoytest.Endpoint
}

func (h *hashed) cluster() envoytest.Resource { return envoytest.Cluster(h.name, h.at...).With(h.lb) }

func (h *hashed) hosts() (hosts []consistent.Host) {
	for _, ep := range h.at {
		host := consistent.Host{Key: ep.HashKey, Weight: uint32(max(1, ep.Weight))}
		if host.Key == "" {
			host.Key = address(ep).String()
		}
		hosts = append(hosts, host)
	}
	return hosts
}

func address(ep envoytest.Endpoint) netip.AddrPort {
	if ep.Host == "" {
		ep.Host = "127.0.0.1"
	}
	return netip.AddrPortFrom(netip.MustParseAddr(ep.Host), uint16(ep.Port))
}

func (h *hashed) table() *consistent.Table { return consistent.Build(h.policy, h.hosts()) }

// ringAndMaglev are two clusters of the same hosts.
func ringAndMaglev(name string, at []envoytest.Endpoint) []*hashed {
	maglev := consistent.Policy{Algorithm: consistent.Maglev, TableSize: consistent.DefaultTableSize}
	return []*hashed{
		{name + "-ring", consistent.Default, envoytest.M{"lb_policy": "RING_HASH"}, at},
		{name + "-maglev", maglev, envoytest.M{"lb_policy": "MAGLEV"}, at},
	}
}

// mixedHosts are of several weights, with IPv6, some with a key.
func mixedHosts() []envoytest.Endpoint {
	return []envoytest.Endpoint{
		{Host: "10.0.0.1", Port: 20880, Weight: 3},
		{Host: "fd00::1", Port: 8080, Weight: 2},
		{Host: "::1", Port: 443, Weight: 1, HashKey: "pod-a"},
		{Host: "10.0.0.9", Port: 1, Weight: 11, HashKey: "pod-b"},
		{Host: "192.168.100.200", Port: 65535},
	}
}

var (
	ringEntry   = regexp.MustCompile(`ring hash: host=(\S+) hash=(\d+)`)
	maglevEntry = regexp.MustCompile(`maglev: i=(\d+) address=\S+ host=(\S+)`)
)

// TestOurTablesAreEnvoys reads the whole tables that stock Envoys log.
func TestOurTablesAreEnvoys(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		var ten []envoytest.Endpoint
		for i := range 10 {
			ten = append(ten, envoytest.Endpoint{Host: fmt.Sprintf("10.0.0.%d", i+1), Port: 20880})
		}
		for _, at := range [][]envoytest.Endpoint{ten, mixedHosts()} {
			all := ringAndMaglev("hosts", at)
			o := v.options()
			o.Args = []string{"--component-log-level", "upstream:trace"}
			for _, h := range all {
				o.Clusters = append(o.Clusters, h.cluster())
			}
			log, hosts := envoytest.Start(t, o).Log(), all[0].hosts()
			ring, maglev := all[0].table(), all[1].table()

			var ours, envoys []string
			entries := ringEntry.FindAllStringSubmatch(log, -1)
			require.GreaterOrEqual(t, len(entries), 1024)
			for i, e := range entries {
				hash, err := strconv.ParseUint(e[2], 10, 64)
				require.NoError(t, err)
				envoys = append(envoys, e[1], entries[(i+1)%len(entries)][1])
				ours = append(ours, hosts[ring.Pick(hash, 0)].Key, hosts[ring.Pick(hash+1, 0)].Key)
			}
			require.Equal(t, envoys, ours)

			ours, envoys = nil, nil
			for _, e := range maglevEntry.FindAllStringSubmatch(log, -1) {
				place, err := strconv.ParseUint(e[1], 10, 64)
				require.NoError(t, err)
				envoys = append(envoys, e[2])
				ours = append(ours, hosts[maglev.Pick(place, 0)].Key)
			}
			require.GreaterOrEqual(t, len(envoys), consistent.DefaultTableSize)
			require.Equal(t, envoys, ours)
		}
	})
}

// named serves connections with a name, and returns where.
func named(t *testing.T, host, name string) int {
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, name)
			_ = c.Close()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// proxied is a listener that believes the PROXY header, so that connections come from
// wherever a test likes, and hashes them.
func proxied(name, cluster string, by envoytest.M) envoytest.Resource {
	proxy := envoytest.TCPProxy(cluster)
	proxy["typed_config"].(envoytest.M)["hash_policy"] = []any{by}
	const state = "type.googleapis.com/envoy.extensions.filters.network.set_filter_state.v3.Config"
	const header = "type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol"
	return envoytest.Listener(name, envoytest.M{
		"name": "envoy.filters.network.set_filter_state", "typed_config": envoytest.M{
			"@type": state, "on_new_connection": []any{envoytest.M{
				"object_key":    "envoy.hashable_string",
				"format_string": envoytest.M{"text_format_source": envoytest.M{"inline_string": "%DOWNSTREAM_REMOTE_ADDRESS%"}},
			}},
		},
	}, proxy).With(envoytest.M{"listener_filters": []any{envoytest.M{
		"name": "envoy.filters.listener.proxy_protocol", "typed_config": envoytest.M{"@type": header},
	}}})
}

// from connects from an address, and returns who has answered.
func from(t *testing.T, e *envoytest.Envoy, listener string, source netip.AddrPort) string {
	c := e.Dial(listener)
	defer c.Close()
	family := "TCP4"
	if source.Addr().Is6() {
		family = "TCP6"
	}
	_, err := fmt.Fprintf(c, "PROXY %s %s %s %d 80\r\n", family, source.Addr(), source.Addr(), source.Port())
	require.NoError(t, err)
	name, err := io.ReadAll(c)
	require.NoError(t, err)
	return string(name)
}

// TestTCPProxyHashesAsWeDo asks Envoy's own tcp_proxy where connections go, by their
// address or by a string of filter state, before one of the hosts leaves and behind it.
func TestTCPProxyHashesAsWeDo(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		v.workers = 1 // which learns of the hosts at one moment
		n := 150
		if *matrix == "full" {
			n = 2000
		}
		at := []envoytest.Endpoint{
			{Host: "127.0.0.1", Weight: 1},
			{Host: "127.0.0.2", Weight: 2},
			{Host: "127.0.0.3", Weight: 3},
			{Host: "::1", Weight: 2},
			{Host: "127.0.0.4", Weight: 3, HashKey: "pod-a"},
			{Host: "127.0.0.5"},
		}
		for i := range at {
			at[i].Port = named(t, at[i].Host, at[i].Host)
		}
		all := ringAndMaglev("hosts", at)
		o := v.options()
		for _, h := range all {
			o.Clusters = append(o.Clusters, h.cluster())
			o.Listeners = append(o.Listeners,
				proxied(h.name+"-source", h.name, envoytest.M{"source_ip": envoytest.M{}}),
				proxied(h.name+"-state", h.name, envoytest.M{"filter_state": envoytest.M{"key": "envoy.hashable_string"}}))
		}
		e := envoytest.Start(t, o)
		source := func(i int) netip.AddrPort {
			text := fmt.Sprintf("10.%d.%d.7", i/256, i%256)
			if i%2 == 1 {
				text = fmt.Sprintf("2001:db8::%x", i)
			}
			return netip.AddrPortFrom(netip.MustParseAddr(text), uint16(1000+i))
		}
		agree := func(h *hashed) {
			table := h.table()
			for i := range n {
				s := source(i)
				require.Equal(t, h.at[table.Pick(consistent.Hash([]byte(s.Addr().String())), 0)].Host, from(t, e, h.name+"-source", s), "%s: %s", h.name, s)
				require.Equal(t, h.at[table.Pick(consistent.Hash([]byte(s.String())), 0)].Host, from(t, e, h.name+"-state", s), "%s: %s", h.name, s)
			}
		}
		for _, h := range all {
			agree(h)
			gone, of := 1, h.table()
			i := 0
			for of.Pick(consistent.Hash([]byte(source(i).Addr().String())), 0) != gone {
				i++
			}
			h.at = slices.Delete(slices.Clone(at), gone, gone+1)
			e.SetEndpoints(h.name, h.at...)
			require.True(t, eventually(patience, func() bool { return from(t, e, h.name+"-source", source(i)) != at[gone].Host }))
			agree(h)
		}
	})
}

// TestRequestsGoToTheHostsOfTheirKeys: over one connection, to the hosts that Envoy's own
// load balancers would choose, before one of ten leaves and behind it.
func TestRequestsGoToTheHostsOfTheirKeys(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		const users = 200
		user := func(i uint64) string { return "user-" + strconv.FormatUint(i, 10) }
		var names []string
		for i := range 10 {
			names = append(names, strconv.Itoa(i))
		}
		_, at := servers(t, names...)
		name := map[int]string{} // of a port
		for i, ep := range at {
			name[ep.Port] = names[i]
		}
		// That of hosts of which only addresses are known.
		slices.SortFunc(at, func(a, b envoytest.Endpoint) int {
			return cmp.Compare(address(a).String(), address(b).String())
		})
		both := ringAndMaglev("ten", at)
		config := envoytest.Dubbo("test", envoytest.Route(both[0].name, map[string]string{"lb": both[0].name}), envoytest.Route(both[1].name, nil))
		config["upstream"] = envoytest.M{"max_connections": 10}
		routes := config["route_config"].(envoytest.M)
		routes["hash_policies"] = []any{envoytest.M{"metadata": envoytest.M{"name": "user"}}}
		routes["clusters"] = []any{envoytest.M{"name": both[1].name, "load_balancing": envoytest.M{"maglev": envoytest.M{}}}}
		e := v.start(t, config, both[0].cluster().With(envoytest.M{"lb_policy": "ROUND_ROBIN"}), both[1].cluster().With(envoytest.M{"lb_policy": "RANDOM"}))
		clients := []*scripted.Client{scripted.Dial(t, e.Port("dubbo")), scripted.Dial(t, e.Port("dubbo"))}
		// asked returns who answers each user of each client.
		asked := func(h *hashed) (by []string) {
			for _, c := range clients {
				for i := range uint64(users) {
					c.Ask(i, dubbotest.Request{Attachments: [][2]string{{"user", user(i)}, {"lb", h.name}}})
				}
				answers := c.Answers(users)
				for i := range uint64(users) {
					require.EqualValues(t, statusOK, answers[i].Status, answers[i].Text())
					by = append(by, answers[i].Text())
				}
			}
			return by
		}
		mapped := func(h *hashed) (by []string) {
			table := h.table()
			for range clients {
				for i := range uint64(users) {
					by = append(by, name[h.at[table.Pick(consistent.Hash([]byte(user(i))), 0)].Port])
				}
			}
			return by
		}
		for _, h := range both {
			require.True(t, eventually(patience, func() bool { return slices.Equal(asked(h), mapped(h)) }), h.name)
			h.at = slices.Delete(slices.Clone(at), 3, 4)
			e.SetEndpoints(h.name, h.at...)
			require.True(t, eventually(patience, func() bool { return slices.Equal(asked(h), mapped(h)) }), h.name)
			h.at = at
			e.SetEndpoints(h.name, h.at...)
			require.True(t, eventually(patience, func() bool { return slices.Equal(asked(h), mapped(h)) }), h.name)
			detours := e.Stats(stats + "request_hash")
			for range 5 {
				require.Equal(t, mapped(h), asked(h), h.name)
			}
			require.Equal(t, detours, e.Stats(stats+"request_hash"))
		}
	})
}
