package e2e

import (
	"bytes"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/meltemi-mesh/meltemi/codecs/brpc/brpctest"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/codecs/trpc/trpctest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// withPolicy sets fields of the only route of a configuration.
func withPolicy(config, fields envoytest.M) envoytest.M {
	action := config["route_config"].(envoytest.M)["routes"].([]any)[0].(envoytest.M)["route"].(envoytest.M)
	for k, v := range fields {
		action[k] = v
	}
	return config
}

// withBudget has the clusters of a configuration get that share of retries.
func withBudget(config envoytest.M, percent int) envoytest.M {
	config["route_config"].(envoytest.M)["clusters"] = []any{envoytest.M{
		"name": "*", "retry_budget": envoytest.M{"budget_percent": envoytest.M{"value": percent}},
	}}
	return config
}

// refuser is a server of a protocol that does nothing but refuse, and a server and a
// client of a real library.
type refuser struct {
	refuses func(t *testing.T) (port int, requests func() int64)
	good    func(t *testing.T) int
	client  func(t *testing.T, port int) *peers.Consumer
	who     peers.Command
}

var refusers = map[string]refuser{
	"dubbo": {
		func(t *testing.T) (int, func() int64) {
			s := scripted.Serve(t, func(c *scripted.Conn, req dubbotest.Parsed) {
				c.Write(dubbotest.ErrorResponse(req.ID, 100, "the pool of threads is exhausted"))
			})
			return s.Port, s.Requests
		},
		func(t *testing.T) int { return peers.DubboGo.Provider(t, peers.ProviderOptions{Name: "s1"}).Port },
		func(t *testing.T, port int) *peers.Consumer {
			return peers.DubboGo.Consumer(t, port, peers.ConsumerOptions{Connections: 4})
		},
		peers.Command{Method: "who"},
	},
	"trpc": {
		func(t *testing.T) (int, func() int64) {
			s := scripted.ServeTRPC(t, func(c *scripted.Conn, f trpctest.Parsed) {
				c.Write(trpctest.Response{ID: f.ID, Ret: 22, ErrorMsg: "overloaded"}.Bytes())
			})
			return s.Port, s.Requests
		},
		func(t *testing.T) int { return peers.TRPCServer(t, peers.TRPCServerOptions{Name: "s1"}).Port },
		func(t *testing.T, port int) *peers.Consumer {
			return peers.TRPCClient(t, port, peers.TRPCClientOptions{})
		},
		trpcCall("Who"),
	},
	"brpc": {
		func(t *testing.T) (int, func() int64) {
			s := scripted.ServeBRPC(t, func(c *scripted.Conn, f brpctest.Parsed) {
				c.Write(brpctest.Response{ID: f.ID, Code: 2004, Text: "ELIMIT"}.Bytes())
			})
			return s.Port, s.Requests
		},
		func(t *testing.T) int { return peers.JProtobuf.Server(t, "s1").Port },
		func(t *testing.T, port int) *peers.Consumer {
			return peers.JProtobuf.Client(t, port, peers.BRPCOptions{Connections: 4})
		},
		brpcCall("Who"),
	},
	"thrift": {
		func(t *testing.T) (int, func() int64) {
			s := scripted.ServeThrift(t, shedsLoad)
			return s.Port, s.Requests
		},
		func(t *testing.T) int { return peers.ThriftGo.Server(t, "s1", thriftWires[0]).Port },
		func(t *testing.T, port int) *peers.Consumer { return peers.ThriftGo.Client(t, port, thriftWires[0], 0) },
		thriftCall("who"),
	},
}

// TestRefusalsAreRetriedElsewhere: one of two servers refuses whatever it is asked, and
// no client notices.
func TestRefusalsAreRetriedElsewhere(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		for protocol, r := range refusers {
			t.Run(protocol, func(t *testing.T) {
				bad, refused := r.refuses(t)
				good := r.good(t)
				config := envoytest.Protocol(protocol, "test", envoytest.Route("two", nil))
				policy := envoytest.M{"retry_policy": envoytest.M{
					"retry_on": "connect-failure,overloaded", "num_retries": 3, "retry_back_off": envoytest.M{"base_interval": "0.01s"},
				}}
				o := v.options()
				o.Args = []string{"--component-log-level", v.component() + ":debug"}
				o.Clusters = []envoytest.Resource{envoytest.Cluster("two", envoytest.At(bad, good)...)}
				o.Listeners = []envoytest.Resource{
					envoytest.Loopback(envoytest.Socket()),
					envoytest.Listener(protocol, envoytest.Proxy(withBudget(withPolicy(config, policy), 100))),
				}
				e := envoytest.Start(t, o)
				c := r.client(t, e.Port(protocol))
				require.True(t, eventually(patience, func() bool { return c.Call(r.who).Error == "" }))
				stats := "meta_protocol." + protocol + ".test."
				load := r.who
				load.Count, load.Concurrency, load.Summary = 200, 8, true
				s := c.Load(load)
				require.Empty(t, s.Errors)
				require.Equal(t, map[string]int{"s1": 200}, s.Values)
				require.Positive(t, refused())
				e.WaitStat(stats+"request_retry", envoytest.AtLeast(1))
				e.WaitStat(stats+"request_retry_success", envoytest.AtLeast(1))
				require.Zero(t, e.Stat(stats+"request_retry_overflow"))
				require.Contains(t, e.Log(), "test: request to two: sent again (overloaded)")
				require.Contains(t, e.Log(), "test: request to two: answered after a retry")
				checkCountersOf(t, e, stats)
			})
		}
	})
}

