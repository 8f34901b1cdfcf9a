package telemetry

import (
	"maps"
	"strings"
	"sync"
	"sync/atomic"
)

const (
	// maxLabel is where names that come with the traffic are cut, in bytes.
	maxLabel = 256
	// line is at least what processors share with each other at once, in bytes.
	line = 64
)

// Label is a name that comes with the traffic as a label's value: valid UTF-8 of at most
// 256 bytes, and a few more for what was not.
func Label[T string | []byte](name T) string {
	label := string(name[:min(len(name), maxLabel)])
	if len(name) > maxLabel {
		label = strings.Clone(label) // a part of a string keeps all of it
	}
	return strings.ToValidUTF8(label, "\ufffd")
}

// Table has what is counted for each of a bounded number of label sets. K is a label set;
// C, a struct of atomics, is what one worker counts for one of them, in memory that it
// shares with no other worker.
type Table[K comparable, C any] struct {
	most  int
	other func(K) K

	mu    sync.Mutex // of those that enter
	all   map[K]*entry[K, C]
	order list[*entry[K, C]] // as they came
	// Those that are told apart when there are as many as may be: read without the lock.
	full atomic.Pointer[map[K]*entry[K, C]]
}

type entry[K comparable, C any] struct {
	key   K
	cells list[*C] // of workers
}

// list grows under a lock, and is read without one.
type list[T any] struct{ all atomic.Pointer[[]T] }

func (l *list[T]) load() []T {
	if all := l.all.Load(); all != nil {
		return *all
	}
	return nil
}

func (l *list[T]) add(v T) {
	all := append(l.load(), v) // which nobody reads beyond its length
	l.all.Store(&all)
}

// NewTable returns a table that tells most label sets apart. What comes later is counted
// under what other makes of it, of which there must be few.
func NewTable[K comparable, C any](most int, other func(K) K) *Table[K, C] {
	return &Table[K, C]{most: most, other: other, all: map[K]*entry[K, C]{}}
}

// Each calls f for each label set with its place, which stays the same, and the cells of
// all workers, which go on counting: they wait for nobody who reads. f must not change
// anything.
func (t *Table[K, C]) Each(f func(i int, k *K, cells []*C)) {
	for i, e := range t.order.load() {
		if cells := e.cells.load(); len(cells) > 0 {
			f(i, &e.key, cells)
		}
	}
}

// Places has something for each place of a table. The zero Places are ready for use.
type Places[T any] struct{ all []T }

// At returns where that for place i is, the zero T at first.
func (p *Places[T]) At(i int) *T {
	if i >= len(p.all) {
		p.all = append(p.all, make([]T, i+1-len(p.all))...)
	}
	return &p.all[i]
}

// enter makes the entry of k. It is for who holds the lock.
func (t *Table[K, C]) enter(k K) *entry[K, C] {
	e := &entry[K, C]{key: k}
	t.all[k] = e
	t.order.add(e)
	return e
}

// tells reports whether k is told apart.
func (t *Table[K, C]) tells(k K) bool {
	if all := t.full.Load(); all != nil {
		return (*all)[k] != nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all[k] != nil {
		return true
	}
	if len(t.all) >= t.most {
		return false
	}
	t.enter(k)
	if len(t.all) == t.most {
		all := maps.Clone(t.all)
		t.full.Store(&all)
	}
	return true
}

// cell returns a new cell of k.
func (t *Table[K, C]) cell(k K) *C {
	c := &new(struct {
		_    [line]byte
		cell C
		_    [line]byte
	}).cell
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.all[k]
	if e == nil {
		e = t.enter(k)
	}
	e.cells.add(c)
	return c
}

// Part is a worker's part of a table.
type Part[K comparable, C any] struct {
	t     *Table[K, C]
	cells map[K]*C
}

// Part returns a new one.
func (t *Table[K, C]) Part() *Part[K, C] { return &Part[K, C]{t: t, cells: map[K]*C{}} }

// Cell returns what the worker counts for k, which stays the same; if k is not told
// apart, what it counts for all such. Whoever asks often keeps it.
func (p *Part[K, C]) Cell(k K) (c *C, told bool) {
	if c = p.cells[k]; c != nil {
		return c, true
	}
	if told = p.t.tells(k); !told {
		k = p.t.other(k)
		if c = p.cells[k]; c != nil {
			return c, false
		}
	}
	c = p.t.cell(k)
	p.cells[k] = c
	return c, told
}
