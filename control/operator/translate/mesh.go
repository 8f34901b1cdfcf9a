package translate

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"
	mesh "istio.io/api/mesh/v1alpha1"
	"sigs.k8s.io/yaml"

	"github.com/meltemi-mesh/meltemi/control/fault"
	"github.com/meltemi-mesh/meltemi/control/ir"
)

const (
	// usualSampling is the share of calls that is traced if nobody has said anything, in
	// percent: istiod's own default. The 0 of a tracing block that does not say it, as
	// Istio's default mesh config has one, is none.
	usualSampling = 1
	// leastSampling is the smallest share that there is.
	leastSampling = 0.01

	tracers    = "envoy.tracers."
	traceTypes = "type.googleapis.com/envoy.config.trace.v3."
	// bootstrapZipkin is the cluster that Istio's bootstrap has for the address in
	// defaultConfig.tracing.zipkin.
	bootstrapZipkin = "zipkin"
	zipkinPath      = "/api/v2/spans"
)

// Configure reads what Istio's mesh config says, in YAML. What of its tracing is left out,
// and why, is told.
func (m *Mesh) Configure(text string) (left fault.List, err error) {
	given := map[string]any{}
	if err := yaml.Unmarshal([]byte(text), &given); err != nil {
		return nil, err
	}
	raw, err := json.Marshal(given)
	if err != nil {
		return nil, err
	}
	c := &mesh.MeshConfig{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, c); err != nil {
		return nil, err
	}
	m.AccessLog, m.AccessLogJSON = c.AccessLogFile, c.AccessLogEncoding == mesh.MeshConfig_JSON
	m.Locality, m.ZoneAware = c.LocalityLbSetting, c.ZoneAwareLbSetting
	m.Ejects = c.GetDefaultTrafficPolicy().GetOutlierDetection() != nil
	r := &tracing{config: c}
	_, said := given["enableTracing"]
	r.provide(c.EnableTracing || !said)
	if r.provider != nil {
		m.Tracing = r.object()
	}
	return r.left, nil
}

// tracing makes MetaProtocolProxy's of a mesh config's.
type tracing struct {
	config       *mesh.MeshConfig
	provider     ir.Object // nil: there is none
	maxTagLength uint32
	left         fault.List
}

// provide finds where spans go: the default provider, or else, if tracing is enabled, what
// proxies are told of at their start.
func (r *tracing) provide(enabled bool) {
	defaults := r.config.GetDefaultProviders().GetTracing()
	if len(defaults) == 0 {
		switch t := r.config.GetDefaultConfig().GetTracing(); {
		case !enabled || t.GetTracer() == nil:
		case t.GetZipkin().GetAddress() != "":
			r.zipkin(ir.Object{"collector_cluster": bootstrapZipkin, "collector_endpoint": zipkinPath, "trace_id_128bit": true})
		default:
			r.left.Add("defaultConfig.tracing", "calls are not traced: want zipkin, or an extension provider opentelemetry or zipkin")
		}
		return
	}
	i := slices.IndexFunc(r.config.ExtensionProviders, func(p *mesh.MeshConfig_ExtensionProvider) bool { return p.Name == defaults[0] })
	if i < 0 {
		r.left.Add("defaultProviders.tracing[0]", "calls are not traced: there is no extension provider %s", defaults[0])
		return
	}
	at := fmt.Sprintf("extensionProviders[%d]", i)
	switch p := r.config.ExtensionProviders[i].Provider.(type) {
	case *mesh.MeshConfig_ExtensionProvider_Opentelemetry:
		r.openTelemetry(p.Opentelemetry, at+".opentelemetry")
	case *mesh.MeshConfig_ExtensionProvider_Zipkin:
		z, at := p.Zipkin, at+".zipkin"
		host, cluster := collector(z.Service, z.Port)
		r.maxTagLength = z.MaxTagLength
		config := ir.Object{
			"trace_id_128bit":   !z.Enable_64BitTraceId,
			"collector_service": httpService(cluster, host, cmp.Or(z.Path, zipkinPath), z.Timeout, r.headers(z.Headers, at+".headers")),
		}
		if z.TraceContextOption == mesh.MeshConfig_ExtensionProvider_ZipkinTracingProvider_USE_B3_WITH_W3C_PROPAGATION {
			config["trace_context_option"] = z.TraceContextOption.String()
		}
		r.zipkin(config)
	default:
		r.left.Add(at, "calls are not traced: want opentelemetry or zipkin")
	}
}

func (r *tracing) zipkin(config ir.Object) {
	config["@type"] = traceTypes + "ZipkinConfig"
	config["collector_endpoint_version"] = "HTTP_JSON"
	config["shared_span_context"] = false
	r.provider = ir.Object{"name": tracers + "zipkin", "typed_config": config}
}

