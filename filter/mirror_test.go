package filter_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

// mirrorEnv is a toyEnv whose requests are copied to a cluster "mirror".
type mirrorEnv struct {
	toyEnv
	mod    *filter.Module
	mirror *filtertest.Cluster
}

const toMirror = `[{"cluster": "mirror"}]`

func mirrorConfig(codec, policies, more string) string {
	return fmt.Sprintf(`{"stat_prefix": "t", "protocol": {"name": "toy", "codec": {"name": %q}}, "route_config": {"name": "r", "routes": [
	{"match": {"metadata": [{"name": "method", "prefix_match": "m"}]},
	 "route": {"cluster": "up", "request_mirror_policies": %s},
	 "request_mutation": [{"key": "q", "value": "1"}], "response_mutation": [{"key": "a", "value": "2"}]}]}%s}`, codec, policies, more)
}

func newMirrorEnv(t *testing.T, codec, policies, more string) *mirrorEnv {
	t.Helper()
	mod := filter.NewModule()
	mod.Seed(1)
	h := filtertest.NewWith(t, mod, 1)
	e := &mirrorEnv{mod: mod, mirror: h.Cluster("mirror", "m1")}
	e.toyEnv = toyEnv{Host: h, t: t, up: h.Cluster("up", "h1")}
	e.cfg = h.MustLoad(mirrorConfig(codec, policies, more))
	e.c = h.Dial(e.cfg)
	return e
}

// copies are the lines that the mirror has got since the last time.
func (e *mirrorEnv) copies() (got []string) {
	for _, s := range e.mirror.Servers() {
		got = append(got, lines(s.Take())...)
	}
	return got
}

// unnumbered are the lines without the ids.
func unnumbered(ls []string) (ts []string) {
	for _, l := range ls {
		f := strings.SplitN(l, " ", 3)
		ts = append(ts, f[0]+" "+f[2])
	}
	return ts
}

// ends checks that nothing is left of the copies when all clients have gone.
func (e *mirrorEnv) ends() {
	e.t.Helper()
	e.counts(map[string]int64{"mirror_active": 0, "request_active": 0})
	require.Empty(e.t, e.mod.Books())
	e.c.Close()
	e.Advance(3 * time.Minute)
	require.Empty(e.t, e.mod.Left())
	require.Zero(e.t, e.mod.Pools())
}

// TestACopyIsTheRequestAsItCame, with an id of its own, unless the policy wants what
// the route makes of it. Its answer reaches nobody.
func TestACopyIsTheRequestAsItCame(t *testing.T) {
	for _, codec := range []string{"toy.byid", "toy.hidden", "toy.exclusive"} {
		for policies, want := range map[string]string{
			toMirror: "x", `[{"cluster": "mirror", "after_mutation": true}]`: "q=1;x",
		} {
			t.Run(codec+" "+want, func(t *testing.T) {
				e := newMirrorEnv(t, codec, policies, "")
				e.say("req 4711 mcertain x", "req 4712 mcertain x")
				require.Equal(t, []string{"req mcertain q=1;x", "req mcertain q=1;x"}, unnumbered(e.upCopies()))
				for _, s := range e.mirror.Servers() {
					for _, l := range lines(s.Take()) {
						require.Equal(t, []string{"req mcertain " + want}, unnumbered([]string{l}))
						if codec != "toy.exclusive" {
							require.NotContains(t, l, " 471")
						}
						e.answer(s, "res "+strings.Fields(l)[1]+" m of the mirror")
					}
				}
				require.Empty(t, e.got())
				e.counts(map[string]int64{"request_active": 2, "mirror_active": 0})
				e.up.Serve = serveToys
				other := e.Dial(e.cfg)
				say(other, "req 4713 mcertain x")
				require.Equal(t, "res 4713 m a=2;ok\n", string(other.Take()))
				e.counts(map[string]int64{"mirror": 3, "mirror_failed": 0, "mirror_overflow": 0, "mirror_same": 0, "mirror_different": 0})
			})
		}
	}
}

