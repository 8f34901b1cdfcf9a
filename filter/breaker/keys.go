package breaker

import (
	"encoding/binary"
	"hash/maphash"
	"strings"
	"sync"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
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

const (
	// manyKeys are spread over shards, so that workers seldom wait for each other.
	manyKeys = 1024
	shards   = 16
	// longKey is a key of which only a digest is kept.
	longKey = 256
	// looks is how many keys are looked at for one that can be forgotten.
	looks = 8
)

// Keys are the breakers of all values of some properties. Beyond so many all others
// share one.
type Keys struct {
	id     string
	users  int // under Cluster.mu
	seeds  [2]maphash.Seed
	shards []shard
	rest   shard // has one key, that of all others
}

// shard is some of the keys.
type shard struct {
	mu   sync.Mutex
	keys map[string]*key
	used key // its next is the key that was used last, its prev the one that was used first
}

// key is the breaker of one value.
type key struct {
	of         *shard
	value      string
	next, prev *key

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
	k     *key
	p     *KeyPolicy
	probe uint64 // 0: it is none
}

func newKeys(id string, most int) *Keys {
	k := &Keys{id: id, seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}}
	n := 1
	if most >= manyKeys {
		n = shards
	}
	k.shards = make([]shard, n)
	for i := range k.shards {
		k.shards[i].init()
	}
	k.rest.init()
	k.rest.add("")
	return k
}

func (s *shard) init() {
	s.keys = map[string]*key{}
	s.used.next, s.used.prev = &s.used, &s.used
}

// add makes a key.
func (s *shard) add(value string) *key {
	k := &key{of: s, value: value}
	s.keys[value] = k
	s.touch(k)
	return k
}

// touch makes k the one that was used last.
func (s *shard) touch(k *key) {
	if k.next != nil {
		k.next.prev, k.prev.next = k.prev, k.next
	}
	k.next, k.prev = s.used.next, &s.used
	k.next.prev, s.used.next = k, k
}

// appendKey appends the values that md has. None is taken for another, nor a missing
// one for an empty one.
func (k *Keys) appendKey(b []byte, p *KeyPolicy, md *codecs.Metadata) []byte {
	for _, name := range p.Names {
		v, ok := md.Get(name)
		if !ok {
			b = append(b, 0)
			continue
		}
		b = binary.AppendUvarint(b, uint64(len(v))+1)
		b = append(b, v...)
	}
	if len(b) > longKey {
		d0, d1 := maphash.Bytes(k.seeds[0], b), maphash.Bytes(k.seeds[1], b)
		b = binary.LittleEndian.AppendUint64(b[:0], d0)
		b = binary.LittleEndian.AppendUint64(b, d1)
		b = append(b, "digest"...)
	}
	return b
}

// take lets a request pass, or tells which limit forbids it.
func (k *Keys) take(h *hold, p *KeyPolicy, md *codecs.Metadata, now time.Duration) (Limit, bool) {
	var scratch [longKey]byte
	b := k.appendKey(scratch[:0], p, md)
	s := &k.shards[0]
	if len(k.shards) > 1 {
		s = &k.shards[maphash.Bytes(k.seeds[0], b)%shards]
	}
	s.mu.Lock()
	e := s.keys[string(b)]
	if e == nil && s.room((p.MaxKeys+len(k.shards)-1)/len(k.shards), now) {
		e = s.add(string(b))
	}
	if e == nil {
		s.mu.Unlock()
		s = &k.rest
		s.mu.Lock()
		e = s.used.next
	}
	defer s.mu.Unlock()
	s.touch(e)
	if e.inFlight >= p.MaxRequests {
		return KeyRequests, false
	}
	*h = hold{k: e, p: p}
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

// room reports whether there may be another key, and forgets the one that has not been
// used for longest if it must.
func (s *shard) room(most int, now time.Duration) bool {
	for range looks {
		if len(s.keys) < most {
			return true
		}
		if e := s.used.prev; e.inFlight == 0 && now >= e.openUntil {
			e.next.prev, e.prev.next = e.prev, e.next
			delete(s.keys, e.value)
		} else {
			s.touch(e)
		}
	}
	return len(s.keys) < most
}

// end ends the request, and reports whether the breaker has opened by it.
func (h *hold) end(now time.Duration, o Outcome, took time.Duration) bool {
	e, p := h.k, h.p
	e.of.mu.Lock()
	defer e.of.mu.Unlock()
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