// told reads, of a request that a server has got, the ms for which an answer is awaited.
// -1: it does not say.
type told func(frame []byte) int

func digits(re string) told {
	r := regexp.MustCompile("(?s)" + re)
	return func(b []byte) int {
		if m := r.FindSubmatch(b); m != nil {
			n, _ := strconv.Atoi(string(m[1]))
			return n
		}
		return -1
	}
}

var (
	dubboTimeout = digits(`\x07timeout.(\d+)`)  // an attachment, a string
	kitexTimeout = digits(`\x00\x0c\x00.(\d+)`) // key 12 of a TTHeader
)

func trpcTimeout(b []byte) int {
	f, _ := trpctest.Parse(b, true)
	return number(f[0].Header, 4)
}

func brpcTimeout(b []byte) int {
	f, _ := brpctest.Parse(b)
	return number(f[0].Meta, 1, 8)
}

// dubboLeft is the attachment _TO, an int of two or three bytes.
func dubboLeft(b []byte) int {
	const key = "\x03_TO"
	i := bytes.Index(b, []byte(key))
	if i < 0 {
		return -1
	}
	switch v := b[i+len(key):]; {
	case v[0] >= 0xc0 && v[0] < 0xd0:
		return (int(v[0])-0xc8)<<8 + int(v[1])
	case v[0] >= 0xd0 && v[0] < 0xd8:
		return (int(v[0])-0xd4)<<16 + int(v[1])<<8 + int(v[2])
	}
	return -1
}

// number finds a field of a protobuf message, within those that the path names.
func number(b []byte, path ...protowire.Number) int {
	for len(b) > 0 {
		n, typ, size := protowire.ConsumeField(b)
		if size < 0 {
			return -1
		}
		_, _, tag := protowire.ConsumeTag(b)
		switch value := b[tag:size]; {
		case n != path[0]:
		case len(path) > 1 && typ == protowire.BytesType:
			inner, _ := protowire.ConsumeBytes(value)
			return number(inner, path[1:]...)
		case len(path) == 1 && typ == protowire.VarintType:
			v, _ := protowire.ConsumeVarint(value)
			return int(v)
		}
		b = b[size:]
	}
	return -1
}

// ttheader is a call of Kitex's with that timeout, "" for none.
func ttheader(timeout string) []byte {
	info := []byte{0, 0} // protocol, transforms
	if timeout != "" {
		info = append(info, 0x10, 0, 1, 0, 12, 0, byte(len(timeout)))
		info = append(info, timeout...)
	}
	for len(info)%4 > 0 {
		info = append(info, 0)
	}
	b := []byte{0x10, 0, 0, 0, 0, 0, 0, 1, 0, byte(len(info) / 4)}
	b = append(append(b, info...), scripted.ThriftMessage{Type: scripted.ThriftCall, Method: "echo", SeqID: 1}.Bytes()[4:]...)
	return append([]byte{0, 0, 0, byte(len(b))}, b...)
}

