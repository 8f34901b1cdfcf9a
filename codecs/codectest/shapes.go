package codectest

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

const (
	// rememberedRounds are so many that the first teaches, and others find what they know.
	rememberedRounds = 3
	// maxMutants of a frame are made, fewer by a fuzzer, which makes its own.
	maxMutants, fuzzedMutants = 40, 2
)

// shapes checks that what decoders remember changes nothing of what they decode: all
// frames again and again, with bytes changed, with what filters change in the messages.
func (c *check) shapes() {
	if _, ok := c.codec.NewDecoder(codecs.ClientToServer).(codecs.Learner); !ok {
		c.skipped = "the decoder of requests is no codecs.Learner"
		return
	}
	shapes, shared := new(codecs.Shapes), 0
	for round := range rememberedRounds {
		c.each(all, func(st *stream) {
			if st.dir == codecs.ClientToServer {
				shared += c.remembered(st, shapes, round == rememberedRounds-1)
			}
		})
	}
	if shared == 0 && !c.light {
		c.failf(where{doing: "decoded again and again"}, nil, "no frame was found to have a known shape")
	}
}

// twins are two decoders of a connection, of which one remembers.
type twins struct{ plain, learner codecs.Decoder }

func (c *check) twins(shapes *codecs.Shapes) twins {
	t := twins{c.codec.NewDecoder(codecs.ClientToServer), c.codec.NewDecoder(codecs.ClientToServer)}
	t.learner.(codecs.Learner).Learn(shapes)
	return t
}

// remembered returns how many frames of st had a known shape.
func (c *check) remembered(st *stream, shapes *codecs.Shapes, mutants bool) (shared int) {
	t := c.twins(shapes)
	most := maxMutants
	if c.light || raced.Detector {
		most = fuzzedMutants
	}
	for k := range st.frames {
		b := st.frame(k)
		w := where{name: st.name, doing: fmt.Sprintf("frame %d decoded by one that remembers shapes", k)}
		if c.asWithout(w, t, b) {
			shared++
		}
		if !mutants {
			continue
		}
		m := bytes.Clone(b)
		step := 1 + len(b)/most
		for i := 0; i < len(b); i += step {
			for _, to := range [...]byte{b[i] ^ 1, b[i] ^ 0x80, 0, 'Z'} {
				if m[i] = to; to == b[i] {
					continue
				}
				// The one that it differs from is what was seen last.
				t := c.twins(shapes)
				for _, before := range st.frames[max(0, k-2):k] {
					c.asWithout(w, t, st.bytes[before.at:][:before.n])
				}
				c.asWithout(w, t, b)
				c.asWithout(where{name: st.name, doing: fmt.Sprintf("frame %d with its byte %d changed to %#x, decoded by one that remembers shapes", k, i, to)}, t, m)
			}
			m[i] = b[i]
		}
	}
	return shared
}

// asWithout has both decode b, and reports whether it had a known shape.
func (c *check) asWithout(w where, t twins, b []byte) (shared bool) {
	var want, got codecs.Metadata
	wantN, wantErr := t.plain.Decode(bytes.Clone(b), &want)
	gotN, gotErr := t.learner.Decode(bytes.Clone(b), &got)
	switch {
	case fmt.Sprint(wantErr) != fmt.Sprint(gotErr):
		c.failf(w, b, "the error is %v, without shapes %v", gotErr, wantErr)
	case wantN != gotN:
		c.failf(w, b, "the length is %d, without shapes %d", gotN, wantN)
	}
	if wantErr != nil || wantN > len(b) {
		return false
	}
	if d := difference(&want, &got, 0); d != "" {
		c.failf(w, b, "%s, which it is without shapes", d)
	}
	c.sameOutput(w, b, &want, &got)
	shared = got.Shape() != nil
	// What a filter changes is of this message alone.
	properties := got.Properties()
	got.Set("of a filter", "its value")
	for _, p := range properties[:min(len(properties), 2)] {
		got.Set(string(p.Name), "changed")
		want.Set(string(p.Name), "changed")
	}
	want.Set("of a filter", "its value")
	got.Drop("of a")
	want.Drop("of a")
	c.sameOutput(w, b, &want, &got)
	if got.Detach(); got.Shape() != nil {
		c.failf(w, b, "a message that a filter has changed shares a shape")
	}
	want.Detach()
	if len(properties) == 0 {
		return shared
	}
	if d := difference(&want, &got, 0); d != "" {
		c.failf(w, b, "behind the changes of a filter %s, which it is without shapes", d)
	}
	return shared
}

