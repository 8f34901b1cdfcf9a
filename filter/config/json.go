package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"
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

func readJSON(raw []byte) (*value, error) {
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

func readValue(d *json.Decoder, raw []byte, path string, depth int) (*value, error) {
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
		v.raw, err = json.Marshal(t)
		return v, err
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
			at := fmt.Sprintf("%s[%d]", path, len(v.values))
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

// checkMessage holds a JSON object against a message's descriptor. protojson
// is as strict, but does not say where in the configuration a fault is.
func checkMessage(v *value, m protoreflect.Message, path string) *Error {
	md := m.Descriptor()
	switch {
	case md.FullName() == "google.protobuf.Any":
		return checkAny(v, path)
	case isWellKnown(md.FullName()):
		return checkLeaf(v, m, path)
	case v.kind != jsonObject:
		return &Error{Path: path, Reason: "want an object"}
	}
	set := map[protoreflect.FullName]string{}
	for i, k := range v.keys {
		at, child := join(path, k), v.values[i]
		fd := md.Fields().ByName(protoreflect.Name(k))
		if fd == nil {
			fd = md.Fields().ByJSONName(k)
		}
		if fd == nil {
			return &Error{Path: at, Reason: "unknown field"}
		}
		if child.kind == jsonNull {
			continue
		}
		if other, twice := set[fd.FullName()]; twice {
			return &Error{Path: at, Reason: "given twice, also as " + other}
		}
		set[fd.FullName()] = k
		if od := fd.ContainingOneof(); od != nil && !od.IsSynthetic() {
			if other, twice := set[od.FullName()]; twice {
				return &Error{Path: at, Reason: "excludes " + other + ", which is given too"}
			}
			set[od.FullName()] = k
		}
		if err := checkField(child, m, fd, at); err != nil {
			return err
		}
	}
	return nil
}

func checkField(v *value, parent protoreflect.Message, fd protoreflect.FieldDescriptor, path string) *Error {
	switch {
	case fd.IsMap():
		if v.kind != jsonObject {
			return &Error{Path: path, Reason: "want an object"}
		}
		if fd.MapValue().Message() == nil {
			break
		}
		for i, k := range v.keys {
			elem := parent.NewField(fd).Map().NewValue().Message()
			if err := checkMessage(v.values[i], elem, fmt.Sprintf("%s[%q]", path, k)); err != nil {
				return err
			}
		}
		return nil
	case fd.IsList():
		if v.kind != jsonArray {
			return &Error{Path: path, Reason: "want a list"}
		}
		for i, e := range v.values {
			at := fmt.Sprintf("%s[%d]", path, i)
			if fd.Message() == nil {
				if err := unmarshalField("["+string(e.raw)+"]", parent, fd, at); err != nil {
					return err
				}
			} else if err := checkMessage(e, parent.NewField(fd).List().NewElement().Message(), at); err != nil {
				return err
			}
		}
		return nil
	case fd.Message() != nil:
		return checkMessage(v, parent.NewField(fd).Message(), path)
	}
	return unmarshalField(string(v.raw), parent, fd, path)
}

// unmarshalField tries one field alone, so that its fault has its path.
func unmarshalField(raw string, parent protoreflect.Message, fd protoreflect.FieldDescriptor, path string) *Error {
	err := protojson.Unmarshal(fmt.Appendf(nil, "{%q:%s}", fd.Name(), raw), parent.New().Interface())
	if err != nil {
		return &Error{Path: path, Reason: cleanProtoError(err)}
	}
	return nil
}

func checkLeaf(v *value, m protoreflect.Message, path string) *Error {
	if err := protojson.Unmarshal(v.raw, m.New().Interface()); err != nil {
		return &Error{Path: path, Reason: cleanProtoError(err)}
	}
	return nil
}

func checkAny(v *value, path string) *Error {
	if v.kind != jsonObject {
		return &Error{Path: path, Reason: "want an object"}
	}
	u, ok := v.get("@type")
	if !ok || u.kind != jsonString {
		return &Error{Path: join(path, "@type"), Reason: "missing"}
	}
	mt, err := protoregistry.GlobalTypes.FindMessageByURL(u.str)
	if err != nil {
		return &Error{Path: join(path, "@type"), Reason: "unknown type " + u.str}
	}
	rest := &value{kind: jsonObject}
	for i, k := range v.keys {
		if k != "@type" {
			rest.keys = append(rest.keys, k)
			rest.values = append(rest.values, v.values[i])
		}
	}
	if isWellKnown(mt.Descriptor().FullName()) {
		return checkLeaf(v, new(anypb.Any).ProtoReflect(), path)
	}
	return checkMessage(rest, mt.New(), path)
}

func isWellKnown(n protoreflect.FullName) bool {
	return strings.HasPrefix(string(n), "google.protobuf.")
}