// upCopies are the lines that the cluster itself has got.
func (e *mirrorEnv) upCopies() (got []string) {
	for _, s := range e.up.Servers() {
		got = append(got, lines(s.Take())...)
	}
	return got
}

// TestAFixedIDIsTheCopysToo.
func TestAFixedIDIsTheCopysToo(t *testing.T) {
	e := newMirrorEnv(t, "toy.byid", toMirror, "")
	e.say("req 7 mfixed x", "req 7 mfixed y")
	require.Len(t, e.mirror.Servers(), 2, "each has a connection to itself")
	require.Equal(t, []string{"req 7 mfixed x", "req 7 mfixed y"}, e.copies())
}

// TestAShareOfTheRequestsIsCopied.
func TestAShareOfTheRequestsIsCopied(t *testing.T) {
	raced.Skip(t)
	const n = 10_000
	for fraction, want := range map[string]float64{
		`{"numerator": 25}`: n / 4, `{"numerator": 25, "denominator": "TEN_THOUSAND"}`: 25,
		`{"numerator": 500000, "denominator": "MILLION"}`: n / 2,
		`{"numerator": 100}`:                              n, `{}`: 0,
	} {
		t.Run(fraction, func(t *testing.T) {
			e := newMirrorEnv(t, "toy.byid", `[{"cluster": "mirror", "runtime_fraction": {"runtime_key": "k", "default_value": `+fraction+`}}]`, "")
			e.up.Serve, e.mirror.Serve = serveToys, serveToys
			for range n / 100 {
				e.sayMany(100)
			}
			within := want / 4
			if want == n {
				within = 0
			}
			require.InDelta(t, want, e.count("mirror"), within)
			require.Zero(t, e.count("mirror_failed")+e.count("mirror_overflow"))
		})
	}
}

// TestRoutesHaveTheTablesMirrorsUnlessTheyHaveTheirOwn, as many as they like.
func TestRoutesHaveTheTablesMirrorsUnlessTheyHaveTheirOwn(t *testing.T) {
	h := filtertest.New(t)
	clusters := map[string]*filtertest.Cluster{}
	for _, name := range []string{"up", "a", "b", "c"} {
		clusters[name] = h.Cluster(name, "h1")
	}
	none := `, "request_mirror_policies": [{"cluster": "a", "runtime_fraction": {"default_value": {}}}]`
	own := `, "request_mirror_policies": [{"cluster": "b"}, {"cluster": "c"}]`
	route := func(method, more string) string {
		return `{"match": {"metadata": [{"name": "method", "exact_match": "` + method + `"}]}, "route": {"cluster": "up"` + more + `}}`
	}
	cfg := h.MustLoad(`{"stat_prefix": "t", "protocol": {"name": "toy", "codec": {"name": "toy.byid"}}, "route_config": {"request_mirror_policies": [{"cluster": "a"}],
		"routes": [` + route("default", "") + "," + route("own", own) + "," + route("none", none) + `]}}`)
	c := h.Dial(cfg)
	for method, want := range map[string]string{"default": "a", "own": "bc", "none": ""} {
		c.Send([]byte("req 1 " + method + " x\n"))
		got := ""
		for _, name := range []string{"a", "b", "c"} {
			for _, s := range clusters[name].Servers() {
				if len(s.Take()) > 0 {
					got += name
				}
			}
		}
		require.Equal(t, want, got, method)
	}
}

// TestWhatIsNoForwardedRequestIsNotCopied.
func TestWhatIsNoForwardedRequestIsNotCopied(t *testing.T) {
	next = &testFilter{onRequest: func(m *filter.Message) filter.Verdict {
		if strings.HasSuffix(string(m.Request().Raw), "denied\n") {
			return m.Reply(codecs.Denied, "no")
		}
		return filter.Continue
	}}
	e := newMirrorEnv(t, "toy.byid", toMirror, `, "meta_protocol_filters": [{"name": "next"}, {"name": "aeraki.meta_protocol.filters.router"}]`)
	e.say("req 1 m denied", "req 2 other x", "req 3 m malformed", "hb 4 m x", "init 5 m stream", "data 5 m x")
	require.Empty(t, e.mirror.Servers())
	e.say("req 6 m forwarded")
	require.Equal(t, []string{"req m forwarded"}, unnumbered(e.copies()))
	e.count("mirror")
}

