package codectest

import (
	"fmt"
	"hash/crc32"
	"slices"
	"testing"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
)

const (
	// maxFuzzed is how many bytes of a fuzzer's input are looked at; of a seed
	// as many whole frames as fit.
	maxFuzzed = 4 << 10
	// maxFuzzedFrames of an input are looked at.
	maxFuzzedFrames = 16
)

// FuzzDecode fuzzes what peers send, in both directions: no bytes may panic, be
// decoded differently when they are cut, cost too much, or be encoded wrongly
// with their own id or another, or with the suite's mutations. Its seeds are the
// captures, frames and invalid bytes of the suite; a failure of one tells its
// name.
func FuzzDecode(f *testing.F, s Suite) {
	f.Helper()
	c, stop := newFuzz(f, &s)
	defer stop()
	for _, seed := range c.seeds() {
		f.Add(seed.bytes)
	}
	input := c.inputs()
	normal := c.normal()
	f.Fuzz(func(t *testing.T, b []byte) {
		for d := range codecs.Direction(2) {
			c.fuzzing(directly{t}).fuzzDecode(input(b), d, normal)
		}
	})
}

// FuzzEncode fuzzes what filters and errors bring along: whatever is to be set
// in a message, whoever it is answered by, what goes out is one whole frame that
// says the same otherwise. Its seeds are those of [FuzzDecode] with the suite's
// mutations, and those that it refuses.
func FuzzEncode(f *testing.F, s Suite) {
	f.Helper()
	c, stop := newFuzz(f, &s)
	defer stop()
	muts := slices.Concat(s.Mutations, s.Refused, []Mutation{{Key: "key", Value: "value"}})
	for i, seed := range c.seeds() {
		mu := muts[i%len(muts)]
		f.Add(seed.bytes, mu.Key, mu.Value, texts[i%len(texts)].text[:min(len(texts[i%len(texts)].text), 256)], c.traits.MaxID>>(i%40))
	}
	for _, mu := range muts { // on the first messages of either side
		for _, seed := range c.firsts() {
			f.Add(seed.bytes, mu.Key, mu.Value, "", uint64(1))
		}
	}
	input := c.inputs()
	f.Fuzz(func(t *testing.T, b []byte, key, value, text string, id uint64) {
		for d := range codecs.Direction(2) {
			c.fuzzing(directly{t}).fuzzEncode(input(b), d, Mutation{Direction: d, Key: key, Value: value}, text, id)
		}
	})
}

func newFuzz(f *testing.F, s *Suite) (c *check, stop func()) {
	f.Helper()
	dog := &watchdog{}
	if c = newCheck(directly{f}, s, dog); c == nil {
		f.FailNow()
	}
	return c, dog.watch()
}

// fuzzing is c for one input.
func (c *check) fuzzing(t reporter) *check {
	one := *c
	one.t, one.mem, one.light = t, memory{}, true
	return &one
}

// input is what a fuzzer tries, and the requests that wait for its answers, if it
// has some.
type input struct {
	name     string
	bytes    []byte
	requests []*codecs.Metadata
}

// seeds are the suite's bytes.
func (c *check) seeds() (seeds []input) {
	for _, st := range c.streams {
		end := 0
		for _, f := range st.frames {
			if f.at+f.n > maxFuzzed {
				break
			}
			end = f.at + f.n
		}
		if end > 0 {
			seeds = append(seeds, input{st.name, st.bytes[:end], st.requests})
		}
	}
	for _, in := range c.s.Invalid {
		seeds = append(seeds, input{in.Name, in.Bytes[:min(len(in.Bytes), maxFuzzed)], c.requestsOf(in.Name, in.Requests)})
	}
	return seeds
}

// inputs returns what tells what bytes are. Of those that are no seed the requests
// are the suite's, one of them over and over, or none.
func (c *check) inputs() func(b []byte) input {
	known := map[string]input{}
	for _, seed := range append(c.seeds(), c.firsts()...) {
		known[string(seed.bytes)] = seed
	}
	others := append(c.others(), nil)
	return func(b []byte) input {
		if in, ok := known[string(b)]; ok {
			return in
		}
		in := input{name: "fuzzed bytes", bytes: b}
		if req := others[crc32.ChecksumIEEE(b)%uint32(len(others))]; req != nil {
			in.requests = slices.Repeat([]*codecs.Metadata{req}, maxFuzzedFrames)
		}
		return in
	}
}

