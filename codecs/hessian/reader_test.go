package hessian

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/hessian/hessiantest"
	"github.com/meltemi-mesh/meltemi/internal/raced"
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
			_, n, err := hessiantest.Value([]byte(v))
			if name != "list with a type reference" && name != "map with a type reference" && name != "reference" {
				require.NoError(t, err)
				require.Equal(t, len(v), n)
			}
			for i := 0; i < len(v); i += 1 + len(v)/2000 { // and never beyond what is there
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

// TestStringsThatReadersDifferInAreRefused: what a lax reader takes for a name
// that ours does not see would pass by the rules.
func TestStringsThatReadersDifferInAreRefused(t *testing.T) {
	for name, in := range map[string]string{
		"two bytes for ASCII":           "\x01\xc1\xa1",
		"two bytes for NUL":             "\x01\xc0\x80",
		"three bytes for two":           "\x01\xe0\x9f\xbf",
		"four bytes for three":          "\x02\xf0\x8f\xbf\xbf",
		"beyond Unicode":                "\x02\xf4\x90\x80\x80",
		"five bytes":                    "\x02\xf8\x88\x80\x80\x80",
		"continuation without a start":  "\x01\x80",
		"start without continuation":    "\x02\xc3a",
		"half of a four-byte character": "\x01\xf0\x9f\x98\x80",
		"the same behind eight letters": "\x09abcdefgh\xc1\xa1",
		"in the last chunk":             "R\x00\x01aS\x00\x01\xc1\xa1",
	} {
		t.Run(name, func(t *testing.T) {
			var r Reader
			r.Reset([]byte(in))
			require.Empty(t, r.String())
			require.ErrorIs(t, r.Err(), ErrUTF8)
			r.Reset([]byte(in))
			r.Skip()
			require.ErrorIs(t, r.Err(), ErrUTF8)
			_, _, err := hessiantest.Value([]byte(in))
			require.Error(t, err)
		})
	}
}

func TestClassDefinitionsStandBeforeObjectsOnly(t *testing.T) {
	for name, tc := range map[string]struct {
		in   string
		want error
	}{
		"an object":            {"C\x01P\x90\x60", nil},
		"an object by number":  {"C\x01P\x90O\x90", nil},
		"two, then an object":  {"C\x01P\x90C\x01Q\x91\x01f\x61N", nil},
		"a string":             {"C\x01P\x90\x01a", ErrTag},
		"a map":                {"C\x01P\x90HZ", ErrTag},
		"nothing":              {"C\x01P\x90", ErrTruncated},
		"a class that is none": {"C\x01P\x90\x61", ErrClass},
	} {
		t.Run(name, func(t *testing.T) {
			var r Reader
			r.Reset([]byte(tc.in))
			r.Skip()
			require.ErrorIs(t, r.Err(), tc.want)
		})
	}
}

func TestNestingIsBounded(t *testing.T) {
	for _, open := range []string{"\x79", "X\x91", "V\x01t\x91", "W", "H\x01k", "C\x01P\x91\x01f\x60"} {
		end := strings.Repeat("Z", 2*MaxDepth)
		var r Reader
		r.Reset([]byte(strings.Repeat(open, MaxDepth) + "N" + end))
		r.Skip()
		require.NoError(t, r.Err(), "%q", open)
		r.Reset([]byte(strings.Repeat(open, MaxDepth+1) + "N" + end))
		r.Skip()
		require.ErrorIs(t, r.Err(), ErrDepth, "%q", open)
	}
}

func TestSimpleIsWhatNoReferenceCanMean(t *testing.T) {
	for in, want := range map[string]bool{
		"N": true, "T": true, "\x91": true, "\x01a": true, "R\x00\x01aS\x00\x01b": true, "\x21b": true, "[": true,
		"\x78": false, "\x79\x91": false, "HZ": false, "WZ": false, "C\x01P\x90\x60": false,
		"S\x00\x05abc": false, // cut off
	} {
		var r Reader
		r.Reset([]byte(in))
		require.Equal(t, want, r.Skip(), "%q", in)
	}
}

func TestSeekAndClasses(t *testing.T) {
	var r Reader
	r.Reset([]byte("\x01aC\x01P\x90\x60\x01b"))
	r.Seek(2)
	r.Skip()
	require.Equal(t, 1, r.Classes())
	require.Equal(t, "b", string(r.String()))
	require.NoError(t, r.Err())
	r.Reset(nil)
	require.Zero(t, r.Classes())
	require.False(t, r.More())
}

func TestReadingDoesNotAllocate(t *testing.T) {
	b := []byte("\x05helloH\x01k\x7a\x91C\x01P\x91\x01f\x60NZ\x30\x20" + strings.Repeat("ü", 32))
	var r Reader
	r.Reset(b)
	r.Skip()
	r.Skip()
	require.Zero(t, raced.AllocsPerRun(t, 100, func() {
		r.Reset(b)
		r.String()
		r.Skip()
		r.String()
		if r.Err() != nil || r.More() {
			t.Fatal(r.Err())
		}
	}))
}

func TestAppendIntIsReadBack(t *testing.T) {
	for _, n := range []int32{
		0, 1, -16, 47, -17, 48, -0x800, 0x7ff, -0x801, 0x800, -0x40000, 0x3ffff, -0x40001, 0x40000, math.MinInt32, math.MaxInt32,
	} {
		b := AppendInt(nil, n)
		var r Reader
		r.Reset(b)
		require.Equal(t, n, r.Int())
		require.Equal(t, len(b), r.Pos())
		v, size, err := hessiantest.Value(b)
		require.NoError(t, err)
		require.Equal(t, n, v)
		require.Equal(t, len(b), size)
	}
	require.Equal(t, "\x90\xc6\xff\xd4\x0b\xb8", string(AppendInt(AppendInt(AppendInt(nil, 0), -257), 3000)))
}

func TestAppendStringIsReadBack(t *testing.T) {
	for _, s := range []string{
		"", "a", strings.Repeat("x", 31), strings.Repeat("x", 32), strings.Repeat("ü", 1023), strings.Repeat("😀", 600), strings.Repeat("z", 1<<17) + "😀",
		strings.Repeat("x", 33), strings.Repeat("x", 1023), strings.Repeat("x", 1024), strings.Repeat("x", 1<<15), strings.Repeat("x", 1<<15+1),
		strings.Repeat("z", 1<<15-1) + "😀", "\x00", "a\x00b", "\u07ff\u0800\uffff",
	} {
		var r Reader
		r.Reset(AppendString(nil, s))
		require.Equal(t, s, string(r.String()))
		require.False(t, r.More())
		v, _, err := hessiantest.Value(AppendString(nil, s))
		require.NoError(t, err)
		require.Equal(t, s, v)
		require.NoError(t, r.Err())
	}
}

// TestHostileValuesCostWhatTheyWeigh: what the reader does is counted in values, and
// none of them is moved over that has no byte, however many are announced.
func TestHostileValuesCostWhatTheyWeigh(t *testing.T) {
	const n = MaxValues / 2
	for name, tc := range map[string]struct {
		b      []byte
		want   error
		values int // that are moved over
		allocs float64
	}{
		"lists in lists":          {bytes.Repeat([]byte{0x79}, n), ErrDepth, MaxDepth + 1, 0},
		"maps in maps":            {bytes.Repeat([]byte("H"), n), ErrDepth, MaxDepth + 1, 0},
		"list of 100 million":     {[]byte("X\x49\x05\xf5\xe1\x00"), ErrTruncated, 1, 0},
		"class of 100 million":    {[]byte("C\x01PI\x05\xf5\xe1\x00"), ErrTruncated, 2, 0},
		"class definitions":       {bytes.Repeat([]byte("C\x01P\x90"), n/4), ErrTruncated, n/4 + 1, 40}, // the slice that grows
		"objects without fields":  {append([]byte("X\x49\x00\x04\x00\x00C\x01P\x90"), bytes.Repeat([]byte{0x60}, n)...), nil, n + 2, 0},
		"map of nulls":            {append([]byte("H"), bytes.Repeat([]byte("N"), n)...), ErrTruncated, n + 2, 0},
		"more than a message has": {append([]byte("H"), bytes.Repeat([]byte("N"), 2*n)...), ErrValues, 2 * n, 0},
		"endless chunks":          {bytes.Repeat([]byte("R\x00\x00"), n/3), ErrTruncated, n/3 + 1, 0},
		"unknown class":           {[]byte("O\x95"), ErrClass, 1, 0},
		"negative length":         {[]byte("X\x8f"), ErrTruncated, 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			var r Reader
			allocs := raced.AllocsPerRun(t, 1, func() { r.Reset(tc.b); r.Skip() })
			require.LessOrEqual(t, allocs, tc.allocs)
			require.ErrorIs(t, r.Err(), tc.want)
			require.Equal(t, tc.values, MaxValues-r.values)
		})
	}
}

