package filter_test

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// toy is a protocol of lines, "TYPE id method text", in whatever shape a test
// wants: its first letter tells variants apart, methods "mfixed…" keep their ids.
type toy struct {
	traits codecs.Traits
	first  byte // of what it recognises
}

var toyTypes = map[string]codecs.MessageType{
	"req": codecs.Request, "one": codecs.Oneway, "res": codecs.Response, "err": codecs.Error,
	"init": codecs.StreamInit, "data": codecs.StreamData,
	"half": codecs.StreamCloseOneWay, "end": codecs.StreamCloseTwoWay,
}

func init() {
	register := func(name string, t toy) {
		codecs.Register(name, func(*anypb.Any, codecs.Limits) (codecs.Codec, error) { return t, nil })
	}
	register("toy.byid", toy{codecs.Traits{Correlation: codecs.ByID, MaxID: 1<<31 - 1, ShareByDefault: true}, 'r'})
	register("toy.hidden", toy{codecs.Traits{Correlation: codecs.ByID, MaxID: 1<<31 - 1, HiddenOneway: true}, 'h'})
	register("toy.inorder", toy{codecs.Traits{Correlation: codecs.InOrder, ShareByDefault: true}, 'i'})
}

func (t toy) Traits() codecs.Traits                      { return t.traits }
func (t toy) NewDecoder(codecs.Direction) codecs.Decoder { return t }

func (t toy) Sniff(b []byte) codecs.Guess {
	switch {
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
	m.ExpectsReply = f[2] == "mcertain"
	m.FixedID = strings.HasPrefix(f[2], "mfixed")
	m.Raw, m.BodySize = b[:n], n
	if m.Type == codecs.Error {
		m.Status = codecs.StatusError
	}
	m.Put([]byte("method"), []byte(f[2]))
	m.SetOperation(nil, []byte(f[2]))
	return n, nil
}

func (t toy) Encode(dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	f := strings.SplitN(string(m.Raw), " ", 4)
	f[1] = strconv.FormatUint(m.ID, 10)
	for _, kv := range mut.Entries() {
		f[3] = kv.Key + "=" + kv.Value + ";" + f[3]
	}
	return append(dst, strings.Join(f, " ")...), nil
}

func (t toy) EncodeError(dst []byte, req *codecs.Metadata, e *codecs.LocalError) ([]byte, error) {
	if req.ID == wordless {
		return dst, errors.New("no words for it")
	}
	return fmt.Appendf(dst, "err %d - %s\n", req.ID, e.Message), nil
}

// wordless is the id of requests and streams whose errors cannot be encoded.
const wordless = 404

func (t toy) EncodeReset(dst []byte, st *codecs.Metadata, e *codecs.LocalError) ([]byte, error) {
	if st.StreamID == wordless {
		return dst, errors.New("no words for it")
	}
	return fmt.Appendf(dst, "end %d - %s\n", st.StreamID, e.Message), nil
}

func (t toy) CheckMutation(codecs.Direction, string, string) error { return nil }
