package filter_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

// policyConfig is that of a listener whose only route has action besides its cluster,
// and its table what table says.
func policyConfig(codec, action, table, more string) string {
	return fmt.Sprintf(`{"stat_prefix": "t", "protocol": {"name": "toy", "codec": {"name": %q}},
		"route_config": {"name": "r" %s, "routes": [{"route": {"cluster": "up" %s}}]} %s}`, codec, table, action, more)
}

func newPolicyEnv(t *testing.T, codec, action, table, more string, hosts ...string) *toyEnv {
	t.Helper()
	h := filtertest.New(t)
	e := &toyEnv{Host: h, t: t, up: h.Cluster("up", hosts...)}
	e.cfg = h.MustLoad(policyConfig(codec, action, table, more))
	e.c = h.Dial(e.cfg)
	return e
}

// serveAs has each server answer with the type, "" for none, that its host has in
// types, and gather what it is asked.
func (e *toyEnv) serveAs(types map[string]string) *[]string {
	var asked []string
	e.up.Serve = func(s *filtertest.Server, b []byte) int {
		for _, l := range lines(b) {
			f := strings.SplitN(l, " ", 4)
			asked = append(asked, s.Host+" "+f[2]+" "+f[3])
			if typ := types[s.Host]; typ != "" {
				s.Send([]byte(typ + " " + f[1] + " " + f[2] + " by " + s.Host + "\n"))
			}
		}
		return len(b)
	}
	return &asked
}

const quick = `"retry_back_off": {"base_interval": "0.001s"}`

// hedging has a second attempt be made after 50 ms.
const hedging = `, "idempotent": true, "hedge_policy": {"hedge_delay": "0.05s"}`

func TestAnswersThatRefuseAreRetriedElsewhere(t *testing.T) {
	for _, tt := range []struct {
		name, typ, action string
		retried           bool
	}{
		{"refused, as by default", "nope", `, "retry_policy": {` + quick + `}`, true},
		{"overloaded is not by default", "busy", `, "retry_policy": {` + quick + `}`, false},
		{"overloaded", "busy", `, "retry_policy": {"retry_on": "overloaded", ` + quick + `}`, true},
		{"failed", "fail", `, "idempotent": true, "retry_policy": {"retry_on": "server-error", ` + quick + `}`, true},
		{"not idempotent", "fail", `, "retry_policy": {` + quick + `}`, false},
		{
			"a code", "err", `, "idempotent": true, "retry_policy": {"retry_on": "retriable-status-codes", "retriable_status_codes": [9, 3], ` + quick + `}`, true,
		},
		{
			"another code", "err", `, "idempotent": true, "retry_policy": {"retry_on": "retriable-status-codes", "retriable_status_codes": [9], ` + quick + `}`, false,
		},
		{"none", "nope", "", false},
		{"no retries", "nope", `, "retry_policy": {"num_retries": 0}`, false},
		{"too large to keep", "nope", `, "retry_policy": {"per_request_buffer_limit_bytes": 5, ` + quick + `}`, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, codec := range []string{"toy.byid", "toy.exclusive"} {
				e := newPolicyEnv(t, codec, tt.action, "", "", "h1", "h2")
				asked := e.serveAs(map[string]string{"h1": tt.typ, "h2": "res"})
				warm := e.Dial(e.cfg) // to both hosts
				say(warm, "req 1 m -", "req 2 m -", "req 3 m -", "req 4 m -")
				e.Advance(50 * time.Millisecond)
				*asked = nil
				n := 8
				if codec == "toy.exclusive" { // there are two idle connections to each host
					n = 2
				}
				for i := range n {
					e.say(fmt.Sprintf("req %d m text%d", i, i))
				}
				e.Advance(50 * time.Millisecond)
				got := lines(e.c.Take())
				require.Len(t, got, n)
				good := 0
				for _, l := range got {
					if strings.HasPrefix(l, "res") {
						good++
					}
				}
				if tt.retried {
					require.Equal(t, n, good, got)
					require.Greater(t, len(*asked), n)
					require.Positive(t, e.count("request_retry"))
					require.Equal(t, e.count("request_retry"), e.count("request_retry_success"))
				} else {
					require.Less(t, good, n)
					require.Len(t, *asked, n)
					require.Zero(t, e.count("request_retry"))
				}
				require.Zero(t, e.count("request_active"))
			}
		})
	}
}

