package filter

import (
	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/metrics"
)

// Payload returns what the message that the hook sees, the request or its answer, carries
// for the application, as filters before this one have left it: the arguments of a call or
// what it returns, in the protocol's serialization. It is a view that ends with the hook,
// and with SetPayload. The error, a [codecs.ErrNoPayload], says why there is none to be
// had: errors have none, and not every compression and serialization can be read. Only in
// OnRequest and OnResponse.
func (m *Message) Payload() (codecs.Payload, error) {
	_, mut, md := m.outgoing()
	p, ok := mut.Payload()
	switch {
	case ok:
		return p, nil
	case m.proto.payloader == nil:
		return p, codecs.NoPayload("codec %s cannot tell it", m.proto.name)
	case md == nil || md.Raw == nil:
		return p, codecs.NoPayload("there is no message in this hook")
	}
	return m.proto.payloader.Payload(md)
}

// SetPayload has the message that the hook sees go out with another payload, of which it
// keeps a copy: in the serialization that it has, compressed as the payload says. Each
// attempt, and each copy that is made after mutation, has it. The error says why the
// message cannot have it; what the codec finds wrong with p itself, and with its size,
// shows when the message goes out, and is answered with an error then: it never goes out
// with the old one. Only in OnRequest and OnResponse.
func (m *Message) SetPayload(p codecs.Payload) error {
	if _, err := m.Payload(); err != nil {
		return err
	}
	_, mut, _ := m.outgoing()
	mut.SetPayload(p)
	return nil
}

// Answer ends the message with a success in the client's protocol that carries p, of which
// it keeps a copy, and what MutateResponse sets. It is an answer like a server's: filters
// before this one see it in OnResponse, with a Response that has no Raw and no properties,
// and may change it. A p without bytes is null, void or an empty message. What cannot be
// told so, as the codec is no [codecs.Payloader] or finds fault with p, becomes an error,
// and so does the answer to what opens a stream. The filter returns what it returns. A
// oneway message ends without a word.
func (m *Message) Answer(p codecs.Payload) Verdict {
	if m.inAttempt() {
		return stopped
	}
	m.MutateResponse().SetPayload(p)
	m.succeeds = true
	return stopped
}

// directResponse are the details of answers that no server has given, as Envoy calls it.
const directResponse = "direct_response"

// succeed answers the message as Answer has said.
func (m *Message) succeed() {
	m.succeeds = false
	switch {
	case m.conn.closed, m.oneway, m.phase == inRequest && m.knownOneway():
		m.answerLocally() // without a word
		return
	case m.stream != nil:
		m.Reply(codecs.Unspecified, "a stream cannot be answered with a payload")
	case m.proto.payloader == nil:
		m.Reply(codecs.Unspecified, "codec "+m.proto.name+" cannot answer with a payload")
	}
	if m.replied {
		m.answerLocally()
		return
	}
	if m.phase == inRequest {
		m.clientID = m.req.ID
		m.leaveRequest()
	}
	if m.details == "" {
		m.details = directResponse
	}
	p, _ := m.ofResponse().Payload()
	if m.ownResp == nil {
		m.ownResp = m.sh.newMetadata()
	}
	m.ownResp.Reset()
	m.ownResp.Type, m.ownResp.Code, m.ownResp.BodySize = codecs.Response, m.proto.successCode, len(p.Bytes)
	m.resp, m.phase = m.ownResp, inResponse
	m.made, m.held = true, true // there is no frame that hooks could ask for
	m.answeredAt, m.answerBytes, m.status, m.code = m.sh.w.Now(), len(p.Bytes), codecs.StatusOK, m.proto.successCode
	m.pos--
	m.runResponse()
}

// encodeReply appends the answer that a filter has made.
func (m *Message) encodeReply(dst []byte) ([]byte, error) {
	b, skipped, err := m.proto.encodeReply(dst, &m.req, m.ofResponse())
	if skipped != nil {
		m.tellSkipped("answer", skipped, err)
	}
	if err == nil {
		m.cfg.count(metrics.LocalResponseSuccess, 1)
	}
	return b, err
}

// AllowRepeat says that the request may be executed more than once, and has it kept until
// its answer has passed the filters, so that one of them may [Message.Repeat] it. It costs
// a copy of the frame. Only in OnRequest.
func (m *Message) AllowRepeat() { m.repeatable = true }

// Repeat has the request sent again, to its cluster, in place of its answer, with what
// MutateRequest and SetPayload have made of it; filters do not see the request again, but
// the answer to it, as they have seen this one. What was to change in the answer is
// forgotten with it. The filter returns what it returns.
//
// The answer goes on as it is, to the filters before this one, where the request cannot be
// repeated: no filter has called AllowRepeat; it is no call, is larger than the route's
// per_request_buffer_limit_bytes, or its protocol has no ids; it has been sent four times;
// its deadline, or the cluster's budget for retries, does not allow it. It is made and
// counted as retries are, after a pause as theirs.
func (m *Message) Repeat() Verdict {
	m.repeats = !m.inAttempt()
	return stopped
}

// again sends the request again, and reports false if its answer goes on.
func (m *Message) again() bool {
	m.repeats = false
	if m.phase != inResponse || m.made || !m.exchange.Repeat() {
		return false
	}
	if m.ownResp != nil {
		m.sh.freeResponse(m.ownResp)
		m.ownResp = nil
	}
	if m.held {
		m.dropFrame()
	}
	m.frame, m.kept = m.kept, m.frame
	m.req.Raw, m.held = m.frame, true
	m.resp, m.phase = nil, inUpstream
	m.answeredAt, m.answerBytes, m.status, m.code = 0, 0, codecs.StatusOK, 0
	if m.changes != nil {
		m.changes.response.Reset()
	}
	return true
}

// keepRequest takes the request's frame out of the way of its answer's.
func (m *Message) keepRequest() {
	m.frame, m.kept = m.kept[:0], m.frame
	m.req.Raw = nil
}

// refuses reports whether a message cannot go out at all, as its codec does not know where
// the payload is that shall be another.
func (p *protocol) refuses(mut *codecs.Mutation) error {
	if mut.Replaces() && p.payloader == nil {
		return codecs.NoPayload("codec %s cannot tell it", p.name)
	}
	return nil
}

// encodeReply is encode for an answer to req that no server has given.
func (p *protocol) encodeReply(dst []byte, req *codecs.Metadata, mut *codecs.Mutation) (b []byte, skipped, err error) {
	if b, err = p.payloader.EncodeReply(dst, req, mut); !skips(err) {
		return b, nil, err
	}
	skipped = err
	b, err = p.payloader.EncodeReply(dst, req, mut.WithoutOptional())
	return b, skipped, err
}
