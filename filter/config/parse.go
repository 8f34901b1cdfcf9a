package config

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	udpav1 "github.com/cncf/xds/go/udpa/type/v1"
	xdsv3 "github.com/cncf/xds/go/xds/type/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meltemi-mesh/meltemi/filter/fields"
	proxyv1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/v1alpha"

	// The types that an Any in the configuration may name.
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/open_telemetry/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/tracers/opentelemetry/resource_detectors/v3"
	_ "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol/codec"
	_ "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/adaptive_concurrency/v1alpha"
	_ "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/connection_limit/v1alpha"
	_ "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/consumer/v1alpha"
	_ "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/ext_authz/v1alpha"
	_ "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/fault/v1alpha"
	_ "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/istio_stats/v1alpha"
	_ "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/local_ratelimit/v1alpha"
	_ "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/lua/v1alpha"
	_ "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/metadata_exchange/v1alpha"
	_ "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/rate_limit_quota/v1alpha"
	_ "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/ratelimit/v1alpha"
	_ "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/rbac/v1alpha"
	_ "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/router/v1alpha"
	_ "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/set_metadata/v1alpha"
)

// maxBytes bounds a configuration; tables larger than that belong on RDS.
const maxBytes = 16 << 20

// Parse recognises the form of raw by its bytes, as the type URL does not
// reach the module in most forms, and decodes it strictly:
//
//   - JSON of the message (a Struct, a StringValue, or what Envoy 1.40 makes of
//     an xds TypedStruct), with field names in snake_case or lowerCamelCase;
//   - JSON or a serialization of a TypedStruct that holds it;
//   - a serialization of the message itself.
//
// A returned error is an *Error.
func Parse(raw []byte) (*proxyv1alpha.MetaProtocolProxy, error) {
	m, errs := parse(raw)
	if len(errs) > 0 {
		return nil, errs[0]
	}
	return m, nil
}

func parse(raw []byte) (*proxyv1alpha.MetaProtocolProxy, []*Error) {
	if len(raw) == 0 {
		return nil, refused("", "the configuration is empty")
	}
	if len(raw) > maxBytes {
		return nil, refused("", "the configuration has %d bytes, at most %d are allowed", len(raw), maxBytes)
	}
	if trimmed := bytes.TrimLeft(raw, " \t\r\n"); len(trimmed) > 0 && trimmed[0] == '{' {
		return parseJSON(raw)
	}
	// The serialization of a TypedStruct is told from that of the message by
	// its first field, a type URL.
	for _, ts := range []typedStruct{new(xdsv3.TypedStruct), new(udpav1.TypedStruct)} {
		if proto.Unmarshal(raw, ts) == nil && strings.Contains(ts.GetTypeUrl(), "/") {
			if err := UnknownFields(ts.ProtoReflect(), ""); err != nil {
				return nil, []*Error{err}
			}
			return fromTypedStruct(ts.GetTypeUrl(), ts.GetValue())
		}
	}
	m := new(proxyv1alpha.MetaProtocolProxy)
	if err := proto.Unmarshal(raw, m); err != nil {
		return nil, refused("", "the bytes are neither JSON nor a serialized MetaProtocolProxy or TypedStruct")
	}
	if err := UnknownFields(m.ProtoReflect(), ""); err != nil {
		err.StatPrefix = m.GetStatPrefix()
		return nil, []*Error{err}
	}
	return m, nil
}

func refused(path, format string, args ...any) []*Error {
	return []*Error{{Path: path, Reason: fmt.Sprintf(format, args...)}}
}

type typedStruct interface {
	proto.Message
	GetTypeUrl() string
	GetValue() *structpb.Struct
}

// checkType refuses a TypedStruct of another message.
func checkType(typeURL string) []*Error {
	want := (*proxyv1alpha.MetaProtocolProxy)(nil).ProtoReflect().Descriptor().FullName()
	if name := typeURL[strings.LastIndexByte(typeURL, '/')+1:]; name != string(want) {
		return refused("type_url", "want %s, got %s", want, name)
	}
	return nil
}

func fromTypedStruct(typeURL string, value *structpb.Struct) (*proxyv1alpha.MetaProtocolProxy, []*Error) {
	if errs := checkType(typeURL); errs != nil {
		return nil, errs
	}
	b, err := protojson.Marshal(value)
	if err != nil {
		return nil, refused("value", "%v", err)
	}
	return parseJSON(b)
}

func parseJSON(raw []byte) (*proxyv1alpha.MetaProtocolProxy, []*Error) {
	tree, fault := readJSON(raw)
	if fault != nil {
		return nil, []*Error{fault}
	}
	for u, v := tree.typedStruct(); v != nil; u, v = tree.typedStruct() {
		if errs := checkType(u); errs != nil {
			return nil, errs
		}
		tree, raw = v, v.raw
	}
	prefix := ""
	for _, k := range []string{"stat_prefix", "statPrefix"} {
		if v, ok := tree.get(k); ok && v.kind == jsonString {
			prefix = v.str
		}
	}
	m := new(proxyv1alpha.MetaProtocolProxy)
	var s shape
	s.message(tree, m.ProtoReflect(), "")
	if len(s.errs) == 0 {
		if err := protojson.Unmarshal(raw, m); err != nil {
			s.refuse("", fields.CleanError(err))
		}
	}
	for _, e := range s.errs {
		e.StatPrefix = prefix
	}
	return m, s.errs
}

// unknownFields refuses what the descriptors do not know.
func UnknownFields(m protoreflect.Message, path string) *Error {
	if u := m.GetUnknown(); len(u) > 0 {
		n, _, _ := protowire.ConsumeTag(u)
		return &Error{Path: join(path, fmt.Sprintf("#%d", n)), Reason: "unknown field of " + string(m.Descriptor().FullName())}
	}
	var found *Error
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		at := join(path, string(fd.Name()))
		switch {
		case fd.IsMap():
			if fd.MapValue().Message() != nil {
				v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
					found = UnknownFields(v.Message(), fmt.Sprintf("%s[%s]", at, cut(k.String())))
					return found == nil
				})
			}
		case fd.Message() == nil:
		case fd.IsList():
			for i := 0; i < v.List().Len() && found == nil; i++ {
				found = UnknownFields(v.List().Get(i).Message(), element(at, i))
			}
		default:
			found = UnknownFields(v.Message(), at)
		}
		return found == nil
	})
	return found
}

// maxPath is where paths are cut: each element of a list has one, however long
// the keys above it are.
const maxPath = 256

func join(path, field string) string {
	if path != "" {
		path = cut(path) + "."
	}
	return cut(path + cut(field))
}

func element(path string, i int) string { return cut(path) + "[" + strconv.Itoa(i) + "]" }

func cut(path string) string {
	if len(path) > maxPath && !strings.HasSuffix(path, "…") {
		return strings.ToValidUTF8(path[:maxPath], "") + "…"
	}
	return path
}