// TestWhereOrderCountsNothingIsCopied: alone such a codec is refused, beside others
// its requests are left out.
func TestWhereOrderCountsNothingIsCopied(t *testing.T) {
	h := filtertest.New(t)
	up, mirror := h.Cluster("up", "h1"), h.Cluster("mirror", "m1")
	_, err := h.Load(mirrorConfig("toy.inorder", toMirror, ""))
	require.EqualError(t, err, `stat_prefix "t": route_config.routes[0].route.request_mirror_policies: `+
		`codec toy.inorder cannot be mirrored: servers execute a connection's requests in their order`)
	cfg := h.MustLoad(strings.Replace(mirrorConfig("x", toMirror, ""), `"codec": {"name": "x"}`, `"codecs": [{"name": "toy.inorder"}, {"name": "toy.exclusive"}]`, 1))
	ordered, other := h.Dial(cfg), h.Dial(cfg)
	say(ordered, "init 1 m -") // its first letter chooses
	say(ordered, "req 2 m x")
	require.Len(t, up.Servers(), 2)
	require.Empty(t, mirror.Servers())
	say(other, "err 1 m -")
	say(other, "req 1 m x")
	require.Len(t, mirror.Servers(), 1)
}

// TestOnewaysAreCopiedAsOneways.
func TestOnewaysAreCopiedAsOneways(t *testing.T) {
	for _, codec := range []string{"toy.byid", "toy.hidden", "toy.exclusive"} {
		t.Run(codec, func(t *testing.T) {
			e := newMirrorEnv(t, codec, `[{"cluster": "mirror", "compare": true}]`, "")
			e.say("one 1 m x", "one 2 m y")
			require.ElementsMatch(t, []string{"one m x", "one m y"}, unnumbered(e.copies()))
			e.counts(map[string]int64{"mirror": 2, "mirror_active": 0, "mirror_same": 0, "mirror_different": 0})
			e.ends()
		})
	}
}

// TestACopyWithoutAnAnswerEndsWithItsTimeout, whatever that of its request is.
func TestACopyWithoutAnAnswerEndsWithItsTimeout(t *testing.T) {
	for _, codec := range []string{"toy.byid", "toy.hidden", "toy.exclusive"} {
		t.Run(codec, func(t *testing.T) {
			e := newMirrorEnv(t, codec, `[{"cluster": "mirror", "timeout": "2s"}]`, `, "request_timeout": "1s"`)
			e.say("req 1 m -")
			e.Advance(1600 * time.Millisecond)
			e.counts(map[string]int64{"mirror_active": 1, "mirror_failed": 0, "request_active": 0})
			e.Advance(400 * time.Millisecond)
			e.counts(map[string]int64{"mirror": 1, "mirror_active": 0, "mirror_failed": 1})
			e.ends()
		})
	}
}

// TestACopyOfAKnownOnewayInDisguiseIsOne: it waits for nothing and fails at nothing.
func TestACopyOfAKnownOnewayInDisguiseIsOne(t *testing.T) {
	e := newMirrorEnv(t, "toy.hidden", toMirror, `, "request_timeout": "1s"`)
	e.mirror.Serve = func(s *filtertest.Server, b []byte) int {
		for _, l := range lines(b) {
			if f := strings.Fields(l); f[2] == "mask" {
				s.Send([]byte("res " + f[1] + " mask ok\n"))
			}
		}
		return len(b)
	}
	e.learn()
	e.Advance(5 * time.Second)
	e.counts(map[string]int64{"mirror": 5, "mirror_active": 0, "mirror_failed": 2})
	e.say("req 4 mfire -")
	e.counts(map[string]int64{"mirror": 6, "mirror_active": 0, "mirror_failed": 2})
	e.Advance(late) // for the request itself
	e.ends()
}