func (r *tracing) openTelemetry(o *mesh.MeshConfig_ExtensionProvider_OpenTelemetryTracingProvider, path string) {
	host, cluster := collector(o.Service, o.Port)
	// Proxies know their own names.
	config := ir.Object{"@type": traceTypes + "OpenTelemetryConfig"}
	if h := o.GetHttp(); h != nil {
		config["http_service"] = httpService(cluster, host, h.Path, h.Timeout, r.headers(h.Headers, path+".http.headers"))
	} else {
		service := ir.Object{"envoy_grpc": ir.Object{"cluster_name": cluster, "authority": host}}
		if t := o.GetGrpc().GetTimeout(); t != nil {
			service["timeout"] = protoDuration(t)
		}
		if headers := r.headers(o.GetGrpc().GetInitialMetadata(), path+".grpc.initialMetadata"); headers != nil {
			service["initial_metadata"] = headers
		}
		config["grpc_service"] = service
	}
	if o.ResourceDetectors.GetEnvironment() != nil || o.ServiceAttributeEnrichment != 0 {
		config["resource_detectors"] = []any{ir.Object{
			"name": "envoy.tracers.opentelemetry.resource_detectors.environment",
			"typed_config": ir.Object{
				"@type": "type.googleapis.com/envoy.extensions.tracers.opentelemetry.resource_detectors.v3.EnvironmentResourceDetectorConfig",
			},
		}}
	}
	if o.ResourceDetectors.GetDynatrace() != nil {
		r.left.Add(path+".resourceDetectors.dynatrace", "is left out")
	}
	if o.Sampling != nil {
		r.left.Add(path+".dynatraceSampler", "is left out: the share of calls that is traced is that of defaultConfig.tracing.sampling")
	}
	r.maxTagLength = o.MaxTagLength
	r.provider = ir.Object{"name": tracers + "opentelemetry", "typed_config": config}
}

// object is the field tracing of MetaProtocolProxy.
func (r *tracing) object() ir.Object {
	t := r.config.GetDefaultConfig().GetTracing()
	share := t.GetSampling()
	switch {
	case share <= 0:
		share = usualSampling
	case share < leastSampling:
		share = leastSampling
	}
	o := ir.Object{"provider": r.provider, "random_sampling": ir.Object{"value": min(share, 100)}}
	if n := max(r.maxTagLength, t.GetMaxPathTagLength()); n > 0 {
		o["max_tag_length"] = int64(n)
	}
	var tags []any
	for _, name := range slices.Sorted(maps.Keys(t.GetCustomTags())) {
		tag := ir.Object{"tag": name}
		switch c := t.CustomTags[name].Type.(type) {
		case *mesh.Tracing_CustomTag_Literal:
			tag["literal"] = ir.Object{"value": c.Literal.Value}
		case *mesh.Tracing_CustomTag_Environment:
			tag["environment"] = ir.Object{"name": c.Environment.Name, "default_value": c.Environment.DefaultValue}
		case *mesh.Tracing_CustomTag_Header:
			tag["request_header"] = ir.Object{"name": c.Header.Name, "default_value": c.Header.DefaultValue}
		default:
			continue
		}
		tags = append(tags, tag)
	}
	if tags != nil {
		o["custom_tags"] = tags
	}
	return o
}

// collector is the host of a provider's service, which may have its namespace before it,
// and Istio's name of its cluster.
func collector(service string, port uint32) (host, cluster string) {
	if _, after, ok := strings.Cut(service, "/"); ok {
		service = after
	}
	return service, fmt.Sprintf("outbound|%d||%s", port, service)
}

// headers are those that go to a collector. One whose value is a variable of istiod's own
// environment is left out.
func (r *tracing) headers(of []*mesh.MeshConfig_ExtensionProvider_HttpHeader, path string) (headers []any) {
	for i, h := range of {
		if h.GetEnvName() != "" {
			r.left.Add(fmt.Sprintf("%s[%d].envName", path, i), "is left out: the environment is istiod's")
			continue
		}
		headers = append(headers, ir.Object{"key": h.Name, "value": h.GetValue()})
	}
	return headers
}

func httpService(cluster, host, path string, timeout *durationpb.Duration, headers []any) ir.Object {
	if timeout == nil {
		timeout = durationpb.New(5 * time.Second) // as istiod's
	}
	s := ir.Object{"http_uri": ir.Object{
		"uri": "http://" + host + "/" + strings.TrimPrefix(path, "/"), "cluster": cluster, "timeout": protoDuration(timeout),
	}}
	var add []any
	for _, h := range headers {
		add = append(add, ir.Object{"header": h, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"})
	}
	if add != nil {
		s["request_headers_to_add"] = add
	}
	return s
}

func protoDuration(d *durationpb.Duration) string {
	b, err := protojson.Marshal(d)
	if err != nil {
		return "0s" // out of range, which the filter's loader refuses
	}
	return strings.Trim(string(b), `"`)
}
