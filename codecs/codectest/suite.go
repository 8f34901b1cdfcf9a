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
	// Prefaces are what servers answer to what AppendPreface appends, Resets to what
	// AppendReset does: at least one of each that is refused, and for each variant of
	// requests one that is not. Needed if the codec is a codecs.Prefacer or Resetter.
	Prefaces, Resets []Welcome

	// Immutable tells which messages have the excuse of that name, where that
	// depends on what they are.
	Immutable func(frame string, m *codecs.Metadata) bool

	// Opaque tells which messages have the excuse of that name, where that depends on
	// what they are.
	Opaque func(frame string, m *codecs.Metadata) bool

	// NoErrorText gives all messages the excuse of that name.
	NoErrorText bool
	// OwnForeign are the protocols of [Foreign] that are the codec's own.
	OwnForeign []string
	// AnyAnswer says that a codecs.AnswerDecoder takes any answer for that to any
	// request: by nothing in it can be told that it does not belong.
	AnyAnswer bool
	// CaptureExcuses are those of captures, by the name of the file. A Frame has its
	// own.
	CaptureExcuses map[string]Excuses
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
	// codecs.AnswerDecoder to see. Answers without are those that nobody has asked
	// for.
	Requests []byte
	// Want is what Describe says of the frame; "" if that does not matter.
	Want string
	// Excuses of the frame.
	Excuses Excuses
}

// Invalid are bytes that Decode must refuse: with a *codecs.ProtocolError, or a
// *codecs.TooLarge if only their size is wrong. The fault may stand behind whole
// frames.
type Invalid struct {
	Name      string
	Direction codecs.Direction
	Bytes     []byte
	// Requests are the frames that wait for answers, as of a Frame: Bytes are not
	// theirs, or no answer at all.
	Requests []byte
}

// Welcome is what a server says on a new connection, or one that is made clean.
type Welcome struct {
	Name    string
	Variant uint8
	// Answers to all the requests that the codec has appended, in whole frames.
	Answers []byte
	// Refused says that the connection must not be used: an answer is none, or the
	// codec's check of one returns an error.
	Refused bool
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
