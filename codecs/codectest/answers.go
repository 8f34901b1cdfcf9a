package codectest

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// decoder returns one that decodes st from its start. A codecs.AnswerDecoder
// gets to see the requests that the answers belong to.
func (c *check) decoder(st *stream) codecs.Decoder {
	return c.decoderOf(c.codec, st)
}

func (c *check) decoderOf(codec codecs.Codec, st *stream) codecs.Decoder {
	return answering(codec.NewDecoder(st.dir), st.dir, st.requests)
}

// answering makes Decode of an AnswerDecoder what the pipeline calls.
func answering(dec codecs.Decoder, d codecs.Direction, requests []*codecs.Metadata) codecs.Decoder {
	if a, ok := dec.(codecs.AnswerDecoder); ok && d == codecs.ServerToClient {
		return &answers{AnswerDecoder: a, requests: requests}
	}
	return dec
}

// answers lends the requests that wait to an AnswerDecoder, one at a time.
type answers struct {
	codecs.AnswerDecoder
	requests []*codecs.Metadata
	taken    int // of the requests: they have their answers, or will have none
	lent     codecs.Metadata
}

// taken is how many requests do not wait any more for dec to decode their answers.
func taken(dec codecs.Decoder) int {
	if a, ok := dec.(*answers); ok {
		return a.taken
	}
	return 0
}

// rewind has n of the requests taken.
func rewind(dec codecs.Decoder, n int) {
	if a, ok := dec.(*answers); ok {
		a.taken = n
	}
}

// head is the request that waits first, nil if none does.
func (a *answers) head() *codecs.Metadata {
	if a.taken < len(a.requests) {
		return a.requests[a.taken]
	}
	return nil
}

// Decode implements codecs.Decoder.
func (a *answers) Decode(buf []byte, m *codecs.Metadata) (n int, err error) {
	for {
		req := a.head()
		n, err = a.ask(buf, m, req)
		switch {
		case errors.Is(err, codecs.ErrUnanswered) && (req == nil || req.Type != codecs.Quiet):
			panic(breach(fmt.Sprintf("ErrUnanswered is returned though %s", ofRequest(req))))
		case errors.Is(err, codecs.ErrUnanswered) && a.taken+1 < len(a.requests):
			a.taken++
			m.Reset()
			continue
		case err == nil && n <= len(buf) && m.Silent && (req == nil || !reserved(req.Type)):
			panic(breach(fmt.Sprintf("the answer is Silent though %s", ofRequest(req))))
		case req != nil && (err == nil && n <= len(buf) || tooLarge(err)) && answersTo(m.Type, req.Type):
			a.taken++
		}
		return n, err
	}
}

func ofRequest(req *codecs.Metadata) string {
	if req == nil {
		return "no request waits"
	}
	return fmt.Sprintf("the request is a %s, not quiet", req.Type)
}

// ask has the answer to req decoded.
func (a *answers) ask(buf []byte, m, req *codecs.Metadata) (n int, err error) {
	if req == nil {
		return a.DecodeAnswer(buf, m, nil)
	}
	info := a.lent.ReplyInfo[:0]
	a.lent = codecs.Metadata{ // as of a request whose frame has gone
		Type: req.Type, Status: req.Status, ExpectsReply: req.ExpectsReply, ID: req.ID, FixedID: req.FixedID, StreamID: req.StreamID,
		Retried: req.Retried, Lease: req.Lease, Variant: req.Variant, HeaderSize: req.HeaderSize, BodySize: req.BodySize, Malformed: req.Malformed,
		Scratch: req.Scratch, ReplyInfo: append(info, req.ReplyInfo...),
	}
	n, err = a.DecodeAnswer(buf, m, &a.lent)
	if d := difference(req, &a.lent, views); d != "" {
		panic(breach("DecodeAnswer changes the request: " + d))
	}
	info = a.lent.ReplyInfo
	fill(info, poison) // it may be another's when the next answer comes
	a.lent = codecs.Metadata{Type: 0xff, ID: req.ID + 1, ReplyInfo: info}
	return n, err
}

