package tracing

import (
	"fmt"
	"math"
	"os"

	tracingv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"go.opentelemetry.io/otel/attribute"

	"github.com/meltemi-mesh/meltemi/filter/fields"
	proxyv1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/v1alpha"
)

const (
	// shares is the whole of which sampling has shares, as Envoy's.
	shares = 10000
	// maxTags are those that a configuration may have.
	maxTags = 64
	// maxTagLength is the most that max_tag_length allows.
	maxTagLength = 1 << 16
)

// Config is a listener's tracing, frozen.
type Config struct {
	// Formats in which it is said where a request stands in a trace.
	Formats Formats
	// Kind of the span of each request.
	Kind Kind
	// SpawnUpstream has requests that are sent have a client's span within theirs.
	SpawnUpstream bool

	client, random, overall uint64 // of shares
	verbose                 bool
	maxLength               int // of text that peers choose
	tags                    []tag
	constant                []attribute.KeyValue // of each span
}

// Formats are how it is said where a request stands in a trace.
type Formats struct {
	// B3 and W3C are written to each request; of both, B3 is read first. What is not
	// written is read, too, behind them, and replaced where it came.
	B3, W3C bool
	// TraceID128 says that ids of new traces have 128 bits, else 64.
	TraceID128 bool
	// SharedSpan says that a server's span has the id of its caller's, if B3 tells that.
	SharedSpan bool
}

// tag is an attribute that a property of the request is the value of.
type tag struct {
	key               attribute.Key
	property, without string
}

// Parse judges the tracing of a configuration, which is at path, but for its provider.
// Faults are [fields.Error]s.
func Parse(t *proxyv1alpha.Tracing, path string) (*Config, error) {
	var f fields.Faults
	share := func(p *typev3.Percent, name string) uint64 {
		v := p.GetValue()
		switch {
		case p == nil:
			return shares
		case !(v >= 0 && v <= 100): // nor NaN
			f.Add(path+"."+name+".value", "must be between 0 and 100, is %v", v)
		case v > 0 && v < 100.0/shares:
			f.Add(path+"."+name+".value", "the smallest share is 0.01, is %v", v)
		}
		return uint64(math.Round(v * shares / 100))
	}
	c := &Config{
		client:        share(t.GetClientSampling(), "client_sampling"),
		random:        share(t.GetRandomSampling(), "random_sampling"),
		overall:       share(t.GetOverallSampling(), "overall_sampling"),
		verbose:       t.GetVerbose(),
		maxLength:     f.Number(t.GetMaxTagLength(), path+".max_tag_length", 1, maxTagLength, 256),
		SpawnUpstream: t.GetSpawnUpstreamSpan().GetValue(),
		constant:      node(os.Getenv),
	}
	if n := len(t.GetCustomTags()); n > maxTags {
		f.Add(path+".custom_tags", "must be at most %d, are %d", maxTags, n)
		return c, f.Err()
	}
	seen := map[string]bool{}
	for i, ct := range t.GetCustomTags() {
		at := fmt.Sprintf("%s.custom_tags[%d]", path, i)
		switch name := ct.GetTag(); {
		case name == "":
			f.Add(at+".tag", "required")
		case seen[name]:
			f.Add(at+".tag", "%q is there twice", name)
		}
		seen[ct.GetTag()] = true
		c.custom(&f, ct, at)
	}
	return c, f.Err()
}

// custom adds a custom tag.
func (c *Config) custom(f *fields.Faults, ct *tracingv3.CustomTag, path string) {
	fixed := func(v string) {
		if v != "" {
			c.constant = append(c.constant, attribute.String(ct.GetTag(), v))
		}
	}
	property := func(name, without, path string) {
		if name == "" {
			f.Add(path, "required")
		}
		c.tags = append(c.tags, tag{attribute.Key(ct.GetTag()), name, without})
	}
	switch t := ct.GetType().(type) {
	case *tracingv3.CustomTag_Literal_:
		if t.Literal.GetValue() == "" {
			f.Add(path+".literal.value", "required")
		}
		fixed(t.Literal.GetValue())
	case *tracingv3.CustomTag_Environment_:
		name := t.Environment.GetName()
		if name == "" {
			f.Add(path+".environment.name", "required")
		}
		v, has := os.LookupEnv(name)
		if !has {
			v = t.Environment.GetDefaultValue()
		}
		fixed(v)
	case *tracingv3.CustomTag_RequestHeader:
		property(t.RequestHeader.GetName(), t.RequestHeader.GetDefaultValue(), path+".request_header.name")
	case *tracingv3.CustomTag_Metadata_:
		path += ".metadata"
		m := t.Metadata
		if m.GetKind() != nil && m.GetKind().GetRequest() == nil {
			f.Add(path+".kind", "only request is supported")
		}
		p := m.GetMetadataKey().GetPath()
		if len(p) != 1 {
			f.Add(path+".metadata_key.path", "want one key, are %d", len(p))
			return
		}
		// What filters have learnt of a request are its properties, whoever asks.
		property(p[0].GetKey(), m.GetDefaultValue(), path+".metadata_key.path[0].key")
	case *tracingv3.CustomTag_Value:
		f.Add(path+".value", "not supported: want literal, environment, request_header or metadata")
	default:
		f.Add(path, "want literal, environment, request_header or metadata")
	}
}

// node is what the environment of an Istio proxy says of it, under the names that Envoy
// and Istio give to that.
func node(env func(string) string) []attribute.KeyValue {
	namespace, pod := env("POD_NAMESPACE"), env("POD_NAME")
	if pod == "" {
		return nil
	}
	first := func(values ...string) string {
		for _, v := range values {
			if v != "" {
				return v
			}
		}
		return ""
	}
	var all []attribute.KeyValue
	for _, kv := range [...]struct{ key, value string }{
		{"node_id", "sidecar~" + env("INSTANCE_IP") + "~" + pod + "." + namespace + "~" + namespace + ".svc.cluster.local"},
		{"istio.canonical_service", first(env("CANONICAL_SERVICE"), env("ISTIO_META_WORKLOAD_NAME"))},
		{"istio.canonical_revision", first(env("CANONICAL_REVISION"), "latest")},
		{"istio.mesh_id", env("ISTIO_META_MESH_ID")},
		{"istio.namespace", namespace},
		{"istio.cluster_id", env("ISTIO_META_CLUSTER_ID")},
	} {
		if kv.value != "" {
			all = append(all, attribute.String(kv.key, kv.value))
		}
	}
	return all
}
