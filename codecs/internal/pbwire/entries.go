package pbwire

import "github.com/meltemi-mesh/meltemi/codecs"

// Fields of an entry of a map, and of messages like it.
const (
	entryKey   = 1
	entryValue = 2
)

// Entry reads an entry of a map. Whatever is missing is nil; what is empty is not.
func Entry(b []byte) (key, value []byte, err error) {
	var r Reader
	for r.Reset(b); r.Next(); {
		switch {
		case r.Is(entryKey, Bytes):
			key = r.Bytes
		case r.Is(entryValue, Bytes):
			value = r.Bytes
		}
	}
	return key, value, r.Err()
}

// Entries makes a mutation of a map field whose keys and values are strings or
// bytes: entries that the message has already are set in their place, the others
// behind it. It is good for one field of one message.
type Entries struct {
	*codecs.Mutation
	// Added is how many the message did not have, after Append.
	Added int

	// done tells which of them it had. Those beyond are set again at its end,
	// where the later of two equal keys wins.
	done [64]bool
}

// Touches reports whether an entry of the message with that key is set or removed.
func (e *Entries) Touches(key []byte) bool { return e.Find(key) >= 0 || e.Removes(key) }

// Replace appends what comes in the place of an entry that is touched: nothing if
// it is removed.
func (e *Entries) Replace(dst, key []byte, number int32) []byte {
	if i := e.Find(key); i >= 0 {
		return e.put(dst, i, number)
	}
	return dst
}

// put appends entry i.
func (e *Entries) put(dst []byte, i int, number int32) []byte {
	if i < len(e.done) {
		e.done[i] = true
	}
	kv := &e.Entries()[i]
	dst, mark := AppendFrame(dst, number)
	dst = AppendBytes(dst, entryKey, kv.Key)
	dst = AppendBytes(dst, entryValue, kv.Value)
	return CloseFrame(dst, mark)
}

// Append appends the entries that have replaced none.
func (e *Entries) Append(dst []byte, number int32) []byte {
	for i := range e.Entries() {
		if i >= len(e.done) || !e.done[i] {
			dst = e.put(dst, i, number)
			e.Added++
		}
	}
	return dst
}