// TestARetrySaysThatItIsOne: it has the whole request, its route's changes and the
// mark of a retry; a request that came with the mark is not sent again.
func TestARetrySaysThatItIsOne(t *testing.T) {
	e := newPolicyEnv(t, "toy.byid", `, "retry_policy": {"num_retries": 2, `+quick+`}`, "", "", "h1")
	asked := e.serveAs(map[string]string{"h1": "nope"})
	e.say("req 7 m hello")
	e.Advance(100 * time.Millisecond)
	require.Equal(t, []string{"h1 m hello", "h1 m retry=1;hello", "h1 m retry=2;hello"}, *asked)
	require.Equal(t, "nope 7 m by h1\n", e.got(), "the server's own answer")
	e.counts(map[string]int64{"request_retry": 2, "request_retry_success": 0, "request_retry_limit_exceeded": 1})
	*asked = nil
	e.say("again 8 m hello")
	e.Advance(100 * time.Millisecond)
	require.Equal(t, []string{"h1 m hello"}, *asked)
	require.Equal(t, "nope 8 m by h1\n", e.got())
}

// TestOnlyCallsAreSentAgain: a oneway is delivered once, and a oneway in disguise may
// be one.
func TestOnlyCallsAreSentAgain(t *testing.T) {
	const action = `, "idempotent": true, "retry_policy": {"retry_on": "refused,reset,timeout", "per_try_timeout": "0.1s", ` + quick + `}`
	e := newPolicyEnv(t, "toy.hidden", action, "", `, "request_timeout": "1s"`, "h1")
	asked := e.serveAs(map[string]string{})
	e.say("one 1 m -", "req 2 mfire -")
	e.Advance(3 * time.Second)
	require.Equal(t, []string{"h1 m -", "h1 mfire -"}, *asked)
	require.Equal(t, "err 2 - upstream request timeout\n", e.got())

	// One that is known to be answered is a call.
	*asked = nil
	e.serveAs(map[string]string{"h1": "res"})
	e.say("req 3 mfire -")
	require.Equal(t, "res 3 mfire by h1\n", e.got())
	asked = e.serveAs(map[string]string{})
	e.say("req 4 mfire -")
	e.Advance(3 * time.Second)
	require.Equal(t, []string{"h1 mfire -", "h1 mfire retry=1;-"}, *asked)
}

// TestAnAnswerShowsThatARequestIsACall, which might have been a oneway: it may be sent
// again, though nothing else would be a reason.
func TestAnAnswerShowsThatARequestIsACall(t *testing.T) {
	e := newPolicyEnv(t, "toy.hidden", `, "idempotent": true, "retry_policy": {"retry_on": "refused,reset,timeout", "num_retries": 3, "per_try_timeout": "0.1s", `+quick+`}`,
		"", `, "request_timeout": "1s"`, "h1")
	n := 0
	e.up.Serve = func(s *filtertest.Server, b []byte) int {
		if n++; n < 3 {
			s.Send([]byte("nope" + strings.TrimPrefix(string(b), "req")))
		}
		return len(b)
	}
	e.say("req 1 mnew -")
	e.Advance(900 * time.Millisecond)
	require.Equal(t, 3, n)
	require.Empty(t, e.got(), "nor is it given up by per_try_timeout")
	e.Advance(200 * time.Millisecond)
	require.Equal(t, "err 1 - upstream request timeout\n", e.got())
	require.Equal(t, 3, n)
	e.counts(map[string]int64{"request_retry": 2, "request_per_try_timeout": 0, "request_active": 0})
}

// TestWhatWasSentIsSentAgainOnlyIfIdempotent: the connection ends before the answer.
func TestWhatWasSentIsSentAgainOnlyIfIdempotent(t *testing.T) {
	for _, idempotent := range []bool{false, true} {
		action := `, "retry_policy": {` + quick + `}`
		if idempotent {
			action = `, "idempotent": true, "retry_policy": {"retry_on": "reset", ` + quick + `}`
		}
		for _, codec := range []string{"toy.byid", "toy.exclusive"} {
			for _, end := range []func(s *filtertest.Server){(*filtertest.Server).Reset, (*filtertest.Server).Close, func(s *filtertest.Server) {
				s.Send([]byte("garbage\n"))
			}} {
				e := newPolicyEnv(t, codec, action, "", "", "h1", "h2")
				n := 0
				e.up.Serve = func(s *filtertest.Server, b []byte) int {
					if n++; n == 1 {
						end(s)
						return len(b)
					}
					return serveToys(s, b)
				}
				e.say("req 1 m -")
				e.Advance(100 * time.Millisecond)
				if idempotent {
					require.Equal(t, "res 1 m ok\n", e.got())
					require.Equal(t, 2, n)
				} else {
					require.Contains(t, e.got(), "err 1 ")
					require.Equal(t, 1, n)
				}
				e.counts(map[string]int64{"request_active": 0})
			}
		}
	}
}

