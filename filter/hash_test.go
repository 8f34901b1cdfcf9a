package filter_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter/consistent"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// hashEnv is a client, and a cluster of some hosts that its requests are hashed to.
type hashEnv struct {
	*filtertest.Host
	t     *testing.T
	cfg   *filtertest.Config
	up    *filtertest.Cluster
	c     *filtertest.Client
	hosts []string
}

// newHashEnv has an action beside the cluster, and more in the table of routes.
func newHashEnv(t *testing.T, action, more string) *hashEnv {
	h := filtertest.New(t)
	e := &hashEnv{Host: h, t: t}
	for i := range 5 {
		e.hosts = append(e.hosts, fmt.Sprintf("10.0.0.%d:20880", i+1))
	}
	e.up = h.Cluster("up", e.hosts...)
	e.up.Serve = answer
	e.cfg = h.MustLoad(listener(`{"name": "r", "routes": [{"route": {"cluster": "up", `+action+`}}]`+more+`}`, ""))
	e.c = h.Dial(e.cfg)
	e.ask("warm")
	h.Advance(time.Second)
	return e
}

// ask sends a request of a user, "" for none, and returns who has answered.
func (e *hashEnv) ask(user string) string {
	e.t.Helper()
	r := dubbotest.Request{ID: 7}
	if user != "" {
		r.Attachments = [][2]string{{"user", user}}
	}
	e.c.Send(r.Bytes())
	answers, _ := dubbotest.Parse(e.c.Take())
	require.Len(e.t, answers, 1)
	return answers[0].Text()
}

// mapped is where a table maps a value to.
func (e *hashEnv) mapped(p consistent.Policy, hash uint64) string {
	hosts := slices.Sorted(slices.Values(e.hosts))
	var hs []consistent.Host
	for _, h := range hosts {
		hs = append(hs, consistent.Host{Key: h, Weight: 1})
	}
	return hosts[consistent.Build(p, hs).Pick(hash, 0)]
}

func (e *hashEnv) counted() map[string]int64 {
	e.Advance(100 * time.Millisecond)
	counts := map[string]int64{}
	for _, name := range []string{"no_key", "hosts_unknown", "host_unavailable", "host_busy"} {
		if n := e.cfg.Counter("dubbo.t.request_hash_" + name); n > 0 {
			counts[name] = n
		}
	}
	return counts
}

func TestARequestGoesToTheHostOfItsKey(t *testing.T) {
	for name, tt := range map[string]struct {
		action, more string
		p            consistent.Policy
	}{
		"the default is a ring": {`"hash_policies": [{"metadata": {"name": "User"}}]`, ``, consistent.Default},
		"the old field":         {`"hash_policy": ["user"]`, ``, consistent.Default},
		"of the table":          {`"timeout": "1s"`, `, "hash_policies": [{"metadata": {"name": "user"}}]`, consistent.Default},
		"maglev": {
			`"hash_policy": ["user"]`, `, "clusters": [{"name": "up", "load_balancing": {"maglev": {"table_size": 251}}}]`,
			consistent.Policy{Algorithm: consistent.Maglev, TableSize: 251},
		},
		"of all clusters": {
			`"hash_policy": ["user"]`, `, "clusters": [{"name": "*", "load_balancing": {"ring_hash": {"minimum_ring_size": 64}}}]`,
			consistent.Policy{MinimumRingSize: 64, MaximumRingSize: consistent.MaxRingSize},
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := newHashEnv(t, tt.action, tt.more)
			for i := range 50 {
				user := fmt.Sprint("user-", i)
				require.Equal(t, e.mapped(tt.p, consistent.Hash([]byte(user))), e.ask(user))
			}
			require.Equal(t, map[string]int64{"hosts_unknown": 1}, e.counted(), "the first one")
			hosts := map[string]bool{}
			for range 10 {
				hosts[e.ask("")] = true
			}
			require.Len(t, hosts, 5, "without a key requests are spread as ever")
			require.Equal(t, map[string]int64{"hosts_unknown": 1, "no_key": 10}, e.counted())
		})
	}
}

