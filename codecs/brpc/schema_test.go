package brpc

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// The schemas of metas, for Google's protobuf: a reader that is not ours.
var (
	brpcMeta   = schema(false)
	javaMeta   = schema(true)
	streamMeta = brpcMeta.ParentFile().Messages().ByName("StreamFrameMeta")
)

func field(name string, number int32, t descriptorpb.FieldDescriptorProto_Type, of string) *descriptorpb.FieldDescriptorProto {
	f := &descriptorpb.FieldDescriptorProto{
		Name: &name, Number: &number, Type: &t,
		Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(),
	}
	if of != "" {
		f.TypeName = proto.String(".brpc." + of)
	}
	return f
}

func repeated(f *descriptorpb.FieldDescriptorProto) *descriptorpb.FieldDescriptorProto {
	f.Label = descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum()
	return f
}

func message(name string, fields ...*descriptorpb.FieldDescriptorProto) *descriptorpb.DescriptorProto {
	return &descriptorpb.DescriptorProto{Name: &name, Field: fields}
}

// schema returns RpcMeta as brpc has it, or with brpc-java's extension fields.
func schema(java bool) protoreflect.MessageDescriptor {
	const (
		tString = descriptorpb.FieldDescriptorProto_TYPE_STRING
		tBytes  = descriptorpb.FieldDescriptorProto_TYPE_BYTES
		tInt32  = descriptorpb.FieldDescriptorProto_TYPE_INT32
		tInt64  = descriptorpb.FieldDescriptorProto_TYPE_INT64
		tBool   = descriptorpb.FieldDescriptorProto_TYPE_BOOL
		tSub    = descriptorpb.FieldDescriptorProto_TYPE_MESSAGE
	)
	seven := field("request_id", 7, tString, "")
	if java {
		seven = repeated(field("ext_fields", 7, tSub, "ExtField"))
	}
	userFields := message("UserFieldsEntry", field("key", 1, tString, ""), field("value", 2, tString, ""))
	userFields.Options = &descriptorpb.MessageOptions{MapEntry: proto.Bool(true)}
	meta := message("RpcMeta",
		field("request", 1, tSub, "RpcRequestMeta"),
		field("response", 2, tSub, "RpcResponseMeta"),
		field("compress_type", 3, tInt32, ""),
		field("correlation_id", 4, tInt64, ""),
		field("attachment_size", 5, tInt32, ""),
		field("chunk_info", 6, tSub, "ChunkInfo"),
		field("authentication_data", 7, tBytes, ""),
		field("stream_settings", 8, tSub, "StreamSettings"),
		repeated(field("user_fields", 9, tSub, "RpcMeta.UserFieldsEntry")),
	)
	meta.NestedType = []*descriptorpb.DescriptorProto{userFields}
	file, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name: proto.String("meta.proto"), Package: proto.String("brpc"), Syntax: proto.String("proto2"),
		MessageType: []*descriptorpb.DescriptorProto{
			meta,
			message("RpcRequestMeta",
				field("service_name", 1, tString, ""),
				field("method_name", 2, tString, ""),
				field("log_id", 3, tInt64, ""),
				field("trace_id", 4, tInt64, ""),
				field("span_id", 5, tInt64, ""),
				field("parent_span_id", 6, tInt64, ""),
				seven,
				field("timeout_ms", 8, tInt32, ""),
			),
			message("ExtField", field("key", 1, tString, ""), field("value", 2, tString, "")),
			message("RpcResponseMeta", field("error_code", 1, tInt32, ""), field("error_text", 2, tString, "")),
			message("ChunkInfo", field("stream_id", 1, tInt64, ""), field("chunk_id", 2, tInt64, "")),
			message("StreamSettings",
				field("stream_id", 1, tInt64, ""),
				field("need_feedback", 2, tBool, ""),
				field("writable", 3, tBool, ""),
				repeated(field("extra_stream_ids", 4, tInt64, "")),
			),
			message("StreamFrameMeta",
				field("stream_id", 1, tInt64, ""),
				field("source_stream_id", 2, tInt64, ""),
				field("frame_type", 3, tInt32, ""),
				field("has_continuation", 4, tBool, ""),
				field("feedback", 5, tSub, "Feedback"),
			),
			message("Feedback", field("consumed_size", 1, tInt64, "")),
		},
	}, nil)
	if err != nil {
		panic(err)
	}
	return file.Messages().ByName("RpcMeta")
}

