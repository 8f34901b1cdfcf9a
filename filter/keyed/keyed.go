// Package keyed keeps something for each of the values that properties of messages have,
// such as a bucket for each tenant, in bounded memory: what has not been used for
// longest is forgotten, if nothing is lost by it, and if all would lose something
// further keys share one value. Any goroutine may use it.
package keyed

import (
	"encoding/binary"
	"hash/maphash"
	"sync"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// Size is how many bytes a key has at most: room for it on the stack.
const Size = 256

// maxLooked is how much of a value is looked at, in bytes: a client may send one that fills
// its frame, and each key that it is part of takes its time.
const maxLooked = 8 << 10

// Names are the properties that make a key, compared without regard to case.
type Names []string

var seeds = [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}

// Append appends the key of m to dst, which is empty. No values have the key of others,
// and a property that m lacks is not taken for an empty one; of one that is repeated the
// first value counts. Of values that are too long for a key there is a digest, of their
// lengths and first 8 KiB: longer ones that are the same so far share a key.
func (n Names) Append(dst []byte, m *codecs.Metadata) []byte {
	for _, name := range n {
		v, ok := m.Get(name)
		if !ok {
			dst = append(dst, 0)
			continue
		}
		dst = appendValue(dst, v)
	}
	return digest(dst)
}

func appendValue[T string | []byte](dst []byte, v T) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(v))+1), v[:min(len(v), maxLooked)]...)
}

// Key is what Append appends for a message whose properties have these values.
func Key(values ...string) string {
	var dst []byte
	for _, v := range values {
		dst = appendValue(dst, v)
	}
	return string(digest(dst))
}

func digest(key []byte) []byte {
	if len(key) <= Size {
		return key
	}
	d0, d1 := maphash.Bytes(seeds[0], key), maphash.Bytes(seeds[1], key)
	key = binary.LittleEndian.AppendUint64(key[:0], d0)
	key = binary.LittleEndian.AppendUint64(key, d1)
	return append(key, "digest"...)
}

const (
	// manyKeys are spread over shards, so that workers seldom wait for each other.
	manyKeys = 1024
	shards   = 16
	// looks is how many keys are looked at for one that can be forgotten.
	looks = 8
)

// Table has a value for each key.
type Table[V any] struct {
	init   func(v *V)
	idle   func(v *V, now time.Duration) bool
	seed   maphash.Seed
	shards []shard[V]
	rest   shard[V] // has one entry, that of all others
}

type shard[V any] struct {
	mu      sync.Mutex
	entries map[string]*Entry[V]
	used    Entry[V] // its next was used last, its prev is what has not been used for longest
}

// Entry is the value of a key.
type Entry[V any] struct {
	// Value may be used between Lock and Unlock.
	Value V

	of         *shard[V]
	key        string
	next, prev *Entry[V]
}

// NewTable returns a table for about that many keys. init, which may be nil, makes a value
// of the zero value; idle reports whether nothing is lost when a value is forgotten, now
// being what Lock was told.
func NewTable[V any](most int, init func(v *V), idle func(v *V, now time.Duration) bool) *Table[V] {
	n := 1
	if most >= manyKeys {
		n = shards
	}
	t := &Table[V]{init: init, idle: idle, seed: maphash.MakeSeed(), shards: make([]shard[V], n)}
	for i := range t.shards {
		t.shards[i].empty()
	}
	t.rest.empty()
	t.add(&t.rest, "")
	return t
}

func (s *shard[V]) empty() {
	s.entries = map[string]*Entry[V]{}
	s.used.next, s.used.prev = &s.used, &s.used
}

// Lock returns what belongs to a key, which nobody else uses until Unlock. There is room
// for another key if there are fewer than most, rounded up to a multiple of 16 if they
// are many. shared reports that it is what belongs to all keys without room.
func (t *Table[V]) Lock(key []byte, most int, now time.Duration) (e *Entry[V], shared bool) {
	s := &t.shards[0]
	if len(t.shards) > 1 {
		s = &t.shards[maphash.Bytes(t.seed, key)%shards]
	}
	s.mu.Lock()
	if e = s.used.next; e != &s.used && e.key == string(key) { // as it often is
		return e, false
	}
	if e = s.entries[string(key)]; e != nil {
		s.touch(e)
		return e, false
	}
	if t.room(s, (most+len(t.shards)-1)/len(t.shards), now) {
		return t.add(s, string(key)), false
	}
	s.mu.Unlock()
	t.rest.mu.Lock()
	return t.rest.used.next, true
}

// Lock has nobody else use e until Unlock.
func (e *Entry[V]) Lock() { e.of.mu.Lock() }

// Unlock ends what Lock has begun.
func (e *Entry[V]) Unlock() { e.of.mu.Unlock() }

// Len returns how many keys have a value of their own.
func (t *Table[V]) Len() (n int) {
	for i := range t.shards {
		t.shards[i].mu.Lock()
		n += len(t.shards[i].entries)
		t.shards[i].mu.Unlock()
	}
	return n
}

func (t *Table[V]) add(s *shard[V], key string) *Entry[V] {
	e := &Entry[V]{of: s, key: key}
	if t.init != nil {
		t.init(&e.Value)
	}
	s.entries[key] = e
	s.touch(e)
	return e
}

// touch makes e the one that was used last.
func (s *shard[V]) touch(e *Entry[V]) {
	if e.next != nil {
		e.next.prev, e.prev.next = e.prev, e.next
	}
	e.next, e.prev = s.used.next, &s.used
	e.next.prev, s.used.next = e, e
}

// room reports whether there may be another key, and forgets one if it must.
func (t *Table[V]) room(s *shard[V], most int, now time.Duration) bool {
	for range looks {
		if len(s.entries) < most {
			return true
		}
		if e := s.used.prev; t.idle(&e.Value, now) {
			e.next.prev, e.prev.next = e.prev, e.next
			delete(s.entries, e.key)
		} else {
			s.touch(e)
		}
	}
	return len(s.entries) < most
}
