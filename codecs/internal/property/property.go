// Package property names the metadata that a codec makes of a header's own
// fields, as opposed to the entries that clients name themselves.
package property

import (
	"strconv"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// Property is the name of one of a codec's own properties.
type Property struct {
	text string
	name []byte // the same
}

// New returns the property of that name.
func New(name string) *Property { return &Property{name, []byte(name)} }

// Put enters the property into m with a value that is a view of m.Raw, as
// [codecs.Metadata.Put] does.
func (p *Property) Put(m *codecs.Metadata, value []byte) { m.Put(p.name, value) }

// common numbers as text: types, ids and sizes that are not used.
var common = func() (t [256][]byte) {
	for i := range t {
		t[i] = strconv.AppendInt(nil, int64(i), 10)
	}
	return t
}()

// PutNumber enters the property into m with a number as its decimal value.
func (p *Property) PutNumber(m *codecs.Metadata, v int64) {
	if v >= 0 && v < int64(len(common)) {
		m.Put(p.name, common[v])
		return
	}
	p.SetNumber(m, v)
}

// Name returns the property's name, a view.
func (p *Property) Name() []byte { return p.name }

// SetNumber sets the property to a number as its decimal value, in the place that it has in m.
func (p *Property) SetNumber(m *codecs.Metadata, v int64) {
	var text [20]byte // on the stack, where FormatInt's is not
	m.Set(p.text, string(strconv.AppendInt(text[:0], v, 10)))
}

// Set is all of a codec's own properties.
type Set []*Property

// Has reports whether an entry that a client names has the name of one of the
// properties. Rules, which are blind to case, must not take it for that.
func (s Set) Has(name []byte) bool {
	for _, p := range s {
		if len(p.text) == len(name) && codecs.EqualFold(name, p.text) {
			return true
		}
	}
	return false
}
