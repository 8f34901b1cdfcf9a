package codectest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// maxPayloads of one direction are tried in each message.
const maxPayloads = 6

// carries tells the types of messages that have a payload which can be another.
func carries(m *codecs.Metadata) bool {
	return m.Malformed == "" && (m.Type == codecs.Response || mayLease(m.Type))
}

// payloads checks that the payload of a message is read from it, that it can be another,
// and that nothing else changes with it.
func (c *check) payloads() {
	payloader, ok := c.codec.(codecs.Payloader)
	if !ok {
		c.skipped = "the codec is no Payloader"
		return
	}
	others := c.payloadsOf(payloader)
	replaced := [2]int{}
	c.each(all, func(st *stream) {
		c.walk(st, "", func(w where, k int, m *codecs.Metadata) {
			if k < st.first && !c.light {
				return
			}
			w.doing = "asked for its payload"
			own, ok := c.payload(w, payloader, m)
			c.same(w, m.Raw, st.frames[k], m)
			if !ok || !carries(m) {
				return
			}
			w.doing = "with its own payload again"
			if out := c.withPayload(w, k, m, own); out == nil && !c.light {
				c.failf(w, m.Raw, "Encode refuses it")
			}
			for i, p := range others[st.dir] {
				if c.light && i != k%len(others[st.dir]) {
					continue
				}
				w.doing = fmt.Sprintf("with another payload, number %d", i)
				out := c.withPayload(w, k, m, p)
				if out == nil || bytes.Equal(p.Bytes, own.Bytes) {
					continue
				}
				replaced[st.dir]++
				c.payloadWithEntries(w, k, m, p)
				c.tooLargePayload(w, m, p, out)
			}
		})
	})
	c.needless(Opaque)
	for d, n := range replaced {
		if n == 0 && !c.light {
			c.errorf("no payload of the suite, %s, could be replaced by another one's", codecs.Direction(d))
		}
	}
}

// payloadsOf are different payloads of the suite's messages, by direction, as they
// outlive the messages.
func (c *check) payloadsOf(payloader codecs.Payloader) (ps [2][]codecs.Payload) {
	seen := [2]map[string]bool{{}, {}}
	for _, st := range c.streams {
		c.walk(st, "asked for its payload", func(_ where, _ int, m *codecs.Metadata) {
			if !carries(m) || len(ps[st.dir]) == maxPayloads {
				return
			}
			p, err := payloader.Payload(m)
			if key := fmt.Sprint(p.Compression, string(p.Bytes)); err == nil && !seen[st.dir][key] {
				seen[st.dir][key] = true
				p.Bytes = bytes.Clone(p.Bytes)
				ps[st.dir] = append(ps[st.dir], p)
			}
		})
	}
	return ps
}

// payload reads that of m, and reports whether there is one.
func (c *check) payload(w where, payloader codecs.Payloader, m *codecs.Metadata) (p codecs.Payload, ok bool) {
	b := bytes.Clone(m.Raw)
	var err error
	c.guard(w, b, func() { p, err = payloader.Payload(m) })
	switch {
	case !bytes.Equal(b, m.Raw):
		c.failf(w, b, "Payload changes the frame")
	case err != nil && !errors.Is(err, codecs.ErrNoPayload):
		c.failf(w, b, "Payload: %v, which does not wrap codecs.ErrNoPayload", err)
	case err != nil && carries(m) && !c.light && (c.s.Opaque == nil || !c.s.Opaque(w.stream.frameName(w.frame), m)) && !c.need(w.stream, Opaque):
		c.failf(w, b, "Payload: %v (see Opaque)", err)
	case err == nil && m.Malformed != "":
		c.failf(w, b, "a malformed message has a payload")
	case err == nil && p.Text:
		c.failf(w, b, "the payload of a message says that it is a text")
	case err == nil && !within(p.Bytes, m.Raw):
		c.failf(w, b, "the payload is no view of the frame, or one with room behind it")
	}
	return p, err == nil
}

// within reports whether b is a part of raw, and cannot grow into what is behind it.
func within(b, raw []byte) bool {
	if len(b) == 0 {
		return true
	}
	for i := range raw {
		if &raw[i] == &b[0] {
			return len(b) <= len(raw)-i && cap(b) == len(b)
		}
	}
	return false
}

