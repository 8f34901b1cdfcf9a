package codectest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/decimal"
)

// toy is a protocol that has all that a codec can have, and the codec of it. A
// frame is "toy", its kind, its id, the length of what follows, and of that the
// attributes, "key=value" in lines; then a zero byte and the body.
type toy struct{ limit int }

const (
	toyMagic = "toy"
	toyHead  = 12
	toyLimit = 4 << 20
)

const (
	toyCall   = 'C' // attribute op
	toyTell   = 'T'
	toyAnswer = 'A' // attribute failed, if the application has
	toyError  = 'E' // attributes why, code
	toyPing   = 'P'
	toyPong   = 'p'
	toyOpen   = 'O' // of a stream: its id is that of the frame
	toyOpened = 'o'
	toyData   = 'D'
	toyReset  = 'R'
	toyLeaves = 'L' // attributes away, undone of answers
	toyQuits  = 'Q'
)

var toyOp = []byte("op")

var toyTypes = map[byte]codecs.MessageType{
	toyCall: codecs.Request, toyTell: codecs.Oneway, toyAnswer: codecs.Response, toyError: codecs.Error,
	toyPing: codecs.Heartbeat, toyPong: codecs.Heartbeat, toyOpen: codecs.StreamInit, toyOpened: codecs.StreamInit,
	toyData: codecs.StreamData, toyReset: codecs.StreamCloseTwoWay,
	toyLeaves: codecs.GoAway, toyQuits: codecs.Goodbye,
}

func newToy(l codecs.Limits) *toy {
	if l.MaxFrameBytes == 0 {
		l.MaxFrameBytes = toyLimit
	}
	return &toy{l.MaxFrameBytes}
}

func toyFrame(kind byte, id uint32, attributes, body string) []byte {
	b := append([]byte(toyMagic), kind)
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint32(b, uint32(len(attributes)+1+len(body)))
	return append(append(append(b, attributes...), 0), body...)
}

func (*toy) Traits() codecs.Traits {
	return codecs.Traits{Correlation: codecs.ByID, MaxID: 1<<32 - 1, Attributes: []string{"op"}}
}

func (c *toy) NewDecoder(codecs.Direction) codecs.Decoder { return c }

func toyFault(at int, why string) (int, error) {
	return 0, &codecs.ProtocolError{Protocol: "toy", Offset: at, Reason: why}
}

func (c *toy) Decode(buf []byte, m *codecs.Metadata) (int, error) {
	if string(buf[:min(3, len(buf))]) != toyMagic[:min(3, len(buf))] {
		return toyFault(0, "bad magic")
	}
	if len(buf) < 3 {
		return 3, nil
	}
	if len(buf) < toyHead {
		return toyHead, nil
	}
	t, known := toyTypes[buf[3]]
	if !known {
		return toyFault(3, "unknown kind")
	}
	size := binary.BigEndian.Uint32(buf[8:])
	n := toyHead + int(size)
	m.Type, m.ID = t, uint64(binary.BigEndian.Uint32(buf[4:]))
	if t == codecs.Error {
		m.Status = codecs.StatusError
	}
	if isStream(t) {
		m.StreamID = m.ID
	}
	switch {
	case n > c.limit:
		if t == codecs.Heartbeat {
			m.Type = codecs.Ignored
		}
		return 0, &codecs.TooLarge{Size: n, Limit: c.limit}
	case n > len(buf):
		return n, nil
	}
	m.Raw = buf[:n:n]
	m.HeaderSize, m.BodySize = toyHead, n-toyHead
	m.ExpectsReply = buf[3] == toyPing
	attributes, _, ok := bytes.Cut(m.Raw[toyHead:], []byte{0})
	if !ok {
		m.Malformed = "no end of the attributes"
		return n, nil
	}
	m.Scratch[0] = uint32(toyHead + len(attributes))
	own, _ := toyGet(attributes, "op")
	if t == codecs.Request || t == codecs.Oneway || buf[3] == toyOpen {
		m.Put(toyOp, own)
		m.SetOperation(nil, own)
	}
	count := 0
	for len(attributes) > 0 {
		var line []byte
		line, attributes, _ = bytes.Cut(attributes, []byte("\n"))
		key, value, _ := bytes.Cut(line, []byte("="))
		if count++; count > 100 {
			m.Malformed = "too many attributes"
			break
		}
		switch {
		case codecs.EqualFold(key, "op"):
		default:
			m.Put(key, value)
		}
		m.GoesAway = m.GoesAway || isAnswer(t) && string(key) == "away"
		if t == codecs.Error && string(key) == "code" {
			m.Code, _ = decimal.Int32(value)
		}
		if t == codecs.Error && string(key) == "undone" {
			m.NotProcessed, m.Failure = true, codecs.Refused
		}
		m.Retried = m.Retried || t == codecs.Request && string(key) == "again"
		if t == codecs.Response && string(key) == "failed" {
			m.Status = codecs.StatusBusinessException
		}
	}
	return n, nil
}