// TestCopiesAreBounded in bytes and number; what is beyond is dropped, and counted.
func TestCopiesAreBounded(t *testing.T) {
	e := newMirrorEnv(t, "toy.byid", `[{"cluster": "mirror", "max_request_bytes": 20, "max_requests": 3, "timeout": "1s"}]`, "")
	e.up.Serve = serveToys
	e.say("req 1 m 89012345678", "req 2 m 890123456789")
	require.Equal(t, []string{"req m 89012345678"}, unnumbered(e.copies()))
	e.counts(map[string]int64{"mirror": 1, "mirror_overflow": 1})
	e.Advance(time.Second)

	for _, hang := range []bool{false, true} {
		if hang {
			e.mirror.SetHosts("m2")
			e.mirror.Servers()[0].Reset()
			e.mirror.Hang = true
			e.Advance(time.Second)
		}
		before, failed := e.count("mirror_overflow"), e.count("mirror_failed")
		e.sayMany(10)
		e.counts(map[string]int64{"mirror_overflow": before + 7, "mirror_active": 3})
		e.Advance(time.Second)
		e.counts(map[string]int64{"mirror_failed": failed + 3, "mirror_active": 0})
		e.sayMany(10)
		e.counts(map[string]int64{"mirror_overflow": before + 14, "mirror_active": 3})
		e.Advance(time.Second)
	}
	require.Contains(t, strings.Join(e.Log(), "\n"), `[1] meltemi: stat_prefix "t": mirror: no copy for cluster mirror: max_requests are in flight`)
	require.Contains(t, strings.Join(e.Log(), "\n"), `[1] meltemi: stat_prefix "t": mirror: a copy for cluster mirror has failed: upstream request timeout`)
	e.ends()
}

// TestACopyThatWaitsOutlivesItsRequest, its client and its client's memory.
func TestACopyThatWaitsOutlivesItsRequest(t *testing.T) {
	e := newMirrorEnv(t, "toy.byid", `[{"cluster": "mirror", "after_mutation": true}]`, "")
	e.up.Serve = serveToys
	e.mirror.Hang = true
	long := strings.Repeat("x", 5000)
	other := e.Dial(e.cfg)
	say(other, "req 1 m short", "one 2 m "+long)
	other.Close()
	e.say("req 2 m -")
	e.counts(map[string]int64{"mirror_active": 3, "mirror": 0})
	e.mirror.Admit()
	require.Equal(t, []string{"req m q=1;short", "one m q=1;" + long, "req m q=1;-"}, unnumbered(e.copies()))
	e.counts(map[string]int64{"mirror_active": 2, "mirror": 3})
	e.Advance(5 * time.Second)
	e.counts(map[string]int64{"mirror_failed": 2})
	e.ends()
}

// TestAnswersAreCompared, whichever comes first, if both come.
func TestAnswersAreCompared(t *testing.T) {
	for _, codec := range []string{"toy.byid", "toy.exclusive"} {
		for _, first := range []string{"request", "copy"} {
			t.Run(codec+": the "+first+" is answered first", func(t *testing.T) {
				e := newMirrorEnv(t, codec, `[{"cluster": "mirror", "compare": true, "timeout": "3s"}]`, `, "request_timeout": "2s"`)
				answer := func(c *filtertest.Cluster, what string) {
					if what == "" {
						return
					}
					for _, s := range c.Servers() {
						for _, l := range lines(s.Take()) {
							e.answer(s, what+" "+strings.Fields(l)[1]+" m x")
						}
					}
				}
				for i, tc := range []struct{ ours, theirs, counter string }{
					{"res", "res", "mirror_same"},
					{"err", "err", "mirror_same"},
					{"res", "err", "mirror_different"},
					{"err", "res", "mirror_different"},
					{"", "res", ""},
					{"res", "", ""},
					{"", "", ""},
				} {
					before := map[string]int64{}
					for _, n := range []string{"mirror_same", "mirror_different"} {
						before[n] = e.count(n)
					}
					e.say(fmt.Sprintf("req %d m -", i))
					if first == "request" {
						answer(e.up, tc.ours)
						answer(e.mirror, tc.theirs)
					} else {
						answer(e.mirror, tc.theirs)
						answer(e.up, tc.ours)
					}
					e.Advance(4 * time.Second)
					before[tc.counter]++
					delete(before, "")
					e.counts(before)
					for _, c := range []*filtertest.Cluster{e.up, e.mirror} {
						for _, s := range c.Servers() {
							s.Take()
						}
					}
				}
				require.Contains(t, strings.Join(e.Log(), "\n"), "mirror: cluster mirror answers with an error what was answered with success")
				require.Equal(t, 1, e.mod.FreeShadows(), "one was used again and again")
				e.ends()
			})
		}
	}
}

