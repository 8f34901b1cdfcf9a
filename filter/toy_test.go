package filter_test

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// toy is a protocol of lines, "TYPE id method text", in whatever shape a test
// wants: its first letter tells variants apart, methods "mfixed…" keep their ids.
// It panics where a text says so: "boom-decode", "boom-encode", "boom-again" for a
// further attempt, "boom-load", "boom-heartbeat", and "boom-size", which makes others
// panic.
type toy struct {
	traits codecs.Traits
	first  byte // of what it recognises
}

var toyTypes = map[string]codecs.MessageType{
	"req": codecs.Request, "one": codecs.Oneway, "res": codecs.Response, "err": codecs.Error,
	"init": codecs.StreamInit, "data": codecs.StreamData,
	"half": codecs.StreamCloseOneWay, "end": codecs.StreamCloseTwoWay, "hb": codecs.Heartbeat, "away": codecs.GoAway,
	"again": codecs.Request, "nope": codecs.Error, "busy": codecs.Error, "fail": codecs.Error,
}

// toyFailures are the types of answers that say what has failed; their codes are the
// lengths of their names.
var toyFailures = map[string]codecs.FailureClass{
	"nope": codecs.Refused, "busy": codecs.Overloaded, "fail": codecs.HostFailure,
}

func init() {
	register := func(name string, t toy) {
		codecs.Register(name, func(*anypb.Any, codecs.Limits) (codecs.Codec, error) { return t, nil })
	}
	register("toy.byid", toy{codecs.Traits{Correlation: codecs.ByID, MaxID: 1<<31 - 1, ShareByDefault: true}, 'r'})
	register("toy.hidden", toy{codecs.Traits{Correlation: codecs.ByID, MaxID: 1<<31 - 1, HiddenOneway: true}, 'h'})
	register("toy.inorder", toy{codecs.Traits{Correlation: codecs.InOrder, ShareByDefault: true}, 'i'})
	register("toy.exclusive", toy{codecs.Traits{Correlation: codecs.Exclusive, ShareByDefault: true}, 'e'})
}

func (t toy) Traits() codecs.Traits                      { return t.traits }
func (t toy) NewDecoder(codecs.Direction) codecs.Decoder { return t }

func (t toy) Sniff(b []byte) codecs.Guess {
	switch {
	case b[0] == '!':
		panic("boom: Sniff")
	case b[0] != 'r' && b[0] != 'i' && b[0] != t.first:
		return codecs.No
	case len(b) < 2:
		return codecs.Maybe
	case b[0] == t.first:
		return codecs.Yes
	}
	return codecs.No
}

func (t toy) Decode(b []byte, m *codecs.Metadata) (int, error) {
	n := bytes.IndexByte(b, '\n') + 1
	if n == 0 {
		return len(b) + 1, nil
	}
	f := strings.SplitN(strings.TrimSuffix(string(b[:n]), "\n"), " ", 4)
	name := strings.TrimPrefix(f[0], "v")
	var ok bool
	if m.Type, ok = toyTypes[name]; !ok || len(f) < 4 {
		return 0, &codecs.ProtocolError{Protocol: "toy", Reason: "not a line of it"}
	}
	if name != f[0] {
		m.Variant = 1
	}
	m.ID, _ = strconv.ParseUint(f[1], 10, 64)
	m.StreamID = m.ID
	m.ExpectsReply = f[2] == "mcertain" || m.Type == codecs.Heartbeat
	m.FixedID = strings.HasPrefix(f[2], "mfixed")
	m.Raw, m.BodySize = b[:n], n
	if m.Type == codecs.Error {
		m.Status = codecs.StatusError
		m.Failure, m.Code = toyFailures[name], int32(len(name))
	}
	m.Retried = name == "again"
	m.Put([]byte("method"), []byte(f[2]))
	m.SetOperation(nil, []byte(f[2]))
	switch {
	case strings.HasPrefix(f[3], "malformed"):
		m.Malformed = f[3]
	case strings.HasPrefix(f[3], "boom-decode"):
		panic("boom: Decode")
	case strings.HasPrefix(f[3], "boom-nothing"):
		return 0, nil
	case strings.HasPrefix(f[3], "boom-load"):
		m.Defer(bomb{})
	case strings.HasPrefix(f[3], "boom-size"):
		m.BodySize = -1 << 20
	}
	return n, nil
}

// Timeout implements codecs.Deadliner: texts that begin with "in" say the milliseconds.
func (t toy) Timeout(req *codecs.Metadata) time.Duration {
	f := strings.SplitN(strings.TrimSpace(string(req.Raw)), " ", 4)
	ms, err := strconv.Atoi(strings.TrimPrefix(f[3], "in"))
	if !strings.HasPrefix(f[3], "in") || err != nil {
		return 0
	}
	return time.Duration(ms) * time.Millisecond
}

type bomb struct{}

func (bomb) Load(*codecs.Metadata) { panic("boom: Load") }

func (t toy) Encode(dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	f := strings.SplitN(string(m.Raw), " ", 4)
	if strings.HasPrefix(f[3], "boom-encode") {
		_ = append(dst, "what was begun"...)
		panic("boom: Encode")
	}
	if strings.HasPrefix(f[3], "boom-again") && mut != nil && mut.Retry != 0 {
		panic("boom: Encode")
	}
	f[1] = strconv.FormatUint(m.ID, 10)
	for _, kv := range mut.Entries() {
		f[3] = kv.Key + "=" + kv.Value + ";" + f[3]
	}
	if mut != nil && mut.Timeout != 0 {
		f[3] = fmt.Sprintf("t=%d;%s", max(mut.Timeout.Milliseconds(), 1), f[3])
	}
	if mut != nil && mut.Retry != 0 {
		f[3] = fmt.Sprintf("retry=%d;%s", mut.Retry, f[3])
	}
	return append(dst, strings.Join(f, " ")...), nil
}

func (t toy) EncodeError(dst []byte, req *codecs.Metadata, e *codecs.LocalError) ([]byte, error) {
	switch req.ID {
	case wordless:
		return dst, errors.New("no words for it")
	case speechless:
		panic("boom: EncodeError")
	}
	return fmt.Appendf(dst, "err %d - %s\n", req.ID, e.Message), nil
}

// wordless is the id of requests and streams whose errors cannot be encoded.
const wordless = 404

// speechless is the id of those over whose errors the codec panics.
const speechless = 500

func (t toy) EncodeReset(dst []byte, st *codecs.Metadata, e *codecs.LocalError) ([]byte, error) {
	switch st.StreamID {
	case wordless:
		return dst, errors.New("no words for it")
	case speechless:
		panic("boom: EncodeReset")
	}
	return fmt.Appendf(dst, "end %d - %s\n", st.StreamID, e.Message), nil
}

func (t toy) EncodeHeartbeat(dst []byte, hb *codecs.Metadata) ([]byte, error) {
	if bytes.Contains(hb.Raw, []byte("boom-heartbeat")) {
		panic("boom: EncodeHeartbeat")
	}
	return fmt.Appendf(dst, "hb %d - here\n", hb.ID), nil
}

func (t toy) CheckMutation(codecs.Direction, string, string) error { return nil }
