package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// telemetryTarget is Meltemi with all that tells of requests: metrics of methods and those
// of Istio, an access log in JSON to a file, spans of one request in a hundred.
const telemetryTarget = "meltemi-telemetry"

// observed is a chain of filters with Istio's metrics in front.
func observed(filters string) string {
	return `
              traffic_direction: INBOUND` + chain(`
              - name: aeraki.meta_protocol.filters.istio_stats`+filters)
}

// telemetry is what its listener has besides. Its log is the file log, its spans go to
// the cluster collector.
func telemetry(log string) string {
	return fmt.Sprintf(`
              tracing:
                random_sampling: {value: 1}
                provider:
                  name: envoy.tracers.opentelemetry
                  typed_config:
                    "@type": type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig
                    service_name: bench
                    http_service: {http_uri: {uri: http://collector/v1/traces, cluster: collector, timeout: 1s}}
              access_log:
              - name: envoy.access_loggers.file
                typed_config:
                  "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
                  path: %s
                  log_format:
                    json_format:
                      start: "%%START_TIME%%"
                      call: "%%REQ(:PATH)%%"
                      tenant: "%%REQ(tenant)%%"
                      code: "%%RESPONSE_CODE%%"
                      flags: "%%RESPONSE_FLAGS%%"
                      details: "%%RESPONSE_CODE_DETAILS%%"
                      ms: "%%DURATION%%"
                      received: "%%BYTES_RECEIVED%%"
                      sent: "%%BYTES_SENT%%"
                      client: "%%DOWNSTREAM_REMOTE_ADDRESS%%"
                      host: "%%UPSTREAM_HOST%%"
                      cluster: "%%UPSTREAM_CLUSTER%%"
                      trace: "%%TRACE_ID%%"`, log)
}

// collect takes spans, and drops them. It returns the port.
func collect() (port int, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, nil, err
	}
	s := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) //nolint:errcheck // its sender may have been stopped
	})}
	go s.Serve(l)                                                  //nolint:errcheck // until stop
	return l.Addr().(*net.TCPAddr).Port, func() { s.Close() }, nil //nolint:errcheck // it listens no more
}
