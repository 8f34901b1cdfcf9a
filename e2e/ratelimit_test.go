package e2e

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	quotav3 "github.com/envoyproxy/go-control-plane/envoy/service/rate_limit_quota/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

const filterTypes = "type.googleapis.com/aeraki.meta_protocol_proxy.filters."

// limited adds a filter to a configuration.
func limited(config envoytest.M, filter, typ string, fields envoytest.M) envoytest.M {
	fields["@type"] = filterTypes + typ
	config["meta_protocol_filters"] = []any{
		envoytest.M{"name": "aeraki.meta_protocol.filters." + filter, "config": fields},
		envoytest.M{"name": "aeraki.meta_protocol.filters.router"},
	}
	return config
}

// fivePer is a configuration of the limiter: five requests of a key and value an hour.
// Its hours are those of the clock: a test that would see two of them has days.
func fivePer(key string, values ...string) string {
	unit := "hour"
	if time.Until(time.Now().Truncate(time.Hour).Add(time.Hour)) < 10*time.Minute {
		unit = "day"
	}
	c := "domain: production\ndescriptors:\n"
	for _, v := range values {
		c += fmt.Sprintf("- {key: %s, value: %s, rate_limit: {unit: %s, requests_per_unit: 5}}\n", key, v, unit)
	}
	return c
}

// fourProtocols is an Envoy with a listener for each protocol, the filter as filtered says, real
// clients, and a server each.
func fourProtocols(t *testing.T, v variant, filtered func(protocol string, config envoytest.M) envoytest.M, clusters ...envoytest.Resource) (*envoytest.Envoy, map[string]*peers.Consumer) {
	t.Helper()
	o := v.options()
	o.Clusters = clusters
	o.Listeners = []envoytest.Resource{envoytest.Loopback(envoytest.Socket())}
	for protocol, r := range refusers {
		o.Clusters = append(o.Clusters, envoytest.Cluster(protocol, envoytest.At(r.good(t))...))
		o.Listeners = append(o.Listeners, envoytest.Listener(protocol,
			envoytest.Proxy(filtered(protocol, envoytest.Protocol(protocol, protocol, envoytest.Route(protocol, nil))))))
	}
	e := envoytest.Start(t, o)
	clients := map[string]*peers.Consumer{}
	for protocol, r := range refusers {
		clients[protocol] = r.client(t, e.Port(protocol))
	}
	return e, clients
}

// pass asserts how many of many calls pass, and that the others are told why not.
func pass(t *testing.T, protocol string, c *peers.Consumer, want int) {
	t.Helper()
	load := refusers[protocol].who
	load.Count, load.Concurrency, load.Summary = 12, 4, true
	s := c.Load(load)
	require.Equal(t, want, s.Succeeded(), "%s: %v", protocol, s.Errors)
	require.Equal(t, 12-want, s.Failed(), protocol)
	for text := range s.Errors {
		require.Contains(t, text, "rate limit exceeded", protocol)
	}
}