// FuzzSkip: never beyond the bytes, always forward, and as far as a reader goes
// that builds objects.
func FuzzSkip(f *testing.F) {
	f.Add([]byte("H\x01a\x91Z"))                   // a map
	f.Add([]byte("C\x01P\x92\x01a\x01b\x60\x91N")) // an object
	f.Add([]byte("X\x49\x05\xf5\xe1\x00"))         // a length that lies
	f.Add(bytes.Repeat([]byte{0x79}, 100))         // depth
	f.Add([]byte("R\x00\x02abS\x00\x01c"))         // chunks
	f.Add([]byte("\x02\xed\xa0\xbd\xed\xb8\x80"))  // surrogates
	f.Add([]byte("\x02😀"))                         // one character, two units
	f.Add([]byte("\x01\xc1\xa1"))                  // overlong
	f.Add([]byte("V\x04[int\x92\x91\x92M\x90Z"))   // a type, and a reference to it
	f.Add([]byte("A\x00\x02ab\x21c"))              // binary in chunks
	f.Add([]byte("C\x01P\x90\x01a"))               // a class where none belongs
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Reader
		r.Reset(b)
		if _, n, err := hessiantest.Value(b); err == nil {
			r.Skip()
			switch {
			case r.Err() == nil && r.Pos() != n:
				t.Fatalf("%d bytes instead of %d", r.Pos(), n)
			case errors.Is(r.Err(), ErrTruncated) || errors.Is(r.Err(), ErrClass) || errors.Is(r.Err(), ErrUTF8):
				t.Fatal(r.Err())
			}
			r.Reset(b)
		}
		for r.More() {
			at := r.Pos()
			r.Skip()
			if r.Err() == nil && r.Pos() <= at || r.Pos() > len(b) {
				t.Fatalf("moved from %d to %d of %d", at, r.Pos(), len(b))
			}
		}
	})
}

