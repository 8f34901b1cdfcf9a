package dubbo

import (
	"bytes"
	"encoding/binary"
	"strconv"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/hessian"
)

// Properties that the codec itself puts first, in this order.
const (
	propInterface = iota
	propMethod
	propPath
	propVersion
	propDubbo
	propSerialization
)

var (
	nameInterface     = []byte("interface")
	nameMethod        = []byte("method")
	namePath          = []byte("path")
	nameVersion       = []byte("version")
	nameDubbo         = []byte("dubbo")
	nameSerialization = []byte("serialization")
)

// names of the same, by number.
var names = [...]string{"interface", "method", "path", "version", "dubbo", "serialization"}

// maxAttachments of a message. Each becomes a property of 48 bytes at the cost
// of two on the wire, and every look-up passes it.
const maxAttachments = 1024

const tooManyAttachments = "more than 1024 attachments"

var serialText = func() (t [maskSerial + 1][]byte) {
	for i := range t {
		t[i] = strconv.AppendInt(nil, int64(i), 10)
	}
	return t
}()

type decoder struct {
	codec *codec
	dir   codecs.Direction
	r     hessian.Reader
}

func protocolError(offset int, reason string) error {
	return &codecs.ProtocolError{Protocol: "dubbo", Offset: offset, Reason: reason}
}

// Decode implements codecs.Decoder.
func (d *decoder) Decode(buf []byte, m *codecs.Metadata) (int, error) {
	if buf[0] != magic>>8 || len(buf) > 1 && buf[1] != magic&0xff {
		return 0, protocolError(0, "bad magic")
	}
	if len(buf) < headerSize {
		return headerSize, nil
	}
	body := binary.BigEndian.Uint32(buf[12:])
	if int64(body)+headerSize > int64(d.codec.maxFrame) {
		return 0, protocolError(12, "frame of "+strconv.FormatUint(uint64(body)+headerSize, 10)+
			" bytes is larger than the limit of "+strconv.Itoa(d.codec.maxFrame))
	}
	n := headerSize + int(body)
	if n > len(buf) {
		return n, nil
	}
	m.Raw = buf[:n:n]
	m.HeaderSize, m.BodySize = headerSize, int(body)
	m.ID = binary.BigEndian.Uint64(buf[4:])
	flags := buf[2]
	m.Scratch[scratchSerial] = uint32(flags & maskSerial)
	m.Scratch[scratchStatus] = uint32(buf[3])
	switch {
	case flags&flagEvent != 0:
		d.event(m, flags)
	case flags&flagRequest != 0:
		d.request(m, flags)
	default:
		d.response(m)
	}
	return n, nil
}

// event tells heartbeats from the others: a heartbeat asks for an answer, or
// is one; a server that is going to leave says "R" without asking.
func (d *decoder) event(m *codecs.Metadata, flags byte) {
	body := m.Raw[headerSize:]
	switch {
	case flags&flagRequest == 0:
		m.Type = codecs.Heartbeat
	case flags&flagTwoWay != 0:
		m.Type, m.ExpectsReply = codecs.Heartbeat, true
	case d.dir == codecs.ServerToClient && bytes.Equal(body, []byte{1, 'R'}):
		m.Type = codecs.GoAway
	default:
		m.Type = codecs.Ignored
	}
}

func (d *decoder) request(m *codecs.Metadata, flags byte) {
	m.Type = codecs.Request
	if flags&flagTwoWay == 0 {
		m.Type = codecs.Oneway
	}
	serial := flags & maskSerial
	if serial != hessian2 {
		// Never misread: only that it is another serialization is known.
		m.Put(nameSerialization, serialText[serial])
		return
	}
	r := &d.r
	r.Reset(m.Raw[headerSize:])
	dubbo, path, version, method := r.String(), r.String(), r.String(), r.String()
	skipArguments(r)
	m.Put(nameInterface, path)
	m.Put(nameMethod, method)
	m.Put(namePath, path)
	m.Put(nameVersion, version)
	m.Put(nameDubbo, dubbo)
	m.Put(nameSerialization, serialText[serial])
	m.Scratch[scratchAttachments] = uint32(headerSize + r.Pos())
	m.Scratch[scratchClasses] = uint32(r.Classes())
	m.Malformed = d.attachments(m, true)
	// Routing looks at the interface that the client names; a server finds its
	// service by the path.
	m.SetOperation(m.Properties()[propInterface].Value, method)
	r.Reset(nil) // the frame is not the decoder's to keep
}

