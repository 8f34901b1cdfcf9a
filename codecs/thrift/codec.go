// Package thrift is the codec of Apache Thrift: framed, unframed and header
// transport and Kitex's TTHeader, with the binary protocol, strict or not, and
// the compact protocol, told apart by the first bytes of each message.
package thrift

import (
	"encoding/binary"
	"errors"
	"fmt"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// Name is the codec's config name.
const Name = "aeraki.meta_protocol.codec.thrift"

const configType = "aeraki.meta_protocol.codec.ThriftCodec"

// transient is before the names of what Kitex hands on for one hop (package metainfo).
const transient = "RPC_TRANSIT_"

const (
	// maxFrame is the largest frame that Apache Thrift's own servers take
	// (TConfiguration's default max frame size).
	maxFrame = 16384000
	// maxName bounds "service:method".
	maxName = 4096
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

// The properties of the protocol itself. Headers of these names are none.
const (
	propMethod    = "method"
	propService   = "service"
	propTransport = "transport"
	propProtocol  = "protocol"
)

// Traits implements codecs.Codec.
func (c *codec) Traits() codecs.Traits {
	return codecs.Traits{
		Correlation: codecs.ByID, MaxID: 1<<31 - 1, HiddenOneway: true,
		Attributes: []string{propMethod, propService, propTransport, propProtocol},
	}
}

// NewDecoder implements codecs.Codec.
func (c *codec) NewDecoder(d codecs.Direction) codecs.Decoder { return &decoder{codec: c, dir: d} }

// What the codec keeps in Metadata.Scratch.
const (
	scratchForm    = iota // the form, and flags
	scratchMessage        // offset of the message in the frame
	scratchSeqid          // offset of its sequence id
	scratchSeqLen         // length of that, in bytes
	scratchInfo           // header transports: offset of the header's key-value part
	scratchInner          // TTHeader over framed: offset of the inner length
	scratchInnerID        // the message's own sequence id, where the header's is the id
)

// Flags beside the form.
const (
	// transformed: the message is compressed, only the header can be changed.
	transformed = 1 << 8
	// headerID: the id is that of the header, though there is another.
	headerID = 1 << 10
	// noInfo: the header has parts that are not known, nothing can be added.
	noInfo = 1 << 9
)

// Encode implements codecs.Codec.
func (c *codec) Encode(dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	start := len(dst)
	shift := 0 // by how much the message moves
	f := form(m.Scratch[scratchForm] & 0xff)
	if len(m.Raw)+room(m) > c.maxFrame {
		return dst, errTooLarge
	}
	// That its server leaves does not mean that the proxy does.
	leaves := m.GoesAway && m.Scratch[scratchForm]&noInfo == 0
	if mut.ChangesAttributes() || leaves || mut.Marks() && hasMarks(m) {
		var err error
		dst, err = c.mutate(dst, m, mut)
		switch {
		case err == nil:
			shift = len(dst) - start - len(m.Raw)
		case !mut.ChangesAttributes() && !leaves: // it cannot say more of itself
			dst = append(dst[:start], m.Raw...)
		default:
			return dst, err
		}
	} else {
		dst = append(dst, m.Raw...)
	}
	if mut.Replaces() {
		var err error
		if dst, err = c.replace(dst, start, shift, m, mut); err != nil {
			return dst[:start], mut.Refuse(err)
		}
	}
	if m.ID == idOf(m) {
		return dst, nil // in however many bytes, and in whichever place
	}
	if f.hasHeader() {
		binary.BigEndian.PutUint32(dst[start+seqidAt:], uint32(m.ID))
	}
	if m.Scratch[scratchForm]&transformed != 0 {
		return dst, nil
	}
	at, n := start+shift+int(m.Scratch[scratchSeqid]), int(m.Scratch[scratchSeqLen])
	if f.protocol() != compact {
		binary.BigEndian.PutUint32(dst[at:], uint32(m.ID))
		return dst, nil
	}
	var id [binary.MaxVarintLen32]byte
	k := binary.PutUvarint(id[:], uint64(uint32(m.ID)))
	if k == n {
		copy(dst[at:], id[:k])
		return dst, nil
	}
	dst = append(dst, id[:max(k-n, 0)]...) // any bytes: room for the longer id
	copy(dst[at+k:], dst[at+n:len(dst)-max(k-n, 0)])
	copy(dst[at:], id[:k])
	dst = dst[:len(dst)+min(k-n, 0)]
	if f.transport() != unframed {
		addTo(dst[start:], k-n)
	}
	if inner := m.Scratch[scratchInner]; inner != 0 {
		addTo(dst[start+shift+int(inner):], k-n)
	}
	return dst, nil
}

// idOf returns the sequence id that m has come with.
func idOf(m *codecs.Metadata) uint64 {
	flags, at := m.Scratch[scratchForm], m.Scratch[scratchSeqid]
	if flags&(transformed|headerID) != 0 {
		at = seqidAt
	} else if form(flags&0xff).protocol() == compact {
		id, _ := uvarint(m.Raw[at:])
		return id
	}
	return uint64(binary.BigEndian.Uint32(m.Raw[at:]))
}

// errTooLarge: the server would end the connection, which others may share.
var errTooLarge = errors.New("with another id it may become larger than the limits")

// room is by how much m grows with the longest of sequence ids, so that whoever
// is next says the same.
func room(m *codecs.Metadata) int {
	f := form(m.Scratch[scratchForm] & 0xff)
	if f.protocol() != compact || m.Scratch[scratchForm]&transformed != 0 {
		return 0
	}
	return binary.MaxVarintLen32 - int(m.Scratch[scratchSeqLen])
}

// addTo changes the 32-bit length at the start of b.
func addTo(b []byte, n int) {
	binary.BigEndian.PutUint32(b, uint32(int(binary.BigEndian.Uint32(b))+n))
}

// CheckMutation implements codecs.Mutator: keys are names of headers, which
// header transports carry in both directions.
func (c *codec) CheckMutation(_ codecs.Direction, key, value string) error {
	if err := codecs.CheckText(key, value); err != nil {
		return err
	}
	if isCall(key) {
		return fmt.Errorf("key: %q belongs to the call itself and cannot be changed", key)
	}
	return nil
}

// ContextPrefix implements codecs.ContextCarrier: header transports carry context, and
// Kitex hands on what has the prefix of its metainfo.
func (c *codec) ContextPrefix(m *codecs.Metadata) (string, bool) {
	f := form(m.Scratch[scratchForm] & 0xff)
	switch {
	case f == 0 || !f.hasHeader() || m.Scratch[scratchForm]&noInfo != 0:
		return "", false
	case f.transport() == header:
		return "", true
	default:
		return transient, true
	}
}

// CheckRemoval implements codecs.Remover.
func (c *codec) CheckRemoval(d codecs.Direction, key string) error {
	if likeCall(key) {
		return fmt.Errorf("key: %q belongs to the call itself and cannot be changed", key)
	}
	return c.CheckMutation(d, key, "")
}