// TestAnswersOutOfTurnAreCompared: what waits for its turn is answered all the same.
func TestAnswersOutOfTurnAreCompared(t *testing.T) {
	e := newMirrorEnv(t, "toy.exclusive", `[{"cluster": "mirror", "compare": true}]`, "")
	e.say("req 1 m first", "req 2 m second")
	e.answer(e.mirror.Servers()[0], "res 0 m x")
	e.answer(e.mirror.Servers()[1], "res 0 m x")
	e.answer(e.server(1), "err 0 m x")
	require.Empty(t, e.got())
	e.answer(e.server(0), "res 0 m x")
	e.counts(map[string]int64{"mirror_same": 1, "mirror_different": 1})
	e.ends()
}

// TestTheGaugeOfCopiesEndsAtZero, whoever leaves first.
func TestTheGaugeOfCopiesEndsAtZero(t *testing.T) {
	for _, compare := range []string{"false", "true"} {
		for name, leave := range map[string]func(e *mirrorEnv){
			"the client": func(*mirrorEnv) {},
			"the listener, replaced": func(e *mirrorEnv) {
				e.MustLoad(mirrorConfig("toy.byid", `[]`, ""))
			},
			"the mirror": func(e *mirrorEnv) {
				for _, s := range e.mirror.Servers() {
					s.Reset()
				}
				e.RemoveCluster("mirror")
				e.Settle()
			},
		} {
			t.Run(name+", compare "+compare, func(t *testing.T) {
				e := newMirrorEnv(t, "toy.byid", `[{"cluster": "mirror", "compare": `+compare+`}, {"cluster": "gone", "compare": `+compare+`}]`, "")
				e.sayMany(5)
				e.mirror.Hang = true
				require.EqualValues(t, 5, e.count("mirror_active"))
				leave(e)
				e.c.Close()
				require.Zero(t, e.cfg.Counter("toy.t.mirror_active"))
				e.cfg.Destroy()
				e.Advance(3 * time.Minute)
				require.Zero(t, e.cfg.Counter("toy.t.mirror_active"))
				require.Empty(t, e.mod.Left())
			})
		}
	}
	t.Run("and another client comes", func(t *testing.T) {
		e := newMirrorEnv(t, "toy.byid", toMirror, "")
		e.say("req 1 m -")
		e.c.Close()
		e.c = e.Dial(e.cfg)
		e.say("req 1 m -")
		require.EqualValues(t, 1, e.count("mirror_active"), "of its own")
		e.Advance(5 * time.Second)
		e.counts(map[string]int64{"mirror_active": 0, "mirror_failed": 2})
	})
}

// badReader takes no bytes any more.
func badReader(s *filtertest.Server, _ []byte) int { s.Block(true); return 0 }