// A cluster that tells its hosts has them exact, with the first request: by weights and
// keys. One that leaves or returns costs no request, and moves no key that it need not.
func TestToldHostsHaveTheirKeys(t *testing.T) {
	for _, mode := range []string{"SHARED", "EXCLUSIVE"} {
		t.Run(mode, func(t *testing.T) {
			h := filtertest.New(t)
			e := &hashEnv{Host: h, t: t, up: h.Cluster("up")}
			members := func() (ms []host.Member) {
				for i := range 5 {
					m := host.Member{Address: fmt.Sprintf("10.0.0.%d:20880", 5-i), Weight: uint32(1 + i%3), Healthy: true}
					if i == 2 {
						m.HashKey = "pod-a"
					}
					ms = append(ms, m)
				}
				return ms
			}
			told := members()
			e.up.Tell(told...)
			e.up.Serve = answer
			e.cfg = h.MustLoad(strings.Replace(listener(`{"name": "r", "routes": [{"route": {"cluster": "up", "hash_policy": ["user"]}}]}`, ""),
				`"protocol": {`, `"protocol": {"connection_mode": "`+mode+`", `, 1))
			e.c = h.Dial(e.cfg)
			agree := func() {
				t.Helper()
				var hs []consistent.Host
				var at []string
				for _, m := range told {
					if m.Healthy {
						key := cmp.Or(m.HashKey, m.Address)
						hs, at = append(hs, consistent.Host{Key: key, Weight: m.Weight}), append(at, m.Address)
					}
				}
				table := consistent.Build(consistent.Default, hs)
				for i := range 100 {
					user := fmt.Sprint("user-", i)
					require.Equal(t, at[table.Pick(consistent.Hash([]byte(user)), 0)], e.ask(user))
				}
			}
			agree()
			told = slices.Delete(members(), 1, 2)
			e.up.Tell(told...)
			e.Advance(time.Second)
			agree()
			told = members()
			told[3].Healthy = false
			e.up.Tell(told...)
			e.Advance(time.Second)
			agree()
			told = members()
			e.up.Tell(told...)
			e.Advance(time.Second)
			agree()
			require.Empty(t, e.counted())
		})
	}
}

// Without a hash the host with the fewest requests in flight gets the next one.
func TestTheHostWithTheFewestRequests(t *testing.T) {
	h := filtertest.New(t)
	up := h.Cluster("up")
	var ms []host.Member
	for i := range 3 {
		ms = append(ms, host.Member{Address: fmt.Sprintf("10.0.0.%d:1", i), Weight: 1, Healthy: true})
	}
	up.Tell(ms...)
	slow := ms[0].Address
	up.Serve = func(s *filtertest.Server, b []byte) int {
		if s.Host == slow {
			return len(b)
		}
		return answer(s, b)
	}
	cfg := h.MustLoad(listener(`{"name": "r", "routes": [{"route": {"cluster": "up"}}], "clusters": [{"name": "up", "load_balancing": {"least_request": {"choice_count": 3}}}]}`, ""))
	c := h.Dial(cfg)
	for id := range uint64(100) {
		c.Send(dubbotest.Request{ID: id}.Bytes())
		h.Advance(time.Millisecond)
	}
	answers, _ := dubbotest.Parse(c.Take())
	require.GreaterOrEqual(t, len(answers), 98, "once it has one it gets no other")
}

func TestAClientSticksToAHost(t *testing.T) {
	e := newHashEnv(t, `"hash_policies": [{"source_ip": true}]`, "")
	hosts := map[string]bool{}
	for i := range 30 {
		hosts[e.ask(fmt.Sprint(i))] = true
	}
	require.Len(t, hosts, 1)
}

// TestAClientsPrincipalChoosesItsHost: whichever connection it comes over.
func TestAClientsPrincipalChoosesItsHost(t *testing.T) {
	e := newHashEnv(t, `"hash_policies": [{"principal": true}]`, "")
	for i := range 10 {
		principal := fmt.Sprint("spiffe://cluster.local/ns/shop/sa/", i)
		e.c = e.DialTLS(e.cfg, host.TLS{Mutual: true, URISANs: []string{principal, "spiffe://other"}, Subject: "CN=x"})
		require.Equal(t, e.mapped(consistent.Default, consistent.HashString(principal)), e.ask(""))
	}
	e.c = e.DialTLS(e.cfg, host.TLS{})
	e.ask("")
	require.Equal(t, int64(2), e.counted()["no_key"], "the client of the environment has none, either")
}

