package codectest

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// mutates tells the types of messages that the pipeline mutates.
func mutates(t codecs.MessageType) bool {
	switch t {
	case codecs.Request, codecs.Oneway, codecs.Quiet, codecs.Muted, codecs.StreamInit, codecs.Response, codecs.Error:
		return true
	default:
		return false
	}
}

// everything is all that the suite sets in messages of one direction; nil if
// nothing.
func (c *check) everything(d codecs.Direction) (all *codecs.Mutation) {
	for _, mu := range c.s.Mutations {
		if mu.Direction == d {
			if all == nil {
				all = new(codecs.Mutation)
			}
			all.Set(mu.Key, mu.Value)
		}
	}
	return all
}

// mutation checks that what is set is set, and nothing else changes.
func (c *check) mutation() {
	mutator, ok := c.codec.(codecs.Mutator)
	if !ok {
		c.skipped = "the codec is no Mutator"
		return
	}
	var sets [2][][]Mutation
	for _, mu := range c.s.Mutations {
		w := where{name: fmt.Sprintf("mutation of %.40q to %.40q, %s", mu.Key, mu.Value, mu.Direction)}
		c.attempt(func() {
			c.guard(w, []byte(mu.Value), func() {
				if err := mutator.CheckMutation(mu.Direction, mu.Key, mu.Value); err != nil {
					c.failf(w, []byte(mu.Value), "CheckMutation: %v", err)
				}
			})
		})
		sets[mu.Direction] = append(sets[mu.Direction], []Mutation{mu})
	}
	for d := range sets {
		if len(sets[d]) > 1 {
			sets[d] = append(sets[d], slices.Concat(sets[d]...))
		}
	}
	mutated := 0
	c.each(all, func(st *stream) {
		for _, set := range sets[st.dir] {
			mutated += c.mutate(st, set)
		}
	})
	c.needless(Immutable)
	if mutated == 0 && !c.light && len(c.s.Mutations) > 0 {
		c.errorf("no message of the suite could be mutated")
	}
}

// mutate sets the keys in every message of st, and decodes them all as one
// connection's bytes. It returns how many could be changed.
func (c *check) mutate(st *stream, set []Mutation) (mutated int) {
	var mut codecs.Mutation
	var keys []string
	for _, mu := range set {
		mut.Set(mu.Key, mu.Value)
		keys = append(keys, fmt.Sprintf("%.40q", mu.Key))
	}
	doing := "with " + strings.Join(keys, ", ") + " set"
	dec, back := c.decoder(st), c.decoder(st)
	var m, o codecs.Metadata
	var mem memory
	for k, f := range st.frames {
		w := where{stream: st, frame: k, doing: doing}
		b := st.frame(k)
		c.wholeLent(w, dec, &m, mem.lend(b), b, f.n)
		if !mutates(m.Type) || k < st.first {
			c.whole(w, back, &o, b, f.n)
			continue
		}
		out, err := c.message(w, &m, &mut)
		if err != nil {
			c.mayRefuse(w, st, k, f.meta, b, err)
			c.whole(w, back, &o, b, f.n)
			continue
		}
		mutated++
		c.whole(w, back, &o, out, len(out))
		if d := difference(f.meta, outspoken(&o, f.meta), sizes|private|views); d != "" {
			c.failf(w, out, "the mutated message has changed otherwise: %s", d)
		}
		c.mutatedProperties(w, out, f.meta, &o, set)
	}
	return mutated
}

func (c *check) mayRefuse(w where, st *stream, k int, m *codecs.Metadata, b []byte, err error) {
	switch {
	case !isNoMutation(err):
		c.failf(w, b, "Encode: %v, which ends the message; want one that wraps codecs.ErrNoMutation", err)
	case c.light || m.Malformed != "" || c.s.Immutable != nil && c.s.Immutable(st.frameName(k), m) || c.need(st, Immutable):
	default:
		c.failf(w, b, "it is not mutated (see Immutable): %v", err)
	}
}

// mutatedProperties checks that o has the properties of m, with those of set.
func (c *check) mutatedProperties(w where, out []byte, m, o *codecs.Metadata, set []Mutation) {
	want, got := byName(m), byName(o)
	for _, mu := range set {
		name := mu.property()
		values := got[name]
		if len(values) == 0 {
			c.failf(w, out, "there is no property %q", name)
		}
		for _, v := range values {
			if v != mu.Value {
				c.failf(w, out, "property %q is %.80q, want %.80q", name, v, mu.Value)
			}
		}
		delete(want, name)
		delete(got, name)
	}
	for name, values := range want {
		if !slices.Equal(values, got[name]) {
			c.failf(w, out, "property %q has changed from %.80q to %.80q", name, values, got[name])
		}
		delete(got, name)
	}
	for name, values := range got {
		c.failf(w, out, "there is a new property %q, %.80q", name, values)
	}
	if x, y := m.AppendOperation(nil), o.AppendOperation(nil); string(x) != string(y) {
		c.failf(w, out, "the operation has changed from %.80q to %.80q", x, y)
	}
}

