package trpc

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// The messages of trpc.proto, for Google's protobuf: a reader that is not ours.
var (
	schemas       = schema()
	requestSchema = schemas.ByName("RequestProtocol")
	answerSchema  = schemas.ByName("ResponseProtocol")
	initSchema    = schemas.ByName("TrpcStreamInitMeta")
	closeSchema   = schemas.ByName("TrpcStreamCloseMeta")
)

type fieldType = descriptorpb.FieldDescriptorProto_Type

const (
	tString = descriptorpb.FieldDescriptorProto_TYPE_STRING
	tBytes  = descriptorpb.FieldDescriptorProto_TYPE_BYTES
	tUint32 = descriptorpb.FieldDescriptorProto_TYPE_UINT32
	tInt32  = descriptorpb.FieldDescriptorProto_TYPE_INT32
	tSub    = descriptorpb.FieldDescriptorProto_TYPE_MESSAGE
)

func field(name string, number int32, t fieldType) *descriptorpb.FieldDescriptorProto {
	return &descriptorpb.FieldDescriptorProto{
		Name: &name, Number: &number, Type: &t, Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(),
	}
}

func sub(name string, number int32, of string) *descriptorpb.FieldDescriptorProto {
	f := field(name, number, tSub)
	f.TypeName = proto.String(".trpc." + of)
	return f
}

// message with a trans_info of that number, unless it is 0.
func message(name string, transInfo int32, fields ...*descriptorpb.FieldDescriptorProto) *descriptorpb.DescriptorProto {
	d := &descriptorpb.DescriptorProto{Name: &name, Field: fields}
	if transInfo > 0 {
		f := sub("trans_info", transInfo, name+".TransInfoEntry")
		f.Label = descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum()
		d.Field = append(d.Field, f)
		d.NestedType = []*descriptorpb.DescriptorProto{{
			Name: proto.String("TransInfoEntry"), Options: &descriptorpb.MessageOptions{MapEntry: proto.Bool(true)},
			Field: []*descriptorpb.FieldDescriptorProto{field("key", 1, tString), field("value", 2, tBytes)},
		}}
	}
	return d
}

func schema() protoreflect.MessageDescriptors {
	file, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name: proto.String("trpc.proto"), Package: proto.String("trpc"), Syntax: proto.String("proto3"),
		MessageType: []*descriptorpb.DescriptorProto{
			message("RequestProtocol", 9,
				field("version", 1, tUint32), field("call_type", 2, tUint32), field("request_id", 3, tUint32),
				field("timeout", 4, tUint32), field("caller", 5, tBytes), field("callee", 6, tBytes),
				field("func", 7, tBytes), field("message_type", 8, tUint32), field("content_type", 10, tUint32),
				field("content_encoding", 11, tUint32), field("attachment_size", 12, tUint32)),
			message("ResponseProtocol", 8,
				field("version", 1, tUint32), field("call_type", 2, tUint32), field("request_id", 3, tUint32),
				field("ret", 4, tInt32), field("func_ret", 5, tInt32), field("error_msg", 6, tBytes),
				field("message_type", 7, tUint32), field("content_type", 9, tUint32),
				field("content_encoding", 10, tUint32), field("attachment_size", 12, tUint32)),
			message("TrpcStreamInitMeta", 0,
				sub("request_meta", 1, "TrpcStreamInitRequestMeta"), sub("response_meta", 2, "TrpcStreamInitResponseMeta"),
				field("init_window_size", 3, tUint32), field("content_type", 4, tUint32),
				field("content_encoding", 5, tUint32)),
			message("TrpcStreamInitRequestMeta", 5,
				field("caller", 1, tBytes), field("callee", 2, tBytes), field("func", 3, tBytes),
				field("message_type", 4, tUint32)),
			message("TrpcStreamInitResponseMeta", 0, field("ret", 1, tInt32), field("error_msg", 2, tBytes)),
			message("TrpcStreamCloseMeta", 5,
				field("close_type", 1, tInt32), field("ret", 2, tInt32), field("msg", 3, tBytes),
				field("message_type", 4, tUint32), field("func_ret", 6, tInt32)),
		},
	}, nil)
	if err != nil {
		panic(err)
	}
	return file.Messages()
}

// pb is a message that Google's protobuf has read.
type pb struct{ protoreflect.Message }

func (m pb) field(name protoreflect.Name) protoreflect.FieldDescriptor {
	return m.Descriptor().Fields().ByName(name)
}

func (m pb) get(name protoreflect.Name) protoreflect.Value { return m.Get(m.field(name)) }

func (m pb) set(name protoreflect.Name, v any) { m.Set(m.field(name), protoreflect.ValueOf(v)) }

// at returns a message within m that can be written to.
func (m pb) at(name protoreflect.Name) pb { return pb{m.Mutable(m.field(name)).Message()} }

func (m pb) setEntry(key, value string) {
	m.Mutable(m.field("trans_info")).Map().Set(protoreflect.ValueOf(key).MapKey(), protoreflect.ValueOf([]byte(value)))
}

func parse(as protoreflect.MessageDescriptor, b []byte) (pb, error) {
	m := dynamicpb.NewMessage(as)
	err := proto.Unmarshal(b, m)
	return pb{m}, err
}

// sections of a frame: what the protocol has in protobuf, and what follows it.
func sections(t testing.TB, raw []byte) (header, payload []byte) {
	t.Helper()
	require.EqualValues(t, len(raw), binary.BigEndian.Uint32(raw[4:]))
	n := headerSize + int(binary.BigEndian.Uint16(raw[8:]))
	if raw[2] == typeStream {
		require.Equal(t, headerSize, n)
		return raw[n:], nil
	}
	return raw[headerSize:n], raw[n:]
}

// schemaOf returns what the protobuf of a frame is.
func schemaOf(d codecs.Direction, raw []byte) protoreflect.MessageDescriptor {
	switch {
	case raw[2] == typeStream:
		return initSchema
	case d == codecs.ClientToServer:
		return requestSchema
	default:
		return answerSchema
	}
}

// sameBut asserts that after is before with another request id and with mut's
// entries set, as Google's protobuf sees it.
func sameBut(t testing.TB, d codecs.Direction, before, after *codecs.Metadata, id uint64, mut *codecs.Mutation) {
	t.Helper()
	wantHeader, wantPayload := sections(t, before.Raw)
	gotHeader, gotPayload := sections(t, after.Raw)
	require.Equal(t, wantPayload, gotPayload)
	require.Equal(t, before.Raw[:4], after.Raw[:4])
	require.Equal(t, before.Raw[14:16], after.Raw[14:16])
	as := schemaOf(d, before.Raw)
	want, err := parse(as, wantHeader)
	if err != nil {
		return
	}
	got, err := parse(as, gotHeader)
	require.NoError(t, err)
	entries := want
	if as == initSchema {
		entries = want.at("request_meta")
		require.Equal(t, frameID(before.Raw), frameID(after.Raw))
	} else {
		fixed := frameID(before.Raw)
		if fixed != 0 || want.get("request_id").Uint() == 0 {
			fixed = uint32(id)
		}
		require.Equal(t, fixed, frameID(after.Raw))
		want.set("request_id", uint32(id))
	}
	for _, kv := range mut.Entries() {
		entries.setEntry(kv.Key, kv.Value)
	}
	require.True(t, proto.Equal(want.Interface(), got.Interface()), "want %v\ngot  %v", want, got)
}
