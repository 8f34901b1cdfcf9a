package codectest

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// TestMain fails when a test leaves a goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestASoundCodecPasses(t *testing.T) { Run(t, toySuite()) }

func FuzzDecodeOfASoundCodec(f *testing.F) { FuzzDecode(f, toySuite()) }

func FuzzEncodeOfASoundCodec(f *testing.F) { FuzzEncode(f, toySuite()) }

// record is a reporter that keeps what is reported.
type record struct {
	mu   sync.Mutex
	text strings.Builder
}

func (r *record) Helper() {}

func (r *record) fault(f fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.text.WriteString(f.String() + "\n")
}

// failures checks properties, all unless some are named, and returns what those
// that fail report.
func failures(s Suite, names ...string) map[string]string {
	failed := map[string]string{}
	var loading record
	c := newCheck(&loading, &s, nil)
	if c == nil {
		return map[string]string{"loading": loading.text.String()}
	}
	for _, p := range properties {
		if len(names) > 0 && !slices.Contains(names, p.name) {
			continue
		}
		var r record
		c.run(&r, p)
		if r.text.Len() > 0 {
			failed[p.name] = r.text.String()
		}
	}
	return failed
}

// page is what Run says of a suite.
func page(s Suite) *faults {
	var found faults
	c := newCheck(&found, &s, nil)
	for _, p := range properties {
		found.property = p.name
		c.run(&found, p)
	}
	return &found
}

// broken is the toy with something else in the place of one of its methods.
type broken struct {
	*toy
	traits     func(t *codecs.Traits)
	newDecoder func() codecs.Decoder
	decode     func(c *toy, buf []byte, m *codecs.Metadata) (int, error)
	encode     func(c *toy, dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error)
	reply      func(c *toy, dst []byte, req *codecs.Metadata, e *codecs.LocalError) ([]byte, error)
	heartbeat  func(dst []byte, hb *codecs.Metadata) ([]byte, error)
	reset      func(dst []byte, stream *codecs.Metadata) ([]byte, error)
	leave      func(dst []byte) ([]byte, error)
	sniff      func(b []byte) codecs.Guess
	refuse     func(key string) error
	timeout    func(c *toy, req *codecs.Metadata) time.Duration
	payload    func(c *toy, m *codecs.Metadata) (codecs.Payload, error)
	success    func(c *toy, dst []byte, req *codecs.Metadata, mut *codecs.Mutation) ([]byte, error)
}

func (b *broken) Traits() codecs.Traits {
	t := b.toy.Traits()
	if b.traits != nil {
		b.traits(&t)
	}
	return t
}

func (b *broken) NewDecoder(d codecs.Direction) codecs.Decoder {
	switch {
	case b.newDecoder != nil:
		return b.newDecoder()
	case b.decode != nil:
		return decodeFunc(func(buf []byte, m *codecs.Metadata) (int, error) { return b.decode(b.toy, buf, m) })
	default:
		return b.toy.NewDecoder(d)
	}
}

type decodeFunc func(buf []byte, m *codecs.Metadata) (int, error)

func (f decodeFunc) Decode(buf []byte, m *codecs.Metadata) (int, error) { return f(buf, m) }

func (b *broken) Encode(dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	if b.encode != nil {
		return b.encode(b.toy, dst, m, mut)
	}
	return b.toy.Encode(dst, m, mut)
}

func (b *broken) EncodeError(dst []byte, req *codecs.Metadata, e *codecs.LocalError) ([]byte, error) {
	if b.reply != nil {
		return b.reply(b.toy, dst, req, e)
	}
	return b.toy.EncodeError(dst, req, e)
}

func (b *broken) Payload(m *codecs.Metadata) (codecs.Payload, error) {
	if b.payload != nil {
		return b.payload(b.toy, m)
	}
	return b.toy.Payload(m)
}

func (b *broken) EncodeReply(dst []byte, req *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	if b.success != nil {
		return b.success(b.toy, dst, req, mut)
	}
	return b.toy.EncodeReply(dst, req, mut)
}

func (b *broken) EncodeHeartbeat(dst []byte, hb *codecs.Metadata) ([]byte, error) {
	if b.heartbeat != nil {
		return b.heartbeat(dst, hb)
	}
	return b.toy.EncodeHeartbeat(dst, hb)
}

func (b *broken) EncodeReset(dst []byte, stream *codecs.Metadata, e *codecs.LocalError) ([]byte, error) {
	if b.reset != nil {
		return b.reset(dst, stream)
	}
	return b.toy.EncodeReset(dst, stream, e)
}

func (b *broken) EncodeGoAway(dst []byte, variant uint8) ([]byte, error) {
	if b.leave != nil {
		return b.leave(dst)
	}
	return b.toy.EncodeGoAway(dst, variant)
}

func (b *broken) Sniff(first []byte) codecs.Guess {
	if b.sniff != nil {
		return b.sniff(first)
	}
	return b.toy.Sniff(first)
}

func (b *broken) CheckMutation(d codecs.Direction, key, value string) error {
	if b.refuse != nil {
		return b.refuse(key)
	}
	return b.toy.CheckMutation(d, key, value)
}

func (b *broken) Timeout(req *codecs.Metadata) time.Duration {
	if b.timeout != nil {
		return b.timeout(b.toy, req)
	}
	return b.toy.Timeout(req)
}

func (b *broken) CheckRemoval(d codecs.Direction, key string) error {
	return b.toy.CheckRemoval(d, key)
}

// whole calls then with what the toy has decoded, if that is a whole frame.
func whole(then func(buf []byte, m *codecs.Metadata)) func(*toy, []byte, *codecs.Metadata) (int, error) {
	return func(c *toy, buf []byte, m *codecs.Metadata) (int, error) {
		n, err := c.Decode(buf, m)
		if err == nil && n <= len(buf) {
			then(buf, m)
		}
		return n, err
	}
}

// tooBig calls then with what the toy has found too large.
func tooBig(then func(buf []byte, m *codecs.Metadata, e *codecs.TooLarge)) func(*toy, []byte, *codecs.Metadata) (int, error) {
	return func(c *toy, buf []byte, m *codecs.Metadata) (int, error) {
		n, err := c.Decode(buf, m)
		var large *codecs.TooLarge
		if errors.As(err, &large) {
			then(buf, m, large)
		}
		return n, err
	}
}

// encoded calls then with what the toy has appended.
func encoded(then func(out []byte, m *codecs.Metadata, mut *codecs.Mutation)) func(*toy, []byte, *codecs.Metadata, *codecs.Mutation) ([]byte, error) {
	return func(c *toy, dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
		start := len(dst)
		dst, err := c.Encode(dst, m, mut)
		if err == nil {
			then(dst[start:], m, mut)
		}
		return dst, err
	}
}

// otherByte changes with the id.
var otherByte = encoded(func(out []byte, m *codecs.Metadata, _ *codecs.Mutation) {
	if i := bytes.Index(out, []byte("acme")); i > 0 && !bytes.Equal(out, m.Raw) {
		out[i]++
	}
})

