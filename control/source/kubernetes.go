package source

import (
	"encoding/base64"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Kubernetes reads the documents of a file as kubectl does, in the form that
// Envoy returns. The rules are those of sigs.k8s.io/yaml: YAML 1.1 as far as
// booleans go, merge keys, and the last of equal keys.
func Kubernetes(text []byte) (docs []*yaml.Node, notes Errors, fault *Error) {
	all, fault := parse(text)
	if fault != nil {
		return nil, nil, fault
	}
	r := &reader{text: text, left: len(text) + maxAliased, by: "kubectl", scalar: yaml11, merges: true}
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
