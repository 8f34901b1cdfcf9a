package source

import (
	"bytes"
	"math"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// EnvoyJSON reads JSON as Envoy does, in the form that Envoy returns, but that
// equal keys are all there and that numbers are as they are written.
//
// The rules are those of the lexer of libprotobuf in the mode that Envoy uses
// it: names need no quotes, strings may have single ones, a comma may follow the
// last element; nothing may stand before the object, a byte order mark neither.
func EnvoyJSON(text []byte) (*yaml.Node, *Error) {
	l := &lexer{text: text, line: 1}
	root, fault := l.value(0)
	if fault == nil && l.skip() {
		fault = l.refuse("something follows the object")
	}
	return root, fault
}

type lexer struct {
	text []byte
	at   int
	line int
}

func (l *lexer) refuse(reason string) *Error { return Errorf(l.line, "", "JSON: %s", reason) }

// skip goes to the next token, and tells whether there is one.
func (l *lexer) skip() bool {
	for ; l.at < len(l.text); l.at++ {
		switch l.text[l.at] {
		case '\n':
			l.line++
		case ' ', '\t', '\r':
		default:
			return true
		}
	}
	return false
}

// take consumes a token that stands next.
func (l *lexer) take(token string) bool {
	l.skip()
	if !bytes.HasPrefix(l.text[l.at:], []byte(token)) {
		return false
	}
	l.at += len(token)
	return true
}

func (l *lexer) unexpected() *Error {
	if l.at >= len(l.text) {
		return l.refuse("it ends too early")
	}
	r, size := utf8.DecodeRune(l.text[l.at:])
	switch {
	case r == '\ufeff':
		return l.refuse("a byte order mark, which Envoy does not want")
	case r == utf8.RuneError && size == 1:
		return l.refuse("a byte that is not UTF-8")
	}
	return l.refuse("unexpected " + strconv.QuoteRune(r))
}

var jsonNumber = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?`)

func (l *lexer) value(depth int) (*yaml.Node, *Error) {
	if !l.skip() {
		return nil, l.unexpected()
	}
	n := &yaml.Node{Kind: yaml.ScalarNode, Line: l.line}
	switch c := l.text[l.at]; c {
	case '{', '[':
		if depth == maxNesting {
			return nil, l.refuse("nested too deeply")
		}
		l.at++
		if c == '{' {
			n.Kind, n.Tag = yaml.MappingNode, "!!map"
			return n, l.elements(n, "}", depth+1)
		}
		n.Kind, n.Tag = yaml.SequenceNode, "!!seq"
		return n, l.elements(n, "]", depth+1)
	case '"', '\'':
		n.Tag = "!!str"
		// A raw line break in a string does not count for Envoy, but for people.
		s, fault := l.string(c)
		n.Value = s
		return n, fault
	case 't', 'f', 'n':
		for token, tag := range map[string]string{"true": "!!bool", "false": "!!bool", "null": "!!null"} {
			if l.take(token) {
				n.Tag, n.Value = tag, token
				return n, nil
			}
		}
		return nil, l.unexpected()
	case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
		return n, l.number(n)
	}
	return nil, l.unexpected()
}

func (l *lexer) number(n *yaml.Node) *Error {
	n.Value = string(jsonNumber.Find(l.text[l.at:]))
	f, err := strconv.ParseFloat(n.Value, 64)
	if err != nil || math.IsInf(f, 0) {
		return l.refuse("not a number")
	}
	n.Tag = "!!int"
	if strings.ContainsAny(n.Value, ".eE") {
		n.Tag = "!!float"
	}
	l.at += len(n.Value)
	if l.skip() && !strings.ContainsRune(",]}", rune(l.text[l.at])) {
		return l.unexpected()
	}
	return nil
}

// elements reads those of an object or a list behind its opening bracket.
func (l *lexer) elements(n *yaml.Node, end string, depth int) *Error {
	if l.take(end) {
		return nil
	}
	for {
		if n.Kind == yaml.MappingNode {
			k, fault := l.key()
			if fault != nil {
				return fault
			}
			n.Content = append(n.Content, k)
			if !l.take(":") {
				return l.unexpected()
			}
		}
		v, fault := l.value(depth)
		if fault != nil {
			return fault
		}
		n.Content = append(n.Content, v)
		comma := l.take(",")
		if l.take(end) {
			return nil
		}
		if !comma {
			return l.unexpected()
		}
	}
}

var bareWord = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*`)

func (l *lexer) key() (*yaml.Node, *Error) {
	if !l.skip() {
		return nil, l.unexpected()
	}
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Line: l.line}
	if c := l.text[l.at]; c == '"' || c == '\'' {
		var fault *Error
		n.Value, fault = l.string(c)
		return n, fault
	}
	n.Value = string(bareWord.Find(l.text[l.at:]))
	switch n.Value {
	case "", "null", "true", "false":
		return nil, l.unexpected()
	}
	l.at += len(n.Value)
	return n, nil
}

// escapes are those of one letter.
var escapes = map[byte]byte{'"': '"', '\'': '\'', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

func (l *lexer) string(quote byte) (string, *Error) {
	l.at++
	var b []byte
	for l.at < len(l.text) {
		switch c := l.text[l.at]; c {
		case quote:
			l.at++
			return string(b), nil
		case '\\':
			if l.at+1 == len(l.text) {
				l.at++
				return "", l.unexpected()
			}
			e := l.text[l.at+1]
			l.at += 2
			if e == 'u' || e == 'U' {
				r, ok := l.unicode()
				if !ok {
					return "", l.refuse("a bad Unicode escape")
				}
				b = utf8.AppendRune(b, r)
			} else if r, ok := escapes[e]; ok {
				b = append(b, r)
			} else {
				return "", l.refuse(`unknown escape \` + string(rune(e)))
			}
		default:
			r, size := utf8.DecodeRune(l.text[l.at:])
			if r == utf8.RuneError && size == 1 {
				return "", l.unexpected()
			}
			if c == '\n' {
				l.line++
			}
			b = append(b, l.text[l.at:l.at+size]...)
			l.at += size
		}
	}
	return "", l.unexpected()
}

// unicode reads the digits of an escape, of both halves of a surrogate pair.
func (l *lexer) unicode() (rune, bool) {
	unit := func() (rune, bool) {
		if l.at+4 > len(l.text) {
			return 0, false
		}
		u, err := strconv.ParseUint(string(l.text[l.at:l.at+4]), 16, 16)
		l.at += 4
		return rune(u), err == nil
	}
	r, ok := unit()
	if !ok || r < 0xd800 || r > 0xdfff {
		return r, ok
	}
	if r >= 0xdc00 || !bytes.HasPrefix(l.text[l.at:], []byte(`\u`)) {
		return 0, false
	}
	l.at += 2
	low, ok := unit()
	return (r-0xd800)<<10 + (low - 0xdc00) + 0x10000, ok && low >= 0xdc00 && low <= 0xdfff
}
