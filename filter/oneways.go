package filter

// maxMethods bounds how many methods a worker keeps in mind: their names come
// from clients.
const maxMethods = 4096

// known is what a worker has learnt of methods whose requests do not tell
// whether they are answered: true when one was, false when a client went on
// without an answer.
type known map[string]bool

func (k *known) set(method []byte, answered bool) {
	if *k == nil {
		*k = known{}
	}
	if was, ok := (*k)[string(method)]; ok && was || !ok && len(*k) >= maxMethods {
		return // a method that is answered once is answered always
	}
	(*k)[string(method)] = answered
}

// answers notes that a method has been answered.
func (k *known) answers(method []byte) {
	if !(*k)[string(method)] {
		k.set(method, true)
	}
}

// mayBeOneway reports whether a request that does not say so may be a oneway.
func (m *Message) mayBeOneway() bool { return m.proto.hiddenOneway && !m.req.ExpectsReply }

// sameID reports whether the answers to both could not be told apart by their
// ids. Where oneways are hidden, answers may wait for one that never comes: only
// id 0, the one of clients that number nothing, is taken for the same.
func (m *Message) sameID(o *Message) bool {
	return m.req.ID == o.req.ID && (!m.mayBeOneway() || m.req.ID == 0)
}

// wentOn is told that the client has sent another request, or will send no
// more. If the method is known to get no answer, that ends m: nobody waits for
// one, and a connection upstream is free for the next request.
func (m *Message) wentOn() (ended bool) {
	if !m.mayBeOneway() || m.oneway || m.stream != nil || m.phase != inUpstream || m.call.Waiting() {
		return false
	}
	if answered, ok := m.cfg.known[string(m.method)]; answered || !ok {
		return false
	}
	m.cfg.count(onewayPresumed, 1)
	m.call.Forget()
	m.end()
	return true
}

// presumedOneway reports whether a request whose deadline has passed was one
// that gets no answer: then a timeout error would be taken for the answer to
// its client's next request. It is presumed to be when its method has never
// been answered and its client, or another one before, did not wait for it.
func (m *Message) presumedOneway() bool {
	if !m.mayBeOneway() || m.conn == nil {
		return false
	}
	k := &m.cfg.known
	answered, ok := (*k)[string(m.method)]
	switch {
	case answered:
		return false
	case m.conn.requests > m.number || m.conn.eof:
		k.set(m.method, false)
		return true
	default:
		return ok
	}
}
