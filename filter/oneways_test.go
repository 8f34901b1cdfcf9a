package filter_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

func TestATimeoutOfAOnewayInDisguiseIsNotReported(t *testing.T) {
	e := newToyEnv(t, "toy.hidden", `, "request_timeout": "1s"`)
	e.say("req 1 mfire -") // its client does not wait
	s := e.server(0)
	e.say("req 2 mask -")
	asked := e.server(1)
	e.answer(asked, "res "+ids(asked)[0]+" mask yes")
	require.Equal(t, "res 2 mask a=2;yes\n", e.got())
	e.Advance(1100 * time.Millisecond)
	require.Empty(t, e.got())
	require.False(t, s.Open(), "it may still owe an answer")
	e.counts(map[string]int64{"oneway_presumed": 1, "request_timeout": 0})

	e.say("req 3 mfire -")
	e.Advance(1100 * time.Millisecond)
	require.Empty(t, e.got(), "now the method is known")

	e.say("req 4 mask -")
	e.Advance(1100 * time.Millisecond)
	require.Equal(t, "err 4 - upstream request timeout\n", e.got(), "a method that is answered times out")
	e.say("req 8 mcertain -", "req 9 mask -")
	e.Advance(1100 * time.Millisecond)
	require.Equal(t, "err 8 - upstream request timeout\nerr 9 - upstream request timeout\n", e.got(), "it is a call for sure")
	e.say("req 5 mnew -")
	e.Advance(1100 * time.Millisecond)
	require.Equal(t, "err 5 - upstream request timeout\n", e.got(), "its client may be waiting")
}

// serveOnly answers the calls of some methods, and keeps those of others to itself.
func (e *toyEnv) serveOnly(methods ...string) {
	e.up.Serve = func(s *filtertest.Server, b []byte) int {
		for _, l := range lines(b) {
			if f := strings.Fields(l); slices.Contains(methods, f[2]) {
				s.Send([]byte("res " + f[1] + " " + f[2] + " yes\n"))
			}
		}
		return len(b)
	}
}

// asked is the server that has got a call of method last, with the id it has there.
func (e *toyEnv) asked(method string) (*filtertest.Server, string) {
	e.t.Helper()
	for _, s := range e.up.Servers() {
		for _, l := range lines(s.Take()) {
			if f := strings.Fields(l); f[2] == method {
				return s, f[1]
			}
		}
	}
	e.t.Fatalf("no server has got %s", method)
	return nil, ""
}

const late = 1100 * time.Millisecond // for a request_timeout of 1 s

// learn has the client of e go on twice as if nothing had happened when mfire has
// no answer.
func (e *toyEnv) learn() {
	e.t.Helper()
	e.serveOnly("mask")
	for range 2 {
		e.say("req 1 mfire -", "req 2 mask -")
		require.Equal(e.t, "res 2 mask a=2;yes\n", e.got())
		e.Advance(late)
		require.Empty(e.t, e.got())
	}
	e.say("req 3 mask -")
	require.Equal(e.t, "res 3 mask a=2;yes\n", e.got())
	e.up.Serve = nil
}

func newHiddenEnv(t *testing.T) *toyEnv {
	t.Helper()
	return newToyEnv(t, "toy.hidden", `, "request_timeout": "1s"`)
}

func TestAKnownOnewayInDisguiseKeepsNothing(t *testing.T) {
	e := newHiddenEnv(t)
	e.learn()
	e.counts(map[string]int64{"oneway_presumed": 2, "request_active": 0})
	s := e.server(0)
	for range 100 { // each goes on behind the one before
		e.say("req 3 mfire -", "req 4 mask -")
		ids := ids(s)
		require.Len(t, ids, 2, "one connection serves them all")
		e.answer(s, "res "+ids[1]+" mask yes")
		require.Equal(t, "res 4 mask a=2;yes\n", e.got())
	}
	e.counts(map[string]int64{"oneway_presumed": 102, "request_active": 0})
	e.say("req 5 mfire -")
	e.Advance(late)
	require.Empty(t, e.got(), "though its client has not gone on yet")
	e.say("req 5 mfire -")
	e.c.CloseWrite()
	require.True(t, e.c.Closed(), "there is nothing to wait for")
	e.c = e.Dial(e.cfg)
	e.counts(map[string]int64{"oneway_presumed": 104, "request_timeout": 0})
}