// TestATryThatTakesTooLongIsMadeAgain: with what is left of the deadline, and not
// behind it.
func TestATryThatTakesTooLongIsMadeAgain(t *testing.T) {
	const action = `, "idempotent": true, "timeout": "0.5s",
		"retry_policy": {"retry_on": "timeout", "num_retries": 10, "per_try_timeout": "0.2s", ` + quick + `}`
	e := newPolicyEnv(t, "toy.byid", action, "", "", "h1", "h2")
	asked := e.serveAs(map[string]string{})
	e.say("req 1 m -")
	e.Advance(490 * time.Millisecond)
	require.Empty(t, e.got())
	e.Advance(20 * time.Millisecond)
	require.Equal(t, "err 1 - upstream request timeout\n", e.got())
	require.Len(t, *asked, 3)
	hosts := map[string]bool{}
	for i, a := range *asked {
		f := strings.Fields(a)
		hosts[f[0]] = true
		switch i {
		case 0:
			require.Equal(t, "t=200;-", f[2])
		case 1:
			require.Equal(t, "retry=1;t=200;-", f[2])
		default:
			require.Regexp(t, "^retry=2;t=(8|9)[0-9];-$", f[2])
		}
	}
	require.Len(t, hosts, 2)
	e.counts(map[string]int64{"request_per_try_timeout": 2, "request_timeout": 1, "request_retry": 2, "request_active": 0})
}

// TestDeadlines: the smallest rules, the time counts that was spent before, and what
// is left is told.
func TestDeadlines(t *testing.T) {
	var paused []filter.Resumer
	current = &testFilter{onRequest: func(m *filter.Message) filter.Verdict {
		paused = append(paused, m.Resumer())
		return filter.Pause
	}}
	const slow = `, "meta_protocol_filters": [{"name": "test"}, {"name": "aeraki.meta_protocol.filters.router"}]`
	for _, tt := range []struct {
		name, action, table, more, text string
		told                            string
		after                           time.Duration
	}{
		{"none", "", "", "", "in100", "in100", 15 * time.Second},
		{"route", `, "timeout": "0.3s"`, "", "", "-", "t=300;-", 300 * time.Millisecond},
		{"table", "", `, "timeout": "0.3s"`, "", "-", "t=300;-", 300 * time.Millisecond},
		{"route before table", `, "timeout": "0.2s"`, `, "timeout": "0.3s"`, "", "-", "t=200;-", 200 * time.Millisecond},
		{"listener", `, "timeout": "3s"`, "", `, "request_timeout": "0.4s"`, "-", "t=400;-", 400 * time.Millisecond},
		{"client", `, "timeout": "3s"`, "", "", "in100", "t=100;in100", 100 * time.Millisecond},
		{"client waits longer", `, "timeout": "0.1s"`, "", "", "in300", "t=100;in300", 100 * time.Millisecond},
		{"held by a filter", `, "timeout": "0.3s"`, "", slow, "-", "t=200;-", 300 * time.Millisecond},
		{"held by a filter, without a route's", "", "", `, "request_timeout": "0.3s"` + slow, "-", "-", 300 * time.Millisecond},
		{"held for too long, without a route's", "", "", `, "request_timeout": "0.1s"` + slow, "-", "", 100 * time.Millisecond},
		{"held for too long", `, "timeout": "0.3s"`, "", slow, "in90", "", 100 * time.Millisecond},
		{"over before it came", `, "timeout": "0.3s"`, "", "", "in-1", "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newPolicyEnv(t, "toy.byid", tt.action, tt.table, tt.more, "h1")
			e.serveAs(map[string]string{"h1": "res"})
			resume := func(after time.Duration) {
				if strings.Contains(tt.more, slow) {
					e.Advance(after)
					paused[len(paused)-1].Continue()
					e.Settle()
					tt.after -= after
				}
			}
			say(e.Dial(e.cfg), "req 1 m -")
			resume(0)
			e.Advance(200 * time.Millisecond)
			asked := e.serveAs(map[string]string{})
			e.say("req 1 m " + tt.text)
			resume(100 * time.Millisecond)
			if tt.told != "" {
				e.Advance(tt.after - 10*time.Millisecond)
			}
			if tt.told != "" {
				require.Empty(t, e.got())
			}
			e.Advance(20 * time.Millisecond)
			if tt.told == "" {
				require.Equal(t, "err 1 - the deadline of the request has passed before it could be sent\n", e.got())
				require.Empty(t, *asked)
				e.counts(map[string]int64{"request_deadline_spent": 1})
				return
			}
			require.Equal(t, []string{"h1 m " + tt.told}, *asked)
			require.Equal(t, "err 1 - upstream request timeout\n", e.got())
			e.counts(map[string]int64{"request_timeout": 1, "request_deadline_spent": 0})
		})
	}
}

