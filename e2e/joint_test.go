package e2e

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/stretchr/testify/require"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/codecs/trpc/trpctest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// place is where a request stands in a trace, in digits.
type place struct{ trace, span string }

func placeOf(trace, span []byte) place {
	return place{hex.EncodeToString(trace), hex.EncodeToString(span)}
}

// exemplarsOf are those of a scrape in protobuf, by the method that they stand for.
func exemplarsOf(t *testing.T, socket string) map[string][]place {
	t.Helper()
	resp := scrapeAs(t, socket, expfmt.NewFormat(expfmt.TypeProtoDelim))
	defer resp.Body.Close()
	all := map[string][]place{}
	d := expfmt.NewDecoder(resp.Body, expfmt.ResponseFormat(resp.Header))
	for {
		var f dto.MetricFamily
		err := d.Decode(&f)
		if errors.Is(err, io.EOF) {
			return all
		}
		require.NoError(t, err)
		for _, m := range f.GetMetric() {
			method := ""
			for _, l := range m.GetLabel() {
				if l.GetName() == "method" {
					method = l.GetValue()
				}
			}
			for _, b := range m.GetHistogram().GetBucket() {
				if b.GetExemplar() == nil {
					continue
				}
				ids := map[string]string{}
				for _, l := range b.GetExemplar().GetLabel() {
					ids[l.GetName()] = l.GetValue()
				}
				all[method] = append(all[method], place{ids["trace_id"], ids["span_id"]})
			}
		}
	}
}