// toyGet returns the value of an attribute, and the rest.
func toyGet(attributes []byte, key string) (value []byte, found bool) {
	for len(attributes) > 0 {
		var line []byte
		line, attributes, _ = bytes.Cut(attributes, []byte("\n"))
		if k, v, _ := bytes.Cut(line, []byte("=")); string(k) == key {
			return v, true
		}
	}
	return nil, false
}

func (c *toy) Encode(dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	start := len(dst)
	calls := m.Type == codecs.Request && m.Malformed == ""
	millis, retry := mut.Millis(), 0
	if mut != nil {
		retry = mut.Retry
	}
	if !mut.ChangesAttributes() && !mut.Replaces() && (!calls || mut.Empty()) {
		dst = append(dst, m.Raw...)
		binary.BigEndian.PutUint32(dst[start+4:], uint32(m.ID))
		return dst, nil
	}
	if m.Malformed != "" {
		return dst, mut.Refuse(errors.New(m.Malformed))
	}
	dst = append(dst, m.Raw[:toyHead]...)
	behind := len(dst)
	attributes := m.Raw[toyHead:m.Scratch[0]]
	line := func(b ...string) {
		if len(dst) > behind {
			dst = append(dst, '\n')
		}
		for _, s := range b {
			dst = append(dst, s...)
		}
	}
	for len(attributes) > 0 {
		var l []byte
		l, attributes, _ = bytes.Cut(attributes, []byte("\n"))
		key, _, _ := bytes.Cut(l, []byte("="))
		changed := mut.Find(key) >= 0 || mut.Removes(key) && (*toy).CheckRemoval(c, 0, string(key)) == nil
		changed = changed || calls && (millis > 0 && string(key) == "wait" || retry > 0 && string(key) == "again")
		if !changed {
			line()
			dst = append(dst, l...)
		}
	}
	for _, kv := range mut.Entries() {
		if c.CheckMutation(0, kv.Key, kv.Value) != nil {
			return dst, codecs.ErrNoMutation
		}
		line(kv.Key, "=", kv.Value)
	}
	if calls && millis > 0 {
		line("wait=")
		dst = strconv.AppendInt(dst, int64(millis), 10)
	}
	if calls && retry > 0 {
		line("again=yes")
	}
	if p, ok := mut.Payload(); !ok {
		dst = append(dst, m.Raw[m.Scratch[0]:]...)
	} else if _, err := c.Payload(m); err != nil || p.Compression != 0 {
		return dst, mut.Refuse(errors.New("not that"))
	} else {
		dst = append(append(dst, 0), p.Bytes...)
	}
	if len(dst)-start > c.limit {
		return dst, mut.Refuse(errors.New("too large"))
	}
	binary.BigEndian.PutUint32(dst[start+4:], uint32(m.ID))
	binary.BigEndian.PutUint32(dst[start+8:], uint32(len(dst)-start-toyHead))
	return dst, nil
}

// Payload is the body.
func (*toy) Payload(m *codecs.Metadata) (codecs.Payload, error) {
	if m.Malformed != "" || m.Type == codecs.Error || m.Raw[3] == toyPing {
		return codecs.Payload{}, codecs.NoPayload("a %s has none", m.Type)
	}
	return codecs.Payload{Bytes: m.Raw[m.Scratch[0]+1 : len(m.Raw) : len(m.Raw)]}, nil
}

func (c *toy) EncodeReply(dst []byte, req *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	var attributes []string
	for _, kv := range mut.Entries() {
		if c.CheckMutation(0, kv.Key, kv.Value) != nil {
			return dst, codecs.ErrNoMutation
		}
		attributes = append(attributes, kv.Key+"="+kv.Value)
	}
	p, _ := mut.Payload()
	return append(dst, toyFrame(toyAnswer, uint32(req.ID), strings.Join(attributes, "\n"), string(p.Bytes))...), nil
}

func (*toy) CheckReply(codecs.Payload) error { return nil }

func (*toy) Timeout(req *codecs.Metadata) time.Duration {
	if req.Type != codecs.Request || req.Malformed != "" {
		return 0
	}
	text, _ := toyGet(req.Raw[toyHead:req.Scratch[0]], "wait")
	millis, _ := decimal.Int32(text)
	return time.Duration(millis) * time.Millisecond
}

func (*toy) CheckMutation(_ codecs.Direction, key, value string) error {
	if key == "" || strings.EqualFold(key, "op") || key == "failed" || strings.ContainsAny(key, "=\n\x00") || strings.ContainsAny(value, "\n\x00") {
		return errors.New("key: cannot be set")
	}
	return nil
}

func (c *toy) CheckRemoval(d codecs.Direction, key string) error {
	if strings.EqualFold(key, "undone") {
		return errors.New("key: says what has become of the call")
	}
	return c.CheckMutation(d, strings.ToLower(key), "")
}

func (*toy) CheckCode(code int32) error {
	if code < 1 || code > 99 {
		return errors.New("two digits")
	}
	return nil
}

func (c *toy) EncodeError(dst []byte, req *codecs.Metadata, e *codecs.LocalError) ([]byte, error) {
	attributes := ""
	if c.CheckCode(e.Code) == nil {
		attributes = fmt.Sprint("code=", e.Code)
	}
	return append(dst, toyFrame(toyError, uint32(req.ID), attributes, e.Message)...), nil
}

