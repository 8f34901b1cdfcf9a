package route

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/breaker"
	"github.com/meltemi-mesh/meltemi/filter/lightest"
	"github.com/meltemi-mesh/meltemi/filter/outlier"
	"github.com/meltemi-mesh/meltemi/filter/upstream"
)

func TestClustersHaveTheirPolicies(t *testing.T) {
	table := mustCompile(t, `{"clusters": [
		{"name": "a", "outlier_detection": {}},
		{"name": "b", "circuit_breakers": {"max_requests": 0, "keys": [
			{"names": ["Tenant", "method"], "max_requests": 5},
			{"names": ["tenant"], "error_percent": 50, "slow_percent": 60, "slow_threshold": "1s", "minimum_requests": 7, "interval": "3s", "open_time": "4s", "max_keys": 9}]}},
		{"name": "c", "retry_budget": {}},
		{"name": "*", "outlier_detection": {"consecutive_failures": 2, "interval": "1s", "base_ejection_time": "400s", "max_ejection_percent": 50,
			"failure_percentage_threshold": 30, "failure_percentage_request_volume": 40, "silence": "0.5s"}}]}`)
	require.Equal(t, &Cluster{Budget: silent.Budget, Hashing: silent.Hashing, Outliers: &outlier.Policy{
		ConsecutiveFailures: 5, RequestVolume: 50, Interval: 10 * time.Second, BaseEjectionTime: 30 * time.Second,
		MaxEjectionTime: 300 * time.Second, MaxEjectionPercent: 10,
	}}, table.Cluster("a"))
	key := breaker.KeyPolicy{
		Names: []string{"Tenant", "method"}, MaxRequests: 5, MinimumRequests: 20,
		Interval: 10 * time.Second, OpenTime: 5 * time.Second, MaxKeys: 4096,
	}
	require.Equal(t, table.Cluster("any").Outliers, table.Cluster("b").Outliers)
	require.Equal(t, &Cluster{Budget: silent.Budget, Hashing: silent.Hashing, Outliers: table.Cluster("b").Outliers, Breakers: &breaker.Policy{
		Requests: 0, Pending: breaker.Unlimited, Connections: breaker.Unlimited,
		Keys: []breaker.KeyPolicy{key, {
			Names: []string{"tenant"}, MaxRequests: breaker.Unlimited, ErrorPercent: 50, SlowPercent: 60, MinimumRequests: 7,
			SlowThreshold: time.Second, Interval: 3 * time.Second, OpenTime: 4 * time.Second, MaxKeys: 9,
		}},
	}}, table.Cluster("b"))
	rest := table.Cluster("any")
	require.Equal(t, &Cluster{Budget: silent.Budget, Hashing: silent.Hashing, Outliers: &outlier.Policy{
		ConsecutiveFailures: 2, FailurePercent: 30, RequestVolume: 40, Silence: 500 * time.Millisecond, Interval: time.Second,
		BaseEjectionTime: 400 * time.Second, MaxEjectionTime: 400 * time.Second, MaxEjectionPercent: 50,
	}}, rest)
	require.Equal(t, rest, table.Cluster("c"), "its policy says nothing of that")
	require.Equal(t, &silent, mustCompile(t, `{"clusters": [{"name": "a", "outlier_detection": {}}]}`).Cluster("b"))
	require.Equal(t, &silent, mustCompile(t, `{}`).Cluster("b"))
	require.Equal(t, &silent, (*Table)(nil).Cluster("b"))
}

func TestBudgetsOfClusters(t *testing.T) {
	table := mustCompile(t, `{"clusters": [
		{"name": "a", "retry_budget": {"budget_percent": {"value": 50}}},
		{"name": "b", "outlier_detection": {}},
		{"name": "*", "retry_budget": {"min_retries_per_second": 3, "max_concurrent_retries": 4}}]}`)
	require.Equal(t, &upstream.Budget{Ratio: 0.5, PerSecond: 10, Concurrent: 100}, table.Cluster("a").Budget)
	rest := &upstream.Budget{Ratio: 0.2, PerSecond: 3, Concurrent: 4}
	require.Equal(t, rest, table.Cluster("b").Budget)
	require.Equal(t, rest, table.Cluster("any").Budget)
}

func TestClustersChooseTheLightestHosts(t *testing.T) {
	table := mustCompile(t, `{"clusters": [
		{"name": "least", "load_balancing": {"least_request": {}}},
		{"name": "peak", "load_balancing": {"peak_ewma": {"decay_time": "3s"}}},
		{"name": "ring", "load_balancing": {"ring_hash": {}}},
		{"name": "other", "outlier_detection": {}},
		{"name": "*", "load_balancing": {"least_request": {"choice_count": 5}}}]}`)
	require.Equal(t, &lightest.Policy{Choices: 2}, table.Cluster("least").Lightest)
	require.Equal(t, &lightest.Policy{Choices: 2, Decay: 3 * time.Second}, table.Cluster("peak").Lightest)
	require.Nil(t, table.Cluster("ring").Lightest)
	require.Equal(t, &lightest.Policy{Choices: 5}, table.Cluster("other").Lightest)
	require.Equal(t, &lightest.Policy{Choices: 5}, table.Cluster("any").Lightest)
	table = mustCompile(t, `{"clusters": [{"name": "a", "load_balancing": {"peak_ewma": {}}}]}`)
	require.Equal(t, &lightest.Policy{Choices: 2, Decay: 10 * time.Second}, table.Cluster("a").Lightest)
}

