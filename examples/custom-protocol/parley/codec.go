// Package parley is the codec of the tutorial, whose README explains it.
package parley

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
)

const (
	// Name is the codec's config name.
	Name = "example.codec.parley"

	maxHead, maxBody = 1024, 1 << 20 // that Parley's clients and servers take
	maxID            = len("4294967295")
	idAt             = len("CALL id=")
)

func init() { codecs.Register(Name, New) }

// New makes the codec. It has no options.
func New(config *anypb.Any, limits codecs.Limits) (codecs.Codec, error) {
	if config != nil {
		return nil, fmt.Errorf("has no options")
	}
	return &codec{maxFrame: cmp.Or(limits.MaxFrameBytes, maxHead+maxBody)}, nil
}

type codec struct{ maxFrame int }

// Traits implements codecs.Codec.
func (c *codec) Traits() codecs.Traits {
	return codecs.Traits{
		Correlation: codecs.ByID, MaxID: 1<<32 - 1, ShareByDefault: true, Attributes: []string{"method"},
	}
}

// NewDecoder implements codecs.Codec. A decoder has nothing to remember here.
func (c *codec) NewDecoder(codecs.Direction) codecs.Decoder { return c }

var verbs = map[string]struct {
	means  codecs.MessageType
	status codecs.Status
}{
	"CALL": {means: codecs.Request}, "TELL": {means: codecs.Oneway},
	"DONE": {means: codecs.Response}, "FAIL": {means: codecs.Response, status: codecs.StatusBusinessException},
	"NOPE": {means: codecs.Error, status: codecs.StatusError},
	"PING": {means: codecs.Heartbeat}, "PONG": {means: codecs.Heartbeat},
}

// What Decode keeps for Encode in Metadata.Scratch: offsets in Raw.
const scratchIDEnd, scratchAttributes = 0, 1

// Decode implements codecs.Decoder.
func (c *codec) Decode(buf []byte, m *codecs.Metadata) (int, error) {
	if len(buf) < 4 {
		return 4, nil
	}
	verb, known := verbs[string(buf[:4])]
	if !known {
		return fault(0, "unknown verb")
	}
	longest := min(maxHead, c.maxFrame)
	end := bytes.IndexByte(buf[:min(len(buf), longest)], '\n')
	if end < 0 && len(buf) < longest {
		return len(buf) + 1, nil
	} else if end < 0 {
		return fault(longest, "the head is too long")
	}
	id, rest, idOK := number(buf[4:end], " id=")
	idEnd := end - len(rest)
	size, rest, sizeOK := number(rest, " len=")
	if !idOK || !sizeOK || len(rest) > 0 && rest[0] != ' ' {
		return fault(4, "want id and len behind the verb")
	}
	m.Type, m.Status, m.ID, m.ExpectsReply = verb.means, verb.status, id, string(buf[:4]) == "PING"
	n := end + 1 + int(size)
	if limit := min(c.maxFrame, end+1+maxBody); n > limit {
		return 0, &codecs.TooLarge{Size: n, Limit: limit}
	} else if n > len(buf) {
		return n, nil
	}
	m.Raw, m.HeaderSize, m.BodySize = buf[:n:n], end+1, int(size)
	m.Scratch[scratchIDEnd], m.Scratch[scratchAttributes] = uint32(idEnd), uint32(end-len(rest))
	m.Malformed = attributes(m, rest)
	if more := maxID - (idEnd - idAt); end+1+more > maxHead || n+more > c.maxFrame {
		m.Malformed = "there is no room for a longer id"
	}
	method, ok := m.Get("method")
	if m.SetOperation(nil, method); !ok && (m.Type == codecs.Request || m.Type == codecs.Oneway) {
		m.Malformed = cmp.Or(m.Malformed, "no method")
	}
	return n, nil
}

func fault(offset int, reason string) (int, error) {
	return 0, &codecs.ProtocolError{Protocol: "parley", Offset: offset, Reason: reason}
}

// number reads key and a number, which can be written in one way only.
func number(b []byte, key string) (n uint64, rest []byte, ok bool) {
	b, ok = bytes.CutPrefix(b, []byte(key))
	rest = bytes.TrimLeft(b, "0123456789")
	digits := b[:len(b)-len(rest)]
	n, err := strconv.ParseUint(string(digits), 10, 32)
	return n, rest, ok && err == nil && (digits[0] != '0' || len(digits) == 1)
}

