package codectest

import (
	"errors"
	"fmt"

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
		return &answers{AnswerDecoder: a, waiting: requests}
	}
	return dec
}

// answers lends the requests that wait to an AnswerDecoder, one at a time.
type answers struct {
	codecs.AnswerDecoder
	waiting []*codecs.Metadata
	lent    codecs.Metadata
}

// Decode implements codecs.Decoder.
func (a *answers) Decode(buf []byte, m *codecs.Metadata) (n int, err error) {
	if len(a.waiting) == 0 {
		return a.DecodeAnswer(buf, m, nil)
	}
	req, info := a.waiting[0], a.lent.ReplyInfo[:0]
	a.lent = codecs.Metadata{ // as of a request whose frame has gone
		Type: req.Type, Status: req.Status, ExpectsReply: req.ExpectsReply, ID: req.ID, FixedID: req.FixedID, StreamID: req.StreamID,
		Variant: req.Variant, HeaderSize: req.HeaderSize, BodySize: req.BodySize, Malformed: req.Malformed,
		Scratch: req.Scratch, ReplyInfo: append(info, req.ReplyInfo...),
	}
	n, err = a.DecodeAnswer(buf, m, &a.lent)
	if d := difference(req, &a.lent, views); d != "" {
		panic("DecodeAnswer changes the request: " + d)
	}
	info = a.lent.ReplyInfo
	fill(info, poison) // it may be another's when the next answer comes
	a.lent = codecs.Metadata{Type: 0xff, ID: req.ID + 1, ReplyInfo: info}
	var large *codecs.TooLarge
	if isAnswer(m.Type) && (err == nil && n <= len(buf) || errors.As(err, &large)) {
		a.waiting = a.waiting[1:]
	}
	return n, err
}

func isAnswer(t codecs.MessageType) bool { return t == codecs.Response || t == codecs.Error }

// upTo has dec decode the frames of st before frame k that are within a limit.
func (c *check) upTo(w where, dec codecs.Decoder, st *stream, k, limit int) {
	var m codecs.Metadata
	for i := range k {
		if st.frames[i].n <= limit {
			_, _ = c.decode(w, dec, &m, st.frame(i))
		} else if a, ok := dec.(*answers); ok && len(a.waiting) > 0 && isAnswer(st.frames[i].meta.Type) {
			a.waiting = a.waiting[1:]
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
		if m.Type == codecs.Request {
			m.Release()
			requests = append(requests, m)
		}
		at += n
	}
	return requests
}

// unasked checks that answers for which nobody has asked cause no panic, in
// whatever order they come, and that answers can be told without ids.
func (c *check) unasked() {
	if !c.seesRequests() {
		c.skipped = "the codec is no AnswerDecoder"
		return
	}
	if c.traits.Correlation == codecs.ByID {
		c.t.Errorf("the codec is an AnswerDecoder, but its messages correlate by id")
	}
	c.each(all, func(st *stream) {
		if st.dir == codecs.ClientToServer {
			return
		}
		var others []*codecs.Metadata
		for _, other := range c.streams {
			for _, f := range other.frames {
				if f.meta.Type == codecs.Request && other.dir == codecs.ClientToServer && len(others) < 16 {
					others = append(others, f.meta)
				}
			}
		}
		for k := range st.frames {
			for i := -1; i < len(others); i++ {
				w := where{stream: st, frame: k, doing: "asked for by nobody"}
				var requests []*codecs.Metadata
				if i >= 0 {
					w.doing, requests = "in answer to another request", others[i:i+1]
				}
				var m codecs.Metadata
				_, _ = c.decode(w, answering(c.codec.NewDecoder(st.dir), st.dir, requests), &m, st.frame(k))
			}
		}
	})
}