// TestWhatNobodyHasGotIsSentOnceMore: also without a policy, and a oneway too, where
// there is another host.
func TestWhatNobodyHasGotIsSentOnceMore(t *testing.T) {
	for _, codec := range []string{"toy.byid", "toy.exclusive"} {
		for _, tt := range []struct {
			action string
			hosts  []string
			again  bool
		}{
			{"", []string{"h1", "h2"}, true},
			{`, "retry_policy": {"num_retries": 0}`, []string{"h1", "h2"}, true},
			{`, "timeout": "1s"`, []string{"h1", "h2"}, true},
			{"", []string{"h1"}, false},
			{`, "retry_policy": {}`, []string{"h1"}, true},
		} {
			e := newPolicyEnv(t, codec, tt.action, "", "", tt.hosts...)
			fails := 8 // whatever is tried at first
			e.up.Fail = func() (host.CloseReason, bool) { fails--; return host.ConnectFailed, fails >= 0 }
			e.up.Serve = serveToys
			e.say("req 1 m -")
			e.Advance(2 * time.Second)
			if codec == "toy.exclusive" && tt.again {
				// Each attempt is one connection's.
				require.Contains(t, e.got(), "err 1 - upstream connect failure")
				e.counts(map[string]int64{"request_retry": 1})
				require.Greater(t, e.count("upstream_connect_fail"), int64(1))
				continue
			}
			if tt.again && len(tt.hosts) > 1 {
				require.Equal(t, "res 1 m ok\n", e.got(), tt)
				e.counts(map[string]int64{"request_retry": 1})
			} else {
				require.Contains(t, e.got(), "err 1 - upstream connect failure", tt)
			}
		}
	}
}

// TestOutagesAreNotMadeWorse: of many requests a fifth is sent again, and some each
// second; of few all are.
func TestOutagesAreNotMadeWorse(t *testing.T) {
	raced.Skip(t)
	const action = `, "retry_policy": {` + quick + `}`
	for _, tt := range []struct {
		perSecond   int
		table       string
		least, most int
	}{
		{1000, "", 6000 + 200, 6000 + 400},
		{1, "", 30, 30},
		{1000, `, "clusters": [{"name": "*", "retry_budget": {"budget_percent": {"value": 0}, "min_retries_per_second": 1}}, {"name": "other"}]`, 20, 50},
		{1000, `, "clusters": [{"name": "up", "retry_budget": {"budget_percent": {"value": 100}}}, {"name": "*", "retry_budget": {}}]`, 29000, 30000},
	} {
		e := newPolicyEnv(t, "toy.byid", action, tt.table, "", "h1")
		e.serveAs(map[string]string{"h1": "nope"})
		for i := range 30 * 50 {
			n := tt.perSecond / 50
			if tt.perSecond < 50 && i%(50/tt.perSecond) == 0 {
				n = 1
			}
			for range n {
				e.say("req 1 m -")
			}
			e.Advance(20 * time.Millisecond)
		}
		retries := int(e.count("request_retry"))
		require.GreaterOrEqual(t, retries, tt.least, tt.table)
		require.LessOrEqual(t, retries, tt.most, tt.table)
		require.Equal(t, int64(30*tt.perSecond-retries), e.count("request_retry_overflow"))
	}
}

func TestSoManyRequestsAreInRetryAtOnce(t *testing.T) {
	const action = `, "retry_policy": {"retry_back_off": {"base_interval": "10s"}}`
	e := newPolicyEnv(t, "toy.byid", action, `, "clusters": [{"name": "up", "retry_budget": {"max_concurrent_retries": 3}}]`, "", "h1")
	e.serveAs(map[string]string{"h1": "nope"})
	for i := range 10 {
		e.say(fmt.Sprintf("req %d m -", i))
	}
	require.Len(t, lines(e.c.Take()), 7)
	e.counts(map[string]int64{"request_retry": 3, "request_retry_overflow": 7})
	e.c.Close() // their client leaves
	e.c = e.Dial(e.cfg)
	for i := range 10 {
		e.say(fmt.Sprintf("req %d m -", i))
	}
	require.Len(t, lines(e.c.Take()), 7, "they are in retry no more")
	e.counts(map[string]int64{"request_active": 3})
}