func isAnswer(t codecs.MessageType) bool { return t == codecs.Response || t == codecs.Error }

// isAsked tells the types of requests whose answers come in order, those included
// that the pipeline itself gives: captures know of no pipeline.
func isAsked(m *codecs.Metadata) bool {
	switch m.Type {
	case codecs.Request, codecs.Quiet, codecs.Muted:
		return true
	case codecs.Heartbeat, codecs.Goodbye:
		return m.ExpectsReply
	default:
		return false
	}
}

// answersTo reports whether a message of type t answers a request of another.
func answersTo(t, request codecs.MessageType) bool {
	return isAnswer(t) || t == codecs.Heartbeat && (request == codecs.Heartbeat || request == codecs.Goodbye)
}

// upTo has dec decode the frames of st before frame k that are within a limit.
func (c *check) upTo(w where, dec codecs.Decoder, st *stream, k, limit int) {
	var m codecs.Metadata
	for i := range k {
		if st.frames[i].n <= limit {
			_, _ = c.decode(w, dec, &m, st.frame(i))
		} else {
			rewind(dec, st.frames[i].taken)
		}
	}
}

// seesRequests reports whether the codec's answers depend on the requests.
func (c *check) seesRequests() bool {
	_, ok := c.codec.NewDecoder(codecs.ServerToClient).(codecs.AnswerDecoder)
	return ok
}

// requestsOf decodes the requests that the answers of a stream belong to.
func (c *check) requestsOf(name string, b []byte) (requests []*codecs.Metadata) {
	dec := c.codec.NewDecoder(codecs.ClientToServer)
	for at := 0; at < len(b); {
		w := where{name: name, doing: fmt.Sprintf("its requests, from offset %d on", at)}
		m := new(codecs.Metadata)
		n, err := c.decode(w, dec, m, b[at:])
		if err != nil || n > len(b)-at {
			c.failf(w, b[at:], "they are not whole frames (error %v)", err)
		}
		if isAsked(m) {
			m.Release()
			requests = append(requests, m)
		}
		at += n
	}
	return requests
}

// maxOthers is how many requests an answer is shown that it does not belong to.
const maxOthers = 16

// others are requests of the suite, different ones.
func (c *check) others() (others []*codecs.Metadata) {
	seen := map[string]bool{}
	for _, st := range c.streams {
		for _, f := range st.frames {
			if st.dir == codecs.ServerToClient || !isAsked(f.meta) || len(others) == maxOthers {
				continue
			}
			if key := fmt.Sprint(f.meta.Type, f.meta.Variant, f.meta.Scratch, string(f.meta.ReplyInfo)); !seen[key] {
				seen[key] = true
				others = append(others, f.meta)
			}
		}
	}
	return others
}

// maxAnswers of a stream are looked at one by one.
const maxAnswers = 16

// answers checks that what an answer is depends on its own request only: parts of
// it may have been there when one that is quiet was the first to wait, or none. A Push
// answers none of them.
func (c *check) answers() {
	if !c.seesRequests() {
		c.skipped = "the codec is no AnswerDecoder"
		return
	}
	if c.traits.Correlation == codecs.ByID {
		c.errorf("the codec is an AnswerDecoder, but its messages correlate by id")
	}
	quiet := []*codecs.Metadata{nil}
	for _, other := range c.others() {
		if other.Type == codecs.Quiet {
			quiet = append(quiet, other)
		}
	}
	c.each(all, func(st *stream) {
		if st.dir == codecs.ClientToServer {
			return
		}
		for k := st.first; k < min(len(st.frames), st.first+maxAnswers); k++ {
			for _, other := range quiet {
				for _, cut := range []int{1, st.frames[k].n / 2, st.frames[k].n - 1} {
					if cut > 0 {
						c.turnsOut(st, k, other, cut)
					}
				}
			}
			if st.frames[k].meta.Type == codecs.Push {
				for _, other := range quiet {
					c.pushed(st, k, other)
				}
			}
		}
	})
}