func byName(m *codecs.Metadata) map[string][]string {
	t := map[string][]string{}
	for _, p := range m.Properties() {
		t[string(p.Name)] = append(t[string(p.Name)], string(p.Value))
	}
	return t
}

// removal checks that what is removed is gone, in whatever case, unless it is set
// too, and that nothing else changes.
func (c *check) removal() {
	remover, ok := c.codec.(codecs.Remover)
	if !ok {
		c.skipped = "the codec is no Remover"
		return
	}
	removed := 0
	c.each(all, func(st *stream) {
		var mus []Mutation
		for _, mu := range c.s.Mutations {
			if mu.Direction == st.dir && len(mus) == 0 {
				mus = append(mus, mu)
			}
		}
		for k := range maxRemoved {
			removed += c.remove(st, remover, k, nil)
		}
		removed += c.remove(st, remover, maxRemoved, nil)
		c.remove(st, remover, maxRemoved, mus)
	})
	if removed == 0 && !c.light {
		c.errorf("no message of the suite has anything that CheckRemoval lets be removed")
	}
}

// maxRemoved is how many properties of a message are removed each by itself.
const maxRemoved = 3

// remove removes the k-th of the properties that may be removed from every message
// of st, or all of them, and sets the keys of set, which are then no others.
func (c *check) remove(st *stream, remover codecs.Remover, k int, set []Mutation) (removed int) {
	dec, back := c.decoder(st), c.decoder(st)
	var m, o codecs.Metadata
	var mem memory
	for i, f := range st.frames {
		w := where{stream: st, frame: i}
		b := st.frame(i)
		c.wholeLent(w, dec, &m, mem.lend(b), b, f.n)
		var mut codecs.Mutation
		var names []string
		for _, p := range f.meta.Properties() {
			if name := string(p.Name); remover.CheckRemoval(st.dir, name) == nil && !mut.Removes(p.Name) {
				if k == maxRemoved || k == len(names) {
					mut.Remove(upper(name))
				}
				names = append(names, name)
			}
		}
		for _, mu := range set {
			mut.Remove(mu.Key)
			mut.Set(mu.Key, mu.Value)
		}
		if !mutates(m.Type) || i < st.first || len(mut.Removed()) == 0 {
			c.whole(w, back, &o, b, f.n)
			continue
		}
		w.doing = fmt.Sprintf("with %.80q removed", mut.Removed())
		out, err := c.message(w, &m, &mut)
		if err != nil {
			c.mayRefuse(w, st, i, f.meta, b, err)
			c.whole(w, back, &o, b, f.n)
			continue
		}
		removed += len(names)
		c.whole(w, back, &o, out, len(out))
		o.GoesAway, o.Retried = f.meta.GoesAway, f.meta.Retried // what is removed may have said so
		if d := difference(f.meta, outspoken(&o, f.meta), sizes|private|views); d != "" {
			c.failf(w, out, "the message without it has changed otherwise: %s", d)
		}
		var left codecs.Metadata
		for _, p := range f.meta.Properties() {
			if !mut.Removes(p.Name) {
				left.Put(p.Name, p.Value)
			}
		}
		c.removedProperties(w, out, &left, f.meta, &o, set)
	}
	return removed
}

// removedProperties checks that o has the properties that are left, with those of
// set, and the operation of m.
func (c *check) removedProperties(w where, out []byte, left, m, o *codecs.Metadata, set []Mutation) {
	want, got := byName(left), byName(o)
	for _, mu := range set {
		want[mu.property()] = []string{mu.Value}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if want[name] == nil {
			c.failf(w, out, "property %q, %.80q, is still there, or new", name, got[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if !slices.Equal(want[name], got[name]) {
			c.failf(w, out, "property %q has changed from %.80q to %.80q", name, want[name], got[name])
		}
	}
	if x, y := m.AppendOperation(nil), o.AppendOperation(nil); string(x) != string(y) {
		c.failf(w, out, "the operation has changed from %.80q to %.80q", x, y)
	}
}

// upper is ASCII only.
func upper(s string) string {
	return strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' {
			r -= 'a' - 'A'
		}
		return r
	}, s)
}

// mutationRefused checks that CheckMutation lets nothing pass that it should
// not, and that messages survive what nobody has checked.
func (c *check) mutationRefused() {
	mutator, ok := c.codec.(codecs.Mutator)
	if !ok {
		c.skipped = "the codec is no Mutator"
		return
	}
	for _, mu := range c.s.Refused {
		w := where{name: fmt.Sprintf("mutation of %.40q to %.40q, %s", mu.Key, mu.Value, mu.Direction)}
		c.attempt(func() {
			c.guard(w, []byte(mu.Value), func() {
				err := mutator.CheckMutation(mu.Direction, mu.Key, mu.Value)
				if err == nil {
					c.failf(w, []byte(mu.Value), "CheckMutation lets it pass")
				}
			})
		})
	}
}
