package e2e

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// chain is filters in some order, enabled and disabled, and what a call of the method
// "secret" is told by them; "" if it is served.
type chain struct {
	name    string
	filters []any
	says    string
}

func chains() []chain {
	filter := func(name, kind string, config envoytest.M) envoytest.M {
		config["@type"] = "type.googleapis.com/aeraki.meta_protocol_proxy.filters." + name + ".v1alpha." + kind
		return envoytest.M{"name": "aeraki.meta_protocol.filters." + name, "config": config}
	}
	secret := envoytest.M{"metadata": []any{envoytest.M{"name": "method", "string_match": envoytest.M{"exact": "secret"}}}}
	deny := filter("rbac", "RBAC", envoytest.M{
		"rules": envoytest.M{"action": "DENY", "policies": envoytest.M{"secret": envoytest.M{
			"permissions": []any{envoytest.M{"header": envoytest.M{"name": "method", "string_match": envoytest.M{"exact": "secret"}}}},
			"principals":  []any{envoytest.M{"any": true}},
		}}},
		"reply": envoytest.M{"body": "denied"},
	})
	limit := filter("local_ratelimit", "LocalRateLimit", envoytest.M{
		"stat_prefix": "limit", "token_bucket": envoytest.M{"max_tokens": 1_000_000_000, "fill_interval": "1s"},
		"conditions": []any{envoytest.M{"match": secret, "token_bucket": envoytest.M{"max_tokens": 0, "fill_interval": "1s"}}},
		"status":     envoytest.M{"body": "limited"},
	})
	abort := filter("fault", "Fault", envoytest.M{"abort": envoytest.M{"percentage": envoytest.M{"numerator": 100}, "reply": envoytest.M{"body": "aborted"}}})
	abort["match"] = secret
	router := envoytest.M{"name": "aeraki.meta_protocol.filters.router"}
	off := func(f envoytest.M) envoytest.M {
		return envoytest.M{"name": f["name"], "config": f["config"], "disabled": true}
	}
	return []chain{
		{"denied first", []any{deny, limit, abort, router}, "denied"},
		{"limited first", []any{limit, abort, deny, router}, "limited"},
		{"aborted first", []any{abort, deny, limit, router}, "aborted"},
		{"all but one disabled", []any{off(deny), limit, off(abort), router}, "limited"},
		{"all of them disabled", []any{off(deny), off(limit), off(abort), router}, ""},
		{"one filter twice", []any{off(deny), abort, deny, deny, router}, "aborted"},
		{"the router alone", []any{router}, ""},
	}
}

// TestFiltersComeAndGo by ECDS, while real clients call without pause: none of their calls
// fails, and connections that come behind an update go through the new chain.
func TestFiltersComeAndGo(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		const extension = "chain"
		s := peers.DubboGo.Provider(t, peers.ProviderOptions{Name: "s1"})
		server := scripted.Serve(t, scripted.Answer("served"))
		config := func(filters []any) envoytest.M {
			c := envoytest.Dubbo("test", envoytest.Route("scripted", map[string]string{"method": "secret"}), envoytest.Route("s1", nil))
			c["delivery"] = "ECDS"
			c["meta_protocol_filters"] = filters
			return envoytest.Proxy(c)
		}
		all := chains()
		o := v.options()
		o.Clusters = []envoytest.Resource{envoytest.Cluster("s1", envoytest.At(s.Port)...), envoytest.Cluster("scripted", envoytest.At(server.Port)...)}
		o.Extensions = []envoytest.M{envoytest.Extension(extension, config(all[len(all)-1].filters))}
		o.Listeners = []envoytest.Resource{envoytest.Loopback(envoytest.Socket()), envoytest.Listener("dubbo", envoytest.Discovered(extension))}
		e := envoytest.Start(t, o)

		stop, over := make(chan struct{}), make(chan peers.Summary, 2)
		for _, lib := range []peers.Library{peers.DubboGo, peers.Java} {
			c := lib.Consumer(t, e.Port("dubbo"), peers.ConsumerOptions{})
			go func() {
				sum := peers.Summary{Errors: map[string]int{}}
				for {
					select {
					case <-stop:
						over <- sum
						return
					default:
					}
					got := c.Load(peers.Command{Method: "who", Count: 50, Concurrency: 2})
					sum.Calls += got.Calls
					for text, n := range got.Errors {
						sum.Errors[text] += n
					}
				}
			}()
		}
		told := func() string {
			c := scripted.Dial(t, e.Port("dubbo"))
			defer c.Close()
			c.Ask(1, dubbotest.Request{Method: "secret"})
			f := c.Read()
			if f.Status == statusOK {
				require.Equal(t, "served", f.Text())
				return ""
			}
			return f.Text()
		}
		for round := range 3 {
			for _, chain := range all {
				e.SetExtension(extension, config(chain.filters))
				deadline := time.Now().Add(patience)
				for got := told(); got != chain.says; got = told() {
					require.True(t, time.Now().Before(deadline), "round %d, %s: %q, want %q", round, chain.name, got, chain.says)
				}
			}
		}
		close(stop)
		for range 2 {
			sum := <-over
			require.Empty(t, sum.Errors)
			require.Positive(t, sum.Calls)
		}
		e.WaitStat(stats+"request_active", envoytest.Exactly(0))
		require.Zero(t, e.Stat(stats+"filter_panic"))
	})
}
