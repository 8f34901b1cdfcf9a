package source

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// kubernetesObject is how one begins that cannot be read.
var kubernetesObject = regexp.MustCompile(`(?m)^["']?apiVersion["']?[ \t]*:`)

// IsKubernetes tells whether a file has objects of Kubernetes.
func IsKubernetes(text []byte) bool {
	docs, fault := Parse(text)
	if fault != nil { // JSON knows escapes that YAML does not
		var r reader
		if docs, fault = r.objects(text); fault != nil {
			return kubernetesObject.Match(text)
		}
	}
	return slices.ContainsFunc(docs, func(n *yaml.Node) bool {
		for i := 0; n.Kind == yaml.MappingNode && i < len(n.Content); i += 2 {
			if n.Content[i].Value == "apiVersion" {
				return true
			}
		}
		return false
	})
}

// Kubernetes reads the documents of a file as kubectl does, in the form that
// Envoy returns. The rules are those of sigs.k8s.io/yaml: YAML 1.1 as far as
// booleans go, merge keys, and the last of equal keys.
func Kubernetes(text []byte) (docs []*yaml.Node, notes Errors, fault *Error) {
	r := &reader{text: text, left: len(text) + maxAliased, by: "kubectl", scalar: yaml11, merges: true}
	all, fault := r.objects(text)
	if fault != nil {
		return nil, nil, fault
	}
	for _, n := range all {
		d, fault := r.read(n, nil, 0)
		if fault != nil {
			return nil, nil, fault
		}
		if d.Tag != "!!null" {
			docs = append(docs, d)
		}
	}
	return docs, r.notes, nil
}

// objects splits a file as kubectl does: objects of JSON one behind another, and what is
// not JSON, behind one of them at the most, as YAML.
func (r *reader) objects(text []byte) (all []*yaml.Node, fault *Error) {
	rest := 0
	if bytes.HasPrefix(bytes.TrimSpace(text), []byte("{")) {
		for d := json.NewDecoder(bytes.NewReader(text)); ; {
			var raw json.RawMessage
			err := d.Decode(&raw)
			if errors.Is(err, io.EOF) {
				return all, nil
			}
			if err != nil {
				if len(all) > 1 {
					return nil, Errorf(lineAt(text, rest), "", "JSON: %v", err)
				}
				break
			}
			rest = int(d.InputOffset())
			begin := rest - len(raw)
			n, fault := (&lexer{text: text[:rest], at: begin, line: lineAt(text, begin)}).value(0)
			if fault != nil {
				return nil, fault
			}
			styled(n)
			all = append(all, n)
		}
	}
	docs, fault := r.documents(text, rest)
	return append(all, docs...), fault
}

// lineAt is the line of a place in a text.
func lineAt(text []byte, at int) int { return 1 + bytes.Count(text[:at], []byte("\n")) }

// styled marks what comes of JSON as YAML would be that looks the same.
func styled(n *yaml.Node) {
	switch {
	case n.Kind != yaml.ScalarNode:
		n.Style = yaml.FlowStyle
	case n.Tag == "!!str":
		n.Style = yaml.DoubleQuotedStyle
	}
	for _, e := range n.Content {
		styled(e)
	}
}

// documents are those of YAML in a text from a place on. They are parted by lines that
// begin with ---, whatever these stand in.
func (r *reader) documents(text []byte, at int) (docs []*yaml.Node, fault *Error) {
	line := lineAt(text, at)
	var chunk []byte
	first := line
	read := func() *Error {
		d := yaml.NewDecoder(bytes.NewReader(chunk))
		n, fault := document(d)
		if fault != nil {
			fault.Line += first - 1
			return fault
		}
		if n == nil {
			return nil
		}
		below(n, first-1)
		docs = append(docs, n)
		more, behind := document(d)
		if behind != nil {
			more = &yaml.Node{Line: behind.Line}
		}
		if more != nil {
			r.note(more.Line+first-1, "", "kubectl reads nothing from here to the next ---")
		}
		return nil
	}
	for l := range bytes.Lines(text[at:]) {
		behind, mark := bytes.CutPrefix(l, []byte("---"))
		switch behind = bytes.TrimSpace(behind); {
		case !mark:
			chunk = append(chunk, l...)
		case len(behind) > 0 && behind[0] != '#':
			return nil, Errorf(line, "", "kubectl wants nothing behind --- but a comment")
		default:
			if fault := read(); fault != nil {
				return nil, fault
			}
			chunk, first = chunk[:0], line+1
		}
		line++
	}
	return docs, read()
}

// below moves a node by so many lines.
func below(n *yaml.Node, lines int) {
	n.Line += lines
	for _, e := range n.Content {
		below(e, lines)
	}
}

var yaml11Float = regexp.MustCompile(`^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$`)

// yaml11 reads a scalar by go-yaml v2's rules.
func yaml11(n *yaml.Node) (tag, value, reason string) {
	want := ""
	if n.Style&yaml.TaggedStyle != 0 {
		want = n.ShortTag()
	}
	switch want {
	case "!!binary":
		b, err := base64.StdEncoding.DecodeString(n.Value)
		if err != nil {
			return "", "", "the value of !!binary is no base64"
		}
		return "!!str", string(b), ""
	case "", "!!null", "!!bool", "!!int", "!!float":
	default:
		return "!!str", n.Value, ""
	}
	tag, value = untagged(n.Value)
	switch {
	case want == "" || want == tag:
	case want == "!!float" && tag == "!!int":
		tag = want
	default:
		return "", "", fmt.Sprintf("%s is no %s", strconv.Quote(n.Value), want)
	}
	if tag == "!!float" && value == "" {
		return "", "", n.Value + " is no number of JSON"
	}
	return tag, value, ""
}

func untagged(s string) (tag, value string) {
	switch s {
	case "", "~", "null", "Null", "NULL":
		return "!!null", "null"
	case ".nan", ".NaN", ".NAN", ".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF", "-.inf", "-.Inf", "-.INF":
		return "!!float", ""
	}
	if b, ok := flexibleBool(s); ok {
		return "!!bool", strconv.FormatBool(b)
	}
	if !strings.ContainsRune("0123456789+-.", rune(s[0])) {
		return "!!str", s
	}
	plain := strings.ReplaceAll(s, "_", "")
	if s[0] == '.' {
		plain = s
	} else {
		if i, err := strconv.ParseInt(plain, 0, 64); err == nil {
			return "!!int", strconv.FormatInt(i, 10)
		}
		if u, err := strconv.ParseUint(plain, 0, 64); err == nil {
			return "!!int", strconv.FormatUint(u, 10)
		}
	}
	if yaml11Float.MatchString(plain) {
		if f, err := strconv.ParseFloat(plain, 64); err == nil && !math.IsInf(f, 0) {
			return "!!float", strconv.FormatFloat(f, 'g', -1, 64)
		}
	}
	return "!!str", s
}
