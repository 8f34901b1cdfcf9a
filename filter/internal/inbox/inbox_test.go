package inbox

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestMemoryFollowsWhatCame and not what a peer says will come; little is copied,
// and none is left over when the frame is whole.
func TestMemoryFollowsWhatCame(t *testing.T) {
	const need, piece = 10_000_000, 1000
	var in Inbox
	var scratch []byte
	part := bytes.Repeat([]byte("x"), piece)
	in.Keep(part, need)
	grew := 0
	for n := 2 * piece; n < need; n += piece {
		before := in.Size()
		growth := in.Growth(piece)
		_, ready := in.Add([][]byte{part[:10], part[10:]}, piece, &scratch)
		require.False(t, ready)
		require.Equal(t, n, in.Buffered())
		require.Equal(t, before+growth, in.Size())
		require.LessOrEqual(t, in.Size(), 2*n)
		if growth > 0 {
			grew++
		}
	}
	require.LessOrEqual(t, grew, 14)
	b, ready := in.Add([][]byte{part}, piece, &scratch)
	require.True(t, ready)
	require.Len(t, b, need)
	require.Equal(t, need, in.Size())
	in.Keep(b[need-10:], 50)
	require.Equal(t, 10, in.Buffered())
	require.Less(t, in.Size(), 100, "what a long frame needed is given back")
	in.Take([][]byte{part})
	in.Keep(nil, 0)
	require.Zero(t, in.Buffered())
}

// TestWhatIsPassedOver may end anywhere in the pieces in which bytes come.
func TestWhatIsPassedOver(t *testing.T) {
	const text = "abcdefghij"
	for n := range 2 * len(text) {
		for cut := range len(text) {
			var in Inbox
			in.Skip(n)
			var rest []byte
			for range 2 {
				bufs, left := in.Skipped([][]byte{[]byte(text[:cut]), nil, []byte(text[cut:])}, len(text))
				got := bytes.Join(bufs, nil)
				require.Len(t, got, left)
				rest = append(rest, got...)
			}
			require.Equal(t, (text + text)[n:], string(rest))
			require.False(t, in.Skipping())
		}
	}
	var in Inbox
	in.Skip(-1)
	require.False(t, in.Skipping())
}