// badMirrors are ways in which a mirror may be bad.
var badMirrors = map[string]func(e *mirrorEnv){
	"good":          func(e *mirrorEnv) { e.mirror.Serve = serveToys },
	"unknown":       func(e *mirrorEnv) { e.RemoveCluster("mirror") },
	"empty":         func(e *mirrorEnv) { e.mirror.SetHosts() },
	"hangs":         func(e *mirrorEnv) { e.mirror.Hang = true },
	"never answers": func(*mirrorEnv) {},
	"dead": func(e *mirrorEnv) {
		e.mirror.Fail = func() (host.CloseReason, bool) { return host.ConnectFailed, true }
	},
	"at its limit": func(e *mirrorEnv) { e.mirror.Fail = func() (host.CloseReason, bool) { return host.Overflow, true } },
	"never reads": func(e *mirrorEnv) {
		e.mirror.Serve = badReader
	},
	"closes": func(e *mirrorEnv) {
		e.mirror.Serve = func(s *filtertest.Server, b []byte) int { s.Close(); return len(b) }
	},
	"resets": func(e *mirrorEnv) {
		e.mirror.Serve = func(s *filtertest.Server, b []byte) int { s.Reset(); return len(b) }
	},
	"sends garbage": func(e *mirrorEnv) {
		e.mirror.Serve = func(s *filtertest.Server, b []byte) int { s.Send([]byte("garbage\n")); return len(b) }
	},
	"sends half an answer": func(e *mirrorEnv) {
		e.mirror.Serve = func(s *filtertest.Server, b []byte) int {
			s.Send([]byte("res 1 m " + strings.Repeat("x", 100_000)))
			return len(b)
		}
	},
	"sends what nobody asked for": func(e *mirrorEnv) {
		e.mirror.Serve = func(s *filtertest.Server, b []byte) int {
			s.Send([]byte(strings.Repeat("res 999 m x\n", 1001)))
			return len(b)
		}
	},
	"leaves": func(e *mirrorEnv) {
		e.mirror.Serve = func(s *filtertest.Server, b []byte) int { s.Send([]byte("away 0 - -\n")); return len(b) }
	},
	"answers what the codec panics over": func(e *mirrorEnv) {
		e.mirror.Serve = func(s *filtertest.Server, b []byte) int { s.Send([]byte("res 1 m boom-decode\n")); return len(b) }
	},
}

// TestAMirrorCostsItsRequestsNothing: whatever a mirror does, client and server of the
// request see the same bytes at the same times, and its counters are the same. What
// copies cost is bounded, and nothing is left of them.
func TestAMirrorCostsItsRequestsNothing(t *testing.T) {
	raced.Skip(t)
	for _, codec := range []string{"toy.byid", "toy.hidden", "toy.exclusive"} {
		for _, compare := range []string{"", `, "compare": true`} {
			run := func(t *testing.T, policies string, bad func(e *mirrorEnv)) (seen []string, counters map[string]int64) {
				e := newMirrorEnv(t, codec, policies, `, "request_timeout": "2s", "upstream": {"max_requests": 40, "max_pending_requests": 8, "max_connections": 2}, "limits": {"max_partial_bytes": 100}`)
				e.MayPanic()
				bad(e)
				other := e.Dial(e.cfg)
				tell := func() {
					for i, s := range e.up.Servers() {
						if b := s.Take(); len(b) > 0 {
							seen = append(seen, fmt.Sprintf("server %d: %s", i, b))
						}
					}
					for _, c := range []*filtertest.Client{e.c, other} {
						seen = append(seen, fmt.Sprintf("client: %s closed %v, read %v", c.Take(), c.Closed(), !c.ReadDisabled()))
					}
				}
				for i := range 60 {
					e.say(fmt.Sprintf("req %d mcertain x", i), fmt.Sprintf("one %d m %d", 1000+i, i))
					if i%7 == 3 { // some wait for each other
						say(other, strings.Repeat(fmt.Sprintf("req %d m y\n", i), 30)+"req 1 m z")
					}
					tell()
					switch i % 5 {
					case 0: // these time out
					case 1:
						for _, s := range e.up.Servers() {
							s.Reset()
						}
						e.Settle()
					default:
						e.answerAll()
					}
					if i == 40 {
						other.Close()
					}
					e.Advance(137 * time.Millisecond)
					tell()
				}
				e.Advance(10 * time.Second)
				tell()
				counters = map[string]int64{}
				for _, n := range []string{
					"request", "response", "request_timeout", "request_overflow", "request_abandoned", "request_active", "oneway_dropped", "oneway_presumed",
					"upstream_reset", "upstream_connect_fail", "upstream_stray_response", "upstream_event", "upstream_abuse", "upstream_partial_frame_wait",
					"response_decoding_success", "response_decoding_error", "response_error_caused_connection_close",
					"local_response_business_exception", "mutation_skipped",
				} {
					counters[n] = e.count(n)
				}
				e.mirror.Hang = false
				e.ends()
				return seen, counters
			}
			want, counters := run(t, "[]", func(*mirrorEnv) {})
			for name, bad := range badMirrors {
				t.Run(codec+compare+" "+name, func(t *testing.T) {
					got, gotCounters := run(t, `[{"cluster": "mirror"`+compare+`}]`, bad)
					require.Equal(t, want, got)
					require.Equal(t, counters, gotCounters)
				})
			}
		}
	}
}

