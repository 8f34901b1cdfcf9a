package pbwire

import (
	"bytes"
	"math"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
)

func TestWhatIsAppendedIsWhatProtowireAppends(t *testing.T) {
	for _, number := range []int32{1, 15, 16, 2047, 2048, maxNumber} {
		require.Equal(t, protowire.SizeTag(protowire.Number(number)), SizeTag(number))
		for _, v := range []uint64{0, 1, 127, 128, 1<<14 - 1, 1 << 14, math.MaxInt64, math.MaxUint64} {
			want := protowire.AppendVarint(protowire.AppendTag([]byte("x"), protowire.Number(number), protowire.VarintType), v)
			require.Equal(t, want, AppendVarint([]byte("x"), number, v))
			require.Equal(t, protowire.SizeVarint(v), SizeVarint(v))
		}
		for _, size := range []int{0, 1, 127, 128, 1 << 14, 1 << 21} {
			v := bytes.Repeat([]byte("v"), size)
			want := protowire.AppendBytes(protowire.AppendTag([]byte("x"), protowire.Number(number), protowire.BytesType), v)
			require.Equal(t, want, AppendBytes([]byte("x"), number, v))
			require.Equal(t, want, AppendBytes([]byte("x"), number, string(v)))
			require.Equal(t, len(want)-1, SizeBytes(number, size))
			dst, mark := AppendFrame([]byte("x"), number)
			require.Equal(t, want, CloseFrame(append(dst, v...), mark))
		}
	}
}

func TestFramesWithinFrames(t *testing.T) {
	dst, outer := AppendFrame(nil, 1)
	dst, inner := AppendFrame(dst, 2)
	dst = append(dst, bytes.Repeat([]byte("v"), 200)...)
	dst = CloseFrame(dst, inner)
	dst = CloseFrame(dst, outer)
	want := protowire.AppendTag(nil, 2, protowire.BytesType)
	want = protowire.AppendBytes(want, bytes.Repeat([]byte("v"), 200))
	want = protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), want)
	require.Equal(t, want, dst)
}
