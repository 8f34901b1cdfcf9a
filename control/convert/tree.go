package convert

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/meltemi-mesh/meltemi/control/source"
)

// field is a field's name and value, nil if there is none, or a null.
func field(n *yaml.Node, name string) (key, value *yaml.Node) {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil, nil
	}
	for i := len(n.Content) - 2; i >= 0; i -= 2 { // of JSON's equal names the last counts
		if source.SameName(n.Content[i].Value, name) && n.Content[i+1].ShortTag() != "!!null" {
			return n.Content[i], n.Content[i+1]
		}
	}
	return nil, nil
}

// at is the value at the end of a way of fields.
func at(n *yaml.Node, names ...string) *yaml.Node {
	for _, name := range names {
		_, n = field(n, name)
	}
	return n
}

// text is what a scalar field says, "" if there is none.
func text(n *yaml.Node, name string) string {
	if _, v := field(n, name); v != nil && v.Kind == yaml.ScalarNode {
		return v.Value
	}
	return ""
}

// set gives a field its value, in its place, or at the end if it is new. Equal names, of
// which field takes one, are one then.
func set(n *yaml.Node, name string, value *yaml.Node) {
	for i := 0; i < len(n.Content); i += 2 {
		if key := n.Content[i]; source.SameName(key.Value, name) {
			rest := yaml.Node{Kind: yaml.MappingNode, Content: slices.Clone(n.Content[i+2:])}
			remove(&rest, name)
			n.Content = append(append(n.Content[:i], key, value), rest.Content...)
			return
		}
	}
	n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: name}, value)
}

// remove takes a field away, and returns what it was.
func remove(n *yaml.Node, name string) *yaml.Node {
	_, was := field(n, name)
	kept := n.Content[:0]
	for i := 0; i < len(n.Content); i += 2 {
		if !source.SameName(n.Content[i].Value, name) {
			kept = append(kept, n.Content[i], n.Content[i+1])
		}
	}
	n.Content = kept
	return was
}

// clone is a deep copy.
func clone(n *yaml.Node) *yaml.Node {
	c := *n
	c.Content = make([]*yaml.Node, len(n.Content))
	for i, e := range n.Content {
		c.Content[i] = clone(e)
	}
	return &c
}

// elements are those of a list, each with its path. One that is no list is its own
// only element, as for libprotobuf.
func elements(n *yaml.Node, path string, each func(e *yaml.Node, path string)) {
	switch {
	case n == nil:
	case n.Kind != yaml.SequenceNode:
		each(n, path)
	default:
		for i, e := range n.Content {
			each(e, fmt.Sprintf("%s[%d]", path, i))
		}
	}
}

// asList has a field be a list, and returns it; nil if there is none.
func asList(n *yaml.Node, name string) *yaml.Node {
	k, v := field(n, name)
	if v == nil || v.Kind == yaml.SequenceNode {
		return v
	}
	list := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Content: []*yaml.Node{v}}
	set(n, k.Value, list)
	return list
}

// node is a value in the form of nodes, keys sorted.
func node(v any) *yaml.Node {
	var n yaml.Node
	if err := n.Encode(v); err != nil {
		panic(err) // maps, lists and scalars always can be
	}
	return &n
}

// message is a message in the form of nodes, its fields in their order.
func message(m proto.Message) (*yaml.Node, error) {
	raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(raw, &doc); err != nil {
		return nil, err
	}
	block(doc.Content[0])
	return doc.Content[0], nil
}

// word is a text that is one without quotes too, if it is none of the words of YAML 1.1.
var (
	word  = regexp.MustCompile(`^[A-Za-z_/][^\n]*$`)
	words = regexp.MustCompile(`(?i)^(y|n|yes|no|on|off|true|false|null)$`)
)

// block has nothing in braces, and in quotes what needs them.
func block(n *yaml.Node) {
	n.Style = 0
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str" && (!word.MatchString(n.Value) || words.MatchString(n.Value)) {
		n.Style = yaml.DoubleQuotedStyle
	}
	for _, e := range n.Content {
		block(e)
	}
}

// untagged takes away tags that say how a scalar was read: what is here has been.
func untagged(n *yaml.Node) {
	n.Style &^= yaml.TaggedStyle
	n.Anchor = ""
	for _, e := range n.Content {
		untagged(e)
	}
}

// encode writes a document.
func encode(n *yaml.Node) ([]byte, error) {
	untagged(n)
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(n); err != nil {
		return nil, err
	}
	err := e.Close()
	return b.Bytes(), err
}

// raw is what the filter gets of a configuration.
func raw(n *yaml.Node) ([]byte, *source.Error) {
	v, err := source.Value(n, "")
	if err != nil {
		return nil, err
	}
	b, wrong := json.Marshal(v)
	if wrong != nil { // a number that JSON has not
		return nil, source.Errorf(n.Line, "", "%v", wrong)
	}
	return b, nil
}

// lists has fields that are repeated be lists: libprotobuf takes one element
// without its brackets, and the filter's loader does not.
func lists(n *yaml.Node, md protoreflect.MessageDescriptor) {
	if n.Kind != yaml.MappingNode {
		return
	}
	if md.FullName() == "google.protobuf.Any" {
		mt, err := protoregistry.GlobalTypes.FindMessageByURL(text(n, "@type"))
		if err != nil {
			return
		}
		md = mt.Descriptor()
	}
	for i := 0; i < len(n.Content); i += 2 {
		v := n.Content[i+1]
		fd := md.Fields().ByName(protoreflect.Name(n.Content[i].Value))
		if fd == nil {
			fd = md.Fields().ByJSONName(n.Content[i].Value)
		}
		if fd == nil || v.ShortTag() == "!!null" {
			continue
		}
		if fd.IsList() && v.Kind != yaml.SequenceNode {
			v = &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Line: v.Line, Content: []*yaml.Node{v}}
			n.Content[i+1] = v
		}
		switch {
		case fd.Message() == nil:
		case fd.IsMap():
			if value := fd.MapValue().Message(); value != nil && v.Kind == yaml.MappingNode {
				for j := 1; j < len(v.Content); j += 2 {
					lists(v.Content[j], value)
				}
			}
		case fd.IsList():
			for _, e := range v.Content {
				lists(e, fd.Message())
			}
		default:
			lists(v, fd.Message())
		}
	}
}

// behind puts a path behind another.
func behind(path, rest string) string {
	if path == "" || rest == "" || rest[0] == '[' {
		return path + rest
	}
	return path + "." + rest
}
