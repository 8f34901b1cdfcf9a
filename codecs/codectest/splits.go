package codectest

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

// seed of all that is drawn by lot: a failure comes again.
const seed = 0x6d656c74656d69

func lots(salt uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, salt)) }

const (
	// short streams are cut at every offset.
	short = 48 << 10
	// Others than tiny ones are not cut in two with the race detector.
	tiny = 1 << 10
	// maxCalls of Decode for the cuts of one stream.
	maxCalls = 300_000
	// rounds of a stream in pieces drawn by lot.
	rounds = 16
)

// splits checks that what comes out does not depend on how the bytes are cut.
func (c *check) splits() {
	c.each(all, func(st *stream) {
		light := c.light || raced.Detector && len(st.bytes) > tiny
		if !light {
			c.cutInTwo(st)
		}
		if len(st.bytes) <= short {
			c.inPieces(st, "byte by byte", func() int { return 1 })
		}
		rounds := rounds
		if light {
			rounds = 4
		}
		for round := range rounds {
			r := lots(uint64(round))
			most := max(2, len(st.bytes)>>(round/2))
			c.inPieces(st, fmt.Sprintf("in pieces of up to %d bytes", most), func() int { return 1 + r.IntN(most) })
		}
		c.followed(st)
	})
}

// cutInTwo cuts the frames in two, all at one offset in each pass over the
// stream: decoders may remember what came before, so each gets it all.
func (c *check) cutInTwo(st *stream) {
	var m codecs.Metadata
	for _, cut := range st.cuts() {
		dec := c.decoder(st)
		for k, f := range st.frames[:st.lastLonger(cut)+1] {
			w := where{stream: st, frame: k, split: cut}
			if cut < f.n {
				part := st.frame(k)[:cut]
				n, err := c.decode(w, dec, &m, part)
				switch {
				case err != nil:
					c.failf(w, part, "a part of the frame is refused: %v", err)
				case n <= cut:
					c.failf(w, part, "a part of the frame is taken for the whole, with a length of %d%s", n, howToAsk(n, part))
				case n > f.n:
					c.failf(w, part, "Decode asks for %d bytes, but the frame has only %d", n, f.n)
				}
			}
			rest := st.bytes[f.at:]
			if k%2 == 1 { // nothing behind it
				rest = st.frame(k)
			}
			c.whole(w, dec, &m, rest, f.n)
			c.sameAnswer(w, dec, rest, f, &m)
		}
	}
}

// same fails if m is not what the frame was decoded to first.
func (c *check) same(w where, b []byte, f frame, m *codecs.Metadata) {
	if d := difference(f.meta, m, 0); d != "" {
		c.failf(w, b, "it decodes to something else than the stream as a whole does: %s", d)
	}
}

// cuts are the offsets at which frames of st are cut: all of them unless it is
// long.
func (st *stream) cuts() []int {
	longest := 0
	for _, f := range st.frames {
		longest = max(longest, f.n)
	}
	count := longest - 1
	if len(st.bytes) > short || count*len(st.frames) > maxCalls {
		count = min(count, 1024, max(256, maxCalls/len(st.frames)))
	}
	var cuts []int
	if count == longest-1 {
		for i := 1; i < longest; i++ {
			cuts = append(cuts, i)
		}
		return cuts
	}
	// The headers, the ends, and some between.
	r := lots(uint64(longest))
	for i := range count {
		switch {
		case i < count/2:
			cuts = append(cuts, 1+i)
		case i < count/2+16:
			cuts = append(cuts, longest-1-(i-count/2))
		default:
			cuts = append(cuts, 1+r.IntN(longest-1))
		}
	}
	slices.Sort(cuts)
	return slices.Compact(cuts)
}

// lastLonger is the last frame of more than n bytes.
func (st *stream) lastLonger(n int) int {
	for k := len(st.frames) - 1; ; k-- {
		if k == 0 || st.frames[k].n > n {
			return k
		}
	}
}

// inPieces hands st over in pieces of the sizes that next returns, as reads
// bring them, and calls Decode as the pipeline does: not before the bytes that
// it asked for are there.
func (c *check) inPieces(st *stream, doing string, next func() int) {
	dec := c.decoder(st)
	var m codecs.Metadata
	at, need, end := 0, 1, 0
	for k := 0; k < len(st.frames); {
		w := where{stream: st, frame: k, doing: doing}
		f := st.frames[k]
		if end-at < need {
			if end == len(st.bytes) {
				c.failf(w, st.bytes[at:], "Decode still asks for %d bytes when all %d of the frame are there", need, f.n)
			}
			end = min(len(st.bytes), end+next())
			continue
		}
		b := st.bytes[at:end]
		n, err := c.decode(w, dec, &m, b)
		switch {
		case err != nil:
			c.failf(w, b, "it is refused: %v", err)
		case n <= len(b) && n != f.n:
			c.failf(w, b, "the frame has %d bytes, Decode takes %d", f.n, n)
		case n > len(b) && n > f.n:
			c.failf(w, b, "Decode asks for %d bytes, but the frame has only %d", n, f.n)
		case n > len(b):
			need = n
			continue
		}
		c.sameAnswer(w, dec, b, f, &m)
		k, at, need = k+1, at+n, 1
	}
}

// followed hands every frame over with bytes behind it that are of no frame.
func (c *check) followed(st *stream) {
	dec := c.decoder(st)
	var m codecs.Metadata
	for k, f := range st.frames {
		b := append(slices.Clip(st.frame(k)), "\xdb\x00\xff bytes of nothing \x00\x00\x00\x00"...)
		w := where{stream: st, frame: k, doing: "with other bytes behind it"}
		c.whole(w, dec, &m, b, f.n)
		c.sameAnswer(w, dec, b, f, &m)
	}
}
