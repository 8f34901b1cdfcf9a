package brpc

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/brpc/brpctest"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire/pbwiretest"
)

// TestTracesOfRequests are read, and written in the place of those that are there, beside
// all else that changes.
func TestTracesOfRequests(t *testing.T) {
	c := newCodec(t).(codecs.TraceCarrier)
	for name, r := range map[string]brpctest.Request{
		"none": {ID: 7}, "some": {ID: 7, TraceID: 1, SpanID: 2}, "all": {ID: 7, TraceID: -1, SpanID: 2, ParentID: 3, LogID: 4},
		"extension fields": {ID: 7, ExtFields: [][2]string{{"k", "v"}}}, "a stream": {ID: 7, TraceID: 1, Stream: 3}, "zeros": {ID: 7, Zeros: true},
	} {
		m := requestOf(t, r.Bytes())
		require.Equal(t, codecs.Trace{ID: uint64(r.TraceID), Span: uint64(r.SpanID), Parent: uint64(r.ParentID)}, c.Trace(m), name)
		for _, mut := range []*codecs.Mutation{{}, mutation("k", "new")} {
			mut.Trace = codecs.Trace{ID: 1 << 63, Span: 5, Parent: 6}
			out, err := newCodec(t).Encode(nil, m, mut)
			require.NoError(t, err, name)
			again := requestOf(t, out)
			require.Empty(t, again.Malformed)
			require.Equal(t, mut.Trace, c.Trace(again), name)
			frames, _ := brpctest.Parse(out)
			require.Equal(t, r.ID, frames[0].ID)
			counts := map[int]int{}
			pbwiretest.Fields(frames[0].Meta, func(n int, _ uint64, b []byte) {
				if n == 1 {
					pbwiretest.Fields(b, func(n int, _ uint64, _ []byte) { counts[n]++ })
				}
			})
			require.Equal(t, []int{1, 1, 1}, []int{counts[4], counts[5], counts[6]}, name)
		}
	}
}