// TestManyClasses: more than are remembered without allocating.
func TestManyClasses(t *testing.T) {
	var b []byte
	for i := range 40 {
		b = append(b, 'C', 1, 'P', 0x90+byte(i))
		for range i {
			b = append(b, 1, 'f')
		}
		b = append(append(b, 'O', 0x90+byte(i)), bytes.Repeat([]byte("N"), i)...)
	}
	b = append(b, 'O', 0x90+3, 'N', 'N', 'N')
	var r Reader
	r.Reset(b)
	for range 41 {
		r.Skip()
	}
	require.NoError(t, r.Err())
	require.Equal(t, len(b), r.Pos())
	require.Equal(t, 40, r.Classes())
}

func TestFirstOfAList(t *testing.T) {
	for in, want := range map[string]string{
		"\x71\x07[string\x01a": "a", "\x72\x07[string\x01a\x01b": "a", "\x72\x90\x01a\x01b": "a", "\x79\x01a": "a",
		"V\x07[string\x92\x01a\x01b": "a", "V\x90\x91\x01a": "a", "X\x91\x01a": "a", "U\x07[string\x01aZ": "a", "W\x01a\x91Z": "a",
		"\x79\x00": "", "\x70\x07[string": "-", "\x78": "-", "X\x90": "-", "WZ": "-", "U\x90Z": "-", "\x7a\x91\x01a": "-", "\x79\x79\x01a": "-",
		"\x7aC\x01P\x90\x60\x01a": "-",
	} {
		var r Reader
		r.Reset([]byte(in + "N"))
		require.True(t, IsList(r.Peek()))
		text, ok := r.First()
		require.NoError(t, r.Err(), "%x", in)
		require.Equal(t, want != "-", ok, "%x", in)
		if ok {
			require.Equal(t, want, string(text), "%x", in)
		}
		require.Equal(t, len(in), r.Pos(), "%x", in)
		for i := 1; i < len(in); i++ {
			r.Reset([]byte(in[:i]))
			_, ok := r.First()
			require.False(t, ok, "%x", in[:i])
		}
	}
}