// TestAHedgeIsASecondAttemptElsewhere: the answer that comes first counts, the other
// finds nobody.
func TestAHedgeIsASecondAttemptElsewhere(t *testing.T) {
	for _, codec := range []string{"toy.byid", "toy.exclusive"} {
		for _, first := range []bool{false, true} {
			e := newPolicyEnv(t, codec, hedging, "", "", "h1", "h2")
			e.serveAs(map[string]string{"h1": "res", "h2": "res"})
			warm := e.Dial(e.cfg)
			say(warm, "req 1 m -", "req 2 m -", "req 3 m -", "req 4 m -")
			e.Advance(200 * time.Millisecond)
			type got struct {
				s  *filtertest.Server
				id string
			}
			var asked []got
			e.up.Serve = func(s *filtertest.Server, b []byte) int {
				asked = append(asked, got{s, strings.Fields(string(b))[1]})
				return len(b)
			}
			e.say("req 5 m -")
			e.Advance(40 * time.Millisecond)
			require.Len(t, asked, 1)
			e.Advance(20 * time.Millisecond)
			require.Len(t, asked, 2)
			require.NotEqual(t, asked[0].s.Host, asked[1].s.Host)
			winner, loser := asked[1], asked[0]
			if first {
				winner, loser = loser, winner
			}
			e.answer(winner.s, "res "+winner.id+" m won")
			require.Equal(t, "res 5 m won\n", e.got())
			e.answer(loser.s, "res "+loser.id+" m lost")
			require.Empty(t, e.got())
			won := int64(1)
			if first {
				won = 0
			}
			e.counts(map[string]int64{"request_hedge": 1, "request_hedge_won": won, "request_active": 0, "upstream_abuse": 0})
		}
	}
}

// TestNothingIsSentBehindTheDeadline: no hedge that is due with it, and no retry of a
// request that is refused just before.
func TestNothingIsSentBehindTheDeadline(t *testing.T) {
	for _, policy := range []string{hedging, `, "retry_policy": {` + quick + `}`} {
		e := newPolicyEnv(t, "toy.byid", `, "timeout": "0.05s"`+policy, "", "", "h1", "h2")
		e.serveAs(map[string]string{"h1": "res", "h2": "res"})
		say(e.Dial(e.cfg), "req 1 m -", "req 2 m -")
		e.Advance(time.Second)
		var server *filtertest.Server
		id, asked := "", 0
		e.up.Serve = func(s *filtertest.Server, b []byte) int {
			server, id = s, strings.Fields(string(b))[1]
			asked++
			return len(b)
		}
		e.say("req 5 m -")
		e.Advance(49 * time.Millisecond)
		if policy != hedging {
			e.answer(server, "nope "+id+" m -")
		}
		e.Advance(50 * time.Millisecond)
		require.Equal(t, "err 5 - upstream request timeout\n", e.got())
		require.Equal(t, 1, asked, policy)
		e.counts(map[string]int64{"request_hedge": 0, "request_timeout": 1, "request_active": 0})
	}
}

// TestPeakEWMALearnsOfSlowHostsFromHedges, which do not wait for them.
func TestPeakEWMALearnsOfSlowHostsFromHedges(t *testing.T) {
	share := func(action string) float64 {
		e := newPolicyEnv(t, "toy.byid", action, `, "clusters": [{"name": "*", "load_balancing": {"peak_ewma": {}}, "retry_budget": {"budget_percent": {"value": 100}}}]`, "", "h1", "h2", "h3")
		due := map[int][]func(){}
		now, slow, all, asked := 0, false, 0, 0
		e.up.Serve = func(s *filtertest.Server, b []byte) int {
			for _, l := range lines(b) {
				at := now + 5
				if s.Host == "h1" && slow {
					at = now + 200
					asked++
				}
				all++
				due[at] = append(due[at], func() { s.Send([]byte("res " + strings.Fields(l)[1] + " m -\n")) })
			}
			return len(b)
		}
		load := func(ms int) {
			for end := now + ms; now < end; now++ {
				for _, answer := range due[now] {
					answer()
				}
				delete(due, now)
				if now%100 == 0 {
					e.say(fmt.Sprintf("req %d m -", now))
				}
				e.Advance(time.Millisecond)
			}
		}
		load(3000)
		slow, all = true, 0
		load(20000)
		return float64(asked) / float64(all)
	}
	without, with := share(`, "idempotent": true`), share(hedging)
	require.Less(t, with, 2*without+0.05)
}