// TestLogsExemplarsAndSpansAreOfTheSameRequests, of two protocols and with every kind of
// end: what is sampled is in the collector once, under the ids that its line, its record
// and the exemplars name, and nothing else is.
func TestLogsExemplarsAndSpansAreOfTheSameRequests(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		const rounds = 10
		spans, cluster := collector(t)
		dubbo := scripted.Serve(t, func(c *scripted.Conn, req dubbotest.Parsed) {
			got, err := attachmentsOf(req)
			if err != nil {
				t.Error(err)
			}
			switch got["method"] {
			case "answers":
				c.Write(dubbotest.Response(req.ID, "x"))
			case "fails":
				c.Write(dubbotest.ErrorResponse(req.ID, 70, "a bug"))
			case "repeated":
				c.Write(dubbotest.ErrorResponse(req.ID, 100, "busy"))
			}
		})
		trpc := scripted.ServeTRPC(t, func(c *scripted.Conn, f trpctest.Parsed) {
			c.Write(trpctest.Response{ID: f.ID}.Bytes())
		})
		dir, admin := t.TempDir(), filepath.Join(t.TempDir(), "admin")
		grpc := envoytest.M{"envoy_grpc": envoytest.M{"cluster_name": "collector"}}
		seen := func(config envoytest.M) envoytest.M {
			config["tracing"] = envoytest.M{"provider": envoytest.M{"name": "envoy.tracers.opentelemetry", "typed_config": envoytest.M{
				"@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig", "grpc_service": grpc,
			}}}
			l := logTo(filepath.Join(dir, config["stat_prefix"].(string)))
			l["typed_config"].(envoytest.M)["log_format"] = envoytest.M{"text_format_source": envoytest.M{
				"inline_string": "%TRACE_ID% %SPAN_ID% %REQ(says)% %REQ(:PATH)%\n",
			}}
			config["access_log"] = []any{l, envoytest.M{"name": "envoy.access_loggers.open_telemetry", "typed_config": envoytest.M{
				"@type":        "type.googleapis.com/envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig",
				"grpc_service": grpc, "body": envoytest.M{"string_value": "%REQ(says)%"},
			}}}
			return config
		}
		to := func(method string, more envoytest.M) envoytest.M {
			action := envoytest.M{"cluster": "dubbo"}
			maps.Copy(action, more)
			r := envoytest.Route("dubbo", map[string]string{"method": method})
			r["route"] = action
			return r
		}
		o := v.options()
		loopback := envoytest.LoopbackWithPush(envoytest.Socket(), envoytest.M{"grpc_service": grpc, "interval": "1s"})
		carrier := loopback["filter_chains"].([]any)[0].(envoytest.M)["filters"].([]any)[0].(envoytest.M)
		carrier["typed_config"].(envoytest.M)["filter_config"].(envoytest.M)["value"].(envoytest.M)["admin_address"] = "unix:" + admin
		o.Clusters = []envoytest.Resource{
			envoytest.Cluster("dubbo", envoytest.At(dubbo.Port)...), envoytest.Cluster("trpc", envoytest.At(trpc.Port)...), cluster,
		}
		o.Listeners = []envoytest.Resource{
			loopback,
			envoytest.Listener("dubbo", envoytest.Proxy(seen(envoytest.Dubbo("dubbo",
				to("answers", nil), to("fails", nil), to("told", nil), to("late", envoytest.M{"timeout": "0.05s"}),
				to("repeated", envoytest.M{"idempotent": true, "retry_policy": envoytest.M{
					"retry_on": "retriable-status-codes", "retriable_status_codes": []int{100}, "num_retries": 1,
				}}))))),
			envoytest.Listener("trpc", envoytest.Proxy(seen(envoytest.Protocol("trpc", "trpc", envoytest.Route("trpc", nil))))),
		}
		e := envoytest.Start(t, o)
		require.True(t, eventually(patience, func() bool { return strings.Contains(e.Log(), "admin address") }))

		// A third of the requests are part of a trace that is sampled, a third of one that
		// is not, and the rest of none.
		asked, parents := 0, map[string]string{}
		context := func() [][2]string {
			asked++
			trace, parent := fmt.Sprintf("%032x", 0xabc<<32|asked), fmt.Sprintf("%016x", asked)
			switch flags := fmt.Sprintf("%02d", asked%3); flags {
			case "01":
				parents[trace] = parent
				fallthrough
			case "00":
				return [][2]string{{"says", flags}, {"traceparent", "00-" + trace + "-" + parent + "-" + flags}}
			}
			return [][2]string{{"says", "nothing"}}
		}
		methods := []string{"answers", "fails", "told", "late", "repeated", "lost"}
		for range rounds {
			for _, method := range methods {
				for range 3 {
					c := scripted.Dial(t, e.Port("dubbo"))
					r := dubbotest.Request{Method: method, Oneway: method == "told", Attachments: context()}
					c.Ask(1, r)
					if !r.Oneway {
						c.Read()
					}
					c.Close()
				}
			}
		}
		c := e.Dial("trpc")
		defer c.Close()
		for id := range uint32(3 * rounds) {
			b := trpctest.Request{ID: id + 1, TransInfo: context()}.Bytes()
			_, err := c.Write(b)
			require.NoError(t, err)
		}

		sampled := asked / 3 * 2
		require.True(t, eventually(patience, func() bool {
			s := spans.Seen()
			return len(s.Spans) >= sampled && len(s.Records) >= asked
		}), "of %d", sampled)
		got := spans.Seen()
		require.Len(t, got.Spans, sampled)
		told := map[place]*tracepb.Span{}
		for _, s := range got.Spans {
			told[placeOf(s.GetTraceId(), s.GetSpanId())] = s
			require.Equal(t, parents[hex.EncodeToString(s.GetTraceId())], hex.EncodeToString(s.GetParentSpanId()))
		}
		require.Len(t, told, sampled, "no two spans have one id")

		logged := func(where string, all map[place]string) {
			t.Helper()
			require.Len(t, all, asked, where)
			for p, says := range all {
				require.Equal(t, says != "00", told[p] != nil, "%s: %v, which says %s", where, p, says)
				require.Len(t, p.trace, 32)
			}
		}
		lines := map[place]string{}
		for _, name := range []string{"dubbo", "trpc"} {
			n := 3 * rounds
			if name == "dubbo" {
				n *= len(methods)
			}
			path := filepath.Join(dir, name)
			require.True(t, eventually(patience, func() bool { return len(loggedLines(t, path)) >= n }))
			for _, l := range loggedLines(t, path) {
				var p place
				var says, method string
				_, err := fmt.Sscan(l, &p.trace, &p.span, &says, &method)
				require.NoError(t, err, l)
				lines[p] = says
				if s := told[p]; s != nil {
					require.Equal(t, strings.TrimPrefix(method, "/"), s.GetName())
				}
			}
		}
		logged("lines", lines)
		records := map[place]string{}
		for _, r := range got.Records {
			records[placeOf(r.GetTraceId(), r.GetSpanId())] = r.GetBody().GetStringValue()
		}
		logged("records", records)

		exemplars := exemplarsOf(t, admin)
		for _, method := range append(methods, "SayHello") {
			require.NotEmpty(t, exemplars[method], method)
			for _, p := range exemplars[method] {
				require.NotNil(t, told[p], "an exemplar of %s: %v", method, p)
				require.True(t, strings.HasSuffix(told[p].GetName(), "/"+method), told[p].GetName())
			}
		}
		require.True(t, eventually(patience, func() bool {
			n := 0
			for _, m := range spans.Seen().Metrics {
				for _, d := range m.GetExponentialHistogram().GetDataPoints() {
					for _, x := range d.GetExemplars() {
						n++
						require.NotNil(t, told[placeOf(x.GetTraceId(), x.GetSpanId())], "a pushed exemplar: %v", x)
					}
				}
			}
			return n >= len(methods)+1
		}))
	})
}
