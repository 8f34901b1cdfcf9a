package main

import (
	"fmt"
	"strings"
)

// guardsTarget is Meltemi with what guards a service, none of which refuses anything: a
// limit, access control by 100 policies, properties that are set, faults for nobody; and
// 1,000 routes, of which the last is the one, and changes the request.
const guardsTarget = "meltemi-guards"

const guardedMutation = `
                  request_mutation: [{key: x-route, value: echo}, {key: x-gateway, value: meltemi}]`

const filterType = "type.googleapis.com/aeraki.meta_protocol_proxy.filters."

const limit = `
              - name: aeraki.meta_protocol.filters.local_ratelimit
                config:
                  "@type": ` + filterType + `local_ratelimit.v1alpha.LocalRateLimit
                  stat_prefix: bench
                  token_bucket: {max_tokens: 1, fill_interval: 3600s}
                  conditions:
                  - match: {metadata: [{name: method, string_match: {exact: echo}}]}
                    token_bucket: {max_tokens: 10000000, tokens_per_fill: 10000000, fill_interval: 1s}`

// accessControl is of 100 policies, one of which allows all requests.
func accessControl() string {
	var policies []string
	for i := range 100 {
		service := fmt.Sprintf("org.bench.Service%d", i)
		if i == 50 {
			service = "org.bench.Echo"
		}
		policies = append(policies, fmt.Sprintf(`policy-%02d: {permissions: [{url_path: {path: {exact: /%s/echo}}}, {url_path: {path: {prefix: /org.bench.Admin%d/}}}],
                    principals: [{and_ids: {ids: [{remote_ip: {address_prefix: 127.0.0.0, prefix_len: 8}}, {header: {name: tenant, string_match: {exact: acme}}}]}}]}`,
			i, service, i))
	}
	return `
              - name: aeraki.meta_protocol.filters.rbac
                config:
                  "@type": ` + filterType + `rbac.v1alpha.RBAC
                  rules: {action: ALLOW, policies: {` + strings.Join(policies, ", ") + `}}`
}

// guardingFilters are its filters, but for the router.
func guardingFilters() string {
	return limit + accessControl() + `
              - name: aeraki.meta_protocol.filters.set_metadata
                config:
                  "@type": ` + filterType + `set_metadata.v1alpha.SetMetadata
                  entries: [{name: x-client, format: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}, {name: x-team, value: bench}]
              - name: aeraki.meta_protocol.filters.fault
                match: {metadata: [{name: interface, string_match: {exact: org.bench.Echo}}]}
                config:
                  "@type": ` + filterType + `fault.v1alpha.Fault
                  delay: {fixed_delay: 2s, percentage: {numerator: 0}}
                  abort: {reply: {status: OVER_LIMIT}, percentage: {numerator: 0}}`
}

// otherRoutes are 999 in front of the one that matches.
func otherRoutes() string {
	var b strings.Builder
	for i := range 999 {
		fmt.Fprintf(&b, `
                - match: {metadata: [{name: interface, string_match: {exact: org.bench.Service%d}}, {name: method, string_match: {exact: echo}}, {name: tenant, string_match: {exact: acme}}]}
                  route: {cluster: echo}`, i)
	}
	return b.String()
}