// TestTextIsWhatJavaShows by String.valueOf, in all encodings of a value.
func TestTextIsWhatJavaShows(t *testing.T) {
	for in, want := range map[string]string{
		"\x00": "", "\x02hi": "hi", "\x30\x02hi": "hi", "S\x00\x02hi": "hi", "R\x00\x01h\x01i": "hi",
		"\x80": "-16", "\x90": "0", "\xbf": "47", "\xc0\x00": "-2048", "\xcf\xff": "2047",
		"\xd0\x00\x00": "-262144", "\xd7\xff\xff": "262143", "I\x00\x00\x00\x01": "1", "I\xff\xff\xff\xff": "-1", "I\x80\x00\x00\x00": "-2147483648",
		"\xd8": "-8", "\xe0": "0", "\xef": "15", "\xf0\x00": "-2048", "\xff\xff": "2047",
		"\x38\x00\x00": "-262144", "\x3f\xff\xff": "262143", "Y\xff\xff\xff\xfe": "-2", "Y\x7f\xff\xff\xff": "2147483647",
		"L\x80\x00\x00\x00\x00\x00\x00\x00": "-9223372036854775808", "L\x00\x00\x00\x00\x00\x00\x00\x01": "1",
		"T": "true", "F": "false",
		"[": "0.0", "\\": "1.0", "]\x80": "-128.0", "^\x80\x00": "-32768.0", "^\x00\x0a": "10.0", "_\x00\x00\x05\xdc": "1.5", "_\xff\xff\xff\xff": "-0.001",
		"D\x3f\xf8\x00\x00\x00\x00\x00\x00": "1.5", "D\x80\x00\x00\x00\x00\x00\x00\x00": "-0.0",
		"D\x7f\xf8\x00\x00\x00\x00\x00\x00": "NaN", "D\x7f\xf0\x00\x00\x00\x00\x00\x00": "Infinity", "D\xff\xf0\x00\x00\x00\x00\x00\x00": "-Infinity",
		"D\x41\x63\x12\xd0\x00\x00\x00\x00": "1.0E7", "D\x41\x63\x12\xcf\xe0\x00\x00\x00": "9999999.0",
		"D\x3f\x50\x62\x4d\xd2\xf1\xa9\xfc": "0.001", "D\x3f\x40\x62\x4d\xd2\xf1\xa9\xfc": "5.0E-4", "D\x41\x67\x8c\x29\xc0\x00\x00\x00": "1.2345678E7",
	} {
		var r Reader
		r.Reset([]byte(in + "N"))
		text, ok := r.Text()
		require.True(t, ok, "%x", in)
		require.Equal(t, want, string(text), "%x", in)
		require.Equal(t, len(in), r.Pos(), "%x", in)
		for i := range len(in) {
			r.Reset([]byte(in[:i]))
			_, ok := r.Text()
			require.False(t, ok, "%x", in[:i])
			require.Error(t, r.Err(), "%x", in[:i])
		}
	}
	for name, in := range map[string]string{
		"null": "N", "date": "J\x00\x00\x00\x00\x00\x00\x00\x01", "date in minutes": "K\x00\x00\x00\x01", "binary": "\x21x",
		"list": "\x79\x91", "map": "HZ", "object": "C\x01P\x90\x60", "reference": "Q\x90",
	} {
		var r Reader
		r.Reset([]byte(in + "N"))
		_, ok := r.Text()
		require.False(t, ok, name)
		require.NoError(t, r.Err(), name)
		require.Equal(t, len(in), r.Pos(), name)
	}
}

