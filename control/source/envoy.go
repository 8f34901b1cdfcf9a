package source

import (
	"bytes"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/meltemi-mesh/meltemi/control/fault"
)

// maxNesting is how deeply Envoy's JSON parser, through which its YAML goes too,
// lets lists and objects be nested.
const maxNesting = 100

// maxAliased bounds what aliases add to the nodes of a document, of which there
// are no more than it has bytes.
const maxAliased = 1 << 16

// IsYAML tells whether Envoy reads a file of that name as YAML; if not, as JSON.
func IsYAML(name string) bool {
	name = strings.ToLower(name)
	return strings.HasSuffix(name, ".yaml") || strings.HasSuffix(name, ".yml")
}

// Envoy reads YAML as Envoy does. What comes back has no aliases, merge keys or
// tags of its own; scalars are in the canonical form of JSON, with the tag
// !!null, !!bool, !!int, !!float or !!str. Notes tell what Envoy ignores
// without a word. Of a file without a document the node is nil.
//
// The rules are yaml-cpp's and those by which Envoy turns its nodes into a
// google.protobuf.Value: yes, no, on and off are booleans, octal numbers begin
// with 0, fractions and whatever does not fit into an int32 are strings, a
// scalar with a tag other than "!" is read as if it were plain, keys tagged
// !ignore are dropped, and the last of equal keys counts.
func Envoy(text []byte) (root *yaml.Node, notes Errors, fault *Error) {
	if i := bytes.IndexByte(text, 0); i >= 0 && !isUTF16(text) {
		return nil, nil, Errorf(1+bytes.Count(text[:i], []byte("\n")), "", "a null character")
	}
	text = printable(text)
	d := yaml.NewDecoder(bytes.NewReader(text))
	first, fault := document(d)
	if fault != nil {
		other := asGoYAML(text)
		again := yaml.NewDecoder(bytes.NewReader(other))
		if n, still := document(again); still == nil {
			text, d, first, fault = other, again, n, nil
		}
	}
	if fault != nil || first == nil {
		return nil, nil, fault
	}
	r := &reader{text: text, left: len(text) + maxAliased, by: "Envoy", scalar: yamlCPP, ignores: true}
	root, fault = r.read(first, nil, 0)
	if more, behind := document(d); more != nil {
		r.note(more.Line, "", "Envoy reads the first document of a file only")
	} else if behind != nil {
		r.note(behind.Line, "", "Envoy reads the first document of a file only")
	}
	return root, r.notes, fault
}

func isUTF16(text []byte) bool {
	return bytes.HasPrefix(text, []byte("\xff\xfe")) || bytes.HasPrefix(text, []byte("\xfe\xff"))
}

// printable replaces what go-yaml does not take for characters, but yaml-cpp
// does, and line breaks that YAML 1.1 alone knows.
func printable(text []byte) []byte {
	if isUTF16(text) {
		return text
	}
	return bytes.Map(func(c rune) rune {
		switch {
		case c == '\t' || c == '\n' || c == '\r':
			return c
		case c < ' ' || c >= 0x7f && c < 0xa0 || c == '\u2028' || c == '\u2029':
			return utf8.RuneError
		}
		return c
	}, text)
}

// rewrites turn what yaml-cpp takes and go-yaml refuses into what means the same
// to go-yaml.
var rewrites = []struct {
	what *regexp.Regexp
	by   string
}{
	// The directive of YAML 1.2.
	{regexp.MustCompile(`^((?:[ \t]*(?:#[^\n]*)?\r?\n)*)%YAML[ \t]+1\.[0-9]+[ \t]*(?:#[^\n]*)?\r?\n`), "$1\n"},
	// A tab behind a dash.
	{regexp.MustCompile(`(?m)^( *(?:- +)*-)\t([^\s\-?:#][^:\r\n]*)$`), "$1 $2"},
	// A tag that an end of flow follows.
	{regexp.MustCompile(`([\s\[{,]![^\s,\[\]{}"']*)([,\]}])`), "$1 $2"},
	// Nothing between two commas, twice as matches do not overlap.
	{regexp.MustCompile(`([\[{,]\s*),`), "$1~,"},
	{regexp.MustCompile(`([\[{,]\s*),`), "$1~,"},
	// Nothing before a colon.
	{regexp.MustCompile(`(?m)((?:^ *|[\[{,][ \t]*)):([ \t])`), "$1~ :$2"},
	// A plain scalar in flow that begins with a colon.
	{regexp.MustCompile(`((?:[\[{,]|: )[ \t]*)(:[^\s,\[\]{}"']*)([,\]}])`), `$1"$2"$3`},
}

var (
	anchor       = regexp.MustCompile(`(?m)((?:^|[:\-?]|[\[{,]|![^\s,\[\]{}]*)[ \t]*[&*])([^\s,\[\]{}'"]+)`)
	notWord      = regexp.MustCompile(`[^0-9A-Za-z_-]`)
	doubleQuoted = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)
	escape       = regexp.MustCompile(`\\.`)
)