// TestAHedgeWaitsForAConnection: a request that got one late has a second attempt all the
// same, if its server is slow.
func TestAHedgeWaitsForAConnection(t *testing.T) {
	e := newPolicyEnv(t, "toy.byid", hedging, "", "", "h1", "h2")
	asked := e.serveAs(nil)
	e.up.Hang = true
	e.say("req 5 m -")
	e.Advance(180 * time.Millisecond)
	require.Empty(t, *asked)
	e.up.Admit()
	e.Settle()
	require.Len(t, *asked, 1)
	e.Advance(60 * time.Millisecond)
	require.Len(t, *asked, 2)
	require.NotEqual(t, (*asked)[0], (*asked)[1], "another host")
	e.counts(map[string]int64{"request_hedge": 1})

	e = newPolicyEnv(t, "toy.byid", hedging, "", "", "h1")
	asked = e.serveAs(nil)
	e.say("req 5 m -")
	e.Advance(60 * time.Millisecond)
	e.up.SetHosts("h1", "h2")
	other := e.Dial(e.cfg)
	say(other, "req 6 m -")
	e.Advance(100 * time.Millisecond)
	require.Contains(t, *asked, "h2 m retry=1;-", "which came later than the delay was over")
	e.counts(map[string]int64{"request_hedge": 2})
}

// TestAHedgeNeedsAnotherHost, and takes an answer that is a failure from neither
// while the other may have a better one.
func TestAHedgeNeedsAnotherHost(t *testing.T) {
	const action = hedging + `, "retry_policy": {"retry_on": "server-error", "num_retries": 0}`
	e := newPolicyEnv(t, "toy.byid", action, "", "", "h1")
	asked := e.serveAs(map[string]string{})
	e.say("req 5 m -")
	e.Advance(time.Second)
	require.Len(t, *asked, 1)
	e.counts(map[string]int64{"request_hedge": 0})

	e = newPolicyEnv(t, "toy.byid", action, "", "", "h1", "h2")
	e.serveAs(map[string]string{"h1": "res", "h2": "res"})
	say(e.Dial(e.cfg), "req 1 m -")
	e.Advance(200 * time.Millisecond)
	var ids []string
	var servers []*filtertest.Server
	e.up.Serve = func(s *filtertest.Server, b []byte) int {
		ids, servers = append(ids, strings.Fields(string(b))[1]), append(servers, s)
		return len(b)
	}
	e.say("req 5 m -")
	e.Advance(60 * time.Millisecond)
	require.Len(t, ids, 2)
	e.answer(servers[1], "fail "+ids[1]+" m bad")
	require.Empty(t, e.got())
	e.answer(servers[0], "res "+ids[0]+" m good")
	require.Equal(t, "res 5 m good\n", e.got())
}

// TestHedgingByPercentile begins when enough is known.
func TestHedgingByPercentile(t *testing.T) {
	const action = `, "idempotent": true, "hedge_policy": {"hedge_percentile": {"value": 95}}`
	e := newPolicyEnv(t, "toy.byid", action, "", "", "h1", "h2")
	e.serveAs(map[string]string{"h1": "res", "h2": "res"})
	for range 150 {
		e.say("req 1 m -")
		e.Advance(time.Millisecond)
	}
	e.counts(map[string]int64{"request_hedge": 0})
	asked := e.serveAs(map[string]string{})
	e.say("req 1 m -")
	e.Advance(50 * time.Millisecond)
	require.Len(t, *asked, 2)
}

// TestHedgesAreAsManyAsThePercentileSays, in the long run too: those that are cut off were
// as slow as they had been by then.
func TestHedgesAreAsManyAsThePercentileSays(t *testing.T) {
	raced.Skip(t)
	const action = `, "idempotent": true, "hedge_policy": {"hedge_percentile": {"value": 95}}`
	e := newPolicyEnv(t, "toy.byid", action, `, "clusters": [{"name": "*", "retry_budget": {"budget_percent": {"value": 100}}}]`, "", "h1", "h2")
	rng := rand.New(rand.NewPCG(1, 1))
	type answer struct {
		s    *filtertest.Server
		text string
	}
	due := map[int][]answer{}
	now := 0
	e.up.Serve = func(s *filtertest.Server, b []byte) int {
		for _, l := range lines(b) {
			at := now + 1 + int(rng.ExpFloat64()*50)
			due[at] = append(due[at], answer{s, "res " + strings.Fields(l)[1] + " m -\n"})
		}
		return len(b)
	}
	const n = 30_000
	for ; now < n; now++ {
		for _, a := range due[now] {
			a.s.Send([]byte(a.text))
		}
		delete(due, now)
		e.say(fmt.Sprintf("req %d m -", now))
		e.Advance(time.Millisecond)
	}
	hedges := e.count("request_hedge") // of 3.8 %, as times are known to a fifth
	require.Less(t, hedges, int64(n*6/100))
	require.Greater(t, hedges, int64(n*2/100))
}

