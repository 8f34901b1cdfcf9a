// Package pbshape compares the headers of requests that are protobuf messages with those
// of the requests before: what is learnt are a header's bytes, but for the fields that may
// differ. See [codecs.Shape].
package pbshape

import (
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire"
	"github.com/meltemi-mesh/meltemi/codecs/internal/property"
)

// Schema is what has to be known of a protocol's headers. It is not changed.
type Schema struct {
	// Fields are those that may differ. What others have is compared.
	Fields []Field
	// Head returns where the part of a header is, which may be anything, by which its shape
	// is looked up: what is called. It is empty if that is not found.
	Head func(header []byte) (from, to int)
}

// Field is a field that may differ from request to request. A header in which one that is
// a number occurs twice is not learnt.
type Field struct {
	Number int32
	Kind   Kind
	// Property is the one that has the number.
	Property *property.Property
	// In are the fields of a Message.
	In []Field
	// Unless says which texts are none that may differ.
	Unless func(text []byte) bool
}

// Kind is what a field is to its reader.
type Kind uint8

// Kinds of fields.
const (
	// ID is the request's id, of 64 bits at most. Each request has another.
	ID Kind = iota
	// Part is how many of the bytes behind the header something takes, uint32. It may
	// always differ, but is not more than there are.
	Part
	// Int64, Int32 and Positive32, a uint32 that is not 0, are numbers that have a property.
	Int64
	Int32
	Positive32
	// Text is of bytes, which are a property's value if they are there.
	Text
	// Message is of other fields.
	Message
	// Entry is one of a map: its value may differ.
	Entry
)

// entry is what may differ within an Entry.
var entry = []Field{{Number: 2, Kind: Text}}

// always reports whether a field of k is a hole before it has been seen to differ.
func (k Kind) always() bool { return k <= Part }

// wire is the type that fields of k have.
func (k Kind) wire() pbwire.Type {
	if k < Text {
		return pbwire.Varint
	}
	return pbwire.Bytes
}

// among returns the field of a message that f is, nil if it is none.
func among(fields []Field, f *pbwire.Field) *Field {
	for i := range fields {
		if f.Is(fields[i].Number, fields[i].Kind.wire()) {
			return &fields[i]
		}
	}
	return nil
}

// within are the fields of a message that is one of f.
func (f *Field) within() []Field {
	if f.Kind == Entry {
		return entry
	}
	return f.In
}
