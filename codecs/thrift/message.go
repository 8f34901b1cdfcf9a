package thrift

import (
	"encoding/binary"
	"errors"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// message is the head of a message: what is before its arguments or result.
type message struct {
	protocol      int
	kind          int
	name          []byte
	seqid         uint32
	seqAt, seqLen int
	body          int // offset of the struct
}

var (
	errShort   = errors.New("message ends in its head")
	errType    = errors.New("unknown message type")
	errName    = errors.New("name of the method is too long")
	errVersion = errors.New("unknown protocol or version")
	errVarint  = errors.New("varint is too long")
)

// read reads the head of the message at the start of b. need is how many bytes
// there must be when it fails with errShort.
func (m *message) read(b []byte) (need int, err error) {
	if len(b) < 4 {
		return 4, errShort
	}
	if b[0] == compactID {
		return m.readCompact(b)
	}
	at := 4
	n := int32(binary.BigEndian.Uint32(b))
	if n < 0 {
		if uint32(n)&0xffff0000 != binaryVersion {
			return 0, errVersion
		}
		m.protocol, m.kind = strict, int(n&0xff)
		if len(b) < 8 {
			return 8, errShort
		}
		n, at = int32(binary.BigEndian.Uint32(b[4:])), 8
	} else {
		m.protocol = lax
	}
	if n < 0 || n > maxName {
		return 0, errName
	}
	need = at + int(n) + 4
	if m.protocol == lax {
		need++
	}
	if len(b) < need {
		return need, errShort
	}
	m.name = b[at : at+int(n) : at+int(n)]
	at += int(n)
	if m.protocol == lax {
		m.kind = int(b[at])
		at++
	}
	m.seqid, m.seqAt, m.seqLen, m.body = binary.BigEndian.Uint32(b[at:]), at, 4, at+4
	if !validType(m.kind) {
		return 0, errType
	}
	return 0, nil
}

func (m *message) readCompact(b []byte) (need int, err error) {
	m.protocol = compact
	if len(b) < minMessage {
		return minMessage, errShort
	}
	if b[1]&0x1f != compactVersion {
		return 0, errVersion
	}
	if m.kind = int(b[1] >> 5); !validType(m.kind) {
		return 0, errType
	}
	v, n := uvarint(b[2:])
	if n <= 0 {
		return short(b, n)
	}
	if v>>32 != 0 {
		return 0, errVarint
	}
	m.seqid, m.seqAt, m.seqLen = uint32(v), 2, n
	at := 2 + n
	v, n = uvarint(b[at:])
	if n <= 0 {
		return short(b, n)
	}
	if v > maxName {
		return 0, errName
	}
	at += n
	if len(b) < at+int(v) {
		return at + int(v), errShort
	}
	m.name, m.body = b[at:at+int(v):at+int(v)], at+int(v)
	return 0, nil
}

func short(b []byte, n int) (need int, err error) {
	if n < 0 {
		return 0, errVarint
	}
	return len(b) + 1, errShort
}

// uvarint reads a varint of at most 32 bits: its length is 0 when b is too
// short, negative when it is too long.
func uvarint(b []byte) (v uint64, n int) {
	for i, c := range b {
		if i == binary.MaxVarintLen32 {
			return 0, -1
		}
		v |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			return v, i + 1
		}
	}
	if len(b) >= binary.MaxVarintLen32 {
		return 0, -1
	}
	return 0, 0
}

// Offsets of fields in a result: 0 is the value, others are the exceptions
// that the service declares.
func (m *message) threw(body []byte) bool {
	if len(body) == 0 || body[0] == 0 {
		return false // void
	}
	if m.protocol != compact {
		return len(body) >= 3 && (body[1] != 0 || body[2] != 0)
	}
	if body[0]>>4 != 0 {
		return true
	}
	return len(body) >= 2 && body[1] != 0
}

// fill tells md what the head says.
func (m *message) fill(md *codecs.Metadata, d codecs.Direction, body []byte) error {
	switch m.kind {
	case typeCall:
		md.Type = codecs.Request
	case typeOneway:
		md.Type = codecs.Oneway
	case typeException:
		md.Type, md.Status = codecs.Error, codecs.StatusError
		md.Code = exceptionType(m.protocol, body)
		md.Failure, md.MayClose = failureOf(md.Code), unread(md.Code)
	case typeReply:
		md.Type = codecs.Response
		if m.threw(body) {
			md.Status = codecs.StatusBusinessException
		}
	}
	if d == codecs.ClientToServer && (m.kind == typeReply || m.kind == typeException) {
		return errors.New("a client sent an answer")
	}
	md.ID = uint64(m.seqid)
	return nil
}

// tail tells what is wrong with the frame b behind its message's head, "" if
// nothing is: Apache's servers take what is behind the struct for the next call,
// which nobody would have seen.
func (m *message) tail(b []byte, limit int) string {
	var few [fewLevels]level
	s := skipper{stack: few[:]}
	s.start(m.protocol == compact, m.body, limit, maxValues)
	need, err := s.run(b)
	if err != nil && errors.Is(err, errDepth) {
		s.pos, need, err = s.deeper(b)
	}
	switch {
	case err != nil:
		return err.Error()
	case need > 0:
		return errEnds.Error()
	case s.pos < len(b):
		return errBehind.Error()
	}
	return ""
}

// fewLevels are more than most arguments have.
const fewLevels = 8

// deeper goes on from where there was no more room, with all that there may be.
func (s *skipper) deeper(b []byte) (pos, need int, err error) {
	var all [maxDepth]level
	d := *s
	d.stack = all[:]
	copy(d.stack, s.stack)
	need, err = d.run(b)
	return d.pos, need, err
}

var (
	errEnds   = errors.New("message ends before its arguments do")
	errBehind = errors.New("there are bytes behind the message")
)

// errOperation: libraries do not agree on what such a name calls. C++ leaves out
// what is empty, Node what is behind a second colon.
const errOperation = "name of a multiplexed method is not of the form service:method"

// errControl: no method has such a name, and to Kitex's servers it may be a message of its
// own. They look at the second four bytes of each message, and of what a TTHeader is before,
// for what begins a message in a frame.
const errControl = "name of the method has control characters"

func hasControl(name []byte) bool {
	for _, c := range name {
		if c < ' ' || c == 0x7f {
			return true
		}
	}
	return false
}

// operation splits the name of TMultiplexedProtocol, "service:method".
func operation(name []byte) (service, method []byte) {
	for i, c := range name {
		if c == ':' {
			return name[:i:i], name[i+1:]
		}
	}
	return nil, name
}
