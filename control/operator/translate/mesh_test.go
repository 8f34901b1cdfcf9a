package translate_test

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/control/ir"
	"github.com/meltemi-mesh/meltemi/control/operator/translate"
	"github.com/meltemi-mesh/meltemi/filter"
)

// TestTracingOfTheMesh: what mesh configs say of tracing, as the filter takes it.
func TestTracingOfTheMesh(t *testing.T) {
	const (
		zipkin = `{"name":"envoy.tracers.zipkin","typed_config":{"@type":"type.googleapis.com/envoy.config.trace.v3.ZipkinConfig",` +
			`"collector_endpoint_version":"HTTP_JSON","shared_span_context":false,`
		bootstrap = zipkin + `"collector_cluster":"zipkin","collector_endpoint":"/api/v2/spans","trace_id_128bit":true}}`
	)
	for name, tc := range map[string]struct{ config, want, left string }{
		"nothing":                        {"", "", ""},
		"Istio's own block without more": {"defaultConfig: {tracing: {}}", "", ""},
		"an address, and Istio's share":  {"defaultConfig: {tracing: {zipkin: {address: 'zipkin:9411'}}}", `{"provider":` + bootstrap + `,"random_sampling":{"value":1}}`, ""},
		"a share": {
			"enableTracing: true\ndefaultConfig: {tracing: {sampling: 50, maxPathTagLength: 64, zipkin: {address: 'zipkin:9411'}}}",
			`{"provider":` + bootstrap + `,"random_sampling":{"value":50},"max_tag_length":64}`, "",
		},
		"a tiny share": {"defaultConfig: {tracing: {sampling: 0.001, zipkin: {address: 'zipkin:9411'}}}", `{"provider":` + bootstrap + `,"random_sampling":{"value":0.01}}`, ""},
		"switched off": {"enableTracing: false\ndefaultConfig: {tracing: {zipkin: {address: 'zipkin:9411'}}}", "", ""},
		"another tracer": {
			"defaultConfig: {tracing: {datadog: {address: 'datadog:8126'}}}", "",
			"defaultConfig.tracing: calls are not traced: want zipkin, or an extension provider opentelemetry or zipkin",
		},
		"a provider of Zipkin": {
			"defaultProviders: {tracing: [z]}\nextensionProviders: [{name: z, zipkin: {service: zipkin.istio-system.svc.cluster.local, port: 9411, path: /spans, " +
				"enable64bitTraceId: true, traceContextOption: USE_B3_WITH_W3C_PROPAGATION, headers: [{name: a, value: b}, {name: c, envName: D}]}}]",
			`{"provider":` + zipkin + `"trace_id_128bit":false,"trace_context_option":"USE_B3_WITH_W3C_PROPAGATION","collector_service":{"http_uri":` +
				`{"uri":"http://zipkin.istio-system.svc.cluster.local/spans","cluster":"outbound|9411||zipkin.istio-system.svc.cluster.local","timeout":"5s"},` +
				`"request_headers_to_add":[{"header":{"key":"a","value":"b"},"append_action":"OVERWRITE_IF_EXISTS_OR_ADD"}]}}},"random_sampling":{"value":1}}`,
			"extensionProviders[0].zipkin.headers[1].envName: is left out: the environment is istiod's",
		},
		"a provider of OpenTelemetry by HTTP": {
			"defaultProviders: {tracing: [o, p]}\nextensionProviders: [{name: o, opentelemetry: {service: ns/otel.example.com, port: 4318, http: {path: v1/traces, timeout: 3s}, dynatraceSampler: {tenant: t}}}]",
			`{"provider":{"name":"envoy.tracers.opentelemetry","typed_config":{"@type":"type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",` +
				`"http_service":{"http_uri":{"uri":"http://otel.example.com/v1/traces","cluster":"outbound|4318||otel.example.com","timeout":"3s"}}}},"random_sampling":{"value":1}}`,
			"extensionProviders[0].opentelemetry.dynatraceSampler: is left out: the share of calls that is traced is that of defaultConfig.tracing.sampling",
		},
		"a provider that is not there": {
			"defaultProviders: {tracing: [o]}", "", "defaultProviders.tracing[0]: calls are not traced: there is no extension provider o",
		},
		"a provider of another kind": {
			"defaultProviders: {tracing: [o]}\nextensionProviders: [{name: o, skywalking: {service: s, port: 1}}]", "",
			"extensionProviders[0]: calls are not traced: want opentelemetry or zipkin",
		},
		"what is not known": {"ofAnotherVersion: true\naccessLogFile: x", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var m translate.Mesh
			left, err := m.Configure(tc.config)
			require.NoError(t, err)
			require.Equal(t, tc.left, left.Error())
			if tc.want == "" {
				require.Nil(t, m.Tracing)
				return
			}
			got, err := json.Marshal(m.Tracing)
			require.NoError(t, err)
			require.JSONEq(t, tc.want, string(got))
			config, err := json.Marshal(ir.Object{
				"stat_prefix": "s", "tracing": m.Tracing, "route_config": ir.Object{"name": "r"},
				"protocol": ir.Object{"name": "dubbo", "codec": ir.Object{"name": "aeraki.meta_protocol.codec.dubbo"}},
			})
			require.NoError(t, err)
			require.Empty(t, filter.Check(config))
		})
	}
	for _, bad := range []string{"defaultConfig: 3", "\t"} {
		_, err := new(translate.Mesh).Configure(bad)
		require.Error(t, err)
	}
}