// slowly reads b.
//
//go:noinline
func slowly(b []byte) (sum byte) {
	for range 8 {
		for _, x := range b {
			sum = (sum*31 + x) / 3
		}
	}
	return sum
}

// TestEveryFaultIsFound breaks the toy in one way after the other: the property
// must fail, say why, and show the bytes.
func TestEveryFaultIsFound(t *testing.T) {
	var kept []byte
	var last codecs.Metadata
	var busy atomic.Bool
	var sink []byte
	for _, tc := range []struct {
		fault    string
		property string
		says     string
		shows    []byte // a frame, nil: none is to blame
		codec    broken
		suite    func(s *Suite)
	}{
		{
			fault: "other traits each time", property: "traits", says: "Traits change",
			codec: broken{traits: func(t *codecs.Traits) { t.MaxID -= uint64(len(sink)); sink = append(sink, 0) }},
		},
		{
			fault: "no room for ids", property: "traits", says: "MaxID is 0",
			codec: broken{traits: func(t *codecs.Traits) { t.MaxID = 0 }},
		},
		{
			fault: "attribute in upper case", property: "traits", says: `attribute "Op"`,
			codec: broken{traits: func(t *codecs.Traits) { t.Attributes = []string{"Op"} }},
		},
		{
			fault: "a message's own attribute before the protocol's", property: "attributes", says: "comes behind", shows: theCall,
			codec: broken{traits: func(t *codecs.Traits) { t.Attributes = []string{"tenant"} }},
		},
		{
			fault: "an attribute twice", property: "attributes", says: "is there twice", shows: theCall,
			codec: broken{decode: whole(func(_ []byte, m *codecs.Metadata) {
				if m.Type == codecs.Request {
					m.Put([]byte("OP"), []byte("other"))
				}
			})},
		},
		{
			fault: "a length that is too large", property: "splits", says: "but the frame has only", shows: theCall[:1],
			codec: broken{decode: func(c *toy, buf []byte, m *codecs.Metadata) (int, error) {
				if len(buf) < toyHead {
					return 200, nil
				}
				return c.Decode(buf, m)
			}},
		},
		{
			fault: "a part that is taken for the whole", property: "splits", says: "taken for the whole, with a length of 12 (to ask for more", shows: theCall[:toyHead],
			codec: broken{decode: func(c *toy, buf []byte, m *codecs.Metadata) (int, error) {
				n, err := c.Decode(buf, m)
				if err == nil && n > len(buf) && len(buf) >= toyHead {
					m.Raw, m.HeaderSize, n = buf, len(buf), len(buf)
				}
				return n, err
			}},
		},
		{
			fault: "all that is there when more is wanted", property: "splits", says: "there is no Raw (to ask for more it returns more than it was given)", shows: theCall[:1],
			codec: broken{decode: func(c *toy, buf []byte, m *codecs.Metadata) (int, error) {
				n, err := c.Decode(buf, m)
				return min(n, len(buf)), err
			}},
		},
		{
			fault: "nothing when more is wanted", property: "splits", says: "Decode returns a length of 0 (to ask for more", shows: theCall[:1],
			codec: broken{decode: func(c *toy, buf []byte, m *codecs.Metadata) (int, error) {
				n, err := c.Decode(buf, m)
				if n > len(buf) {
					n = 0
				}
				return n, err
			}},
		},
		{
			fault: "a part that is refused", property: "splits", says: "a part of the frame is refused", shows: theCall[:1],
			codec: broken{decode: func(c *toy, buf []byte, m *codecs.Metadata) (int, error) {
				if len(buf) < 3 {
					return toyFault(0, "too short")
				}
				return c.Decode(buf, m)
			}},
		},
		{
			fault: "a decoder that takes what is behind the frame into account", property: "splits", says: "something else", shows: theCall,
			codec: broken{decode: whole(func(buf []byte, m *codecs.Metadata) { m.Scratch[7] = uint32(len(buf)) })},
		},
		{
			fault: "an error of another type", property: "splits", says: "no *codecs.ProtocolError nor", shows: theCall[:1],
			codec: broken{decode: func(c *toy, buf []byte, m *codecs.Metadata) (int, error) {
				if len(buf) < 3 {
					return 0, errors.New("too short")
				}
				return c.Decode(buf, m)
			}},
		},
		{
			fault: "bytes that are written to", property: "splits", says: "writes to the bytes", shows: theCall,
			codec: broken{decode: whole(func(buf []byte, _ *codecs.Metadata) { buf[0] = 'T' })},
		},
		{
			fault: "bytes behind the frame that are written to", property: "round_trip", says: "writes to the bytes", shows: theCall,
			codec: broken{decode: whole(func(buf []byte, _ *codecs.Metadata) {
				if cap(buf) > len(buf) {
					buf[:len(buf)+1][len(buf)] = 0
				}
			})},
		},
		{
			fault: "sizes that are not the frame's", property: "splits", says: "HeaderSize 13", shows: theCall,
			codec: broken{decode: whole(func(_ []byte, m *codecs.Metadata) { m.HeaderSize++ })},
		},
		{
			fault: "a copy for Raw", property: "splits", says: "Raw is not the first", shows: theCall,
			codec: broken{decode: whole(func(_ []byte, m *codecs.Metadata) { m.Raw = bytes.Clone(m.Raw) })},
		},
		{
			fault: "an error with the status of a success", property: "splits", says: "its status is 0", shows: theError,
			codec: broken{decode: whole(func(_ []byte, m *codecs.Metadata) { m.Status = codecs.StatusOK })},
		},
		{
			fault: "a slice that the codec keeps", property: "views", says: "still referred to", shows: theCall,
			codec: broken{decode: whole(func(buf []byte, _ *codecs.Metadata) { kept = buf })},
		},
		{
			fault: "a view in ReplyInfo", property: "views", says: "ReplyInfo", shows: theCall,
			codec: broken{decode: whole(func(buf []byte, m *codecs.Metadata) { m.ReplyInfo = buf[:4] })},
		},
		{
			fault: "a byte that changes on the way", property: "round_trip", says: "it becomes", shows: theCall,
			codec: broken{encode: encoded(func(out []byte, _ *codecs.Metadata, _ *codecs.Mutation) { out[len(out)-1] ^= 1 })},
		},
		{
			fault: "a frame that is written to", property: "round_trip", says: "encoding changes the frame", shows: theCall,
			codec: broken{encode: encoded(func(_ []byte, m *codecs.Metadata, _ *codecs.Mutation) { m.Raw[5]++ })},
		},
		{
			fault: "what was encoded before is overwritten", property: "round_trip", says: "what stood before is gone", shows: theCall,
			codec: broken{encode: func(c *toy, dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
				return c.Encode(dst[:0], m, mut)
			}},
		},
		{
			fault: "the old id", property: "ids", says: "encoded with id", shows: theCall,
			codec: broken{encode: func(_ *toy, dst []byte, m *codecs.Metadata, _ *codecs.Mutation) ([]byte, error) {
				return append(dst, m.Raw...), nil
			}},
		},
		{
			fault: "another byte changes with the id", property: "ids", says: "has changed", shows: toyFrame(toyCall, 127, "op=add\ntenant=bcme", "1 2"),
			codec: broken{encode: otherByte},
		},
		{
			fault: "a mutation that is forgotten", property: "mutation", says: `property "tenant" is "acme", want "other"`, shows: theCall,
			codec: broken{encode: func(c *toy, dst []byte, m *codecs.Metadata, _ *codecs.Mutation) ([]byte, error) {
				return c.Encode(dst, m, nil)
			}},
		},
		{
			fault: "a mutation that loses the body", property: "mutation", says: "Decode asks for", shows: theCall[:8],
			codec: broken{encode: func(c *toy, dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
				dst, err := c.Encode(dst, m, mut)
				if err == nil && mut != nil && len(mut.Entries()) > 0 {
					dst = dst[:len(dst)-1]
				}
				return dst, err
			}},
		},
		{
			fault: "a mutation that loses other attributes", property: "mutation", says: `property "tenant" has changed`,
			shows: toyFrame(toyCall, 7, "op=add\nnew=", "1 2"),
			codec: broken{encode: func(c *toy, dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
				if e := mut.Entries(); len(e) == 1 && e[0].Key == "new" && m.Malformed == "" {
					op, _ := toyGet(m.Raw[toyHead:m.Scratch[0]], "op")
					return append(dst, toyFrame(m.Raw[3], uint32(m.ID), "op="+string(op)+"\nnew=", string(m.Raw[m.Scratch[0]+1:]))...), nil
				}
				return c.Encode(dst, m, mut)
			}},
		},
		{
			fault: "a mutation that ends the message", property: "mutation", says: "want one that wraps codecs.ErrNoMutation", shows: theCall,
			codec: broken{encode: func(c *toy, dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
				if len(mut.Entries()) > 0 {
					return dst, errors.New("cannot")
				}
				return c.Encode(dst, m, nil)
			}},
		},
		{
			fault: "a mutation that never works", property: "mutation", says: "see Immutable", shows: theCall,
			codec: broken{encode: func(c *toy, dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
				if len(mut.Entries()) > 0 {
					return dst, codecs.ErrNoMutation
				}
				return c.Encode(dst, m, nil)
			}},
		},
		{
			fault: "a removal that is forgotten", property: "removal", says: `property "tenant", ["acme"], is still there`, shows: theCall,
			codec: broken{encode: func(c *toy, dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
				var set codecs.Mutation
				for _, kv := range mut.Entries() {
					set.Set(kv.Key, kv.Value)
				}
				return c.Encode(dst, m, &set)
			}},
		},
		{
			fault: "a removal that minds the case", property: "removal", says: `property "tenant", ["acme"], is still there`, shows: theCall,
			codec: broken{encode: func(c *toy, dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
				if r := mut.Removed(); len(r) > 0 && r[0] == "TENANT" {
					return c.Encode(dst, m, nil)
				}
				return c.Encode(dst, m, mut)
			}},
		},
		{
			fault: "a removal that takes what is set", property: "removal", says: `["other"] to []`, shows: toyFrame(toyCall, 7, "op=add", "1 2"),
			codec: broken{encode: func(c *toy, dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
				var removed codecs.Mutation
				for _, kv := range mut.Entries() {
					if !mut.Removes([]byte(kv.Key)) {
						removed.Set(kv.Key, kv.Value)
					}
				}
				for _, key := range mut.Removed() {
					removed.Remove(key)
				}
				return c.Encode(dst, m, &removed)
			}},
		},
		{
			fault: "a key that is refused", property: "mutation", says: "CheckMutation", shows: []byte("other"),
			codec: broken{refuse: func(string) error { return errors.New("no") }},
		},
		{
			fault: "keys that are not refused", property: "mutation_refused", says: "lets it pass", shows: []byte("a\nb"),
			codec: broken{refuse: func(string) error { return nil }},
		},
		{
			fault: "an answer with another id", property: "error_replies", says: "the answer has id 8, its request 7", shows: toyFrame(toyError, 8, "", "")[:8],
			codec: broken{reply: func(_ *toy, dst []byte, req *codecs.Metadata, e *codecs.LocalError) ([]byte, error) {
				return append(dst, toyFrame(toyError, uint32(req.ID)+1, "", e.Message)...), nil
			}},
		},
		{
			fault: "a code that is not told", property: "codes", says: "answered with code 6: the answer is decoded with code 1", shows: toyFrame(toyError, 7, "code=1", "")[:8],
			codec: broken{reply: func(c *toy, dst []byte, req *codecs.Metadata, e *codecs.LocalError) ([]byte, error) {
				return c.EncodeError(dst, req, &codecs.LocalError{Message: e.Message, Code: min(e.Code, 1)})
			}},
		},
		{
			fault: "a code that is refused and told", property: "codes", says: "answered with code 100: CheckCode refuses it", shows: toyFrame(toyError, 7, "code=10", "")[:8],
			codec: broken{reply: func(c *toy, dst []byte, req *codecs.Metadata, e *codecs.LocalError) ([]byte, error) {
				if e.Code == 100 {
					return append(dst, toyFrame(toyError, uint32(req.ID), "code=10", e.Message)...), nil
				}
				return c.EncodeError(dst, req, e)
			}},
		},
		{
			fault: "an answer that needs the frame", property: "error_replies", says: "the codec panics", shows: theCall,
			codec: broken{reply: func(c *toy, dst []byte, req *codecs.Metadata, e *codecs.LocalError) ([]byte, error) {
				return c.EncodeError(dst, &codecs.Metadata{ID: uint64(req.Raw[7])}, e)
			}},
		},
		{
			fault: "a failure that is nobody's", property: "splits", says: `Failure is "overloaded", but it is a response of status 0`, shows: theAnswer,
			codec: broken{decode: whole(func(_ []byte, m *codecs.Metadata) {
				if m.Type == codecs.Response && m.Status == codecs.StatusOK {
					m.Failure = codecs.Overloaded
				}
			})},
		},
		{
			fault: "a failure of a class that nobody knows", property: "splits", says: "there is no class of failure 9", shows: theError,
			codec: broken{decode: whole(func(_ []byte, m *codecs.Metadata) {
				if m.Type == codecs.Error {
					m.Failure = 9
				}
			})},
		},
		{
			fault: "a server that has not looked, and has failed", property: "splits", says: `NotProcessed is set, but Failure is "host failure"`,
			codec: broken{decode: whole(func(_ []byte, m *codecs.Metadata) {
				if m.NotProcessed {
					m.Failure = codecs.HostFailure
				}
			})},
		},
		{
			fault: "a request with a code", property: "splits", says: "Code is set on a request", shows: theCall,
			codec: broken{decode: whole(func(_ []byte, m *codecs.Metadata) { m.Code = 1 })},
		},
		{
			fault: "an answer that is a retry", property: "splits", says: "Retried is set on a response", shows: theAnswer,
			codec: broken{decode: whole(func(_ []byte, m *codecs.Metadata) { m.Retried = m.Type == codecs.Response })},
		},
		{
			fault: "a timeout that is another", property: "timeouts", says: "with a timeout of 400µs: the request says 2ms, want 1ms",
			codec: broken{timeout: func(c *toy, req *codecs.Metadata) time.Duration { return 2 * c.Timeout(req) }},
		},
		{
			fault: "a second timeout behind the first", property: "timeouts", says: "and then another: the request says 1ms, want 7ms",
			codec: broken{encode: func(c *toy, dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
				if _, has := toyGet(m.Raw[toyHead:max(toyHead, m.Scratch[0])], "wait"); has {
					mut = nil
				}
				return c.Encode(dst, m, mut)
			}},
		},
		{
			fault: "a timeout that cannot be told, and an error", property: "timeouts", says: "goes out as it is", shows: theTell,
			codec: broken{encode: func(c *toy, dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
				if m.Type == codecs.Oneway && mut.Millis() > 0 {
					return dst, codecs.ErrNoMutation
				}
				return c.Encode(dst, m, mut)
			}},
		},
		{
			fault: "a timeout and another attribute", property: "timeouts", says: "has changed otherwise: id is 9",
			codec: broken{encode: encoded(func(out []byte, _ *codecs.Metadata, mut *codecs.Mutation) {
				if mut.Millis() > 0 {
					out[7] = 9
				}
			})},
		},
		{
			fault: "a timeout that an entry displaces", property: "timeouts", says: "with entries, and with a timeout too: the request says 0s, want a minute",
			codec: broken{encode: encoded(func(out []byte, _ *codecs.Metadata, mut *codecs.Mutation) {
				if i := bytes.Index(out, []byte("wait=")); i > 0 && len(mut.Entries()) > 0 && mut.Millis() > 0 {
					out[i] = 'W'
				}
			})},
		},
		{
			fault: "a timeout that is never told", property: "timeouts", says: "no request of the suite takes a timeout",
			codec: broken{encode: func(c *toy, dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
				if mut.Millis() > 0 {
					mut = nil
				}
				return c.Encode(dst, m, mut)
			}},
		},
		{
			fault: "a mark that is none", property: "retries", says: "it has changed, but is not Retried",
			codec: broken{encode: encoded(func(out []byte, m *codecs.Metadata, mut *codecs.Mutation) {
				if i := bytes.LastIndex(out, []byte("again=")); i > 0 && mut != nil && mut.Retry > 0 && !m.Retried {
					out[i] = 'A'
				}
			})},
		},
		{
			fault: "an encoder that needs the operation", property: "retries", says: "from a copy of its frame without a change: it becomes", shows: theCall,
			codec: broken{encode: encoded(func(out []byte, m *codecs.Metadata, _ *codecs.Mutation) {
				if m.Type == codecs.Request && len(m.Method()) == 0 {
					out[len(out)-1]++
				}
			})},
		},
		{
			fault: "a timeout that needs the properties", property: "retries", says: "its timeout is 0s then, and was 100ms",
			codec: broken{timeout: func(c *toy, req *codecs.Metadata) time.Duration {
				if _, ok := req.Get("wait"); !ok {
					return 0
				}
				return c.Timeout(req)
			}},
		},
		{
			fault: "a payload that is no view", property: "payloads", says: "the payload is no view of the frame",
			codec: broken{payload: func(c *toy, m *codecs.Metadata) (codecs.Payload, error) {
				p, err := c.Payload(m)
				p.Bytes = bytes.Clone(p.Bytes)
				return p, err
			}},
		},
		{
			fault: "a payload with what is before it", property: "payloads", says: "the payload (compression 0) is",
			codec: broken{payload: func(_ *toy, m *codecs.Metadata) (codecs.Payload, error) {
				return codecs.Payload{Bytes: m.Raw[m.Scratch[0]:len(m.Raw):len(m.Raw)]}, nil
			}},
		},
		{
			fault: "a payload that is none without a reason", property: "payloads", says: "which does not wrap codecs.ErrNoPayload",
			codec: broken{payload: func(*toy, *codecs.Metadata) (codecs.Payload, error) { return codecs.Payload{}, errors.New("no") }},
		},
		{
			fault: "payloads that cannot be read", property: "payloads", says: "see Opaque",
			codec: broken{payload: func(*toy, *codecs.Metadata) (codecs.Payload, error) { return codecs.Payload{}, codecs.NoPayload("no") }},
		},
		{
			fault: "a payload that stays as it is", property: "payloads", says: "the payload (compression 0) is",
			codec: broken{encode: func(c *toy, dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
				if mut.Replaces() {
					mut = nil
				}
				return c.Encode(dst, m, mut)
			}},
		},
		{
			fault: "a payload that is skipped", property: "payloads", says: "it must not go out as it is",
			codec: broken{encode: func(c *toy, dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
				if mut.Replaces() {
					return dst, codecs.ErrNoMutation
				}
				return c.Encode(dst, m, mut)
			}},
		},
		{
			fault: "a payload that makes the frame too large", property: "payloads", says: "larger than the limits",
			codec: broken{encode: func(_ *toy, dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
				return newToy(codecs.Limits{}).Encode(dst, m, mut)
			}},
		},
		{
			fault: "a success with another id", property: "success_replies", says: "the answer has id 0, its request 7",
			codec: broken{success: func(c *toy, dst []byte, _ *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
				return c.EncodeReply(dst, &codecs.Metadata{}, mut)
			}},
		},
		{
			fault: "a success that is none", property: "success_replies", says: "the answer is decoded as a error",
			codec: broken{success: func(c *toy, dst []byte, req *codecs.Metadata, _ *codecs.Mutation) ([]byte, error) {
				return c.EncodeError(dst, req, &codecs.LocalError{})
			}},
		},
		{
			fault: "a success without the payload", property: "success_replies", says: "its payload is",
			codec: broken{success: func(c *toy, dst []byte, req *codecs.Metadata, _ *codecs.Mutation) ([]byte, error) {
				return c.EncodeReply(dst, req, nil)
			}},
		},
		{
			fault: "a success that needs the request's frame", property: "success_replies", says: "could be answered",
			codec: broken{success: func(c *toy, dst []byte, req *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
				if req.Raw == nil {
					return dst, codecs.NoPayload("no")
				}
				return c.EncodeReply(dst, req, mut)
			}},
		},
		{
			fault: "an answer that is a success", property: "error_replies", says: "decoded as a success", shows: toyFrame(toyAnswer, 7, "", "")[:8],
			codec: broken{reply: func(_ *toy, dst []byte, req *codecs.Metadata, e *codecs.LocalError) ([]byte, error) {
				return append(dst, toyFrame(toyAnswer, uint32(req.ID), "", e.Message)...), nil
			}},
		},
		{
			fault: "an answer without the text", property: "error_replies", says: "see NoErrorText", shows: toyFrame(toyError, 7, "", ""),
			codec: broken{reply: func(_ *toy, dst []byte, req *codecs.Metadata, _ *codecs.LocalError) ([]byte, error) {
				return append(dst, toyFrame(toyError, uint32(req.ID), "", "")...), nil
			}},
		},
		{
			fault: "a long text that breaks the frame", property: "error_replies", says: "Decode takes", shows: toyFrame(toyError, 7, "", "a long story. ")[:8],
			codec: broken{reply: func(c *toy, dst []byte, req *codecs.Metadata, e *codecs.LocalError) ([]byte, error) {
				start := len(dst)
				dst, _ = c.EncodeError(dst, req, e)
				dst[start+10] = 0
				return dst, nil
			}},
		},
		{
			fault: "a heartbeat's answer that expects one", property: "heartbeats", says: "expects an answer", shows: thePing,
			codec: broken{heartbeat: func(dst []byte, hb *codecs.Metadata) ([]byte, error) { return append(dst, hb.Raw...), nil }},
		},
		{
			fault: "a reset of another stream", property: "stream_resets", says: "is of stream 12, want 11", shows: toyFrame(toyReset, 12, "", ""),
			codec: broken{reset: func(dst []byte, stream *codecs.Metadata) ([]byte, error) {
				return append(dst, toyFrame(toyReset, uint32(stream.StreamID)+1, "", "")...), nil
			}},
		},
		{
			fault: "a reset that ends nothing", property: "stream_resets", says: "which does not end a stream", shows: toyFrame(toyData, 11, "", ""),
			codec: broken{reset: func(dst []byte, stream *codecs.Metadata) ([]byte, error) {
				return append(dst, toyFrame(toyData, uint32(stream.StreamID), "", "")...), nil
			}},
		},
		{
			fault: "all bytes are its own", property: "sniffing", says: "taken for the codec's own", shows: []byte(Foreign[0].Bytes),
			codec: broken{sniff: func([]byte) codecs.Guess { return codecs.Yes }},
		},
		{
			fault: "no bytes are its own", property: "sniffing", says: "taken for those of another protocol", shows: theCall,
			codec: broken{sniff: func([]byte) codecs.Guess { return codecs.No }},
		},
		{
			fault: "a guess that changes", property: "sniffing", says: "with 3 bytes the answer is Yes, with 4 No", shows: theCall[:4],
			codec: broken{sniff: func(b []byte) codecs.Guess {
				if len(b) > 3 {
					return codecs.No
				}
				return (*toy)(nil).Sniff(b)
			}},
		},
		{
			fault: "a limit that is not looked at", property: "limits", says: "with a limit of", shows: theCall[:toyHead],
			suite: func(s *Suite) {
				s.New = func(codecs.Limits) (codecs.Codec, error) { return newToy(codecs.Limits{}), nil }
			},
		},
		{
			fault: "a limit that is looked at late", property: "limits", says: "it is known that the frame has", shows: toyFrame(toyCall, 1, "op=x", strings.Repeat("x", 3000))[:toyHead],
			suite: func(s *Suite) {
				s.New = func(l codecs.Limits) (codecs.Codec, error) {
					return &broken{toy: newToy(l), decode: func(_ *toy, buf []byte, m *codecs.Metadata) (int, error) {
						n, err := newToy(codecs.Limits{}).Decode(buf, m)
						if err == nil && n <= len(buf) && n > cmp.Or(l.MaxFrameBytes, toyLimit) {
							return toyFault(8, "too large")
						}
						return n, err
					}}, nil
				}
			},
		},
		{
			fault: "a frame that is too large, and its size another", property: "limits", says: "it is said to have 43 bytes", shows: theCall,
			codec: broken{decode: tooBig(func(_ []byte, _ *codecs.Metadata, e *codecs.TooLarge) { e.Size += 9 })},
		},
		{
			fault: "a frame that is too large, and within its limit", property: "limits", says: "but it is not", shows: theCall[:toyHead],
			codec: broken{decode: tooBig(func(_ []byte, _ *codecs.Metadata, e *codecs.TooLarge) { e.Limit = e.Size })},
		},
		{
			fault: "a frame that is too large, with what is there of it", property: "limits", says: "has a Raw", shows: theCall[:toyHead],
			codec: broken{decode: tooBig(func(buf []byte, m *codecs.Metadata, _ *codecs.TooLarge) { m.Raw = buf })},
		},
		{
			fault: "a frame that is too large, and of another type", property: "limits", says: "it is said to be a oneway, but is a request", shows: theCall,
			codec: broken{decode: tooBig(func(_ []byte, m *codecs.Metadata, _ *codecs.TooLarge) { m.Type = codecs.Oneway })},
		},
		{
			fault: "an answer that is too large, and without its method", property: "limits", says: `it is said to be an answer of "", but is one of "ask"`,
			codec: broken{
				traits: func(t *codecs.Traits) { t.HiddenOneway = true },
				decode: func(c *toy, buf []byte, m *codecs.Metadata) (int, error) {
					n, err := c.Decode(buf, m)
					if n > 0 && n <= len(buf) && isAnswer(m.Type) {
						m.SetOperation(nil, []byte("ask"))
					}
					return n, err
				},
			},
		},
		{
			fault: "a frame that is too large, and of another stream", property: "limits", says: "it is said to be of stream 12, but is of 11", shows: theOpen,
			codec: broken{decode: tooBig(func(_ []byte, m *codecs.Metadata, _ *codecs.TooLarge) {
				if m.StreamID != 0 {
					m.StreamID++
				}
			})},
		},
		{
			fault: "a frame that is too large, and answered otherwise", property: "limits", says: "answered otherwise than if it had been whole", shows: toyFrame(toyError, 7, "", "")[:8],
			codec: broken{
				decode: tooBig(func(_ []byte, m *codecs.Metadata, _ *codecs.TooLarge) { m.Scratch[6] = 1 }),
				reply: func(c *toy, dst []byte, req *codecs.Metadata, e *codecs.LocalError) ([]byte, error) {
					return c.EncodeError(dst, req, &codecs.LocalError{Message: e.Message + "!"[:req.Scratch[6]]})
				},
			},
		},
		{
			fault: "a frame that is too large, and waited for in vain", property: "limits", says: "it is known that the frame has", shows: toyFrame(toyCall, 1, "op=x", strings.Repeat("x", 3000))[:toyHead],
			suite: func(s *Suite) {
				s.New = func(l codecs.Limits) (codecs.Codec, error) {
					return &broken{toy: newToy(l), decode: func(c *toy, buf []byte, m *codecs.Metadata) (int, error) {
						n, err := c.Decode(buf, m)
						if tooLarge(err) && len(buf) < toyHead+8 {
							return len(buf) + 1, nil
						} else if tooLarge(err) {
							return toyFault(8, "too large")
						}
						return n, err
					}}, nil
				}
			},
		},
		{
			fault: "a frame that is too large, and without its id", property: "limits", says: "it is said to have id 0, but has 7", shows: theCall,
			codec: broken{decode: tooBig(func(_ []byte, m *codecs.Metadata, _ *codecs.TooLarge) { m.ID = 0 })},
		},
		{
			fault: "a frame that is too large, and depends on how it is cut", property: "limits", says: "there it is something else than", shows: theCall,
			codec: broken{decode: tooBig(func(buf []byte, m *codecs.Metadata, _ *codecs.TooLarge) { m.Scratch[7] = uint32(len(buf)) })},
		},
		{
			fault: "a frame that is too large, or no frame if all of it is there", property: "limits", says: "there Decode returns", shows: theCall,
			codec: broken{decode: func(c *toy, buf []byte, m *codecs.Metadata) (int, error) {
				n, err := c.Decode(buf, m)
				if err != nil && len(buf) > toyHead {
					return toyFault(0, "too large")
				}
				return n, err
			}},
		},
		{
			fault: "a frame that is too large, and cannot be answered", property: "limits", says: "the answer has id 0, its request 7", shows: toyFrame(toyError, 0, "", "")[:8],
			codec: broken{
				decode: whole(func(_ []byte, m *codecs.Metadata) { m.Scratch[3] = uint32(m.ID) }),
				reply: func(c *toy, dst []byte, req *codecs.Metadata, e *codecs.LocalError) ([]byte, error) {
					return c.EncodeError(dst, &codecs.Metadata{ID: uint64(req.Scratch[3])}, e)
				},
			},
		},
		{
			fault: "a frame that is too large, and kept", property: "limits", says: "still referred to after it has been refused", shows: theCall,
			codec: broken{decode: tooBig(func(buf []byte, _ *codecs.Metadata, _ *codecs.TooLarge) { kept = buf })},
		},
		{
			fault: "a mutation above the limit", property: "limits", says: "encoded with a limit of", shows: theCall[:4],
			suite: func(s *Suite) {
				s.New = func(l codecs.Limits) (codecs.Codec, error) {
					return &broken{toy: newToy(l), encode: func(_ *toy, dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
						return newToy(codecs.Limits{}).Encode(dst, m, mut)
					}}, nil
				}
			},
		},
		{
			fault: "bytes that are not refused", property: "invalid", says: "it is not refused", shows: []byte("tox"),
			codec: broken{decode: func(c *toy, buf []byte, m *codecs.Metadata) (int, error) {
				if len(buf) < toyHead {
					return toyHead, nil
				}
				return c.Decode(buf, m)
			}},
		},
		{
			fault: "memory by a number that the peer states", property: "hostile", says: "bytes of memory", shows: theCall,
			codec: broken{decode: whole(func(buf []byte, _ *codecs.Metadata) { sink = make([]byte, 1000*len(buf)) })},
		},
		{
			fault: "memory for each read", property: "hostile", says: "in 2048 pieces", shows: toyFrame(toyCall, 1, strings.Repeat("\n", 1<<13), "")[:16],
			codec: broken{decode: func(c *toy, buf []byte, m *codecs.Metadata) (int, error) {
				if n, err := c.Decode(buf, m); err != nil || n <= len(buf) {
					return n, err
				}
				sink = bytes.Clone(buf)
				return len(buf) + 1, nil
			}},
		},
		{
			fault: "a time that grows with the square", property: "cost", says: "a normal one of", shows: toyFrame(toyCall, 1, strings.Repeat("\n", 1<<13), "")[:16],
			codec: broken{decode: whole(func(buf []byte, _ *codecs.Metadata) {
				for i := range buf {
					slowly(buf[:i/4])
				}
			})},
		},
		{
			fault: "all is read again with each piece", property: "cost", says: "in 2048 pieces", shows: toyFrame(toyCall, 1, strings.Repeat("\n", 1<<13), "")[:16],
			codec: broken{decode: func(c *toy, buf []byte, m *codecs.Metadata) (int, error) {
				n, err := c.Decode(buf, m)
				if err == nil && n > len(buf) && len(buf) >= toyHead {
					slowly(buf)
					return len(buf) + 1, nil
				}
				return n, err
			}},
		},
		{
			fault: "a decoder that remembers the last message", property: "orders", says: "behind ping: the codec panics", shows: theCall,
			codec: broken{newDecoder: func() codecs.Decoder {
				var pinged bool
				return decodeFunc(func(buf []byte, m *codecs.Metadata) (int, error) {
					n, err := newToy(codecs.Limits{}).Decode(buf, m)
					if err == nil && n <= len(buf) {
						if pinged && m.Type == codecs.Request {
							panic("the wrong turning")
						}
						pinged = m.Type == codecs.Heartbeat
					}
					return n, err
				})
			}},
		},
		{
			fault: "a decoder that does not forget where it was", property: "orders", says: "behind ", shows: nil,
			codec: broken{newDecoder: func() codecs.Decoder {
				at := 0
				return decodeFunc(func(buf []byte, m *codecs.Metadata) (int, error) {
					n, err := newToy(codecs.Limits{}).Decode(buf[min(at, len(buf)-1):], m)
					if m.Type == codecs.Response {
						at = n
					}
					return n, err
				})
			}},
		},
		{
			fault: "a third message that is another for the first two", property: "orders", says: "the order of lot", shows: nil,
			codec: broken{newDecoder: func() codecs.Decoder {
				seen := map[codecs.MessageType]bool{}
				return decodeFunc(func(buf []byte, m *codecs.Metadata) (int, error) {
					n, err := newToy(codecs.Limits{}).Decode(buf, m)
					if err == nil && n <= len(buf) {
						if seen[codecs.Oneway] && seen[codecs.Heartbeat] && m.Type == codecs.Request {
							m.Status = codecs.StatusError
						}
						seen[m.Type] = true
					}
					return n, err
				})
			}},
		},
		{
			fault: "a suite that excuses a connection's state that is not there", property: "orders", says: `it is excused as "stateful", and has no need to be`,
			suite: func(s *Suite) { s.Frames[0].Excuses = Excuses{Stateful: "it is said"} },
		},
		{
			fault: "a request whose sender leaves", property: "splits", says: "GoesAway is set on a request", shows: theCall,
			codec: broken{decode: whole(func(_ []byte, m *codecs.Metadata) { m.GoesAway = true })},
		},
		{
			fault: "a success that was not processed", property: "splits", says: "NotProcessed is set on a response", shows: theAnswer,
			codec: broken{decode: whole(func(_ []byte, m *codecs.Metadata) { m.NotProcessed = isAnswer(m.Type) })},
		},
		{
			fault: "a goodbye of a server", property: "roles", says: "a server's message is decoded as a goodbye", shows: toyFrame(toyQuits, 0, "", ""),
			suite: func(s *Suite) {
				s.Frames = append(s.Frames, Frame{Name: "server quits", Direction: codecs.ServerToClient, Bytes: toyFrame(toyQuits, 0, "", "")})
			},
		},
		{
			fault: "a request behind which its sender may close", property: "splits", says: "MayClose is set on a request", shows: theCall,
			codec: broken{decode: whole(func(_ []byte, m *codecs.Metadata) { m.MayClose = true })},
		},
		{
			fault: "a client that answers, and leaves", property: "roles", says: "a client's message has GoesAway", shows: toyFrame(toyAnswer, 7, "away=yes", ""),
			suite: func(s *Suite) {
				s.Frames = append(s.Frames, Frame{Name: "client answers", Direction: codecs.ClientToServer, Bytes: toyFrame(toyAnswer, 7, "away=yes", "")})
			},
		},
		{
			fault: "a quiet request with an id", property: "roles", says: "the request is quiet, but no AnswerDecoder tells", shows: theTell,
			codec: broken{decode: whole(func(_ []byte, m *codecs.Metadata) {
				if m.Type == codecs.Oneway {
					m.Type = codecs.Quiet
				}
			})},
		},
		{
			fault: "a push of a client", property: "roles", says: "a client's message is decoded as a push", shows: theTell,
			codec: broken{decode: whole(func(_ []byte, m *codecs.Metadata) {
				if m.Type == codecs.Oneway {
					m.Type = codecs.Push
				}
			})},
		},
		{
			fault: "a push for nobody's connection", property: "roles", says: "connections are leased only where answers come in order", shows: toyFrame(toyLeaves, 0, "", ""),
			codec: broken{decode: whole(func(_ []byte, m *codecs.Metadata) {
				if m.Type == codecs.GoAway {
					m.Type = codecs.Push
				}
			})},
		},
		{
			fault: "a lease that nobody looks at", property: "roles", says: "it has Lease set, which is only looked at", shows: theCall,
			codec: broken{decode: whole(func(_ []byte, m *codecs.Metadata) {
				if m.Type == codecs.Request {
					m.Lease = codecs.LeaseHeld
				}
			})},
		},
		{
			fault: "a farewell that is none", property: "farewells", says: "it is decoded as a heartbeat", shows: thePing,
			codec: broken{leave: func(dst []byte) ([]byte, error) { return append(dst, thePing...), nil }},
		},
		{
			fault: "a farewell in the place of what was before", property: "farewells", says: "what stood before is gone", shows: nil,
			codec: broken{leave: func(dst []byte) ([]byte, error) { return append(dst[:0], toyFrame(toyLeaves, 0, "", "")...), nil }},
		},
		{
			fault: "an error that spoils what was encoded before", property: "mutation", says: "what stood before is gone", shows: theCall,
			codec: broken{encode: func(c *toy, dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
				if len(mut.Entries()) > 0 {
					clear(dst)
					return nil, codecs.ErrNoMutation
				}
				return c.Encode(dst, m, nil)
			}},
		},
		{
			fault: "an allocation", property: "allocations", says: "takes 1 allocations", shows: theCall,
			codec: broken{decode: whole(func([]byte, *codecs.Metadata) { sink = make([]byte, 8) })},
		},
		{
			fault: "a property in memory that all messages share", property: "independence", says: "something else", shows: theCall,
			codec: broken{decode: whole(func(buf []byte, m *codecs.Metadata) {
				kept = append(kept[:0], buf[4:8]...)
				m.Put([]byte("id"), kept)
			})},
		},
		{
			fault: "one decoder for all", property: "independence", says: "the frame is refused: toy: shrinks", shows: toyFrame(toyQuits, 0, "", ""),
			codec: broken{newDecoder: func() func() codecs.Decoder {
				half := 0 // bytes that it has seen of the frame
				return func() codecs.Decoder {
					half = 0
					return decodeFunc(func(buf []byte, m *codecs.Metadata) (int, error) {
						n, err := newToy(codecs.Limits{}).Decode(buf, m)
						if n > len(buf) {
							half = len(buf)
						} else if half > 0 && n < half {
							return toyFault(0, "shrinks")
						} else {
							half = 0
						}
						return n, err
					})
				}
			}()},
		},
		{
			fault: "a codec that remembers the last message", property: "independence", says: "encoded without a change", shows: theCall,
			codec: broken{
				decode: whole(func(_ []byte, m *codecs.Metadata) { last = *m }),
				encode: func(c *toy, dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
					id := m.ID
					if m.Raw[3] == toyCall && len(mut.Entries()) == 0 && m.ID == uint64(m.Raw[7]) {
						id = last.ID
					}
					return c.Encode(dst, &codecs.Metadata{Raw: m.Raw, ID: id, Scratch: m.Scratch, Malformed: m.Malformed}, mut)
				},
			},
		},
		{
			fault: "a codec for one worker only", property: "concurrency", says: "the codec panics", shows: []byte("toy"),
			codec: broken{decode: func(c *toy, buf []byte, m *codecs.Metadata) (int, error) {
				if !busy.CompareAndSwap(false, true) {
					panic("used by two at once")
				}
				defer busy.Store(false)
				runtime.Gosched()
				return c.Decode(buf, m)
			}},
		},
		{
			fault: "a frame that does not decode", property: "loading", says: "it is refused", shows: []byte("tox"),
			suite: func(s *Suite) { s.Frames[0].Bytes = []byte("tox") },
		},
		{
			fault: "a frame that is cut off", property: "loading", says: "it ends in the midst of a frame", shows: theCall[:20],
			suite: func(s *Suite) { s.Frames[0].Bytes = theCall[:20] },
		},
		{
			fault: "two frames for one", property: "loading", says: "it is not one frame", shows: slices.Concat(theCall, theCall),
			suite: func(s *Suite) { s.Frames[0].Bytes = slices.Concat(theCall, theCall) },
		},
		{
			fault: "a malformed frame that is not", property: "loading", says: "Malformed is not set", shows: theCall,
			suite: func(s *Suite) { s.Malformed[0].Bytes = theCall },
		},
		{
			fault: "another description", property: "loading", says: "want\noneway", shows: theCall,
			suite: func(s *Suite) { s.Frames[0].Want = "oneway" },
		},
		{
			fault: "a suite without errors", property: "coverage", says: "no error of a server",
			suite: func(s *Suite) {
				s.Frames = slices.DeleteFunc(s.Frames, func(f Frame) bool { return f.Bytes[3] == toyError })
			},
		},
		{
			fault: "a suite without mutations", property: "coverage", says: "add Mutations",
			suite: func(s *Suite) { s.Mutations = nil },
		},
		{
			fault: "a suite without hostile frames", property: "coverage", says: "nothing Hostile",
			suite: func(s *Suite) { s.Hostile = nil },
		},
		{
			fault: "a suite that excuses what does not allocate", property: "allocations", says: `call, client to server: it is excused as "allocates", and has no need to be`,
			suite: func(s *Suite) { s.Frames[0].Excuses = Excuses{Allocates: "it is said"} },
		},
		{
			fault: "a suite that excuses an id that is none of several", property: "ids", says: `it is excused as "loose id"`,
			suite: func(s *Suite) { s.Frames[0].Excuses = Excuses{LooseID: "it is said"} },
		},
		{
			fault: "a suite that excuses what can be changed", property: "mutation", says: `it is excused as "immutable"`,
			suite: func(s *Suite) { s.Frames[0].Excuses = Excuses{Immutable: "it is said"} },
		},
		{
			fault: "a suite that excuses a text that is there", property: "error_replies", says: `it is excused as "no error text"`,
			suite: func(s *Suite) { s.Frames[0].Excuses = Excuses{NoErrorText: "it is said"} },
		},
		{
			fault: "an excuse that nobody knows", property: "coverage", says: `there is no excuse "lazy"`,
			suite: func(s *Suite) { s.Frames[0].Excuses = Excuses{"lazy": "it is said"} },
		},
		{
			fault: "an excuse without a reason", property: "coverage", says: `the excuse "allocates" has no reason`,
			suite: func(s *Suite) { s.Frames[0].Excuses = Excuses{Allocates: ""} },
		},
		{
			fault: "excuses of a capture that is not there", property: "coverage", says: `there is no capture "none"`,
			suite: func(s *Suite) { s.CaptureExcuses = map[string]Excuses{"none": {Allocates: "it is said"}} },
		},
		{
			fault: "a codec that panics", property: "loading", says: "the codec panics: oh", shows: theCall,
			codec: broken{decode: func(*toy, []byte, *codecs.Metadata) (int, error) { panic("oh") }},
		},
	} {
		t.Run(tc.fault, func(t *testing.T) {
			s := toySuite()
			s.New = func(l codecs.Limits) (codecs.Codec, error) {
				c := tc.codec
				c.toy = newToy(l)
				return &c, nil
			}
			if tc.suite != nil {
				tc.suite(&s)
			}
			text := failures(s, tc.property)[tc.property]
			require.Contains(t, text, tc.says)
			if tc.shows != nil {
				first, _, _ := strings.Cut(hex.Dump(tc.shows), "|")
				require.Contains(t, text, strings.TrimSpace(first))
			}
		})
	}
	require.NotEmpty(t, kept)
}