// firsts are one seed of each side whose messages can be mutated.
func (c *check) firsts() (seeds []input) {
	for d := range codecs.Direction(2) {
		for _, st := range c.streams {
			f := st.frames[st.first]
			if st.dir == d && st.kind&sound != 0 && mutates(f.meta.Type) && f.n <= maxFuzzed && st.first == 0 {
				seeds = append(seeds, input{st.name, st.frame(0), st.requests})
				break
			}
		}
	}
	return seeds
}

// scan decodes what are whole frames at the start of the input, and returns what is
// behind them with the error that it causes.
func (c *check) scan(in input, d codecs.Direction) (st *stream, rest []byte, err error) {
	b := in.bytes[:min(len(in.bytes), maxFuzzed)]
	st = &stream{name: in.name, kind: handMade, dir: d, requests: in.requests}
	dec := c.decoder(st)
	at := 0
	for at < len(b) {
		if len(st.frames) == maxFuzzedFrames {
			b = b[:at]
			break
		}
		m := new(codecs.Metadata)
		var n int
		n, err = c.decode(where{name: in.name, doing: fmt.Sprintf("%s, from offset %d on", d, at)}, dec, m, b[at:])
		if err != nil || n > len(b)-at {
			break
		}
		m.Detach()
		st.frames = append(st.frames, frame{at, n, m, taken(dec)})
		at += n
	}
	st.bytes = b[:at]
	return st, b[at:], err
}

func (c *check) fuzzDecode(in input, d codecs.Direction, normal price) {
	c.attempt(func() {
		if s, ok := c.codec.(codecs.Sniffer); ok && len(in.bytes) > 0 {
			c.sniff(where{name: in.name, doing: "sniffed"}, s, in.bytes)
		}
		st, rest, err := c.scan(in, d)
		c.remainder(st, rest, err)
		c.price(st, rest, normal)
		if len(st.frames) == 0 {
			return
		}
		c.streams = []*stream{st}
		for _, property := range []func(*check){
			(*check).splits, (*check).views, (*check).roundTrip, (*check).ids, (*check).mutation, (*check).removal,
			(*check).timeouts, (*check).retries, (*check).payloads, (*check).errorReplies, (*check).successReplies, (*check).heartbeats, (*check).streamResets, (*check).answers, (*check).shapes,
		} {
			property(c)
		}
	})
}

// remainder hands the bytes behind st over in pieces: they must not be refused
// if they were not as a whole.
func (c *check) remainder(st *stream, rest []byte, whole error) {
	w := where{name: st.name, doing: "in pieces"}
	dec := c.decoder(st)
	var m codecs.Metadata
	for k := range st.frames {
		c.whole(w, dec, &m, st.frame(k), st.frames[k].n)
	}
	need := 1
	for end := 1; end <= len(rest); end += 1 + len(rest)/64 {
		if end < need {
			continue
		}
		n, err := c.decode(w, dec, &m, rest[:end])
		switch {
		case err != nil && (whole == nil || tooLarge(err) != tooLarge(whole)):
			c.failf(w, rest[:end], "a part is refused (%v), but of the whole the codec says %v", err, whole)
		case err != nil:
			return
		case n <= end:
			c.failf(w, rest[:end], "a part is a frame, the whole is not")
		}
		need = n
	}
}

// price holds what st and the bytes behind it cost against what is normal.
func (c *check) price(st *stream, rest []byte, normal price) {
	b := append(slices.Clone(st.bytes), rest...)
	w := where{name: st.name, doing: "priced"}
	j := c.job(w, st.dir, nil, len(b))
	run := func() {
		j.dec, j.m, j.need = c.decoder(st), new(codecs.Metadata), 0
		for k := range st.frames {
			j.do(st.frame(k))
		}
		if len(rest) > 0 {
			j.do(rest)
		}
	}
	frames := len(st.frames) + 1
	if got := allocated(run); got > uint64(frames)*4*slack+maxCost*uint64(len(b)) {
		c.failf(w, b, "%d bytes cost %d bytes of memory", len(b), got)
	}
	enough := normal.of(len(b)) * time.Duration(frames)
	if took := fastest(enough, run); took > enough {
		c.failf(w, b, "%d bytes take %v, a normal frame of %d bytes %v", len(b), took, normal.bytes, normal.time)
	}
}

