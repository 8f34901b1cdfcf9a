// Package accesslog writes a line for each message that has ended: Envoy's access logs
// with its formats and filters. What a line costs a worker is its text; files are
// written by a goroutine of their own.
package accesslog

import (
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/facts"
)

// Entry is a message that has ended, as logs tell of it.
type Entry struct {
	facts.Facts
	// Request is never nil; its properties are there if the [Logs] have asked for
	// them. Response is nil if there was none.
	Request, Response *codecs.Metadata
	// RemoteAddress and LocalAddress are those of the client's connection, "" if
	// unknown.
	RemoteAddress, LocalAddress string
	// ConnectionID of the client's connection, 0 if it has ended.
	ConnectionID uint64
	// StartTime is when the request was decoded.
	StartTime time.Time
	// Details say why it was answered as it was; "" if nobody has said so.
	Details string
	// Rand is random.
	Rand uint64
}

// details are those of RESPONSE_CODE_DETAILS, "" if there are none.
func (e *Entry) details() string {
	switch {
	case e.Details != "":
		return e.Details
	case e.Replied:
		return reasons[e.Local.Type]
	case e.Flags&facts.DownstreamConnectionTermination != 0:
		return "downstream_remote_disconnect"
	case e.Answered > 0:
		return "via_upstream"
	default:
		return ""
	}
}

// reasons are the details of local replies.
var reasons = map[codecs.ErrorType]string{
	codecs.Unspecified: "internal_error", codecs.RouteNotFound: "route_not_found", codecs.ClusterNotFound: "cluster_not_found",
	codecs.NoHealthyUpstream: "no_healthy_upstream", codecs.BadResponse: "upstream_protocol_error", codecs.OverLimit: "overload",
	codecs.BadRequest: "bad_request", codecs.Timeout: "response_timeout", codecs.ConnectFailure: "upstream_connect_failure",
	codecs.UpstreamReset: "upstream_reset_before_response_started", codecs.Denied: "access_denied",
}