// TestAOnewaySetAsideKeepsNoPlace, of circuit breakers or filters, and gives back none
// twice, however it ends.
func TestAOnewaySetAsideKeepsNoPlace(t *testing.T) {
	const most = 2
	for name, aside := range map[string]func(m *filter.Message) filter.Verdict{
		"": func(*filter.Message) filter.Verdict { return filter.Continue },
		// OnAside decides nothing.
		"replies": func(m *filter.Message) filter.Verdict { return m.Reply(codecs.Denied, "no") },
		"repeats": (*filter.Message).Repeat,
		"panics":  func(*filter.Message) filter.Verdict { panic("boom") },
	} {
		t.Run(name, func(t *testing.T) {
			d := keep(t)
			tell := d.b.aside
			d.b.aside = func(m *filter.Message) {
				require.Equal(t, "mfire", string(m.Request().Method()))
				tell(m)
				aside(m)
			}
			e := &toyEnv{Host: filtertest.New(t), t: t}
			e.MayPanic()
			e.up = e.Cluster("up", "h1")
			e.Cluster("none")
			e.cfg = e.MustLoad(strings.Replace(toyConfig(`"codec": {"name": "toy.hidden"}`, probed+`, "request_timeout": "1s"`), `"routes"`,
				fmt.Sprintf(`"clusters": [{"name": "up", "circuit_breakers": {"max_requests": %d, "keys": [{"names": ["method"], "max_requests": %d}]}}], "routes"`, most, most), 1))
			e.c = e.Dial(e.cfg)
			e.learn()
			d.lines = nil
			e.say("req 4 mfire -")
			s, id := e.asked("mfire")
			d.says("a request", "b request")
			e.say("req 5 mfire -")
			d.says("b aside", "a aside", "a request", "b request")
			for range 3 {
				e.say("req 6 mfire -")
			}
			require.Empty(t, e.got())
			e.counts(map[string]int64{"breaker_max_requests": 0, "breaker_key_max_requests": 0})
			d.lines = nil
			e.answer(s, "res "+id+" mfire at last")
			require.Equal(t, "res 4 mfire a=2;at last\n", e.got())
			d.says("b response", "a response", "b end", "a end")
			e.Advance(late) // of the others
			e.got()
			e.counts(map[string]int64{"request_active": 0})

			full := e.Dial(e.cfg)
			say(full, "req 1 mask -", "req 2 mask -", "req 3 mask -")
			require.Equal(t, "err 3 - circuit breaker of cluster up: max_requests b a\n", string(full.Take()), "no more is free than there was")
		})
	}
}

// TestOnewaysBetweenAnswersAreSignsOfTheirOwn: a busy client need not be waited
// for twice.
func TestOnewaysBetweenAnswersAreSignsOfTheirOwn(t *testing.T) {
	for _, between := range []bool{false, true} {
		e := newHiddenEnv(t)
		e.serveOnly("mask")
		e.say("req 1 mfire -")
		if between {
			e.say("req 2 mask -")
		}
		e.say("req 3 mfire -", "req 4 mask -")
		e.Advance(late)
		e.say("req 5 mask -")
		e.got()
		e.c = e.Dial(e.cfg)
		e.say("req 1 mfire -")
		e.Advance(late)
		require.Equal(t, between, e.got() == "")
	}
}

// TestAServerThatLeavesAfterAKnownOneway may have served it.
func TestAServerThatLeavesAfterAKnownOneway(t *testing.T) {
	for name, leave := range map[string]func(*filtertest.Server){"closes": (*filtertest.Server).Close, "resets": (*filtertest.Server).Reset} {
		t.Run(name, func(t *testing.T) {
			e := newHiddenEnv(t)
			e.learn()
			for _, lines := range [][]string{{"req 4 mfire -"}, {"req 5 mfire -", "req 6 mfire -", "req 7 mfire -"}} {
				e.say(lines...)
				for _, s := range e.up.Servers() {
					leave(s)
				}
				e.Settle()
				require.Empty(t, e.got())
			}
			e.say("req 8 mask -")
			leave(e.serverWith("mask"))
			e.Settle()
			require.Contains(t, e.got(), "err 8 - ")
			e.counts(map[string]int64{"upstream_reset": 1, "request_active": 0})
		})
	}
}