// TestAPanicOverACopyIsItsOwn: over one that is encoded when its request has long been
// answered, or whose answer is read.
func TestAPanicOverACopyIsItsOwn(t *testing.T) {
	e := newMirrorEnv(t, "toy.byid", toMirror, "")
	e.MayPanic()
	e.up.Serve = serveToys
	badMirrors["answers what the codec panics over"](e)
	e.say("req 1 m x")
	e.say("req 2 m x")
	require.Equal(t, "res 1 m a=2;ok\nres 2 m a=2;ok\n", e.got())
	e.counts(map[string]int64{"mirror_failed": 2, "connection_panic": 2})
	e.ends()
}

// TestCopiesOfACluster are counted together, over all listeners.
func TestCopiesForAClusterAreCountedTogether(t *testing.T) {
	e := newMirrorEnv(t, "toy.byid", `[{"cluster": "mirror", "max_requests": 2}]`, "")
	second := e.MustLoad(strings.Replace(mirrorConfig("toy.byid", `[{"cluster": "mirror", "max_requests": 3}]`, ""), `"t"`, `"u"`, 1))
	c := e.Dial(second)
	e.say("req 1 m -", "req 2 m -", "req 3 m -")
	say(c, "req 1 m -", "req 2 m -")
	e.counts(map[string]int64{"mirror_active": 2, "mirror_overflow": 1})
	require.EqualValues(t, 1, second.Counter("toy.u.mirror_active"))
	require.EqualValues(t, 1, second.Counter("toy.u.mirror_overflow"))
}

// TestAMirrorInTheRequestsOwnClusterStaysApart: requests have its connections and
// limits to themselves.
func TestAMirrorInTheRequestsOwnClusterStaysApart(t *testing.T) {
	e := newMirrorEnv(t, "toy.byid", `[{"cluster": "up"}]`, `, "upstream": {"max_requests": 2}`)
	e.say("req 1 m -", "req 2 m -")
	require.Len(t, e.up.Servers(), 2)
	require.Equal(t, []string{"req m -", "req m -"}, unnumbered(lines(e.server(0).Take())))
	require.Equal(t, []string{"req m q=1;-", "req m q=1;-"}, unnumbered(lines(e.server(1).Take())))
	require.Empty(t, e.got())
}

// TestWhatAMirrorsServerSaysIsNoNewsToRequests in the same cluster.
func TestWhatAMirrorsServerSaysIsNoNewsToRequests(t *testing.T) {
	e := newMirrorEnv(t, "toy.byid", `[{"cluster": "up"}]`, `, "upstream": {"max_connections": 2}`)
	e.up.SetHosts("h1", "h2")
	served := map[string]int{}
	e.up.Serve = func(s *filtertest.Server, b []byte) int {
		if strings.Contains(string(b), "q=1;") {
			served[s.Host]++
		} else if s.Host == "h1" {
			s.Send([]byte("away 0 - -\n"))
		}
		return serveToys(s, b)
	}
	for i := range 40 {
		e.say(fmt.Sprintf("req %d m -", i))
		e.Advance(50 * time.Millisecond)
	}
	require.Equal(t, 40, served["h1"]+served["h2"])
	require.InDelta(t, 20, served["h1"], 5)
}