// TestAMessageHasSoManyValues: no kind of value is moved over more often.
func TestAMessageHasSoManyValues(t *testing.T) {
	list := func(n int) []byte { return binary.BigEndian.AppendUint32([]byte("XI"), uint32(n)) }
	const n = MaxValues - 1 // beside the list itself
	for name, value := range map[string][]byte{
		"ints":           {0x90},
		"longer ints":    []byte("I\x00\x00\x00\x01"),
		"nulls":          []byte("N"),
		"strings":        []byte("\x03abc"),
		"longer strings": append([]byte{0x30, 40}, bytes.Repeat([]byte("x"), 40)...),
		"lists":          {0x78},
		"maps":           []byte("HZ"),
	} {
		t.Run(name, func(t *testing.T) {
			var r Reader
			r.Reset(append(list(n), bytes.Repeat(value, n)...))
			r.Skip()
			require.NoError(t, r.Err())
			require.False(t, r.More())
			r.Reset(append(list(n+1), bytes.Repeat(value, n+1)...))
			r.Skip()
			require.ErrorIs(t, r.Err(), ErrValues)
		})
	}
	for name, b := range map[string][]byte{
		"values":       bytes.Repeat([]byte("N"), MaxValues+1),
		"a map":        append([]byte("H"), bytes.Repeat([]byte("N"), MaxValues+1)...),
		"chunks":       bytes.Repeat([]byte("R\x00\x00"), MaxValues+1),
		"binary":       bytes.Repeat([]byte("A\x00\x00"), MaxValues+1),
		"classes":      bytes.Repeat([]byte("C\x01P\x91\x01f"), MaxValues+1),
		"bare classes": bytes.Repeat([]byte("C\x01P\x90"), MaxValues+1),
		"of one class": append(binary.BigEndian.AppendUint32([]byte("C\x01PI"), MaxValues+1), bytes.Repeat([]byte{0}, MaxValues+1)...),
	} {
		t.Run(name, func(t *testing.T) {
			var r Reader
			for r.Reset(b); r.More(); {
				r.Skip()
			}
			require.ErrorIs(t, r.Err(), ErrValues)
		})
	}
	var r Reader
	r.Reset(bytes.Repeat([]byte("R\x00\x00"), MaxValues+2))
	r.String()
	require.ErrorIs(t, r.Err(), ErrValues, "one that is read")
}

// BenchmarkCostly skips the worst that 16 MiB can have. It has the shortest time,
// as the machine may have other work.
func BenchmarkCostly(b *testing.B) {
	const n = 16 << 20
	for name, s := range map[string]string{
		"ints":              "W" + strings.Repeat("\x90", n),
		"ints of all sizes": "W" + strings.Repeat("\x90\xc8\x00I\x00\x00\x00\x01N\xd4\x00\x00", n/12),
		"empty strings":     "W" + strings.Repeat("\x00", n),
		"strings":           "W" + strings.Repeat("\x0caccount-0001", n/13),
		"longer strings":    "W" + strings.Repeat("\x30\x28"+strings.Repeat("x", 40), n/42),
		"strings and ints":  "W" + strings.Repeat("\x90\x01x", n/3),
		"lists":             "W" + strings.Repeat("\x78", n),
		"lists of an int":   "W" + strings.Repeat("\x79\x90", n/2),
		"deep lists":        "W" + strings.Repeat(strings.Repeat("\x79", 50)+"\x90", n/51),
		"maps":              "W" + strings.Repeat("HZ", n/2),
		"objects":           "WC\x01P\x91\x01f" + strings.Repeat("\x60\x90", n/2),
		"classes":           "W" + strings.Repeat("C\x01P\x90\x60", n/5),
		"chunks":            strings.Repeat("R\x00\x00", n/3),
		"UTF-8 of 2":        strings.Repeat("R\x80\x00"+strings.Repeat("ü", 0x8000), n/0x10003) + "\x00",
		"UTF-8 of 3":        strings.Repeat("R\x80\x00"+strings.Repeat("转", 0x8000), n/0x18003) + "\x00",
		"UTF-8 of 4":        strings.Repeat("R\x80\x00"+strings.Repeat("😀", 0x4000), n/0x10003) + "\x00",
		"UTF-8 of all":      strings.Repeat("R\x80\x00"+strings.Repeat("转aüb", 0x2000), n/0xe003) + "\x00",
		"Chinese names":     "W" + strings.Repeat("\x03"+"转转转", n/10),
		"UTF-8 of CESU":     strings.Repeat("R\x80\x00"+strings.Repeat("\xed\xa0\xbd\xed\xb8\x80", 0x4000), n/0x18003) + "\x00",
		"ASCII":             strings.Repeat("R\x80\x00"+strings.Repeat("a", 0x8000), n/0x8003) + "\x00",
	} {
		b.Run(name, func(b *testing.B) {
			var r Reader
			best := time.Hour
			for b.Loop() {
				r.Reset([]byte(s)[:len(s):len(s)])
				start := time.Now()
				r.Skip()
				best = min(best, time.Since(start))
			}
			b.ReportMetric(float64(best.Microseconds())/1e3, "ms/best")
		})
	}
}

