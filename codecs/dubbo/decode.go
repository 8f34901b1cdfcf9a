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
	memory
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
	body := int(binary.BigEndian.Uint32(buf[12:]))
	n := headerSize + body
	m.HeaderSize, m.BodySize = headerSize, body
	m.ID = binary.BigEndian.Uint64(buf[4:])
	flags := buf[2]
	m.Scratch[scratchSerial] = uint32(flags & maskSerial)
	switch {
	case flags&flagEvent != 0:
		m.Type = codecs.Ignored
	case flags&flagRequest == 0:
		m.Type, m.Code = codecs.Response, int32(buf[3])
		if buf[3] != statusOK {
			m.Type, m.Status, m.Failure = codecs.Error, codecs.StatusError, failures[buf[3]]
		}
	case flags&flagTwoWay == 0:
		m.Type = codecs.Oneway
	default:
		m.Type = codecs.Request
	}
	if n > d.codec.maxFrame {
		// An event of that size is none that anybody knows, and is not answered.
		return 0, &codecs.TooLarge{Size: n, Limit: d.codec.maxFrame}
	}
	if n > len(buf) {
		return n, nil
	}
	m.Raw = buf[:n:n]
	switch {
	case flags&flagEvent != 0:
		d.event(m, flags)
	case flags&flagRequest != 0:
		d.request(m)
	default:
		d.response(m)
	}
	return n, nil
}

// event tells heartbeats from the others: a heartbeat asks for an answer, or
// is one; a server that is going to leave says "R" without asking.
func (d *decoder) event(m *codecs.Metadata, flags byte) {
	switch {
	case flags&flagRequest == 0:
		m.Type = codecs.Heartbeat
	case flags&flagTwoWay != 0:
		m.Type, m.ExpectsReply = codecs.Heartbeat, true
	case d.dir == codecs.ServerToClient && isReadOnly(flags&maskSerial, m.Raw[headerSize:]):
		m.Type = codecs.GoAway
	}
}

// isReadOnly reports whether the body of an event is "R", in the serializations
// that Dubbo's servers use unless they are told otherwise.
func isReadOnly(serial byte, body []byte) bool {
	switch serial {
	case hessian2:
		return string(body) == "\x01R"
	case fastjson2: // behind the length of what it calls a value
		return string(body) == "\x00\x00\x00\x02\x4aR"
	}
	return false
}

func (d *decoder) request(m *codecs.Metadata) {
	serial := m.Scratch[scratchSerial]
	if serial != hessian2 {
		// Never misread: only that it is another serialization is known.
		m.Put(nameSerialization, serialText[serial])
		return
	}
	r := &d.r
	body := m.Raw[headerSize:]
	r.Reset(body)
	c, head := d.open(body)
	start, learns := r.Pos(), d.shapes != nil && r.Left() == hessian.MaxValues
	maps := c.skipArguments(r)
	m.Scratch[scratchAttachments] = uint32(headerSize + r.Pos())
	m.Scratch[scratchClasses] = uint32(r.Classes())
	if accepts(c.dubbo) {
		m.Scratch[scratchAccepts] = 1
	}
	if head == nil || !d.recall(head, m) {
		at, left := r.Pos(), r.Left()
		m.Put(nameInterface, c.service)
		m.Put(nameMethod, c.method)
		m.Put(namePath, c.service)
		m.Put(nameVersion, c.version)
		m.Put(nameDubbo, c.dubbo)
		m.Put(nameSerialization, serialText[serial])
		a := attachments{d: d, m: m, request: true, group: none}
		switch m.Malformed = a.read(); {
		case m.Malformed != "":
		case c.service == nil || c.method == nil || c.untyped:
			m.Malformed = "its service, its method or the types of its arguments are null"
		case c.streams:
			m.Malformed = "a stream is among its arguments"
		default:
			m.Malformed = a.resolve(c, maps)
		}
		m.SetOperation(m.Properties()[propInterface].Value, c.method)
		if learns && m.Malformed == "" && !c.counted {
			d.learn(m, body[:start], body[at:], left-r.Left())
		}
	}
	r.Reset(nil) // the frame is not the decoder's to keep
	if c == &d.opening {
		d.opening = opening{}
	}
}

// opening is what a request begins with.
type opening struct {
	dubbo, service, version, method []byte
	types                           int  // that its arguments have
	untyped                         bool // there are none, not even an empty string
	counted                         bool // the number of its arguments comes first
	streams                         bool // there is an InputStream among the types
}

// read reads all of it. Dubbox and clients of it have a number before the types: that of
// the arguments, or -1.
func (c *opening) read(r *hessian.Reader) {
	c.dubbo, c.service, c.version, c.method = r.String(), r.String(), r.String(), r.String()
	if hessian.IsInt(r.Peek()) {
		c.counted = r.Int() >= 0
	}
	types := r.String()
	c.types, c.untyped = countTypes(types), types == nil
	// Servers read no more of one than its length before they go on to the attachments,
	// which they find within it.
	c.streams = bytes.Contains(types, typeStream)
}

var typeStream = []byte("Ljava/io/InputStream;")

// skipArguments moves over the values that the types stand for, and reports whether there
// is a map among them.
func (c *opening) skipArguments(r *hessian.Reader) (maps bool) {
	for n := c.types; n > 0 && r.Err() == nil; n-- {
		maps = maps || r.Peek() == 'H' || r.Peek() == 'M'
		r.Skip()
	}
	return maps
}

// countTypes counts the types of a method's descriptor, such as
// "ILjava/lang/String;[J", as servers find them: what is no type is passed over.
func countTypes(desc []byte) (n int) {
	broken := 0 // up to where no class ends properly
	for i := 0; i < len(desc); i++ {
		switch c := desc[i]; {
		case isPrimitive(c):
			n++
		case c == 'L' && i >= broken:
			end, ok := classEnd(desc, i+1)
			if !ok {
				broken = end
				continue
			}
			n++
			i = end
		}
	}
	return n
}

func isPrimitive(c byte) bool {
	switch c {
	case 'V', 'Z', 'B', 'C', 'D', 'F', 'I', 'J', 'S':
		return true
	}
	return false
}

// letters may begin an identifier, they and digits follow.
var letters, digits = func() (letters, digits [256]bool) {
	for c := range letters {
		letters[c] = c|0x20 >= 'a' && c|0x20 <= 'z' || c == '_' || c == '$'
		digits[c] = c >= '0' && c <= '9'
	}
	return letters, digits
}()

// classEnd returns where the semicolon is that ends the name of a class, or
// where there is something else than one has.
func classEnd(desc []byte, i int) (end int, ok bool) {
	for {
		if i == len(desc) || !letters[desc[i]] {
			return i, false
		}
		for i++; i < len(desc) && (letters[desc[i]] || digits[desc[i]]); i++ {
		}
		if i == len(desc) || desc[i] != '/' {
			return i, i < len(desc) && desc[i] == ';'
		}
		i++
	}
}

func (d *decoder) response(m *codecs.Metadata) {
	if m.Type == codecs.Error || m.Scratch[scratchSerial] != hessian2 {
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
		a := attachments{d: d, m: m}
		a.read()
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
