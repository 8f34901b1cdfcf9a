package dubbo

import (
	"bytes"
	"hash/maphash"
	"sync"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/hessian"
)

// maxAttachments of a message. Each becomes a property of 48 bytes at the cost
// of two on the wire, and every look-up passes it.
const maxAttachments = 1024

const tooManyAttachments = "more than 1024 attachments"

// attachments puts the attachments of a message, as its server sees them.
type attachments struct {
	d       *decoder
	m       *codecs.Metadata
	request bool
	// What says which service is called; nil: nothing.
	path, iface, version []byte
	group                int // where the property is, or none
	seen                 seen
}

// none is no index of a property.
const none = -1

// read puts those that the decoder's reader stands at, and says what is wrong
// with them. Of two with one key the later wins, in Java as in Go.
func (a *attachments) read() (fault string) {
	r := &a.d.r
	if noAttachments(r) {
		return faultOf(r)
	}
	defer a.seen.free()
	// Nothing but a map will do: a reference to one that stands among the
	// arguments would be as good to a server, and hide what is in it.
	r.Open()
	for n := 0; r.More() && r.Peek() != 'Z'; n++ {
		if n == maxAttachments {
			return tooManyAttachments
		}
		if !hessian.IsString(r.Peek()) { // nobody asks for it
			r.Skip()
			r.Skip()
			continue
		}
		key := r.String()
		if r.Err() != nil {
			break
		}
		if a.request {
			own, fault := a.own(key)
			if fault != "" {
				return fault
			}
			if own {
				continue
			}
		}
		var value []byte
		var ok bool
		if hessian.IsList(r.Peek()) {
			value, ok = r.First() // what dubbo-go takes it for
		} else {
			value, ok = r.Text()
		}
		if r.Err() != nil {
			break
		}
		props := a.m.Properties()
		switch i := a.seen.find(props, key, ok); {
		case i != none:
			props[i].Value = value // nil: what took its place has no text
		case ok:
			a.m.Put(key, value)
		}
	}
	r.Close()
	return faultOf(r)
}

// own reads the value of an attachment that says what is called, or has the
// name of a property that does, and reports whether key is one. Servers tell
// case apart, rules do not: one that differs in case is no property at all.
func (a *attachments) own(key []byte) (is bool, fault string) {
	var to *[]byte
	value := []byte{}
	switch string(key) {
	case "path":
		to = &a.path
	case "interface":
		to = &a.iface
	case "version":
		to = &a.version
	case "group":
		to = &value
	default:
		if !isCall(key) {
			return false, ""
		}
		a.d.r.Skip()
		return true, ""
	}
	r := &a.d.r
	switch t := r.Peek(); {
	case hessian.IsString(t):
		value = r.String()
	case t == 'N' && to != &a.path:
		r.Skip()
	default:
		// Java does not find the service, Go takes it for missing.
		return true, "its " + string(key) + " is not a string"
	}
	if *to = value; to == &value {
		a.setGroup(value)
	}
	return true, ""
}

// isCall reports whether an attachment says what is called, or rules would take
// it for a property that does.
func isCall(key []byte) bool {
	var name string
	switch len(key) {
	case len("path"):
		name = "path"
	case len("group"):
		if name = "group"; key[0]|0x20 == 'd' {
			name = "dubbo"
		}
	case len("method"):
		name = "method"
	case len("version"):
		name = "version"
	case len("interface"):
		name = "interface"
	case len("serialization"):
		name = "serialization"
	default:
		return false
	}
	return codecs.EqualFold(key, name)
}

var nameGroup = []byte("group")

func (a *attachments) setGroup(value []byte) {
	if a.group == none {
		a.group = len(a.m.Properties())
		a.m.Put(nameGroup, value)
	}
	a.m.Properties()[a.group].Value = value
}

// resolve finds out which service a server looks for, and says why that cannot
// be told. README.md has what the servers go by.
func (a *attachments) resolve(args arguments) (fault string) {
	props := a.m.Properties()
	service := props[propPath].Value
	path := service
	switch {
	case a.path != nil:
		path = a.path
	case len(a.iface) > 0 && !bytes.Equal(a.iface, service):
		return "its service and its interface differ, and it has no path"
	}
	version := &props[propVersion].Value
	// Dubbox looks for the attachments behind as many values as the number says,
	// others behind those that the types say.
	if args.counted && (args.maps || a.group != none && len(props[a.group].Value) > 0 ||
		!bytes.Equal(path, service) || a.version != nil && !bytes.Equal(a.version, *version)) {
		return "its attachments can be read in two ways"
	}
	if a.version != nil {
		*version = a.version
	}
	path = bytes.TrimPrefix(path, slash) // as Go does, and older clients of it need
	if bytes.IndexByte(path, ':') >= 0 {
		return "its path has a colon" // which parts path and version in the key of a service
	}
	props[propInterface].Value, props[propPath].Value = path, path
	if i := bytes.LastIndexByte(path, '/'); i >= 0 {
		// A slash parts group and path in that key. It may be a context path, too.
		props[propInterface].Value = path[i+1:]
		if a.group == none || len(props[a.group].Value) == 0 {
			a.setGroup(path[:i])
		}
	}
	return ""
}

var slash = []byte("/")

// seen finds the attachments that a message has twice.
type seen struct {
	bits  uint64 // a Bloom filter of the first few
	n     int    // how many were put
	first int    // property that is the first of them
	table *table // of more than few
}

// few attachments are compared with each other.
const few = 32

// table has, by the hash of a name, the number of a property and one; 0: none.
type table [2 * maxAttachments]uint16

var (
	tables    = sync.Pool{New: func() any { return new(table) }}
	tableSeed = maphash.MakeSeed()
)

func (s *seen) free() {
	if s.table != nil {
		clear(s.table[:])
		tables.Put(s.table)
	}
}

// find returns the property that key has among props, or none. It is taken for
// the next property from then on if put is set.
func (s *seen) find(props []codecs.Property, key []byte, put bool) int {
	if s.n == 0 {
		s.first = len(props)
	}
	if s.n == few && s.table == nil {
		s.table = tables.Get().(*table)
		for i := s.first; i < len(props); i++ {
			*s.slot(props, props[i].Name) = uint16(i + 1)
		}
	}
	if s.table != nil {
		slot := s.slot(props, key)
		if *slot != 0 {
			return int(*slot) - 1
		}
		if put {
			*slot = uint16(len(props) + 1)
			s.n++
		}
		return none
	}
	bit := uint64(1)
	if n := len(key); n > 0 {
		bit <<= (uint(n) + 7*uint(key[0]) + 13*uint(key[n-1])) % 64
	}
	if s.bits&bit != 0 {
		for i := s.first; i < len(props); i++ {
			if string(props[i].Name) == string(key) {
				return i
			}
		}
	}
	if put {
		s.bits |= bit
		s.n++
	}
	return none
}

// slot is where the table has the number of name, or where it belongs.
func (s *seen) slot(props []codecs.Property, name []byte) *uint16 {
	for h := maphash.Bytes(tableSeed, name); ; h++ {
		slot := &s.table[h%uint64(len(s.table))]
		if *slot == 0 || string(props[*slot-1].Name) == string(name) {
			return slot
		}
	}
}

func faultOf(r *hessian.Reader) string {
	if err := r.Err(); err != nil {
		return err.Error()
	}
	return ""
}

// noAttachments reports whether r stands at what takes the place of the map
// when there are none, if anything does.
func noAttachments(r *hessian.Reader) bool {
	return !r.More() || r.Peek() == 'N' || r.Peek() == 0 // "" is what old clients send
}
