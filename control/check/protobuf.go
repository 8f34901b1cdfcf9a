package check

import (
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/control/fault"
	"github.com/meltemi-mesh/meltemi/control/source"
)

// libprotobuf fills messages from JSON by the rules of Envoy's parser of it,
// which are laxer than those of the specification: a single element may stand
// for a list, lists are flattened, booleans may be strings, enumerators are
// known in any case, wrappers and durations may be objects, and fields may come
// twice but for those of a oneof. What it understands it leaves in its canonical
// form in the tree.
type libprotobuf struct {
	*checker
	// lax: unknown fields are ignored. unordered: fields come in any order.
	lax, unordered bool
}

func (r *libprotobuf) refuseAt(p place, format string, args ...any) {
	r.refuse(p.Line, p.path, format, args...)
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// fields calls each for the fields of an object.
func (p place) fields(each func(key *yaml.Node, value place)) {
	for i := 0; i+1 < len(p.Content); i += 2 {
		k := p.Content[i]
		each(k, place{p.Content[i+1], fault.Join(p.path, k.Value)})
	}
}

// fieldByName knows both names that a field has.
func fieldByName(md protoreflect.MessageDescriptor, name string) protoreflect.FieldDescriptor {
	if fd := md.Fields().ByName(protoreflect.Name(name)); fd != nil {
		return fd
	}
	return md.Fields().ByJSONName(name)
}

// root reads a whole message and validates it.
func (r *libprotobuf) root(p place, m protoreflect.Message) {
	before := len(r.errs)
	if r.message(p, m); len(r.errs) == before {
		r.validate(p, m)
	}
}

func (r *libprotobuf) message(p place, m protoreflect.Message) {
	name := m.Descriptor().FullName()
	switch name {
	case "google.protobuf.Any":
		r.any(p, m)
		return
	case "google.protobuf.Struct":
		if p.Kind != yaml.MappingNode {
			r.refuseAt(p, "want an object")
			return
		}
		r.structure(p)
		r.wellKnown(p, m)
		return
	case "google.protobuf.Value", "google.protobuf.ListValue":
		r.structure(p)
		r.wellKnown(p, m)
		return
	}
	if p.Kind != yaml.MappingNode {
		switch name {
		case "google.protobuf.Duration":
			r.duration(p, m)
			return
		case "google.protobuf.Timestamp", "google.protobuf.FieldMask":
			r.wellKnown(p, m)
			return
		}
		if isWrapper(name) {
			r.singular(p, m.Descriptor().Fields().ByNumber(1), func(v protoreflect.Value) {
				m.Set(m.Descriptor().Fields().ByNumber(1), v)
			})
			return
		}
		r.refuseAt(p, "want an object")
		return
	}
	r.object(p, m, "")
}

// object reads the fields of a message, but for one.
func (r *libprotobuf) object(p place, m protoreflect.Message, but string) {
	md := m.Descriptor()
	chosen := map[protoreflect.FullName]string{}
	given := map[protoreflect.FullName]*yaml.Node{}
	p.fields(func(k *yaml.Node, v place) {
		if k.Value == but && but != "" {
			return
		}
		fd := fieldByName(md, k.Value)
		if fd == nil {
			if r.lax {
				r.note(k.Line, v.path, "unknown field of %s, which Envoy ignores", md.FullName())
			} else {
				r.refuse(k.Line, v.path, "unknown field of %s", md.FullName())
			}
			return
		}
		if od := fd.ContainingOneof(); od != nil && !od.IsSynthetic() && !isNull(v.Node) {
			if other, twice := chosen[od.FullName()]; twice {
				r.refuse(k.Line, v.path, "excludes %s, which is given too", other)
				return
			}
			chosen[od.FullName()] = k.Value
		}
		other := given[fd.FullName()]
		given[fd.FullName()] = v.Node
		if r.unordered && other != nil && (other.Kind != yaml.ScalarNode || other.Tag != v.Tag || other.Value != v.Value) {
			r.refuse(k.Line, v.path, "given twice, in two spellings, of which Envoy takes one or the other")
			return
		}
		r.field(v, m, fd)
	})
}

func (r *libprotobuf) field(p place, m protoreflect.Message, fd protoreflect.FieldDescriptor) {
	switch {
	case isNull(p.Node) && !isValue(fd):
	case fd.IsMap():
		if p.Kind != yaml.MappingNode {
			r.refuseAt(p, "want an object")
			return
		}
		seen, values := map[string]bool{}, m.Mutable(fd).Map()
		p.fields(func(k *yaml.Node, v place) {
			if seen[k.Value] {
				r.refuse(k.Line, v.path, "given twice")
				return
			}
			seen[k.Value] = true
			key, ok := mapKey(k.Value, fd.MapKey())
			if !ok {
				r.refuse(k.Line, v.path, "the name is no %v", fd.MapKey().Kind())
				return
			}
			values.Set(key, values.NewValue())
			if fd.MapValue().Message() == nil {
				r.singular(v, fd.MapValue(), func(v protoreflect.Value) { values.Set(key, v) })
			} else if !isNull(v.Node) {
				r.message(v, values.Get(key).Message())
			}
		})
	case fd.IsList():
		r.list(p, m, fd)
	case fd.Message() != nil:
		r.message(p, m.Mutable(fd).Message())
	default:
		r.singular(p, fd, func(v protoreflect.Value) { m.Set(fd, v) })
	}
}

func isValue(fd protoreflect.FieldDescriptor) bool {
	return fd.Message() != nil && fd.Message().FullName() == "google.protobuf.Value"
}

func mapKey(s string, fd protoreflect.FieldDescriptor) (protoreflect.MapKey, bool) {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(s).MapKey(), true
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(s == "true").MapKey(), s == "true" || s == "false"
	}
	v, ok := integer(s, fd.Kind())
	if !ok {
		return protoreflect.MapKey{}, false
	}
	return v.MapKey(), true
}

