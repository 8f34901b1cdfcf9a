package dubbo

import (
	"bytes"
	"encoding/binary"
	"strconv"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/hessian"
)

// Names of the properties that the codec itself puts.
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
	for n := countTypes(r.String()); n > 0 && r.Err() == nil; n-- {
		r.Skip()
	}
	m.Put(nameInterface, path)
	m.Put(nameMethod, method)
	m.Put(namePath, path)
	m.Put(nameVersion, version)
	m.Put(nameDubbo, dubbo)
	m.Put(nameSerialization, serialText[serial])
	m.SetOperation(path, method)
	m.Scratch[scratchAttachments] = uint32(headerSize + r.Pos())
	d.attachments(m, true)
	if err := r.Err(); err != nil {
		m.Malformed = err.Error()
		return
	}
	// Routing looks at the interface that the client names; a server finds its
	// service by the path.
	props := m.Properties()
	m.SetOperation(props[0].Value, method)
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

// attachments puts the string attachments that the reader stands at. Those of
// a request that repeat what the body says take its place, as they do in a
// server; method and serialization do not come from attachments.
func (d *decoder) attachments(m *codecs.Metadata, request bool) {
	r := &d.r
	if !r.More() {
		return
	}
	switch r.Peek() {
	case 'H', 'M':
		r.Open()
	default:
		r.Skip()
		return
	}
	for r.More() && r.Peek() != 'Z' {
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
			return
		}
		if request {
			switch string(key) {
			case "interface", "path", "version", "dubbo":
				replace(m, key, value)
				continue
			case "method", "serialization":
				continue
			}
		}
		m.Put(key, value)
	}
	r.Close()
}

func replace(m *codecs.Metadata, key, value []byte) {
	props := m.Properties()
	for i := range props {
		if string(props[i].Name) == string(key) {
			props[i].Value = value
			return
		}
	}
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
	// The attachments come behind the value, which may be large: they are
	// looked for when somebody asks.
	m.Defer(d)
}

// Load implements codecs.Loader: it puts a response's attachments.
func (d *decoder) Load(m *codecs.Metadata) {
	if at := attachmentsOf(&d.r, m); at > 0 {
		d.attachments(m, false)
	}
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
