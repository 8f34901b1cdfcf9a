package hessian

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestSkipMovesOverEveryKindOfValue(t *testing.T) {
	long := func(tag byte, n int) string { return string([]byte{tag, byte(n >> 8), byte(n)}) }
	for name, v := range map[string]string{
		"null": "N", "true": "T", "false": "F",
		"int 1 byte": "\x90", "int 2 bytes": "\xc8\x01", "int 3 bytes": "\xd4\x01\x02", "int": "I\x00\x00\x00\x01",
		"long 1 byte": "\xe0", "long 2 bytes": "\xf8\x01", "long 3 bytes": "\x3c\x01\x02", "long 4 bytes": "Y\x00\x00\x00\x01",
		"long":     "L\x00\x00\x00\x00\x00\x00\x00\x01",
		"double 0": "[", "double 1": "\\", "double 1 byte": "]\x01", "double 2 bytes": "^\x01\x02", "double 4 bytes": "_\x00\x00\x00\x01",
		"double":          "D\x00\x00\x00\x00\x00\x00\x00\x01",
		"date":            "J\x00\x00\x00\x00\x00\x00\x00\x01",
		"date in minutes": "K\x00\x00\x00\x01",
		"short string":    "\x02hi", "string": "\x30\x21" + strings.Repeat("x", 33),
		"string in chunks":          long('R', 2) + "ab" + long('R', 1) + "c" + long('S', 1) + "d",
		"string of two-byte chars":  "\x02üü",
		"string with a surrogate":   "\x02\xed\xa0\xbd\xed\xb8\x80",
		"string with four bytes":    "\x02😀",
		"long string":               long('S', 40000) + strings.Repeat("y", 40000),
		"short binary":              "\x23abc",
		"binary with 10 bit length": "\x34\x03abc",
		"binary":                    "B\x00\x03abc", "binary in chunks": "A\x00\x02abA\x00\x01cB\x00\x01d",
		"binary in chunks with a short end": "A\x00\x02ab\x21c",
		"short list":                        "\x7a\x91\x92", "empty list": "\x78",
		"short list with a type": "\x72\x04[int\x91\x92", "list with a type reference": "\x72\x90\x91\x92",
		"list": "X\x92\x91\x92", "list with a type": "V\x04[int\x92\x91\x92",
		"open list": "W\x91\x92Z", "open list with a type": "U\x04[int\x91\x92Z", "empty open list": "WZ",
		"map": "H\x01a\x91\x01b\x92Z", "empty map": "HZ", "map with a type": "M\x01T\x01a\x91Z", "map with a type reference": "M\x90\x01a\x91Z",
		"object":                "C\x01P\x92\x01a\x01b\x60\x91\x92",
		"object by number":      "C\x01P\x91\x01aO\x90\x91",
		"object without fields": "C\x01P\x90\x60",
		"reference":             "\x79Q\x90",
		"nested":                "\x79\x79H\x01k\x7a\x91HZZ",
	} {
		t.Run(name, func(t *testing.T) {
			var r Reader
			r.Reset([]byte(v + "N"))
			r.Skip()
			require.NoError(t, r.Err())
			require.Equal(t, len(v), r.Pos())
			for i := range len(v) { // and never beyond what is there
				r.Reset([]byte(v[:i]))
				r.Skip()
				require.Error(t, r.Err(), "cut at %d", i)
			}
		})
	}
}

func TestEveryTagIsKnownOrRefused(t *testing.T) {
	refused := map[byte]bool{'@': true, 'E': true, 'G': true, 'P': true, 'Z': true}
	for tag := range 256 {
		var r Reader
		// Enough behind it for any value, and a class for objects.
		b := append([]byte("C\x01P\x90\x60"), byte(tag))
		b = append(b, bytes.Repeat([]byte{0x90}, 2000)...)
		if tag == 'R' || tag == 'A' || tag == 'H' || tag == 'M' || tag == 'U' || tag == 'W' || tag == 'C' {
			continue // want an end of their own: above
		}
		r.Reset(b)
		r.Skip()
		r.Skip()
		switch {
		case refused[byte(tag)]:
			require.ErrorIs(t, r.Err(), ErrTag, "%#x", tag)
		case r.Err() != nil:
			require.NotErrorIs(t, r.Err(), ErrTag, "%#x", tag)
		}
	}
}

