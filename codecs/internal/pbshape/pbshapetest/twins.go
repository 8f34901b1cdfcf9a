// Package pbshapetest holds decoders that remember shapes against those that do not.
package pbshapetest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/codectest"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

// Twins are decoders of clients' requests of which one remembers shapes.
type Twins struct {
	t       testing.TB
	codec   codecs.Codec
	plain   codecs.Decoder
	learner codecs.Decoder
	shapes  *codecs.Shapes
}

// New returns twins that have seen nothing yet.
func New(t testing.TB, codec codecs.Codec) *Twins {
	tw := &Twins{t: t, codec: codec, shapes: new(codecs.Shapes)}
	tw.Connect()
	return tw
}

// Connect has both begin a new connection, with what has been learnt.
func (tw *Twins) Connect() {
	tw.plain, tw.learner = tw.codec.NewDecoder(codecs.ClientToServer), tw.codec.NewDecoder(codecs.ClientToServer)
	tw.learner.(codecs.Learner).Learn(tw.shapes)
}

// Learner returns the one that remembers.
func (tw *Twins) Learner() codecs.Decoder { return tw.learner }

// Same decodes a frame, holds all that both know of it against each other, and reports
// whether it had a known shape.
func (tw *Twins) Same(frame []byte) (shared bool) {
	tw.t.Helper()
	var want, got codecs.Metadata
	own := bytes.Clone(frame)
	n, err := tw.plain.Decode(frame, &want)
	k, errOf := tw.learner.Decode(own, &got)
	require.Equal(tw.t, fmt.Sprint(err, n), fmt.Sprint(errOf, k))
	if err != nil || n > len(frame) {
		return false
	}
	shared = got.Shape() != nil
	for _, id := range []uint64{want.ID, 1, 1<<32 - 1} {
		x, errX := tw.encoded(&want, id)
		y, errY := tw.encoded(&got, id)
		require.Equal(tw.t, fmt.Sprint(errX), fmt.Sprint(errY))
		require.Equal(tw.t, x, y)
	}
	text := codectest.Describe(&want) // which has all loaded
	scratch := want.Scratch
	require.Equal(tw.t, scratch, got.Scratch, text)
	for _, p := range want.Properties() { // one by one, before all are asked for
		x, _ := want.Get(string(p.Name))
		y, ok := got.Get(string(p.Name))
		require.True(tw.t, ok)
		require.Equal(tw.t, string(x), string(y), "%s of %s", p.Name, text)
	}
	require.Equal(tw.t, text, codectest.Describe(&got))
	if want.Malformed == "" {
		var other codecs.Metadata
		_, _ = tw.learner.Decode(own, &other)
		other.Detach()
		clear(own)
		require.Equal(tw.t, text, codectest.Describe(&other), "it outlives its frame")
		want.Detach()
	}
	return shared
}

func (tw *Twins) encoded(m *codecs.Metadata, id uint64) ([]byte, error) {
	defer func(was uint64) { m.ID = was }(m.ID)
	m.ID = id
	return tw.codec.Encode(nil, m, nil)
}

// Mutants has twins decode frames of which some bytes are others: what fits a shape or does
// not, by chance.
func Mutants(t *testing.T, codec codecs.Codec, frame func(i int) []byte) {
	rnd := rand.New(rand.NewPCG(1, 2))
	tw := New(t, codec)
	shared, n := 0, raced.Of(5000)
	for i := range n {
		b := frame(i)
		for range rnd.IntN(3) {
			b[rnd.IntN(len(b))] = byte(rnd.IntN(256))
		}
		if rnd.IntN(50) == 0 {
			tw.Connect()
		}
		if tw.Same(b) {
			shared++
		}
	}
	require.Greater(t, shared, n/4)
}

// Bounded holds that clients which never send the same twice neither fill the memory nor
// have it allocated for each request.
func Bounded(t *testing.T, codec codecs.Codec, frame func(i int) []byte) {
	var m codecs.Metadata
	i := 0
	sending := func(d codecs.Decoder) func() {
		return func() {
			i++
			m.Reset()
			_, err := d.Decode(frame(i), &m)
			require.NoError(t, err)
		}
	}
	learner := New(t, codec).Learner()
	for range 5000 {
		sending(learner)()
	}
	without := raced.AllocsPerRun(t, 6400, sending(codec.NewDecoder(codecs.ClientToServer)))
	require.LessOrEqual(t, raced.AllocsPerRun(t, 6400, sending(learner)), without+1)
}

// Fuzz has twins that know the shape of frames, with what differs in them, decode whatever
// the fuzzer makes of those.
func Fuzz(f *testing.F, codec codecs.Codec, frame func(i int) []byte) {
	for i := range 4 {
		f.Add(frame(i))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 {
			return
		}
		tw := New(t, codec)
		for i := range 10 {
			tw.Same(frame(i))
		}
		tw.Same(b)
		tw.Same(b)
		require.True(t, tw.Same(frame(10)))
	})
}
