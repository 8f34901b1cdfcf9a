// Package facts holds what is known of a message beyond its metadata: what logs, spans
// and metrics tell of it.
package facts

import (
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// Kind is what a message is.
type Kind uint8

// The kinds.
const (
	// Request wants an answer.
	Request Kind = iota
	// Oneway wants none.
	Oneway
	// Stream is one from its opening to its end.
	Stream
	// Heartbeat is a client's, or its goodbye: the proxy answers it.
	Heartbeat
	// Mirror is a copy of a request, whose answer is for nobody.
	Mirror
)

var kinds = [...]string{"request", "oneway", "stream", "heartbeat", "mirror"}

func (k Kind) String() string { return kinds[k] }

// Facts are complete when a message has ended.
type Facts struct {
	// Kind of message.
	Kind Kind
	// Protocol is the configured name of the listener's protocol.
	Protocol string
	// Route is the name of the route, "" if it has none or none was found.
	Route string
	// Consumer is the name of who has called, "" if no filter has told.
	Consumer string
	// Cluster that it was sent to, or was to be sent to; "" if to none.
	Cluster string
	// Host is the address of the server that its last attempt was sent to, or that
	// whose answer came first, "" if it was sent to none.
	Host string
	// Hosts are the addresses of all attempts, in their order, if there may have been more
	// than one; else there is Host. It is valid until the message has ended.
	Hosts []string
	// Server is what the host knows of that server beside its address, nil if nothing.
	Server *host.Server
	// Attempts to have it served: 0 if it was not forwarded.
	Attempts int
	// RequestBytes and ResponseBytes are the sizes of the frames that came from the
	// client and the server. Of a stream they are those by which it was opened.
	// ResponseBytes is 0 for a local reply.
	RequestBytes, ResponseBytes int
	// ReceivedBytes came from the client, SentBytes went to it: those of a stream's
	// further frames and of local replies included.
	ReceivedBytes, SentBytes int64
	// UpstreamSentBytes went to the server of the last attempt, UpstreamReceivedBytes came
	// from it: those of a stream's further frames included.
	UpstreamSentBytes, UpstreamReceivedBytes int64
	// Status of the answer, or of the local reply, which is [codecs.StatusError]; Code
	// is the protocol's own. Answered, or Replied, tells whether there was one.
	Status codecs.Status
	Code   int32
	// Replied says that Local is the local reply that it was answered with. A oneway,
	// and a client that has left, has not heard of it.
	Replied bool
	Local   codecs.LocalError
	// Flags say what was out of the ordinary.
	Flags Flags
	// Trace that the message is part of.
	Trace Trace
	// Start is when the request was decoded, Sent when its last attempt was handed
	// to a server, Answered when the answer came, End when the message ended; on the
	// worker's clock, and 0 if that has not happened.
	Start, Sent, Answered, End time.Duration
}

// ResponseCode is the outcome in HTTP's terms, as Istio's and Envoy's tools know them: 0
// if there was no answer; 200 for answers that are no errors of the protocol, exceptions
// of the application included.
func (f *Facts) ResponseCode() int {
	switch {
	case f.Replied:
		return codeOf(f.Local.Type, f.Flags)
	case f.Answered == 0:
		return 0
	case f.Status == codecs.StatusError:
		return 500
	default:
		return 200
	}
}

func codeOf(t codecs.ErrorType, f Flags) int {
	switch t {
	case codecs.RouteNotFound:
		return 404
	case codecs.BadResponse:
		return 502
	case codecs.OverLimit:
		if f&RateLimited != 0 {
			return 429
		}
		return 503
	case codecs.BadRequest:
		return 400
	case codecs.Timeout:
		return 504
	case codecs.Denied:
		return 403
	case codecs.ClusterNotFound, codecs.NoHealthyUpstream, codecs.ConnectFailure, codecs.UpstreamReset:
		return 503
	default:
		return 500
	}
}

// Trace is where a message stands in a trace.
type Trace struct {
	// ID of the trace, all 0 if there is none.
	ID [16]byte
	// Span is the id of the message's own span.
	Span [8]byte
	// Sampled says that the span is told of.
	Sampled bool
}

// Flags say what was out of the ordinary with a message. They have the names of
// Envoy's response flags.
type Flags uint32

// The flags, in the order in which Envoy writes them.
const (
	// NoHealthyUpstream (UH): no host could be used.
	NoHealthyUpstream Flags = 1 << iota
	// UpstreamRequestTimeout (UT): no answer came in time.
	UpstreamRequestTimeout
	// UpstreamConnectionFailure (UF): no connection could be made.
	UpstreamConnectionFailure
	// UpstreamConnectionTermination (UC): the server's connection ended before the
	// answer.
	UpstreamConnectionTermination
	// UpstreamOverflow (UO): too many requests wait or are in flight.
	UpstreamOverflow
	// NoRouteFound (NR): no route matches.
	NoRouteFound
	// DelayInjected (DI): a filter has delayed the request on purpose.
	DelayInjected
	// FaultInjected (FI): a filter has answered the request with an error on purpose.
	FaultInjected
	// RateLimited (RL): a filter has refused the request, as there were too many.
	RateLimited
	// Unauthorized (UAEX): a filter has denied the request.
	Unauthorized
	// RateLimitServiceError (RLSE): the rate limit service did not answer as it should,
	// and the request was refused for that.
	RateLimitServiceError
	// DownstreamConnectionTermination (DC): the client left before the answer.
	DownstreamConnectionTermination
	// UpstreamRetryLimitExceeded (URX): it would have been sent again, were there not
	// as many retries as are allowed.
	UpstreamRetryLimitExceeded
	// StreamIdleTimeout (SI): nothing happened on an open stream for too long.
	StreamIdleTimeout
	// DownstreamProtocolError (DPE): the request cannot be read or served as it is.
	DownstreamProtocolError
	// UpstreamProtocolError (UPE): the answer cannot be read or written.
	UpstreamProtocolError
	// NoClusterFound (NC): there is no cluster of that name.
	NoClusterFound
)

// ByName returns the flag of a short name, 0 if there is none.
func ByName(name string) Flags {
	for i, n := range flagNames {
		if n[0] == name {
			return 1 << i
		}
	}
	return 0
}

// flagNames are the short and the long names, in the order of the flags.
var flagNames = [...][2]string{
	{"UH", "NoHealthyUpstream"},
	{"UT", "UpstreamRequestTimeout"},
	{"UF", "UpstreamConnectionFailure"},
	{"UC", "UpstreamConnectionTermination"},
	{"UO", "UpstreamOverflow"},
	{"NR", "NoRouteFound"},
	{"DI", "DelayInjected"},
	{"FI", "FaultInjected"},
	{"RL", "RateLimited"},
	{"UAEX", "UnauthorizedExternalService"},
	{"RLSE", "RateLimitServiceError"},
	{"DC", "DownstreamConnectionTermination"},
	{"URX", "UpstreamRetryLimitExceeded"},
	{"SI", "StreamIdleTimeout"},
	{"DPE", "DownstreamProtocolError"},
	{"UPE", "UpstreamProtocolError"},
	{"NC", "NoClusterFound"},
}

// String returns the short names of the flags that are set, with commas between
// them, "-" if there are none.
func (f Flags) String() string {
	if f == 0 {
		return "-"
	}
	return string(f.Append(nil))
}

// Append appends the short names of the flags that are set, with commas between them.
func (f Flags) Append(dst []byte) []byte { return f.append(dst, 0) }

// AppendLong is Append with Envoy's long names.
func (f Flags) AppendLong(dst []byte) []byte { return f.append(dst, 1) }

func (f Flags) append(dst []byte, which int) []byte {
	first := true
	for i := range flagNames {
		if f>>i&1 == 0 {
			continue
		}
		if !first {
			dst = append(dst, ',')
		}
		first = false
		dst = append(dst, flagNames[i][which]...)
	}
	return dst
}
