package connectionlimit

import (
	"net/netip"
	"sync"
	"sync/atomic"
)

// total counts connections.
type total struct{ n atomic.Int64 }

// take counts one more, if there are fewer than most.
func (t *total) take(most int64) bool {
	for {
		n := t.n.Load()
		if n >= most {
			return false
		}
		if t.n.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (t *total) free() { t.n.Add(-1) }

// addresses counts connections of each address that has some.
type addresses struct {
	most int // that are told apart

	mu   sync.Mutex
	of   map[netip.Addr]int64
	rest int64 // connections of the others
}

// take counts one more connection of a, if there are fewer than most. known reports
// that a was told apart.
func (t *addresses) take(a netip.Addr, most int64) (known, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, known := t.of[a]
	if !known && len(t.of) >= t.most {
		if t.rest >= most {
			return false, false
		}
		t.rest++
		return false, true
	}
	if n >= most {
		return true, false
	}
	t.of[a] = n + 1
	return true, true
}

// free undoes a take, of a if it was known.
func (t *addresses) free(a netip.Addr, known bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch n := t.of[a]; {
	case !known:
		t.rest--
	case n == 1:
		delete(t.of, a)
	default:
		t.of[a] = n - 1
	}
}
