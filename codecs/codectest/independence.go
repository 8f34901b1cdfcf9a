package codectest

import (
	"bytes"
	"sync"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// manyFrames of a stream are enough to see whether it disturbs another.
const manyFrames = 32

// independence checks that neither decoders nor messages that are used in turns
// have an influence on each other.
func (c *check) independence() {
	i := 0
	c.each(all, func(st *stream) {
		i++
		other := c.streams[i%len(c.streams)]
		if other == st {
			other = c.streams[0]
		}
		c.inTurns([2]*stream{st, other})
	})
}

// inTurns decodes two streams frame by frame in turns, each frame in two parts,
// and looks at the messages of the round before too.
func (c *check) inTurns(streams [2]*stream) {
	type message struct {
		mem memory
		m   codecs.Metadata
	}
	var held [2][2]message // by stream and round
	var decs [2]codecs.Decoder
	for i, st := range streams {
		decs[i] = c.decoder(st)
	}
	each := func(k int, f func(w where, i int, st *stream)) {
		for i, st := range streams {
			if k >= 0 && k < min(len(st.frames), manyFrames) {
				f(where{stream: st, frame: k, doing: "in turns with " + streams[1-i].name}, i, st)
			}
		}
	}
	for k := range manyFrames {
		each(k, func(w where, i int, st *stream) {
			if half := st.frames[k].n / 2; half > 0 {
				_, _ = c.decode(w, decs[i], new(codecs.Metadata), st.frame(k)[:half])
			}
		})
		each(k, func(w where, i int, st *stream) {
			msg, b := &held[i][k%2], st.frame(k)
			c.wholeLent(w, decs[i], &msg.m, msg.mem.lend(b), b, len(b))
		})
		for _, round := range []int{k, k - 1} {
			each(round, func(w where, i int, st *stream) {
				m := &held[i][round&1].m
				c.same(w, st.frame(round), st.frames[round], m)
				out, err := c.message(w, m, nil)
				if err != nil || !bytes.Equal(out, st.frame(round)) && !reserved(m.Type) {
					c.failf(w, st.frame(round), "encoded without a change it becomes (error %v)\n%s", err, dump(out))
				}
			})
		}
	}
}

// concurrency uses the codec from several goroutines at once, as the workers
// do. With the race detector it sees more.
func (c *check) concurrency() {
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			own := *c
			own.mem, own.dog = memory{}, nil
			own.attempt(func() { own.work(worker) })
		})
	}
	wg.Wait()
}

// work is what a worker does with the codec.
func (c *check) work(worker int) {
	for i := range c.streams {
		st := c.streams[(i+worker)%len(c.streams)]
		dec := c.decoder(st)
		var m codecs.Metadata
		for k := range min(len(st.frames), manyFrames) {
			w := where{stream: st, frame: k, doing: "while others use the codec"}
			b := st.frame(k)
			c.whole(w, dec, &m, b, len(b))
			c.same(w, b, st.frames[k], &m)
			if out, err := c.message(w, &m, nil); err != nil || !bytes.Equal(out, b) && !reserved(m.Type) {
				c.failf(w, b, "it becomes (error %v)\n%s", err, dump(out))
			}
			_, _ = c.message(w, &m, c.everything(st.dir))
			if isFailed(m.Type) && !isStream(m.Type) && st.dir == codecs.ClientToServer {
				c.isError(w, &m, c.errorReply(w, b, &m, &codecs.LocalError{Message: texts[1].text}))
			}
			if s, ok := c.codec.(codecs.Sniffer); ok {
				c.guard(w, b, func() { s.Sniff(b) })
			}
		}
	}
}
