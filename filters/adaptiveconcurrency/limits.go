package adaptiveconcurrency

import (
	"sync"
	"sync/atomic"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// looks is how many limits are looked at for one that can be forgotten.
const looks = 8

// limits are those of a listener, of all its routes and keys. Workers remember those that
// they have found: only what is new to one of them takes the lock.
type limits struct {
	sum atomic.Int64 // of what they are

	mu    sync.Mutex
	byKey map[string]*keyedLimit
	all   []*keyedLimit
	hand  int // the next one of all to be looked at
	rest  *keyedLimit
}

// keyedLimit is the limit of a key.
type keyedLimit struct {
	limit
	key  string
	told atomic.Int64 // its part of the sum
	used atomic.Bool  // since somebody looked for one to forget
	gone atomic.Bool
}

func newLimits() *limits { return &limits{byKey: map[string]*keyedLimit{}} }

// appendKey appends the key of a request to b, which is empty: the values that it has of
// the properties, and its route's name.
func (c *config) appendKey(b []byte, route string, md *codecs.Metadata) []byte {
	return append(append(c.names.Append(b, md), route...), c.id...)
}

// get returns the limit of a key, or that which all keys share for which there is no room.
func (ls *limits) get(key []byte, c *config) (k *keyedLimit, shared bool) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if k = ls.byKey[string(key)]; k != nil {
		return k, false
	}
	if !ls.room(c.maxKeys) {
		if ls.rest == nil {
			ls.rest = ls.add(c)
		}
		return ls.rest, true
	}
	k = ls.add(c)
	k.key = string(key)
	ls.byKey[k.key] = k
	ls.all = append(ls.all, k)
	return k, false
}

func (ls *limits) add(c *config) *keyedLimit {
	k := &keyedLimit{}
	k.start(&c.policy)
	ls.tell(k, c.initial)
	return k
}

// tell notes what a limit is now, and returns the sum.
func (ls *limits) tell(k *keyedLimit, limit int) int64 {
	if ls.sum.Add(int64(limit) - k.told.Swap(int64(limit))); limit > 0 && k.gone.Load() {
		ls.sum.Add(-k.told.Swap(0))
	}
	return ls.sum.Load()
}

// room reports whether there may be another one, and forgets one for it that has no
// request in flight, rather one that nobody has used for a while. Who has just found it
// may still use it once.
func (ls *limits) room(most int) bool {
	for len(ls.all) >= most {
		idle := -1
		for range min(looks, len(ls.all)) {
			ls.hand = (ls.hand + 1) % len(ls.all)
			if k := ls.all[ls.hand]; k.inFlight.Load() == 0 {
				if idle = ls.hand; !k.used.Swap(false) {
					break
				}
			}
		}
		if idle < 0 {
			return false
		}
		ls.forget(idle)
	}
	return true
}

func (ls *limits) forget(i int) {
	k := ls.all[i]
	k.gone.Store(true)
	ls.tell(k, 0)
	delete(ls.byKey, k.key)
	last := len(ls.all) - 1
	ls.all[i], ls.all[last] = ls.all[last], nil
	ls.all = ls.all[:last]
}

// known are the limits that a worker has found.
type known map[string]*keyedLimit

// find returns the limit of a key.
func (kn *known) find(ls *limits, key []byte, c *config) (k *keyedLimit, shared bool) {
	if k = (*kn)[string(key)]; k != nil {
		if !k.gone.Load() {
			if !k.used.Load() {
				k.used.Store(true)
			}
			return k, false
		}
		delete(*kn, k.key)
	}
	if k, shared = ls.get(key, c); shared {
		return k, true
	}
	if len(*kn) >= c.maxKeys { // some of them are gone
		clear(*kn)
	}
	(*kn)[k.key] = k
	return k, false
}