func TestImpossiblePoliciesOfClustersAreRefusedWithTheirPath(t *testing.T) {
	for policy, want := range map[string]string{
		`"outlier_detection": {"consecutive_failures": 0}`:                                                         "outlier_detection.consecutive_failures: must be between 1 and 2147483647, is 0",
		`"outlier_detection": {"interval": "0.05s"}`:                                                               "outlier_detection.interval: must be between 100ms and 1h0m0s, is 50ms",
		`"outlier_detection": {"interval": "-1s"}`:                                                                 "outlier_detection.interval: must be at least 1ms, is -1s",
		`"outlier_detection": {"base_ejection_time": "0s"}`:                                                        "outlier_detection.base_ejection_time: must be at least 1ms, is 0s",
		`"outlier_detection": {"max_ejection_time": "10s"}`:                                                        "outlier_detection.max_ejection_time: must be at least base_ejection_time, 30s, is 10s",
		`"outlier_detection": {"max_ejection_percent": 101}`:                                                       "outlier_detection.max_ejection_percent: must be between 0 and 100, is 101",
		`"outlier_detection": {"failure_percentage_threshold": 0}`:                                                 "outlier_detection.failure_percentage_threshold: must be between 1 and 100, is 0",
		`"outlier_detection": {"failure_percentage_request_volume": 5}`:                                            "outlier_detection.failure_percentage_request_volume: needs failure_percentage_threshold",
		`"outlier_detection": {"silence": "0.0001s"}`:                                                              "outlier_detection.silence: must be at least 1ms, is 100µs",
		`"load_balancing": {"least_request": {"choice_count": 1}}`:                                                 "load_balancing.least_request.choice_count: must be between 2 and 100, is 1",
		`"load_balancing": {"least_request": {"choice_count": 101}}`:                                               "load_balancing.least_request.choice_count: must be between 2 and 100, is 101",
		`"load_balancing": {"peak_ewma": {"decay_time": "0s"}}`:                                                    "load_balancing.peak_ewma.decay_time: must be at least 1ms, is 0s",
		`"load_balancing": {"peak_ewma": {"decay_time": "3601s"}}`:                                                 "load_balancing.peak_ewma.decay_time: must be at most 1h0m0s, is 1h0m1s",
		`"circuit_breakers": {"max_requests": 2147483648}`:                                                         "circuit_breakers.max_requests: must be between 0 and 2147483647, is 2147483648",
		`"circuit_breakers": {"max_connections": 0}`:                                                               "circuit_breakers.max_connections: must be between 1 and 2147483647, is 0",
		`"circuit_breakers": {"keys": [{}, {}, {}, {}, {}, {}, {}, {}, {}]}`:                                       "circuit_breakers.keys: at most 8, has 9",
		`"circuit_breakers": {"keys": [{"max_requests": 1}]}`:                                                      "circuit_breakers.keys[0].names: must be 1 to 8, has 0",
		`"circuit_breakers": {"keys": [{"names": ["a"]}]}`:                                                         "circuit_breakers.keys[0]: limits nothing: max_requests, error_percent or slow_percent required",
		`"circuit_breakers": {"keys": [{"names": ["a", ""], "max_requests": 1}]}`:                                  "circuit_breakers.keys[0].names[1]: required",
		`"circuit_breakers": {"keys": [{"names": ["a", "A"], "max_requests": 1}]}`:                                 "circuit_breakers.keys[0].names[1]: is there twice",
		`"circuit_breakers": {"keys": [{"names": ["a"], "slow_percent": 1}]}`:                                      "circuit_breakers.keys[0].slow_threshold: required, as there is slow_percent",
		`"circuit_breakers": {"keys": [{"names": ["a"], "slow_threshold": "1s"}]}`:                                 "circuit_breakers.keys[0].slow_threshold: needs slow_percent",
		`"circuit_breakers": {"keys": [{"names": ["a"], "error_percent": 101}]}`:                                   "circuit_breakers.keys[0].error_percent: must be between 1 and 100, is 101",
		`"circuit_breakers": {"keys": [{"names": ["a"], "max_requests": 1, "open_time": "0s"}]}`:                   "circuit_breakers.keys[0].open_time: must be at least 1ms, is 0s",
		`"circuit_breakers": {"keys": [{"names": ["a"], "max_requests": 1, "interval": "7200s"}]}`:                 "circuit_breakers.keys[0].interval: must be between 100ms and 1h0m0s, is 2h0m0s",
		`"circuit_breakers": {"keys": [{"names": ["a"], "max_requests": 1, "max_keys": 0}]}`:                       "circuit_breakers.keys[0].max_keys: must be between 1 and 1048576, is 0",
		`"circuit_breakers": {"keys": [{"names": ["a"], "max_requests": 1}, {"names": ["A"], "max_requests": 1}]}`: "circuit_breakers.keys[1].names: a breaker before has the same",
	} {
		_, err := compile(t, `{"clusters": [{"name": "x"}, {"name": "y", `+policy+`}]}`)
		require.EqualError(t, err, "clusters[1]."+want, policy)
	}
}
