package dubbo

import (
	"bytes"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/hessian"
	"github.com/meltemi-mesh/meltemi/codecs/internal/property"
)

// maxAttachments of a message.
const maxAttachments = property.MaxEntries

const tooManyAttachments = "more than 1024 attachments"

// attachments puts the attachments of a message, as its server sees them.
type attachments struct {
	d       *decoder
	m       *codecs.Metadata
	request bool
	// What says which service is called; nil: nothing.
	path, iface, version []byte
	group                int // where the property is, or none
}

const none = property.None

// read puts those that the decoder's reader stands at, and says what is wrong
// with them. Of two with one key the later wins, in Java as in Go.
func (a *attachments) read() (fault string) {
	r := &a.d.r
	if noAttachments(r) {
		return faultOf(r)
	}
	entries := property.EntriesOf(a.m)
	defer entries.Close()
	// Nothing but a map will do: a reference to one that stands among the
	// arguments would be as good to a server, and hide what is in it.
	if typ, ok := r.OpenTyped(); ok && a.request && !isPlain(typ) && r.More() && r.Peek() != 'Z' {
		return otherMap
	}
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
		if len(key) == 0 { // nobody asks for it either; removed maps and objects have it
			r.Skip()
			continue
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
		value, ok := text(r)
		if r.Err() != nil {
			break
		}
		switch i := entries.Find(key, ok); {
		case i != none:
			a.m.Properties()[i].Value = value // nil: what took its place has no text
		case ok:
			a.m.Put(key, value)
		}
	}
	r.Close()
	return faultOf(r)
}

// otherMap: Java's readers make what the client names, and maps there are which keep two
// of equal keys, tell no case apart, or forget: what they hand on is not what is read here.
const otherMap = "its attachments are a map of a type that may not keep them as they are"

// isPlain reports whether a map of that type has, once it is read, the later of two values
// of a key, and all keys as they are. A reference may be to any type.
func isPlain(name []byte) bool {
	switch string(name) {
	case "":
		return name != nil
	case "java.util.HashMap", "java.util.LinkedHashMap", "java.util.TreeMap", "java.util.Hashtable",
		"java.util.concurrent.ConcurrentHashMap", "java.util.concurrent.ConcurrentSkipListMap",
		"java.util.Collections$UnmodifiableMap", // which nobody can make: a HashMap
		"org.apache.dubbo.rpc.AttachmentsAdapter$ObjectToStringMap":
		return true
	}
	return false
}

// text reads the value of an attachment, if it has a text.
func text(r *hessian.Reader) (text []byte, ok bool) {
	if hessian.IsList(r.Peek()) {
		return r.First() // what dubbo-go takes it for
	}
	return r.Text()
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
func (a *attachments) resolve(c *opening, maps bool) (fault string) {
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
	if c.counted && (maps || a.group != none && len(props[a.group].Value) > 0 ||
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
