package accesslog

import (
	"fmt"
	"strconv"
	"time"
)

// clock is a moment, as a format of strftime's tells it; "" is ISO 8601 in UTC with
// milliseconds. Behind %s, and instead of it, %f is the fraction of the second, with a
// number of its digits as in %3f.
func clock(format string, local bool, of func(e *Entry) time.Time) (value, error) {
	layout := func(s string) func(dst []byte, t time.Time) []byte {
		return func(dst []byte, t time.Time) []byte { return t.AppendFormat(dst, s) }
	}
	zone := time.UTC
	if local {
		zone = time.Local
	}
	if format == "" {
		f := layout("2006-01-02T15:04:05.000Z07:00")
		if !local {
			return func(dst []byte, e *Entry) ([]byte, bool) {
				if e.Second != nil {
					return e.Second.append(dst, of(e)), true
				}
				return f(dst, of(e).UTC()), true
			}, nil
		}
		return func(dst []byte, e *Entry) ([]byte, bool) { return f(dst, of(e).In(zone)), true }, nil
	}
	var parts []func(dst []byte, t time.Time) []byte
	literal := func(s string) {
		parts = append(parts, func(dst []byte, _ time.Time) []byte { return append(dst, s...) })
	}
	for i := 0; i < len(format); i++ {
		if format[i] != '%' {
			literal(format[i : i+1])
			continue
		}
		if i++; i == len(format) {
			return nil, fmt.Errorf("the time's format ends with %%")
		}
		digits := 9
		if c := format[i]; '1' <= c && c <= '9' && i+1 < len(format) && format[i+1] == 'f' {
			digits = int(c - '0')
			i++
		}
		switch c := format[i]; c {
		case '%':
			literal("%")
		case 's':
			parts = append(parts, func(dst []byte, t time.Time) []byte { return strconv.AppendInt(dst, t.Unix(), 10) })
		case 'f':
			parts = append(parts, fraction(digits))
		default:
			l, known := layouts[c]
			if !known {
				return nil, fmt.Errorf("%%%c is not supported in a time's format", c)
			}
			parts = append(parts, layout(l))
		}
	}
	return func(dst []byte, e *Entry) ([]byte, bool) {
		t := of(e).In(zone)
		for _, p := range parts {
			dst = p(dst, t)
		}
		return dst, true
	}, nil
}

// Second is the last one that was written: many lines are of the same.
type Second struct {
	unix int64
	text []byte // up to the second's fraction
}

// append appends t in ISO 8601, in UTC, with milliseconds.
func (s *Second) append(dst []byte, t time.Time) []byte {
	if unix := t.Unix(); s.unix != unix || s.text == nil {
		s.unix, s.text = unix, t.UTC().AppendFormat(s.text[:0], "2006-01-02T15:04:05.")
	}
	dst = append(dst, s.text...)
	ms := t.Nanosecond() / 1e6
	return append(dst, byte('0'+ms/100), byte('0'+ms/10%10), byte('0'+ms%10), 'Z')
}

// layouts are those of package time for strftime's conversions.
var layouts = map[byte]string{
	'Y': "2006", 'y': "06", 'm': "01", 'd': "02", 'e': "_2", 'H': "15", 'I': "03", 'M': "04", 'S': "05", 'p': "PM",
	'b': "Jan", 'B': "January", 'h': "Jan", 'a': "Mon", 'A': "Monday", 'j': "002", 'z': "-0700", 'Z': "MST",
	'T': "15:04:05", 'F': "2006-01-02", 'D': "01/02/06", 'R': "15:04",
}

// fraction is so many digits of the fraction of a second.
func fraction(digits int) func(dst []byte, t time.Time) []byte {
	return func(dst []byte, t time.Time) []byte {
		at := len(dst)
		dst = strconv.AppendInt(dst, int64(t.Nanosecond())+1_000_000_000, 10) // with leading zeros
		return append(dst[:at], dst[at+1:at+1+digits]...)
	}
}