// A host that is gone is left for the next of the table; when it is back, so are its
// keys.
func TestAKeysHostGoesAndReturns(t *testing.T) {
	e := newHashEnv(t, `"hash_policy": ["user"]`, `, "clusters": [{"name": "up", "load_balancing": {"maglev": {}}}]`)
	before := map[string]string{}
	for i := range 100 {
		user := fmt.Sprint("user-", i)
		before[user] = e.ask(user)
	}
	all := e.hosts
	gone := all[2]
	rest := append(append([]string{}, all[:2]...), all[3:]...)
	e.up.SetHosts(rest...)
	for _, s := range e.up.Servers() {
		if s.Host == gone {
			s.Close()
		}
	}
	e.Settle()
	for range 40 {
		e.ask("user-1")
		e.Advance(100 * time.Millisecond)
	}
	e.hosts = rest
	maglev := consistent.Policy{Algorithm: consistent.Maglev, TableSize: consistent.DefaultTableSize}
	moved := 0
	for user, host := range before {
		now := e.ask(user)
		require.Equal(t, e.mapped(maglev, consistent.Hash([]byte(user))), now)
		if now != host && host != gone {
			moved++
		}
	}
	require.LessOrEqual(t, moved, 5, "of 100")
	e.up.SetHosts(all...)
	for range 40 {
		e.ask("user-1")
		e.Advance(100 * time.Millisecond)
	}
	for user, host := range before {
		require.Equal(t, host, e.ask(user))
	}
}

// Another version of the routes may hash differently, or not at all.
func TestAnUpdateChangesTheHashing(t *testing.T) {
	e := newHashEnv(t, `"hash_policy": ["user"]`, "")
	require.Equal(t, e.mapped(consistent.Default, consistent.Hash([]byte("x"))), e.ask("x"))
	for _, more := range []string{
		`"hash_policies": [{"metadata": {"name": "user"}}]}}], "clusters": [{"name": "up", "load_balancing": {"maglev": {"table_size": 251}}}]`,
		`"hash_policy": ["none", "user"]}}]`,
	} {
		e.cfg = e.MustLoad(listener(`{"name": "r", "routes": [{"route": {"cluster": "up", `+more+`}`, ""))
		p := consistent.Default
		if len(more) > 60 {
			p = consistent.Policy{Algorithm: consistent.Maglev, TableSize: 251}
		}
		e.c = e.Dial(e.cfg)
		for i := range 20 {
			user := fmt.Sprint("user-", i)
			require.Equal(t, e.mapped(p, consistent.Hash([]byte(user))), e.ask(user))
		}
	}
}

// A load balancer that chooses at random shows all hosts only by and by.
func TestHostsAreFoundByChance(t *testing.T) {
	e := newHashEnv(t, `"hash_policy": ["user"]`, "")
	rnd := rand.New(rand.NewPCG(1, 2))
	e.up.Pick = func(hosts []string) string { return hosts[rnd.IntN(len(hosts))] }
	e.hosts = append(e.hosts, "10.0.0.6:20880", "10.0.0.7:20880", "10.0.0.8:20880")
	e.up.SetHosts(e.hosts...)
	for range 30 {
		e.ask("x")
		e.Advance(100 * time.Millisecond)
	}
	for i := range 50 {
		user := fmt.Sprint("user-", i)
		require.Equal(t, e.mapped(consistent.Default, consistent.Hash([]byte(user))), e.ask(user))
	}
}

// The keys of a host that is ejected go to the next of the table, each to its own, and
// with a retry no client notices.
func TestTheKeysOfAnEjectedHost(t *testing.T) {
	e := newHashEnv(t, `"hash_policy": ["user"], "idempotent": true, "retry_policy": {"retry_on": "reset", "retry_back_off": {"base_interval": "0.001s"}}`,
		`, "clusters": [{"name": "up", "load_balancing": {"maglev": {}}, "outlier_detection": {"consecutive_failures": 3, "base_ejection_time": "60s"}}]`)
	before := map[string]string{}
	for i := range 60 {
		user := fmt.Sprint("user-", i)
		before[user] = e.ask(user)
	}
	bad := before["user-0"]
	e.up.Serve = func(s *filtertest.Server, b []byte) int {
		if s.Host == bad {
			s.Reset()
			return len(b)
		}
		return answer(s, b)
	}
	ask := func(user string) string {
		e.c.Send(dubbotest.Request{ID: 7, Attachments: [][2]string{{"user", user}}}.Bytes())
		e.Advance(50 * time.Millisecond)
		answers, _ := dubbotest.Parse(e.c.Take())
		require.Len(t, answers, 1)
		return answers[0].Text()
	}
	retried := ask("user-0") // to where its key goes from now on
	for range 5 {
		require.Equal(t, retried, ask("user-0"))
		e.Advance(time.Second)
	}
	require.EqualValues(t, 1, e.cfg.Counter("dubbo.t.outlier_ejections_total"))
	to := map[string]bool{}
	for user, host := range before {
		now := ask(user)
		if host != bad {
			require.Equal(t, host, now)
			continue
		}
		require.NotEqual(t, bad, now)
		require.Equal(t, now, ask(user))
		to[now] = true
	}
	require.Greater(t, len(to), 1, "one host does not get them all")
}
