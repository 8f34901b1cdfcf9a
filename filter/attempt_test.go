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
)

// attempts is a filter that notes each attempt, and does in it what a test wants.
type attempts struct {
	hooks
	name       string
	log        *[]string
	begin, end func(m *filter.Message, a *filter.Attempt)
}

func (f *attempts) OnAttempt(m *filter.Message, a *filter.Attempt) {
	*f.log = append(*f.log, fmt.Sprintf("%s begin %d %s hedge=%v", f.name, a.Number, a.Host, a.Hedge))
	if f.begin != nil {
		f.begin(m, a)
	}
}

func (f *attempts) OnAttemptEnd(m *filter.Message, a *filter.Attempt) {
	what := "nothing"
	switch {
	case a.Response != nil:
		what = strings.Fields(string(a.Response.Raw))[0]
	case a.Failure != nil:
		what = fmt.Sprint(a.Failure.Type, ": ", a.Failure.Message)
	}
	*f.log = append(*f.log, fmt.Sprintf("%s end %d %s sent=%v %s", f.name, a.Number, a.Host, a.Sent > 0, what))
	if f.end != nil {
		f.end(m, a)
	}
}

// attemptEnv is a listener whose only route has action besides its cluster, with a
// filter that sees attempts in the place of probe.a.
type attemptEnv struct {
	*toyEnv
	log []string
	a   *attempts
}

func newAttemptEnv(t *testing.T, codec, action string, hosts ...string) *attemptEnv {
	t.Helper()
	e := &attemptEnv{}
	e.a = &attempts{name: "a", log: &e.log}
	setProbe(t, "probe.a", built(func(*filter.Scope) filter.Filter { return e.a }))
	e.toyEnv = newPolicyEnv(t, codec, action, "", probed, hosts...)
	return e
}

func (e *attemptEnv) says(want ...string) {
	e.t.Helper()
	require.Equal(e.t, want, e.log)
	e.log = nil
}

// members has the cluster tell its hosts.
func (e *attemptEnv) members(hosts ...string) {
	ms := make([]host.Member, len(hosts))
	for i, h := range hosts {
		ms[i] = host.Member{Address: h, Weight: 1, Healthy: true}
	}
	e.up.Tell(ms...)
}

func TestAFilterSeesEachAttempt(t *testing.T) {
	e := newAttemptEnv(t, "toy.byid", `, "retry_policy": {"num_retries": 2, `+quick+`}`, "h1", "h2")
	var second []string
	b := &attempts{name: "b", log: &second}
	setProbe(t, "probe.b", built(func(*filter.Scope) filter.Filter { return b }))
	e.cfg = e.MustLoad(policyConfig("toy.byid", `, "retry_policy": {"num_retries": 2, `+quick+`}`, "", probed))
	e.c = e.Dial(e.cfg)
	b.log = &e.log
	asked := e.serveAs(map[string]string{"h1": "nope", "h2": "nope"})
	e.members("h1", "h2")
	e.a.begin = func(m *filter.Message, a *filter.Attempt) {
		v, _ := m.Request().Get("method")
		require.Equal(t, "m", string(v), "properties are kept for them")
		require.Zero(t, a.Sent)
		a.Mutate().Set("to", a.Host)
		a.Mutate().Set("n", fmt.Sprint(a.Number))
	}
	ended := false
	e.a.hooks.end = func(*filter.Message) { ended = true }
	e.a.end = func(*filter.Message, *filter.Attempt) { require.False(t, ended) }
	e.say("req 7 m hello")
	e.Advance(100 * time.Millisecond)
	require.True(t, ended)
	first, other := e.log[0][len("a begin 1 "):][:2], "h1"
	if first == other {
		other = "h2"
	}
	e.says(
		"a begin 1 "+first+" hedge=false", "b begin 1 "+first+" hedge=false",
		"b end 1 "+first+" sent=true nope", "a end 1 "+first+" sent=true nope",
		"a begin 2 "+other+" hedge=false", "b begin 2 "+other+" hedge=false",
		"b end 2 "+other+" sent=true nope", "a end 2 "+other+" sent=true nope",
		"a begin 3 "+first+" hedge=false", "b begin 3 "+first+" hedge=false",
		"b end 3 "+first+" sent=true nope", "a end 3 "+first+" sent=true nope",
	)
	require.Equal(t, "nope 7 m by "+first+"\n", e.got())
	require.Equal(t, []string{
		first + " m n=1;to=" + first + ";hello", other + " m retry=1;n=2;to=" + other + ";hello", first + " m retry=2;n=3;to=" + first + ";hello",
	}, *asked, "each has its own changes, and no others'")
}