// TestCaptures are replayed and compared with the golden file.
func TestCaptures(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, b []byte) { require.NoError(t, os.WriteFile(filepath.Join(dir, name), b, 0o600)) }
	write("a.c2s.bin", slices.Concat(theCall, theTell))
	write("a.s2c.bin", slices.Concat(theAnswer, theError))
	const golden = `# a.c2s.bin
request id=7 status=0 reply=false size=12+22 op=add op="add" tenant="acme"
oneway id=0 status=0 reply=false size=12+19 op=log op="log" tenant="acme"
# a.s2c.bin
response id=7 status=0 reply=false size=12+12 zone="south"
error id=7 status=2 reply=false size=12+3
`
	write("golden", []byte(golden))
	s := toySuite()
	s.Captures, s.Golden = []string{filepath.Join(dir, "*.bin")}, filepath.Join(dir, "golden")
	require.Empty(t, failures(s))

	write("golden", []byte(strings.Replace(golden, "op=log", "op=lag", 1)))
	require.Contains(t, failures(s)["golden"], "line 3, # a.c2s.bin\nwant oneway")

	write("golden", nil)
	*update = true
	defer func() { *update = false }()
	require.Empty(t, failures(s))
	b, err := os.ReadFile(s.Golden)
	require.NoError(t, err)
	require.Equal(t, golden, string(b))

	write("b.bin", theCall)
	require.Contains(t, failures(s)["loading"], "ends in .c2s.bin or .s2c.bin")
}

