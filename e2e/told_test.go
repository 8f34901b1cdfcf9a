package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/docs"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
	"github.com/meltemi-mesh/meltemi/filter/consistent"
)

// tenServers are of weights 1:2:3, some with IPv6, some with a key. Each answers with its
// address.
func tenServers(t *testing.T) (at []envoytest.Endpoint) {
	for i := range 10 {
		ep := envoytest.Endpoint{Host: fmt.Sprintf("127.0.0.%d", i+1), Weight: 1 + i%3}
		if i%4 == 1 {
			ep.Host = "::1"
		}
		if i%5 == 2 {
			ep.HashKey = fmt.Sprint("pod-", i)
		}
		s := scripted.ServeAt(t, netip.AddrPortFrom(netip.MustParseAddr(ep.Host), 0).String(), nil)
		ep.Port = s.Port
		s.Set(scripted.Answer(address(ep).String()))
		at = append(at, ep)
	}
	return at
}

// toldCluster is a cluster that names us as its load balancer, and another one of the same hosts
// with Envoy's own, before which its tcp_proxy hashes.
type toldCluster struct {
	hashed
	envoys string
}

// TestToldHostsAreEnvoys: where a cluster's load balancer is ours each request goes where
// Envoy's ring and Maglev would have it go, over shared and exclusive connections; with
// weights, keys and IPv6; before a host leaves, behind it, and while one is not healthy.
func TestToldHostsAreEnvoys(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		side, keys := 60, 2000
		if *matrix == "full" {
			side, keys = 1000, 100_000
		}
		at := tenServers(t)
		var clusters []*toldCluster
		o := v.options()
		routes := []any{}
		policies := []any{}
		for _, h := range ringAndMaglev("ten", at) {
			c := &toldCluster{*h, h.name + "-envoy"}
			clusters = append(clusters, c)
			own := *h
			own.name = c.envoys
			o.Clusters = append(o.Clusters, envoytest.Cluster(h.name, at...).Told(), own.cluster())
			o.Listeners = append(o.Listeners, proxied(c.envoys, c.envoys, envoytest.M{"filter_state": envoytest.M{"key": "envoy.hashable_string"}}))
			routes = append(routes, envoytest.Route(h.name, map[string]string{"lb": h.name}))
			policy := envoytest.M{}
			if h.policy.Algorithm == consistent.Maglev {
				policy["maglev"] = envoytest.M{}
			}
			policies = append(policies, envoytest.M{"name": h.name, "load_balancing": policy})
		}
		o.Listeners = append(o.Listeners, envoytest.Loopback(envoytest.Socket()))
		modes := []string{"SHARED", "EXCLUSIVE"}
		for _, mode := range modes {
			config := envoytest.Dubbo(mode, routes...)
			config["protocol"].(envoytest.M)["connection_mode"] = mode
			config["upstream"] = envoytest.M{"max_connections": 10}
			config["route_config"].(envoytest.M)["hash_policies"] = []any{envoytest.M{"metadata": envoytest.M{"name": "user"}}}
			config["route_config"].(envoytest.M)["clusters"] = policies
			o.Listeners = append(o.Listeners, envoytest.Listener(mode, envoytest.Proxy(config)))
		}
		e := envoytest.Start(t, o)

		// Users are addresses, as Envoy's tcp_proxy is given them.
		users := make([]string, keys)
		for i := range users {
			users[i] = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), uint16(1000+i%60000)).String()
		}
		clients := map[string][]*scripted.Client{}
		for _, mode := range modes {
			clients[mode] = []*scripted.Client{scripted.Dial(t, e.Port(mode)), scripted.Dial(t, e.Port(mode))}
		}
		asked := func(mode string, c *toldCluster, users []string) (by []string) {
			for i := 0; i < len(users); i += 100 {
				part := users[i:min(i+100, len(users))]
				client := clients[mode][i/100%2]
				for id, user := range part {
					client.Ask(uint64(id), dubbotest.Request{Attachments: [][2]string{{"user", user}, {"lb", c.name}}})
				}
				answers := client.Answers(len(part))
				for id := range part {
					a := answers[uint64(id)]
					require.EqualValues(t, statusOK, a.Status, a.Text())
					by = append(by, a.Text())
				}
			}
			return by
		}
		mapped := func(c *toldCluster, users []string) (by []string) {
			var left []envoytest.Endpoint
			for _, ep := range c.at {
				if !ep.Unhealthy {
					left = append(left, ep)
				}
			}
			h := c.hashed
			h.at = left
			table := h.table()
			for _, user := range users {
				by = append(by, address(left[table.Pick(consistent.Hash([]byte(user)), 0)]).String())
			}
			return by
		}
		envoys := func(c *toldCluster, users []string) (by []string) {
			for _, user := range users {
				source := netip.MustParseAddrPort(user)
				nc := e.Dial(c.envoys)
				_, err := fmt.Fprintf(nc, "PROXY TCP4 %s %s %d 80\r\n", source.Addr(), source.Addr(), source.Port())
				require.NoError(t, err)
				client := scripted.NewClient(t, nc)
				client.Ask(1, dubbotest.Request{})
				by = append(by, client.Answers(1)[1].Text())
				nc.Close()
			}
			return by
		}
		agree := func(c *toldCluster, users []string) []string {
			t.Helper()
			want := mapped(c, users)
			for _, mode := range modes {
				detours := e.Stats("[.]" + mode + "[.]request_hash_")
				require.Equal(t, want, asked(mode, c, users), mode)
				require.Equal(t, detours, e.Stats("[.]"+mode+"[.]request_hash_"))
			}
			return want
		}
		for _, c := range clusters {
			before := agree(c, users)
			require.Equal(t, before[:side], envoys(c, users[:side]))

			all := c.at
			c.at = slices.Delete(slices.Clone(all), 8, 9)
			e.SetEndpoints(c.name, c.at...)
			e.SetEndpoints(c.envoys, c.at...)
			few := users[:min(side, 100)]
			settled := func() bool {
				return slices.Equal(envoys(c, few), mapped(c, few)) && slices.Equal(asked("SHARED", c, few), mapped(c, few)) && slices.Equal(asked("EXCLUSIVE", c, few), mapped(c, few))
			}
			require.True(t, eventually(patience, func() bool { return thrice(settled) }))
			after := agree(c, users)
			own := envoys(c, users[:side])
			require.Equal(t, after[:side], own)
			moved, movedByEnvoy := 0, 0
			for i := range side {
				if before[i] != after[i] {
					moved++
				}
				if before[i] != own[i] {
					movedByEnvoy++
				}
			}
			require.Equal(t, movedByEnvoy, moved)
			require.NotEqual(t, before, after)

			c.at = slices.Clone(all)
			c.at[5].Unhealthy = true
			e.SetEndpoints(c.name, c.at...)
			e.SetEndpoints(c.envoys, c.at...)
			require.True(t, eventually(patience, func() bool { return thrice(settled) }))
			agree(c, users)
			c.at = all
			e.SetEndpoints(c.name, c.at...)
			e.SetEndpoints(c.envoys, c.at...)
			require.True(t, eventually(patience, func() bool { return thrice(settled) }))
			require.Equal(t, before, agree(c, users))
		}
		for _, mode := range modes {
			require.Zero(t, e.Stat("meta_protocol.dubbo."+mode+".request_hash_hosts_unknown"))
		}
	})
}