func (r *libprotobuf) list(p place, m protoreflect.Message, fd protoreflect.FieldDescriptor) {
	l := m.Mutable(fd).List()
	one := func(e place) {
		switch {
		case fd.Message() == nil && isNull(e.Node):
			l.Append(l.NewElement())
		case fd.Message() == nil:
			r.singular(e, fd, l.Append)
		case isNull(e.Node) && !isValue(fd):
			l.AppendMutable()
		default:
			r.message(e, l.AppendMutable().Message())
		}
	}
	if p.Kind != yaml.SequenceNode {
		element := *p.Node
		one(place{&element, p.path})
		*p.Node = yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Line: p.Line, Column: p.Column, Content: []*yaml.Node{&element}}
		return
	}
	var flat []*yaml.Node
	for _, e := range p.elements() {
		if e.Kind == yaml.SequenceNode && !isValue(fd) {
			r.list(e, m, fd)
			flat = append(flat, e.Content...)
		} else {
			one(e)
			flat = append(flat, e.Node)
		}
	}
	p.Content = flat
}

// singular reads a value that is no message.
func (r *libprotobuf) singular(p place, fd protoreflect.FieldDescriptor, set func(protoreflect.Value)) {
	if isNull(p.Node) {
		return
	}
	n, k := p.Node, fd.Kind()
	number := n.Tag == "!!int" || n.Tag == "!!float"
	text := n.Tag == "!!str"
	var v protoreflect.Value
	ok := n.Kind == yaml.ScalarNode
	want := "want " + article(k)
	switch {
	case !ok:
	case k == protoreflect.BoolKind:
		var b bool
		if b, ok = simpleBool(n.Value); !text {
			ok = n.Tag == "!!bool"
		}
		if want = "want true or false"; ok {
			n.Tag, n.Value = "!!bool", strconv.FormatBool(b)
			v = protoreflect.ValueOfBool(b)
		}
	case k == protoreflect.StringKind:
		if ok = text; number || n.Tag == "!!bool" {
			want += fmt.Sprintf(", not %s: put it in quotes", n.Value)
		}
		v = protoreflect.ValueOfString(n.Value)
	case k == protoreflect.BytesKind:
		var b []byte
		if b, ok = base64Bytes(n.Value); !text {
			ok = false
		}
		want = "want base64"
		v = protoreflect.ValueOfBytes(b)
	case k == protoreflect.EnumKind:
		var e protoreflect.EnumNumber
		if text {
			e, ok = enumerator(n.Value, fd.Enum())
		} else if v, ok = integer(n.Value, protoreflect.Int32Kind); number && ok {
			e = protoreflect.EnumNumber(v.Int())
		} else {
			ok = false
		}
		want = "want one of " + strings.Join(enumerators(fd.Enum()), ", ")
		v = protoreflect.ValueOfEnum(e)
	case k == protoreflect.DoubleKind || k == protoreflect.FloatKind:
		var f float64
		if f, ok = float(n.Value, text, k); !number && !text {
			ok = false
		}
		v = protoreflect.ValueOfFloat64(f)
		if k == protoreflect.FloatKind {
			v = protoreflect.ValueOfFloat32(float32(f))
		}
	default:
		if v, ok = integer(n.Value, k); !number && !text {
			ok = false
		}
	}
	if !ok {
		r.refuseAt(p, "%s", want)
		return
	}
	set(v)
}