// TestAMirrorThatDoesNotReadIsNotWaitedFor: its connections go with its copies.
func TestAMirrorThatDoesNotReadIsNotWaitedFor(t *testing.T) {
	e := newMirrorEnv(t, "toy.byid", `[{"cluster": "mirror", "timeout": "1s"}]`, "")
	e.mirror.Serve = badReader
	e.say("req 1 m -")
	s := e.mirror.Servers()[0]
	e.Advance(100 * time.Millisecond)
	e.say("req 2 m -")
	e.Advance(5 * time.Second)
	require.True(t, s.Open(), "it may be slow")
	e.Advance(10 * time.Second)
	require.False(t, s.Open())
}

// TestAMirrorGetsNoConnectionOfItsRequests where a circuit breaker forbids more, and
// gives its own up for them.
func TestAMirrorGetsNoConnectionOfItsRequests(t *testing.T) {
	e := newMirrorEnv(t, "toy.byid", `[{"cluster": "up"}]`, `, "upstream": {"max_connections": 1}`)
	e.up.Fail = func() (host.CloseReason, bool) { return host.Overflow, len(e.up.Servers()) > 0 }
	e.up.Serve = serveToys
	mirrors := e.Dial(e.cfg)
	say(mirrors, "req 1 m -") // its copy is the first to ask for a connection
	s := e.server(0)
	for i := range 20 {
		e.say(fmt.Sprintf("req %d m -", i))
		e.Advance(100 * time.Millisecond)
	}
	require.False(t, s.Open(), "it was the mirror's")
	require.Len(t, lines(e.c.Take()), 20)
	s = e.server(0)
	for i := range 20 {
		e.say(fmt.Sprintf("req %d m -", i))
		e.Advance(300 * time.Millisecond)
		require.Equal(t, fmt.Sprintf("res %d m a=2;ok\n", i), e.got())
	}
	require.True(t, s.Open(), "it is the requests'")
	require.NotZero(t, e.count("mirror_overflow"))
	e.Advance(5 * time.Second)
	e.ends()
}

// TestAMirrorIsConfiguredAsInTheCPPProxy, whose messages have their fields in either
// case.
func TestAMirrorIsConfiguredAsInTheCPPProxy(t *testing.T) {
	h := filtertest.New(t)
	up, mirror := h.Cluster("outbound|20880||demo", "h1"), h.Cluster("outbound|20880||demo.mirror", "m1")
	cfg := h.MustLoad(`{"application_protocol": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"},
		"metaProtocolFilters": [{"name": "aeraki.meta_protocol.filters.router"}], "statPrefix": "outbound|20880||demo",
		"routeConfig": {"routes": [{"name": "default",
			"match": {"metadata": [{"name": "interface", "exact_match": "org.example.Greeter"}, {"name": "foo", "exact_match": "bar"}]},
			"route": {"cluster": "outbound|20880||demo", "request_mirror_policies": [
				{"cluster": "outbound|20880||demo.mirror", "runtime_fraction": {"default_value": {"numerator": 50}}}]}}]}}`)
	c := h.Dial(cfg)
	for i := range 100 {
		c.Send(req(uint64(i), [2]string{"foo", "bar"}))
	}
	require.Len(t, parse(up.Servers()[0].Take()), 100)
	require.InDelta(t, 50, len(parse(mirror.Servers()[0].Take())), 20)
}

// TestAnUnfinishedAnswerToACopyKeepsNoServerWaiting: such answers have room of their
// own.
func TestAnUnfinishedAnswerToACopyKeepsNoServerWaiting(t *testing.T) {
	e := newMirrorEnv(t, "toy.byid", toMirror, `, "limits": {"max_partial_bytes": 100}`)
	badMirrors["sends half an answer"](e)
	e.say("req 1 m -")
	s := e.server(0)
	long := strings.Repeat("x", 100_000)
	s.Send([]byte("res " + ids(s)[0] + " m " + long[1:]))
	e.Settle()
	e.answer(s, "x")
	require.Equal(t, "res 1 m a=2;"+long+"\n", e.got())
	e.counts(map[string]int64{"upstream_partial_frame_wait": 0})
}