// TestTextsOfAllScripts: characters are counted one by one and several at a time.
func TestTextsOfAllScripts(t *testing.T) {
	chars := []string{"a", "\u007f", "\u0080", "\u00bf", "\u00c0", "ü", "\u07ff", "\U00010000", "\U0003ffff", "\U00040000", "\U0010ffff", "\u0800", "ก", "\u0fff", "\u1000", "转", "\ucfff", "\ud000", "\ud7ff", "\ue000", "\uffff", "😀"}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		var b strings.Builder
		for b.Len() < 60 {
			b.WriteString(strings.Repeat(chars[rnd.IntN(len(chars))], 1+rnd.IntN(10)))
		}
		text := b.String()
		var r Reader
		r.Reset(append(AppendString(nil, text), 'N'))
		require.Equal(t, text, string(r.String()))
		require.NoError(t, r.Err())
		require.EqualValues(t, 'N', r.Peek())

		// One byte that is another: it is as it was, or what remains is UTF-8 too.
		broken := []byte(text)
		broken[rnd.IntN(len(broken))] = byte(rnd.Uint32())
		units := len(utf16.Encode([]rune(string(broken))))
		r.Reset(append([]byte{'S', byte(units >> 8), byte(units)}, broken...))
		got := r.String()
		if utf8.Valid(broken) {
			require.Equal(t, string(broken), string(got))
		} else if r.Err() == nil {
			require.True(t, utf8.Valid(got), "%x", broken)
		}
	}
	for _, bad := range []string{"\xc0\x80", "\xc1\xbf", "\xe0\x80\x80", "\xe0\x9f\xbf", "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xf8\x88\x80\x80", "\x80", "转\x80", "转\xbf", "\xe8\xbd", "\xf0\x9f\x98", "\xc3", "ü\xc1\xbf", "转\xe0\x9f\xbf"} {
		for before := range 9 {
			text := strings.Repeat("ü", before) + bad + strings.Repeat("z", 30)
			if before%2 == 1 {
				text = strings.ReplaceAll(text, "ü", "转")
			}
			var r Reader
			r.Reset(append([]byte{20}, text...))
			r.Skip()
			require.ErrorIs(t, r.Err(), ErrUTF8, "%x", text)
		}
	}
}

// TestWordsAgreeWithCharacters: several at a time are judged as one by one, whatever
// the bytes.
func TestWordsAgreeWithCharacters(t *testing.T) {
	pieces := []string{
		"a", "\x00", "\x7f", "\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xc2\x80", "\xd0\x90", "\xdf\xbf", "\xe0\x9f\xbf", "\xe0\xa0\x80", "\xe1\x80\x80",
		"\xec\xbf\xbf", "\xed\x9f\xbf", "\xed\xa0\x80", "\xed\xbf\xbf", "\xee\x80\x80", "\xef\xbf\xbf", "\xf0\x8f\xbf\xbf", "\xf0\x90\x80\x80",
		"\xf1\x80\x80\x80", "\xf4\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "\xe8\xbd", "\xf0\x9f",
	}
	sound := []int{0, 1, 2, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 18, 20, 21, 22}
	rnd := rand.New(rand.NewPCG(5, 6))
	for range 100_000 {
		var b []byte
		for len(b) < 50 {
			p := pieces[sound[rnd.IntN(len(sound))]]
			if rnd.IntN(40) == 0 {
				p = pieces[rnd.IntN(len(pieces))]
			}
			b = append(b, p...)
		}
		n := rnd.IntN(40)
		var r, one Reader
		r.Reset(b)
		one.Reset(b)
		surrogates := r.chars(n)
		want := false
		left, rest := n, b
		for left > 0 && one.err == nil {
			size, units, half := one.char(rest)
			want = want || half
			rest, left = rest[size:], left-units
		}
		if left < 0 {
			one.fail(ErrUTF8)
		}
		require.Equal(t, one.err, r.err, "%d of %x", n, b)
		if one.err == nil {
			require.Equal(t, len(b)-len(rest), r.pos, "%d of %x", n, b)
			require.Equal(t, want, surrogates, "%d of %x", n, b)
		}
	}
}

// TestSizesOfASCII: a string that ASCII reads is as long as ASCIISize says.
func TestSizesOfASCII(t *testing.T) {
	for n := range 1100 {
		var r Reader
		b := append(AppendString(nil, strings.Repeat("a", n)), "\x05behind"...)
		r.Reset(b)
		if s := r.ASCII(); s == nil {
			require.GreaterOrEqual(t, n, 1024)
			continue
		}
		require.Less(t, n, 1024)
		require.Equal(t, r.Pos(), ASCIISize(b))
	}
}
