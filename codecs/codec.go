// Package codecs holds the contract between Meltemi's pipeline and a protocol,
// and the registry in which codecs are found by name.
//
// A codec turns bytes into [Metadata] and Metadata, with a [Mutation], back
// into bytes. It knows nothing of connections, clusters or Envoy. One [Codec]
// value serves all connections and workers of a listener at once, so it is
// immutable; what must be remembered between two reads of one connection lives
// in its [Decoder].
package codecs

import (
	"errors"
	"fmt"
	"unicode/utf8"
)

// Direction tells which way the bytes of a decoder travel.
type Direction uint8

const (
	// ClientToServer bytes are what clients send: requests, oneways, heartbeats.
	ClientToServer Direction = iota
	// ServerToClient bytes are what servers send: responses, events, heartbeats.
	ServerToClient
)

func (d Direction) String() string {
	if d == ClientToServer {
		return "client to server"
	}
	return "server to client"
}

// Correlation is how a protocol's responses find their requests.
type Correlation uint8

const (
	// ByID: every message carries an id, responses come in any order. Many
	// clients may share one upstream connection; their ids are rewritten.
	ByID Correlation = iota
	// InOrder: a server answers the requests of one connection in the order in
	// which they came, pipelining allowed. Those of one client to one cluster
	// reach it in the order in which the client sent them, oneways too.
	InOrder
	// Exclusive: one request at a time on an upstream connection. Those that a
	// client sends without waiting for answers are served at once, on several
	// connections: where that must not be, a codec is InOrder.
	Exclusive
)

// Traits are the fixed facts of a codec.
type Traits struct {
	// Correlation declared by the protocol.
	Correlation Correlation
	// MaxID is the largest request id the protocol can carry; 0 where it has
	// none. The pipeline only rewrites ids into [0, MaxID].
	MaxID uint64
	// ShareByDefault says that upstream connections are shared when the config
	// does not say (Dubbo, bRPC, tRPC: yes; Thrift: no).
	ShareByDefault bool
	// HiddenOneway says that a Request, unless it ExpectsReply, may be one that
	// gets no answer, without the wire telling (Thrift: Go's clients send
	// oneways as calls). Such a request is delivered even if its client has
	// gone, and no timeout is reported for one that its client did not wait for.
	HiddenOneway bool
	// SuccessCode is the [Metadata.Code] of answers that are a success; 0 in most
	// protocols.
	SuccessCode int32
	// Attributes are the names, in lower case, that the codec itself puts into
	// every request's metadata. Names that the messages bring along are not
	// listed.
	Attributes []string
}

// Codec is one protocol with its configuration. It is immutable and used by
// all workers at once.
type Codec interface {
	// Traits returns the fixed facts of the protocol. It costs nothing.
	Traits() Traits

	// NewDecoder returns the decoder of one direction of one connection. A
	// codec without state between frames may return the same value each time.
	NewDecoder(d Direction) Decoder

	// Encode appends the message m to dst and returns the extended slice: the
	// frame m.Raw carrying the id m.ID (which the pipeline may have changed
	// since Decode) and the changes of mut. mut is nil when nothing changes.
	// It must not modify m.Raw, and must not keep it or dst. An error means
	// that nothing useful was appended; the caller truncates.
	//
	// Of a request that is tried again m.Raw is a copy of the frame, and properties
	// and operation may be gone: it appends what it did before, by m.Raw, scalars,
	// Scratch and ReplyInfo.
	Encode(dst []byte, m *Metadata, mut *Mutation) ([]byte, error)

	// EncodeError appends a local reply in the protocol that ends the request
	// req with e. The frame of req may be gone: only its scalar fields, Scratch
	// and ReplyInfo are valid. Never called for messages that expect no answer.
	EncodeError(dst []byte, req *Metadata, e *LocalError) ([]byte, error)
}

// Decoder decodes one direction of one connection. It is used by one goroutine
// at a time.
type Decoder interface {
	// Decode decodes the first frame of buf, which is never empty, into m,
	// which was Reset before.
	//
	// It returns the frame's length n. n ≤ len(buf): the frame is whole, m is
	// filled, m.Raw is buf[:n]. n > len(buf): the frame is not whole; Decode
	// need not be called again before n bytes are there (len(buf)+1 if more
	// cannot be told), and it is then called again with the same bytes from
	// the start. A returned error is final for the connection, unless it is a
	// [*TooLarge].
	//
	// buf belongs to the caller and is valid only while m is; the decoder keeps
	// no part of it. Views of it may be put into m. buf may be host memory: it
	// must not be written to.
	Decode(buf []byte, m *Metadata) (n int, err error)
}

// AnswerDecoder is a Decoder of the bytes of servers whose answers have no ids, if
// what a frame is, or whether it can be the answer at all, depends on the request.
// It is called in place of Decode.
type AnswerDecoder interface {
	// DecodeAnswer is Decode for the answer to req, the first request that waits
	// on the connection, nil if none does. Of req only the scalar fields, Scratch
	// and ReplyInfo are valid. It is called anew for each event, with the req of
	// that moment. An error, also one that says that the answer does not belong to
	// req, ends the connection before anybody gets it; but for [ErrUnanswered].
	// What Encode, which has the answer only, must know of the request it leaves in
	// m's Scratch or ReplyInfo.
	DecodeAnswer(buf []byte, m, req *Metadata) (n int, err error)
}

// Prefacer is implemented by codecs whose servers want to hear something on a new
// connection before its first request: a handshake, credentials, a database.
type Prefacer interface {
	// AppendPreface appends requests in the wire form variant, which are sent at
	// once. The connection is used when all of them have been answered; a Oneway
	// among them is not waited for. Nothing appended: there is none.
	AppendPreface(dst []byte, variant uint8) ([]byte, error)
	// CheckPreface looks at the answer to req, one of those requests; the answer's
	// frame is valid, and of req what outlives its own. An error closes the
	// connection as one that could not be made, and is told to those who wait
	// for it: it holds no secret.
	CheckPreface(req, answer *Metadata) error
}

