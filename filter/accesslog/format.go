package accesslog

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meltemi-mesh/meltemi/filter/substitution"
)

// format appends a line of an entry, with what ends it.
type format struct {
	append func(dst []byte, e *Entry) []byte
	reads  bool // properties
}

// piece is a text, or an operator.
type piece struct {
	text string
	operator
}

func parse(s string) (ps []piece, err error) {
	text := func(s string) {
		if n := len(ps); n > 0 && ps[n-1].value == nil {
			ps[n-1].text += s
		} else {
			ps = append(ps, piece{text: s})
		}
	}
	err = substitution.Scan(s, text, func(o substitution.Operator) error {
		op, err := parseOperator(o)
		ps = append(ps, piece{operator: op})
		return err
	})
	return ps, err
}

func reads(ps []piece) bool {
	return slices.ContainsFunc(ps, func(p piece) bool { return p.reads })
}

// appendText appends what pieces say; one that has nothing to say is replaced by absent.
func appendText(dst []byte, ps []piece, e *Entry, absent string) []byte {
	for i := range ps {
		p := &ps[i]
		if p.value == nil {
			dst = append(dst, p.text...)
			continue
		}
		var ok bool
		if dst, ok = p.value(dst, e); !ok {
			dst = append(dst, absent...)
		}
	}
	return dst
}

// textFormat is a line of text. What ends it is part of the text.
func textFormat(s string, omitEmpty bool) (format, error) {
	ps, err := parse(s)
	for i := range ps {
		if v := ps[i].value; v != nil && !ps[i].bare {
			ps[i].value = func(dst []byte, e *Entry) ([]byte, bool) { return printable(dst, v, e) }
		}
	}
	absent := "-"
	if omitEmpty {
		absent = ""
	}
	return format{func(dst []byte, e *Entry) []byte { return appendText(dst, ps, e, absent) }, reads(ps)}, err
}

// printable appends what v says with control characters as \x0a: peers, whose messages can
// have any byte, must not end a line and write the next.
func printable(dst []byte, v value, e *Entry) ([]byte, bool) {
	start := len(dst)
	dst, ok := v(dst, e)
	if b := dst[start:]; clean(b) && bytes.IndexByte(b, del) < 0 || !slices.ContainsFunc(b, control) {
		return dst, ok
	}
	end := len(dst)
	for _, c := range dst[start:end] {
		if control(c) {
			dst = append(dst, '\\', 'x', digits[c>>4], digits[c&15])
		} else {
			dst = append(dst, c)
		}
	}
	return append(dst[:start], dst[end:]...), ok
}

// del is the control character that strings of JSON may have as it is.
const del = 0x7f

func control(c byte) bool { return c < ' ' || c == del }

// node is a value of a JSON format. It reports false if it has nothing to say.
type node func(dst []byte, e *Entry) ([]byte, bool)

// jsonFormat is an object on a line of its own, its keys in their order.
func jsonFormat(s *structpb.Struct, omitEmpty bool, path string, faults func(path string, err error)) format {
	c := jsonCompiler{omitEmpty: omitEmpty, fault: faults}
	n := c.object(s, path)
	return format{func(dst []byte, e *Entry) []byte {
		dst, _ = n(dst, e)
		return append(dst, '\n')
	}, c.reads}
}

type jsonCompiler struct {
	omitEmpty, reads bool
	fault            func(path string, err error)
}

func (c *jsonCompiler) object(s *structpb.Struct, path string) node {
	type member struct {
		key string // with the comma before it, and the colon behind
		node
	}
	var ms []member
	for _, k := range slices.Sorted(maps.Keys(s.GetFields())) {
		ms = append(ms, member{string(append(quote([]byte{','}, []byte(k)), ':')), c.value(s.GetFields()[k], path+"."+k)})
	}
	return func(dst []byte, e *Entry) ([]byte, bool) {
		start := len(dst)
		for i := range ms {
			before := len(dst)
			var ok bool
			switch dst, ok = ms[i].node(append(dst, ms[i].key...), e); {
			case ok:
			case c.omitEmpty:
				dst = dst[:before]
			default:
				dst = append(dst, "null"...)
			}
		}
		if len(dst) == start {
			return append(dst, "{}"...), !c.omitEmpty
		}
		dst[start] = '{' // in place of the first comma
		return append(dst, '}'), true
	}
}