// asGoYAML applies the rewrites, and gives anchors names that are words and the
// escape \/ another form. The number of lines stays.
func asGoYAML(text []byte) []byte {
	for _, r := range rewrites {
		text = r.what.ReplaceAll(text, []byte(r.by))
	}
	text = anchor.ReplaceAllFunc(text, func(s []byte) []byte {
		m := anchor.FindSubmatch(s)
		name := notWord.ReplaceAllFunc(m[2], func(c []byte) []byte { return fmt.Appendf(nil, "-%x-", c) })
		return append(slices.Clip(m[1]), name...)
	})
	return doubleQuoted.ReplaceAllFunc(text, func(s []byte) []byte {
		return escape.ReplaceAllFunc(s, func(e []byte) []byte {
			if e[1] == '/' {
				return []byte(`\x2f`)
			}
			return e
		})
	})
}

// step is the last one of a path: to a field, or with no name to an element.
type step struct {
	up    *step
	name  *yaml.Node
	index int
}

func (s *step) String() string {
	switch {
	case s == nil:
		return ""
	case s.name == nil:
		return fmt.Sprintf("%s[%d]", s.up, s.index)
	}
	return fault.Join(s.up.String(), s.name.Value)
}

// reader copies a document, with every scalar as somebody else reads it.
type reader struct {
	text  []byte
	lines [][]byte
	// line and column are of the node at which split was last, and offset is its place in
	// the line: a file may be one line.
	line, column, offset int
	left                 int
	notes                Errors
	// by is whose rules these are.
	by string
	// scalar turns a scalar, known to be none that has to be a string, into its
	// canonical form.
	scalar func(n *yaml.Node) (tag, value, reason string)
	// ignores tells whether keys can be tagged !ignore, merges whether << is a
	// merge key.
	ignores, merges bool
}

func (r *reader) note(line int, path, format string, args ...any) {
	r.notes = append(r.notes, Errorf(line, path, format, args...))
}

func (r *reader) read(n *yaml.Node, path *step, depth int) (*yaml.Node, *Error) {
	line := n.Line
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if r.left--; r.left < 0 {
		return nil, Errorf(line, path.String(), "the document is too large")
	}
	c := &yaml.Node{Kind: n.Kind, Style: n.Style, Line: line, Column: n.Column}
	if n.Kind == yaml.ScalarNode {
		var reason string
		c.Tag, c.Value = "!!str", n.Value
		if !r.isString(n) {
			c.Tag, c.Value, reason = r.scalar(n)
		}
		if reason != "" {
			return nil, Errorf(line, path.String(), "%s", reason)
		}
		return c, nil
	}
	if depth++; depth > maxNesting {
		return nil, Errorf(line, path.String(), "nested too deeply")
	}
	if n.Kind == yaml.SequenceNode {
		c.Tag = "!!seq"
		for i, e := range n.Content {
			v, fault := r.read(e, &step{up: path, index: i}, depth)
			if fault != nil {
				return nil, fault
			}
			c.Content = append(c.Content, v)
		}
		return c, nil
	}
	c.Tag = "!!map"
	return c, r.mapping(n, c, map[string]known{}, path, depth, false)
}

// known is where a field is, and whether it comes by a merge key.
type known struct {
	index  int
	merged bool
}

// mapping adds the fields of n to those of c, whose places are in at.
func (r *reader) mapping(n, c *yaml.Node, at map[string]known, path *step, depth int, merged bool) *Error {
	if r.left--; r.left < 0 {
		return Errorf(n.Line, path.String(), "the document is too large")
	}
	for i := 0; i < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		line := k.Line
		if k.Kind == yaml.AliasNode && r.ignores && bytes.HasPrefix(r.at(k), []byte("*"+k.Value+":")) {
			return Errorf(line, path.String(), "unknown anchor '%s:' referenced", k.Value)
		}
		for k.Kind == yaml.AliasNode {
			k = k.Alias
		}
		switch {
		case r.ignores && k.Tag == "!ignore":
			continue
		case r.ignores && n.Style&yaml.FlowStyle != 0 && bytes.HasSuffix(r.before(k), []byte("?")):
			return Errorf(line, path.String(), "a name in braces cannot begin with ?")
		case k.Kind != yaml.ScalarNode:
			return Errorf(line, path.String(), "want a name as the key")
		case r.merges && k.Tag == "!!merge":
			if fault := r.merge(v, c, at, path, depth); fault != nil {
				return fault
			}
			continue
		}
		name := k.Value
		switch {
		case r.merges && !r.isString(k): // a number is written in its canonical form
			tag, value, reason := r.scalar(k)
			if tag == "!!null" {
				reason = "want a name as the key"
			}
			if reason != "" {
				return Errorf(line, fault.Join(path.String(), name), "%s", reason)
			}
			name = value
		case k.Tag == "!!null" && k.Style == 0:
			name = "null"
		}
		key := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: name, Line: line, Column: k.Column}
		value, fault := r.read(v, &step{up: path, name: key}, depth)
		if fault != nil {
			return fault
		}
		old, twice := at[name]
		if !twice {
			at[name] = known{len(c.Content), merged}
			c.Content = append(c.Content, key, value)
			continue
		}
		if !merged && !old.merged {
			r.note(line, (&step{up: path, name: key}).String(), "given twice: %s takes the last", r.by)
		}
		at[name] = known{old.index, merged}
		c.Content[old.index], c.Content[old.index+1] = key, value
	}
	return nil
}