// TestRateLimit is five an hour over two workers, by the real service, for real clients
// of all protocols; for Thrift by the C++ proxy's own configuration.
func TestRateLimit(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		protocols := slices.Sorted(maps.Keys(refusers))
		limiter := peers.StartRateLimiter(t, fivePer("protocol", protocols...)+"- {key: method, value: who, rate_limit: {unit: year, requests_per_unit: 5}}\n")
		e, clients := fourProtocols(t, v, func(protocol string, config envoytest.M) envoytest.M {
			fields := envoytest.M{
				"domain": "production", "failure_mode_deny": true, "timeout": "10s",
				"rate_limit_service": envoytest.M{"grpc_service": envoytest.M{"envoy_grpc": envoytest.M{"cluster_name": "ratelimit"}}},
			}
			if protocol == "thrift" {
				fields["match"] = envoytest.M{"metadata": []any{envoytest.M{"name": "method", "exact_match": "who"}}}
				fields["descriptors"] = []any{envoytest.M{"property": "method", "descriptor_key": "method"}}
			} else {
				fields["rate_limits"] = []any{envoytest.M{"actions": []any{
					envoytest.M{"generic_key": envoytest.M{"descriptor_key": "protocol", "descriptor_value": protocol}},
				}}}
			}
			return limited(config, "ratelimit", "ratelimit.v1alpha.RateLimit", fields)
		}, envoytest.Cluster("ratelimit", envoytest.Endpoint{Pipe: limiter.Socket}))
		for protocol, c := range clients {
			pass(t, protocol, c, 5)
			pass(t, protocol, c, 0)
			stats := "meta_protocol." + protocol + "." + protocol + "."
			e.WaitStat(stats+"ratelimit.ok", envoytest.Exactly(5))
			e.WaitStat(stats+"ratelimit.over_limit", envoytest.Exactly(19))
			require.Zero(t, e.Stat(stats+"ratelimit.error"))
			checkCountersOf(t, e, stats)
		}
		a := clients["thrift"].Call(thriftCall("echo", "x"))
		require.Empty(t, a.Error, "the match is not for it")
	})
}

// TestALimiterThatIsLateDeadRestarted, by a cluster and by an address.
func TestALimiterThatIsLateDeadRestarted(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		limiter := peers.StartRateLimiter(t, fivePer("by", "cluster", "address"))
		server := scripted.Serve(t, scripted.Answer("one"))
		services := map[string]envoytest.M{
			"cluster": {"envoy_grpc": envoytest.M{"cluster_name": "ratelimit"}},
			"address": {"google_grpc": envoytest.M{"target_uri": "unix:" + limiter.Socket, "stat_prefix": "s"}},
		}
		o := v.options()
		o.Clusters = []envoytest.Resource{envoytest.Cluster("one", envoytest.At(server.Port)...), envoytest.Cluster("ratelimit", envoytest.Endpoint{Pipe: limiter.Socket})}
		o.Listeners = []envoytest.Resource{envoytest.Loopback(envoytest.Socket())}
		for by, s := range services {
			o.Listeners = append(o.Listeners, envoytest.Listener(by, envoytest.Proxy(limited(envoytest.Dubbo(by, envoytest.Route("one", nil)),
				"ratelimit", "ratelimit.v1alpha.RateLimit", envoytest.M{
					"domain": "production", "timeout": "0.5s", "rate_limit_service": envoytest.M{"grpc_service": s},
					"rate_limits": []any{envoytest.M{"actions": []any{envoytest.M{"generic_key": envoytest.M{"descriptor_key": "by", "descriptor_value": by}}}}},
				}))))
		}
		e := envoytest.Start(t, o)
		asks := map[string]func() string{}
		for by := range services {
			c := scripted.Dial(t, e.Port(by))
			asks[by] = func() string {
				c.Ask(1, dubbotest.Request{})
				return c.Read().Text()
			}
			counted := func() int64 { return e.Stat("meta_protocol.dubbo." + by + ".ratelimit.ok") }
			require.True(t, eventually(patience, func() bool { asks[by](); return counted() >= 5 }))
			require.True(t, eventually(patience, func() bool { return asks[by]() == "rate limit exceeded" }), by)
		}
		limiter.Stop()
		for by, ask := range asks {
			start := time.Now()
			require.Equal(t, "one", ask(), by)
			require.GreaterOrEqual(t, time.Since(start), 400*time.Millisecond, "it was waited for")
		}
		limiter.Continue()
		for by, ask := range asks {
			require.True(t, eventually(patience, func() bool { return ask() == "rate limit exceeded" }), by)
		}
		limiter.Kill()
		for by, ask := range asks {
			require.True(t, eventually(patience, func() bool { return ask() == "one" }), by)
			e.WaitStat("meta_protocol.dubbo."+by+".ratelimit.failure_mode_allowed", envoytest.AtLeast(2))
		}
		limiter.Start()
		for by, ask := range asks {
			require.True(t, eventually(patience, func() bool { return ask() == "rate limit exceeded" }), by)
			checkCountersOf(t, e, "meta_protocol.dubbo."+by+".")
		}
		require.Contains(t, e.Log(), "meltemi: ratelimit: cluster ratelimit answers again")
	})
}