// attributes puts the attributes of a head, and says what is wrong with them.
func attributes(m *codecs.Metadata, b []byte) (malformed string) {
	for word := range bytes.FieldsSeq(b) {
		key, value, _ := bytes.Cut(word, []byte("="))
		if !isKey(string(key)) {
			return fmt.Sprintf("%q is no attribute", word)
		}
		if _, twice := m.Get(string(key)); twice { // rules might see one, the server the other
			return fmt.Sprintf("there are two attributes %q", key)
		}
		m.Put(key, value)
	}
	return ""
}

func isKey(s string) bool {
	return s != "" && s != "id" && s != "len" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz-") == ""
}

// Encode implements codecs.Codec.
func (c *codec) Encode(dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	start, idEnd, attributes := len(dst), int(m.Scratch[scratchIDEnd]), m.Scratch[scratchAttributes]
	dst = strconv.AppendUint(append(dst, m.Raw[:idAt]...), m.ID, 10)
	if more := len(dst) - start - idEnd; m.HeaderSize+more > maxHead || len(m.Raw)+more > c.maxFrame {
		return dst, fmt.Errorf("it would become too large")
	}
	if len(mut.Entries()) == 0 {
		return append(dst, m.Raw[idEnd:]...), nil
	}
	behind := len(dst)
	dst = append(dst, m.Raw[idEnd:attributes]...)
	for word := range bytes.FieldsSeq(m.Raw[attributes:m.HeaderSize]) {
		key, _, _ := bytes.Cut(word, []byte("="))
		if !slices.ContainsFunc(mut.Entries(), func(kv codecs.KeyValue) bool { return kv.Key == string(key) }) {
			dst = append(append(dst, ' '), word...)
		}
	}
	for _, kv := range mut.Entries() {
		if err := c.CheckMutation(codecs.ClientToServer, kv.Key, kv.Value); err != nil { // that of a filter
			return dst, fmt.Errorf("%w: %w", codecs.ErrNoMutation, err)
		}
		dst = append(append(append(append(dst, ' '), kv.Key...), '='), kv.Value...)
	}
	if n := idAt + maxID + len(dst) - behind + 1; n > maxHead || n+m.BodySize > c.maxFrame || m.Malformed != "" {
		return dst, codecs.ErrNoMutation
	}
	return append(append(dst, '\n'), m.Raw[m.HeaderSize:]...), nil
}

// CheckMutation implements codecs.Mutator.
func (c *codec) CheckMutation(_ codecs.Direction, key, value string) error {
	if !isKey(key) || key == "method" || strings.ContainsFunc(value, unicode.IsSpace) {
		return fmt.Errorf("key: %q cannot be set to %q", key, value)
	}
	return nil
}

var codes = map[codecs.ErrorType]string{
	codecs.RouteNotFound: "no-route", codecs.Timeout: "timeout", codecs.OverLimit: "busy", codecs.BadRequest: "bad-request", codecs.Denied: "denied",
}

// EncodeError implements codecs.Codec.
func (c *codec) EncodeError(dst []byte, req *codecs.Metadata, e *codecs.LocalError) ([]byte, error) {
	code := cmp.Or(codes[e.Type], "unavailable")
	return fmt.Appendf(dst, "NOPE id=%d len=%d code=%s\n%s", req.ID, len(e.Message), code, e.Message), nil
}

// EncodeHeartbeat implements codecs.Heartbeater.
func (c *codec) EncodeHeartbeat(dst []byte, hb *codecs.Metadata) ([]byte, error) {
	return fmt.Appendf(dst, "PONG id=%d len=0\n", hb.ID), nil
}

// Sniff implements codecs.Sniffer.
func (c *codec) Sniff(b []byte) codecs.Guess {
	for _, start := range []string{"CALL id=", "TELL id=", "PING id="} {
		if bytes.HasPrefix(b, []byte(start)) {
			return codecs.Yes
		} else if strings.HasPrefix(start, string(b)) {
			return codecs.Maybe
		}
	}
	return codecs.No
}