// TestToldHostsChangeUnderLoad: hosts leave, return and fail their health checks while
// two clients send, and no request fails. Then the cluster gets another load balancer, and
// ours again.
func TestToldHostsChangeUnderLoad(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		for _, mode := range []string{"SHARED", "EXCLUSIVE"} {
			t.Run(mode, func(t *testing.T) {
				at := tenServers(t)[:5]
				h := &hashed{name: "five", policy: consistent.Default, at: at}
				config := toOne(h.name)
				config["protocol"].(envoytest.M)["connection_mode"] = mode
				config["route_config"].(envoytest.M)["hash_policies"] = []any{envoytest.M{"metadata": envoytest.M{"name": "user"}}}
				e := v.start(t, config, envoytest.Cluster(h.name, at...).Told())
				clients := []*scripted.Client{scripted.Dial(t, e.Port("dubbo")), scripted.Dial(t, e.Port("dubbo"))}
				agree := func() bool {
					table, good := h.table(), true
					for _, c := range clients {
						for id := range uint64(100) {
							c.Ask(id, dubbotest.Request{Attachments: [][2]string{{"user", fmt.Sprint(id)}}})
						}
						for id, a := range c.Answers(100) {
							require.EqualValues(t, statusOK, a.Status, a.Text())
							good = good && a.Text() == address(h.at[table.Pick(consistent.Hash(fmt.Append(nil, id)), 0)]).String()
						}
					}
					return good
				}
				for round := range 6 {
					out := round % len(at)
					h.at = slices.Delete(slices.Clone(at), out, out+1)
					now := h.at
					if round%2 == 1 {
						now = slices.Clone(at)
						now[out].Unhealthy = true
					}
					e.SetEndpoints(h.name, now...)
					require.True(t, eventually(patience, agree))
					h.at = at
					e.SetEndpoints(h.name, at...)
					require.True(t, eventually(patience, agree))
				}
				require.True(t, e.SetClusters(envoytest.Cluster(h.name, at...).With(envoytest.M{"lb_policy": "RANDOM"})))
				require.True(t, eventually(patience, func() bool {
					ours := *h // of the addresses alone
					ours.at = slices.Clone(at)
					for i := range ours.at {
						ours.at[i].Weight, ours.at[i].HashKey = 0, ""
					}
					slices.SortFunc(ours.at, func(a, b envoytest.Endpoint) int { return strings.Compare(address(a).String(), address(b).String()) })
					was := h.at
					defer func() { h.at = was }()
					h.at = ours.at
					return mode == "EXCLUSIVE" || agree()
				}))
				require.True(t, e.SetClusters(envoytest.Cluster(h.name, at...).Told()))
				require.True(t, eventually(patience, agree))
			})
		}
	})
}

