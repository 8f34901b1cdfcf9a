package codectest

import (
	"bytes"
	"fmt"
	"math"
	"strings"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// texts of local errors: some come from peers.
var texts = []struct{ name, text string }{
	{"no text", ""},
	{"a text", "no route matches the request"},
	{"a text of 40000 bytes", strings.Repeat("a long story. ", 40000/14)},
	{"a text that is not UTF-8", "bad \xff\xfe\xc0\x80 bytes"},
	{"a text of several lines", "one\r\ntwo\n\nthree\x00four"},
	{"a text in other scripts", "δεν υπάρχει διαδρομή 😀"},
}

// errorTypes is how many codecs.ErrorType there are.
const errorTypes = codecs.Denied + 1

// textsOf are the texts to try with errors of type t: all of them with the first
// type, but for fuzzed inputs, of which there are many.
func (c *check) textsOf(t codecs.ErrorType) []struct{ name, text string } {
	if t == 0 && !c.light {
		return texts
	}
	return texts[:2]
}

// errorReplies checks that requests can be answered when their frames have gone,
// with what the codec itself reads as an error.
func (c *check) errorReplies() {
	c.each(all, func(st *stream) {
		if st.dir == codecs.ServerToClient {
			return
		}
		var held memory
		dec := c.decoder(st)
		var m codecs.Metadata
		for k, f := range st.frames {
			w := where{stream: st, frame: k}
			b := st.frame(k)
			c.wholeLent(w, dec, &m, held.lend(b), b, f.n)
			if !isFailed(m.Type) || k < st.first {
				continue
			}
			c.repliesTo(w, b, f, &m, &held)
		}
	})
	c.needless(NoErrorText)
}

// isFailed tells the types of requests that the pipeline answers with an error.
func isFailed(t codecs.MessageType) bool {
	return t == codecs.Request || t == codecs.Quiet || t == codecs.StreamInit
}

func (c *check) repliesTo(w where, b []byte, f frame, m *codecs.Metadata, held *memory) {
	var first [errorTypes][]byte
	for t := range errorTypes {
		w.doing = fmt.Sprintf("answered with %q", t)
		first[t] = c.errorReply(w, b, m, &codecs.LocalError{Type: t, Message: texts[1].text})
	}
	m.Release()
	held.poison()
	for t := range errorTypes {
		for i, text := range c.textsOf(t) {
			w.doing = fmt.Sprintf("answered with %q and %s", t, text.name)
			out := c.errorReply(w, b, m, &codecs.LocalError{Type: t, Message: text.text})
			if i == 1 && !bytes.Equal(out, first[t]) {
				c.failf(w, out, "the answer changes when the frame has gone; it was\n%s", dump(first[t]))
			}
			c.isError(w, f.meta, out)
			if i == 1 && !c.s.NoErrorText && !bytes.Contains(out, []byte(text.text)) && !c.need(w.stream, NoErrorText) {
				c.failf(w, out, "the text %q is not in it (see NoErrorText)", text.text)
			}
		}
	}
}

func (c *check) errorReply(w where, b []byte, m *codecs.Metadata, e *codecs.LocalError) []byte {
	out, err := c.encode(w, nil, func(dst []byte) ([]byte, error) { return c.codec.EncodeError(dst, m, e) })
	if err != nil {
		c.failf(w, b, "EncodeError: %v", err)
	}
	return out
}

// isError checks that out is one whole answer to req that tells of an error, and
// returns its code.
func (c *check) isError(w where, req *codecs.Metadata, out []byte) (code int32) {
	var m codecs.Metadata
	c.reads(w, "EncodeError", codecs.ServerToClient, &m, out, req)
	switch {
	case !isAnswer(m.Type):
		c.failf(w, out, "the answer is decoded as a %s", m.Type)
	case m.Status == codecs.StatusOK:
		c.failf(w, out, "the answer is decoded as a success")
	case m.Malformed != "":
		c.failf(w, out, "the answer is malformed: %s", m.Malformed)
	case m.Silent:
		c.failf(w, out, "the answer is Silent: its client would not be told")
	case c.traits.Correlation == codecs.ByID && m.ID != req.ID:
		c.failf(w, out, "the answer has id %d, its request %d", m.ID, req.ID)
	case m.Variant != req.Variant:
		c.failf(w, out, "the answer is of variant %d, its request of %d", m.Variant, req.Variant)
	}
	return m.Code
}

// someCodes are codes of errors to try: those of some protocol, and around where
// numbers on the wire grow.
var someCodes = []int32{
	1, 6, 7, 19, 20, 21, 23, 63, 64, 80, 99, 100, 127, 128, 255, 256, 999, 1000, 2004, 8191, 8192, 16383, 16384,
	math.MaxUint16, math.MaxUint16 + 1, math.MaxInt32, -1, -64, -65, math.MinInt32,
}

// codes checks that errors carry the codes that the codec says they can, and no
// others.
func (c *check) codes() {
	checker, _ := c.codec.(codecs.CodeChecker)
	taken := 0
	c.each(all, func(st *stream) {
		if st.dir == codecs.ServerToClient {
			return
		}
		c.walk(st, "", func(w where, k int, m *codecs.Metadata) {
			if !isFailed(m.Type) {
				return
			}
			b := st.frame(k)
			usual := c.errorReply(w, b, m, &codecs.LocalError{Message: texts[1].text})
			for _, code := range someCodes {
				w.doing = fmt.Sprintf("answered with code %d", code)
				out := c.errorReply(w, b, m, &codecs.LocalError{Message: texts[1].text, Code: code})
				if checker == nil || checker.CheckCode(code) != nil {
					if !bytes.Equal(out, usual) {
						c.failf(w, out, "CheckCode refuses it, and the answer is not what it is without")
					}
					continue
				}
				taken++
				if got := c.isError(w, m, out); got != code {
					c.failf(w, out, "the answer is decoded with code %d", got)
				}
			}
		})
	})
	switch {
	case checker == nil:
		c.skipped = "the codec is no CodeChecker"
	case taken == 0:
		c.errorf("the codec is a CodeChecker, and takes none of %d", someCodes)
	}
}

// heartbeats checks that those that expect an answer can be answered, and a goodbye
// that does.
func (c *check) heartbeats() {
	beater, ok := c.codec.(codecs.Heartbeater)
	seen := 0
	c.each(all, func(st *stream) {
		c.walk(st, "answered", func(w where, k int, m *codecs.Metadata) {
			if m.Type != codecs.Heartbeat && m.Type != codecs.Goodbye || !m.ExpectsReply {
				return
			}
			if seen++; !ok {
				c.failf(w, m.Raw, "the %s expects an answer, but the codec is no Heartbeater", m.Type)
			}
			b := bytes.Clone(m.Raw)
			out, err := c.encode(w, m.Raw, func(dst []byte) ([]byte, error) { return beater.EncodeHeartbeat(dst, m) })
			if err != nil {
				c.failf(w, b, "EncodeHeartbeat: %v", err)
			}
			c.isBeat(w, st.dir, st.frames[k].meta, out)
		})
	})
	if seen == 0 {
		c.skipped = "no heartbeat or goodbye expects an answer"
	}
}

// isBeat checks that out is one whole answer to hb. Where answers have no ids it may
// be one like others, as it is given in its turn: that of a success.
func (c *check) isBeat(w where, d codecs.Direction, hb *codecs.Metadata, out []byte) {
	var o codecs.Metadata
	c.reads(w, "EncodeHeartbeat", 1-d, &o, out, hb)
	inTurn := c.traits.Correlation != codecs.ByID && d == codecs.ClientToServer
	switch {
	case o.Type != codecs.Heartbeat && (o.Type != codecs.Response || !inTurn):
		c.failf(w, out, "the answer is decoded as a %s", o.Type)
	case o.Type == codecs.Response && o.Status != codecs.StatusOK:
		c.failf(w, out, "the answer is decoded as a failure")
	case o.Type == codecs.Response && o.Silent:
		c.failf(w, out, "the answer is Silent")
	case o.ExpectsReply:
		c.failf(w, out, "the answer expects an answer")
	case o.Malformed != "":
		c.failf(w, out, "the answer is malformed: %s", o.Malformed)
	case o.ID != hb.ID:
		c.failf(w, out, "the answer has id %d, the heartbeat %d", o.ID, hb.ID)
	case o.Variant != hb.Variant:
		c.failf(w, out, "the answer is of variant %d, the heartbeat of %d", o.Variant, hb.Variant)
	}
}

// streamResets checks that a client can be told that its stream is lost.
func (c *check) streamResets() {
	streamer, ok := c.codec.(codecs.Streamer)
	seen := 0
	c.each(all, func(st *stream) {
		if st.dir == codecs.ServerToClient {
			return
		}
		c.walk(st, "reset", func(w where, k int, m *codecs.Metadata) {
			if m.Type != codecs.StreamInit || m.Malformed != "" {
				return
			}
			if seen++; !ok {
				c.failf(w, m.Raw, "the message opens a stream, but the codec is no Streamer")
			}
			m.Release()
			c.mem.poison()
			for t := range errorTypes {
				for _, text := range c.textsOf(t) {
					w.doing = fmt.Sprintf("reset with %q and %s", t, text.name)
					e := &codecs.LocalError{Type: t, Message: text.text}
					out, err := c.encode(w, nil, func(dst []byte) ([]byte, error) { return streamer.EncodeReset(dst, m, e) })
					if err != nil {
						c.failf(w, st.frame(k), "EncodeReset: %v", err)
					}
					c.isReset(w, m, out)
				}
			}
		})
	})
	if seen == 0 {
		c.skipped = "no message opens a stream"
	}
}

func (c *check) isReset(w where, stream *codecs.Metadata, out []byte) {
	var o codecs.Metadata
	c.reads(w, "EncodeReset", codecs.ServerToClient, &o, out)
	switch {
	case o.Type != codecs.StreamCloseTwoWay && o.Type != codecs.Error:
		c.failf(w, out, "the reset is decoded as a %s, which does not end a stream", o.Type)
	case o.Malformed != "":
		c.failf(w, out, "the reset is malformed: %s", o.Malformed)
	case o.StreamID != stream.StreamID:
		c.failf(w, out, "the reset is of stream %d, want %d", o.StreamID, stream.StreamID)
	case o.Variant != stream.Variant:
		c.failf(w, out, "the reset is of variant %d, the stream of %d", o.Variant, stream.Variant)
	}
}
