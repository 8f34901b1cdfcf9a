package codectest

import (
	"cmp"
	"fmt"
	"math"
	"runtime"
	"slices"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/internal/cputime"
)

const (
	// maxCost is how many times its own bytes a frame may cost in memory, and
	// how many times a normal one's time per byte.
	maxCost = 100
	// slack is how much memory a frame may cost whatever its size.
	slack = 4 << 10
	// minNormal is for how many bytes a normal message is taken at least: what
	// does not depend on the size is not to count for each byte.
	minNormal = 256
	// maxPieces is in how many reads a large frame comes at most.
	maxPieces = 2048
)

// job is all that is done with a frame in the course of its life.
type job struct {
	c   *check
	w   where
	dir codecs.Direction
	dec codecs.Decoder
	mut *codecs.Mutation
	// as of another attempt
	attempt   codecs.Mutation
	deadliner codecs.Deadliner
	payloader codecs.Payloader
	other     codecs.Mutation // with its own payload
	m         *codecs.Metadata
	out       []byte
	need      int
}

// job is one with room for what frames of a size are encoded to.
func (c *check) job(w where, d codecs.Direction, dec codecs.Decoder, size int) *job {
	j := &job{c: c, w: w, dir: d, dec: dec, mut: c.everything(d), m: new(codecs.Metadata)}
	j.attempt = codecs.Mutation{Timeout: time.Minute, Retry: 1}
	j.deadliner, _ = c.codec.(codecs.Deadliner)
	j.payloader, _ = c.codec.(codecs.Payloader)
	more := slack
	for _, kv := range j.mut.Entries() {
		more += 4 * (len(kv.Key) + len(kv.Value))
	}
	j.out = make([]byte, 0, size+more)
	return j
}

// do decodes b if it is as long as was asked for, and once it is whole encodes
// it in all ways. What is wrong with it is for other checks to tell.
func (j *job) do(b []byte) {
	if len(b) < j.need {
		return
	}
	m := j.m
	m.Reset()
	j.c.guard(j.w, b, func() {
		n, err := j.dec.Decode(b, m)
		if err != nil || n > len(b) {
			j.need = n
			return
		}
		j.need = 0
		m.Properties()
		j.encode()
	})
}

func (j *job) encode() {
	m := j.m
	j.append(nil)
	if must, _ := takesID(m); must && j.c.traits.Correlation == codecs.ByID {
		id := m.ID
		m.ID = j.c.traits.MaxID - id%2
		j.append(nil)
		m.ID = id
	}
	if j.mut != nil && mutates(m.Type) {
		j.append(j.mut)
	}
	if j.dir == codecs.ClientToServer && mutates(m.Type) {
		if j.deadliner != nil {
			j.deadliner.Timeout(m)
		}
		j.append(&j.attempt)
	}
	if j.payloader != nil && carries(m) {
		if p, err := j.payloader.Payload(m); err == nil {
			j.other.SetPayload(p)
			j.append(&j.other)
		}
	}
}

func (j *job) append(mut *codecs.Mutation) {
	if out, err := j.c.codec.Encode(j.out[:0], j.m, mut); err == nil {
		j.out = out
	}
}

// inPieces does so with b as it comes in many reads.
func (j *job) inPieces(b []byte) {
	step := 1 + len(b)/maxPieces
	for end := step; ; end += step {
		j.do(b[:min(end, len(b))])
		if end >= len(b) {
			return
		}
	}
}

// hostile checks that no frame costs much more memory than it has bytes.
func (c *check) hostile() {
	c.each(all, func(st *stream) {
		dec := c.decoder(st)
		for k := range st.frames {
			w := where{stream: st, frame: k}
			again := func() codecs.Decoder {
				dec := c.decoder(st)
				c.upTo(w, dec, st, k, math.MaxInt)
				return dec
			}
			c.frugal(w, st.frame(k), c.job(w, st.dir, dec, st.frames[k].n), again)
		}
	})
	c.eachHostile(func(w where, f Frame) {
		again := func() codecs.Decoder { return c.after(f) }
		c.frugal(w, f.Bytes, c.job(w, f.Direction, again(), len(f.Bytes)), again)
		w.doing = fmt.Sprintf("in %d pieces", maxPieces)
		b := f.Bytes
		j := c.job(w, f.Direction, c.after(f), len(b))
		if got := allocated(func() { j.inPieces(b) }); got > slack+maxCost*uint64(len(b)) {
			c.failf(w, b, "a frame of %d bytes costs %d bytes of memory", len(b), got)
		}
	})
}