// merge adds what the value of a merge key has.
func (r *reader) merge(v, c *yaml.Node, at map[string]known, path *step, depth int) *Error {
	for v.Kind == yaml.AliasNode {
		v = v.Alias
	}
	if depth > maxNesting {
		return Errorf(v.Line, path.String(), "nested too deeply")
	}
	switch v.Kind {
	case yaml.MappingNode:
		return r.mapping(v, c, at, path, depth+1, true)
	case yaml.SequenceNode: // the first has precedence
		for i := len(v.Content) - 1; i >= 0; i-- {
			if e := v.Content[i]; e.Kind != yaml.AliasNode && e.Kind != yaml.MappingNode {
				break
			}
			if fault := r.merge(v.Content[i], c, at, path, depth+1); fault != nil {
				return fault
			}
		}
		return nil
	}
	return Errorf(v.Line, path.String(), "a merge key wants an object or a list of objects")
}

// isString tells whether a scalar is a string whatever it looks like: it is
// quoted, or has the tag "!".
func (r *reader) isString(n *yaml.Node) bool {
	if n.Style&yaml.TaggedStyle != 0 {
		return false
	}
	if n.Style != 0 {
		return true
	}
	return r.bang(n)
}

// at is the text from the beginning of a node to the end of the line.
func (r *reader) at(n *yaml.Node) []byte {
	_, behind := r.split(n)
	return behind
}

// before is the text of its line before a node.
func (r *reader) before(n *yaml.Node) []byte {
	before, _ := r.split(n)
	return before
}

// split cuts the line in which a node begins there.
func (r *reader) split(n *yaml.Node) (before, behind []byte) {
	if r.lines == nil {
		r.lines = bytes.SplitAfter(r.text, []byte("\n"))
	}
	if n.Line < 1 || n.Line > len(r.lines) {
		return nil, nil
	}
	if n.Line != r.line || n.Column < r.column {
		r.line, r.column, r.offset = n.Line, 1, 0
	}
	line := r.lines[n.Line-1]
	for ; r.column < n.Column; r.column++ {
		_, size := utf8.DecodeRune(line[r.offset:])
		r.offset += size
	}
	return line[:r.offset], line[r.offset:]
}

// bang tells whether a scalar has the tag "!", which the parser does not tell.
func (r *reader) bang(n *yaml.Node) bool {
	s := r.at(n)
	if len(s) > 0 && s[0] == '&' {
		end := bytes.IndexAny(s, " \t")
		if end < 0 {
			return false
		}
		s = bytes.TrimLeft(s[end:], " \t")
	}
	return len(s) > 0 && s[0] == '!' && (len(s) == 1 || strings.IndexByte(" \t\r\n,]}", s[1]) >= 0)
}

var cppInt = regexp.MustCompile(`^[+-]?(0[xX][0-9a-fA-F]+|[0-9]+)[ \t\n]*$`)

// yamlCPP reads a scalar by the first of yaml-cpp's conversions that takes it, of
// those that Envoy asks for: to a boolean, an int64, a string.
func yamlCPP(n *yaml.Node) (tag, value, reason string) {
	s := n.Value
	if n.Style&yaml.TaggedStyle == 0 {
		switch s {
		case "", "~", "null", "Null", "NULL":
			return "!!null", "null", ""
		}
	}
	if b, ok := flexibleBool(s); ok {
		return "!!bool", strconv.FormatBool(b), ""
	}
	if cppInt.MatchString(s) {
		// Base 0, in which Go knows forms that C does not: 0b1, 0o1, 1_0.
		if i, err := strconv.ParseInt(strings.TrimRight(s, " \t\n"), 0, 64); err == nil {
			if i < math.MinInt32 || i > math.MaxInt32 {
				return "!!str", strconv.FormatInt(i, 10), ""
			}
			return "!!int", strconv.FormatInt(i, 10), ""
		}
	}
	return "!!str", s, ""
}

// flexibleBool knows the booleans of YAML 1.1, in lower case, in upper case, and
// capitalized.
func flexibleBool(s string) (is, ok bool) {
	if l := strings.ToLower(s); s != l && s != strings.ToUpper(s) && s != strings.ToUpper(s[:1])+l[1:] {
		return false, false
	}
	switch strings.ToLower(s) {
	case "y", "yes", "true", "on":
		return true, true
	case "n", "no", "false", "off":
		return false, true
	}
	return false, false
}
