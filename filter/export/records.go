package export

import (
	"context"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	otlpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/open_telemetry/v3"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// maxRecords wait, or are on their way.
const maxRecords = 1 << 17

// Logger is where records of logs go.
type Logger struct {
	service  service
	resource []byte // as the field of ResourceLogs
	interval time.Duration
	due      int // bytes that are sent without waiting for more
	label    string
	key      string
}

// Key is the same for loggers that are.
func (l *Logger) Key() string { return l.key }

// ParseLogger judges Envoy's logger that stands at path, but for what its records are made
// of: body, attributes and custom_tags. Faults are [fields.Error]s.
func ParseLogger(m *otlpv3.OpenTelemetryAccessLogConfig, path string) (Logger, error) {
	c := &checker{}
	c.Only(m, path, "common_config", "http_service", "grpc_service", "disable_builtin_labels", "resource_attributes",
		"body", "attributes", "stat_prefix", "log_name", "buffer_flush_interval", "buffer_size_bytes", "custom_tags")
	l := Logger{}
	name, grpcService, interval, size := m.GetLogName(), m.GetGrpcService(), m.GetBufferFlushInterval(), m.GetBufferSizeBytes()
	at := path                              // of what is either here or in common_config
	if o := m.GetCommonConfig(); o != nil { //nolint:staticcheck // Envoy takes it
		at = path + ".common_config"
		c.Only(o, at, "log_name", "grpc_service", "transport_api_version", "buffer_flush_interval", "buffer_size_bytes", "custom_tags")
		if v := o.GetTransportApiVersion(); v != corev3.ApiVersion_AUTO && v != corev3.ApiVersion_V3 {
			c.Add(at+".transport_api_version", "want V3, is %v", v)
		}
		switch {
		case len(m.GetCustomTags()) > 0 && len(o.GetCustomTags()) > 0:
			c.Add(at+".custom_tags", "cannot be beside custom_tags")
		case name != "" || grpcService != nil || interval != nil || size != nil:
			c.Add(at, "cannot be beside log_name, grpc_service, buffer_flush_interval and buffer_size_bytes")
		case m.GetHttpService() != nil && o.GetGrpcService() != nil:
			c.Add(at+".grpc_service", "cannot be beside http_service")
		default:
			name, grpcService, interval, size = o.GetLogName(), o.GetGrpcService(), o.GetBufferFlushInterval(), o.GetBufferSizeBytes()
		}
	}
	if m.GetHttpService() != nil {
		l.service = c.service(grpcService, m.GetHttpService(), path)
	} else {
		l.service = c.service(grpcService, nil, at)
	}
	l.interval = c.Duration(interval, at+".buffer_flush_interval", time.Millisecond, time.Second)
	l.due = c.Number(size, at+".buffer_size_bytes", 0, maxBatchBytes, 16<<10)
	l.label = m.GetStatPrefix()
	if l.label == "" {
		l.label = l.service.String()
	}
	r := &resourcepb.Resource{}
	if !m.GetDisableBuiltinLabels() {
		r.Attributes = builtin(name)
	}
	r.Attributes = append(r.Attributes, m.GetResourceAttributes().GetValues()...)
	b, err := proto.Marshal(r)
	if err != nil {
		c.Add(path+".resource_attributes", "has text that is no UTF-8")
	}
	l.resource = b

	its := proto.Clone(m).(*otlpv3.OpenTelemetryAccessLogConfig)
	its.Body, its.Attributes, its.CustomTags = nil, nil, nil // which are the listeners' own
	if o := its.GetCommonConfig(); o != nil {                //nolint:staticcheck // as above
		o.CustomTags = nil
	}
	l.key = keyOf(its)
	return l, c.Err()
}

// builtin are Envoy's own labels, as far as they are known.
func builtin(log string) []*commonpb.KeyValue {
	all := []*commonpb.KeyValue{attr("log_name", log)}
	for _, l := range [...]struct{ key, flag string }{{"zone_name", "--service-zone"}, {"cluster_name", "--service-cluster"}, {"node_name", "--service-node"}} {
		if v := argument(l.flag); v != "" {
			all = append(all, attr(l.key, v))
		}
	}
	return all
}

// Records takes records of logs on their way to a collector.
type Records struct{ *exporter[[]byte] }

// Offer takes n records from any goroutine, without waiting, or counts them as dropped and
// returns false. Each is a field of OTLP's ScopeLogs. b is not the caller's any longer.
func (r *Records) Offer(b []byte, n int) bool { return r.offer(b, weight{n, len(b)}) }

// OpenRecords returns where the records of a configuration go, whose life that is; see
// [Pool.Open].
func (p *Pool) OpenRecords(to Logger, life Life) *Records {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.records.get(to.Key(), func() *exporter[[]byte] { return p.newRecords(to, life) })
	e.use(life)
	return &Records{e}
}

func (p *Pool) newRecords(to Logger, life Life) *exporter[[]byte] {
	c := &client{service: to.service, method: exportLogs, dial: life.Dial, pool: &p.connections}
	return newExporter(&exporter[[]byte]{
		limits: limits{weight{maxRecords, maxBytes}, weight{maxBatch, to.due}, to.interval},
		state:  state{what: "logs to " + to.service.String(), logf: life.Logf}, items: "records",
		upload: func(ctx context.Context, records [][]byte) (int, error) {
			return c.otlp(ctx, logs(to.resource, records))
		},
		closed: c.close, counts: p.countsOf("logs", to.label),
	})
}

// scopeField is the first field of ScopeLogs: what has made them.
var scopeField = protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType),
	protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), scopeName))

// logs is a request of OTLP's LogsService.
func logs(resource []byte, records [][]byte) []byte {
	scope := len(scopeField)
	for _, r := range records {
		scope += len(r)
	}
	whole := 2 + protowire.SizeBytes(len(resource)) + protowire.SizeBytes(scope)
	b := make([]byte, 0, 1+protowire.SizeBytes(whole))
	b = protowire.AppendVarint(protowire.AppendTag(b, 1, protowire.BytesType), uint64(whole))
	b = protowire.AppendBytes(protowire.AppendTag(b, 1, protowire.BytesType), resource)
	b = protowire.AppendVarint(protowire.AppendTag(b, 2, protowire.BytesType), uint64(scope))
	b = append(b, scopeField...)
	for _, r := range records {
		b = append(b, r...)
	}
	return b
}
