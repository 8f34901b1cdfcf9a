package filter

import "github.com/meltemi-mesh/meltemi/filter/host"

// The counters of a listener, by their index in its tables. Those up to
// idleTimeout keep the names of the C++ MetaProtocol Proxy.
const (
	cxDestroyLocalWithActiveRq = iota
	cxDestroyRemoteWithActiveRq
	localResponseBusinessException
	localResponseError
	localResponseSuccess
	request
	requestDecodingError
	requestDecodingSuccess
	requestEvent
	requestOneway
	requestTwoway
	requestStream
	response
	responseBusinessException
	responseDecodingError
	responseDecodingSuccess
	responseError
	responseErrorCausedConnectionClose
	responseSuccess
	idleTimeout
	// Our own.
	requestAbandoned
	requestTimeout
	requestUnserved
	onewayDropped
	upstreamReset
	upstreamConnectFail
	upstreamEvent
	upstreamStrayResponse
	upstreamUnserved
	downstreamOverflow
	partialFrameTimeout
	drainClosed
	filterPanic
	connectionPanic
	mutationSkipped
	onewayPresumed
	streamReset
	streamAbandoned
	streamIdleTimeout
	streamRefused
	streamStray
	passthroughConnection
	passthroughConnectFail
	upstreamAbuse
	requestOverflow
	requestUnroutable
	partialFrameWait
	partialFrameOverflow
	upstreamPartialFrameWait
	counters
)

var counterNames = [counters]string{
	cxDestroyLocalWithActiveRq:         "cx_destroy_local_with_active_rq",
	cxDestroyRemoteWithActiveRq:        "cx_destroy_remote_with_active_rq",
	localResponseBusinessException:     "local_response_business_exception",
	localResponseError:                 "local_response_error",
	localResponseSuccess:               "local_response_success",
	request:                            "request",
	requestDecodingError:               "request_decoding_error",
	requestDecodingSuccess:             "request_decoding_success",
	requestEvent:                       "request_event",
	requestOneway:                      "request_oneway",
	requestTwoway:                      "request_twoway",
	requestStream:                      "request_stream",
	response:                           "response",
	responseBusinessException:          "response_business_exception",
	responseDecodingError:              "response_decoding_error",
	responseDecodingSuccess:            "response_decoding_success",
	responseError:                      "response_error",
	responseErrorCausedConnectionClose: "response_error_caused_connection_close",
	responseSuccess:                    "response_success",
	idleTimeout:                        "idle_timeout",
	requestAbandoned:                   "request_abandoned",
	requestTimeout:                     "request_timeout",
	requestUnserved:                    "request_unserved",
	onewayDropped:                      "oneway_dropped",
	upstreamReset:                      "upstream_reset",
	upstreamConnectFail:                "upstream_connect_fail",
	upstreamEvent:                      "upstream_event",
	upstreamStrayResponse:              "upstream_stray_response",
	upstreamUnserved:                   "upstream_unserved",
	downstreamOverflow:                 "downstream_overflow",
	partialFrameTimeout:                "partial_frame_timeout",
	drainClosed:                        "drain_closed",
	filterPanic:                        "filter_panic",
	connectionPanic:                    "connection_panic",
	mutationSkipped:                    "mutation_skipped",
	onewayPresumed:                     "oneway_presumed",
	streamReset:                        "stream_reset",
	streamAbandoned:                    "stream_abandoned",
	streamIdleTimeout:                  "stream_idle_timeout",
	streamRefused:                      "stream_refused",
	streamStray:                        "stream_stray",
	passthroughConnection:              "passthrough_connection",
	passthroughConnectFail:             "passthrough_connect_fail",
	upstreamAbuse:                      "upstream_abuse",
	requestOverflow:                    "request_overflow",
	requestUnroutable:                  "request_unroutable",
	partialFrameWait:                   "partial_frame_wait",
	partialFrameOverflow:               "partial_frame_overflow",
	upstreamPartialFrameWait:           "upstream_partial_frame_wait",
}

// The gauges, by their index.
const (
	requestActive = iota
	streamActive
	passthroughActive
	gauges
)

var gaugeNames = [gauges]string{requestActive: "request_active", streamActive: "stream_active", passthroughActive: "passthrough_active"}

const timeHistogram = "request_time_ms"

// metrics are the host's ids of a listener's metrics.
type metrics struct {
	counters [counters]host.MetricID
	gauges   [gauges]host.MetricID
	time     host.MetricID
}

func defineMetrics(c host.Config, prefix string) (ms metrics, err error) {
	for i, n := range counterNames {
		if ms.counters[i], err = c.DefineCounter(prefix + n); err != nil {
			return ms, err
		}
	}
	for i, n := range gaugeNames {
		if ms.gauges[i], err = c.DefineGauge(prefix + n); err != nil {
			return ms, err
		}
	}
	ms.time, err = c.DefineHistogram(prefix + timeHistogram)
	return ms, err
}