// TestACancelledExchangeLeavesNothing: its client leaves while it waits for a retry, or
// for two answers.
func TestACancelledExchangeLeavesNothing(t *testing.T) {
	const action = hedging + `, "retry_policy": {"retry_back_off": {"base_interval": "1s"}}`
	for _, types := range []map[string]string{{"h1": "nope", "h2": "nope"}, {}} {
		for _, codec := range []string{"toy.byid", "toy.exclusive"} {
			e := newPolicyEnv(t, codec, action, "", "", "h1", "h2")
			e.serveAs(map[string]string{"h1": "res", "h2": "res"})
			say(e.Dial(e.cfg), "req 1 m -", "req 2 m -", "req 3 m -", "req 4 m -")
			e.Advance(200 * time.Millisecond)
			asked := e.serveAs(types)
			e.say("req 1 m -")
			e.Advance(60 * time.Millisecond)
			e.c.Close()
			n := len(*asked)
			e.Advance(20 * time.Second)
			require.Len(t, *asked, n)
			e.counts(map[string]int64{"request_abandoned": 1, "request_active": 0})
		}
	}
}

// TestARetryIsSentElsewhereThanIdleConnectionsLead: exclusive connections that are idle
// lead to the host that has refused only. A new one is opened, while others' requests
// take those.
func TestARetryIsSentElsewhereThanIdleConnectionsLead(t *testing.T) {
	const action = `, "retry_policy": {` + quick + `}`
	e := newPolicyEnv(t, "toy.exclusive", action, "", "", "h1", "h2")
	e.serveAs(map[string]string{"h1": "nope", "h2": "res"})
	for i := range 10 {
		e.say(fmt.Sprintf("req %d m -", i))
		e.Advance(20 * time.Millisecond)
		require.Equal(t, fmt.Sprintf("res %d m by h2\n", i), e.got())
	}

	e = newPolicyEnv(t, "toy.exclusive", action, "", "", "h1", "h2")
	e.serveAs(map[string]string{"h1": "res"})
	e.say("req 1 m -")
	require.Equal(t, "res 1 m by h1\n", e.got())
	e.up.Hang = true // as the other host takes no connections
	e.serveAs(map[string]string{"h1": "nope"})
	e.say("req 2 m -")
	e.Advance(20 * time.Millisecond)
	e.serveAs(map[string]string{"h1": "res", "h2": "res"})
	other := e.Dial(e.cfg)
	for range 3 {
		say(other, "req 3 m -")
		require.Equal(t, "res 3 m by h1\n", string(other.Take()))
	}
	require.Empty(t, e.got())
	e.up.Admit()
	require.Equal(t, "res 2 m by h2\n", e.got())

	// It makes do with the host that there is.
	e = newPolicyEnv(t, "toy.exclusive", action, "", "", "h1", "h2")
	e.up.Pick = func([]string) string { return "h1" }
	asked := e.serveAs(map[string]string{"h1": "nope"})
	e.say("req 4 m -")
	e.Advance(100 * time.Millisecond)
	require.Equal(t, "nope 4 m by h1\n", e.got())
	require.Len(t, *asked, 2)
	e.counts(map[string]int64{"request_active": 0, "request_retry": 1})
}

// TestARetryThatMayNotWaitMakesDo with the host that has refused: the idle connection
// to it is there, and other requests that wait use up what may wait.
func TestARetryThatMayNotWaitMakesDo(t *testing.T) {
	const action = `, "retry_policy": {` + quick + `}`
	for what, limits := range map[string][2]string{
		"circuit breaker": {`, "clusters": [{"name": "up", "circuit_breakers": {"max_pending_requests": 1}}]`, ""},
		"listener":        {"", `, "upstream": {"max_pending_requests": 1}`},
	} {
		t.Run(what, func(t *testing.T) {
			e := newPolicyEnv(t, "toy.exclusive", action, limits[0], limits[1], "h1", "h2")
			e.up.Pick = func([]string) string { return "h1" }
			e.serveAs(map[string]string{"h1": "res"})
			e.say("req 1 m -")
			require.Equal(t, "res 1 m by h1\n", e.got())
			e.up.Hang = true
			e.serveAs(map[string]string{"h1": "nope"})
			waiting := 1
			if what == "listener" { // refuses beyond twice that
				waiting = 2
			}
			for range waiting {
				say(e.Dial(e.cfg), "req 2 m -")
				e.Advance(20 * time.Millisecond)
			}
			e.say("req 3 m -")
			e.Advance(20 * time.Millisecond)
			require.Equal(t, "nope 3 m by h1\n", e.got())
		})
	}
}

