// Package memcached is a codec of memcached's text protocol, meta commands
// included. The README of the folder above says what it does and does not.
package memcached

import (
	"cmp"
	"fmt"
	"strings"

	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meltemi-mesh/meltemi/codecs"
)

const (
	// Name is the codec's config name.
	Name = "example.codec.memcached"

	// Those of memcached itself.
	maxKey  = 250
	maxLine = 2048
	// maxKeys is how long a line with the keys of a get may be.
	maxKeys = 1 << 20

	defaultMaxFrame = 16 << 20
	maxText         = 1000 // of an error
)

func init() { codecs.Register(Name, New) }

// New makes the codec. Its option is a google.protobuf.StringValue, the delimiter
// that ends the prefix of a key; without it that is a colon.
func New(config *anypb.Any, limits codecs.Limits) (codecs.Codec, error) {
	c := &codec{maxFrame: cmp.Or(limits.MaxFrameBytes, defaultMaxFrame), delimiter: []byte(":")}
	if config != nil {
		var delimiter wrapperspb.StringValue
		if err := config.UnmarshalTo(&delimiter); err != nil {
			return nil, fmt.Errorf("want a google.protobuf.StringValue, the delimiter: %w", err)
		}
		if delimiter.Value == "" || strings.ContainsAny(delimiter.Value, " \r\n\x00") {
			return nil, fmt.Errorf("value: %q cannot be in a key", delimiter.Value)
		}
		c.delimiter = []byte(delimiter.Value)
	}
	return c, nil
}

type codec struct {
	maxFrame  int
	delimiter []byte
}

// Traits implements codecs.Codec.
func (c *codec) Traits() codecs.Traits {
	return codecs.Traits{
		Correlation: codecs.InOrder, ShareByDefault: true, Attributes: []string{"command", "prefix"},
	}
}

// NewDecoder implements codecs.Codec.
func (c *codec) NewDecoder(d codecs.Direction) codecs.Decoder {
	if d == codecs.ClientToServer {
		return &requests{codec: c}
	}
	return &answers{codec: c}
}

// What Decode keeps of a request in Metadata.Scratch.
const (
	scratchKind    = iota // a kind
	scratchReply          // if it is malformed, the number of its answer in replies
	scratchQuietAt        // where its flag q is, and how long
	scratchQuietLen
	scratchKey // how long its key is in ReplyInfo, before the opaque (meta commands)
)

// Answers that memcached gives to what it does not take. The codec gives them
// itself: a server that closes a connection over it, or that forgets the answers
// before it as memcached does with a get of too long a key, closes it for all.
const (
	tooLarge = iota + 1
	unknown
	badFormat
	badData
	badDelete
	badKey
	badFlag
	duplicateFlag
	tooManyFlags
	tooManyFlagsOfGet
	severalPrefixes
)

var replies = [...]struct{ text, why string }{
	tooLarge:          {"SERVER_ERROR object too large for cache\r\n", "too large"},
	unknown:           {"ERROR\r\n", "an unknown command, or too few or many words"},
	badFormat:         {"CLIENT_ERROR bad command line format\r\n", "a bad key or number"},
	badData:           {"CLIENT_ERROR bad data chunk\r\n", "data that do not end where they should"},
	badDelete:         {"CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]\r\n", "a delete with a time"},
	badKey:            {"CLIENT_ERROR error decoding key\r\n", "a key that is not base64"},
	badFlag:           {"CLIENT_ERROR invalid or duplicate flag\r\n", "a flag twice, or a key that is not base64"},
	duplicateFlag:     {"CLIENT_ERROR duplicate flag\r\n", "a flag twice"},
	tooManyFlags:      {"CLIENT_ERROR options flags too long\r\n", "too many flags"},
	tooManyFlagsOfGet: {"CLIENT_ERROR options flags are too long\r\n", "too many flags"},
	severalPrefixes:   {"CLIENT_ERROR the keys of one command must have one prefix\r\n", "keys of several prefixes"},
}

// Encode implements codecs.Codec. The flag q is blanked out, so that the server
// answers in all cases: what the client did not want to hear is Silent then.
func (c *codec) Encode(dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	if len(mut.Entries()) > 0 {
		return dst, codecs.ErrNoMutation
	}
	at := len(dst)
	dst = append(dst, m.Raw...)
	if m.Type == codecs.Quiet {
		q := dst[at+int(m.Scratch[scratchQuietAt]):][:m.Scratch[scratchQuietLen]]
		for i := range q {
			q[i] = ' '
		}
	}
	return dst, nil
}

// EncodeError implements codecs.Codec. A request that is too large for the codec is
// answered as one that is too large for memcached.
func (c *codec) EncodeError(dst []byte, req *codecs.Metadata, e *codecs.LocalError) ([]byte, error) {
	if e.Type == codecs.BadRequest {
		return append(dst, replies[cmp.Or(req.Scratch[scratchReply], tooLarge)].text...), nil
	}
	dst = append(dst, "SERVER_ERROR "...)
	text := cmp.Or(e.Message, e.Type.String())
	for _, b := range []byte(text[:min(maxText, len(text))]) {
		dst = append(dst, max(b, ' '))
	}
	return append(dst, "\r\n"...), nil
}

// EncodeHeartbeat implements codecs.Heartbeater: mn is answered when all before it
// is.
func (c *codec) EncodeHeartbeat(dst []byte, _ *codecs.Metadata) ([]byte, error) {
	return append(dst, "MN\r\n"...), nil
}

func fault(offset int, reason string) (int, error) {
	return 0, &codecs.ProtocolError{Protocol: "memcached", Offset: offset, Reason: reason}
}
