package localratelimit

import (
	"sync"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/keyed"
	"github.com/meltemi-mesh/meltemi/filter/tokenbucket"
)

// tokens are what a definition of a bucket stands for: one, or those of a table.
type tokens struct {
	one   tokenbucket.Bucket
	table *keyed.Table[tokenbucket.Bucket]
}

func newTokens(b bucket, keys int) *tokens {
	t := &tokens{}
	if keys == 0 {
		t.one.Init(b.rate)
		return t
	}
	t.table = keyed.NewTable(keys,
		func(v *tokenbucket.Bucket) { v.Init(b.rate) },
		func(v *tokenbucket.Bucket, now time.Duration) bool { return v.Full(now) })
	return t
}

// full reports whether t is as good as new.
func (t *tokens) full(now time.Duration) bool {
	if t.table == nil {
		return t.one.Full(now)
	}
	return t.table.All(func(v *tokenbucket.Bucket) bool { return v.Full(now) })
}

// store has the tokens of all definitions that are in use in the process, and of those
// that were as long as they are not full again: a definition that comes back, in a new
// version of a configuration or of a route, finds what was left.
type store struct {
	mu  sync.Mutex
	all map[string]*kept // by bucket.id
}

type kept struct {
	*tokens
	users int
}

func newStore() *store { return &store{all: map[string]*kept{}} }

// use returns the tokens of a definition, of a table of keys unless that is 0.
func (s *store) use(b bucket, keys int) *tokens {
	k := s.all[b.id]
	if k == nil {
		k = &kept{tokens: newTokens(b, keys)}
		s.all[b.id] = k
	}
	k.users++
	return k.tokens
}

// sweep forgets what is full and in use by nobody.
func (s *store) sweep(now time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, k := range s.all {
		if k.users == 0 && k.full(now) {
			delete(s.all, id)
		}
	}
}

// leave ends the use of limits.
func (s *store) leave(l *limits) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range l.ids {
		s.all[id].users--
	}
}

// limits are the tokens of a config.
type limits struct {
	ids         []string
	rest        *tokens
	conditions  []*tokens
	descriptors []keyedLimits
}

// keyedLimits are the tokens of a descriptor.
type keyedLimits struct {
	names     keyed.Names
	most      int
	table     *tokens
	overrides map[string]*tokens
}

// limits returns those of c, in use until they are left.
func (s *store) limits(c *config) *limits {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &limits{}
	use := func(b bucket, keys int) *tokens {
		l.ids = append(l.ids, b.id)
		return s.use(b, keys)
	}
	if c.rest != nil {
		l.rest = use(*c.rest, 0)
	}
	for i := range c.conditions {
		l.conditions = append(l.conditions, use(c.conditions[i].bucket, 0))
	}
	for i := range c.descriptors {
		d := &c.descriptors[i]
		k := keyedLimits{d.names, d.most, use(d.bucket, d.most), make(map[string]*tokens, len(d.overrides))}
		for key, b := range d.overrides {
			k.overrides[key] = use(b, 0)
		}
		l.descriptors = append(l.descriptors, k)
	}
	return l
}

// take takes a token for the values of m, and returns the bucket that had it, nil if
// there was none. shared reports that the values were too many to be told apart.
func (k *keyedLimits) take(m *codecs.Metadata, now time.Duration) (from *tokenbucket.Bucket, shared bool) {
	var room [keyed.Size]byte
	key := k.names.Append(room[:0], m)
	if o := k.overrides[string(key)]; o != nil {
		if o.one.Take(now, 1) {
			return &o.one, false
		}
		return nil, false
	}
	e, shared := k.table.table.Lock(key, k.most, now)
	defer e.Unlock()
	if e.Value.Take(now, 1) {
		return &e.Value, shared
	}
	return nil, shared
}