// TestAPresumedOnewayIsAnsweredAfterAll: what was taken for a oneway costs nobody
// an answer.
func TestAPresumedOnewayIsAnsweredAfterAll(t *testing.T) {
	e := newHiddenEnv(t)
	e.learn()
	e.say("req 4 mfire -")
	s, id := e.asked("mfire")
	e.say("req 5 mask -")
	e.counts(map[string]int64{"oneway_presumed": 3})
	e.answer(s, "res "+id+" mfire at last")
	require.Equal(t, "res 4 mfire a=2;at last\n", e.got())
	s, id = e.asked("mask")
	e.answer(s, "res "+id+" mask yes")
	require.Equal(t, "res 5 mask a=2;yes\n", e.got())

	// It is known for what it is now, to all.
	e.c = e.Dial(e.cfg)
	e.say("req 1 mfire -", "req 2 mask -")
	e.Advance(late)
	require.Equal(t, "err 1 - upstream request timeout\nerr 2 - upstream request timeout\n", e.got())
	e.counts(map[string]int64{"oneway_presumed": 3, "upstream_stray_response": 0, "request_active": 0})
}

// TestAKnownOnewayOnAConnectionThatDrains: it may not have been read yet, and it may
// be answered.
func TestAKnownOnewayOnAConnectionThatDrains(t *testing.T) {
	e := newHiddenEnv(t)
	e.learn()
	e.say("req 4 mfire -")
	s, id := e.asked("mfire")
	e.answer(s, "away 0 - -")
	e.say("req 5 mask -")
	require.Zero(t, e.Panics())
	e.counts(map[string]int64{"oneway_presumed": 3, "request_active": 1, "connection_panic": 0})
	e.answer(s, "res "+id+" mfire at last")
	require.Equal(t, "res 4 mfire a=2;at last\n", e.got())
	require.True(t, s.Open())
	e.Advance(5100 * time.Millisecond)
	require.False(t, s.Open())
	e.counts(map[string]int64{"request_active": 0})
}

// TestAPresumedOnewayFailsAfterAll: its client hears of it if it turns out to
// pipeline, or the operation to be answered.
func TestAPresumedOnewayFailsAfterAll(t *testing.T) {
	for what, then := range map[string]func(e *toyEnv){
		"pipelines": func(e *toyEnv) {
			e.say("req 5 mask -")
			s, id := e.asked("mask")
			e.say("req 6 mask -")
			e.answer(s, "res "+id+" mask yes")
			require.Equal(t, "res 5 mask a=2;yes\n", e.got())
		},
		"answered": func(e *toyEnv) {
			e.say("req 5 mask -")
			o := e.Dial(e.cfg)
			e.serveOnly("mfire")
			o.Send([]byte("req 1 mfire -\n"))
			require.Equal(t, "res 1 mfire a=2;yes\n", string(o.Take()))
		},
	} {
		t.Run(what, func(t *testing.T) {
			e := newHiddenEnv(t)
			e.learn()
			e.say("req 4 mfire -")
			_, id := e.asked("mfire")
			require.NotEmpty(t, id)
			then(e)
			e.Advance(late)
			require.Contains(t, e.got(), "err 4 - upstream request timeout\n")
			e.counts(map[string]int64{"request_active": 0})
		})
	}
}

// TestAClientThatPipelinesGetsItsErrors: one that has sent a call before the answer
// to another one waits for both.
func TestAClientThatPipelinesGetsItsErrors(t *testing.T) {
	e := newHiddenEnv(t)
	e.serveOnly("mask")
	e.say("req 1 mslow -", "req 2 mask -", "req 3 mslow -", "req 4 mask -")
	require.Equal(t, "res 2 mask a=2;yes\nres 4 mask a=2;yes\n", e.got())
	e.Advance(late)
	require.Equal(t, "err 1 - upstream request timeout\nerr 3 - upstream request timeout\n", e.got())

	// Nothing was learnt of the method: others' calls are what they were.
	e.up.Serve = nil
	e.c = e.Dial(e.cfg)
	e.say("req 1 mslow -")
	s, id := e.asked("mslow")
	e.say("req 2 mask -")
	e.answer(s, "res "+id+" mslow yes")
	require.Equal(t, "res 1 mslow a=2;yes\n", e.got())
	e.counts(map[string]int64{"oneway_presumed": 0, "request_timeout": 2})
}

