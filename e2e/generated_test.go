package e2e

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/control/input"
	"github.com/meltemi-mesh/meltemi/control/translate/envoyfilter"
	"github.com/meltemi-mesh/meltemi/e2e/internal/docs"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"

	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	_ "github.com/meltemi-mesh/meltemi/filters/rbac"
	_ "github.com/meltemi-mesh/meltemi/filters/router"
)

// What the generator makes of this host, and what Envoy is told of it.
const (
	greeter        = "greeter.demo.svc.cluster.local"
	greeterCluster = "outbound|20880||" + greeter
	greeterStats   = "meta_protocol.dubbo." + greeterCluster + "."
)

// generated are the values that the patches of a service's EnvoyFilters add:
// the loopback listener, the filter of clients and its configuration.
func generated(t *testing.T, more string) (loopback envoytest.Resource, filter, extension envoytest.M) {
	t.Helper()
	s, _, errs := input.Load(fmt.Appendf(nil, `
host: %s
addresses: [10.96.0.50]
ports: [{port: 20880, protocol: dubbo}]
socket: %q
adminAddress: none
golang: {proxyVersion: none}
%s`, greeter, envoytest.Socket(), more))
	require.Empty(t, errs)
	filters, faults := envoyfilter.Generate(s)
	require.Empty(t, faults)
	for _, f := range filters {
		for _, p := range f.Spec.ConfigPatches {
			if p.Patch.Operation == networking.EnvoyFilter_Patch_REMOVE {
				continue
			}
			switch value := p.Patch.Value.AsMap(); p.ApplyTo {
			case networking.EnvoyFilter_LISTENER:
				loopback = value
				loopback["@type"] = "type.googleapis.com/envoy.config.listener.v3.Listener"
			case networking.EnvoyFilter_NETWORK_FILTER:
				filter = value
			case networking.EnvoyFilter_EXTENSION_CONFIG:
				extension = value
			}
		}
	}
	return loopback, filter, extension
}

// TestWhatIsGeneratedRuns: Envoy takes it, and the calls are Meltemi's.
func TestWhatIsGeneratedRuns(t *testing.T) {
	t.Parallel()
	for _, delivery := range []string{"ECDS", "LISTENER"} {
		t.Run(delivery, func(t *testing.T) {
			everywhere(t, func(t *testing.T, v variant) {
				s := scripted.Serve(t, scripted.Answer("here"))
				loopback, filter, extension := generated(t, "delivery: "+delivery)
				o := v.options()
				o.Clusters = []envoytest.Resource{envoytest.Cluster(greeterCluster, envoytest.At(s.Port)...)}
				o.Listeners = []envoytest.Resource{loopback, envoytest.Listener("dubbo", filter)}
				if extension != nil {
					o.Extensions = []envoytest.M{envoytest.Extension(extension["name"].(string), extension)}
				}
				e := envoytest.Start(t, o)
				c := scripted.Dial(t, e.Port("dubbo"))
				c.Ask(1, dubbotest.Request{})
				require.Equal(t, "here", c.Read().Text())
				e.WaitStat(greeterStats+"response_success", envoytest.Exactly(1))
			})
		})
	}
}

