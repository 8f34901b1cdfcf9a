package inbox

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
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

// reader takes frames, whose first two bytes are their length, out of what its host
// hands over, as connections do.
type reader struct {
	t       *testing.T
	in      Inbox
	scratch []byte
	frames  [][]byte
	begun   int // attempts to take a frame
}

// data takes bufs. If keep is set it leaves nothing with the host.
func (r *reader) data(bufs [][]byte, total int, keep bool) (consumed int) {
	held := r.in.Buffered() > 0
	need := r.in.Need()
	b, ready := r.in.Add(bufs, total, &r.scratch)
	if !ready {
		switch {
		case held:
			return total
		case keep:
			r.in.Take(bufs)
			return total
		}
		return 0
	}
	require.GreaterOrEqual(r.t, len(b), need)
	rest, need := r.take(b)
	if held || keep {
		r.in.Keep(rest, need)
		return total
	}
	r.in.Wait(need)
	return total - len(rest)
}

func (r *reader) take(b []byte) (rest []byte, need int) {
	for len(b) > 0 {
		r.begun++
		if len(b) < 2 {
			return b, 2
		}
		n := int(binary.BigEndian.Uint16(b))
		if n > len(b) {
			return b, n
		}
		r.frames = append(r.frames, bytes.Clone(b[:n]))
		b = b[n:]
	}
	return b, 0
}

// TestFramesComeWhole however they are split, whoever keeps the beginning of one,
// and whatever becomes of the host's memory afterwards.
func TestFramesComeWhole(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var stream []byte
		var want [][]byte
		for range 30 {
			f := make([]byte, 2+rnd.IntN([]int{10, 300, 60_000}[rnd.IntN(3)]))
			for i := range f {
				f[i] = byte(rnd.Uint32())
			}
			binary.BigEndian.PutUint16(f, uint16(len(f)))
			want, stream = append(want, f), append(stream, f...)
		}
		r := &reader{t: t}
		var host []byte // what it holds
		events := 0
		for len(stream) > 0 {
			n := min(1+rnd.IntN([]int{5, 1000, 100_000}[rnd.IntN(3)]), len(stream))
			host, stream = append(host, stream[:n]...), stream[n:]
			view := bytes.Clone(host)
			bufs := [][]byte{view}
			if len(view) > 1 && rnd.IntN(2) == 0 {
				at := rnd.IntN(len(view))
				bufs = [][]byte{view[:at], view[at:]}
			}
			host = host[r.data(bufs, len(view), rnd.IntN(3) == 0):]
			events++
			for i := range view {
				view[i] = 0xdb
			}
		}
		require.Empty(t, host)
		require.Zero(t, r.in.Buffered())
		require.Zero(t, r.in.Need())
		require.LessOrEqual(t, r.in.Size(), keepBytes)
		require.Equal(t, want, r.frames)
		// A frame is looked at when it may be whole: at its first bytes, when its
		// length is there, and when all of it is.
		require.LessOrEqual(t, r.begun, 3*len(want))
	}
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
