// Package brpc is the codec of bRPC's own protocol, baidu_std, with its
// streams (streaming_rpc).
package brpc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire"
	"github.com/meltemi-mesh/meltemi/codecs/internal/property"
)

// Name is the codec's config name.
const Name = "aeraki.meta_protocol.codec.brpc"

const configType = "aeraki.meta_protocol.codec.BrpcCodec"

// The 12-byte header: magic, length of the body, length of the meta, with which
// the body begins; both in network byte order.
const (
	headerSize = 12
	atBodySize = 4
	atMetaSize = 8

	magicRPC    = "PRPC"
	magicStream = "STRM"

	// maxBody is brpc's default max_body_size, in bytes.
	maxBody = 64 << 20
	// maxMeta is the longest meta, in bytes, of what is served. It holds names,
	// credentials and attributes; what is large travels in the rest of the body.
	maxMeta = 1 << 20
	// maxFields is how many user and extension fields a message may have.
	maxFields = property.MaxEntries
)

func init() { codecs.Register(Name, New) }

// New makes the codec. It has no options.
func New(config *anypb.Any, limits codecs.Limits) (codecs.Codec, error) {
	if config != nil && config.MessageName() != configType {
		return nil, fmt.Errorf("type_url: want %s, got %s", configType, config.MessageName())
	}
	c := &codec{maxFrame: limits.MaxFrameBytes}
	if c.maxFrame == 0 {
		c.maxFrame = headerSize + maxBody
	}
	return c, nil
}

type codec struct{ maxFrame int }

// Traits implements codecs.Codec.
func (c *codec) Traits() codecs.Traits {
	return codecs.Traits{
		Correlation: codecs.ByID, MaxID: 1<<63 - 1, ShareByDefault: true,
		Attributes: []string{"service", "method", "compress_type", "attachment_size"},
	}
}

// NewDecoder implements codecs.Codec.
func (c *codec) NewDecoder(d codecs.Direction) codecs.Decoder {
	return &decoder{codec: c, dir: d}
}

// What the codec keeps in Metadata.Scratch, of requests and answers.
const (
	scratchRPC       = iota // offset in Raw of the PRPC frame: not 0 within a stream frame
	scratchMetaEnd          // offset in Raw at which the meta ends
	scratchID               // offset in Raw of the correlation id, behind its tag; 0: none
	scratchExtFields        // how many extension fields a request has
	scratchFields           // how many of those and user fields a message has
)

// errTooLarge: the server would end the connection, which others share.
var errTooLarge = errors.New("with another id it would become larger than the limits")

// Encode implements codecs.Codec.
func (c *codec) Encode(dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	if mut != nil && (mut.ChangesAttributes() || mut.Replaces() || numbersOf(m, mut) != (numbers{})) {
		out, err := c.mutate(dst, m, mut)
		if err == nil || mut.ChangesAttributes() || mut.Replaces() {
			return out, err
		}
		// It cannot say how long its client waits.
	}
	switch {
	case !carriesID(m.Type), m.FixedID:
		return append(dst, m.Raw...), nil
	}
	var id uint64
	at, n := int(m.Scratch[scratchID]), 0
	if at > 0 {
		id, n = pbwire.Uvarint(m.Raw[at:])
	}
	if id == m.ID {
		return append(dst, m.Raw...), nil
	}
	start := len(dst)
	if at > 0 {
		dst = append(dst, m.Raw[:at]...)
		dst = binary.AppendUvarint(dst, m.ID)
	} else {
		at = int(m.Scratch[scratchMetaEnd])
		dst = append(dst, m.Raw[:at]...)
		dst = pbwire.AppendVarint(dst, fieldCorrelationID, m.ID)
	}
	dst = append(dst, m.Raw[at+n:]...)
	if len(dst)-start > c.maxFrame {
		return dst[:start], errTooLarge
	}
	resize(dst[start:], m, len(dst)-start-len(m.Raw), 0)
	return dst, nil
}

// carriesID reports whether messages of type t have a correlation id.
func carriesID(t codecs.MessageType) bool {
	switch t {
	case codecs.Request, codecs.Response, codecs.Error, codecs.StreamInit:
		return true
	default:
		return false
	}
}

// resize makes good the lengths in frame, a copy of m.Raw whose meta has grown
// by some bytes, and what is behind it by others.
func resize(frame []byte, m *codecs.Metadata, meta, rest int) {
	if meta == 0 && rest == 0 {
		return
	}
	grow := func(at, more int) {
		binary.BigEndian.PutUint32(frame[at:], uint32(int(binary.BigEndian.Uint32(frame[at:]))+more))
	}
	rpc := int(m.Scratch[scratchRPC])
	grow(rpc+atBodySize, meta+rest)
	grow(rpc+atMetaSize, meta)
	if rpc > 0 {
		grow(atBodySize, meta+rest)
	}
}

// EncodeError implements codecs.Codec. The answer has no payload, as brpc's own
// servers' have when a call has failed.
func (c *codec) EncodeError(dst []byte, req *codecs.Metadata, e *codecs.LocalError) ([]byte, error) {
	start := len(dst)
	dst = appendHead(dst)
	dst, mark := pbwire.AppendFrame(dst, fieldResponse)
	dst = pbwire.AppendVarint(dst, responseErrorCode, uint64(codeOf(e)))
	dst = pbwire.AppendBytes(dst, responseErrorText, strings.ToValidUTF8(e.Message, "?"))
	dst = pbwire.CloseFrame(dst, mark)
	dst = pbwire.AppendVarint(dst, fieldCorrelationID, req.ID)
	closeHead(dst[start:], len(dst)-start-headerSize)
	return dst, nil
}

// Sniff implements codecs.Sniffer. A connection does not begin with a stream's
// frame.
func (c *codec) Sniff(b []byte) codecs.Guess {
	n := min(len(b), len(magicRPC))
	switch {
	case string(b[:n]) != magicRPC[:n]:
		return codecs.No
	case n < len(magicRPC):
		return codecs.Maybe
	default:
		return codecs.Yes
	}
}

// CheckMutation implements codecs.Mutator: keys are those of user fields.
func (c *codec) CheckMutation(_ codecs.Direction, key, value string) error {
	if err := codecs.CheckText(key, value); err != nil {
		return err
	}
	if own.Has([]byte(key)) {
		return fmt.Errorf("key: %q belongs to the call itself and cannot be changed", key)
	}
	return nil
}

// CheckRemoval implements codecs.Remover.
func (c *codec) CheckRemoval(d codecs.Direction, key string) error {
	return c.CheckMutation(d, key, "")
}