// TestDeadlinesAreToldUpstream: the shorter of the route's and the client's, in each
// protocol that can tell it.
func TestDeadlinesAreToldUpstream(t *testing.T) {
	t.Parallel()
	dubbo := func(attachments ...[2]string) []byte {
		return dubbotest.Request{ID: 1, Attachments: attachments}.Bytes()
	}
	const route = 1500
	once(t, func(t *testing.T, v variant) {
		for _, tt := range []struct {
			name, protocol string
			request        []byte
			told           []told
			want           int
		}{
			{"silent", "dubbo", dubbo(), []told{dubboTimeout}, route},
			{"longer", "dubbo", dubbo([2]string{"timeout", "9000"}), []told{dubboTimeout}, route},
			{"shorter", "dubbo", dubbo([2]string{"timeout", "900"}), []told{dubboTimeout}, 900},
			{"less left", "dubbo", dubbo([2]string{"timeout", "900"}, [2]string{"_TO", "700"}), []told{dubboTimeout, dubboLeft}, 700},
			{"silent", "trpc", trpctest.Request{ID: 1}.Bytes(), []told{trpcTimeout}, route},
			{"shorter", "trpc", trpctest.Request{ID: 1, TimeoutMS: 900}.Bytes(), []told{trpcTimeout}, 900},
			{"silent", "brpc", brpctest.Request{ID: 1}.Bytes(), []told{brpcTimeout}, route},
			{"shorter", "brpc", brpctest.Request{ID: 1, TimeoutMS: 900}.Bytes(), []told{brpcTimeout}, 900},
			{"silent", "thrift", ttheader(""), []told{kitexTimeout}, route},
			{"longer", "thrift", ttheader("20000"), []told{kitexTimeout}, route},
			{"shorter", "thrift", ttheader("900"), []told{kitexTimeout}, 900},
		} {
			t.Run(tt.protocol+", "+tt.name, func(t *testing.T) {
				got := make(chan []byte, 10)
				s := scripted.ServeBytes(t, func(_ *scripted.Conn, b []byte) []byte { got <- slices.Clone(b); return nil })
				config := withPolicy(envoytest.Protocol(tt.protocol, "test", envoytest.Route("one", nil)), envoytest.M{"timeout": "1.5s"})
				e := v.start(t, config, envoytest.Cluster("one", envoytest.At(s.Port)...))
				// Connections, and a busy machine, take their time, which is the request's:
				// one of them is quick.
				c := e.Dial(tt.protocol)
				require.True(t, eventually(patience, func() bool {
					_, err := c.Write(tt.request)
					require.NoError(t, err)
					frame, quick := <-got, true
					for _, told := range tt.told {
						ms := told(frame)
						require.LessOrEqual(t, ms, tt.want, "%q", frame)
						quick = quick && ms > tt.want-400
					}
					return quick
				}))
			})
		}
	})
}

// TestASpentDeadlineIsAnsweredAtOnce, and nothing is sent: neither when it has come so,
// nor when it passes while the request waits for a connection.
func TestASpentDeadlineIsAnsweredAtOnce(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		s := scripted.Serve(t, scripted.Answer("here"))
		config := envoytest.Dubbo("test", envoytest.Route("nowhere", map[string]string{"method": "waits"}), envoytest.Route("one", nil))
		config["route_config"].(envoytest.M)["timeout"] = "5s"
		e := v.start(t, config, envoytest.Cluster("one", envoytest.At(s.Port)...),
			envoytest.Cluster("nowhere", blackhole(t)...).With(envoytest.M{"connect_timeout": "10s"}))
		c := scripted.Dial(t, e.Port("dubbo"))
		c.Ask(1, dubbotest.Request{Attachments: [][2]string{{"_TO", "-5"}}})
		a := c.Read()
		require.EqualValues(t, 31, a.Status)
		require.Equal(t, "the deadline of the request has passed before it could be sent", a.Text())
		begin := time.Now()
		c.Ask(2, dubbotest.Request{Method: "waits", Attachments: [][2]string{{"timeout", "300"}}})
		a = c.Read()
		require.EqualValues(t, 31, a.Status)
		require.Equal(t, "timeout while waiting for an upstream connection", a.Text())
		require.GreaterOrEqual(t, time.Since(begin), 300*time.Millisecond)
		require.Less(t, time.Since(begin), 3*time.Second)
		require.Zero(t, s.Requests())
		e.WaitStat(stats+"request_deadline_spent", envoytest.Exactly(1))
		checkCounters(t, e)
	})
}