// Resetter is implemented by codecs that can make a leased connection as good as
// new; see [Lease].
type Resetter interface {
	// AppendReset appends requests in the wire form variant after which nothing is
	// left of what the last client did. They are answered as those of a preface,
	// looked at by CheckReset.
	AppendReset(dst []byte, variant uint8) ([]byte, error)
	// CheckReset is CheckPreface for the answers.
	CheckReset(req, answer *Metadata) error
}

// Leaver is implemented by codecs in whose protocol a server can say that it
// leaves. The pipeline says so to clients when their listener is replaced.
type Leaver interface {
	// EncodeGoAway appends what tells a client to send no new request over its
	// connection. variant is that of its last request. dst comes back as it is
	// if clients of that variant understand nothing of the kind.
	EncodeGoAway(dst []byte, variant uint8) ([]byte, error)
}

// Heartbeater is implemented by codecs whose protocol has heartbeats, or other
// requests that the proxy itself answers with success. The pipeline answers them
// where they arrive, in both directions.
type Heartbeater interface {
	// EncodeHeartbeat appends the answer to the heartbeat hb, whose frame is
	// valid. Only called when hb.ExpectsReply.
	EncodeHeartbeat(dst []byte, hb *Metadata) ([]byte, error)
}

// Streamer is implemented by codecs whose protocol has streams: StreamInit
// opens one, is routed as a Request is, and binds it to an upstream connection
// of its own; later frames of either side are carried there and back as they
// are. Every stream frame has the client's number of the stream in
// [Metadata.StreamID], whichever way it travels. A stream ends with a
// StreamCloseTwoWay or an Error of either side, or a StreamCloseOneWay of both:
// behind its own, a side may still send what is not data, such as window updates.
// The server answers a StreamInit with its own, which accepts the stream, or with
// a Response or Error of the same id, which ends it. Frames of the stream may come
// before that, and also its close: the answer is waited for all the same. A
// StreamInit that cannot be served is answered by EncodeError.
type Streamer interface {
	// EncodeReset appends the frame that tells the client that its open stream
	// has been lost. Of stream, which opened it, only the scalar fields,
	// Scratch and ReplyInfo are valid.
	EncodeReset(dst []byte, stream *Metadata, e *LocalError) ([]byte, error)
}

// Guess is what a Sniffer makes of the first bytes of a connection.
type Guess uint8

const (
	// No: the bytes do not start a message of the protocol.
	No Guess = iota
	// Maybe: there are too few of them to tell.
	Maybe
	// Yes: they are the protocol's.
	Yes
)

// Sniffer is implemented by codecs that recognise their protocol by the first
// bytes that a client sends. A listener with several codecs needs them to be.
type Sniffer interface {
	// Sniff looks at the first bytes of a connection, at least one. Given more
	// of the same connection's bytes it may turn from Maybe to Yes or No, but
	// not otherwise. It must not say Maybe to 64 bytes or more.
	Sniff(b []byte) Guess
}

// Mutator is implemented by codecs that can apply a [Mutation]. Config that
// mutates messages of a codec without it is refused at load.
type Mutator interface {
	// CheckMutation tells whether the keys can be set in messages that travel
	// in direction d. The error begins with "key: " or "value: ", and names the
	// key.
	CheckMutation(d Direction, key, value string) error
}

// Remover is implemented by Mutators that can also remove what a [Mutation]
// removes. Config that removes keys from messages of a codec without it is refused
// at load; what a filter removes of them is not, and the message goes out
// unchanged, counted.
type Remover interface {
	Mutator
	// CheckRemoval tells whether the key can be removed from messages that travel
	// in direction d, as CheckMutation does.
	CheckRemoval(d Direction, key string) error
}

// CodeChecker is implemented by codecs whose EncodeError heeds [LocalError.Code].
// Config with a code for a codec without it is refused at load.
type CodeChecker interface {
	// CheckCode tells whether an error reply can carry the code, which is not 0: its
	// decoder then reads an answer with that code that is no success. The error names
	// the code, and what the protocol has.
	CheckCode(code int32) error
}

// CheckCode tells whether error replies of all the codecs can carry the code; any can
// carry 0.
func CheckCode(cs []Codec, code int32) error {
	if code == 0 {
		return nil
	}
	for _, c := range cs {
		checker, ok := c.(CodeChecker)
		if !ok {
			return errors.New("the codec has one code for each status, and no others")
		}
		if err := checker.CheckCode(code); err != nil {
			return err
		}
	}
	return nil
}

// MaxText is the longest key or value of a mutation, in bytes, as in the
// configuration of routes.
const MaxText = 16384

// CheckText tells whether a key and a value can be set in a protocol whose
// entries are UTF-8 strings, for what CheckMutation says of them first: the key
// is not empty, neither is longer than [MaxText], both are UTF-8.
func CheckText(key, value string) error {
	switch {
	case key == "":
		return errors.New("key: must not be empty")
	case len(key) > MaxText:
		return fmt.Errorf("key: %.20q… is longer than %d bytes", key, MaxText)
	case len(value) > MaxText:
		return fmt.Errorf("value: that of key %.40q is longer than %d bytes", key, MaxText)
	case !utf8.ValidString(key):
		return fmt.Errorf("key: %.40q is not UTF-8", key)
	case !utf8.ValidString(value):
		return fmt.Errorf("value: that of key %.40q is not UTF-8", key)
	}
	return nil
}
