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

// Entries sets entries of a map field whose keys and values are strings or
// bytes: those that a message has already in their place, the others behind it.
// It is good for one field of one message.
type Entries struct {
	// Set are the entries. Their keys differ.
	Set []codecs.KeyValue
	// Added is how many the message did not have, after Append.
	Added int

	// done tells which of them it had. Those beyond are set again at its end,
	// where the later of two equal keys wins.
	done [64]bool
}

// Find returns the number of the entry with that key, -1 if none is to be set.
func (e *Entries) Find(key []byte) int {
	for i := range e.Set {
		if e.Set[i].Key == string(key) {
			return i
		}
	}
	return -1
}

// Put appends entry i, in the place of one with its key.
func (e *Entries) Put(dst []byte, i int, number int32) []byte {
	if i < len(e.done) {
		e.done[i] = true
	}
	kv := &e.Set[i]
	dst, mark := AppendFrame(dst, number)
	dst = AppendBytes(dst, entryKey, kv.Key)
	dst = AppendBytes(dst, entryValue, kv.Value)
	return CloseFrame(dst, mark)
}

// Append appends the entries that were not Put.
func (e *Entries) Append(dst []byte, number int32) []byte {
	for i := range e.Set {
		if i >= len(e.done) || !e.done[i] {
			dst = e.Put(dst, i, number)
			e.Added++
		}
	}
	return dst
}
