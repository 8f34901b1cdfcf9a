package export

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	detectorsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/tracers/opentelemetry/resource_detectors/v3"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/filter/fields"
)

// maxSpans wait, or are on their way, unless the configuration has max_cache_size. It is
// Envoy's own number.
const maxSpans = 1024

// Provider is where spans go, and what follows from it for traces. Its fields are not to
// be changed.
type Provider struct {
	// Zipkin says that spans become Zipkin's, as JSON by HTTP. Otherwise they become
	// OpenTelemetry's, by gRPC or HTTP.
	Zipkin bool
	// TraceID128 says that ids of new traces have 128 bits; otherwise their first 8
	// bytes are 0.
	TraceID128 bool
	// SharedSpan says that server spans share their id with the caller's client span,
	// as Zipkin has it: [tracing.Span.Shared].
	SharedSpan bool
	// B3 and W3C are the formats in which a trace's context is read and passed on; of
	// both, B3 is read first.
	B3, W3C bool

	service  service
	name     string // of the service that traces show
	resource []*commonpb.KeyValue
	spans    int // that may wait
	key      string
}

// Key is the same for providers that are.
func (p *Provider) Key() string { return p.key }

// String is the collector for people.
func (p *Provider) String() string { return p.service.String() }

// ParseProvider judges a tracer that stands at path: Envoy's Zipkin or OpenTelemetry.
// Faults are [fields.Error]s.
func ParseProvider(t *tracev3.Tracing_Http, path string) (Provider, error) {
	c := &checker{}
	config := t.GetTypedConfig()
	path += ".typed_config"
	p := Provider{}
	switch name := config.MessageName(); name {
	case "":
		c.Add(path, "required")
	case "envoy.config.trace.v3.OpenTelemetryConfig":
		m := &tracev3.OpenTelemetryConfig{}
		if c.decode(config, m, path) {
			p = c.openTelemetry(m, path)
		}
	case "envoy.config.trace.v3.ZipkinConfig":
		m := &tracev3.ZipkinConfig{}
		if c.decode(config, m, path) {
			p = c.zipkin(m, path)
		}
	default:
		c.Add(path+".type_url", "%s is not supported: want OpenTelemetryConfig or ZipkinConfig of Envoy's", name)
	}
	return p, c.Err()
}

func (c *checker) decode(config *anypb.Any, m proto.Message, path string) bool {
	err := config.UnmarshalTo(m)
	if err != nil {
		c.Add(path, "%s", fields.CleanError(err))
	}
	return err == nil
}

// keyOf is the same for configurations that are.
func keyOf(m proto.Message) string {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil { // text that is no UTF-8
		return err.Error()
	}
	return string(m.ProtoReflect().Descriptor().FullName()) + "\x00" + string(b)
}

func (c *checker) openTelemetry(m *tracev3.OpenTelemetryConfig, path string) Provider {
	c.Only(m, path, "grpc_service", "http_service", "service_name", "resource_detectors", "max_cache_size",
		"set_telemetry_sdk_resource_attributes", "set_service_name_resource_attribute")
	p := Provider{TraceID128: true, W3C: true, key: keyOf(m), service: c.service(m.GetGrpcService(), m.GetHttpService(), path)}
	p.spans = c.Number(m.GetMaxCacheSize(), path+".max_cache_size", 1, 1<<20, maxSpans)
	p.name = m.GetServiceName()
	if p.name == "" {
		p.name = ownService()
	}
	set := func(k, v string) {
		p.resource = slices.DeleteFunc(p.resource, func(kv *commonpb.KeyValue) bool { return kv.Key == k })
		p.resource = append(p.resource, attr(k, v))
	}
	if v := m.GetSetTelemetrySdkResourceAttributes(); v == nil || v.GetValue() {
		set("telemetry.sdk.language", "go")
		set("telemetry.sdk.name", scopeName)
	}
	if v := m.GetSetServiceNameResourceAttribute(); v == nil || v.GetValue() {
		set("service.name", p.name)
	}
	for i, d := range m.GetResourceDetectors() {
		c.detect(d, fmt.Sprintf("%s.resource_detectors[%d].typed_config", path, i), set)
	}
	return p
}

