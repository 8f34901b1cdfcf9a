package property

import (
	"hash/maphash"
	"sync"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// MaxEntries is how many entries a message may have. Each becomes a property of 48
// bytes at the cost of two on the wire, and every look-up passes it.
const MaxEntries = 1024

// None is no index of a property.
const None = -1

// Entries puts the entries of a message that clients name themselves, MaxEntries at
// most. Of those with one name, in one case, servers take the last: the message has
// one property for them, in the place of the first.
//
// What it takes does not depend on the names, nor on their order.
type Entries struct {
	m     *codecs.Metadata
	bits  uint64 // a Bloom filter of the names
	n     int    // how many were put; few: there is a table
	first int    // property that may be the first of them
	table *table // of many, or long ones
}

const (
	// few names are compared with each other.
	few = 32
	// long ones, of more bytes, are not.
	long = 128
)

// table has, by the hash of a name, the number of a property and one; 0: none.
type table [2 * MaxEntries]uint16

var (
	tables    = sync.Pool{New: func() any { return new(table) }}
	tableSeed = maphash.MakeSeed()
)

// EntriesOf puts entries of m, behind the properties that it has.
func EntriesOf(m *codecs.Metadata) Entries { return Entries{m: m, first: len(m.Properties())} }

// Close gives back what e has borrowed. It must be called.
func (e *Entries) Close() {
	if e.table != nil {
		e.giveBack()
	}
}

func (e *Entries) giveBack() {
	clear(e.table[:])
	tables.Put(e.table)
	e.table = nil
}

// Put enters an entry into the message, in the place of one with its name.
func (e *Entries) Put(name, value []byte) {
	if i := e.Find(name, true); i != None {
		e.m.Properties()[i].Value = value
	} else {
		e.m.Put(name, value)
	}
}

// Find returns the property that an entry called name has, or None. If put is set
// the caller then puts it itself.
func (e *Entries) Find(name []byte, put bool) int {
	if e.n == few || len(name) > long {
		return e.look(name, put)
	}
	bit := uint64(1)
	if n := len(name); n > 0 {
		bit <<= (uint(n) + 7*uint(name[0]) + 13*uint(name[n-1])) % 64
	}
	if e.bits&bit != 0 {
		props := e.m.Properties()
		for i := e.first; i < len(props); i++ {
			if string(props[i].Name) == string(name) {
				return i
			}
		}
	}
	if put {
		e.bits |= bit
		e.n++
	}
	return None
}

// look is Find where there are many entries, or a long name.
func (e *Entries) look(name []byte, put bool) int {
	e.n = few // so it is from now on
	if e.table == nil {
		e.table = tables.Get().(*table)
		props := e.m.Properties()
		for i := e.first; i < len(props); i++ {
			*e.slot(props[i].Name) = uint16(i + 1)
		}
	}
	slot := e.slot(name)
	if *slot != 0 {
		return int(*slot) - 1
	}
	if put {
		*slot = uint16(len(e.m.Properties()) + 1)
	}
	return None
}

// slot is where the table has the number of name, or where it belongs.
func (e *Entries) slot(name []byte) *uint16 {
	props := e.m.Properties()
	for h := maphash.Bytes(tableSeed, name); ; h++ {
		slot := &e.table[h%uint64(len(e.table))]
		if *slot == 0 || string(props[*slot-1].Name) == string(name) {
			return slot
		}
	}
}
