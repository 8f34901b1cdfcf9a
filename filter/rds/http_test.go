package rds_test

import (
	"fmt"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// inHTTP hands a configuration of Envoy's type to a user, and returns what it gets,
// and what the server is told.
func inHTTP(t *testing.T, text string) (rc *routev1alpha.RouteConfiguration, told string) {
	t.Helper()
	virtually(t, func(b *bed) {
		b.serve(newServer())
		u := &user{}
		defer b.Subscribe(source(t, world), b, u)()
		from := new(routev3.RouteConfiguration)
		unmarshal(t, text, from)
		told = b.answer(b.asks(), response("1", packed(from))).GetErrorDetail().GetMessage()
		rc = u.routes
	})
	return rc, told
}

// table is a configuration of Envoy's type with one route.
func table(route string) string {
	return fmt.Sprintf(`{"name": "greeter", "virtualHosts": [{"name": "dummy", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, %s}]}]}`, route)
}

// TestWhatAerakiSends is what it means.
func TestWhatAerakiSends(t *testing.T) {
	rc, told := inHTTP(t, `{"name": "greeter", "virtualHosts": [{"name": "dummy", "domains": ["*"], "routes": [{
		"name": "r", "match": {"prefix": "/", "headers": [{"name": "method", "exactMatch": "hello"}, {"name": "x", "safeRegexMatch": {"googleRe2": {}, "regex": "a.*"}}]},
		"route": {"weightedClusters": {"clusters": [{"name": "a", "weight": 1}, {"name": "b", "weight": 3}], "totalWeight": 4},
			"hashPolicy": [{"header": {"headerName": "user"}}],
			"requestMirrorPolicies": [{"cluster": "m", "runtimeFraction": {"defaultValue": {"numerator": 5}}}, {"cluster": "n"}]},
		"requestHeadersToAdd": [{"header": {"key": "k", "value": "v"}}],
		"responseHeadersToAdd": [{"header": {"key": "x", "value": "y"}, "appendAction": "OVERWRITE_IF_EXISTS_OR_ADD"}]
	}]}]}`)
	require.Empty(t, told)
	equal(t, `{"name": "greeter", "routes": [{
		"name": "r", "match": {"metadata": [{"name": "method", "exactMatch": "hello"}, {"name": "x", "safeRegexMatch": {"googleRe2": {}, "regex": "a.*"}}]},
		"route": {"weightedClusters": {"clusters": [{"name": "a", "weight": 1}, {"name": "b", "weight": 3}], "totalWeight": 4},
			"hashPolicies": [{"metadata": {"name": "user"}}],
			"requestMirrorPolicies": [{"cluster": "m", "runtimeFraction": {"defaultValue": {"numerator": 5}}}, {"cluster": "n"}]},
		"requestMutation": [{"key": "k", "value": "v"}], "responseMutation": [{"key": "x", "value": "y"}]
	}]}`, rc)
}

func equal(t *testing.T, want string, got *routev1alpha.RouteConfiguration) {
	t.Helper()
	rc := new(routev1alpha.RouteConfiguration)
	unmarshal(t, want, rc)
	require.True(t, proto.Equal(rc, got), "%v", got)
}

// TestATableOfAerakis passes the compiler, in the forms that are deprecated too.
func TestATableOfAerakis(t *testing.T) {
	rc, told := inHTTP(t, `{"name": "greeter", "virtualHosts": [{"name": "dummy", "domains": ["*"], "routes": [{
		"match": {"prefix": "/", "headers": [{"name": "a", "exactMatch": "x"}, {"name": "b", "prefixMatch": "y"}, {"name": "c", "presentMatch": true},
			{"name": "d", "safeRegexMatch": {"googleRe2": {}, "regex": "^s.*o$"}}]},
		"route": {"weightedClusters": {"clusters": [{"name": "v1", "weight": 20}, {"name": "v2", "weight": 80}], "totalWeight": 100}}
	}]}]}`)
	require.Empty(t, told)
	require.Len(t, rc.GetRoutes(), 1)
}

// TestPoliciesOfEnvoysType are ours.
func TestPoliciesOfEnvoysType(t *testing.T) {
	const to = `"cluster": "c"`
	idempotent := func(route string) string {
		return `"metadata": {"filterMetadata": {"istio": {"config": "x"}, "aeraki.meta_protocol_proxy": {"idempotent": true}}}, "route": {` + route + `}`
	}
	for what, tc := range map[string]struct{ from, want string }{
		"timeout":    {`"route": {"cluster": "c", "timeout": "1.5s"}`, `"route": {"cluster": "c", "timeout": "1.5s"}`},
		"no timeout": {`"route": {"cluster": "c", "timeout": "0s"}`, `"route": {"cluster": "c"}`},
		"idempotent": {idempotent(to), `"route": {"cluster": "c", "idempotent": true}`},
		"retries": {
			`"route": {"cluster": "c", "retryPolicy": {"retryOn": "connect-failure,refused-stream, resource-exhausted", "numRetries": 3, "perTryTimeout": "0.5s",
				"retryBackOff": {"baseInterval": "0.01s", "maxInterval": "0.1s"}, "hostSelectionRetryMaxAttempts": 5,
				"retryHostPredicate": [{"name": "envoy.retry_host_predicates.previous_hosts"}]}}`,
			`"route": {"cluster": "c", "retryPolicy": {"retryOn": "connect-failure,refused,overloaded", "numRetries": 3, "perTryTimeout": "0.5s",
				"retryBackOff": {"baseInterval": "0.01s", "maxInterval": "0.1s"}}}`,
		},
		"5xx": {
			idempotent(to + `, "retryPolicy": {"retryOn": "5xx,retriable-status-codes", "retriableStatusCodes": [70, 80]}`),
			`"route": {"cluster": "c", "idempotent": true, "retryPolicy": {"retryOn": "connect-failure,refused,overloaded,reset,timeout,server-error,retriable-status-codes",
				"retriableStatusCodes": [70, 80]}}`,
		},
		"gateway-error": {
			idempotent(to + `, "retryPolicy": {"retryOn": "gateway-error"}`),
			`"route": {"cluster": "c", "idempotent": true, "retryPolicy": {"retryOn": "connect-failure,refused,overloaded,reset,timeout"}}`,
		},
		"reset": {
			idempotent(to + `, "retryPolicy": {"retryOn": "reset"}`),
			`"route": {"cluster": "c", "idempotent": true, "retryPolicy": {"retryOn": "connect-failure,refused,reset,timeout"}}`,
		},
		"our own conditions": {
			idempotent(to + `, "retryPolicy": {"retryOn": "reset-before-request,unavailable,internal,timeout,server-error"}`),
			`"route": {"cluster": "c", "idempotent": true, "retryPolicy": {"retryOn": "connect-failure,refused,server-error,timeout,server-error"}}`,
		},
		"no retries": {`"route": {"cluster": "c", "retryPolicy": {"numRetries": 3}}`, `"route": {"cluster": "c", "retryPolicy": {"numRetries": 0}}`},
		"a hedge": {
			idempotent(to + `, "retryPolicy": {"retryOn": "refused-stream", "perTryTimeout": "0.2s"}, "hedgePolicy": {"hedgeOnPerTryTimeout": true}`),
			`"route": {"cluster": "c", "idempotent": true, "retryPolicy": {"retryOn": "refused"}, "hedgePolicy": {"hedgeDelay": "0.2s"}}`,
		},
		"no hedge": {`"route": {"cluster": "c", "hedgePolicy": {}}`, `"route": {"cluster": "c"}`},
		"hashes": {
			`"route": {"cluster": "c", "hashPolicy": [{"header": {"headerName": "user"}, "terminal": true}, {"connectionProperties": {"sourceIp": true}}]}`,
			`"route": {"cluster": "c", "hashPolicies": [{"metadata": {"name": "user"}, "terminal": true}, {"sourceIp": true}]}`,
		},
		"a direct response": {
			`"directResponse": {"status": 403, "body": {"inlineString": "closed"}}`,
			`"directResponse": {"status": "DENIED", "body": "closed"}`,
		},
		"changes": {
			`"route": {"cluster": "c"}, "requestHeadersToRemove": ["a"], "responseHeadersToRemove": ["b"], "requestHeadersToAdd": [
				{"header": {"key": "k", "value": "%REQ(user)%"}}, {"header": {"key": "l", "value": "1"}, "append": true},
				{"header": {"key": "m"}, "appendAction": "ADD_IF_ABSENT", "keepEmptyValue": true}, {"header": {"key": "n"}, "appendAction": "OVERWRITE_IF_EXISTS"},
				{"header": {"key": "o"}, "append": false}]`,
			`"route": {"cluster": "c"}, "requestKeysToRemove": ["a"], "responseKeysToRemove": ["b"], "requestMutation": [
				{"key": "k", "format": "%REQ(user)%"}, {"key": "l", "value": "1", "appendAction": "APPEND_IF_EXISTS_OR_ADD"},
				{"key": "m", "appendAction": "ADD_IF_ABSENT"}, {"key": "n", "appendAction": "OVERWRITE_IF_EXISTS"}, {"key": "o"}]`,
		},
	} {
		t.Run(what, func(t *testing.T) {
			rc, told := inHTTP(t, table(tc.from))
			require.Empty(t, told)
			equal(t, `{"name": "greeter", "routes": [{"match": {}, `+tc.want+`}]}`, rc)
		})
	}
	t.Run("a share", func(t *testing.T) {
		rc, told := inHTTP(t, `{"name": "greeter", "virtualHosts": [{"routes": [
			{"match": {"prefix": "/", "runtimeFraction": {"defaultValue": {"numerator": 10}}}, "route": {"cluster": "c"}}]}]}`)
		require.Empty(t, told)
		equal(t, `{"name": "greeter", "routes": [{"match": {"runtimeFraction": {"defaultValue": {"numerator": 10}}}, "route": {"cluster": "c"}}]}`, rc)
	})
}

// TestWhatHoldsForAllRoutes of Envoy's type: what the virtual host says, or else the
// configuration.
func TestWhatHoldsForAllRoutes(t *testing.T) {
	const (
		changes = `"requestHeadersToAdd": [{"header": {"key": "k", "value": "v"}}], "requestHeadersToRemove": ["a"],
			"responseHeadersToAdd": [{"header": {"key": "l", "value": "w"}}], "responseHeadersToRemove": ["b"]`
		ours = `"requestMutation": [{"key": "k", "value": "v"}], "requestKeysToRemove": ["a"], "responseMutation": [{"key": "l", "value": "w"}], "responseKeysToRemove": ["b"]`
		in   = `, "virtualHosts": [{"domains": ["*"], "routes": [{"route": {"cluster": "c"}}]`
	)
	for what, tc := range map[string]struct{ from, want string }{
		"the configuration's": {
			`"requestMirrorPolicies": [{"cluster": "m"}], "mostSpecificHeaderMutationsWins": true, ` + changes + in + `}]`,
			`"requestMirrorPolicies": [{"cluster": "m"}], "mostSpecificMutationsWins": true, ` + ours,
		},
		"the virtual host's": {
			`"requestMirrorPolicies": [{"cluster": "n"}]` + in + `, "requestMirrorPolicies": [{"cluster": "m"}], "retryPolicy": {"retryOn": "5xx"}, ` + changes + `}]`,
			`"requestMirrorPolicies": [{"cluster": "m"}], "retryPolicy": {"retryOn": "connect-failure,refused,overloaded,reset,timeout,server-error"}, ` + ours,
		},
	} {
		t.Run(what, func(t *testing.T) {
			rc, told := inHTTP(t, `{"name": "greeter", `+tc.from+`}`)
			require.Empty(t, told)
			equal(t, `{"name": "greeter", "routes": [{"route": {"cluster": "c"}}], `+tc.want+`}`, rc)
		})
	}
}

// TestWhatCannotBeCarriedOver is refused where it is.
func TestWhatCannotBeCarriedOver(t *testing.T) {
	const host = "resources[0].virtual_hosts[0]."
	routes := map[string]string{
		`"route": {"cluster": "c", "prefixRewrite": "/x", "hashPolicy": [{"cookie": {"name": "c"}}]}`: "route.prefix_rewrite: not supported; " + host + "routes[0].route.hash_policy[0].cookie: not supported",
		`"route": {"clusterHeader": "c"}`: "route.cluster_header: not supported",
		`"redirect": {}`:                  "redirect: not supported",
		`"route": {"cluster": "c", "retryPolicy": {"retryOn": "retriable-4xx"}}`:                                                       `route.retry_policy.retry_on: "retriable-4xx" is no condition`,
		`"route": {"cluster": "c", "retryPolicy": {"retryOn": "gateway-error"}}`:                                                       "route.retry_policy.retry_on: reset needs idempotent: the request may have been executed",
		`"route": {"cluster": "c", "retryPolicy": {"retryOn": "refused", "numRetries": 11}}`:                                           "route.retry_policy.num_retries: must be between 0 and 10, is 11",
		`"route": {"cluster": "c", "retryPolicy": {"perTryIdleTimeout": "1s"}}`:                                                        "route.retry_policy.per_try_idle_timeout: not supported",
		`"route": {"cluster": "c", "retryPolicy": {"retryOn": "refused", "retriableStatusCodes": [2147483648]}}`:                       "route.retry_policy.retriable_status_codes[0]: must be at most 2147483647, is 2147483648",
		`"route": {"cluster": "c", "retryPolicy": {"retryOn": "refused", "retryHostPredicate": [{"name": "other"}]}}`:                  `route.retry_policy.retry_host_predicate[0].name: want envoy.retry_host_predicates.previous_hosts, is "other"`,
		`"route": {"cluster": "c", "retryPolicy": {"retryOn": "refused", "retryBackOff": {"baseInterval": "0s"}}}`:                     "route.retry_policy.retry_back_off.base_interval: must be at least 1ms, is 0s",
		`"route": {"cluster": "c", "hedgePolicy": {"initialRequests": 2}}`:                                                             "route.hedge_policy.initial_requests: not supported",
		`"route": {"cluster": "c", "hedgePolicy": {"hedgeOnPerTryTimeout": true}}`:                                                     "route.hedge_policy.hedge_on_per_try_timeout: needs the route's retry_policy.per_try_timeout",
		`"route": {"cluster": "c", "retryPolicy": {"perTryTimeout": "1s"}, "hedgePolicy": {"hedgeOnPerTryTimeout": true}}`:             "route.hedge_policy: needs idempotent: the request is executed twice",
		`"route": {"cluster": "c", "timeout": "0.0001s"}`:                                                                              "route.timeout: must be at least 1ms, is 100µs",
		`"route": {"cluster": "c", "requestMirrorPolicies": [{"clusterHeader": "m"}]}`:                                                 "route.request_mirror_policies[0].cluster_header: not supported",
		`"route": {"cluster": "c", "hashPolicy": [{"header": {"headerName": ""}}]}`:                                                    "route.hash_policy[0].header.header_name: required",
		`"route": {"cluster": "c", "hashPolicy": [{"connectionProperties": {}}]}`:                                                      "route.hash_policy[0].connection_properties.source_ip: must be true",
		`"directResponse": {"status": 200}`:                                                                                            "direct_response.status: want one of [400 401 403 404 408 429 500 502 503 504], is 200",
		`"directResponse": {"status": 503, "body": {"filename": "/etc/passwd"}}`:                                                       "direct_response.body.filename: not supported",
		`"directResponse": {"status": 503, "body": {"inlineString": "` + strings.Repeat("x", 5000) + `"}}`:                             "direct_response.body.inline_string: must have at most 4096 bytes, has 5000",
		`"metadata": {"filterMetadata": {"aeraki.meta_protocol_proxy": {"idempotent": true, "x": 1}}}, "route": {` + `"cluster": "c"}`: `metadata.filter_metadata["aeraki.meta_protocol_proxy"].x: not supported`,
		`"route": {"cluster": "c"}, "requestHeadersToAdd": [{"header": {"key": "", "value": "v"}}]`:                                    "request_headers_to_add[0].header.key: must have 1 to 16384 bytes, has 0",
		`"route": {"cluster": "c"}, "responseHeadersToAdd": [{"header": {"key": "k", "value": "100%"}}]`:                               "response_headers_to_add[0].header.value: ",
		`"route": {"cluster": "c"}, "requestHeadersToAdd": [{"header": {"key": "k", "value": "%REQ(x)%"}, "keepEmptyValue": true}]`:    "request_headers_to_add[0].keep_empty_value: does not go with operators",
		`"route": {"cluster": "c"}, "responseHeadersToRemove": [""]`:                                                                   "response_headers_to_remove[0]: must have 1 to 16384 bytes, has 0",
		`"route": {"weightedClusters": {"clusters": [{"name": "c", "weight": 1}], "totalWeight": 2}}`:                                  "route.weighted_clusters.total_weight: the weights add up to 1, is 2",
	}
	for from, want := range routes {
		_, told := inHTTP(t, table(from))
		require.Contains(t, told, host+"routes[0]."+want, "%s", from)
	}
	for from, want := range map[string]string{
		`"virtualHosts": [{"routes": [{"match": {"runtimeFraction": {}}, "route": {"cluster": "c"}}]}]`:                        host + "routes[0].match.runtime_fraction.default_value: required",
		`"virtualHosts": [{"routes": [{"match": {"headers": [{"name": ""}]}, "route": {"cluster": "c"}}]}]`:                    host + "routes[0].match.headers[0].name: required",
		`"virtualHosts": [{"hedgePolicy": {}}]`:                                                                                host + "hedge_policy: not supported",
		`"virtualHosts": [{"retryPolicy": {"retryOn": "x"}}]`:                                                                  host + `retry_policy.retry_on: "x" is no condition`,
		`"virtualHosts": [{"requestMirrorPolicies": [{}]}]`:                                                                    host + "request_mirror_policies[0].cluster: required",
		`"virtualHosts": [{"requestHeadersToAdd": [{"header": {"key": "k", "value": "%X%"}}]}]`:                                host + "request_headers_to_add[0].header.value: ",
		`"requestMirrorPolicies": [{}]`:                                                                                        "resources[0].request_mirror_policies[0].cluster: required",
		`"requestHeadersToAdd": [{"header": {"value": "v"}}]`:                                                                  "resources[0].request_headers_to_add[0].header.key: must have 1 to 16384 bytes, has 0",
		`"requestHeadersToRemove": ["k"], "virtualHosts": [{"requestHeadersToAdd": [{"header": {"key": "k", "value": "v"}}]}]`: "resources[0].virtual_hosts[0]: changes of headers do not go with those of the configuration",
		`"validateClusters": true`:                                                                                             "resources[0].validate_clusters: not supported",
	} {
		_, told := inHTTP(t, `{"name": "greeter", `+from+`}`)
		require.Contains(t, told, want, "%s", from)
	}
}
