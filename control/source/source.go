// Package source reads YAML, of which JSON is a part, so that every field keeps
// its place: faults are told with the field's path and the line.
package source

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/meltemi-mesh/meltemi/control/fault"
)

// Error is a fault at a place.
type Error struct {
	// Line counts from 1; 0: nothing is known of it.
	Line int
	fault.Fault
}

func (e *Error) Error() string {
	if e.Line > 0 {
		return fmt.Sprintf("%d: %v", e.Line, e.Fault)
	}
	return e.Fault.Error()
}

// Errorf is a fault in a line, of the field at a path.
func Errorf(line int, path, format string, args ...any) *Error {
	return &Error{line, fault.Fault{Path: path, Reason: fmt.Sprintf(format, args...)}}
}

// Errors are faults in the order of their finding.
type Errors []*Error

func (es Errors) Error() string {
	lines := make([]string, len(es))
	for i, e := range es {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

var syntaxError = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// Parse splits a file into its documents, without empty ones.
func Parse(text []byte) (docs []*yaml.Node, fault *Error) {
	d := yaml.NewDecoder(bytes.NewReader(text))
	for {
		n, fault := document(d)
		if fault != nil {
			return nil, fault
		}
		if n == nil {
			return docs, nil
		}
		if n.ShortTag() != "!!null" {
			docs = append(docs, n)
		}
	}
}

// document is the next one, nil at the end.
func document(d *yaml.Decoder) (*yaml.Node, *Error) {
	var n yaml.Node
	switch err := d.Decode(&n); {
	case errors.Is(err, io.EOF) || err == nil && len(n.Content) == 0:
		return nil, nil
	case err != nil:
		e := Errorf(1, "", "%s", syntaxError.ReplaceAllString(err.Error(), ""))
		if m := syntaxError.FindStringSubmatch(err.Error()); m != nil && m[1] != "" {
			e.Line, _ = strconv.Atoi(m[1])
		}
		return nil, e
	}
	return n.Content[0], nil
}

// maxNodes bounds what aliases can make of a document.
const maxNodes = 1 << 20

// Value is a node as encoding/json would have it: map[string]any, []any,
// string, bool, nil, and int64, uint64 or float64. The path of an error begins
// with that of the node.
func Value(n *yaml.Node, path string) (any, *Error) {
	left := maxNodes
	return value(n, path, &left, 0)
}

func value(n *yaml.Node, path string, left *int, depth int) (any, *Error) {
	refuse := func(format string, args ...any) (any, *Error) {
		return nil, Errorf(n.Line, path, format, args...)
	}
	if *left--; *left < 0 {
		return refuse("the document is too large")
	}
	if depth > maxNesting { // of an alias within what it stands for there is no end
		return refuse("nested too deeply")
	}
	switch n.Kind {
	case yaml.AliasNode:
		return value(n.Alias, path, left, depth)
	case yaml.MappingNode:
		m := map[string]any{}
		for i := 0; i < len(n.Content); i += 2 {
			k := n.Content[i]
			at := fault.Join(path, k.Value)
			switch _, twice := m[k.Value]; {
			case k.Kind != yaml.ScalarNode:
				return nil, Errorf(k.Line, path, "want a name as the key")
			case k.ShortTag() == "!!merge":
				return nil, Errorf(k.Line, path, "merge keys are not supported")
			case twice:
				return nil, Errorf(k.Line, at, "given twice")
			}
			v, err := value(n.Content[i+1], at, left, depth+1)
			if err != nil {
				return nil, err
			}
			m[k.Value] = v
		}
		return m, nil
	case yaml.SequenceNode:
		s := make([]any, len(n.Content))
		for i, c := range n.Content {
			v, err := value(c, fmt.Sprintf("%s[%d]", path, i), left, depth+1)
			if err != nil {
				return nil, err
			}
			s[i] = v
		}
		return s, nil
	}
	switch n.ShortTag() {
	case "!!null":
		return nil, nil
	case "!!bool", "!!int", "!!float":
		var v any
		if err := n.Decode(&v); err != nil {
			if f, wide := strconv.ParseFloat(n.Value, 64); wide == nil { // an integer beyond 64 bits
				return f, nil
			}
			return refuse("%s", syntaxError.ReplaceAllString(err.Error(), ""))
		}
		if i, ok := v.(int); ok {
			return int64(i), nil
		}
		return v, nil
	case "!!str", "!!timestamp":
		return n.Value, nil
	default:
		return refuse("unknown tag %s", n.Tag)
	}
}

// Line finds the line of the field at a path below n; of what is not there,
// that of the deepest part that is. Names in snake_case and in lowerCamelCase
// are the same.
func Line(n *yaml.Node, path string) int {
	line := n.Line
	for path != "" {
		for n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		var found bool
		if rest, ok := strings.CutPrefix(path, "["); ok && !strings.HasPrefix(rest, `"`) {
			index, rest, _ := strings.Cut(rest, "]")
			i, err := strconv.Atoi(index)
			if found = err == nil && n.Kind == yaml.SequenceNode && i < len(n.Content); found {
				n = n.Content[i]
				line, path = n.Line, strings.TrimPrefix(rest, ".")
			}
		} else {
			name, rest := cutName(path)
			path = rest
			if n.Kind == yaml.MappingNode {
				for i := 0; i < len(n.Content) && !found; i += 2 {
					if k := n.Content[i]; SameName(k.Value, name) {
						line, n, found = k.Line, n.Content[i+1], true
					}
				}
			}
		}
		if !found {
			break
		}
	}
	return line
}

// cutName takes the first name, plain or quoted in brackets, off a path.
func cutName(path string) (name, rest string) {
	if quoted, ok := strings.CutPrefix(path, "["); ok {
		if q, err := strconv.QuotedPrefix(quoted); err == nil {
			name, _ = strconv.Unquote(q)
			return name, strings.TrimPrefix(strings.TrimPrefix(quoted[len(q):], "]"), ".")
		}
	}
	end := strings.IndexAny(path, ".[")
	if end < 0 {
		return path, ""
	}
	return path[:end], strings.TrimPrefix(path[end:], ".")
}

// SameName tells whether two names are the same field's, of which one may be in
// snake_case and the other in lowerCamelCase.
func SameName(a, b string) bool { return a == b || camel(a) == camel(b) }

// camel turns snake_case into lowerCamelCase.
func camel(s string) string {
	var b strings.Builder
	up := false
	for _, c := range s {
		if c == '_' {
			up = true
			continue
		}
		if up {
			b.WriteString(strings.ToUpper(string(c)))
		} else {
			b.WriteRune(c)
		}
		up = false
	}
	return b.String()
}