// TestAnErrorIsWithheldUntilItsClientShowsThatItPipelines: with two requests no
// one can tell.
func TestAnErrorIsWithheldUntilItsClientShowsThatItPipelines(t *testing.T) {
	e := newHiddenEnv(t)
	e.serveOnly("mask")
	e.say("req 1 mslow -", "req 2 mask -")
	require.Equal(t, "res 2 mask a=2;yes\n", e.got())
	e.Advance(late)
	require.Empty(t, e.got())
	e.counts(map[string]int64{"oneway_presumed": 1, "request_timeout": 0})
	e.up.Serve = nil
	e.say("req 3 mask -")
	s, id := e.asked("mask")
	e.say("req 4 mask -")
	e.answer(s, "res "+id+" mask yes")
	require.Equal(t, "err 1 - upstream request timeout\nres 3 mask a=2;yes\n", e.got())
	e.counts(map[string]int64{"request_timeout": 1, "oneway_presumed": 1, "oneway_error_told": 1})

	// Or until the method turns out to be answered, or the client sends no more.
	for what, then := range map[string]func(c *filtertest.Client){
		"answered": func(c *filtertest.Client) {
			o := e.Dial(e.cfg)
			e.serveOnly("mask", "manswered")
			o.Send([]byte("req 1 manswered -\n"))
			c.Send([]byte("req 9 mask -\n"))
		},
		"waited": func(*filtertest.Client) { // for it, by a client that asks for nothing else
			o := e.Dial(e.cfg)
			e.serveOnly("mask", "mwaited")
			o.Send([]byte("req 1 mwaited -\n"))
			e.Advance(600 * time.Millisecond)
		},
		"ended": (*filtertest.Client).CloseWrite,
	} {
		t.Run(what, func(t *testing.T) {
			c := e.Dial(e.cfg)
			e.serveOnly("mask")
			c.Send([]byte("req 1 m" + what + " -\nreq 2 mask -\n"))
			require.Equal(t, "res 2 mask a=2;yes\n", string(c.Take()))
			e.Advance(late)
			require.Empty(t, c.Take())
			then(c)
			require.Contains(t, string(c.Take()), "err 1 - upstream request timeout\n")
		})
	}
	// Each was counted as presumed before.
	e.counts(map[string]int64{"oneway_presumed": 4, "oneway_error_told": 4})
}

// TestManyCallsOfOneMethodThatHangAllFail: if the last one is a call, as its client
// seems to wait, so are the others.
func TestManyCallsOfOneMethodThatHangAllFail(t *testing.T) {
	e := newHiddenEnv(t)
	want := ""
	for i := range 8 {
		e.say(fmt.Sprintf("req %d mhang -", i+1))
		want += fmt.Sprintf("err %d - upstream request timeout\n", i+1)
	}
	e.Advance(late)
	require.Equal(t, want, e.got())
}

// TestWhatIsLearntOutlivesUpdatesAndIsShared, in both directions.
func TestWhatIsLearntOutlivesUpdatesAndIsShared(t *testing.T) {
	h := filtertest.NewWith(t, filter.NewModule(), 2)
	e := &toyEnv{Host: h, t: t, up: h.Cluster("up", "h1")}
	h.Cluster("none")
	load := func() *filtertest.Config {
		return h.MustLoad(toyConfig(`"codec": {"name": "toy.hidden"}`, `, "request_timeout": "1s"`))
	}
	e.cfg = load()
	e.c = h.Dial(e.cfg)
	e.learn()
	again := load()
	e.c.Close()
	e.cfg.Destroy()
	for worker := range 2 {
		e.c = h.DialOn(again, worker)
		e.say("req 1 mfire -")
		e.Advance(late)
		require.Empty(t, e.got(), "a known oneway")
		e.say("req 2 mask -", "req 3 mask -", "req 4 mask -", "req 5 mask -")
		e.Advance(late)
		require.Equal(t, 4, strings.Count(e.got(), "upstream request timeout\n"), "known to be answered")
	}
}

// TestNoNumberOfNamesEndsLearning: neither of answered ones nor of others.
func TestNoNumberOfNamesEndsLearning(t *testing.T) {
	raced.Skip(t)
	e := newHiddenEnv(t)
	e.up.Serve = serveToys
	hostile := e.Dial(e.cfg)
	junk := func(n int) {
		for i := range n {
			hostile.Send(fmt.Appendf(nil, "req 1 mjunk%d -\n", i))
		}
		hostile.Take()
	}
	junk(20000)
	e.learn()
	e.up.Serve = serveToys
	junk(20000)
	e.up.Serve = nil
	e.say("req 3 mfire -")
	e.Advance(late)
	require.Empty(t, e.got(), "it is still known")
}