func (c *check) eachHostile(f func(w where, hostile Frame)) {
	for _, h := range c.s.Hostile {
		c.attempt(func() { f(where{name: h.Name}, h) })
	}
}

// after returns a decoder that has seen the frame's prelude.
func (c *check) after(f Frame) codecs.Decoder {
	dec := answering(c.codec.NewDecoder(f.Direction), f.Direction, c.requestsOf(f.Name, f.Requests))
	var m codecs.Metadata
	for b := f.Prelude; len(b) > 0; {
		n, err := c.decode(where{name: f.Name, doing: "its prelude"}, dec, &m, b)
		if err != nil || n > len(b) {
			c.failf(where{name: f.Name}, b, "the prelude is not of whole frames: %v", err)
		}
		b = b[n:]
	}
	return dec
}

// frugal fails if frame b costs more memory than it may. The decoder is not part
// of it. What others allocate meanwhile is: so it is tried again if it was much.
func (c *check) frugal(w where, b []byte, j *job, again func() codecs.Decoder) {
	most := slack + maxCost*uint64(len(b))
	got := allocated(func() { j.do(b) })
	for try := 0; try < 3 && got > most; try++ {
		j = c.job(w, j.dir, again(), len(b))
		got = min(got, allocated(func() { j.do(b) }))
	}
	if got > most {
		c.failf(w, b, "a frame of %d bytes costs %d bytes of memory", len(b), got)
	}
}

// allocated returns how many bytes f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// price is what a normal message takes.
type price struct {
	bytes int
	time  time.Duration
}

// of is what n bytes may take.
func (p price) of(n int) time.Duration {
	return time.Duration(float64(maxCost) * float64(p.time) * max(1, float64(n)/float64(p.bytes)))
}

// cost checks that no frame takes much more time than others of its size, also
// if it comes in many pieces. What is compared is the codec with itself, on the
// same machine at the same time.
func (c *check) cost() {
	normal := c.normal()
	slow := func(w where, b []byte, f func()) {
		if took := fastest(normal.of(len(b)), f); took > normal.of(len(b)) {
			c.failf(w, b, "a frame of %d bytes takes %v, a normal one of %d bytes %v", len(b), took, normal.bytes, normal.time)
		}
	}
	c.each(all, func(st *stream) {
		j := c.job(where{stream: st}, st.dir, c.decoder(st), 0)
		for k := range st.frames {
			j.w.frame = k
			before := taken(j.dec)
			slow(j.w, st.frame(k), func() {
				rewind(j.dec, before)
				j.do(st.frame(k))
			})
		}
	})
	c.eachHostile(func(w where, f Frame) {
		j := c.job(w, f.Direction, c.after(f), len(f.Bytes))
		before := taken(j.dec)
		slow(w, f.Bytes, func() {
			rewind(j.dec, before)
			j.do(f.Bytes)
		})
		w.doing = fmt.Sprintf("in %d pieces", maxPieces)
		slow(w, f.Bytes, func() { c.job(w, f.Direction, c.after(f), len(f.Bytes)).inPieces(f.Bytes) })
	})
}

// normal is the median of the suite's streams, of those with small frames if
// there are any.
func (c *check) normal() price {
	var prices []price
	for _, largest := range []int{4 << 10, 1 << 30} {
		for _, st := range c.streams {
			n := min(len(st.frames), 16)
			bytes := st.frames[n-1].at + st.frames[n-1].n
			if st.kind&sound == 0 || bytes/n > largest {
				continue
			}
			took := fastest(0, func() {
				j := c.job(where{stream: st}, st.dir, c.decoder(st), 0)
				for k := range n {
					j.do(st.frame(k))
				}
			})
			prices = append(prices, price{max(bytes/n, minNormal), max(took/time.Duration(n), time.Microsecond/10)})
		}
		if len(prices) > 0 {
			break
		}
	}
	slices.SortFunc(prices, func(a, b price) int { return cmp.Compare(a.time, b.time) })
	return prices[len(prices)/2]
}

// fastest returns how much processor time f takes when nothing disturbs it. It
// stops trying when that is no more than enough, or there is little hope.
func fastest(enough time.Duration, f func()) time.Duration {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	best := time.Duration(1<<63 - 1)
	began := time.Now()
	for i := range 20 {
		start := cputime.Used()
		f()
		best = min(best, cputime.Used()-start)
		if best <= enough || i >= 2 && (best > 4*enough && enough > 0 || time.Since(began) > 2*time.Second) {
			break
		}
	}
	return best
}
