package extauthz

import (
	"crypto/sha256"
	"time"
)

// maxKept is the size of a decision that is kept, in bytes.
const maxKept = 4096

// cache is a worker's memory of decisions. All are kept for as long, so those that came
// first go first.
type cache struct {
	ttl   time.Duration
	most  int
	known map[key]cached
	order []key // a ring of the keys as they came
	first int
}

type key [sha256.Size]byte

type cached struct {
	*decision
	until time.Duration
}

func newCache(c *config) *cache {
	return &cache{ttl: c.ttl, most: c.maxEntries, known: map[key]cached{}}
}

// get returns the decision that is known for k, nil if there is none.
func (c *cache) get(k key, now time.Duration) *decision {
	if e, has := c.known[k]; has && now < e.until {
		return e.decision
	}
	return nil
}

// put keeps a decision. One that is there already came by a check that began before it
// was known, or is outdated.
func (c *cache) put(k key, d *decision, now time.Duration) {
	if d.size > maxKept {
		return
	}
	if _, has := c.known[k]; !has {
		if len(c.order) < c.most {
			c.order = append(c.order, k)
		} else {
			delete(c.known, c.order[c.first])
			c.order[c.first] = k
			c.first = (c.first + 1) % c.most
		}
	}
	c.known[k] = cached{d, now + c.ttl}
}
