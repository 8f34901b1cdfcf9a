package tracing

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/facts"
)

type sink []*Span

func (s *sink) Offer(sp *Span) { *s = append(*s, sp) }

// TestTimesAreInTheirOrder, whatever the clocks say: those of the wall are steps of the
// worker's back from the end.
func TestTimesAreInTheirOrder(t *testing.T) {
	now := time.Hour
	for _, wall := range []time.Time{{}, time.Unix(1, 0), time.Now(), time.Unix(1<<40, 0)} {
		for _, f := range []facts.Facts{
			{Start: now, End: now},
			{Start: now, Sent: now + 1, Answered: now + 2, End: now + time.Hour, Attempts: 1},
			{Start: now, Sent: now + time.Second, Answered: now - 1, End: now - time.Second, Attempts: 1}, // of a clock that is broken
		} {
			c := &Config{random: shares, overall: shares, verbose: true, SpawnUpstream: true, maxLength: 9}
			w := NewWorker(func() time.Duration { return now }, rand.New(rand.NewPCG(1, 1)))
			l := w.Begin(c, new(codecs.Metadata), Carrier{}, new(codecs.Mutation))
			l.AddEvent("e")
			var got sink
			l.End(&Ending{Facts: &f, Time: wall}, &got)
			require.NotEmpty(t, got)
			for _, s := range got {
				require.False(t, s.End.Before(s.Start))
				require.False(t, s.Start.Before(got[0].Start))
				require.False(t, s.End.After(got[0].End))
			}
			for _, e := range got[0].Events {
				require.False(t, e.Time.After(got[0].End))
			}
			w.Free(l)
		}
	}
}

// TestWhatPeersChooseIsBoundedText, and UTF-8.
func TestWhatPeersChooseIsBoundedText(t *testing.T) {
	c := &Config{maxLength: 4}
	require.Equal(t, "abcd", c.text([]byte("abcdef")))
	require.Equal(t, "abc\uFFFD", c.text([]byte("abc\xff")))
	require.Equal(t, "abc\uFFFD", c.text([]byte("abcö"))) // cut in two
	require.Empty(t, c.text(nil))
}
