package route

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/meltemi-mesh/meltemi/filter/forward"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

func faultsOf(t *testing.T, config string) (all []string) {
	t.Helper()
	rc := new(routev1alpha.RouteConfiguration)
	require.NoError(t, protojson.Unmarshal([]byte(config), rc))
	_, errs := Compile(rc, Env{})
	for _, e := range errs {
		all = append(all, e.Error())
	}
	return all
}

func TestFaultsOfPolicies(t *testing.T) {
	for _, tt := range []struct{ action, fault string }{
		{`"timeout": "0s"`, "timeout: must be at least 1ms, is 0s"},
		{`"timeout": "-1s"`, "timeout: must be at least 1ms, is -1s"},
		{`"retry_policy": {"retry_on": "5xx"}`, `retry_policy.retry_on: "5xx" is no condition`},
		{`"retry_policy": {"retry_on": "refused,"}`, `retry_policy.retry_on: "" is no condition`},
		{`"retry_policy": {"retry_on": "refused, reset"}`, "retry_policy.retry_on: reset needs idempotent: the request may have been executed"},
		{`"retry_policy": {"retry_on": "timeout"}`, "retry_policy.retry_on: timeout needs idempotent: the request may have been executed"},
		{`"retry_policy": {"num_retries": 11}`, "retry_policy.num_retries: must be between 0 and 10, is 11"},
		{`"retry_policy": {"per_try_timeout": "0s"}`, "retry_policy.per_try_timeout: must be at least 1ms, is 0s"},
		{`"retry_policy": {"per_request_buffer_limit_bytes": 4294967295}`, "retry_policy.per_request_buffer_limit_bytes: must be between 0 and 1073741824, is 4294967295"},
		{`"retry_policy": {"retriable_status_codes": [1]}`, "retry_policy.retriable_status_codes: needs retriable-status-codes in retry_on"},
		{
			`"idempotent": true, "retry_policy": {"retry_on": "retriable-status-codes"}`,
			"retry_policy.retriable_status_codes: required, as retry_on has retriable-status-codes",
		},
		{
			`"retry_policy": {"retry_back_off": {"base_interval": "2s", "max_interval": "1s"}}`,
			"retry_policy.retry_back_off.max_interval: must be at least base_interval, 2s, is 1s",
		},
		{`"hedge_policy": {"hedge_delay": "1s"}`, "hedge_policy: needs idempotent: the request is executed twice"},
		{`"idempotent": true, "hedge_policy": {}`, "hedge_policy: required: hedge_delay or hedge_percentile"},
		{`"idempotent": true, "hedge_policy": {"hedge_delay": "0s"}`, "hedge_policy.hedge_delay: must be at least 1ms, is 0s"},
		{
			`"idempotent": true, "hedge_policy": {"hedge_percentile": {"value": 49.9}}`,
			"hedge_policy.hedge_percentile: must be between 50 and 100, is 49.9",
		},
		{`"idempotent": true, "hedge_policy": {"hedge_percentile": {"value": 100}}`, "hedge_policy.hedge_percentile: must be less than 100"},
	} {
		require.Equal(t, []string{"routes[0].route." + tt.fault}, faultsOf(t, `{"routes": [{"route": {"cluster": "c", `+tt.action+`}}]}`))
	}
	for _, tt := range []struct{ table, fault string }{
		{`"timeout": "0s"`, "timeout: must be at least 1ms, is 0s"},
		{`"retry_policy": {"num_retries": 11}`, "retry_policy.num_retries: must be between 0 and 10, is 11"},
		{`"hedge_policy": {}`, "hedge_policy: required: hedge_delay or hedge_percentile"},
		{`"clusters": [{}]`, "clusters[0].name: required"},
		{`"clusters": [{"name": "a"}, {"name": "a"}]`, `clusters[1].name: "a" has a policy already`},
		{
			`"clusters": [{"name": "a", "retry_budget": {"budget_percent": {"value": 101}}}]`,
			"clusters[0].retry_budget.budget_percent: must be between 0 and 100, is 101",
		},
		{
			`"clusters": [{"name": "a", "retry_budget": {"max_concurrent_retries": 0}}]`,
			"clusters[0].retry_budget.max_concurrent_retries: must be between 1 and 1000000, is 0",
		},
		{
			`"clusters": [{"name": "a", "retry_budget": {"min_retries_per_second": 1000001}}]`,
			"clusters[0].retry_budget.min_retries_per_second: must be between 0 and 1000000, is 1000001",
		},
	} {
		require.Equal(t, []string{tt.fault}, faultsOf(t, `{`+tt.table+`, "routes": [{"route": {"cluster": "c"}}]}`))
	}
}

// TestPoliciesOfATableAreThoseOfRoutesWithout: of them only what the route may have.
func TestPoliciesOfATableAreThoseOfRoutesWithout(t *testing.T) {
	const table = `"timeout": "1s", "retry_policy": {"retry_on": "refused,reset", "num_retries": 2},
		"hedge_policy": {"hedge_delay": "0.1s"}, "clusters": [{"name": "*", "retry_budget": {}}]`
	policy := func(table, action string) *forward.Policy {
		return mustCompile(t, `{`+table+`"routes": [{"route": {"cluster": "c"`+action+`}}]}`).routes[0].Policy
	}
	require.Nil(t, policy("", ""))
	require.Nil(t, policy("", `, "idempotent": true`))
	require.Nil(t, policy(`"clusters": [{"name": "c", "retry_budget": {}}], `, ""))
	want := forward.Policy{
		Timeout: time.Second, On: forward.OnRefused, Retries: 2, BackoffBase: 25 * time.Millisecond, BackoffMax: 250 * time.Millisecond,
		MaxBytes: 65536,
	}
	require.Equal(t, &want, policy(table+", ", ""))
	want.On, want.HedgeDelay = forward.OnRefused|forward.OnReset, 100*time.Millisecond
	require.Equal(t, &want, policy(table+", ", `, "idempotent": true`))
	want.Timeout, want.HedgeDelay, want.HedgePercentile = 2*time.Second, 0, 95
	require.Equal(t, &want, policy(table+", ", `, "idempotent": true, "timeout": "2s", "hedge_policy": {"hedge_percentile": {"value": 95}}`))
	want.On, want.Retries = forward.OnConnectFailure|forward.OnRefused, 1
	require.Equal(t, &want, policy(table+", ", `, "idempotent": true, "timeout": "2s", "hedge_policy": {"hedge_percentile": {"value": 95}}, "retry_policy": {}`))
	want.Retries = 0
	require.Equal(t, &want, policy(table+", ", `, "idempotent": true, "timeout": "2s", "hedge_policy": {"hedge_percentile": {"value": 95}}, "retry_policy": {"num_retries": 0}`))
}