// TestNoNumberOfNamesWithoutAnAnswerEndsLearning, by which a client would have others'
// errors withheld.
func TestNoNumberOfNamesWithoutAnAnswerEndsLearning(t *testing.T) {
	raced.Skip(t)
	e := newHiddenEnv(t)
	e.serveOnly("mask")
	e.say("req 1 mask -")
	require.Equal(t, "res 1 mask a=2;yes\n", e.got())
	hostile := e.Dial(e.cfg)
	for i := range 16 {
		var junk []byte
		for j := range 400 {
			junk = fmt.Appendf(junk, "req 1%d mjunk%d -\n", j, 400*i+j)
		}
		hostile.Send(junk)
		e.Advance(late)
	}
	hostile.Send([]byte("req 1 mend -\n"))
	hostile.Take()
	e.up.Serve = nil
	e.say("req 2 mask -", "req 3 mother -")
	e.Advance(late)
	require.Equal(t, "err 2 - upstream request timeout\nerr 3 - upstream request timeout\n", e.got(), "the first is known to be answered")
}

// TestAClientThatLeavesGetsItsError: it has nothing to take it for, and to leave is
// no sign that it did not wait.
func TestAClientThatLeavesGetsItsError(t *testing.T) {
	for range 3 {
		e := newHiddenEnv(t)
		e.say("req 1 mfire -")
		e.c.CloseWrite()
		require.False(t, e.c.Closed(), "it may want the answer")
		e.Advance(late)
		require.Equal(t, "err 1 - upstream request timeout\n", e.got())
		require.True(t, e.c.Closed())
	}
}

// TestAClientThatSendsNoMoreGetsItsAnswersFirst: an error that was withheld, or comes now,
// is not to be read in the place of a call's answer.
func TestAClientThatSendsNoMoreGetsItsAnswersFirst(t *testing.T) {
	for name, ends := range map[string]func(e *toyEnv){
		"behind the error": func(e *toyEnv) {
			e.Advance(late)
			require.Empty(t, e.got())
			e.up.Serve = nil
			e.say("req 3 mslow -")
			e.c.CloseWrite()
		},
		"before it": func(e *toyEnv) {
			e.up.Serve = nil
			e.Advance(late / 2)
			e.say("req 3 mslow -")
			e.c.CloseWrite()
			e.Advance(late / 2)
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := newHiddenEnv(t)
			e.serveOnly("mask")
			e.say("req 1 mfire -", "req 2 mask -")
			require.Equal(t, "res 2 mask a=2;yes\n", e.got())
			ends(e)
			require.Empty(t, e.got())
			s, id := e.asked("mslow")
			e.answer(s, "res "+id+" mslow yes")
			require.Equal(t, "res 3 mslow a=2;yes\nerr 1 - upstream request timeout\n", e.got())
			require.True(t, e.c.Closed())
		})
	}
}

// TestAClientThatSendsNoMoreIsToldNothingOfKnownOneways, whether they are known since, or
// are refused before a call that has come with them.
func TestAClientThatSendsNoMoreIsToldNothingOfKnownOneways(t *testing.T) {
	e := newHiddenEnv(t)
	e.serveOnly("mask")
	c := e.c
	e.say("req 1 mfire -", "req 2 mask -")
	require.Equal(t, "res 2 mask a=2;yes\n", e.got())
	e.Advance(late)
	require.Empty(t, e.got(), "it is withheld")
	e.c = e.Dial(e.cfg)
	e.learn()
	c.CloseWrite()
	require.Empty(t, string(c.Take()))
	require.True(t, c.Closed())

	e, held := newOrderedEnv(t)
	e.say("req 1 mfire held", "req 2 mask -")
	e.c.CloseWrite()
	require.Equal(t, "res 2 mask a=2;yes\n", e.got())
	held(0).Do(func(m *filter.Message) filter.Verdict { return m.Reply(codecs.Denied, "no") })
	e.Settle()
	require.Empty(t, e.got())
	require.True(t, e.c.Closed())
	e.counts(map[string]int64{"oneway_dropped": 1, "request_active": 0})
}