// turnsOut shows a part of frame k to the decoder when nobody waits, or when quiet
// waits before the request whose answer it is. Unless the whole answers quiet, or the
// part has ended the connection, it is what it was then.
func (c *check) turnsOut(st *stream, k int, quiet *codecs.Metadata, cut int) {
	f := st.frames[k]
	w := where{stream: st, frame: k, split: cut, doing: "its begin shown when nobody waited"}
	dec, ok := c.decoder(st).(*answers)
	if !ok {
		return
	}
	c.upTo(w, dec, st, k, math.MaxInt)
	mine := dec.requests[dec.taken:]
	answered := f.taken - dec.taken
	dec.requests, dec.taken = nil, 0
	if quiet != nil {
		if answered == 0 {
			return // it answers none
		}
		w.doing = "behind one that is quiet: " + Describe(quiet)
		dec.requests = slices.Concat([]*codecs.Metadata{quiet}, mine)
	}
	var m codecs.Metadata
	n, err := c.decode(w, dec, &m, st.frame(k)[:cut])
	if err != nil || n <= cut {
		return
	}
	if quiet == nil {
		dec.requests, dec.taken = mine, 0
	} else {
		answered++
	}
	n, err = c.decode(w, dec, &m, st.frame(k))
	if quiet != nil && (err != nil || dec.taken == 1) {
		return
	}
	if err != nil || n != f.n {
		c.failf(w, st.frame(k), "the frame has %d bytes, Decode returns %d, %v", f.n, n, err)
	}
	f.taken = answered
	c.sameAnswer(w, dec, st.frame(k), f, &m)
}

// sameAnswer is same, and fails too if the answer is that to another request.
func (c *check) sameAnswer(w where, dec codecs.Decoder, b []byte, f frame, m *codecs.Metadata) {
	c.same(w, b, f, m)
	if n := taken(dec); n != f.taken {
		c.failf(w, b, "behind it %d of the requests have been answered, in the stream as a whole %d", n, f.taken)
	}
}

// pushed shows frame k, which is a Push, to the decoder when nobody waits, or quiet.
func (c *check) pushed(st *stream, k int, quiet *codecs.Metadata) {
	f := st.frames[k]
	w := where{stream: st, frame: k, doing: "when nobody waits"}
	dec, ok := c.decoder(st).(*answers)
	if !ok {
		return
	}
	c.upTo(w, dec, st, k, math.MaxInt)
	dec.requests, dec.taken = nil, 0
	if quiet != nil {
		w.doing = "when one waits that is quiet: " + Describe(quiet)
		dec.requests = []*codecs.Metadata{quiet}
	}
	var m codecs.Metadata
	c.whole(w, dec, &m, st.frame(k), f.n)
	f.taken = 0
	c.sameAnswer(w, dec, st.frame(k), f, &m)
}

// unasked checks that answers for which nobody has asked cause no panic, whatever
// the request that waits, and that not each of them is taken for that to any.
func (c *check) unasked() {
	if !c.seesRequests() {
		c.skipped = "the codec is no AnswerDecoder"
		return
	}
	others := append([]*codecs.Metadata{nil}, c.others()...)
	c.each(all, func(st *stream) {
		if st.dir == codecs.ClientToServer {
			return
		}
		for k := range st.frames {
			for _, other := range others {
				w := where{stream: st, frame: k, doing: "asked for by nobody"}
				var requests []*codecs.Metadata
				if other != nil {
					w.doing = "in answer to another request: " + Describe(other)
					requests = []*codecs.Metadata{other}
				}
				var m codecs.Metadata
				_, _ = c.decode(w, answering(c.codec.NewDecoder(st.dir), st.dir, requests), &m, st.frame(k))
			}
		}
	})
}