// TestACallThatHangs ends the test with its bytes.
func TestACallThatHangs(t *testing.T) {
	var d watchdog
	d.enter(where{name: "call"}, theCall)
	require.Empty(t, d.look(time.Now()))
	require.Contains(t, d.look(time.Now().Add(2*patience)), "call: the codec does not come back\n00000000  74 6f 79 43")
	d.leave()
	require.Empty(t, d.look(time.Now().Add(2*patience)))
}

// TestFuzzedBytesShowTheFault, whether seeds or not.
func TestFuzzedBytesShowTheFault(t *testing.T) {
	s := toySuite()
	s.New = func(l codecs.Limits) (codecs.Codec, error) {
		return &broken{toy: newToy(l), encode: encoded(func(out []byte, _ *codecs.Metadata, _ *codecs.Mutation) { out[len(out)-1] ^= 1 })}, nil
	}
	var r record
	c := newCheck(&r, &s, nil)
	require.NotNil(t, c)
	c.fuzzing(&r).fuzzDecode(c.inputs()(theCall), codecs.ClientToServer, c.normal())
	require.Contains(t, r.text.String(), "call, client to server, encoded without a change: it becomes\n00000000  74 6f 79 43")

	s.New = func(l codecs.Limits) (codecs.Codec, error) {
		return &broken{toy: newToy(l), reply: func(_ *toy, dst []byte, req *codecs.Metadata, e *codecs.LocalError) ([]byte, error) {
			return append(dst, toyFrame(toyError, uint32(req.ID), "", "")[:toyHead+1-len(e.Message)%2]...), nil
		}}, nil
	}
	r = record{}
	c = newCheck(&r, &s, nil)
	c.fuzzing(&r).fuzzEncode(c.inputs()(theCall), codecs.ClientToServer, Mutation{Key: "k", Value: "v"}, "odd", 1)
	require.Contains(t, r.text.String(), "Decode asks for 13 bytes")
}