// callers makes n calls, as many at a time as there are connections, and returns how
// long each took and how many have failed.
func callers(t *testing.T, port, connections, n int, method string) (took []time.Duration, failed int) {
	var mu sync.Mutex
	var next atomic.Int64
	var wg sync.WaitGroup
	for range connections {
		c := scripted.Dial(t, port)
		wg.Go(func() {
			var mine []time.Duration
			bad := 0
			for id := next.Add(1); id <= int64(n); id = next.Add(1) {
				begin := time.Now()
				if _, err := c.Write(dubbotest.Request{ID: uint64(id), Method: method, Argument: strconv.FormatInt(id, 10)}.Bytes()); err != nil {
					t.Error(err)
					return
				}
				a, err := c.TryRead()
				if err != nil || a.ID != uint64(id) {
					t.Errorf("call %d: %v, %+v", id, err, a)
					return
				}
				mine = append(mine, time.Since(begin))
				if a.Status != statusOK {
					bad++
				}
			}
			mu.Lock()
			defer mu.Unlock()
			took, failed = append(took, mine...), failed+bad
		})
	}
	wg.Wait()
	return took, failed
}

// sometimes does with one of n requests what b does, and answers the others.
func sometimes(n int64, b scripted.Behaviour) scripted.Behaviour {
	var requests atomic.Int64
	answer := scripted.Answer("good")
	return func(c *scripted.Conn, req dubbotest.Parsed) {
		if requests.Add(1)%n == 0 {
			b(c, req)
		} else {
			answer(c, req)
		}
	}
}

// four servers, the first of which behaves so, and the number of requests of all.
func four(t *testing.T, first scripted.Behaviour) (at []envoytest.Endpoint, requests func() int64) {
	all := []*scripted.Server{scripted.Serve(t, first)}
	for range 3 {
		all = append(all, scripted.Serve(t, scripted.Answer("good")))
	}
	for _, s := range all {
		at = append(at, envoytest.Endpoint{Port: s.Port})
	}
	return at, func() (n int64) {
		for _, s := range all {
			n += s.Requests()
		}
		return n
	}
}

// bad is what a server may do that clients are not to notice.
var bad = map[string]scripted.Behaviour{
	"resets": scripted.Reset, "closes": scripted.Close, "hangs": scripted.Never, "half frames": scripted.HalfFrame,
	"half frames and the end": scripted.CloseMidFrame, "garbage": scripted.Garbage,
	"errors": func(c *scripted.Conn, req dubbotest.Parsed) { c.Write(dubbotest.ErrorResponse(req.ID, 80, "bad")) },
	"late":   scripted.After(3*time.Second, scripted.Answer("late")),
}

// TestOneOfFourServersFails, now and then or always, and clients do not notice. One that
// always does is left out.
func TestOneOfFourServersFails(t *testing.T) {
	t.Parallel()
	for name, b := range bad {
		for often, n := range map[string]int64{"now and then": 10, "always": 1} {
			t.Run(name+" "+often, func(t *testing.T) {
				once(t, func(t *testing.T, v variant) { oneOfFourFails(t, v, b, n) })
			})
		}
	}
}

func oneOfFourFails(t *testing.T, v variant, b scripted.Behaviour, oneOf int64) {
	at, requests := four(t, sometimes(oneOf, b))
	config := withPolicy(toOne("four"), envoytest.M{"idempotent": true, "retry_policy": envoytest.M{
		"retry_on": "connect-failure,refused,reset,timeout,server-error", "num_retries": 2,
		"per_try_timeout": "0.5s", "retry_back_off": envoytest.M{"base_interval": "0.005s"},
	}})
	config["route_config"].(envoytest.M)["clusters"] = []any{envoytest.M{
		"name": "four", "outlier_detection": envoytest.M{"consecutive_failures": 2, "base_ejection_time": "60s", "max_ejection_percent": 30},
	}}
	e := v.start(t, config, envoytest.Cluster("four", at...))
	const n = 3000
	took, failed := callers(t, e.Port("dubbo"), 8, n, "")
	require.Len(t, took, n)
	t.Logf("%d requests for %d calls, %d failed, the slowest took %v", requests(), n, failed, slices.Max(took))
	require.LessOrEqual(t, failed, n/1000)
	require.LessOrEqual(t, requests(), int64(n*12/10))
	e.WaitStat(stats+"request_retry", envoytest.AtLeast(1))
	if oneOf == 1 {
		e.WaitStat(stats+"outlier_ejections_active", envoytest.Exactly(1))
	}
	checkCounters(t, e)
}