func (*toy) EncodeGoAway(dst []byte, _ uint8) ([]byte, error) {
	return append(dst, toyFrame(toyLeaves, 0, "", "")...), nil
}

func (*toy) EncodeHeartbeat(dst []byte, hb *codecs.Metadata) ([]byte, error) {
	return append(dst, toyFrame(toyPong, uint32(hb.ID), "", "")...), nil
}

func (*toy) EncodeReset(dst []byte, stream *codecs.Metadata, e *codecs.LocalError) ([]byte, error) {
	return append(dst, toyFrame(toyReset, uint32(stream.StreamID), "", e.Message)...), nil
}

func (*toy) Sniff(b []byte) codecs.Guess {
	switch {
	case string(b[:min(3, len(b))]) != toyMagic[:min(3, len(b))]:
		return codecs.No
	case len(b) < 3:
		return codecs.Maybe
	default:
		return codecs.Yes
	}
}

var (
	theCall   = toyFrame(toyCall, 7, "op=add\ntenant=acme", "1 2")
	theTell   = toyFrame(toyTell, 0, "tenant=acme\nop=log", "")
	theAnswer = toyFrame(toyAnswer, 7, "zone=south", "3")
	theError  = toyFrame(toyError, 7, "", "no")
	thePing   = toyFrame(toyPing, 9, "", "")
	theOpen   = toyFrame(toyOpen, 11, "op=chat", "")
	theData   = toyFrame(toyData, 11, "", "hello")
	theBroken = append(toyFrame(toyCall, 7, "", "")[:8], "\x00\x00\x00\x04op=x"...)
)

// toySuite is a new one each time.
func toySuite() Suite {
	return Suite{
		New: func(l codecs.Limits) (codecs.Codec, error) { return newToy(l), nil },
		Frames: []Frame{
			{Name: "call", Direction: codecs.ClientToServer, Bytes: theCall},
			{Name: "tell", Direction: codecs.ClientToServer, Bytes: theTell},
			{Name: "answer", Direction: codecs.ServerToClient, Bytes: theAnswer},
			{Name: "failure", Direction: codecs.ServerToClient, Bytes: toyFrame(toyAnswer, 7, "failed=yes", "")},
			{Name: "error", Direction: codecs.ServerToClient, Bytes: theError},
			{Name: "ping", Direction: codecs.ClientToServer, Bytes: thePing},
			{Name: "pong", Direction: codecs.ServerToClient, Bytes: toyFrame(toyPong, 9, "", "")},
			{Name: "opening", Direction: codecs.ClientToServer, Bytes: theOpen},
			{Name: "opened", Direction: codecs.ServerToClient, Bytes: toyFrame(toyOpened, 11, "", "")},
			{Name: "data", Direction: codecs.ServerToClient, Bytes: theData, Prelude: toyFrame(toyOpened, 11, "", "")},
			{Name: "last answer", Direction: codecs.ServerToClient, Bytes: toyFrame(toyAnswer, 7, "away=yes", "3")},
			{Name: "error of a server that leaves", Direction: codecs.ServerToClient, Bytes: toyFrame(toyError, 7, "away=yes\nundone=yes", "no")},
			{Name: "farewell", Direction: codecs.ServerToClient, Bytes: toyFrame(toyLeaves, 0, "", "")},
			{Name: "goodbye", Direction: codecs.ClientToServer, Bytes: toyFrame(toyQuits, 0, "", "")},
			{Name: "large", Direction: codecs.ClientToServer, Bytes: toyFrame(toyCall, 1, "op=x", strings.Repeat("x", 3000))},
			{Name: "call that waits", Direction: codecs.ClientToServer, Bytes: toyFrame(toyCall, 7, "wait=100\nop=add\nagain=yes", "1 2")},
		},
		Invalid: []Invalid{
			{Name: "another magic", Direction: codecs.ClientToServer, Bytes: []byte("tox")},
			{Name: "larger than the limit", Direction: codecs.ServerToClient, Bytes: []byte("toyA\x00\x00\x00\x00\x7f\xff\xff\xff")},
		},
		Malformed: []Frame{{Name: "no end", Direction: codecs.ClientToServer, Bytes: theBroken}},
		Hostile: []Frame{
			{Name: "attributes", Direction: codecs.ClientToServer, Bytes: toyFrame(toyCall, 1, strings.Repeat("\n", 1<<13), "")},
			{Name: "body", Direction: codecs.ClientToServer, Bytes: toyFrame(toyCall, 1, "op=x", strings.Repeat("x", 1<<13))},
		},
		Mutations: []Mutation{
			{Direction: codecs.ClientToServer, Key: "tenant", Value: "other"},
			{Direction: codecs.ClientToServer, Key: "new", Value: ""},
			{Direction: codecs.ServerToClient, Key: "zone", Value: "north"},
		},
		Refused: []Mutation{{Key: "op", Value: "x"}, {Key: "k", Value: "a\nb"}},
	}
}
