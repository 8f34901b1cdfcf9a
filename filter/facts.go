package filter

import (
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// Facts are what is known of a message beyond its metadata: what a log line, a span
// or a metric tells of it. They are complete in [EndFilter].OnEnd.
type Facts struct {
	// Cluster that it was sent to, "" if to none.
	Cluster string
	// Host is the address of the server that its last attempt was sent to, or that
	// whose answer came first, "" if it was sent to none.
	Host string
	// Attempts to have it served: 0 if it was not forwarded.
	Attempts int
	// RequestBytes and ResponseBytes are the sizes of the frames that came. Of a
	// stream they are those by which it was opened. ResponseBytes is 0 for a local
	// reply.
	RequestBytes, ResponseBytes int
	// Flags say what was out of the ordinary.
	Flags Flags
	// Start is when the request was decoded, Sent when its last attempt was handed
	// to a server, Answered when the answer came; on the clock of [Message.Now],
	// and 0 if that has not happened.
	Start, Sent, Answered time.Duration
}

// Facts returns what is known by now.
func (m *Message) Facts() Facts {
	f := Facts{
		RequestBytes: m.req.HeaderSize + m.req.BodySize, ResponseBytes: m.answerBytes,
		Flags: m.flags, Start: m.start, Answered: m.answeredAt, Attempts: m.exchange.Attempts(),
	}
	if f.Attempts > 0 {
		f.Cluster = m.cluster
		f.Host, f.Sent = m.exchange.Host()
	}
	return f
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
	flagsEnd
)

var flagNames = map[Flags]string{
	NoHealthyUpstream: "UH", UpstreamConnectionFailure: "UF", UpstreamOverflow: "UO", NoRouteFound: "NR",
	UpstreamRequestTimeout: "UT", UpstreamConnectionTermination: "UC", DownstreamConnectionTermination: "DC",
	DelayInjected: "DI", FaultInjected: "FI", RateLimited: "RL", RateLimitServiceError: "RLSE",
	Unauthorized: "UAEX", StreamIdleTimeout: "SI", DownstreamProtocolError: "DPE", UpstreamProtocolError: "UPE",
	NoClusterFound: "NC", UpstreamRetryLimitExceeded: "URX",
}

// String returns the short names of the flags that are set, with commas between
// them, "-" if there are none.
func (f Flags) String() string {
	s := ""
	for b := Flags(1); b < flagsEnd; b <<= 1 {
		if f&b != 0 {
			s += "," + flagNames[b]
		}
	}
	if s == "" {
		return "-"
	}
	return s[1:]
}

// flagOf is the flag of a local reply.
var flagOf = [...]Flags{
	codecs.RouteNotFound:     NoRouteFound,
	codecs.ClusterNotFound:   NoClusterFound,
	codecs.NoHealthyUpstream: NoHealthyUpstream,
	codecs.BadResponse:       UpstreamProtocolError,
	codecs.Unspecified:       0,
	codecs.OverLimit:         UpstreamOverflow,
	codecs.BadRequest:        DownstreamProtocolError,
	codecs.Timeout:           UpstreamRequestTimeout,
	codecs.ConnectFailure:    UpstreamConnectionFailure,
	codecs.UpstreamReset:     UpstreamConnectionTermination,
	codecs.Denied:            Unauthorized,
}
