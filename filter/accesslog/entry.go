// Package accesslog writes a line for each message that has ended: Envoy's access logs
// with its formats and filters. What a line costs a worker is its text; files are
// written by a goroutine of their own.
package accesslog

import (
	"time"

	dataaccesslogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/facts"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/route"
)

// Entry is a message that has ended, as logs tell of it.
type Entry struct {
	facts.Facts
	// Request is never nil; its properties are there if the [Logs] have asked for
	// them. Response is nil if there was none.
	Request, Response *codecs.Metadata
	// RemoteAddress, DirectRemoteAddress and LocalAddress are those of the client's
	// connection, "" if unknown.
	RemoteAddress, DirectRemoteAddress, LocalAddress string
	// ConnectionID of the client's connection.
	ConnectionID uint64
	// TLS is the client's, nil if there is none.
	TLS *host.TLS
	// Source and Destination are the workloads at both ends, nil if nothing is known.
	Source, Destination Workload
	// StartTime is when the request was decoded.
	StartTime time.Time
	// Details say why it was answered as it was; "" if nobody has said so.
	Details string
	// Rand is random: what makes an id of the message.
	Rand [2]uint64
	// Second is its worker's, nil for none.
	Second *Second

	spent route.Spent // by the filters of all logs
}

// Workload is one of both ends' as Istio's proxies know it.
type Workload interface {
	// Field returns what is known by a name of [route.WorkloadFields], "" if nothing is.
	Field(name string) string
}

// logType is Envoy's type of the entry: copies are entries of requests upstream alone.
func (e *Entry) logType() dataaccesslogv3.AccessLogType {
	if e.Kind == facts.Mirror {
		return dataaccesslogv3.AccessLogType_UpstreamEnd
	}
	return dataaccesslogv3.AccessLogType_DownstreamEnd
}

// details are those of RESPONSE_CODE_DETAILS, with Envoy's words where it has them; "" if
// there are none.
func (e *Entry) details() string {
	switch {
	case e.Details != "":
		return e.Details
	case e.Replied && e.Flags&facts.StreamIdleTimeout != 0:
		return "stream_idle_timeout"
	case e.Replied && e.Answered > 0 && e.Local.Type == codecs.UpstreamReset:
		return "upstream_reset_after_response_started{connection_termination}"
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
var reasons = [...]string{
	codecs.Unspecified:       "internal_error",
	codecs.RouteNotFound:     "route_not_found",
	codecs.ClusterNotFound:   "cluster_not_found",
	codecs.NoHealthyUpstream: "no_healthy_upstream",
	codecs.BadResponse:       "upstream_reset_before_response_started{protocol_error}",
	codecs.OverLimit:         "upstream_reset_before_response_started{overflow}",
	codecs.BadRequest:        "bad_request",
	codecs.Timeout:           "response_timeout",
	codecs.ConnectFailure:    "upstream_reset_before_response_started{remote_connection_failure}",
	codecs.UpstreamReset:     "upstream_reset_before_response_started{connection_termination}",
	codecs.Denied:            "access_denied",
}
