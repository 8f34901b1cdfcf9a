package localratelimit

import (
	"math"
	"slices"
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

const (
	// maxIdle are the definitions that are kept though nobody uses them, maxIdleBuckets the
	// buckets that these have together. What was left last stays in any case: it may have
	// more by itself, and come back at once.
	maxIdle        = 4096
	maxIdleBuckets = 1 << 18
)

// store has the tokens of all definitions that are in use in the process, and of those
// that were as long as they are not full again, or too many: a definition that comes back,
// in a new version of a configuration or of a route, finds what was left.
type store struct {
	mu   sync.Mutex
	all  map[string]*kept // by bucket.id
	idle []*kept          // that nobody uses, in the order in which they were left
	size int              // buckets of these
}

type kept struct {
	*tokens
	id    string
	rate  *tokenbucket.Rate
	users int

	// While there are none:
	size  int           // buckets
	dated bool          // whether it is known until when it fills
	until time.Duration // at most
}

func newStore() *store { return &store{all: map[string]*kept{}} }

// use returns the tokens of a definition, of a table of keys unless that is 0.
func (s *store) use(b bucket, keys int) *tokens {
	k := s.all[b.id]
	if k == nil {
		k = &kept{tokens: newTokens(b, keys), id: b.id, rate: b.rate}
		s.all[b.id] = k
	} else if k.users == 0 {
		i := slices.Index(s.idle, k)
		s.idle = slices.Delete(s.idle, i, i+1)
		s.size -= k.size
	}
	k.users++
	return k.tokens
}

// leave ends the use of limits.
func (s *store) leave(l *limits) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range l.ids {
		k := s.all[id]
		if k.users--; k.users > 0 {
			continue
		}
		k.size, k.dated = 1, false
		if k.table != nil {
			k.size += k.table.Len()
		}
		s.idle = append(s.idle, k)
		s.size += k.size
	}
	n := 0
	for len(s.idle)-n > maxIdle || s.size > maxIdleBuckets && len(s.idle)-n > 1 {
		s.forget(s.idle[n])
		n++
	}
	s.idle = slices.Delete(s.idle, 0, n)
}

// sweep forgets what is full and in use by nobody.
func (s *store) sweep(now time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle = slices.DeleteFunc(s.idle, func(k *kept) bool {
		full := k.full(now)
		if full {
			s.forget(k)
		}
		return full
	})
}

func (s *store) forget(k *kept) {
	delete(s.all, k.id)
	s.size -= k.size
}

// full reports whether k, which nobody uses, is as good as new. The buckets of a table are
// not looked at, as they may be a million: all are when the time is over in which an empty
// one fills.
func (k *kept) full(now time.Duration) bool {
	if k.table == nil {
		return k.one.Full(now)
	}
	if !k.dated {
		k.dated, k.until = true, math.MaxInt64
		if fill := k.rate.Fill(); fill < math.MaxInt64-max(now, 0) {
			k.until = now + fill
		}
	}
	return now >= k.until
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
