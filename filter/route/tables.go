package route

import (
	"slices"
	"sync"
	"sync/atomic"
)

// Key names a table: the table_scope and the route configuration's name.
type Key struct{ Scope, Name string }

// Tables is the registry of a module's tables. A table belongs to the module,
// not to the configuration that brought it, so that open connections follow
// every update.
type Tables struct {
	mu    sync.Mutex
	slots map[Key]*Slot
}

// NewTables returns an empty registry.
func NewTables() *Tables { return &Tables{slots: map[Key]*Slot{}} }

// Slot holds the table that is valid for a key now.
type Slot struct {
	table    atomic.Pointer[Table]
	versions []*Version // in the order in which they came
}

// NewSlot returns a slot of its own for one table, which stays valid in it until Set
// replaces it. It may be nil.
func NewSlot(t *Table) *Slot {
	s := &Slot{}
	s.table.Store(t)
	return s
}

// Load returns the table that is valid now, nil if there is none. Any thread.
func (s *Slot) Load() *Table { return s.table.Load() }

// Set replaces the table of a slot of NewSlot.
func (s *Slot) Set(t *Table) { s.table.Store(t) }

// Version is one table of a key, or one after the other, from Add to Remove.
type Version struct {
	tables    *Tables
	key       Key
	table     *Table
	published bool
}

// Add brings a version. The first one of a key is valid at once; one that
// replaces another when Publish is called, as the host may still refuse the
// configuration that brought it. A version whose table is nil has none yet: the one
// before it stays valid until Set brings one.
func (ts *Tables) Add(key Key, t *Table) *Version {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	s := ts.slots[key]
	if s == nil {
		s = &Slot{}
		ts.slots[key] = s
	}
	v := &Version{tables: ts, key: key, table: t}
	s.versions = append(s.versions, v)
	s.update()
	return v
}

// Slot returns the slot of a key that has a version. It stays the same as long
// as the key has one.
func (ts *Tables) Slot(key Key) *Slot {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return ts.slots[key]
}

// Publish makes the version valid, unless a newer one is.
func (v *Version) Publish() {
	v.tables.mu.Lock()
	defer v.tables.mu.Unlock()
	v.published = true
	if s := v.tables.slots[v.key]; s != nil {
		s.update()
	}
}

// Set replaces the version's table.
func (v *Version) Set(t *Table) {
	v.tables.mu.Lock()
	defer v.tables.mu.Unlock()
	v.table = t
	if s := v.tables.slots[v.key]; s != nil {
		s.update()
	}
}

// Remove takes the version away; the one before it is valid again.
func (v *Version) Remove() {
	v.tables.mu.Lock()
	defer v.tables.mu.Unlock()
	s := v.tables.slots[v.key]
	if s == nil {
		return
	}
	s.versions = slices.DeleteFunc(s.versions, func(o *Version) bool { return o == v })
	if len(s.versions) == 0 {
		delete(v.tables.slots, v.key)
		return
	}
	s.update()
}

// update makes the newest published version valid that has a table. Without one it is
// the oldest: the first of a key, or what a host keeps that has dropped the published
// one and so has accepted a later one.
func (s *Slot) update() {
	var valid *Table
	for _, v := range s.versions {
		if v.table != nil && (valid == nil || v.published) {
			valid = v.table
		}
	}
	s.table.Store(valid)
}
