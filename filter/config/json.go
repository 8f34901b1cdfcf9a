package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meltemi-mesh/meltemi/filter/fields"
)

// maxDepth bounds the nesting of a configuration.
const maxDepth = 100

type jsonKind uint8

const (
	jsonNull jsonKind = iota
	jsonString
	jsonScalar
	jsonArray
	jsonObject
)

// value is one JSON value, read so that duplicate keys show and every part
// knows its own text.
type value struct {
	kind   jsonKind
	raw    []byte
	str    string
	keys   []string
	values []*value // of an object, in the order of keys, or of an array
}

func (v *value) get(key string) (*value, bool) {
	if v.kind == jsonObject {
		for i, k := range v.keys {
			if k == key {
				return v.values[i], true
			}
		}
	}
	return nil, false
}

// typedStruct returns type URL and value when v has the shape of a TypedStruct
// that holds a message.
func (v *value) typedStruct() (typeURL string, inner *value) {
	inner, ok := v.get("value")
	if !ok || inner.kind != jsonObject {
		return "", nil
	}
	for _, k := range []string{"type_url", "typeUrl"} {
		if u, ok := v.get(k); ok && u.kind == jsonString {
			return u.str, inner
		}
	}
	return "", nil
}

func readJSON(raw []byte) (*value, *Error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	v, err := readValue(d, raw, "", 0)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, &Error{Reason: "JSON: something follows the object"}
	}
	return v, nil
}

func readValue(d *json.Decoder, raw []byte, path string, depth int) (*value, *Error) {
	if depth > maxDepth {
		return nil, &Error{Path: path, Reason: "nested too deeply"}
	}
	tok, err := d.Token()
	if err != nil {
		return nil, &Error{Path: path, Reason: "JSON: " + err.Error()}
	}
	v := &value{kind: jsonScalar}
	// Where the value began: the decoder only tells where tokens end.
	start := int(d.InputOffset())
	switch t := tok.(type) {
	case nil:
		v.kind = jsonNull
	case string:
		v.kind, v.str = jsonString, t
		v.raw, _ = json.Marshal(t) // a string can always be
		return v, nil
	case json.Number:
		v.raw = []byte(t.String())
		return v, nil
	case bool:
		v.raw = fmt.Append(nil, t)
		return v, nil
	case json.Delim:
		start--
		seen := map[string]bool{}
		for d.More() {
			at := element(path, len(v.values))
			if t == '{' {
				key, err := d.Token()
				if err != nil {
					return nil, &Error{Path: path, Reason: "JSON: " + err.Error()}
				}
				k, _ := key.(string)
				at = join(path, k)
				if seen[k] {
					return nil, &Error{Path: at, Reason: "given twice"}
				}
				seen[k] = true
				v.keys = append(v.keys, k)
			}
			e, err := readValue(d, raw, at, depth+1)
			if err != nil {
				return nil, err
			}
			v.values = append(v.values, e)
		}
		if _, err := d.Token(); err != nil {
			return nil, &Error{Path: path, Reason: "JSON: " + err.Error()}
		}
		v.kind = jsonArray
		if t == '{' {
			v.kind = jsonObject
		}
		v.raw = raw[start:d.InputOffset()]
		return v, nil
	}
	v.raw = []byte("null")
	return v, nil
}

// shape gathers what is wrong with the fields of a JSON object.
type shape struct{ errs []*Error }

func (s *shape) refuse(path, reason string) {
	s.errs = append(s.errs, &Error{Path: path, Reason: reason})
}

// Shape holds JSON against the fields of a message, and returns what is wrong.
// protojson is as strict, but does not say where a fault is.
func Shape(raw []byte, m proto.Message) []*Error {
	tree, err := readJSON(raw)
	if err != nil {
		return []*Error{err}
	}
	var s shape
	s.message(tree, m.ProtoReflect(), "")
	return s.errs
}