// TestAttemptsThatReachNobody have an end all the same, and nothing else.
func TestAttemptsThatReachNobody(t *testing.T) {
	e := newAttemptEnv(t, "toy.byid", "")
	e.say("req 1 m -")
	require.Equal(t, "err 1 - no healthy upstream in cluster up\n", e.got())
	e.says("a end 1  sent=false no healthy upstream: no healthy upstream in cluster up")

	e.up.SetHosts("h1")
	e.say("req 2 m -")
	e.says("a begin 1 h1 hedge=false")
	e.server(0).Reset()
	e.Settle()
	e.says("a end 1 h1 sent=true upstream reset: upstream connection ended before the answer: reset")
	require.Equal(t, "err 2 - upstream connection ended before the answer: reset\n", e.got())

	e.say("one 3 m -")
	e.says("a begin 1 h1 hedge=false", "a end 1 h1 sent=true nothing")
	e.say("req 4 m -")
	e.c.Close()
	e.says("a begin 1 h1 hedge=false", "a end 1 h1 sent=true nothing")
}

func TestAttemptsOfStreamsEndWithThem(t *testing.T) {
	e := newAttemptEnv(t, "toy.byid", "", "h1")
	e.say("init 5 m hello")
	e.answer(e.server(0), "init 5 - welcome")
	e.says("a begin 1 h1 hedge=false")
	e.say("half 5 - done")
	e.answer(e.server(0), "half 5 - done")
	e.says("a end 1 h1 sent=true nothing")
	e.say("init 6 m hello")
	e.answer(e.server(0), "init 6 - welcome")
	e.server(0).Reset()
	e.Settle()
	require.Len(t, e.log, 2)
	require.Contains(t, e.log[1], "a end 1 h1 sent=true upstream reset")
}

func TestSecondAttempts(t *testing.T) {
	e := newAttemptEnv(t, "toy.byid", hedging)
	asked := e.hedged()
	require.Len(t, e.log, 2)
	require.Contains(t, e.log[0], "a begin 1 "+asked[0].Host)
	require.Contains(t, e.log[1], "a begin 2 "+asked[1].Host)
	require.Contains(t, e.log[1], "hedge=true")
	e.log = nil
	e.answer(asked[1].Server, "res "+asked[1].id+" m x")
	require.Equal(t, "res 1 m x\n", e.got())
	require.Len(t, e.log, 2)
	require.Contains(t, e.log[0], "a end 2 "+asked[1].Host)
	require.Contains(t, e.log[1], "a end 1 "+asked[0].Host+" sent=true nothing")
}

// tried is an attempt that a server has got.
type tried struct {
	*filtertest.Server
	id string
}

// hedged has a request 1 with two attempts under way, which it returns.
func (e *attemptEnv) hedged() (all []tried) {
	e.t.Helper()
	e.members("h1", "h2")
	say(e.Dial(e.cfg), "one 1 m -", "one 2 m -")
	e.Advance(time.Second)
	e.log = nil
	e.up.Serve = func(s *filtertest.Server, b []byte) int {
		for _, l := range lines(b) {
			if f := strings.Fields(l); f[0] == "req" {
				all = append(all, tried{s, f[1]})
			}
		}
		return len(b)
	}
	e.say("req 1 m -")
	e.Advance(60 * time.Millisecond)
	require.Len(e.t, all, 2)
	require.NotEqual(e.t, all[0].Host, all[1].Host)
	return all
}

// TestALosersEndIsBeforeItsMessages, and before another attempt takes its place.
func TestALosersEndIsBeforeItsMessages(t *testing.T) {
	for _, repeats := range []bool{false, true} {
		for winner := range 2 {
			e := newAttemptEnv(t, "toy.byid", hedging)
			e.a.request = func(m *filter.Message) filter.Verdict { m.AllowRepeat(); return filter.Continue }
			e.a.response = func(m *filter.Message) filter.Verdict {
				if repeats {
					repeats = false
					return m.Repeat()
				}
				return filter.Continue
			}
			e.a.hooks.end = func(*filter.Message) { e.log = append(e.log, "the end") }
			asked := e.hedged()
			e.serveAs(map[string]string{"h1": "res", "h2": "res"})
			e.answer(asked[winner].Server, "res "+asked[winner].id+" m x")
			e.Advance(time.Second)
			require.Contains(t, e.got(), "res 1 m ")
			begun, ended := 0, 0
			for _, l := range e.log {
				if strings.Contains(l, " begin ") {
					begun++
				} else if strings.Contains(l, " end ") {
					ended++
				}
			}
			require.Equal(t, begun, ended, e.log)
			require.Equal(t, "the end", e.log[len(e.log)-1])
		}
	}
}