// skipArguments moves over the types of a call and the values that they stand
// for.
func skipArguments(r *hessian.Reader) {
	for n := countTypes(r.String()); n > 0 && r.Err() == nil; n-- {
		r.Skip()
	}
}

// countTypes counts the types of a method's descriptor, such as "ILjava/lang/String;[J".
func countTypes(desc []byte) int {
	n := 0
	for i := 0; i < len(desc); i++ {
		switch desc[i] {
		case '[':
			continue
		case 'L':
			j := bytes.IndexByte(desc[i:], ';')
			if j < 0 {
				return n + 1
			}
			i += j
		}
		n++
	}
	return n
}

// attachments puts the string attachments that the reader stands at, and says
// what is wrong with them.
func (d *decoder) attachments(m *codecs.Metadata, request bool) (fault string) {
	r := &d.r
	if noAttachments(r) {
		return faultOf(r)
	}
	// Nothing but a map will do: a reference to one that stands among the
	// arguments would be as good to a server, and hide what is in it.
	r.Open()
	for n := 0; r.More() && r.Peek() != 'Z'; n++ {
		if n == maxAttachments {
			return tooManyAttachments
		}
		if !hessian.IsString(r.Peek()) {
			r.Skip()
			r.Skip()
			continue
		}
		key := r.String()
		if !hessian.IsString(r.Peek()) {
			r.Skip()
			continue
		}
		value := r.String()
		if r.Err() != nil {
			break
		}
		if !request || !own(m, key, value) {
			m.Put(key, value)
		}
	}
	r.Close()
	return faultOf(r)
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

// own reports whether an attachment of a request has the name of one of the
// codec's own properties. It takes the place of what the body says, as it does
// in a server, but for the method and the serialization. Servers tell case
// apart, rules do not: one that differs in case is no property at all.
func own(m *codecs.Metadata, key, value []byte) bool {
	var prop int
	switch len(key) {
	case len("path"):
		prop = propPath
	case len("dubbo"):
		prop = propDubbo
	case len("method"):
		prop = propMethod
	case len("version"):
		prop = propVersion
	case len("interface"):
		prop = propInterface
	case len("serialization"):
		prop = propSerialization
	default:
		return false
	}
	p := &m.Properties()[prop]
	if string(p.Name) == string(key) {
		if prop != propMethod && prop != propSerialization {
			p.Value = value
		}
		return true
	}
	return codecs.EqualFold(key, names[prop])
}

func (d *decoder) response(m *codecs.Metadata) {
	m.Type = codecs.Response
	if m.Scratch[scratchStatus] != statusOK {
		m.Type, m.Status = codecs.Error, codecs.StatusError
		return
	}
	if m.Scratch[scratchSerial] != hessian2 {
		return
	}
	r := &d.r
	r.Reset(m.Raw[headerSize:])
	switch kind := r.Int(); {
	case r.Err() != nil || kind < withException || kind > withNullAndAttachments:
		m.Malformed = "unknown kind of response"
	case kind == withException || kind == withExceptionAndAttachments:
		m.Status = codecs.StatusBusinessException
	}
	r.Reset(nil)
	// The attachments come behind the value, which may be large: they are
	// looked for when somebody asks.
	m.Defer(d)
}

// Load implements codecs.Loader: it puts a response's attachments.
func (d *decoder) Load(m *codecs.Metadata) {
	if attachmentsOf(&d.r, m) > 0 {
		d.attachments(m, false)
	}
	d.r.Reset(nil)
}

// attachmentsOf makes r stand at the attachments of a response and returns
// their offset in Raw, 0 if there are none.
func attachmentsOf(r *hessian.Reader, m *codecs.Metadata) int {
	r.Reset(m.Raw[headerSize:])
	switch r.Int() {
	case withExceptionAndAttachments, withValueAndAttachments:
		r.Skip()
	case withNullAndAttachments:
	default:
		return 0
	}
	if r.Err() != nil || !r.More() {
		return 0
	}
	return headerSize + r.Pos()
}
