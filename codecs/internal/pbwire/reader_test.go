package pbwire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/meltemi-mesh/meltemi/internal/raced"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
)

func fieldsOf(b []byte) (fields []Field, err error) {
	var r Reader
	for r.Reset(b); r.Next(); {
		fields = append(fields, r.Field)
	}
	return fields, r.Err()
}

func TestFieldsOfAllTypes(t *testing.T) {
	b := []byte("\x08\xac\x02" + // 1: varint 300
		"\x11\x01\x00\x00\x00\x00\x00\x00\x80" + // 2: fixed64
		"\x1a\x03abc" + // 3: bytes
		"\x1a\x00" + // 3: no bytes
		"\x23\x08\x01\x2b\x2c\x24" + // 4: a group with a group
		"\x2d\xff\xff\xff\xff" + // 5: fixed32
		"\x38\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01" + // 7: -1
		"\xf8\xff\xff\xff\x0f\x01") // the last number
	got, err := fieldsOf(b)
	require.NoError(t, err)
	require.Equal(t, []Field{
		{Number: 1, Type: Varint, Uint: 300, Start: 0, Value: 1, End: 3},
		{Number: 2, Type: Fixed64, Uint: 1<<63 + 1, Start: 3, Value: 4, End: 12},
		{Number: 3, Type: Bytes, Bytes: []byte("abc"), Start: 12, Value: 14, End: 17},
		{Number: 3, Type: Bytes, Bytes: []byte{}, Start: 17, Value: 19, End: 19},
		{Number: 4, Type: Group, Start: 19, Value: 20, End: 25},
		{Number: 5, Type: Fixed32, Uint: math.MaxUint32, Start: 25, Value: 26, End: 30},
		{Number: 7, Type: Varint, Uint: math.MaxUint64, Start: 30, Value: 31, End: 41},
		{Number: maxNumber, Type: Varint, Uint: 1, Start: 41, Value: 46, End: 47},
	}, got)
	require.EqualValues(t, -1, Int32(got[6].Uint))
	require.True(t, got[2].Is(3, Bytes))
	require.False(t, got[2].Is(3, Varint))
}

func TestVarintsThatAreLongerThanNeeded(t *testing.T) {
	got, err := fieldsOf([]byte("\x88\x80\x00\x81\x80\x80\x00" + "\x12\x83\x00abc"))
	require.NoError(t, err)
	require.Equal(t, []Field{
		{Number: 1, Type: Varint, Uint: 1, Start: 0, Value: 3, End: 7},
		{Number: 2, Type: Bytes, Bytes: []byte("abc"), Start: 7, Value: 10, End: 13},
	}, got)
}

func TestFaults(t *testing.T) {
	ok := "\x08\x01"
	for _, tc := range []struct {
		name, message string
		want          error
	}{
		{"tag that is cut off", "\x80", ErrTruncated},
		{"tag without a value", "\x08", ErrTruncated},
		{"varint that is cut off", "\x08\xff", ErrTruncated},
		{"varint of eleven bytes", "\x08" + strings.Repeat("\x80", 10) + "\x00", ErrVarint},
		{"varint of 65 bits", "\x08" + strings.Repeat("\x80", 9) + "\x02", ErrVarint},
		{"tag of 65 bits", strings.Repeat("\x80", 9) + "\x02", ErrVarint},
		{"number 0", "\x00\x00", ErrTag},
		{"number 0 in a long tag", "\x80\x00\x00", ErrTag},
		{"number beyond the last", "\x80\x80\x80\x80\x10\x00", ErrTag},
		{"number 1 to a reader of 32 bits", "\x88\x80\x80\x80\x80\x01\x00", ErrTag},
		{"wire type 6", "\x0e\x00", ErrTag},
		{"wire type 7", "\x0f\x00", ErrTag},
		{"fixed32 that is cut off", "\x0d\x00\x00\x00", ErrTruncated},
		{"fixed64 that is cut off", "\x09\x00\x00\x00\x00\x00\x00\x00", ErrTruncated},
		{"bytes without a length", "\x0a", ErrTruncated},
		{"length beyond the end", "\x0a\x02a", ErrTruncated},
		{"length of 2^63", "\x0a" + strings.Repeat("\x80", 9) + "\x01", ErrLength},
		{"length in six bytes", "\x0a\x81\x80\x80\x80\x80\x00a", ErrLength},
		{"tag in six bytes", "\x88\x80\x80\x80\x80\x00\x00", ErrTag},
		{"length of 65 bits", "\x0a" + strings.Repeat("\x80", 9) + "\x02", ErrVarint},
		{"length that 32 bits make 1", "\x0a\x81\x80\x80\x80\x10a", ErrTruncated},
		{"group that does not end", "\x0b", ErrTruncated},
		{"group that ends otherwise", "\x0b\x14", ErrGroup},
		{"group that was not begun", "\x0c", ErrGroup},
		{"group with a fault", "\x0b\x10\x80", ErrTruncated},
		{"group with number 0", "\x0b\x00\x0c", ErrTag},
		{"groups too deep", strings.Repeat("\x0b", MaxDepth+1) + strings.Repeat("\x0c", MaxDepth+1), ErrDepth},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var r Reader
			r.Reset([]byte(ok + tc.message))
			require.True(t, r.Next())
			require.False(t, r.Next())
			require.Equal(t, tc.want, r.Err())
			require.Equal(t, len(ok), r.Pos())
			require.False(t, r.Next())
		})
	}
}