// TestARefusedRepeatLeavesTheWinner: what is told of the server is told of the one that
// has answered.
func TestARefusedRepeatLeavesTheWinner(t *testing.T) {
	e := newAttemptEnv(t, "toy.byid", `, "timeout": "0.5s", "retry_policy": {"retry_back_off": {"base_interval": "100000s"}}`+hedging)
	var told string
	e.a.request = func(m *filter.Message) filter.Verdict { m.AllowRepeat(); return filter.Continue }
	e.a.response = func(m *filter.Message) filter.Verdict { return m.Repeat() }
	e.a.hooks.end = func(m *filter.Message) { told = m.Facts().Host }
	asked := e.hedged()
	e.answer(asked[1].Server, "res "+asked[1].id+" m x")
	require.Equal(t, "res 1 m x\n", e.got())
	require.EqualValues(t, 1, e.count("request_hedge_won"))
	require.Equal(t, asked[1].Host, told)
}

// TestAttemptsDecideNothing: what filters return elsewhere does nothing in their hooks.
func TestAttemptsDecideNothing(t *testing.T) {
	for name, says := range map[string]func(*filter.Message){
		"repeat": func(m *filter.Message) { m.Repeat() },
		"answer": func(m *filter.Message) { m.Answer(codecs.Payload{Bytes: []byte("mine")}) },
		"reply":  func(m *filter.Message) { m.Reply(codecs.Denied, "no") },
	} {
		e := newAttemptEnv(t, "toy.byid", "", "h1")
		asked := e.serveAs(map[string]string{"h1": "res"})
		e.a.request = func(m *filter.Message) filter.Verdict { m.AllowRepeat(); return filter.Continue }
		e.a.begin = func(m *filter.Message, _ *filter.Attempt) { says(m) }
		e.a.end = e.a.begin
		e.say("req 1 m -")
		e.Advance(time.Second)
		require.Equal(t, "res 1 m by h1\n", e.got(), name)
		require.Len(t, *asked, 1, name)
	}
}

// TestARequestHasOneSuccessOfItsRetries, if its last answer is one that nobody wants to
// have again.
func TestARequestHasOneSuccessOfItsRetries(t *testing.T) {
	for wanted, successes := range map[int]int64{2: 1, 3: 1, 9: 0} { // from which answer on
		e := newAttemptEnv(t, "toy.byid", "", "h1")
		asked := e.serveAs(map[string]string{"h1": "fail"})
		e.a.request = func(m *filter.Message) filter.Verdict { m.AllowRepeat(); return filter.Continue }
		e.a.response = func(m *filter.Message) filter.Verdict {
			if len(*asked) < wanted {
				return m.Repeat()
			}
			return filter.Continue
		}
		e.say("req 1 m -")
		e.Advance(2 * time.Second)
		require.Equal(t, "fail 1 m by h1\n", e.got())
		require.Len(t, *asked, min(wanted, 4))
		e.counts(map[string]int64{"request_retry_success": successes})
	}
}

// TestHostsThatAFilterRefuses: the request goes to another one, once without a policy.
func TestHostsThatAFilterRefuses(t *testing.T) {
	for _, codec := range []string{"toy.byid", "toy.exclusive"} {
		t.Run(codec, func(t *testing.T) {
			e := newAttemptEnv(t, codec, "")
			e.serveAs(map[string]string{"h1": "res", "h2": "res"})
			e.members("h1", "h2")
			e.a.begin = func(_ *filter.Message, a *filter.Attempt) {
				if a.Host == "h1" {
					a.Refuse("not there")
				}
			}
			for i := range 8 {
				e.say(fmt.Sprintf("req %d m -", i))
				e.Advance(100 * time.Millisecond)
				require.Equal(t, fmt.Sprintf("res %d m by h2\n", i), e.got())
			}
			require.Contains(t, e.log, "a end 1 h1 sent=false connect failure: not there")
			require.Positive(t, e.count("request_retry"))

			e.a.begin = func(_ *filter.Message, a *filter.Attempt) { a.Refuse("not there") }
			e.log = nil
			e.say("req 9 m -")
			e.Advance(100 * time.Millisecond)
			require.Equal(t, "err 9 - not there\n", e.got())
			require.Len(t, e.log, 4, "two attempts")
			e.a.begin = nil
			e.say("req 10 m -")
			require.Contains(t, e.got(), "res 10 m by h", "connections are as good as before")
		})
	}
}