// TestTheHostWithTheLeastToDo: of three servers one is slow, and gets no more than it can
// answer.
func TestTheHostWithTheLeastToDo(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		for name, policy := range map[string]envoytest.M{
			"least request": {"least_request": envoytest.M{"choice_count": 3}}, "peak EWMA": {"peak_ewma": envoytest.M{}},
		} {
			t.Run(name, func(t *testing.T) {
				all, at := servers(t, "a", "b", "slow")
				config := toOne("three")
				config["route_config"].(envoytest.M)["clusters"] = []any{envoytest.M{"name": "three", "load_balancing": policy}}
				e := v.start(t, config, envoytest.Cluster("three", at...).Told())
				c := scripted.Dial(t, e.Port("dubbo"))
				// What it takes is known to be more than the others take of a busy machine.
				all[2].Set(scripted.After(time.Second, scripted.Answer("slow")))
				c.Ask(0, dubbotest.Request{})
				c.Answers(1)
				e.WaitStat("cluster.three.upstream_cx_active", envoytest.AtLeast(3))
				requests := func() int64 { return all[0].Requests() + all[1].Requests() + all[2].Requests() }
				before, slow := requests(), all[2].Requests()
				all[2].Set(func(*scripted.Conn, dubbotest.Parsed) {}) // answers never
				const n = 100
				for id := range int64(n) {
					c.Ask(uint64(id), dubbotest.Request{})
					require.True(t, eventually(patience, func() bool { return requests() == before+id+1 }))
				}
				slow = all[2].Requests() - slow
				require.LessOrEqual(t, slow, int64(n/10))
				c.Answers(n - int(slow))
			})
		}
	})
}

// TestTheGuidesToldHosts: the cluster and the routes of docs/traffic.md, but for ports.
func TestTheGuidesToldHosts(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		all, at := servers(t, "a", "b")
		at[0].Weight, at[1].HashKey = 3, "sessions-b"
		var cluster envoytest.Resource
		for _, b := range docs.Blocks(source(t, "docs/traffic.md")) {
			if b.Section == "Hashing" && strings.HasPrefix(b.Text, "name: sessions\ntype:") {
				text := strings.NewReplacer("20881", strconv.Itoa(all[0].Port), "20882", strconv.Itoa(all[1].Port)).Replace(b.Text)
				require.NoError(t, yaml.Unmarshal([]byte(text), &cluster))
			}
		}
		require.NotNil(t, cluster)
		cluster["@type"] = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
		config := fromTraffic(t, "Hashing")
		e := v.start(t, config, cluster, envoytest.Cluster("greeter"))
		c := scripted.Dial(t, e.Port("dubbo"))
		policy := consistent.Policy{Algorithm: consistent.Maglev, TableSize: consistent.DefaultTableSize}
		h := &hashed{policy: policy, at: at}
		table := h.table()
		for id := range uint64(100) { // one by one, so that hash_balance_factor moves none
			session := fmt.Sprint("session-", id)
			c.Ask(id, dubbotest.Request{Interface: "org.example.Sessions", Attachments: [][2]string{{"session", session}}})
			a := c.Answers(1)[id]
			require.Equal(t, string("ab"[table.Pick(consistent.Hash([]byte(session)), 0)]), a.Text())
		}
		require.Zero(t, e.Stat(stats+"request_hash_hosts_unknown"))
	})
}

// thrice reports whether f says so three times in a row.
func thrice(f func() bool) bool {
	for range 3 {
		if !f() {
			return false
		}
	}
	return true
}