func article(k protoreflect.Kind) string {
	switch k {
	case protoreflect.StringKind:
		return "a string"
	case protoreflect.DoubleKind, protoreflect.FloatKind:
		return "a number"
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return fmt.Sprintf("an integer from 0 to %d", uint32(math.MaxUint32))
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return "an integer of 32 bits"
	}
	return "an integer"
}

// simpleBool knows what Abseil takes for a boolean.
func simpleBool(s string) (is, ok bool) {
	switch strings.ToLower(s) {
	case "true", "t", "yes", "y", "1":
		return true, true
	case "false", "f", "no", "n", "0":
		return false, true
	}
	return false, false
}

// base64Bytes decodes either alphabet, with or without padding.
func base64Bytes(s string) ([]byte, bool) {
	s = strings.NewReplacer("-", "+", "_", "/").Replace(s)
	if len(s)%4 == 0 {
		s = strings.TrimSuffix(strings.TrimSuffix(s, "="), "=")
	}
	if strings.ContainsAny(s, "\r\n") {
		return nil, false
	}
	b, err := base64.RawStdEncoding.DecodeString(s)
	return b, err == nil
}

// enumerator finds one by its name in any case, or by its number.
func enumerator(s string, ed protoreflect.EnumDescriptor) (protoreflect.EnumNumber, bool) {
	if v := ed.Values().ByName(protoreflect.Name(s)); v != nil {
		return v.Number(), true
	}
	for i := range ed.Values().Len() {
		if v := ed.Values().Get(i); strings.EqualFold(string(v.Name()), s) {
			return v.Number(), true
		}
	}
	i, err := strconv.ParseInt(strings.TrimSpace(s), 10, 32)
	return protoreflect.EnumNumber(i), err == nil
}

func enumerators(ed protoreflect.EnumDescriptor) (names []string) {
	for i := range ed.Values().Len() {
		names = append(names, string(ed.Values().Get(i).Name()))
	}
	return names
}

func float(s string, quoted bool, k protoreflect.Kind) (float64, bool) {
	switch s {
	case "Infinity":
		return math.Inf(1), quoted
	case "-Infinity":
		return math.Inf(-1), quoted
	}
	f, err := strconv.ParseFloat(hexadecimal(strings.TrimSpace(s)), 64)
	// There is no field in which Envoy takes what is not a number.
	if strings.ContainsAny(s, "_") || math.IsNaN(f) || err != nil && !errors.Is(err, strconv.ErrRange) {
		return 0, false
	}
	return f, k != protoreflect.FloatKind || math.IsInf(f, 0) || !math.IsInf(float64(float32(f)), 0)
}

// integer reads one that may be written as a fraction or with an exponent.
func integer(s string, k protoreflect.Kind) (v protoreflect.Value, ok bool) {
	switch k {
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind, protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		u, err := strconv.ParseUint(strings.TrimPrefix(s, "+"), 10, 64)
		if err != nil {
			var f float64
			if f, ok = whole(s); !ok || f < 0 || f > 1<<54 {
				return v, false
			}
			u = uint64(f)
		}
		if k == protoreflect.Uint32Kind || k == protoreflect.Fixed32Kind {
			return protoreflect.ValueOfUint32(uint32(u)), u <= math.MaxUint32
		}
		return protoreflect.ValueOfUint64(u), true
	}
	i, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		var f float64
		if f, ok = whole(s); !ok || math.Abs(f) > 1<<53 {
			return v, false
		}
		i = int64(f)
	}
	switch k {
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64(i), true
	}
	return protoreflect.ValueOfInt32(int32(i)), math.MinInt32 <= i && i <= math.MaxInt32
}

