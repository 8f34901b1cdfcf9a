package codecs

import (
	"errors"
	"fmt"
)

// ErrNoMutation is returned, wrapped or not, by Encode when a message cannot
// carry the changes that are asked for. It is sent without them and counted, unless they
// are required (see [Mutation.Require]).
var ErrNoMutation = errors.New("the message cannot be changed")

// ErrUnanswered is returned by DecodeAnswer when the Quiet request that it was shown
// gets no answer: what has come is that to a request behind it, which is shown next.
// It is an error of the protocol if the request was not Quiet, or is the last.
var ErrUnanswered = errors.New("the request has no answer")

// ErrorType is why a request got a local reply. The first six numbers are
// those of the C++ MetaProtocol Proxy.
type ErrorType uint8

const (
	// RouteNotFound: no route matches the request.
	RouteNotFound ErrorType = iota
	// ClusterNotFound: the route names a cluster that does not exist.
	ClusterNotFound
	// NoHealthyUpstream: the cluster has no host that can be used.
	NoHealthyUpstream
	// BadResponse: what the server sent cannot be used.
	BadResponse
	// Unspecified: none of the others.
	Unspecified
	// OverLimit: a rate limit, a full queue or a circuit breaker.
	OverLimit
	// BadRequest: the request cannot be served as it is.
	BadRequest
	// Timeout: the deadline passed before the answer came.
	Timeout
	// ConnectFailure: no connection to a host could be made.
	ConnectFailure
	// UpstreamReset: the connection was lost before the answer came.
	UpstreamReset
	// Denied: a filter refused the request.
	Denied
)

var errorTypeNames = [...]string{
	"route not found", "cluster not found", "no healthy upstream", "bad response", "unspecified",
	"over limit", "bad request", "timeout", "connect failure", "upstream reset", "denied",
}

func (t ErrorType) String() string {
	if int(t) < len(errorTypeNames) {
		return errorTypeNames[t]
	}
	return "unknown"
}

// LocalError is a reply that Meltemi itself gives.
type LocalError struct {
	Type ErrorType
	// Message is shown to the client, in the protocol's place for it.
	Message string
	// Code is the protocol's own, which the client gets in place of the one that the
	// codec has for Type; it decides what clients repeat. 0, and one that the codec's
	// CheckCode refuses: that of Type.
	Code int32
}

func (e *LocalError) Error() string { return e.Message }

// ProtocolError is a frame that cannot be decoded. It ends the connection.
type ProtocolError struct {
	// Protocol is the codec's short name, such as "dubbo".
	Protocol string
	// Offset of the fault in the frame, in bytes.
	Offset int
	// Reason in a few words.
	Reason string
}

func (e *ProtocolError) Error() string {
	return fmt.Sprintf("%s: %s at offset %d", e.Protocol, e.Reason, e.Offset)
}

// TooLarge is the error of Decode for a frame above the limit whose head tells
// where it ends and what it is. m then has its type, its id and what EncodeError
// needs; it has no Raw and no properties, but an answer has its method, where
// [Traits.HiddenOneway] is set, in memory of its own. That costs this one message: a request
// is answered with BadRequest, a call whose answer it is fails, and Size bytes
// are passed over without being kept; so is a client's that opens a stream or, with
// its StreamID, ends the open stream that it belongs to. Of a server's stream it ends
// the connection, as any other error.
type TooLarge struct {
	// Size is the length of the whole frame, Limit what it may have, in bytes.
	Size, Limit int
}

func (e *TooLarge) Error() string {
	return fmt.Sprintf("a frame of %d bytes is larger than the limit of %d", e.Size, e.Limit)
}

// CodeNamer is implemented by codecs whose protocol has names for what [Metadata] has as
// Code.
type CodeNamer interface {
	// CodeName returns the name of a code, "" if it has none.
	CodeName(code int32) string
}