func (s *shape) message(v *value, m protoreflect.Message, path string) {
	md := m.Descriptor()
	switch {
	case md.FullName() == "google.protobuf.Any":
		s.any(v, path)
		return
	case isWellKnown(md.FullName()):
		s.leaf(v, m, path)
		return
	case v.kind != jsonObject:
		s.refuse(path, "want an object")
		return
	}
	set := map[protoreflect.FullName]string{}
	for i, k := range v.keys {
		at, child := join(path, k), v.values[i]
		fd := md.Fields().ByName(protoreflect.Name(k))
		if fd == nil {
			fd = md.Fields().ByJSONName(k)
		}
		if fd == nil {
			s.refuse(at, "unknown field")
			continue
		}
		if child.kind == jsonNull {
			continue
		}
		if other, twice := set[fd.FullName()]; twice {
			s.refuse(at, "given twice, also as "+other)
			continue
		}
		set[fd.FullName()] = k
		if od := fd.ContainingOneof(); od != nil && !od.IsSynthetic() {
			if other, twice := set[od.FullName()]; twice {
				s.refuse(at, "excludes "+other+", which is given too")
				continue
			}
			set[od.FullName()] = k
		}
		s.field(child, m, fd, at)
	}
}

func (s *shape) field(v *value, parent protoreflect.Message, fd protoreflect.FieldDescriptor, path string) {
	switch {
	case fd.IsMap():
		if v.kind != jsonObject {
			s.refuse(path, "want an object")
			return
		}
		if fd.MapValue().Message() == nil {
			break
		}
		for i, k := range v.keys {
			elem := parent.NewField(fd).Map().NewValue().Message()
			s.message(v.values[i], elem, fmt.Sprintf("%s[%q]", path, k))
		}
		return
	case fd.IsList():
		if v.kind != jsonArray {
			s.refuse(path, "want a list")
			return
		}
		for i, e := range v.values {
			at := fmt.Sprintf("%s[%d]", path, i)
			if fd.Message() == nil {
				s.alone(e, "["+string(e.raw)+"]", parent, fd, at)
			} else {
				s.message(e, parent.NewField(fd).List().NewElement().Message(), at)
			}
		}
		return
	case fd.Message() != nil:
		s.message(v, parent.NewField(fd).Message(), path)
		return
	}
	s.alone(v, string(v.raw), parent, fd, path)
}

// alone tries one field alone, so that its fault has its path.
func (s *shape) alone(v *value, raw string, parent protoreflect.Message, fd protoreflect.FieldDescriptor, path string) {
	if s.inexact(v, fd.Kind(), path) {
		return
	}
	err := protojson.Unmarshal(fmt.Appendf(nil, "{%q:%s}", fd.Name(), raw), parent.New().Interface())
	if err != nil {
		s.refuse(path, fields.CleanError(err))
	}
}

// inexact refuses a number for a field of 64 bits that a double may have
// rounded: hosts keep the numbers of a google.protobuf.Struct so.
func (s *shape) inexact(v *value, k protoreflect.Kind, path string) bool {
	switch k {
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind, protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
	default:
		return false
	}
	f, err := strconv.ParseFloat(string(v.raw), 64)
	if v.kind != jsonScalar || err != nil || math.Abs(f) < 1<<53 {
		return false
	}
	s.refuse(path, "a number beyond 2^53-1 may have been rounded: write it as a string")
	return true
}

func (s *shape) leaf(v *value, m protoreflect.Message, path string) {
	switch m.Interface().(type) {
	case *wrapperspb.Int64Value, *wrapperspb.UInt64Value:
		if s.inexact(v, protoreflect.Int64Kind, path) {
			return
		}
	}
	if err := protojson.Unmarshal(v.raw, m.New().Interface()); err != nil {
		s.refuse(path, fields.CleanError(err))
	}
}

func (s *shape) any(v *value, path string) {
	if v.kind != jsonObject {
		s.refuse(path, "want an object")
		return
	}
	u, ok := v.get("@type")
	if !ok || u.kind != jsonString {
		s.refuse(join(path, "@type"), "missing")
		return
	}
	mt, err := protoregistry.GlobalTypes.FindMessageByURL(u.str)
	if err != nil {
		s.refuse(join(path, "@type"), "unknown type "+u.str)
		return
	}
	rest := &value{kind: jsonObject}
	for i, k := range v.keys {
		if k != "@type" {
			rest.keys = append(rest.keys, k)
			rest.values = append(rest.values, v.values[i])
		}
	}
	if isWellKnown(mt.Descriptor().FullName()) {
		s.leaf(v, new(anypb.Any).ProtoReflect(), path)
		return
	}
	s.message(rest, mt.New(), path)
}

func isWellKnown(n protoreflect.FullName) bool {
	return strings.HasPrefix(string(n), "google.protobuf.")
}