func TestStringsAreViewsWhereTheyCanBe(t *testing.T) {
	for _, tc := range []struct{ name, in, want string }{
		{"ascii", "\x05hello", "hello"},
		{"chunks", "R\x00\x02abS\x00\x01c", "abc"},
		{"surrogates", "\x04a\xed\xa0\xbd\xed\xb8\x80b", "a😀b"},
		{"half a pair", "\x01\xed\xa0\xbd", "\uFFFD"},
		{"null", "N", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var r Reader
			r.Reset([]byte(tc.in))
			require.Equal(t, tc.want, string(r.String()))
			require.NoError(t, r.Err())
			require.Equal(t, len(tc.in), r.Pos())
		})
	}
}

func TestAppendStringIsReadBack(t *testing.T) {
	for _, s := range []string{"", "a", strings.Repeat("x", 31), strings.Repeat("x", 32), strings.Repeat("ü", 1023), strings.Repeat("😀", 600), strings.Repeat("z", 1<<17) + "😀"} {
		var r Reader
		r.Reset(AppendString(nil, s))
		require.Equal(t, s, string(r.String()))
		require.False(t, r.More())
		require.NoError(t, r.Err())
	}
}

func TestHostileValuesCostWhatTheyWeigh(t *testing.T) {
	const n = 1 << 20
	for name, b := range map[string][]byte{
		"lists in lists":         bytes.Repeat([]byte{0x79}, n),
		"maps in maps":           bytes.Repeat([]byte("H"), n),
		"list of 100 million":    []byte("X\x49\x05\xf5\xe1\x00"),
		"class of 100 million":   []byte("C\x01PI\x05\xf5\xe1\x00"),
		"class definitions":      bytes.Repeat([]byte("C\x01P\x90"), n/4),
		"objects without fields": append([]byte("X\x49\x00\x20\x00\x00C\x01P\x90"), bytes.Repeat([]byte{0x60}, n)...),
		"map of nulls":           append([]byte("H"), bytes.Repeat([]byte("N"), n)...),
		"endless chunks":         bytes.Repeat([]byte("R\x00\x00"), n/3),
		"unknown class":          []byte("O\x95"),
		"negative length":        []byte("X\x8f"),
	} {
		t.Run(name, func(t *testing.T) {
			var r Reader
			r.Reset(b)
			begin := time.Now()
			allocated := testing.AllocsPerRun(1, func() { r.Reset(b); r.Skip() })
			require.Less(t, time.Since(begin), 5*time.Second)
			require.Less(t, allocated, 100.0)
			require.Error(t, r.Err())
		})
	}
}

// FuzzSkip: never beyond the bytes, always forward.
func FuzzSkip(f *testing.F) {
	f.Add([]byte("H\x01a\x91Z"))                   // a map
	f.Add([]byte("C\x01P\x92\x01a\x01b\x60\x91N")) // an object
	f.Add([]byte("X\x49\x05\xf5\xe1\x00"))         // a length that lies
	f.Add(bytes.Repeat([]byte{0x79}, 100))         // depth
	f.Add([]byte("R\x00\x02abS\x00\x01c"))         // chunks
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Reader
		r.Reset(b)
		for r.More() {
			at := r.Pos()
			r.Skip()
			if r.Err() == nil && r.Pos() <= at || r.Pos() > len(b) {
				t.Fatalf("moved from %d to %d of %d", at, r.Pos(), len(b))
			}
		}
	})
}