func TestGroupsUpToTheDepth(t *testing.T) {
	b := []byte(strings.Repeat("\x0b", MaxDepth) + strings.Repeat("\x0c", MaxDepth))
	got, err := fieldsOf(b)
	require.NoError(t, err)
	require.Equal(t, []Field{{Number: 1, Type: Group, Value: 1, End: len(b)}}, got)
}

func TestAnEmptyMessageHasNoFields(t *testing.T) {
	got, err := fieldsOf(nil)
	require.NoError(t, err)
	require.Empty(t, got)
}

func TestReadingAndAppendingDoNotAllocate(t *testing.T) {
	b := []byte("\x08\xac\x02\x1a\x03abc\x23\x08\x01\x24\x2d\xff\xff\xff\xff")
	out := make([]byte, 0, 1024)
	require.Zero(t, raced.AllocsPerRun(t, 100, func() {
		var r Reader
		out = out[:0]
		var mark int
		out, mark = AppendFrame(out, 1)
		for r.Reset(b); r.Next(); {
			out = AppendBytes(out, r.Number, r.Bytes)
			out = AppendBytes(out, r.Number, "string")
			out = AppendVarint(out, r.Number, r.Uint)
		}
		out = CloseFrame(out, mark)
		if r.Err() != nil {
			t.Fatal(r.Err())
		}
	}))
}

// FuzzReader holds the reader against protowire: both see the same fields, or
// both a fault. Protowire takes field numbers that no schema can have, lengths in
// more than five bytes, and groups of any depth.
func FuzzReader(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Reader
		r.Reset(b)
		rest := b
		for r.Next() {
			num, typ, n := protowire.ConsumeTag(rest)
			require.Positive(t, n)
			require.EqualValues(t, num, r.Number)
			require.EqualValues(t, typ, r.Type)
			k := protowire.ConsumeFieldValue(num, typ, rest[n:])
			require.GreaterOrEqual(t, k, 0)
			require.Equal(t, len(b)-len(rest), r.Start)
			require.Equal(t, r.Start+n+k, r.End)
			require.Equal(t, r.End, r.Pos())
			value := rest[n : n+k]
			switch r.Type {
			case Varint:
				v, _ := protowire.ConsumeVarint(value)
				require.Equal(t, v, r.Uint)
			case Fixed32:
				require.EqualValues(t, binary.LittleEndian.Uint32(value), r.Uint)
			case Fixed64:
				require.Equal(t, binary.LittleEndian.Uint64(value), r.Uint)
			case Bytes:
				v, _ := protowire.ConsumeBytes(value)
				require.True(t, bytes.Equal(v, r.Bytes))
				require.True(t, bytes.Equal(v, b[r.Value:r.End]))
			}
			rest = rest[n+k:]
		}
		if r.Err() == nil {
			require.Empty(t, rest)
			return
		}
		require.NotEmpty(t, rest)
		for _, stricter := range []error{ErrTag, ErrLength, ErrDepth} {
			if errors.Is(r.Err(), stricter) {
				return
			}
		}
		if num, typ, n := protowire.ConsumeTag(rest); n > 0 {
			require.Negative(t, protowire.ConsumeFieldValue(num, typ, rest[n:]))
		}
	})
}

func BenchmarkReader(b *testing.B) {
	m := []byte("\x0a\x17\x0a\x0cexample.Peer\x12\x05Hello\x18\x00\x18\x00\x20\x00")
	b.SetBytes(int64(len(m)))
	for b.Loop() {
		var r Reader
		for r.Reset(m); r.Next(); {
			if r.Is(1, Bytes) {
				var in Reader
				for in.Reset(r.Bytes); in.Next(); {
				}
			}
		}
	}
}
