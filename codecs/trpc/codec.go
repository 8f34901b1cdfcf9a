// Package trpc is the codec of the tRPC protocol: unary calls, oneways and
// streams.
//
// The protocol is that of https://github.com/trpc-group/trpc, in its
// docs/en/trpc_protocol_design.md and trpc/trpc.proto.
package trpc

import (
	"fmt"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/property"
)

// Name is the codec's config name.
const Name = "aeraki.meta_protocol.codec.trpc"

const configType = "aeraki.meta_protocol.codec.TrpcCodec"

const (
	// maxFrame is the default max frame size of tRPC-Go, in bytes.
	maxFrame = 10 << 20
	// maxHeader is the longest header of a unary frame, in bytes: its length
	// has 16 bits.
	maxHeader = 1<<16 - 1
	// maxEntries is how many entries a message's trans_info may have.
	maxEntries = property.MaxEntries
)

func init() { codecs.Register(Name, New) }

// New makes the codec. It has no options.
func New(config *anypb.Any, limits codecs.Limits) (codecs.Codec, error) {
	if config != nil && config.MessageName() != configType {
		return nil, fmt.Errorf("type_url: want %s, got %s", configType, config.MessageName())
	}
	c := &codec{maxFrame: limits.MaxFrameBytes}
	if c.maxFrame == 0 {
		c.maxFrame = maxFrame
	}
	return c, nil
}

type codec struct{ maxFrame int }

// Traits implements codecs.Codec.
func (c *codec) Traits() codecs.Traits {
	return codecs.Traits{
		Correlation: codecs.ByID, MaxID: 1<<32 - 1, ShareByDefault: true,
		Attributes: []string{"caller", "callee", "func", "content_type", "content_encoding", "message_type"},
	}
}

// NewDecoder implements codecs.Codec.
func (c *codec) NewDecoder(d codecs.Direction) codecs.Decoder {
	return &decoder{codec: c, dir: d}
}

// What the codec keeps in Metadata.Scratch.
const (
	scratchID      = iota // offset in Raw of the header's request_id, behind its tag; 0: none
	scratchFlags          // the flags below
	scratchVersion        // of the fixed header
	scratchEntries        // how many entries trans_info has
	// What an answer repeats of its call.
	scratchCallType
	scratchMessageType
	scratchContentType
	scratchContentEncoding
)

const (
	// flagFixedID says that the fixed header of a unary frame has the request's
	// id too.
	flagFixedID = 1 << iota
	// flagBroken says that a unary frame has no header that could be read to
	// its end.
	flagBroken
	// flagRequest says that the message is what a client asks for.
	flagRequest
)

// Sniff implements codecs.Sniffer: by the fixed header up to the length of the
// other one. A connection begins with a call or with the INIT of a stream.
func (c *codec) Sniff(b []byte) codecs.Guess {
	_, reason := fault(b)
	switch {
	case reason != "", len(b) > atStreamType && b[atStreamType] != b[atType]*streamInit:
		return codecs.No
	case len(b) < atID:
		return codecs.Maybe
	}
	if _, reason = headerFault(b); reason != "" || b[atType] == typeUnary && headerLength(b) == 0 {
		return codecs.No
	}
	return codecs.Yes
}

// CheckMutation implements codecs.Mutator: keys are those of trans_info.
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