// TestAPanicOverAFurtherAttemptIsToldOf, whatever becomes of the one before.
func TestAPanicOverAFurtherAttemptIsToldOf(t *testing.T) {
	for _, policy := range []string{
		`"retry_policy": {` + quick + `}`,
		`"idempotent": true, "hedge_policy": {"hedge_delay": "0.05s"}`,
	} {
		e := newPolicyEnv(t, "toy.byid", ", "+policy, "", "", "h1", "h2")
		e.MayPanic()
		e.serveAs(map[string]string{"h1": "res", "h2": "res"})
		say(e.Dial(e.cfg), "req 1 m -")
		e.Advance(200 * time.Millisecond)
		asked := e.serveAs(map[string]string{})
		if strings.Contains(policy, "retry") {
			asked = e.serveAs(map[string]string{"h1": "nope", "h2": "nope"})
		}
		e.say("req 5 m boom-again")
		e.Advance(100 * time.Millisecond)
		require.Len(t, *asked, 1)
		require.Equal(t, "err 5 - internal error\n", e.got())
		require.True(t, e.c.Closed())
		e.c = e.Dial(e.cfg)
		e.counts(map[string]int64{"connection_panic": 1, "request_active": 0})
	}
}

// TestATooLargeAnswerIsAnAnswer: another server would give it, too.
func TestATooLargeAnswerIsAnAnswer(t *testing.T) {
	e := newPolicyEnv(t, "toy.bounded", `, "idempotent": true, "retry_policy": {"retry_on": "reset", `+quick+`}`, "", "", "h1", "h2")
	n := 0
	e.up.Serve = func(s *filtertest.Server, b []byte) int {
		n++
		s.Send(fmt.Appendf(nil, "%-59.59s\n", fmt.Sprintf("res %s m size=60;", strings.Fields(string(b))[1])))
		return len(b)
	}
	e.say("req 1 m -")
	e.Advance(100 * time.Millisecond)
	require.Contains(t, e.got(), "err 1 - response: ")
	require.Equal(t, 1, n)
	e.counts(map[string]int64{"request_retry": 0, "request_active": 0})
}

// TestNothingIsSentAgainForAClientThatHasLeft: what no server has got might be a oneway,
// and is delivered, once.
func TestNothingIsSentAgainForAClientThatHasLeft(t *testing.T) {
	for _, when := range []string{"before it is sent", "in the pause", "while it waits for a connection"} {
		t.Run(when, func(t *testing.T) {
			e := newPolicyEnv(t, "toy.hidden", `, "retry_policy": {"retry_back_off": {"base_interval": "0.1s"}}`, "", "", "h1")
			e.serveAs(map[string]string{"h1": "res"})
			e.say("req 1 m -")
			require.Equal(t, "res 1 m by h1\n", e.got())
			lost := func() {
				for _, s := range e.up.Servers() {
					s.Close()
				}
				e.up.Hang = true
			}
			retries := int64(1)
			if when == "before it is sent" {
				lost()
				retries = 0
			}
			asked := e.serveAs(map[string]string{"h1": "nope"})
			e.say("req 2 m -")
			require.Len(t, *asked, int(retries))
			if when == "while it waits for a connection" {
				lost()
				e.Advance(200 * time.Millisecond)
			}
			e.c.Close()
			e.up.Hang = false
			e.up.Admit()
			e.Advance(5 * time.Second)
			require.Len(t, *asked, 1)
			e.c = e.Dial(e.cfg)
			e.counts(map[string]int64{"request_retry": retries, "request_abandoned": 1, "request_active": 0})
		})
	}
}

// TestASpentDeadlineOfAOnewayInDisguiseIsNotTold: its client would take the error for the
// answer to its next request.
func TestASpentDeadlineOfAOnewayInDisguiseIsNotTold(t *testing.T) {
	e := newPolicyEnv(t, "toy.hidden", `, "timeout": "1s"`, "", "", "h1")
	e.serveOnly("mask")
	for range 3 {
		e.say("req 1 mfire -", "req 2 mask -")
		require.Equal(t, "res 2 mask yes\n", e.got())
		e.Advance(late)
		require.Empty(t, e.got())
	}
	e.say("req 3 mfire in-1", "req 4 mask -")
	require.Equal(t, "res 4 mask yes\n", e.got())
	e.say("req 5 mask in-1")
	require.Equal(t, "err 5 - the deadline of the request has passed before it could be sent\n", e.got())
	e.counts(map[string]int64{"request_deadline_spent": 2, "request_active": 0})
}

// TestSillyPauses are waited for, or not.
func TestSillyPauses(t *testing.T) {
	e := newPolicyEnv(t, "toy.byid", `, "retry_policy": {"num_retries": 10, "retry_back_off": {"base_interval": "0.001s", "max_interval": "315576000000s"}}`, "",
		`, "request_timeout": "3s"`, "h1")
	asked := e.serveAs(map[string]string{"h1": "nope"})
	e.say("req 1 m -")
	e.Advance(4 * time.Second)
	require.Len(t, *asked, 11)
	require.Equal(t, "nope 1 m by h1\n", e.got())
}
