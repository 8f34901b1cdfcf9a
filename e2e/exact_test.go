package e2e

import (
	"bytes"
	"fmt"
	"maps"
	"net"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	_ "github.com/meltemi-mesh/meltemi/codecs/brpc"
	"github.com/meltemi-mesh/meltemi/codecs/brpc/brpctest"
	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	_ "github.com/meltemi-mesh/meltemi/codecs/thrift"
	_ "github.com/meltemi-mesh/meltemi/codecs/trpc"
	"github.com/meltemi-mesh/meltemi/codecs/trpc/trpctest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// spoken is a protocol that scripted clients and servers speak by its codec.
type spoken struct {
	name    string
	request func(id uint64, method string, oneway bool) []byte
	answer  func(id uint64, method string) []byte
	oneways bool
	busy    int32 // the code of a server that has too much to do
}

const trpcService = "/trpc.app.server.Greeter/"

var exactly = []spoken{
	{
		name: "dubbo", oneways: true, busy: 100,
		request: func(id uint64, method string, oneway bool) []byte {
			return dubbotest.Request{ID: id, Method: method, Oneway: oneway}.Bytes()
		},
		answer: func(id uint64, _ string) []byte { return dubbotest.Response(id, "x") },
	},
	{
		name: "thrift", oneways: true, busy: 6,
		request: func(id uint64, method string, oneway bool) []byte {
			m := scripted.ThriftMessage{Type: scripted.ThriftCall, Method: method, SeqID: int32(id), Text: "x"}
			if oneway {
				m.Type = scripted.ThriftOneway
			}
			return m.Bytes()
		},
		answer: func(id uint64, method string) []byte {
			return scripted.ThriftMessage{Type: scripted.ThriftReply, Method: method, SeqID: int32(id), Text: "x"}.Bytes()
		},
	},
	{
		name: "trpc", oneways: true, busy: 23,
		request: func(id uint64, method string, oneway bool) []byte {
			return trpctest.Request{ID: uint32(id), Func: trpcService + method, Oneway: oneway}.Bytes()
		},
		answer: func(id uint64, _ string) []byte { return trpctest.Response{ID: uint32(id)}.Bytes() },
	},
	{
		name: "brpc", busy: 2004,
		request: func(id uint64, method string, _ bool) []byte {
			return brpctest.Request{ID: id, Method: method}.Bytes()
		},
		answer: func(id uint64, _ string) []byte { return brpctest.Response{ID: id, Body: []byte("x")}.Bytes() },
	},
}

func (p *spoken) codec(t *testing.T) codecs.Codec {
	t.Helper()
	newCodec, ok := codecs.Lookup("aeraki.meta_protocol.codec." + p.name)
	require.True(t, ok)
	c, err := newCodec(nil, codecs.Limits{})
	require.NoError(t, err)
	return c
}

// serve does what methods are called: "ok…" is answered, "error" and "busy" with an error,
// others never; "never" is counted.
func (p *spoken) serve(t *testing.T, never *atomic.Int64) int {
	codec := p.codec(t)
	return scripted.ServeBytes(t, func(c *scripted.Conn, b []byte) []byte {
		dec := codec.NewDecoder(codecs.ClientToServer)
		var out []byte
		for len(b) > 0 {
			var m codecs.Metadata
			n, err := dec.Decode(b, &m)
			if err != nil {
				t.Errorf("%s: %v", p.name, err)
				return nil
			}
			if n > len(b) {
				break
			}
			method := path.Base(string(m.Method()))
			switch {
			case m.Type != codecs.Request:
			case strings.HasPrefix(method, "ok"):
				out = append(out, p.answer(m.ID, method)...)
			case method == "error" || method == "busy":
				e := codecs.LocalError{Type: codecs.Unspecified, Message: method}
				if method == "busy" {
					e.Type = codecs.OverLimit
				}
				if out, err = codec.EncodeError(out, &m, &e); err != nil {
					t.Errorf("%s: %v", p.name, err)
				}
			case method == "never":
				never.Add(1)
			}
			b = b[n:]
		}
		_, _ = c.Write(out)
		return bytes.Clone(b)
	}).Port
}

// answered is what clients have seen of their answers.
type answered struct{ ok, failed atomic.Int64 }

// ask sends requests and reads as many answers.
func (p *spoken) ask(codec codecs.Codec, c net.Conn, requests []byte, answers int, s *answered) error {
	go func() { _, _ = c.Write(requests) }() // answers come meanwhile
	dec := codec.NewDecoder(codecs.ServerToClient)
	var b []byte
	chunk := make([]byte, 64<<10)
	for answers > 0 {
		_ = c.SetReadDeadline(time.Now().Add(patience))
		n, err := c.Read(chunk)
		if err != nil && n == 0 {
			return fmt.Errorf("%s: %d answers are missing: %w", p.name, answers, err)
		}
		for b = append(b, chunk[:n]...); len(b) > 0; answers-- {
			var m codecs.Metadata
			n, err := dec.Decode(b, &m)
			if err != nil {
				return err
			}
			if n > len(b) {
				break
			}
			if m.Status == codecs.StatusOK {
				s.ok.Add(1)
			} else {
				s.failed.Add(1)
			}
			b = b[n:]
		}
	}
	if answers < 0 {
		return fmt.Errorf("%s: %d answers too many", p.name, -answers)
	}
	return nil
}

// TestEachRequestIsCountedAndLoggedOnce: 100,000 requests of four protocols over two
// workers, answered, refused by servers, repeated, copied, without an answer, without a
// route, too late, and left by their clients. What clients have seen of answers, what is
// counted by outcome, and what is logged by outcome is the same.
func TestEachRequestIsCountedAndLoggedOnce(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		const clients, rounds, late, left = 4, 61, 3, 5
		dir, admin := t.TempDir(), filepath.Join(t.TempDir(), "admin")
		o := v.options()
		o.Listeners = []envoytest.Resource{envoytest.LoopbackWithAdmin(envoytest.Socket(), "unix:"+admin)}
		never := make([]atomic.Int64, len(exactly))
		for i := range exactly {
			p := &exactly[i]
			o.Clusters = append(o.Clusters, envoytest.Cluster(p.name, envoytest.At(p.serve(t, &never[i]))...))
			to := func(method string, more envoytest.M) envoytest.M {
				action := envoytest.M{"cluster": p.name}
				maps.Copy(action, more)
				property, value := "method", method
				if p.name == "trpc" {
					property, value = "func", trpcService+method
				}
				return envoytest.M{"match": envoytest.M{"metadata": []any{envoytest.M{"name": property, "string_match": envoytest.M{"exact": value}}}}, "route": action}
			}
			c := envoytest.Protocol(p.name, p.name,
				to("ok", nil), to("error", nil), to("never", nil), to("tell", nil),
				to("ok-copied", envoytest.M{"request_mirror_policies": []any{envoytest.M{"cluster": p.name, "max_requests": 10_000}}}),
				to("busy", envoytest.M{"idempotent": true, "retry_policy": envoytest.M{
					"retry_on": "retriable-status-codes", "retriable_status_codes": []int32{p.busy}, "num_retries": 1,
					"retry_back_off": envoytest.M{"base_interval": "0.001s"},
				}}),
				to("late", envoytest.M{"timeout": "0.05s"}))
			c["route_config"].(envoytest.M)["clusters"] = []any{envoytest.M{"name": "*", "retry_budget": envoytest.M{"min_retries_per_second": 100_000, "max_concurrent_retries": 100_000}}}
			l := logTo(filepath.Join(dir, p.name))
			l["typed_config"].(envoytest.M)["log_format"] = envoytest.M{"text_format_source": envoytest.M{
				"inline_string": "%MESSAGE_TYPE% %RESPONSE_CODE% %RESPONSE_FLAGS% %UPSTREAM_REQUEST_ATTEMPT_COUNT%\n",
			}}
			c["access_log"], c["access_log_options"] = []any{l}, envoytest.M{"log_mirrors": true}
			c["request_timeout"] = "60s"
			o.Listeners = append(o.Listeners, envoytest.Listener(p.name, envoytest.Proxy(c)))
		}
		e := envoytest.Start(t, o)
		// Requests are counted from when there is somebody to see it.
		require.True(t, eventually(patience, func() bool {
			_, err := os.Stat(admin)
			return err == nil
		}))
		scrape(t, admin)

		total := int64(0)
		var load sync.WaitGroup
		answers := make([]answered, len(exactly))
		for i := range exactly {
			p := &exactly[i]
			codec := p.codec(t)
			for range clients {
				c := e.Dial(p.name)
				load.Go(func() {
					defer c.Close()
					id := uint64(0)
					for range rounds {
						var b []byte
						say := func(n int, method string, oneway bool) {
							for range n {
								id++
								b = append(b, p.request(id, method, oneway)...)
							}
						}
						say(70, "ok", false)
						say(10, "ok-copied", false)
						say(10, "error", false)
						say(2, "busy", false)
						say(8, "lost", false)
						if p.oneways {
							say(5, "tell", true)
						}
						if err := p.ask(codec, c, b, 100, &answers[i]); err != nil {
							t.Error(err)
							return
						}
					}
				})
				for range late { // alone: what goes on without its answer may want none
					c := e.Dial(p.name)
					load.Go(func() {
						defer c.Close()
						if err := p.ask(codec, c, p.request(1, "late", false), 1, &answers[i]); err != nil {
							t.Error(err)
						}
					})
				}
			}
			c := e.Dial(p.name)
			load.Go(func() {
				var b []byte
				for id := range uint64(left) {
					b = append(b, p.request(id+1, "never", false)...)
				}
				_, err := c.Write(b)
				if err != nil || !eventually(patience, func() bool { return never[i].Load() == left }) {
					t.Errorf("%s: the server gets %d requests: %v", p.name, never[i].Load(), err)
				}
				_ = c.SetLinger(0) // it leaves at once, and does not only say no more
				_ = c.Close()
			})
		}
		load.Wait()
		for i := range exactly {
			p := &exactly[i]
			stat := "meta_protocol." + p.name + "." + p.name + "."
			keeper := e.Dial(p.name) // counters are told by connections
			defer keeper.Close()
			for _, gauge := range []string{"request_active", "mirror_active"} {
				e.WaitStat(stat+gauge, envoytest.Exactly(0))
			}
			n := int64(clients * rounds)
			want := map[string]int64{"ok": 80 * n, "error": 10 * n, "URX": 2 * n, "NR": 8 * n, "UT": clients * late, "DC": left}
			if p.oneways {
				want["none"] = 5 * n
			}
			requests := int64(0)
			for _, of := range want {
				requests += of
			}
			require.Equal(t, want["ok"], answers[i].ok.Load(), p.name)
			require.Equal(t, want["error"]+want["URX"]+want["NR"]+want["UT"], answers[i].failed.Load(), p.name)

			counted := func() map[string]int64 { return byOutcome(scrape(t, admin)["meltemi_requests_total"], p.name) }
			require.True(t, eventually(patience, func() bool { return maps.Equal(want, counted()) }), "%s: want %v, counted %v", p.name, want, counted())
			copies := n*10 - e.Stat(stat+"mirror_overflow")
			require.Zero(t, e.Stat(stat+"access_log_lost"))
			var ls []string
			require.True(t, eventually(patience, func() bool {
				ls = loggedLines(t, filepath.Join(dir, p.name))
				return len(ls) >= int(requests+copies)
			}))
			logged, mirrors := map[string]int64{}, int64(0)
			for _, l := range ls {
				var kind, code, flags string
				var attempts int
				_, err := fmt.Sscan(l, &kind, &code, &flags, &attempts)
				require.NoError(t, err, l)
				switch {
				case kind == "mirror":
					mirrors++
					continue
				case flags == "URX":
					require.Equal(t, 2, attempts)
				case flags == "-" && code == "200":
					flags = "ok"
				case flags == "-" && code == "0":
					require.Equal(t, "oneway", kind)
					flags = "none"
				case flags == "-":
					flags = "error"
				}
				logged[flags]++
			}
			require.Equal(t, want, logged, p.name)
			require.Equal(t, copies, mirrors, p.name)
			total += requests
		}
		require.GreaterOrEqual(t, total, int64(100_000))
	})
}

// byOutcome adds up the counters of a protocol by their outcome.
func byOutcome(f *dto.MetricFamily, protocol string) map[string]int64 {
	all := map[string]int64{}
	for _, m := range f.GetMetric() {
		labels := map[string]string{}
		for _, l := range m.GetLabel() {
			labels[l.GetName()] = l.GetValue()
		}
		if labels["protocol"] == protocol {
			all[labels["outcome"]] += int64(m.GetCounter().GetValue())
		}
	}
	return all
}