func TestAnUnknownOnewayInDisguiseHoldsNobodyUp(t *testing.T) {
	e := newToyEnv(t, "toy.hidden", "")
	e.say("req 1 mfire -", "req 1 mask -") // two clients that number, on one connection
	e.server(0).Take()
	s := e.server(1)
	e.answer(s, "res "+ids(s)[0]+" mask yes")
	require.Equal(t, "res 1 mask a=2;yes\n", e.got())
}

func TestAOnewayInDisguiseIsDeliveredThoughItsClientHasGone(t *testing.T) {
	e := newToyEnv(t, "toy.hidden", "")
	e.up.Hang = true
	e.say("req 1 m fire")
	e.c.Close()
	e.up.Admit()
	e.Settle()
	require.Contains(t, string(e.server(0).Take()), "fire")
	e.counts(map[string]int64{"request": 1, "request_abandoned": 1})

	e.up.Hang = false
	e.c = e.Dial(e.cfg)
	e.say("req 1 m again")
	s := e.up.Servers()[len(e.up.Servers())-1]
	e.c.Close()
	require.Contains(t, string(s.Take()), "again")
	require.True(t, s.Ended(), "ended, not cut")
}

func TestRequestsWithTheSameIDAreAnsweredInTheirOrder(t *testing.T) {
	e := newToyEnv(t, "toy.hidden", "")
	e.say("req 0 m first", "req 0 m second")
	a, b := e.server(0), e.server(1)
	first, second := a, b
	ia, ib := ids(a), ids(b)
	e.answer(second, "res "+ib[0]+" m 2")
	require.Empty(t, e.got())
	e.answer(first, "res "+ia[0]+" m 1")
	require.Equal(t, "res 0 m a=2;1\nres 0 m a=2;2\n", e.got())

	e.say("req 0 m first", "req 0 m second")
	e.answer(second, "res "+ids(second)[0]+" m 2")
	e.c.Close()
	e.c = e.Dial(e.cfg)
	e.counts(map[string]int64{"request": 4, "response": 3, "request_abandoned": 1})
}

// newOrderedEnv has a client that numbers nothing, a filter that holds requests whose text
// is held, and mfire known for a oneway.
func newOrderedEnv(t *testing.T) (e *toyEnv, held func(i int) filter.Resumer) {
	t.Helper()
	var holds []filter.Resumer
	current = &testFilter{onRequest: func(m *filter.Message) filter.Verdict {
		if !strings.HasSuffix(string(m.Request().Raw), " held\n") {
			return filter.Continue
		}
		holds = append(holds, m.Resumer())
		return filter.Pause
	}}
	e = newToyEnv(t, "toy.hidden", `, "request_timeout": "1s", "meta_protocol_filters": [{"name": "test"}, {"name": "aeraki.meta_protocol.filters.router"}]`)
	e.learn()
	e.c.Close()
	e.c = e.Dial(e.cfg)
	e.serveOnly("mask")
	return e, func(i int) filter.Resumer {
		t.Helper()
		require.Greater(t, len(holds), i)
		return holds[i]
	}
}

const (
	asked0  = "res 0 mask a=2;yes\n"
	nowhere = "err 0 - no healthy upstream in cluster none\n"
)