// pb is a message that Google's protobuf has read.
type pb struct{ protoreflect.Message }

func (m pb) sub(name protoreflect.Name) pb {
	return pb{m.Get(m.Descriptor().Fields().ByName(name)).Message()}
}

func (m pb) get(name protoreflect.Name) protoreflect.Value {
	return m.Get(m.Descriptor().Fields().ByName(name))
}

func (m pb) set(name protoreflect.Name, v any) {
	m.Set(m.Descriptor().Fields().ByName(name), protoreflect.ValueOf(v))
}

// at returns a message within m that can be written to.
func (m pb) at(name protoreflect.Name) pb {
	return pb{m.Mutable(m.Descriptor().Fields().ByName(name)).Message()}
}

// sections of a PRPC frame, which may stand in a stream's frame.
func sections(t testing.TB, raw []byte) (outside, meta, payload []byte) {
	t.Helper()
	if string(raw[:4]) == magicStream {
		require.EqualValues(t, len(raw)-headerSize, binary.BigEndian.Uint32(raw[4:]))
		n := headerSize + int(binary.BigEndian.Uint32(raw[8:]))
		outside, raw = raw[8:n], raw[n:]
	}
	require.Equal(t, magicRPC, string(raw[:4]))
	require.EqualValues(t, len(raw)-headerSize, binary.BigEndian.Uint32(raw[4:]))
	n := headerSize + int(binary.BigEndian.Uint32(raw[8:]))
	return outside, raw[headerSize:n], raw[n:]
}

func parse(as protoreflect.MessageDescriptor, b []byte) (pb, error) {
	m := dynamicpb.NewMessage(as)
	err := proto.UnmarshalOptions{AllowPartial: true}.Unmarshal(b, m)
	return pb{m}, err
}

// sameBut asserts that after is before with another correlation id and with
// mut's fields set, as Google's protobuf sees it.
func sameBut(t testing.TB, before, after *codecs.Metadata, id uint64, mut *codecs.Mutation) {
	t.Helper()
	outside, wantMeta, wantPayload := sections(t, before.Raw)
	gotOutside, gotMeta, gotPayload := sections(t, after.Raw)
	require.Equal(t, outside, gotOutside)
	require.Equal(t, wantPayload, gotPayload)
	as := brpcMeta
	if before.Scratch[scratchExtFields] > 0 {
		as = javaMeta
	}
	want, err := parse(as, wantMeta)
	if err != nil {
		return // as it is with a request id among extension fields
	}
	got, err := parse(as, gotMeta)
	require.NoError(t, err)
	// Whether there is an id that is 0 does not matter.
	want.set("correlation_id", int64(id))
	got.set("correlation_id", got.get("correlation_id").Int())
	for _, kv := range mut.Entries() {
		want.Mutable(brpcField(as, "user_fields")).Map().Set(
			protoreflect.ValueOf(kv.Key).MapKey(), protoreflect.ValueOf(kv.Value))
	}
	if as == javaMeta {
		setExtFields(want.at("request"), mut)
	}
	require.True(t, proto.Equal(want.Interface(), got.Interface()), "want %v\ngot  %v", want, got)
}

func brpcField(m protoreflect.MessageDescriptor, name protoreflect.Name) protoreflect.FieldDescriptor {
	return m.Fields().ByName(name)
}

func setExtFields(request pb, mut *codecs.Mutation) {
	list := request.Mutable(brpcField(request.Descriptor(), "ext_fields")).List()
	var keys []string
	for i := range list.Len() {
		keys = append(keys, pb{list.Get(i).Message()}.get("key").String())
	}
	for _, kv := range mut.Entries() {
		if !slices.Contains(keys, kv.Key) {
			list.AppendMutable()
			keys = append(keys, kv.Key)
		}
		for i, key := range keys {
			if key == kv.Key {
				e := dynamicpb.NewMessage(list.NewElement().Message().Descriptor())
				pb{e}.set("key", kv.Key)
				pb{e}.set("value", kv.Value)
				list.Set(i, protoreflect.ValueOf(e.ProtoReflect()))
			}
		}
	}
}