// hexadecimal adds the exponent that Go wants to see.
func hexadecimal(s string) string {
	if strings.ContainsAny(s, "xX") && !strings.ContainsAny(s, "pP") {
		return s + "p0"
	}
	return s
}

func whole(s string) (float64, bool) {
	f, err := strconv.ParseFloat(hexadecimal(s), 64)
	return f, err == nil && !strings.ContainsAny(s, "_") && f == math.Trunc(f) && !math.IsInf(f, 0)
}

var durationText = regexp.MustCompile(`^(-?[0-9]+)(?:\.([0-9]{1,9}))?s$`)

func (r *libprotobuf) duration(p place, m protoreflect.Message) {
	parts := durationText.FindStringSubmatch(p.Value)
	if p.Kind != yaml.ScalarNode || p.Tag != "!!str" || parts == nil {
		r.refuseAt(p, "want a duration, such as 1.5s")
		return
	}
	seconds, err := strconv.ParseInt(parts[1], 10, 64)
	if most := int64(3652500 * 24 * 60 * 60); err != nil || seconds > most || seconds < -most {
		r.refuseAt(p, "want a duration of at most 10,000 years")
		return
	}
	nanos, _ := strconv.ParseInt((parts[2] + "000000000")[:9], 10, 32) // digits only
	if parts[1][0] == '-' {
		nanos = -nanos
	}
	fields := m.Descriptor().Fields()
	m.Set(fields.ByNumber(1), protoreflect.ValueOfInt64(seconds))
	m.Set(fields.ByNumber(2), protoreflect.ValueOfInt32(int32(nanos)))
}

// structure holds a google.protobuf.Struct's or Value's part against its rules.
func (r *libprotobuf) structure(p place) {
	switch p.Kind {
	case yaml.MappingNode:
		seen := map[string]bool{}
		p.fields(func(k *yaml.Node, v place) {
			if seen[k.Value] {
				r.refuse(k.Line, v.path, "given twice")
				return
			}
			seen[k.Value] = true
			r.structure(v)
		})
	case yaml.SequenceNode:
		for _, e := range p.elements() {
			r.structure(e)
		}
	}
}

// wellKnown reads a message in whose form protojson is as lax as libprotobuf.
func (r *libprotobuf) wellKnown(p place, m protoreflect.Message) {
	v, fault := source.Value(p.Node, p.path)
	if fault != nil {
		r.errs = append(r.errs, fault)
		return
	}
	if raw, ok := r.marshal(v, p); ok {
		if err := protojson.Unmarshal(raw, m.Interface()); err != nil {
			r.refuseAt(p, "want a %s", m.Descriptor().FullName())
		}
	}
}

func isWrapper(n protoreflect.FullName) bool {
	return n.Parent() == "google.protobuf" && strings.HasSuffix(string(n), "Value")
}

// inAny tells whether a message's JSON stands in a field "value" of an Any.
func inAny(n protoreflect.FullName) bool {
	switch n {
	case "google.protobuf.Any", "google.protobuf.Struct", "google.protobuf.Duration", "google.protobuf.Timestamp", "google.protobuf.FieldMask":
		return true
	}
	return isWrapper(n)
}