func (c *jsonCompiler) value(v *structpb.Value, path string) node {
	switch k := v.GetKind().(type) {
	case *structpb.Value_StructValue:
		return c.object(k.StructValue, path)
	case *structpb.Value_ListValue:
		var ns []node
		for i, v := range k.ListValue.GetValues() {
			ns = append(ns, c.value(v, fmt.Sprintf("%s[%d]", path, i)))
		}
		return func(dst []byte, e *Entry) ([]byte, bool) {
			dst = append(dst, '[')
			for i, n := range ns {
				if i > 0 {
					dst = append(dst, ',')
				}
				var ok bool
				if dst, ok = n(dst, e); !ok {
					dst = append(dst, "null"...)
				}
			}
			return append(dst, ']'), true
		}
	case *structpb.Value_StringValue:
		return c.text(k.StringValue, path)
	case *structpb.Value_NumberValue:
		if v := k.NumberValue; math.IsNaN(v) || math.IsInf(v, 0) {
			c.fault(path, fmt.Errorf("JSON has no number %v", v))
		}
		return fixed(strconv.FormatFloat(k.NumberValue, 'g', -1, 64))
	case *structpb.Value_BoolValue:
		return fixed(strconv.FormatBool(k.BoolValue))
	default:
		return fixed("null")
	}
}

func fixed(s string) node {
	return func(dst []byte, _ *Entry) ([]byte, bool) { return append(dst, s...), true }
}

// text is a string, or the number that an operator is if it stands alone.
func (c *jsonCompiler) text(s, path string) node {
	ps, err := parse(s)
	if err != nil {
		c.fault(path, err)
	}
	c.reads = c.reads || reads(ps)
	if len(ps) == 1 && ps[0].value != nil {
		return ps[0].node()
	}
	absent := "-"
	if c.omitEmpty {
		absent = ""
	}
	return func(dst []byte, e *Entry) ([]byte, bool) {
		return closed(appendText(append(dst, '"'), ps, e, absent), len(dst)), true
	}
}

// node is what the operator is if it stands alone.
func (o operator) node() node {
	switch {
	case o.number:
		return node(o.value)
	case o.word != nil:
		return func(dst []byte, e *Entry) ([]byte, bool) {
			s := o.word(e)
			switch {
			case s == "":
				return dst, false
			case clean(s):
				return append(append(append(dst, '"'), s...), '"'), true
			default:
				return quote(dst, []byte(s)), true
			}
		}
	case o.bare:
		return func(dst []byte, e *Entry) ([]byte, bool) {
			b, ok := o.value(append(dst, '"'), e)
			if !ok {
				return dst, false
			}
			return append(b, '"'), true
		}
	default:
		return func(dst []byte, e *Entry) ([]byte, bool) {
			b, ok := o.value(append(dst, '"'), e)
			if !ok {
				return dst, false
			}
			return closed(b, len(dst)), true
		}
	}
}

// closed ends a string of JSON whose quotation mark is at i, and escapes what needs it.
func closed(b []byte, i int) []byte {
	if clean(b[i+1:]) {
		return append(b, '"')
	}
	// Escaped behind what is to be escaped, and moved to its place.
	n := len(b)
	b = quote(b, b[i+1:n])
	return append(b[:i], b[n:]...)
}

// clean reports whether s, byte by byte, is what a string of JSON may have as it is: ASCII
// without control characters, quotation marks and backslashes.
func clean[T string | []byte](s T) bool {
	for ; len(s) >= 8; s = s[8:] {
		const each = 0x0101010101010101
		w := uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
			uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
		// The highest bit of a byte says that it, or one below it, is none of those.
		if (w|(w-' '*each)|((w^'"'*each)-each)|((w^'\\'*each)-each))&(0x80*each) != 0 {
			return false
		}
	}
	for i := range len(s) {
		if unclean[s[i]] {
			return false
		}
	}
	return true
}

var unclean = func() (t [256]bool) {
	for c := range t {
		t[c] = c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf
	}
	return t
}()

const digits = "0123456789abcdef"

// quote appends s as a string of JSON. What is no UTF-8 is replaced. s may be what dst
// ends with.
func quote(dst, s []byte) []byte {
	dst = append(dst, '"')
	for len(s) > 0 {
		switch c := s[0]; {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c == '\n':
			dst = append(dst, '\\', 'n')
		case c == '\t':
			dst = append(dst, '\\', 't')
		case c == '\r':
			dst = append(dst, '\\', 'r')
		case c < 0x20:
			dst = append(dst, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		case c < utf8.RuneSelf:
			dst = append(dst, c)
		default:
			r, n := utf8.DecodeRune(s)
			dst = utf8.AppendRune(dst, r)
			s = s[n:]
			continue
		}
		s = s[1:]
	}
	return append(dst, '"')
}