// withPayload encodes m, which is frame k, with another payload, and checks what that
// is; nil if it cannot be given one.
func (c *check) withPayload(w where, k int, m *codecs.Metadata, p codecs.Payload) []byte {
	var mut codecs.Mutation
	mut.SetPayload(p)
	if got, ok := mut.Payload(); !ok || !bytes.Equal(got.Bytes, p.Bytes) {
		c.failf(w, m.Raw, "the Mutation has another payload")
	}
	out, err := c.message(w, m, &mut)
	if err != nil {
		if !errors.Is(err, codecs.ErrNoPayload) || isNoMutation(err) {
			c.failf(w, m.Raw, "Encode: %v; want an error that wraps codecs.ErrNoPayload, and not codecs.ErrNoMutation: it must not go out as it is", err)
		}
		return nil
	}
	var o codecs.Metadata
	c.givenOut(w, w.stream, k, &o, out)
	o.Status, o.Code = m.Status, m.Code // which the payload may tell
	if d := difference(m, outspoken(&o, m), c.compressed(m, p)|sizes|private); d != "" {
		c.failf(w, out, "the message has changed otherwise: %s", d)
	}
	c.hasPayload(w, out, &o, p)
	return out
}

// compressed is what another payload of m may change beside itself: what properties say of
// its compression.
func (c *check) compressed(m *codecs.Metadata, p codecs.Payload) aspect {
	if own, err := c.codec.(codecs.Payloader).Payload(m); err != nil || own.Compression != p.Compression {
		return views
	}
	return 0
}

func (c *check) hasPayload(w where, out []byte, o *codecs.Metadata, p codecs.Payload) {
	got, err := c.codec.(codecs.Payloader).Payload(o)
	switch {
	case err != nil:
		c.failf(w, out, "Payload, of the message with another: %v", err)
	case !bytes.Equal(got.Bytes, p.Bytes) && len(p.Bytes) > 0 || got.Compression != p.Compression:
		c.failf(w, out, "the payload (compression %d) is\n%swant (compression %d)\n%s", got.Compression, dump(got.Bytes), p.Compression, dump(p.Bytes))
	}
}

// payloadWithEntries gives m a payload, all that the suite sets, and a timeout.
func (c *check) payloadWithEntries(w where, k int, m *codecs.Metadata, p codecs.Payload) {
	mut := c.everything(w.stream.dir)
	if mut == nil {
		return
	}
	w.doing += ", with entries and a timeout"
	mut.SetPayload(p)
	mut.Timeout = 7_000_000
	out, err := c.message(w, m, mut)
	switch {
	case isNoMutation(err):
		return
	case err != nil:
		c.failf(w, m.Raw, "Encode: %v; want codecs.ErrNoMutation, as it may go out without the entries", err)
	}
	var o codecs.Metadata
	c.givenOut(w, w.stream, k, &o, out)
	c.hasPayload(w, out, &o, p)
	if c.compressed(m, p) == 0 {
		c.sameCall(w, out, m, &o)
	}
	for _, mu := range c.s.Mutations {
		if mu.Direction == w.stream.dir && len(byName(&o)[mu.property()]) == 0 {
			c.failf(w, out, "there is no property %q", mu.property())
		}
	}
}

// tooLargePayload checks that m is refused a payload with which it becomes out, if that
// is larger than the limits.
func (c *check) tooLargePayload(w where, m *codecs.Metadata, p codecs.Payload, out []byte) {
	if len(out) <= len(m.Raw)+1 || c.light {
		return
	}
	w.doing += fmt.Sprintf(", and MaxFrameBytes %d", len(out)-1)
	strict, err := c.s.New(codecs.Limits{MaxFrameBytes: len(out) - 1})
	if err != nil {
		c.failf(w, out, "New: %v", err)
	}
	own := *c
	own.codec = strict
	var mut codecs.Mutation
	mut.SetPayload(p)
	if b, err := own.message(w, m, &mut); err == nil {
		c.failf(w, b, "the frame has become larger than the limits")
	} else if isNoMutation(err) {
		c.failf(w, out, "Encode: %v; it must not go out as it is", err)
	}
}