// TestAKnownOnewayHoldsBackNoAnswer where answers have an order, although it has not been
// sent yet when its client goes on.
func TestAKnownOnewayHoldsBackNoAnswer(t *testing.T) {
	for name, typ := range map[string]string{"in disguise": "req", "that says so": "one"} {
		fire := typ + " 0 mfire "
		disguised := int64(0)
		if typ == "req" {
			disguised = 1
		}
		t.Run(name+", paused", func(t *testing.T) {
			e, held := newOrderedEnv(t)
			e.say(fire+"held", "req 0 mask -")
			require.Equal(t, asked0, e.got())
			e.counts(map[string]int64{"oneway_presumed": 2 + disguised, "request_active": 1})
			e.up.Serve = nil
			held(0).Continue()
			e.Settle()
			s, id := e.asked("mfire")
			e.counts(map[string]int64{"oneway_presumed": 2 + disguised, "request_active": 0})
			e.answer(s, "res "+id+" mfire at last")
			e.serveOnly("mask")
			e.say("req 0 mask -")
			require.Equal(t, asked0, e.got(), "what comes late is no answer to it")
		})
		t.Run(name+", refused", func(t *testing.T) {
			e, held := newOrderedEnv(t)
			e.say(fire+"held", "req 0 mask -")
			require.Equal(t, asked0, e.got())
			held(0).Do(func(m *filter.Message) filter.Verdict { return m.Reply(codecs.Denied, "no") })
			e.Settle()
			require.Empty(t, e.got())
			e.counts(map[string]int64{"oneway_dropped": 1, "request_active": 0})
		})
		t.Run(name+", waits", func(t *testing.T) {
			e, _ := newOrderedEnv(t)
			for _, s := range e.up.Servers() {
				s.Close()
			}
			e.up.Hang = true
			e.say(fire+"-", "req 0 nowhere -")
			require.Equal(t, nowhere, e.got())
			e.say("req 0 mask -")
			e.up.Admit()
			e.Settle()
			require.Equal(t, asked0, e.got())
			e.counts(map[string]int64{"oneway_presumed": 2 + disguised, "oneway_dropped": 0, "request_active": 0})
		})
		t.Run(name+", never sent", func(t *testing.T) {
			e, _ := newOrderedEnv(t)
			for _, s := range e.up.Servers() {
				s.Close()
			}
			e.up.Hang = true
			e.say(fire+"-", "req 0 nowhere -")
			require.Equal(t, nowhere, e.got())
			e.Advance(late)
			require.Empty(t, e.got())
			e.counts(map[string]int64{"oneway_presumed": 2 + disguised, "oneway_dropped": 1, "request_active": 0})
		})
		t.Run(name+", behind another", func(t *testing.T) {
			e, _ := newOrderedEnv(t)
			e.say("req 0 mnew -")
			e.Advance(late / 2)
			e.say(fire+"held", "req 0 mask -")
			require.Empty(t, e.got(), "mnew may be answered")
			e.Advance(late / 2)
			require.Equal(t, asked0, e.got())
			e.counts(map[string]int64{"request_active": 1})
		})
	}
}

// TestOthersThanKnownOnewaysKeepTheirPlace in the order of answers while they have not been
// sent.
func TestOthersThanKnownOnewaysKeepTheirPlace(t *testing.T) {
	e, held := newOrderedEnv(t)
	e.say("req 0 mask held", "req 0 nowhere -")
	require.Empty(t, e.got())
	held(0).Continue()
	e.Settle()
	require.Equal(t, asked0+nowhere, e.got())

	// Nor does one give way to itself of which the client is told, as it sends no more.
	e, held = newOrderedEnv(t)
	e.say("req 0 mfire held", "req 0 mfire held", "req 0 mask held")
	e.c.CloseWrite()
	held(1).Do(func(m *filter.Message) filter.Verdict { return m.Reply(codecs.Denied, "no") })
	e.Settle()
	require.Equal(t, "err 0 - no\n", e.got())
	held(2).Continue()
	e.Settle()
	require.Equal(t, asked0, e.got())
	require.False(t, e.c.Closed())
	held(0).Continue()
	e.Settle()
	require.True(t, e.c.Closed())

	// What is known for a oneway is none of a client that pipelines.
	e, held = newOrderedEnv(t)
	e.up.Serve = nil
	e.say("req 0 mask -", "req 0 mask -")
	for range 2 {
		s, id := e.asked("mask")
		e.answer(s, "res "+id+" mask yes")
	}
	require.Equal(t, asked0+asked0, e.got())
	e.say("req 0 mfire held", "req 0 nowhere -")
	require.Empty(t, e.got())
	held(0).Continue()
	e.Settle()
	s, id := e.asked("mfire")
	e.answer(s, "res "+id+" mfire yes")
	require.Equal(t, "res 0 mfire a=2;yes\n"+nowhere, e.got())
}

// TestAKnownOnewayThatIsSentLateKeepsNothing, as its client has gone on already.
func TestAKnownOnewayThatIsSentLateKeepsNothing(t *testing.T) {
	e := newHiddenEnv(t)
	e.learn()
	for _, s := range e.up.Servers() {
		s.Close()
	}
	e.up.Hang = true
	e.say("req 4 mfire -", "req 5 mask -")
	e.up.Admit()
	e.Settle()
	s := e.server(0)
	got := ids(s)
	require.Len(t, got, 2, "its connection was free at once")
	e.counts(map[string]int64{"oneway_presumed": 3, "request_active": 1})
	e.answer(s, "res "+got[0]+" mfire at last")
	require.Equal(t, "res 4 mfire a=2;at last\n", e.got(), "should it be answered after all")
	e.answer(s, "res "+got[1]+" mask yes")
	require.Equal(t, "res 5 mask a=2;yes\n", e.got())
	e.counts(map[string]int64{"request_active": 0})
}

