package breaker

import (
	"strings"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/keyed"
)

// KeyPolicy is what is allowed to the requests that have the same values of some
// properties.
type KeyPolicy struct {
	// Names of the properties.
	Names []string
	// MaxRequests may be in flight.
	MaxRequests int
	// ErrorPercent and SlowPercent of at least MinimumRequests that have ended within
	// Interval open the breaker for OpenTime, slow ones being those that took longer
	// than SlowThreshold; 0: they do not.
	ErrorPercent, SlowPercent, MinimumRequests int
	SlowThreshold, Interval, OpenTime          time.Duration
	// MaxKeys are told apart.
	MaxKeys int
}

// id is what policies have in common whose keys are the same.
func (p *KeyPolicy) id() string { return strings.ToLower(strings.Join(p.Names, "\x00")) }

// opens reports whether the breaker may open at all.
func (p *KeyPolicy) opens() bool { return p.ErrorPercent > 0 || p.SlowPercent > 0 }

// Keys are the breakers of all values of some properties. Beyond so many all others
// share one.
type Keys struct {
	id    string
	users int // under Cluster.mu
	table *keyed.Table[key]
}

// key is the breaker of one value.
type key struct {
	inFlight  int
	openUntil time.Duration // 0: closed; when it is over one request may try
	probe     uint64        // number of the one that does, 0: none
	probes    uint64
	windowEnd time.Duration
	total     int
	errors    int
	slow      int
}

// hold is a request's part of a key.
type hold struct {
	e     *keyed.Entry[key]
	p     *KeyPolicy
	probe uint64 // 0: it is none
}

func newKeys(id string, most int) *Keys {
	return &Keys{id: id, table: keyed.NewTable(most, nil, func(k *key, now time.Duration) bool {
		return k.inFlight == 0 && now >= k.openUntil
	})}
}

// take lets a request pass, or tells which limit forbids it.
func (k *Keys) take(h *hold, p *KeyPolicy, md *codecs.Metadata, now time.Duration) (Limit, bool) {
	var room [keyed.Size]byte
	locked, _ := k.table.Lock(keyed.Names(p.Names).Append(room[:0], md), p.MaxKeys, now)
	defer locked.Unlock()
	e := &locked.Value
	if e.inFlight >= p.MaxRequests {
		return KeyRequests, false
	}
	*h = hold{e: locked, p: p}
	if e.openUntil != 0 && p.opens() {
		if now < e.openUntil || e.probe != 0 {
			*h = hold{}
			return KeyOpen, false
		}
		e.probes++
		e.probe = e.probes
		h.probe = e.probe
	}
	e.inFlight++
	return 0, true
}

// end ends the request, and reports whether the breaker has opened by it.
func (h *hold) end(now time.Duration, o Outcome, took time.Duration) bool {
	h.e.Lock()
	defer h.e.Unlock()
	e, p := &h.e.Value, h.p
	e.inFlight--
	slow := o != Unknown && p.SlowPercent > 0 && took > p.SlowThreshold
	failed := o == Failure && p.ErrorPercent > 0
	if h.probe != 0 {
		if e.probe != h.probe {
			return false
		}
		e.probe = 0
		switch {
		case o == Unknown: // another one may try
			return false
		case failed || slow:
			e.openUntil = now + p.OpenTime
			return true
		}
		e.openUntil, e.windowEnd = 0, 0
		return false
	}
	if e.openUntil != 0 || o == Unknown || !p.opens() {
		return false
	}
	if now >= e.windowEnd {
		e.windowEnd = now + p.Interval
		e.total, e.errors, e.slow = 0, 0, 0
	}
	e.total++
	if failed {
		e.errors++
	}
	if slow {
		e.slow++
	}
	if e.total < p.MinimumRequests || !exceeds(e.errors, e.total, p.ErrorPercent) && !exceeds(e.slow, e.total, p.SlowPercent) {
		return false
	}
	e.openUntil = now + p.OpenTime
	return true
}

func exceeds(n, total, percent int) bool { return percent > 0 && n*100 >= total*percent }