// TestOneOfFourThriftServersFails, each of whose connections serves one call at a time.
func TestOneOfFourThriftServersFails(t *testing.T) {
	t.Parallel()
	for name, fails := range map[string]func(*scripted.Conn, scripted.ThriftMessage){
		"resets": func(c *scripted.Conn, _ scripted.ThriftMessage) { scripted.Reset(c, dubbotest.Parsed{}) },
		"hangs":  func(*scripted.Conn, scripted.ThriftMessage) {},
		"half frames": func(c *scripted.Conn, req scripted.ThriftMessage) {
			req.Type = scripted.ThriftReply
			c.Write(req.Bytes()[:9])
		},
		"sheds load": shedsLoad,
	} {
		t.Run(name, func(t *testing.T) {
			once(t, func(t *testing.T, v variant) {
				// It is the one that is called first: few calls at once do not need connections
				// to all of them.
				var requests, failing, ofIt, calls atomic.Int64
				var at []envoytest.Endpoint
				for i := range int64(4) {
					at = append(at, envoytest.Endpoint{Port: scripted.ServeThrift(t, func(c *scripted.Conn, req scripted.ThriftMessage) {
						requests.Add(1)
						failing.CompareAndSwap(0, i+1)
						if failing.Load() != i+1 || ofIt.Add(1)%8 > 0 {
							scripted.ThriftEcho(c, req)
						} else {
							fails(c, req)
						}
					}).Port})
				}
				e := v.start(t, withPolicy(thriftTo("four"), envoytest.M{"idempotent": true, "retry_policy": envoytest.M{
					"retry_on": "connect-failure,overloaded,reset,timeout", "num_retries": 3,
					"per_try_timeout": "0.5s", "retry_back_off": envoytest.M{"base_interval": "0.005s"},
				}}), envoytest.Cluster("four", at...))
				warm := scripted.DialThrift(t, e.Port("thrift"))
				require.True(t, eventually(patience, func() bool { // its method is known for a call then
					warm.Ask(1, "echo", "x")
					return warm.Read().Type == scripted.ThriftReply
				}))
				requests.Store(0)
				const clients, n = 8, 200
				var failed atomic.Int64
				var wg sync.WaitGroup
				for range clients {
					c := scripted.DialThrift(t, e.Port("thrift"))
					wg.Go(func() {
						start := time.Now()
						for i := int32(0); i < n || ofIt.Load() < 8 && time.Since(start) < patience; i++ {
							calls.Add(1)
							c.Send(scripted.ThriftMessage{Type: scripted.ThriftCall, Method: "echo", SeqID: i, Text: strconv.Itoa(int(i))}.Bytes()...)
							if a := c.Read(); a.Type != scripted.ThriftReply || a.SeqID != i || a.Text != strconv.Itoa(int(i)) {
								failed.Add(1)
							}
						}
					})
				}
				wg.Wait()
				t.Logf("%d requests for %d calls, %d failed", requests.Load(), calls.Load(), failed.Load())
				require.LessOrEqual(t, failed.Load(), calls.Load()/1000)
				require.LessOrEqual(t, requests.Load(), calls.Load()*12/10)
				e.WaitStat(thriftStats+"request_retry", envoytest.AtLeast(1))
				checkCountersOf(t, e, thriftStats)
			})
		})
	}
}

// shedsLoad refuses as fbthrift does.
func shedsLoad(c *scripted.Conn, req scripted.ThriftMessage) {
	req.Type, req.Text, req.Kind = scripted.ThriftException, "loadshedding request", 11
	c.Write(req.Bytes())
}

func percentile(of []time.Duration, p int) time.Duration {
	slices.Sort(of)
	return of[min(len(of)*p/100, len(of)-1)]
}

