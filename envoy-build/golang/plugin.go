package golang

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	udpav1 "github.com/cncf/xds/go/udpa/type/v1"
	xdsv3 "github.com/cncf/xds/go/xds/type/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	proxyv1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/v1alpha"
)

// unwrap takes a configuration out of a serialized google.protobuf.Any, in the form in
// which a dynamic module gets it: JSON, a serialized TypedStruct, a serialized message.
func unwrap(plugin []byte) ([]byte, error) {
	var a anypb.Any
	if err := proto.Unmarshal(plugin, &a); err != nil {
		return nil, fmt.Errorf("plugin_config: %w", err)
	}
	if len(a.Value) == 0 {
		return nil, fmt.Errorf("plugin_config: empty: want the configuration of %s", PluginName)
	}
	var m proto.Message
	switch name := a.MessageName(); name {
	case "google.protobuf.StringValue":
		m = &wrapperspb.StringValue{}
	case "google.protobuf.BytesValue":
		m = &wrapperspb.BytesValue{}
	case "google.protobuf.Struct":
		m = &structpb.Struct{}
	case "xds.type.v3.TypedStruct", "udpa.type.v1.TypedStruct", (*proxyv1alpha.MetaProtocolProxy)(nil).ProtoReflect().Descriptor().FullName():
		return a.Value, nil
	default:
		return nil, fmt.Errorf("plugin_config: %s is no type of a configuration: want a TypedStruct, a Struct, a StringValue with JSON, or a MetaProtocolProxy", name)
	}
	if err := proto.Unmarshal(a.Value, m); err != nil {
		return nil, fmt.Errorf("plugin_config: %w", err)
	}
	switch m := m.(type) {
	case *wrapperspb.StringValue:
		return []byte(m.Value), nil
	case *wrapperspb.BytesValue:
		return m.Value, nil
	default:
		return protojson.Marshal(m)
	}
}

// outline is what of a configuration is needed to tell whose it is, and to speak its
// protocol, whatever else is wrong with it: the fields at its top.
func outline(raw []byte) map[string]json.RawMessage {
	text := raw
	if b := bytes.TrimLeft(raw, " \t\r\n"); len(b) == 0 || b[0] != '{' {
		if text = jsonOf(raw); text == nil {
			return nil
		}
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(text, &fields) != nil {
		return nil
	}
	return fields
}

// jsonOf is a serialized TypedStruct or message as JSON, nil if it is neither.
func jsonOf(raw []byte) []byte {
	var b []byte
	for _, ts := range []interface {
		proto.Message
		GetTypeUrl() string
		GetValue() *structpb.Struct
	}{new(xdsv3.TypedStruct), new(udpav1.TypedStruct)} {
		if proto.Unmarshal(raw, ts) == nil && strings.Contains(ts.GetTypeUrl(), "/") {
			b, _ = protojson.Marshal(ts.GetValue())
			return b
		}
	}
	m := &proxyv1alpha.MetaProtocolProxy{}
	if proto.Unmarshal(raw, m) != nil {
		return nil
	}
	b, _ = protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	return b
}

// identity and speech are the fields that tell whose a configuration is, and what it
// speaks, by their names in both spellings.
var (
	identity = [][2]string{{"stat_prefix", "statPrefix"}, {"table_scope", "tableScope"}}
	speech   = [][2]string{{"application_protocol", "applicationProtocol"}, {"protocol", "protocol"}, {"codec", "codec"}, {"protocols", "protocols"}}
)

func pick(fields map[string]json.RawMessage, names [2]string) json.RawMessage {
	if v, ok := fields[names[0]]; ok {
		return v
	}
	return fields[names[1]]
}

// listenerOf names the listener whose version a configuration is: they have the same
// identity. "" if it cannot be told.
func listenerOf(raw []byte) string {
	fields := outline(raw)
	if pick(fields, identity[0]) == nil {
		return ""
	}
	var b strings.Builder
	for _, names := range identity {
		b.Write(pick(fields, names))
		b.WriteByte('\n')
	}
	return b.String()
}

// withoutRoutes is a configuration of the same protocol without any routes, nil if that
// cannot be told.
func withoutRoutes(raw []byte, id uint64) []byte {
	fields := outline(raw)
	if fields == nil {
		return nil
	}
	bare := map[string]any{
		"table_scope":  "refused." + strconv.FormatUint(id, 10),
		"route_config": map[string]any{"name": "refused"},
	}
	for _, names := range append(speech, identity[0]) {
		if v := pick(fields, names); v != nil {
			bare[names[0]] = v
		}
	}
	b, err := json.Marshal(bare)
	if err != nil {
		return nil
	}
	return b
}