// successReplies checks that requests whose frames have gone can be answered with
// payloads, in what the codec itself reads as a success.
func (c *check) successReplies() {
	payloader, ok := c.codec.(codecs.Payloader)
	if !ok {
		c.skipped = "the codec is no Payloader"
		return
	}
	replies := slices.Concat(c.payloadsOf(payloader)[codecs.ServerToClient], []codecs.Payload{{}})
	for _, text := range texts {
		if p := (codecs.Payload{Bytes: []byte(text.text), Text: true}); payloader.CheckReply(p) == nil {
			replies = append(replies, p)
		}
	}
	answered := 0
	c.each(all, func(st *stream) {
		if st.dir == codecs.ServerToClient {
			return
		}
		c.walk(st, "", func(w where, k int, m *codecs.Metadata) {
			if m.Type != codecs.Request || m.Malformed != "" || k < st.first {
				return
			}
			m.Release()
			c.mem.poison()
			for i, p := range replies {
				if !c.light || i == k%len(replies) {
					w.doing = fmt.Sprintf("answered with payload %d", i)
					answered += c.successReply(w, m, p)
				}
			}
		})
	})
	if answered == 0 && !c.light {
		c.errorf("no request of the suite could be answered with a payload")
	}
}

func (c *check) successReply(w where, req *codecs.Metadata, p codecs.Payload) (answered int) {
	payloader := c.codec.(codecs.Payloader)
	reply := func(mut *codecs.Mutation) ([]byte, error) {
		return c.encode(w, nil, func(dst []byte) ([]byte, error) { return payloader.EncodeReply(dst, req, mut) })
	}
	frame := w.stream.frame(w.frame)
	var mut codecs.Mutation
	mut.SetPayload(p)
	out, err := reply(&mut)
	if err != nil {
		if !errors.Is(err, codecs.ErrNoPayload) || isNoMutation(err) {
			c.failf(w, frame, "EncodeReply: %v, which does not wrap codecs.ErrNoPayload", err)
		}
		return 0
	}
	c.isReply(w, req, out, p)
	all := c.everything(codecs.ServerToClient)
	if all == nil {
		return 1
	}
	w.doing += " and with entries"
	all.SetPayload(p)
	switch out, err = reply(all); {
	case isNoMutation(err):
		return 1
	case err != nil:
		c.failf(w, frame, "EncodeReply: %v; want codecs.ErrNoMutation, as it may go out without the entries", err)
	}
	o := c.isReply(w, req, out, p)
	for _, mu := range c.s.Mutations {
		if v, _ := o.Get(mu.property()); mu.Direction == codecs.ServerToClient && len(byName(o)[mu.property()]) == 0 {
			c.failf(w, out, "property %q is %.80q", mu.property(), v)
		}
	}
	return 1
}

func (c *check) isReply(w where, req *codecs.Metadata, out []byte, p codecs.Payload) *codecs.Metadata {
	var m codecs.Metadata
	c.reads(w, "EncodeReply", codecs.ServerToClient, &m, out, req)
	switch {
	case m.Type != codecs.Response:
		c.failf(w, out, "the answer is decoded as a %s", m.Type)
	case m.Malformed != "":
		c.failf(w, out, "the answer is malformed: %s", m.Malformed)
	case m.Status != codecs.StatusOK && (p.Text || len(p.Bytes) == 0):
		c.failf(w, out, "the answer is decoded as a failure")
	case m.Status == codecs.StatusOK && m.Code != c.traits.SuccessCode:
		c.failf(w, out, "the answer is decoded with code %d, the codec's SuccessCode is %d", m.Code, c.traits.SuccessCode)
	case m.Silent:
		c.failf(w, out, "the answer is Silent: its client would not be told")
	case c.traits.Correlation == codecs.ByID && m.ID != req.ID:
		c.failf(w, out, "the answer has id %d, its request %d", m.ID, req.ID)
	case m.Variant != req.Variant:
		c.failf(w, out, "the answer is of variant %d, its request of %d", m.Variant, req.Variant)
	}
	got, err := c.codec.(codecs.Payloader).Payload(&m)
	switch {
	case err != nil:
		c.failf(w, out, "Payload, of the answer: %v", err)
	case p.Text && !bytes.Contains(got.Bytes, p.Bytes) && len(p.Bytes) < 1000 && isASCII(p.Bytes):
		c.failf(w, out, "the text %.80q is not in its payload", p.Bytes)
	case len(p.Bytes) > 0 && !p.Text && (!bytes.Equal(got.Bytes, p.Bytes) || got.Compression != p.Compression):
		c.failf(w, out, "its payload is\n%swant\n%s", dump(got.Bytes), dump(p.Bytes))
	}
	return &m
}

func isASCII(b []byte) bool {
	for _, c := range b {
		if c >= 0x80 {
			return false
		}
	}
	return true
}