func TestAPanicInAnAttemptEndsItsMessage(t *testing.T) {
	e := newAttemptEnv(t, "toy.byid", "", "h1")
	e.MayPanic()
	e.up.Serve = serveToys
	e.a.begin = func(*filter.Message, *filter.Attempt) { panic("boom") }
	e.say("req 1 m -")
	require.Equal(t, "err 1 - internal error\n", e.got())
	e.a.begin = nil
	e.a.end = func(m *filter.Message, _ *filter.Attempt) { m.Reply(codecs.Denied, "too late"); panic("boom") }
	e.say("req 2 m -")
	require.Equal(t, "res 2 m ok\n", e.got())
	e.counts(map[string]int64{"filter_panic": 2, "connection_panic": 0, "request_active": 0})
}

// answeredBy has a client ask, and returns what it is told.
func (e *attemptEnv) answeredBy(id int) string {
	e.t.Helper()
	e.say(fmt.Sprintf("req %d m -", id))
	e.Advance(100 * time.Millisecond)
	return strings.TrimSpace(strings.TrimPrefix(e.got(), fmt.Sprintf("res %d m by ", id)))
}

func TestAFilterNamesTheHost(t *testing.T) {
	for _, codec := range []string{"toy.byid", "toy.exclusive", "toy.inorder", "toy.inorder, a connection each"} {
		t.Run(codec, func(t *testing.T) {
			codec, _, exclusive := strings.Cut(codec, ",")
			e := newAttemptEnv(t, codec, "")
			if exclusive {
				e.cfg = e.MustLoad(strings.Replace(policyConfig(codec, "", "", probed), `"name": "toy",`, `"name": "toy", "connection_mode": "EXCLUSIVE",`, 1))
				e.c = e.Dial(e.cfg)
			}
			e.serveAs(map[string]string{"h1": "res", "h2": "res", "h3": "res"})
			e.members("h1", "h2", "h3")
			at, strict := "", false
			e.a.request = func(m *filter.Message) filter.Verdict { m.SetHost(at, strict); return filter.Continue }
			id := 0
			for i := range 30 {
				id++
				at, strict = fmt.Sprintf("h%d", 1+i%3), i%2 == 0
				require.Equal(t, at, e.answeredBy(id))
			}
			require.Zero(t, e.count("request_host_unavailable"))

			at, strict = "h4", false
			id++
			require.Regexp(t, "^h[123]$", e.answeredBy(id))
			require.EqualValues(t, 1, e.count("request_host_unavailable"))
			strict = true
			id++
			require.Equal(t, fmt.Sprintf("err %d - no connection to host \"h4\" of cluster up can take it", id), e.answeredBy(id))
			require.EqualValues(t, 2, e.count("request_host_unavailable"))

			e.up.Tell(host.Member{Address: "h1", Weight: 1, Healthy: true}, host.Member{Address: "h2", Weight: 1}, host.Member{Address: "h3", Weight: 1, Healthy: true})
			e.Advance(time.Second)
			at = "h2"
			id++
			require.Contains(t, e.answeredBy(id), `no connection to host "h2"`, "which is not healthy")
			e.counts(map[string]int64{"request_active": 0})
		})
	}
}

// TestANamedHostThatCannotBeReached: nobody waits for it for long.
func TestANamedHostThatCannotBeReached(t *testing.T) {
	for _, codec := range []string{"toy.byid", "toy.exclusive"} {
		t.Run(codec, func(t *testing.T) {
			e := newAttemptEnv(t, codec, "")
			e.serveAs(map[string]string{"h1": "res"})
			e.members("h1")
			require.Equal(t, "h1", e.answeredBy(1))
			e.up.Fail = func() (host.CloseReason, bool) { return host.ConnectFailed, true }
			e.members("h1", "h2")
			e.Advance(200 * time.Millisecond)
			e.log = nil
			strict := true
			e.a.request = func(m *filter.Message) filter.Verdict { m.SetHost("h2", strict); return filter.Continue }
			require.Equal(t, "err 2 - no connection to host \"h2\" of cluster up can take it", e.answeredBy(2))
			strict = false
			require.Equal(t, "h1", e.answeredBy(3))
			e.counts(map[string]int64{"request_host_unavailable": 2, "request_active": 0})
		})
	}
}