// sameOutput compares what both are encoded to.
func (c *check) sameOutput(w where, b []byte, want, got *codecs.Metadata) {
	if !mayLease(want.Type) {
		return
	}
	if d, ok := c.codec.(codecs.Deadliner); ok && want.Malformed == "" {
		if x, y := d.Timeout(want), d.Timeout(got); x != y {
			c.failf(w, b, "its timeout is %v, without shapes %v", y, x)
		}
	}
	ids := []uint64{want.ID}
	if t := c.codec.Traits(); t.Correlation == codecs.ByID && !want.FixedID {
		ids = append(ids, 1, t.MaxID)
	}
	same := func(id uint64, mu *codecs.Mutation) {
		x, errX := c.encodedAs(want, id, mu)
		y, errY := c.encodedAs(got, id, mu)
		if fmt.Sprint(errX) != fmt.Sprint(errY) || !bytes.Equal(x, y) {
			c.failf(w, b, "what it is encoded to with the id %d and %s is not what it is without shapes: %v\n%s", id, changes(mu), errY, dump(y))
		}
	}
	for _, id := range ids {
		same(id, nil)
	}
	for _, mu := range c.mutationsOf(want) {
		same(ids[len(ids)-1], mu)
	}
}

// mutationsOf returns changes to try in a request: what the suite sets, each and together,
// a timeout, what the request itself has set to something else, and removed.
func (c *check) mutationsOf(m *codecs.Metadata) (muts []*codecs.Mutation) {
	mutator, ok := c.codec.(codecs.Mutator)
	if !ok || m.Malformed != "" {
		return nil
	}
	together := &codecs.Mutation{Timeout: time.Second}
	for _, mu := range c.s.Mutations {
		if mu.Direction == codecs.ClientToServer {
			one := new(codecs.Mutation)
			one.Set(mu.Key, mu.Value)
			muts = append(muts, one)
			together.Set(mu.Key, mu.Value)
		}
	}
	others := new(codecs.Mutation)
	var removals []*codecs.Mutation
	remover, removes := c.codec.(codecs.Remover)
	gone, first := &codecs.Mutation{Timeout: time.Millisecond}, new(codecs.Mutation)
	for _, p := range m.Properties() {
		name := string(p.Name)
		if mutator.CheckMutation(codecs.ClientToServer, name, "other") == nil {
			others.Set(name, "other")
		}
		if removes && remover.CheckRemoval(codecs.ClientToServer, name) == nil {
			if gone.Remove(upper(name)); len(first.Removed()) == 0 {
				first.Remove(name)
				first.Set("new", "value")
			}
			removals = []*codecs.Mutation{first, gone}
		}
	}
	return append(append(muts, &codecs.Mutation{Timeout: time.Minute}, together, others), removals...)
}

// changes describes mu in a few words.
func changes(mu *codecs.Mutation) string {
	if mu == nil {
		return "no change"
	}
	var keys []string
	for _, kv := range mu.Entries() {
		keys = append(keys, fmt.Sprintf("%.40q", kv.Key))
	}
	return fmt.Sprintf("the timeout %v, with %s set and %.80q removed", mu.Timeout, strings.Join(keys, ", "), mu.Removed())
}

func (c *check) encodedAs(m *codecs.Metadata, id uint64, mu *codecs.Mutation) ([]byte, error) {
	defer func(was uint64) { m.ID = was }(m.ID)
	m.ID = id
	return c.codec.Encode(nil, m, mu)
}