func (r *libprotobuf) any(p place, m protoreflect.Message) {
	if p.Kind != yaml.MappingNode {
		r.refuseAt(p, "want an object")
		return
	}
	var types []place
	p.fields(func(k *yaml.Node, v place) {
		if k.Value == "@type" {
			types = append(types, v)
		}
	})
	switch {
	case len(types) == 0 && len(p.Content) == 0:
		return
	case len(types) == 0:
		r.refuse(p.Line, fault.Join(p.path, "@type"), "required")
		return
	case len(types) > 1:
		r.refuseAt(types[1], "given twice")
		return
	}
	t := types[0]
	if t.Kind != yaml.ScalarNode || t.Tag != "!!str" {
		r.refuseAt(t, "want a string")
		return
	}
	if strings.LastIndexByte(t.Value, '/') < 1 {
		r.refuseAt(t, "want a host before the type: type.googleapis.com/%s", strings.TrimPrefix(t.Value, "/"))
		return
	}
	a := &anypb.Any{TypeUrl: t.Value}
	defer func() { proto.Merge(m.Interface(), a) }()
	name := protoreflect.FullName(typeName(t.Value))
	if isProxy(t.Value) {
		if !r.serialized {
			r.refuseAt(t, unknownToEnvoy)
		}
		return
	}
	mt, err := protoregistry.GlobalTypes.FindMessageByName(name)
	if err != nil {
		if !mayBeEnvoys(name) {
			r.refuseAt(t, "unknown type %s", name)
		}
		return
	}
	inner := mt.New()
	before := len(r.errs)
	if inAny(name) {
		p.fields(func(k *yaml.Node, v place) {
			switch k.Value {
			case "@type":
			case "value":
				if !isNull(v.Node) || name == "google.protobuf.Value" {
					r.message(v, inner)
				} else if !isWrapper(name) {
					r.refuseAt(v, "want a %s", name)
				}
			default:
				r.refuse(k.Line, v.path, "beside @type there can only be a value")
			}
		})
	} else {
		r.object(p, inner, "@type")
	}
	if strings.HasSuffix(t.Value, typedStruct) {
		r.typedStruct(p)
	}
	if len(r.errs) == before {
		r.validate(p, inner)
		// What cannot be marshalled has been refused.
		a.Value, _ = proto.MarshalOptions{AllowPartial: true}.Marshal(inner.Interface())
	}
}

// typedStruct reads what a TypedStruct holds as the message that it names, which Envoy
// makes of it where an extension is configured. In other places it stays what it is.
func (r *libprotobuf) typedStruct(p place) {
	field := p.path[strings.LastIndexByte(p.path, '.')+1:]
	name := protoreflect.FullName(typeName(p.text("type_url")))
	if !source.SameName(field, "typed_config") && !source.SameName(field, "default_config") || isProxy(string(name)) {
		return
	}
	value, line := p.at("value")
	mt, err := protoregistry.GlobalTypes.FindMessageByName(name)
	switch {
	case err == nil && value.Node != nil:
		r.root(value, mt.New())
	case err == nil: // as if it were empty
		r.root(place{&yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Line: line}, value.path}, mt.New())
	case !mayBeEnvoys(name):
		u, _ := p.at("type_url")
		r.refuseAt(u, "unknown type %s", name)
	}
}

// validate holds a message against the rules that its fields are annotated with.
func (r *libprotobuf) validate(p place, m protoreflect.Message) {
	v, ok := m.Interface().(interface{ ValidateAll() error })
	if !ok {
		return
	}
	r.violations(p, m.Descriptor(), "", v.ValidateAll())
}

func (r *libprotobuf) violations(p place, md protoreflect.MessageDescriptor, path string, err error) {
	var several interface{ AllErrors() []error }
	if errors.As(err, &several) {
		for _, e := range several.AllErrors() {
			r.violations(p, md, path, e)
		}
		return
	}
	var one interface {
		Field() string
		Reason() string
		Cause() error
	}
	if !errors.As(err, &one) {
		return
	}
	name, index, _ := strings.Cut(one.Field(), "[")
	var below protoreflect.MessageDescriptor
	field := name
	if md != nil {
		if fd := goField(md, name); fd != nil {
			field, below = string(fd.Name()), fd.Message()
			if fd.IsMap() {
				below = fd.MapValue().Message()
			}
		}
	}
	at := fault.Join(path, field)
	if index != "" {
		at += "[" + index
	}
	if one.Cause() != nil {
		r.violations(p, below, at, one.Cause())
		return
	}
	r.refuse(source.Line(p.Node, at), behind(p.path, at), "%s", one.Reason())
}

// goField finds the field, or the oneof's, that has a name in Go.
func goField(md protoreflect.MessageDescriptor, name string) protoreflect.FieldDescriptor {
	same := func(n protoreflect.Name) bool {
		return strings.EqualFold(strings.ReplaceAll(string(n), "_", ""), strings.ReplaceAll(name, "_", ""))
	}
	for i := range md.Fields().Len() {
		if fd := md.Fields().Get(i); same(fd.Name()) {
			return fd
		}
	}
	return nil
}