// TestAConnectionThatHasNeverComeAbout, which its host learns when a request without a policy is on
// it: the request is not sent again, as nobody has it any more.
func TestAConnectionThatHasNeverComeAbout(t *testing.T) {
	e := newAttemptEnv(t, "toy.byid", "", "h1", "h2")
	e.c.Send([]byte("req 1 m hello\n"))
	e.Settle()
	servers := e.up.Servers()
	require.NotEmpty(t, servers)
	for _, s := range servers {
		s.Unmake()
	}
	e.Advance(time.Second)
	require.Contains(t, string(e.c.Take()), "err 1 - upstream connect failure in cluster up")
	e.counts(map[string]int64{"connection_panic": 0, "request_active": 0})
}

// TestANamedHostOfWhichAConnectionTells, as the cluster does not tell its hosts.
func TestANamedHostOfWhichAConnectionTells(t *testing.T) {
	e := newAttemptEnv(t, "toy.byid", "", "h1", "h2")
	e.serveAs(map[string]string{"h1": "res", "h2": "res"})
	at := ""
	e.a.request = func(m *filter.Message) filter.Verdict { m.SetHost(at, true); return filter.Continue }
	at = "h1"
	require.Equal(t, "h1", e.answeredBy(1), "the first connection leads there")
	e.Advance(time.Second) // there are connections to both
	for i := range 20 {
		at = fmt.Sprintf("h%d", 1+i%2)
		require.Equal(t, at, e.answeredBy(10+i))
	}
	at = "h3"
	require.Contains(t, e.answeredBy(40), `no connection to host "h3"`)
}

// TestStrictRequestsWaitForTheirHost, where a connection has one request at a time, and
// hold up nobody.
func TestStrictRequestsWaitForTheirHost(t *testing.T) {
	h := filtertest.New(t)
	at := map[string]string{}
	setProbe(t, "probe.a", built(func(*filter.Scope) filter.Filter {
		return &hooks{request: func(m *filter.Message) filter.Verdict {
			method, _ := m.Request().Get("method")
			m.SetHost(at[string(method)], true)
			return filter.Continue
		}}
	}))
	e := &toyEnv{Host: h, t: t, up: h.Cluster("up")}
	e.up.Tell(host.Member{Address: "h1", Weight: 1, Healthy: true}, host.Member{Address: "h2", Weight: 1, Healthy: true})
	e.cfg = h.MustLoad(policyConfig("toy.exclusive", "", "", probed+`, "upstream": {"max_exclusive_connections": 2}`))
	at["m1"], at["m2"] = "h1", "h2"
	clients := map[string]*filtertest.Client{}
	for _, name := range []string{"a", "b", "c", "d"} {
		clients[name] = e.Dial(e.cfg)
	}
	say(clients["a"], "req 1 m1 a")
	say(clients["b"], "req 1 m2 b")
	say(clients["c"], "req 1 m1 c")
	say(clients["d"], "req 1 m d")
	require.Len(t, e.up.Servers(), 2)
	on := map[string]*filtertest.Server{}
	for _, s := range e.up.Servers() {
		on[s.Host] = s
	}
	require.Contains(t, string(on["h1"].Take()), " a")
	require.Contains(t, string(on["h2"].Take()), " b")
	e.answer(on["h2"], "res 1 m2 ok")
	require.Contains(t, string(on["h2"].Take()), " d", "c is before it, and waits for h1")
	e.answer(on["h1"], "res 1 m1 ok")
	require.Contains(t, string(on["h1"].Take()), " c")
	e.answer(on["h1"], "res 1 m1 ok")
	e.answer(on["h2"], "res 1 m ok")
	for name, c := range clients {
		require.Contains(t, string(c.Take()), "res 1", name)
	}
	e.counts(map[string]int64{"request_host_unavailable": 0, "request_active": 0})
}

// TestTheHostOfARetry: a filter chooses it when the attempt before has ended.
func TestTheHostOfARetry(t *testing.T) {
	e := newAttemptEnv(t, "toy.byid", `, "retry_policy": {"num_retries": 2, `+quick+`}`)
	asked := e.serveAs(map[string]string{"h1": "nope", "h2": "nope", "h3": "res"})
	e.members("h1", "h2", "h3")
	e.a.request = func(m *filter.Message) filter.Verdict { m.SetHost("h1", true); return filter.Continue }
	e.a.end = func(m *filter.Message, a *filter.Attempt) {
		m.SetHost(map[int]string{1: "h1", 2: "h3"}[a.Number], true)
	}
	require.Equal(t, "h3", e.answeredBy(1))
	require.Equal(t, []string{"h1 m -", "h1 m retry=1;-", "h3 m retry=2;-"}, *asked)

	e.a.end = nil
	*asked = nil
	e.answeredBy(2)
	require.NotContains(t, (*asked)[1], "h1", "without a word it goes elsewhere")
}
