package codectest

import (
	"github.com/meltemi-mesh/meltemi/codecs"
)

// Suite describes a codec to [Run], [FuzzDecode] and [FuzzEncode]. New and some
// Captures or Frames are needed; what else is, the property "coverage" tells.
// The rest says what the codec can do, and what it is excused from.
type Suite struct {
	// New makes the codec under test with the given limits.
	New func(codecs.Limits) (codecs.Codec, error)

	// Captures are glob patterns of recorded files, each the bytes of one
	// direction of one connection. Their names end in .c2s.bin or .s2c.bin,
	// which tells the direction. A capture ends with a whole frame.
	Captures []string
	// Golden is the file that says how the captures decode, a [Describe] for
	// each frame. The flag -update rewrites it. "" if there is none.
	Golden string
	// Frames are single frames made by hand, of what captures lack.
	Frames []Frame
	// Invalid are bytes that must be refused.
	Invalid []Invalid
	// Malformed are frames that are sound but whose content cannot be read:
	// Decode sets Metadata.Malformed and the connection lives on.
	Malformed []Frame
	// Hostile are large frames, of a megabyte perhaps, each the worst of its
	// kind: what they cost is held against their size. They may be refused.
	Hostile []Frame

	// Mutations are tried on the messages of their direction, one at a time and
	// all together. Needed if the codec is a codecs.Mutator.
	Mutations []Mutation
	// Refused are mutations that CheckMutation must not let pass.
	Refused []Mutation
	// Immutable tells the messages that cannot carry a mutation: those for which
	// Encode may return codecs.ErrNoMutation. Malformed ones always may.
	Immutable func(frame string, m *codecs.Metadata) bool

	// LooseIDs are the names of captures and frames whose messages, given another
	// id and then their own again, need not have their old bytes again, but only
	// mean the same: there are several ways to write an id, or to leave it out.
	LooseIDs []string
	// Stateful are the names of captures and frames that leave a connection in
	// another state, or find it in one, though they are not of streams and have no
	// prelude: they are not decoded behind others.
	Stateful []string
	// NoErrorText says that the text of a local error does not go onto the wire
	// as it is.
	NoErrorText bool
	// OwnForeign are the protocols of [Foreign] that are the codec's own.
	OwnForeign []string
	// Allocates has the names of captures and frames that need not decode and
	// encode without allocating, with the reason.
	Allocates map[string]string
}

// Frame is one frame made by hand.
type Frame struct {
	// Name in a few words, unique in the suite.
	Name      string
	Direction codecs.Direction
	Bytes     []byte
	// Prelude is what was sent before on the same connection, in whole frames.
	Prelude []byte
	// Requests are the frames whose answers Prelude and Bytes are, for a
	// codecs.AnswerDecoder to see.
	Requests []byte
	// Want is what Describe says of the frame; "" if that does not matter.
	Want string
}

// Invalid are bytes that Decode must refuse: with a *codecs.ProtocolError, or a
// *codecs.TooLarge if only their size is wrong. The fault may stand behind whole
// frames.
type Invalid struct {
	Name      string
	Direction codecs.Direction
	Bytes     []byte
}

// Mutation is a change to try.
type Mutation struct {
	Direction  codecs.Direction
	Key, Value string
	// Property is the name under which the key is seen when the message is
	// decoded again; "" if it is the key.
	Property string
}

func (m Mutation) property() string {
	if m.Property != "" {
		return m.Property
	}
	return m.Key
}