// TestThePageShowsTheBytes of messages that were lent to the codec, and of long ones
// the ends.
func TestThePageShowsTheBytes(t *testing.T) {
	s := toySuite()
	s.New = func(l codecs.Limits) (codecs.Codec, error) {
		return &broken{toy: newToy(l), encode: func(_ *toy, dst []byte, _ *codecs.Metadata, _ *codecs.Mutation) ([]byte, error) {
			return dst, errors.New("no")
		}}, nil
	}
	var found faults
	c := newCheck(&found, &s, nil)
	found.property = "round_trip"
	c.run(&found, property{"round_trip", (*check).roundTrip})
	require.Contains(t, found.String(), hex.Dump(thePing))

	long := dump([]byte(strings.Repeat("a long story. ", 3000)))
	require.Equal(t, 13, strings.Count(long, "\n"))
	require.Contains(t, long, "... (42000 bytes in all, the last of them:)\n")
	require.Equal(t, hex.Dump(make([]byte, maxDump)), dump(make([]byte, maxDump)))
}

// TestTheREADME says what is so.
func TestTheREADME(t *testing.T) {
	b, err := os.ReadFile("README.md")
	require.NoError(t, err)
	readme := string(b)
	for _, p := range properties {
		require.Contains(t, readme, "`"+p.name+"`")
	}
	s := toySuite()
	s.New = func(l codecs.Limits) (codecs.Codec, error) {
		return &broken{toy: newToy(l), encode: otherByte}, nil
	}
	require.Contains(t, readme, "```text\n"+page(s).String()+"```")
	example, err := os.ReadFile("../../examples/custom-protocol/parley/codec_test.go")
	require.NoError(t, err)
	snippets := regexp.MustCompile("(?ms)^```go\n(.*?)^```$").FindAllStringSubmatch(readme, -1)
	require.NotEmpty(t, snippets)
	for _, snippet := range snippets {
		require.Contains(t, string(example), snippet[1])
	}
}