// TestWhatIsGeneratedTellsACollector what docs/istio.md says.
func TestWhatIsGeneratedTellsACollector(t *testing.T) {
	t.Parallel()
	var page struct {
		Telemetry struct {
			Metrics   struct{ OTLP envoytest.M }
			Tracing   envoytest.M
			AccessLog []any `yaml:"accessLog"`
		}
	}
	for _, b := range docs.Blocks(source(t, "docs/istio.md")) {
		if b.Section == "To a collector" && b.Kind == "yaml" {
			require.NoError(t, yaml.Unmarshal([]byte(b.Text), &page))
		}
	}
	told := page.Telemetry
	require.NotNil(t, told.Metrics.OTLP)
	told.Metrics.OTLP["interval"] = "1s"
	more, err := json.Marshal(envoytest.M{"metrics": envoytest.M{"otlp": told.Metrics.OTLP}, "tracing": told.Tracing, "accessLog": told.AccessLog})
	require.NoError(t, err)
	once(t, func(t *testing.T, v variant) {
		seen, cluster := collector(t)
		cluster["name"] = "outbound|4317||collector.monitoring.svc.cluster.local"
		s := scripted.Serve(t, scripted.Close)
		loopback, filter, extension := generated(t, "telemetry: "+string(more))
		o := v.options()
		o.Clusters = []envoytest.Resource{envoytest.Cluster(greeterCluster, envoytest.At(s.Port)...), cluster}
		o.Listeners = []envoytest.Resource{loopback, envoytest.Listener("dubbo", filter)}
		o.Extensions = []envoytest.M{envoytest.Extension(extension["name"].(string), extension)}
		e := envoytest.Start(t, o)
		c := scripted.Dial(t, e.Port("dubbo"))
		c.Ask(1, dubbotest.Request{Method: "hello", Attachments: [][2]string{{"x-envoy-force-trace", "1"}}})
		c.Read()
		require.True(t, eventually(patience, func() bool {
			r := seen.Seen()
			counted := false
			for _, m := range r.Metrics {
				counted = counted || m.GetName() == "istio_requests_total"
			}
			return len(r.Spans) == 1 && len(r.Records) == 1 && counted
		}))
		require.Equal(t, "/org.example.Greeter/hello 503 UC", seen.Seen().Records[0].GetBody().GetStringValue())
		require.Equal(t, "org.example.Greeter/hello", seen.Seen().Spans[0].GetName())
	})
}

// TestWithoutTheSharedObjectAServiceIsPlainTCP: the loopback listener and the
// filter's configuration are refused, and nothing else happens to the proxy.
func TestWithoutTheSharedObjectAServiceIsPlainTCP(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		s := scripted.Serve(t, scripted.Answer("here"))
		loopback, filter, extension := generated(t, "")
		o := v.options()
		o.Modules = t.TempDir()
		o.Clusters = []envoytest.Resource{envoytest.Cluster(greeterCluster, envoytest.At(s.Port)...)}
		o.Listeners = []envoytest.Resource{loopback, envoytest.Listener("dubbo", filter)}
		o.Extensions = []envoytest.M{envoytest.Extension(extension["name"].(string), extension)}
		e := envoytest.Start(t, o)
		c := scripted.Dial(t, e.Port("dubbo"))
		c.Ask(1, dubbotest.Request{})
		require.Equal(t, "here", c.Read().Text())
		require.Empty(t, e.Stats("^meta_protocol"))
		require.Contains(t, e.Log(), "libmeltemi.so")
	})
}

// TestUntilItsConfigurationIsRightAServiceIsPlainTCP: one that is refused at
// the start costs the rules, not the service.
func TestUntilItsConfigurationIsRightAServiceIsPlainTCP(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		s := scripted.Serve(t, scripted.Answer("here"))
		loopback, filter, extension := generated(t, "initialFetchTimeout: 200ms")
		name := extension["name"].(string)
		o := v.options()
		o.Clusters = []envoytest.Resource{envoytest.Cluster(greeterCluster, envoytest.At(s.Port)...)}
		o.Listeners = []envoytest.Resource{loopback, envoytest.Listener("dubbo", filter)}
		o.Extensions = []envoytest.M{envoytest.Extension(name, envoytest.Proxy(envoytest.M{"stat_prefix": "incomplete"}))}
		e := envoytest.Start(t, o)
		require.Contains(t, e.Log(), "meta_protocol_proxy refused")
		c := scripted.Dial(t, e.Port("dubbo"))
		c.Ask(1, dubbotest.Request{})
		require.Equal(t, "here", c.Read().Text())
		require.Empty(t, e.Stats("^meta_protocol[.]dubbo"))
		e.SetExtension(name, extension)
		c = scripted.Dial(t, e.Port("dubbo"))
		c.Ask(1, dubbotest.Request{})
		require.Equal(t, "here", c.Read().Text())
		e.WaitStat(greeterStats+"response_success", envoytest.Exactly(1))
	})
}
