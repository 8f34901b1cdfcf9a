// Package metrics holds what a listener counts: names, and what a worker has
// gathered of them and not yet reported.
package metrics

import (
	"slices"
	"sync/atomic"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

// Counter is one of a listener's counters. Those up to IdleTimeout keep the names of
// the C++ MetaProtocol Proxy.
type Counter uint8

// The counters, by what they count.
const (
	// CxDestroyLocalWithActiveRq: client connections that ended here with requests in flight.
	CxDestroyLocalWithActiveRq Counter = iota
	// CxDestroyRemoteWithActiveRq: client connections that clients ended with requests in flight.
	CxDestroyRemoteWithActiveRq
	// LocalResponseBusinessException: errors that the proxy itself has answered with.
	LocalResponseBusinessException
	// LocalResponseError: answers of the proxy itself that could not be encoded.
	LocalResponseError
	// LocalResponseSuccess: heartbeats and the like that the proxy itself has answered.
	LocalResponseSuccess
	// Request: requests, oneways and streams.
	Request
	// RequestDecodingError: requests that could not be read, and connections that ended in the middle of one.
	RequestDecodingError
	// RequestDecodingSuccess: messages of clients that could be read.
	RequestDecodingSuccess
	// RequestEvent: heartbeats and events of clients.
	RequestEvent
	// RequestOneway: requests that want no answer.
	RequestOneway
	// RequestTwoway: requests that want one.
	RequestTwoway
	// RequestStream: streams that clients wanted to open.
	RequestStream
	// Response: answers that were passed on.
	Response
	// ResponseBusinessException: those of them that carry an exception of the application.
	ResponseBusinessException
	// ResponseDecodingError: answers that could not be read.
	ResponseDecodingError
	// ResponseDecodingSuccess: answers that could be read and were waited for.
	ResponseDecodingSuccess
	// ResponseError: answers that carry an error of the protocol or the server.
	ResponseError
	// ResponseErrorCausedConnectionClose: upstream connections closed over bytes that could not be read.
	ResponseErrorCausedConnectionClose
	// ResponseSuccess: answers that carry a success.
	ResponseSuccess
	// IdleTimeout: client connections closed as nothing happened on them for idle_timeout.
	IdleTimeout

	// RequestAbandoned: requests whose clients left before the answer.
	RequestAbandoned
	// RequestTimeout: requests that had no answer within request_timeout.
	RequestTimeout
	// RequestUnserved: messages of clients that cannot be served: answers, streams without a Streamer.
	RequestUnserved
	// OnewayDropped: oneways that could not be delivered.
	OnewayDropped
	// UpstreamReset: requests whose upstream connection ended, or brought no usable answer.
	UpstreamReset
	// UpstreamConnectFail: attempts to connect that failed.
	UpstreamConnectFail
	// UpstreamEvent: heartbeats and events of servers.
	UpstreamEvent
	// UpstreamStrayResponse: answers that no request waits for, frames of no stream.
	UpstreamStrayResponse
	// UpstreamUnserved: requests of servers, which are not supported.
	UpstreamUnserved
	// DownstreamOverflow: client connections closed, or answers refused, as too much waits for a client.
	DownstreamOverflow
	// PartialFrameTimeout: client connections closed over a frame that was not complete in time.
	PartialFrameTimeout
	// DrainClosed: client connections of replaced listeners closed at a good moment.
	DrainClosed
	// FilterPanic: panics in filters: each has ended a message.
	FilterPanic
	// ConnectionPanic: panics in codecs or the pipeline: each has ended a connection.
	ConnectionPanic
	// MutationSkipped: messages that could not carry the changes of their route, and were sent without.
	MutationSkipped
	// MutationRefused: messages that could not carry changes which are required, and were not sent.
	MutationRefused
	// OnewayPresumed: requests taken for oneways in disguise: no answer is waited for.
	OnewayPresumed
	// OnewayErrorTold: errors of presumed oneways that clients were told after all, as they
	// wait for each answer, or their connections end.
	OnewayErrorTold
	// StreamReset: open streams that were lost.
	StreamReset
	// StreamAbandoned: open streams whose clients left.
	StreamAbandoned
	// StreamIdleTimeout: open streams ended as nothing happened on them.
	StreamIdleTimeout
	// StreamRefused: streams that were not opened.
	StreamRefused
	// StreamStray: frames of streams that are not open.
	StreamStray
	// PassthroughConnection: client connections carried as plain bytes.
	PassthroughConnection
	// PassthroughConnectFail: those of them that found no server.
	PassthroughConnectFail
	// UpstreamAbuse: upstream connections closed for what their server did.
	UpstreamAbuse
	// RequestOverflow: requests refused as too many wait, are held or are in flight.
	RequestOverflow
	// RequestUnroutable: requests whose route would have cost too much to find.
	RequestUnroutable
	// PartialFrameWait: clients not read for a while, as too much is kept of unfinished frames.
	PartialFrameWait
	// PartialFrameOverflow: client connections closed for that.
	PartialFrameOverflow
	// UpstreamPartialFrameWait: servers not read for a while, for the same.
	UpstreamPartialFrameWait

	// RequestUnanswered: quiet requests to which there was no answer.
	RequestUnanswered

	// RequestRetry: further attempts, as those before have failed.
	RequestRetry
	// RequestRetrySuccess: requests that were answered after one, by what needs no other.
	RequestRetrySuccess
	// RequestRetryLimitExceeded: requests that failed behind as many retries as are allowed.
	RequestRetryLimitExceeded
	// RequestRetryOverflow: retries and second attempts that the budget of a cluster did not allow.
	RequestRetryOverflow
	// RequestPerTryTimeout: attempts that took longer than per_try_timeout.
	RequestPerTryTimeout
	// RequestHedge: second attempts beside first ones that go on.
	RequestHedge
	// RequestHedgeWon: those whose answer came first.
	RequestHedgeWon
	// RequestDeadlineSpent: requests not sent, as their time was over.
	RequestDeadlineSpent
	// Mirror: copies of requests that were sent.
	Mirror
	// MirrorOverflow: copies that were not made, or given up, as they were too large or
	// too many.
	MirrorOverflow
	// MirrorFailed: copies that could not be sent, or got no answer.
	MirrorFailed
	// MirrorSame: compared copies that were answered as their requests were.
	MirrorSame
	// MirrorDifferent: compared copies that were answered otherwise.
	MirrorDifferent

	// OutlierEjectionsTotal: ejections of hosts, those behind a failed probe included.
	OutlierEjectionsTotal
	// OutlierEjectionsConsecutiveFailures: those for failures in a row.
	OutlierEjectionsConsecutiveFailures
	// OutlierEjectionsFailurePercentage: those for a share of failures.
	OutlierEjectionsFailurePercentage
	// OutlierEjectionsSilence: those of hosts that sent nothing.
	OutlierEjectionsSilence
	// OutlierEjectionsOverflow: those that were withheld, as there are as many as may be.
	OutlierEjectionsOverflow
	// OutlierProbes: requests that tried ejected hosts.
	OutlierProbes
	// OutlierProbeFailures: those of them that failed.
	OutlierProbeFailures

	// BreakerMaxRequests: requests refused as a cluster has as many as it may.
	BreakerMaxRequests
	// BreakerMaxPendingRequests: requests refused as as many wait as may.
	BreakerMaxPendingRequests
	// BreakerMaxConnections: connections that were not made as there are as many as may be.
	BreakerMaxConnections
	// BreakerKeyMaxRequests: requests refused as their key has as many as it may.
	BreakerKeyMaxRequests
	// BreakerKeyOpen: requests refused as the breaker of their key is open.
	BreakerKeyOpen
	// BreakerOpened: breakers of keys that have opened.
	BreakerOpened

	// RDSUpdateSuccess: answers of RDS that were accepted.
	RDSUpdateSuccess
	// RDSUpdateRejected: those that were refused.
	RDSUpdateRejected
	// RDSUpdateEmpty: those that had no routes, so that the ones before stay.
	RDSUpdateEmpty
	// RDSUpdateFailure: attempts to ask the server that failed, or were cut off.
	RDSUpdateFailure
	// RDSUpdateAttempt: all of these.
	RDSUpdateAttempt
	// RequestDirectResponse: requests that routes have answered themselves.
	RequestDirectResponse
	// RequestNoCluster: requests that were to name their cluster, and did not name one that they may.
	RequestNoCluster

	// RequestHashNoKey: requests of routes with hash policies that have nothing to be hashed.
	RequestHashNoKey
	// RequestHashHostsUnknown: requests with a hash that went to any host, as not all hosts are known.
	RequestHashHostsUnknown
	// RequestHashHostUnavailable: … to another host, as no connection to theirs could take them.
	RequestHashHostUnavailable
	// RequestHashHostBusy: … to another host, as too much was in flight to theirs.
	RequestHashHostBusy

	// RequestHostUnavailable: attempts that did not go to the host that a filter had named,
	// as no connection to it could take them.
	RequestHostUnavailable

	// AccessLogWritten: lines of access logs that were handed over to be written.
	AccessLogWritten
	// AccessLogLost: lines that were not written, as too many waited, or the file could
	// not be written.
	AccessLogLost

	// Counters is how many there are.
	Counters
)

var counterNames = [Counters]string{
	CxDestroyLocalWithActiveRq:          "cx_destroy_local_with_active_rq",
	CxDestroyRemoteWithActiveRq:         "cx_destroy_remote_with_active_rq",
	LocalResponseBusinessException:      "local_response_business_exception",
	LocalResponseError:                  "local_response_error",
	LocalResponseSuccess:                "local_response_success",
	Request:                             "request",
	RequestDecodingError:                "request_decoding_error",
	RequestDecodingSuccess:              "request_decoding_success",
	RequestEvent:                        "request_event",
	RequestOneway:                       "request_oneway",
	RequestTwoway:                       "request_twoway",
	RequestStream:                       "request_stream",
	Response:                            "response",
	ResponseBusinessException:           "response_business_exception",
	ResponseDecodingError:               "response_decoding_error",
	ResponseDecodingSuccess:             "response_decoding_success",
	ResponseError:                       "response_error",
	ResponseErrorCausedConnectionClose:  "response_error_caused_connection_close",
	ResponseSuccess:                     "response_success",
	IdleTimeout:                         "idle_timeout",
	RequestAbandoned:                    "request_abandoned",
	RequestTimeout:                      "request_timeout",
	RequestUnserved:                     "request_unserved",
	OnewayDropped:                       "oneway_dropped",
	UpstreamReset:                       "upstream_reset",
	UpstreamConnectFail:                 "upstream_connect_fail",
	UpstreamEvent:                       "upstream_event",
	UpstreamStrayResponse:               "upstream_stray_response",
	UpstreamUnserved:                    "upstream_unserved",
	DownstreamOverflow:                  "downstream_overflow",
	PartialFrameTimeout:                 "partial_frame_timeout",
	DrainClosed:                         "drain_closed",
	FilterPanic:                         "filter_panic",
	ConnectionPanic:                     "connection_panic",
	MutationSkipped:                     "mutation_skipped",
	MutationRefused:                     "mutation_refused",
	OnewayPresumed:                      "oneway_presumed",
	OnewayErrorTold:                     "oneway_error_told",
	StreamReset:                         "stream_reset",
	StreamAbandoned:                     "stream_abandoned",
	StreamIdleTimeout:                   "stream_idle_timeout",
	StreamRefused:                       "stream_refused",
	StreamStray:                         "stream_stray",
	PassthroughConnection:               "passthrough_connection",
	PassthroughConnectFail:              "passthrough_connect_fail",
	UpstreamAbuse:                       "upstream_abuse",
	RequestOverflow:                     "request_overflow",
	RequestUnroutable:                   "request_unroutable",
	PartialFrameWait:                    "partial_frame_wait",
	PartialFrameOverflow:                "partial_frame_overflow",
	UpstreamPartialFrameWait:            "upstream_partial_frame_wait",
	RequestUnanswered:                   "request_unanswered",
	RequestRetry:                        "request_retry",
	RequestRetrySuccess:                 "request_retry_success",
	RequestRetryLimitExceeded:           "request_retry_limit_exceeded",
	RequestRetryOverflow:                "request_retry_overflow",
	RequestPerTryTimeout:                "request_per_try_timeout",
	RequestHedge:                        "request_hedge",
	RequestHedgeWon:                     "request_hedge_won",
	RequestDeadlineSpent:                "request_deadline_spent",
	Mirror:                              "mirror",
	MirrorOverflow:                      "mirror_overflow",
	MirrorFailed:                        "mirror_failed",
	MirrorSame:                          "mirror_same",
	MirrorDifferent:                     "mirror_different",
	OutlierEjectionsTotal:               "outlier_ejections_total",
	OutlierEjectionsConsecutiveFailures: "outlier_ejections_consecutive_failures",
	OutlierEjectionsFailurePercentage:   "outlier_ejections_failure_percentage",
	OutlierEjectionsSilence:             "outlier_ejections_silence",
	OutlierEjectionsOverflow:            "outlier_ejections_overflow",
	OutlierProbes:                       "outlier_probes",
	OutlierProbeFailures:                "outlier_probe_failures",
	BreakerMaxRequests:                  "breaker_max_requests",
	BreakerMaxPendingRequests:           "breaker_max_pending_requests",
	BreakerMaxConnections:               "breaker_max_connections",
	BreakerKeyMaxRequests:               "breaker_key_max_requests",
	BreakerKeyOpen:                      "breaker_key_open",
	BreakerOpened:                       "breaker_opened",
	RDSUpdateSuccess:                    "rds_update_success",
	RDSUpdateRejected:                   "rds_update_rejected",
	RDSUpdateEmpty:                      "rds_update_empty",
	RDSUpdateFailure:                    "rds_update_failure",
	RDSUpdateAttempt:                    "rds_update_attempt",
	RequestDirectResponse:               "request_direct_response",
	RequestNoCluster:                    "request_no_cluster",
	RequestHashNoKey:                    "request_hash_no_key",
	RequestHashHostsUnknown:             "request_hash_hosts_unknown",
	RequestHashHostUnavailable:          "request_hash_host_unavailable",
	RequestHashHostBusy:                 "request_hash_host_busy",
	RequestHostUnavailable:              "request_host_unavailable",
	AccessLogWritten:                    "access_log_written",
	AccessLogLost:                       "access_log_lost",
}

func (c Counter) String() string { return counterNames[c] }

// Gauge is one of a listener's gauges.
type Gauge uint8

// The gauges.
const (
	// RequestActive requests, oneways and streams are in flight.
	RequestActive Gauge = iota
	// StreamActive streams are open, or about to be.
	StreamActive
	// PassthroughActive connections are carried as plain bytes.
	PassthroughActive
	// MirrorActive copies of requests wait or are in flight.
	MirrorActive
	// OutlierEjectionsActive hosts are ejected.
	OutlierEjectionsActive

	// Gauges is how many there are.
	Gauges
)

var gaugeNames = [Gauges]string{
	RequestActive: "request_active", StreamActive: "stream_active", PassthroughActive: "passthrough_active",
	MirrorActive: "mirror_active", OutlierEjectionsActive: "outlier_ejections_active",
}

func (g Gauge) String() string { return gaugeNames[g] }

// RequestTime is the name of the histogram of the time from a request to its
// answer, in milliseconds.
const RequestTime = "request_time_ms"

// Has reports whether each listener has a metric of that name.
func Has(name string) bool {
	return name == RequestTime || slices.Contains(counterNames[:], name) || slices.Contains(gaugeNames[:], name)
}

// Set is a listener's metrics as its host knows them.
type Set struct {
	counters [Counters]host.MetricID
	gauges   [Gauges]host.MetricID
	time     host.MetricID
	totals   *Totals
}

// Totals are what all versions of a listener have counted, over all workers. The zero
// value is nothing.
type Totals struct {
	counters [Counters]atomic.Int64
	gauges   [Gauges]atomic.Int64
	untold   [Gauges]atomic.Int64 // what of gauges the host does not know any more
}

// Renew is called when the host has forgotten all versions of the listener, and with
// them its gauges: those of the version that comes begin at 0. What they have been told
// by the others they are told again, as what is still to come counts from there.
func (s *Set) Renew() {
	for i := range s.totals.gauges {
		s.totals.untold[i].Store(s.totals.gauges[i].Load())
	}
}

// Counter returns what a counter counts by now.
func (t *Totals) Counter(c Counter) int64 { return t.counters[c].Load() }

// Gauge returns what a gauge shows.
func (t *Totals) Gauge(g Gauge) int64 { return t.gauges[g].Load() }

// Define defines all metrics; their names begin with prefix. What is reported counts in
// totals, too.
func Define(c host.Config, prefix string, totals *Totals) (s Set, err error) {
	s.totals = totals
	for i := range s.counters {
		if s.counters[i], err = c.DefineCounter(prefix + Counter(i).String()); err != nil {
			return s, err
		}
	}
	for i := range s.gauges {
		if s.gauges[i], err = c.DefineGauge(prefix + Gauge(i).String()); err != nil {
			return s, err
		}
	}
	s.time, err = c.DefineHistogram(prefix + RequestTime)
	return s, err
}
