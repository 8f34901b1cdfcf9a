package codectest

import (
	"bytes"
	"fmt"
	"math"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// maxTried is how many requests of a stream are looked at.
const maxTried = 16

// requests decodes those of clients' streams that go upstream, each in memory that is
// the message's until visit returns.
func (c *check) requests(doing string, visit func(w where, k int, m *codecs.Metadata)) {
	c.each(all, func(st *stream) {
		if st.dir == codecs.ServerToClient {
			return
		}
		tried := 0
		c.walk(st, doing, func(w where, k int, m *codecs.Metadata) {
			if mutates(m.Type) && tried < maxTried {
				tried++
				visit(w, k, m)
			}
		})
	})
}

// waits are timeouts, and what they are to the protocols.
var waits = []struct{ timeout, read time.Duration }{
	{400 * time.Microsecond, time.Millisecond},
	{1234567 * time.Microsecond, 1234 * time.Millisecond},
	{time.Minute, time.Minute},
	{math.MaxInt64, math.MaxInt32 * time.Millisecond},
}

// timeouts checks that a request says the timeout that it is given, or what it said
// before, and is the same otherwise.
func (c *check) timeouts() {
	deadliner, ok := c.codec.(codecs.Deadliner)
	carried := 0
	c.requests("", func(w where, k int, m *codecs.Metadata) {
		st, b := w.stream, w.stream.frame(k)
		timeout := func(m *codecs.Metadata) (t time.Duration) {
			if ok {
				c.guard(w, b, func() { t = deadliner.Timeout(m) })
			}
			return t
		}
		w.doing = "asked for its timeout"
		said := timeout(m)
		c.same(w, b, st.frames[k], m)
		for i, wait := range waits {
			if c.light && i != k%len(waits) {
				continue
			}
			w.doing = fmt.Sprintf("with a timeout of %v", wait.timeout)
			var o codecs.Metadata
			out, told := c.attempted(w, st, k, m, &codecs.Mutation{Timeout: wait.timeout}, &o)
			if !told {
				continue
			}
			carried++
			if got := timeout(&o); got != wait.read {
				c.failf(w, out, "the request says %v, want %v; it said %v", got, wait.read, said)
			}
			w.doing += ", and then another"
			again, err := c.message(w, &o, &codecs.Mutation{Timeout: 7 * time.Millisecond})
			if err != nil {
				c.failf(w, out, "Encode: %v", err)
			}
			c.givenOut(w, st, k, &o, again)
			if got := timeout(&o); got != 7*time.Millisecond {
				c.failf(w, again, "the request says %v, want 7ms", got)
			}
		}
		c.withEntries(w, k, m, timeout)
	})
	switch {
	case ok && carried == 0 && !c.light:
		c.errorf("the codec is a Deadliner, but no request of the suite takes a timeout")
	case !ok && carried > 0:
		c.errorf("requests take a timeout, but the codec is no Deadliner")
	}
}

// withEntries sets a timeout and all that the suite sets, and removes all else that can
// be, places for timeouts among it.
func (c *check) withEntries(w where, k int, m *codecs.Metadata, timeout func(*codecs.Metadata) time.Duration) {
	mut := c.everything(codecs.ClientToServer)
	if mut == nil {
		return
	}
	if remover, ok := c.codec.(codecs.Remover); ok {
		for _, p := range m.Properties() {
			if name := string(p.Name); mut.Find(p.Name) < 0 && remover.CheckRemoval(codecs.ClientToServer, name) == nil {
				mut.Remove(name)
			}
		}
	}
	w.doing = "with entries, and with a timeout too"
	want, err := c.message(w, m, mut)
	if err != nil {
		return
	}
	mut.Timeout = time.Minute
	out, err := c.message(w, m, mut)
	switch {
	case isNoMutation(err):
		return // it has no room for both
	case err != nil:
		c.failf(w, m.Raw, "Encode: %v", err)
	case bytes.Equal(out, want):
		alone, err := c.message(w, m, &codecs.Mutation{Timeout: time.Minute})
		if plain, e := c.message(w, m, nil); err == nil && e == nil && !bytes.Equal(alone, plain) {
			c.failf(w, out, "it takes a timeout alone, but not with entries")
		}
		return // it has no place for a timeout
	}
	var o codecs.Metadata
	c.givenOut(w, w.stream, k, &o, out)
	if got := timeout(&o); got != time.Minute {
		c.failf(w, out, "the request says %v, want a minute", got)
	}
	c.sameCall(w, out, m, &o)
}

// attempted encodes m, which is frame k, with mut, which has no entries: told says that
// it is another then, which has been decoded into o.
func (c *check) attempted(w where, st *stream, k int, m *codecs.Metadata, mut *codecs.Mutation, o *codecs.Metadata) (out []byte, told bool) {
	plain, err := c.message(w, m, nil)
	if err != nil {
		return nil, false // which is for others to tell
	}
	out, err = c.message(w, m, mut)
	if err != nil {
		c.failf(w, m.Raw, "Encode: %v; a request that cannot say it goes out as it is", err)
	}
	if bytes.Equal(out, plain) {
		return out, false
	}
	c.givenOut(w, st, k, o, out)
	retried := o.Retried
	o.Retried = m.Retried
	if d := difference(m, outspoken(o, m), sizes|private|views); d != "" {
		c.failf(w, out, "the request has changed otherwise: %s", d)
	}
	o.Retried = retried
	c.sameCall(w, out, m, o)
	return out, true
}

// ownPayload sets the payload of m to what it is; nil if it has none.
func (c *check) ownPayload(m *codecs.Metadata) *codecs.Mutation {
	payloader, ok := c.codec.(codecs.Payloader)
	if !ok {
		return nil
	}
	p, err := payloader.Payload(m)
	if err != nil {
		return nil
	}
	mut := new(codecs.Mutation)
	mut.SetPayload(p)
	return mut
}

// retries checks that a request can be encoded again from a copy of its frame, when
// all else of it has gone, and that it bears the mark of a retry then, or none.
func (c *check) retries() {
	c.requests("", func(w where, k int, m *codecs.Metadata) {
		var o codecs.Metadata
		w.doing = "marked as a retry"
		if out, told := c.attempted(w, w.stream, k, m, &codecs.Mutation{Retry: 2}, &o); told && !o.Retried {
			c.failf(w, out, "it has changed, but is not Retried")
		}
		muts := [...]struct {
			name string
			mut  *codecs.Mutation
		}{
			{"without a change", nil},
			{"with a timeout and the mark of a retry", &codecs.Mutation{Timeout: time.Minute, Retry: 1}},
			{"with entries", c.everything(codecs.ClientToServer)},
			{"with its payload set", c.ownPayload(m)},
		}
		id := m.ID
		if _, may := takesID(m); may && c.traits.Correlation == codecs.ByID {
			m.ID = c.traits.MaxID - id%2
		}
		var before [len(muts)][]byte
		var errs [len(muts)]error
		for i, mu := range muts {
			w.doing = "encoded " + mu.name
			before[i], errs[i] = c.message(w, m, mu.mut)
		}
		b := w.stream.frame(k)
		deadliner, ok := c.codec.(codecs.Deadliner)
		var said time.Duration
		if ok {
			c.guard(w, b, func() { said = deadliner.Timeout(m) })
		}
		m.Release()
		m.Raw = c.mem.lend(b)
		for i, mu := range muts {
			w.doing = "released, and encoded from a copy of its frame " + mu.name
			out, err := c.message(w, m, mu.mut)
			if (err == nil) != (errs[i] == nil) || !bytes.Equal(out, before[i]) {
				c.failf(w, b, "it becomes (error %v)\n%swant (error %v)\n%s", err, dump(out), errs[i], dump(before[i]))
			}
		}
		if ok {
			c.guard(w, b, func() {
				if got := deadliner.Timeout(m); got != said {
					c.failf(w, b, "its timeout is %v then, and was %v", got, said)
				}
			})
		}
		m.ID = id
	})
}