// wordyToy is a hidden one whose errors repeat the method.
type wordyToy struct{ toy }

func (t wordyToy) NewDecoder(codecs.Direction) codecs.Decoder { return t }

func (t wordyToy) Decode(b []byte, m *codecs.Metadata) (int, error) {
	n, err := t.toy.Decode(b, m)
	m.ReplyInfo = append(m.ReplyInfo[:0], m.Method()...)
	return n, err
}

func (wordyToy) EncodeError(dst []byte, req *codecs.Metadata, e *codecs.LocalError) ([]byte, error) {
	return fmt.Appendf(dst, "err %d %s %s\n", req.ID, req.ReplyInfo, e.Message), nil
}

// TestWithheldErrorsOfAllClientsAreBounded: those of which most are withheld lose their
// oldest ones.
func TestWithheldErrorsOfAllClientsAreBounded(t *testing.T) {
	const limit, n, each = 4 << 20, 100, 5
	mod := filter.NewModule()
	e := &toyEnv{Host: filtertest.NewWith(t, mod, 1), t: t}
	e.up = e.Cluster("up", "h1")
	e.Cluster("none")
	e.cfg = e.MustLoad(toyConfig(`"codec": {"name": "toy.wordy"}`, `, "request_timeout": "1s"`))
	e.serveOnly("mask")
	long := strings.Repeat("x", 10<<10)
	told := func(c *filtertest.Client) (ids []string) {
		c.CloseWrite()
		for _, l := range lines(c.Take()) {
			f := strings.Fields(l)
			require.Equal(t, "err", f[0])
			ids = append(ids, f[1])
		}
		return ids
	}
	withhold := func(c *filtertest.Client, method string, n int) {
		for i := range n {
			say(c, fmt.Sprintf("req %d %s -", i+1, method))
		}
		say(c, "req 9 mask -")
		require.Equal(t, "res 9 mask a=2;yes\n", string(c.Take()))
	}

	modest := e.Dial(e.cfg)
	withhold(modest, "mslow", 1)
	e.Advance(late)
	var clients []*filtertest.Client
	most := 0
	for range n {
		c := e.Dial(e.cfg)
		clients = append(clients, c)
		withhold(c, "m"+long, each)
		e.Advance(late)
		require.LessOrEqual(t, mod.Withheld(), limit)
		require.Empty(t, mod.Books())
		most = max(most, mod.Withheld())
	}
	require.Greater(t, most, limit*9/10)
	require.Greater(t, mod.Withheld(), limit/4)
	require.Equal(t, []string{"1"}, told(modest))
	require.Equal(t, []string{"4", "5"}, told(clients[0]), "the latest ones")
	require.Equal(t, []string{"1", "2", "3", "4", "5"}, told(clients[n-1]), "there was room again")
	for i, c := range clients {
		if i%2 == 0 {
			c.Close()
		} else {
			told(c)
		}
	}
	require.Zero(t, mod.Withheld())

	// One that is longer than what there may be for its client takes no other's place.
	c := e.Dial(e.cfg)
	say(c, "req 1 mslow -", "req 2 m"+strings.Repeat("x", 64<<10)+" -")
	withhold(c, "", 0)
	e.Advance(late)
	require.Equal(t, []string{"1"}, told(c))
	require.Zero(t, mod.Withheld())
}

// TestAConnectionIsNotEndedRightBehindAOneway: the server may not have read it.
func TestAConnectionIsNotEndedRightBehindAOneway(t *testing.T) {
	e := newToyEnv(t, "toy.hidden", "")
	e.say("one 1 m -", "one 2 m -", "one 3 m -") // which together ask for three connections
	s := e.server(0)
	require.Len(t, ids(s), 3, "the first one takes them all")
	e.Advance(4900 * time.Millisecond)
	require.True(t, s.Open())
	e.Advance(300 * time.Millisecond)
	require.False(t, s.Open(), "there are others")
}