func (c *check) fuzzEncode(in input, d codecs.Direction, mu Mutation, text string, id uint64) {
	c.attempt(func() {
		st, _, _ := c.scan(in, d)
		for k := range st.frames {
			if mutates(st.frames[k].meta.Type) {
				c.fuzzFrame(st, k, mu, text, id)
			}
		}
	})
}

func (c *check) fuzzFrame(st *stream, k int, mu Mutation, text string, id uint64) {
	w := where{stream: st, frame: k, doing: fmt.Sprintf("with %.40q set to %.40q and id %d", mu.Key, mu.Value, id)}
	dec, back := c.decoder(st), c.decoder(st)
	var m, o codecs.Metadata
	for i := range k + 1 {
		c.whole(w, dec, &m, st.frame(i), st.frames[i].n)
		if i < k {
			c.whole(w, back, &o, st.frame(i), st.frames[i].n)
		}
	}
	req := st.frames[k].meta
	if _, ok := c.codec.(codecs.Payloader); ok && carries(req) {
		of := w
		of.doing = "with the text for a payload"
		c.withPayload(of, k, &m, codecs.Payload{Bytes: []byte(text), Compression: int32(id % 4)})
	}
	if _, may := takesID(&m); may && c.traits.Correlation == codecs.ByID && c.traits.MaxID < 1<<64-1 {
		m.ID = id % (c.traits.MaxID + 1)
	}
	var mut codecs.Mutation
	mut.Set(mu.Key, mu.Value)
	id = m.ID
	out, err := c.message(w, &m, &mut)
	if err == nil {
		c.whole(w, back, &o, out, len(out))
		if d := difference(req, outspoken(&o, req), identity|sizes|private|views); d != "" {
			c.failf(w, out, "the mutated message has changed otherwise: %s", d)
		}
		if must, _ := takesID(&m); must && m.StreamID == 0 && o.ID != id {
			c.failf(w, out, "the message encoded with id %d is decoded with id %d", id, o.ID)
		}
		mutator, ok := c.codec.(codecs.Mutator)
		if ok && mutator.CheckMutation(st.dir, mu.Key, mu.Value) == nil {
			c.mutatedProperties(w, out, req, &o, []Mutation{c.known(mu)})
		} else {
			c.sameCall(w, out, req, &o)
		}
	} else if !isNoMutation(err) {
		if _, other := c.message(w, &m, nil); other == nil {
			c.failf(w, m.Raw, "Encode: %v, which ends the message; want one that wraps codecs.ErrNoMutation", err)
		}
	}
	if st.dir == codecs.ClientToServer && isFailed(m.Type) {
		m.ID = req.ID
		m.Release()
		c.isError(w, req, c.errorReply(w, st.frame(k), &m, &codecs.LocalError{Type: codecs.ErrorType(id) % errorTypes, Message: text}))
	}
}

// known is mu with the property that the suite says its key becomes.
func (c *check) known(mu Mutation) Mutation {
	for _, s := range c.s.Mutations {
		if s.Key == mu.Key && s.Direction == mu.Direction {
			mu.Property = s.Property
		}
	}
	return mu
}

// sameCall checks that a mutation that CheckMutation refuses has not changed
// what the protocol itself says of a message.
func (c *check) sameCall(w where, out []byte, m, o *codecs.Metadata) {
	want, got := byName(m), byName(o)
	for _, name := range c.traits.Attributes {
		if !slices.Equal(want[name], got[name]) {
			c.failf(w, out, "attribute %q has changed from %.80q to %.80q", name, want[name], got[name])
		}
	}
	if x, y := m.AppendOperation(nil), o.AppendOperation(nil); string(x) != string(y) {
		c.failf(w, out, "the operation has changed from %.80q to %.80q", x, y)
	}
}
