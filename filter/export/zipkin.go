package export

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"net/netip"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/attribute"

	"github.com/meltemi-mesh/meltemi/filter/tracing"
)

// zipkinSpan is one of Zipkin's API, version 2. Times are microseconds.
type zipkinSpan struct {
	TraceID        string             `json:"traceId"`
	ID             string             `json:"id"`
	ParentID       string             `json:"parentId,omitempty"`
	Name           string             `json:"name,omitempty"`
	Kind           string             `json:"kind"`
	Timestamp      int64              `json:"timestamp"`
	Duration       int64              `json:"duration"`
	Shared         bool               `json:"shared,omitempty"`
	LocalEndpoint  *zipkinEndpoint    `json:"localEndpoint"`
	RemoteEndpoint *zipkinEndpoint    `json:"remoteEndpoint,omitempty"`
	Annotations    []zipkinAnnotation `json:"annotations,omitempty"`
	Tags           map[string]string  `json:"tags,omitempty"`
}

type zipkinEndpoint struct {
	ServiceName string `json:"serviceName,omitempty"`
	IPv4        string `json:"ipv4,omitempty"`
	IPv6        string `json:"ipv6,omitempty"`
	Port        uint16 `json:"port,omitempty"`
}

type zipkinAnnotation struct {
	Timestamp int64  `json:"timestamp"`
	Value     string `json:"value"`
}

// zipkin sends spans to a collector of Zipkin's.
func (c *client) zipkin(ctx context.Context, spans []*tracing.Span, service string) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	here := &zipkinEndpoint{ServiceName: service}
	all := make([]zipkinSpan, len(spans))
	for i, s := range spans {
		all[i] = zipkinOf(s, here)
	}
	body, err := json.Marshal(all)
	if err != nil {
		return &failure{err: err}
	}
	_, err = c.post(ctx, "application/json", body)
	return err
}

func zipkinOf(s *tracing.Span, here *zipkinEndpoint) zipkinSpan {
	z := zipkinSpan{
		// Ids of 64 bits are told as such.
		TraceID: strings.TrimPrefix(hex.EncodeToString(s.ID[:]), "0000000000000000"), ID: hex.EncodeToString(s.Span[:]),
		Name: s.Name, Kind: "SERVER", Shared: s.Shared, LocalEndpoint: here,
		// One of less than a microsecond has 1, as 0 is unknown.
		Timestamp: s.Start.UnixMicro(), Duration: max(1, s.End.Sub(s.Start).Microseconds()),
		Tags: make(map[string]string, len(s.Attributes)+1),
	}
	if s.Kind == tracing.Client {
		z.Kind = "CLIENT"
	}
	if s.Parent != [8]byte{} {
		z.ParentID = hex.EncodeToString(s.Parent[:])
	}
	peer := zipkinEndpoint{}
	for _, kv := range s.Attributes {
		z.Tags[string(kv.Key)] = kv.Value.String()
		peer.learn(kv)
	}
	if peer != (zipkinEndpoint{}) {
		z.RemoteEndpoint = &peer
	}
	if s.Failed {
		z.Tags["error"] = s.Description
	}
	for i := range s.Events {
		e := &s.Events[i]
		z.Annotations = append(z.Annotations, zipkinAnnotation{e.Time.UnixMicro(), annotation(e)})
	}
	return z
}

// learn takes what OpenTelemetry's attributes tell of a peer.
func (e *zipkinEndpoint) learn(kv attribute.KeyValue) {
	switch kv.Key {
	case "network.peer.address":
		switch ip, err := netip.ParseAddr(kv.Value.AsString()); {
		case err != nil: // a pipe
		case ip.Unmap().Is4():
			e.IPv4 = ip.Unmap().String()
		default:
			e.IPv6 = ip.String()
		}
	case "network.peer.port":
		if n, err := strconv.ParseUint(kv.Value.String(), 10, 16); err == nil {
			e.Port = uint16(n)
		}
	}
}

// annotation is an event, whose attributes Zipkin has no place for, as a text.
func annotation(e *tracing.Event) string {
	var s strings.Builder
	s.WriteString(e.Name)
	for _, kv := range e.Attributes {
		s.WriteString(" " + string(kv.Key) + "=" + kv.Value.String())
	}
	return s.String()
}
