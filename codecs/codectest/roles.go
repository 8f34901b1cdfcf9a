package codectest

import "github.com/meltemi-mesh/meltemi/codecs"

// roles checks that each side sends what is its own to send, and that what only
// protocols without ids have is theirs.
func (c *check) roles() {
	c.each(all, func(st *stream) {
		for k, f := range st.frames {
			c.role(where{stream: st, frame: k}, st.dir, st.frame(k), f.meta)
		}
	})
}

func (c *check) role(w where, d codecs.Direction, b []byte, m *codecs.Metadata) {
	inOrder := c.traits.Correlation == codecs.InOrder
	fromServer := d == codecs.ServerToClient
	switch m.Type {
	case codecs.Goodbye, codecs.Quiet, codecs.Muted:
		if fromServer {
			c.failf(w, b, "a server's message is decoded as a %s, which only clients send", m.Type)
		}
		if m.Type == codecs.Quiet && (c.traits.Correlation == codecs.ByID || !c.seesRequests()) {
			c.failf(w, b, "the request is quiet, but no AnswerDecoder tells by the order of answers that there is none")
		}
	case codecs.Push:
		if !fromServer {
			c.failf(w, b, "a client's message is decoded as a %s, which only servers send", m.Type)
		}
		if !inOrder {
			c.failf(w, b, "it is a push, but connections are leased only where answers come in order")
		}
	default:
	}
	switch {
	case !fromServer && (m.GoesAway || m.NotProcessed || m.MayClose):
		c.failf(w, b, "a client's message has GoesAway, NotProcessed or MayClose set")
	case !fromServer && m.Silent:
		c.failf(w, b, "a client's message has Silent set")
	case fromServer && m.Lease != codecs.NotLeased:
		c.failf(w, b, "a server's message has Lease set, which only requests have")
	case m.Lease != codecs.NotLeased && !inOrder:
		c.failf(w, b, "it has Lease set, which is only looked at where answers come in order")
	}
}