// detect has set called for what a detector finds. What one finds, a later one changes.
func (c *checker) detect(d *corev3.TypedExtensionConfig, path string, set func(k, v string)) {
	switch name := d.GetTypedConfig().MessageName(); name {
	case "envoy.extensions.tracers.opentelemetry.resource_detectors.v3.EnvironmentResourceDetectorConfig":
		for pair := range strings.SplitSeq(os.Getenv("OTEL_RESOURCE_ATTRIBUTES"), ",") {
			k, v, _ := strings.Cut(pair, "=")
			if k = strings.TrimSpace(k); k == "" {
				continue
			}
			v = strings.TrimSpace(v)
			if plain, err := url.PathUnescape(v); err == nil {
				v = plain
			}
			set(k, v)
		}
	case "envoy.extensions.tracers.opentelemetry.resource_detectors.v3.StaticConfigResourceDetectorConfig":
		m := &detectorsv3.StaticConfigResourceDetectorConfig{}
		if c.decode(d.GetTypedConfig(), m, path) {
			for _, k := range slices.Sorted(maps.Keys(m.GetAttributes())) {
				set(k, m.GetAttributes()[k])
			}
		}
	default:
		c.Add(path+".type_url", "%s is not supported: want EnvironmentResourceDetectorConfig or StaticConfigResourceDetectorConfig of Envoy's", name)
	}
}

func (c *checker) zipkin(m *tracev3.ZipkinConfig, path string) Provider {
	c.Only(m, path, "collector_cluster", "collector_endpoint", "trace_id_128bit", "shared_span_context",
		"collector_endpoint_version", "collector_hostname", "trace_context_option", "collector_service")
	p := Provider{
		Zipkin: true, TraceID128: m.GetTraceId_128Bit(), SharedSpan: m.GetSharedSpanContext() == nil || m.GetSharedSpanContext().GetValue(),
		B3: true, W3C: m.GetTraceContextOption() == tracev3.ZipkinConfig_USE_B3_WITH_W3C_PROPAGATION,
		key: keyOf(m), name: ownService(), spans: maxSpans,
	}
	if v := m.GetCollectorEndpointVersion(); v != tracev3.ZipkinConfig_HTTP_JSON {
		c.Add(path+".collector_endpoint_version", "want HTTP_JSON, is %v", v)
	}
	if v := m.GetTraceContextOption(); tracev3.ZipkinConfig_TraceContextOption_name[int32(v)] == "" {
		c.Add(path+".trace_context_option", "is unknown: %d", v)
	}
	if s := m.GetCollectorService(); s != nil {
		p.service = c.httpService(s, path+".collector_service")
		return p
	}
	cluster := c.required(m.GetCollectorCluster(), path+".collector_cluster")
	p.service = service{
		cluster: cluster, url: c.url(m.GetCollectorEndpoint(), cluster, path+".collector_endpoint"),
		host: m.GetCollectorHostname(), header: http.Header{}, timeout: 5 * time.Second, // as Envoy's
	}
	return p
}

// unknownService is Envoy's name of a service that has none.
const unknownService = "unknown_service:envoy"

// ownService is the name of a service that the configuration does not name. Envoy takes
// its node's cluster, which a module does not learn but from where it comes from: its
// command line or Istio's agent.
func ownService() string {
	if v := argument("--service-cluster"); v != "" {
		return v
	}
	workload, namespace := os.Getenv("ISTIO_META_WORKLOAD_NAME"), os.Getenv("POD_NAMESPACE")
	if workload != "" && namespace != "" {
		return workload + "." + namespace
	}
	return unknownService
}

// argument is that of a flag of the process.
func argument(flag string) string {
	for i, a := range os.Args {
		if v, is := strings.CutPrefix(a, flag+"="); is {
			return v
		}
		if a == flag && i+1 < len(os.Args) {
			return os.Args[i+1]
		}
	}
	return ""
}
