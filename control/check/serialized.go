package check

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/meltemi-mesh/meltemi/control/fault"
	"github.com/meltemi-mesh/meltemi/control/source"
)

// serialized judges a bootstrap in protobuf's binary form or in its text form.
// What is in it has no lines.
func (r *Report) serialized(text []byte, binary bool) {
	form, m := "text protobuf", new(bootstrapv3.Bootstrap)
	name := m.ProtoReflect().Descriptor().FullName()
	c := &checker{serialized: true}
	if binary {
		form = "binary protobuf"
		if proto.Unmarshal(text, m) != nil {
			c.refuse(0, "", "want a serialized %s: Envoy goes on with what it could read of this, and says nothing", name)
		}
	} else if err := (prototext.UnmarshalOptions{Resolver: linkedType{protoregistry.GlobalTypes}}).Unmarshal(text, m); err != nil {
		c.refuse(lineOf(err), "", "want the text of an %s: %s", name, reasonOf(err))
	}
	r.Kind = "for Envoy, read as its " + form
	if len(c.errs) == 0 {
		c.unknownFields("", m.ProtoReflect())
	}
	if len(c.errs) == 0 {
		raw, err := protojson.MarshalOptions{UseProtoNames: true, Resolver: anyType{protoregistry.GlobalTypes}}.Marshal(m)
		if err == nil {
			c.root, _ = source.EnvoyJSON(raw) // takes all that protojson writes
			withoutLines(c.root)
			r.Kind = c.document(false) + ", as Envoy reads " + form
		} else {
			c.refuse(0, "", "%s", reasonOf(err))
		}
	}
	r.add(c)
}

// protoError is what protobuf-go puts before its messages, with one kind of space
// or another.
var protoError = regexp.MustCompile(`^proto:[\s\x{a0}]*(?:syntax error )?(?:\(line (\d+):\d+\): )?`)

func lineOf(err error) (line int) {
	if parts := protoError.FindStringSubmatch(err.Error()); parts != nil {
		line, _ = strconv.Atoi(parts[1])
	}
	return line
}

func reasonOf(err error) string { return protoError.ReplaceAllString(err.Error(), "") }

// unknownFields refuses those that no message at m or below has.
func (c *checker) unknownFields(path string, m protoreflect.Message) {
	if n, _, _ := protowire.ConsumeField(m.GetUnknown()); n > 0 {
		c.refuse(0, path, "unknown field %d of %s", n, m.Descriptor().FullName())
	}
	if a, ok := m.Interface().(*anypb.Any); ok {
		mt, err := linkedType{protoregistry.GlobalTypes}.FindMessageByURL(a.TypeUrl)
		if err != nil {
			return
		}
		inner := mt.New()
		if proto.Unmarshal(a.Value, inner.Interface()) != nil {
			c.refuse(0, path, "want a serialized %s", inner.Descriptor().FullName())
			return
		}
		c.unknownFields(path, inner)
		return
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		at := fault.Join(path, string(fd.Name()))
		switch {
		case fd.IsMap() && fd.MapValue().Message() != nil:
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				c.unknownFields(fault.Join(at, k.String()), v.Message())
				return true
			})
		case fd.IsList() && fd.Message() != nil:
			for i := range v.List().Len() {
				c.unknownFields(fmt.Sprintf("%s[%d]", at, i), v.List().Get(i).Message())
			}
		case !fd.IsMap() && fd.Message() != nil:
			c.unknownFields(at, v.Message())
		}
		return true
	})
}

func withoutLines(n *yaml.Node) {
	n.Line, n.Column = 0, 0
	for _, e := range n.Content {
		withoutLines(e)
	}
}

// linkedType finds the types of Envoy's that are linked here.
type linkedType struct{ *protoregistry.Types }

func (t linkedType) FindMessageByURL(url string) (protoreflect.MessageType, error) {
	mt, err := t.Types.FindMessageByURL(url)
	switch {
	case isProxy(url):
		return nil, protoregistry.NotFound
	case err != nil && mayBeEnvoys(protoreflect.FullName(typeName(url))):
		return nil, errors.New("a type of Envoy's that this program does not know: give it YAML, JSON or a binary file")
	}
	return mt, err
}

// anyType finds for every type one. That for those that are not linked is empty:
// what is in them is not looked at.
type anyType struct{ *protoregistry.Types }

func (t anyType) FindMessageByURL(url string) (protoreflect.MessageType, error) {
	if mt, err := t.Types.FindMessageByURL(url); err == nil {
		return mt, nil
	}
	return (*emptypb.Empty)(nil).ProtoReflect().Type(), nil
}