// TestAHedgeCutsTheTail: one of four servers is slow at one of eight requests.
func TestAHedgeCutsTheTail(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		at, requests := four(t, sometimes(8, scripted.After(1500*time.Millisecond, scripted.Answer("slow"))))
		hedged := envoytest.Route("four", map[string]string{"method": "hedged"})
		config := withPolicy(envoytest.Dubbo("test", hedged, envoytest.Route("four", nil)), envoytest.M{
			"idempotent": true, "hedge_policy": envoytest.M{"hedge_delay": "0.2s"},
		})
		e := v.start(t, config, envoytest.Cluster("four", at...))
		const n = 2000
		plain, failed := callers(t, e.Port("dubbo"), 24, n, "plain")
		require.Zero(t, failed)
		before := requests()
		took, failed := callers(t, e.Port("dubbo"), 24, n, "hedged")
		require.Zero(t, failed)
		without, with := percentile(plain, 98), percentile(took, 98)
		t.Logf("p98 is %v, hedged %v, for %d requests in %d calls", without, with, requests()-before, n)
		require.LessOrEqual(t, with, without/3)
		require.LessOrEqual(t, requests()-before, int64(n*115/100))
		e.WaitStat(stats+"request_hedge_won", envoytest.AtLeast(1))
		checkCounters(t, e)
	})
}

// argument is that of a request of dubbotest: the sixth of its strings, all of them short.
func argument(req dubbotest.Parsed) string {
	b := req.Body
	for range 5 {
		b = b[1+int(b[0]):]
	}
	return string(b[1 : 1+int(b[0])])
}

// TestHostileResetsHaveNothingExecutedTwice: servers that lose their connections before,
// behind and in the midst of answers, refuse, and leave, behind a route that does not say
// that its requests are idempotent.
func TestHostileResetsHaveNothingExecutedTwice(t *testing.T) {
	t.Parallel()
	n := 100_000
	if large() {
		n = 1_000_000
	}
	once(t, func(t *testing.T, v variant) {
		executed := make([]atomic.Int32, n+1)
		serve := func(c *scripted.Conn, req dubbotest.Parsed) {
			luck := rand.IntN(2000)
			if luck < 20 { // not executed
				c.Write(dubbotest.ErrorResponse(req.ID, 100, "the pool of threads is exhausted"))
				return
			}
			i, err := strconv.Atoi(argument(req))
			if err != nil {
				t.Errorf("%q: %v", req.Body, err)
				return
			}
			executed[i].Add(1)
			switch luck {
			case 20, 21:
				scripted.Reset(c, req)
			case 22:
				scripted.Close(c, req)
			case 23:
				scripted.CloseMidFrame(c, req)
			case 24:
				scripted.Garbage(c, req)
			case 25:
				c.Write(dubbotest.ReadOnly(1))
				fallthrough
			default:
				c.Write(dubbotest.Response(req.ID, "done"))
			}
		}
		var at []envoytest.Endpoint
		for range 4 {
			at = append(at, envoytest.Endpoint{Port: scripted.Serve(t, serve).Port})
		}
		e := v.start(t, withPolicy(toOne("four"), envoytest.M{"retry_policy": envoytest.M{
			"retry_on": "connect-failure,refused,overloaded", "num_retries": 3, "retry_back_off": envoytest.M{"base_interval": "0.002s"},
		}}), envoytest.Cluster("four", at...))
		const clients, together = 8, 50
		var good, bad, unexecuted atomic.Int64
		var wg sync.WaitGroup
		for k := range clients {
			c := scripted.Dial(t, e.Port("dubbo"))
			wg.Go(func() {
				for i := k * n / clients; i < (k+1)*n/clients; {
					var b []byte
					last := min(i+together, (k+1)*n/clients)
					waits := map[uint64]bool{}
					for ; i < last; i++ {
						waits[uint64(i)] = true
						b = append(b, dubbotest.Request{ID: uint64(i), Argument: strconv.Itoa(i)}.Bytes()...)
					}
					if _, err := c.Write(b); err != nil {
						t.Error(err)
						return
					}
					for len(waits) > 0 {
						a, err := c.TryRead()
						if err != nil || !waits[a.ID] {
							t.Errorf("%v: %+v", err, a)
							return
						}
						delete(waits, a.ID)
						if a.Status != statusOK {
							bad.Add(1)
							continue
						}
						good.Add(1)
						if executed[a.ID].Load() == 0 {
							unexecuted.Add(1)
						}
					}
				}
			})
		}
		wg.Wait()
		twice := 0
		for i := range executed {
			if executed[i].Load() > 1 {
				twice++
			}
		}
		require.Zero(t, twice, "executed twice")
		require.Zero(t, unexecuted.Load(), "answered and not executed")
		require.EqualValues(t, n, good.Load()+bad.Load())
		e.WaitStat(stats+"request_retry_success", envoytest.AtLeast(int64(n/200)))
		t.Logf("%d calls, %d failed", n, bad.Load())
		checkCounters(t, e)
	})
}