// quotaServer assigns five an hour to each bucket that it hears of.
type quotaServer struct {
	quotav3.UnimplementedRateLimitQuotaServiceServer
	Port int

	mu      sync.Mutex
	reports map[string]int // of a bucket
}

func startQuotaServer(t *testing.T) *quotaServer {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &quotaServer{Port: l.Addr().(*net.TCPAddr).Port, reports: map[string]int{}}
	g := grpc.NewServer()
	quotav3.RegisterRateLimitQuotaServiceServer(g, s)
	go g.Serve(l)
	t.Cleanup(g.Stop)
	return s
}

func (s *quotaServer) StreamRateLimitQuotas(g quotav3.RateLimitQuotaService_StreamRateLimitQuotasServer) error {
	for {
		r, err := g.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		answer := &quotav3.RateLimitQuotaResponse{}
		s.mu.Lock()
		for _, u := range r.GetBucketQuotaUsages() {
			bucket := u.GetBucketId().GetBucket()["protocol"]
			if s.reports[bucket]++; s.reports[bucket] == 1 {
				answer.BucketAction = append(answer.BucketAction, &quotav3.RateLimitQuotaResponse_BucketAction{
					BucketId: u.GetBucketId(),
					BucketAction: &quotav3.RateLimitQuotaResponse_BucketAction_QuotaAssignmentAction_{
						QuotaAssignmentAction: &quotav3.RateLimitQuotaResponse_BucketAction_QuotaAssignmentAction{RateLimitStrategy: &typev3.RateLimitStrategy{
							Strategy: &typev3.RateLimitStrategy_RequestsPerTimeUnit_{RequestsPerTimeUnit: &typev3.RateLimitStrategy_RequestsPerTimeUnit{
								RequestsPerTimeUnit: 5, TimeUnit: typev3.RateLimitUnit_HOUR,
							}},
						}},
					},
				})
			}
		}
		s.mu.Unlock()
		if len(answer.BucketAction) > 0 {
			if err := g.Send(answer); err != nil {
				return err
			}
		}
	}
}

// assigned tells whether the client follows an assignment: it reports the bucket then.
func (s *quotaServer) assigned(bucket string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reports[bucket] >= 2
}

// TestRateLimitQuota is five an hour as a service has assigned, over two workers, for real
// clients of all protocols.
func TestRateLimitQuota(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		s := startQuotaServer(t)
		e, clients := fourProtocols(t, v, func(protocol string, config envoytest.M) envoytest.M {
			return limited(config, "rate_limit_quota", "rate_limit_quota.v1alpha.RateLimitQuota", envoytest.M{
				"domain": "production", "rlqs_server": envoytest.M{"envoy_grpc": envoytest.M{"cluster_name": "quotas"}},
				"buckets": []any{envoytest.M{
					"bucket_id_builder": envoytest.M{"protocol": envoytest.M{"string_value": protocol}}, "reporting_interval": "3600s",
					"no_assignment_behavior": envoytest.M{"fallback_rate_limit": envoytest.M{"blanket_rule": "DENY_ALL"}},
				}},
			})
		}, envoytest.Cluster("quotas", envoytest.At(s.Port)...))
		for protocol, c := range clients {
			a := c.Call(refusers[protocol].who)
			require.Contains(t, a.Error, "rate limit exceeded", protocol)
			require.True(t, eventually(patience, func() bool { return s.assigned(protocol) }), protocol)
			pass(t, protocol, c, 5)
			stats := "meta_protocol." + protocol + "." + protocol + "."
			e.WaitStat(stats+"rate_limit_quota.allowed", envoytest.Exactly(5))
			e.WaitStat(stats+"rate_limit_quota.denied", envoytest.Exactly(8))
			checkCountersOf(t, e, stats)
		}
	})
}
