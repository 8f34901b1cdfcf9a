package filter_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

type toyEnv struct {
	*filtertest.Host
	t   *testing.T
	up  *filtertest.Cluster
	cfg *filtertest.Config
	c   *filtertest.Client
}

const toyRoutes = `, "route_config": {"name": "r", "routes": [
	{"match": {"metadata": [{"name": "method", "exact_match": "nowhere"}]}, "route": {"cluster": "none"}},
	{"match": {"metadata": [{"name": "method", "prefix_match": "m"}]}, "route": {"cluster": "up"},
	 "request_mutation": [{"key": "q", "value": "1"}], "response_mutation": [{"key": "a", "value": "2"}]}]}`

func toyConfig(codec, more string) string {
	return `{"stat_prefix": "t", "protocol": {"name": "toy", ` + codec + `}` + toyRoutes + more + `}`
}

func newToyEnv(t *testing.T, codec, more string) *toyEnv {
	t.Helper()
	h := filtertest.New(t)
	e := &toyEnv{Host: h, t: t, up: h.Cluster("up", "h1")}
	h.Cluster("none")
	e.cfg = h.MustLoad(toyConfig(`"codec": {"name": "`+codec+`"}`, more))
	e.c = h.Dial(e.cfg)
	return e
}

func (e *toyEnv) say(lines ...string) {
	e.t.Helper()
	e.c.Send([]byte(strings.Join(lines, "\n") + "\n"))
}

func (e *toyEnv) got() string { return string(e.c.Take()) }

// server is the i-th connection that is open.
func (e *toyEnv) server(i int) *filtertest.Server {
	e.t.Helper()
	s := e.up.Servers()
	require.Greater(e.t, len(s), i)
	return s[i]
}

// serverWith is the open connection on which text has come last.
func (e *toyEnv) serverWith(text string) *filtertest.Server {
	e.t.Helper()
	for _, s := range e.up.Servers() {
		if strings.Contains(string(s.Take()), text) {
			return s
		}
	}
	e.t.Fatalf("no server has got %q", text)
	return nil
}

func (e *toyEnv) answer(s *filtertest.Server, lines ...string) {
	s.Send([]byte(strings.Join(lines, "\n") + "\n"))
	e.Settle()
}

func (e *toyEnv) count(name string) int64 {
	e.t.Helper()
	e.Advance(50 * time.Millisecond)
	return e.cfg.Counter("toy.t." + name)
}

func (e *toyEnv) counts(want map[string]int64) {
	e.t.Helper()
	for name, n := range want {
		require.Equal(e.t, n, e.count(name), name)
	}
}

func TestAStreamIsRoutedOnceAndCarriedBothWays(t *testing.T) {
	e := newToyEnv(t, "toy.byid", "")
	e.say("init 5 m hello")
	s := e.server(0)
	require.Equal(t, "init 5 m q=1;hello\n", string(s.Take()), "mutated by its route, its id unchanged")
	e.answer(s, "init 5 - welcome")
	require.Equal(t, "init 5 - a=2;welcome\n", e.got())
	e.say("data 5 - a", "data 5 - b")
	require.Equal(t, "data 5 - a\ndata 5 - b\n", string(s.Take()))
	e.answer(s, "data 5 - x", "data 5 - y")
	require.Equal(t, "data 5 - x\ndata 5 - y\n", e.got())
	e.counts(map[string]int64{"request_stream": 1, "stream_active": 1, "request_active": 1})

	e.say("half 5 - done")
	require.Equal(t, "half 5 - done\n", string(s.Take()))
	e.answer(s, "data 5 - z", "half 5 - done")
	require.Equal(t, "data 5 - z\nhalf 5 - done\n", e.got())
	require.False(t, s.Open(), "the connection of a stream is not used again")
	e.say("data 5 - too late")
	require.Empty(t, s.Take())
	e.counts(map[string]int64{
		"stream_active": 0, "request_active": 0, "stream_stray": 1, "response_success": 1, "stream_reset": 0,
	})
}

// TestAStreamClosedBeforeItIsOpenIsCountedOnce: like every other request.
func TestAStreamClosedBeforeItIsOpenIsCountedOnce(t *testing.T) {
	e := newToyEnv(t, "toy.byid", "")
	e.say("init 5 m a", "end 5 - before a connection is there", "init 6 m b")
	s := e.server(0)
	require.Equal(t, "init 6 m q=1;b\n", string(s.Take()))
	e.say("end 6 - before the answer")
	require.Equal(t, "end 6 - before the answer\n", string(s.Take()))
	e.counts(map[string]int64{
		"request_stream": 2, "request_abandoned": 2, "stream_abandoned": 0, "response": 0, "stream_active": 0, "request_active": 0,
	})
}

// TestErrorsThatCannotBeEncodedEndTheConnection: its client would wait for ever.
func TestErrorsThatCannotBeEncodedEndTheConnection(t *testing.T) {
	e := newToyEnv(t, "toy.byid", "")
	e.say("init 404 m a", "init 5 m b")
	s := e.server(0)
	e.answer(s, "init 404 - ok")
	s.Reset()
	e.Settle()
	require.True(t, e.c.Closed())
	e.c = e.Dial(e.cfg)
	e.say("req 404 m a")
	e.server(0).Reset()
	e.Settle()
	require.True(t, e.c.Closed())
	e.c = e.Dial(e.cfg)
	e.counts(map[string]int64{
		"stream_reset": 1, "stream_abandoned": 0, "request_abandoned": 1, "local_response_error": 1,
		"stream_active": 0, "request_active": 0,
	})
}

// TestASideThatHasEndedIsStillHeard: tRPC's clients end their side, and open the
// window for what the server still sends.
func TestASideThatHasEndedIsStillHeard(t *testing.T) {
	e := newToyEnv(t, "toy.byid", "")
	e.say("init 5 m a", "init 6 m b")
	first, second := e.server(0), e.server(1)
	e.answer(first, "init 5 - ok")
	e.answer(second, "init 6 - ok", "half 6 - done")
	e.say("half 5 - done", "data 5 - window", "data 6 - a", "data 6 - b")
	require.True(t, strings.HasSuffix(string(first.Take()), "half 5 - done\ndata 5 - window\n"))
	require.True(t, strings.HasSuffix(string(second.Take()), "data 6 - a\ndata 6 - b\n"))
	e.answer(second, "data 6 - window")
	require.True(t, strings.HasSuffix(e.got(), "half 6 - done\ndata 6 - window\n"))
	e.counts(map[string]int64{"stream_active": 2, "stream_stray": 0})
	e.say("half 6 - done")
	e.answer(first, "half 5 - done")
	require.False(t, first.Open())
	require.False(t, second.Open())
	e.counts(map[string]int64{"stream_active": 0, "stream_stray": 0, "stream_reset": 0})
}

func TestEachStreamHasItsOwnConnection(t *testing.T) {
	e := newToyEnv(t, "toy.byid", "")
	e.say("init 5 m a", "init 7 m b", "req 1 m r")
	require.Len(t, e.up.Servers(), 3)
	for _, s := range e.up.Servers() {
		for _, l := range strings.Split(strings.TrimSpace(string(s.Take())), "\n") {
			f := strings.Split(l, " ")
			kind := map[string]string{"init": "init", "req": "res"}[f[0]]
			e.answer(s, fmt.Sprintf("%s %s - %s", kind, f[1], s.Host))
		}
	}
	got := e.got()
	for _, want := range []string{"init 5 - ", "init 7 - ", "res 1 - "} {
		require.Contains(t, got, want)
	}
}

// TestAnOpenStreamHoldsUpNoAnswers where answers have an order.
func TestAnOpenStreamHoldsUpNoAnswers(t *testing.T) {
	for _, codec := range []string{"toy.inorder", "toy.byid"} {
		t.Run(codec, func(t *testing.T) {
			e := newToyEnv(t, codec, "")
			e.say("init 5 m -")
			e.answer(e.serverWith("init"), "init 5 - ok")
			require.Equal(t, "init 5 - a=2;ok\n", e.got())
			e.say("req 0 m first", "req 0 m second")
			s := e.serverWith("second")
			e.up.Serve = serveToys
			e.say("req 0 nowhere third")
			require.Empty(t, e.got(), "it is not its turn")
			e.answer(s, "res 0 - lost")
			s.Reset()
			e.Settle()
			want := []string{"res 0 - a=2;lost", "err 0 - upstream connection ended before the answer: reset", "err 0 - no healthy upstream in cluster none"}
			if codec == "toy.byid" { // an id that no request has
				want[0] = want[1]
			}
			require.Equal(t, want, lines(e.c.Take()))
			e.counts(map[string]int64{"stream_active": 1, "request_active": 1})
		})
	}
}

func TestWhatAClientSendsBeforeItsStreamHasAConnection(t *testing.T) {
	e := newToyEnv(t, "toy.byid", "")
	e.up.Hang = true
	e.say("init 5 m a", "data 5 - b", "half 5 - c")
	e.up.Admit()
	e.Settle()
	s := e.server(0)
	require.Equal(t, "init 5 m q=1;a\ndata 5 - b\nhalf 5 - c\n", string(s.Take()))

	e.up.Hang = true
	e.say("init 6 m a", "end 6 - never mind")
	e.say("init 7 m a", "data 7 - "+strings.Repeat("x", 1<<20))
	require.Equal(t, "err 7 - too much was sent before the stream was open\n", e.got())
	e.counts(map[string]int64{"stream_active": 1})
}

func TestAStreamThatIsRefused(t *testing.T) {
	for name, tt := range map[string]struct{ more, say, want string }{
		"no route":    {"", "init 5 x a", "err 5 - no route matches x\n"},
		"no host":     {"", "init 5 nowhere a", "err 5 - no healthy upstream in cluster none\n"},
		"twice":       {"", "init 5 m a\ninit 5 m a", "err 5 - a stream of this id is open\n"},
		"too many":    {`, "limits": {"max_streams": 1}`, "init 5 m a\ninit 6 m a", "err 6 - too many open streams on one connection\n"},
		"none at all": {`, "limits": {"max_streams": 0}`, "init 5 m a", "err 5 - too many open streams on one connection\n"},
	} {
		t.Run(name, func(t *testing.T) {
			e := newToyEnv(t, "toy.byid", tt.more)
			e.say(tt.say)
			require.Equal(t, tt.want, e.got())
		})
	}
}

func TestAServerMayRefuseAStream(t *testing.T) {
	e := newToyEnv(t, "toy.byid", "")
	e.say("init 5 m a")
	s := e.server(0)
	e.answer(s, "err 5 - not here")
	require.Equal(t, "err 5 - a=2;not here\n", e.got())
	require.False(t, s.Open())
	e.counts(map[string]int64{"response_error": 1, "stream_active": 0})
}

func TestAStreamWhoseServerIsSilent(t *testing.T) {
	e := newToyEnv(t, "toy.byid", `, "request_timeout": "1s", "limits": {"stream_idle_timeout": "3s"}`)
	e.say("init 5 m a", "init 6 m b")
	e.answer(e.server(1), "init 6 - ok")
	e.c.Take()
	e.Advance(1100 * time.Millisecond)
	require.Equal(t, "err 5 - upstream request timeout\n", e.got(), "the deadline is for the first answer")
	e.Advance(1500 * time.Millisecond)
	e.say("data 6 - alive")
	e.Advance(2900 * time.Millisecond)
	require.Empty(t, e.got())
	s := e.server(0)
	e.Advance(200 * time.Millisecond)
	require.Equal(t, "end 6 - stream idle timeout\n", e.got())
	require.False(t, s.Open())
	e.counts(map[string]int64{"stream_idle_timeout": 1, "stream_reset": 1, "stream_active": 0, "request_timeout": 1})
}

func TestAStreamEndsWithEitherConnection(t *testing.T) {
	e := newToyEnv(t, "toy.byid", "")
	e.say("init 5 m a", "init 6 m b")
	a, b := e.server(0), e.server(1)
	e.answer(a, "init 5 - ok")
	e.answer(b, "init 6 - ok")
	e.c.Take()
	a.Reset()
	e.Settle()
	require.Equal(t, "end 5 - upstream connection ended before the answer: reset\n", e.got())
	e.counts(map[string]int64{"stream_reset": 1, "stream_active": 1})
	e.say("data 5 - x")
	e.counts(map[string]int64{"stream_stray": 1})

	e.say("data 6 - last")
	e.c.Close()
	require.Contains(t, string(b.Take()), "data 6 - last\n")
	require.True(t, b.Ended(), "what was written arrives before the end")
	e.c = e.Dial(e.cfg)
	e.counts(map[string]int64{"stream_active": 0, "request_active": 0, "request_abandoned": 0, "stream_abandoned": 1})
}

// TestAClientThatSendsNoMoreLeavesItsStreams: an end of stream is all that is
// heard of a client that has closed. Its other requests get their answers.
func TestAClientThatSendsNoMoreLeavesItsStreams(t *testing.T) {
	for name, leave := range map[string]func(*toyEnv){
		"the end":                       func(e *toyEnv) { e.c.CloseWrite() },
		"something that cannot be read": func(e *toyEnv) { e.say("garbage") },
	} {
		t.Run(name, func(t *testing.T) {
			e := newToyEnv(t, "toy.byid", "")
			e.say("init 5 m a", "init 6 m b", "req 1 m r")
			open, opening, calls := e.server(0), e.server(1), e.server(2)
			e.answer(open, "init 5 - ok")
			e.say("data 5 - last")
			leave(e)
			require.Contains(t, string(open.Take()), "data 5 - last\n")
			require.True(t, open.Ended())
			require.True(t, opening.Ended())
			require.False(t, e.c.Closed())
			id := strings.Fields(string(calls.Take()))[1]
			e.answer(calls, "res "+id+" - late")
			require.Contains(t, e.got(), "late\n")
			require.True(t, e.c.Closed())
			e.c = e.Dial(e.cfg)
			e.counts(map[string]int64{"stream_active": 0, "request_active": 0, "request_abandoned": 1, "stream_abandoned": 1})
		})
	}
}

func TestASlowClientHoldsUpItsStreamsServerOnly(t *testing.T) {
	e := newToyEnv(t, "toy.byid", "")
	e.say("init 5 m a")
	s := e.server(0)
	e.answer(s, "init 5 - ok")
	e.c.Take()
	e.c.Block(true)
	big := "data 5 - " + strings.Repeat("x", 64<<10)
	for range 100 {
		e.answer(s, big)
	}
	require.NotZero(t, s.Unread(), "the server is not read any more")
	require.Zero(t, e.count("downstream_overflow"))
	e.c.Block(false)
	require.Zero(t, s.Unread())
	require.Equal(t, 100, strings.Count(e.got(), "data 5"))
}

func TestASlowServerHoldsUpItsClient(t *testing.T) {
	e := newToyEnv(t, "toy.byid", "")
	e.say("init 5 m a")
	s := e.server(0)
	e.answer(s, "init 5 - ok")
	s.Block(true)
	e.say("data 5 - x")
	require.True(t, e.c.ReadDisabled())
	s.Block(false)
	e.Settle()
	require.False(t, e.c.ReadDisabled())
	s.Block(true)
	e.say("data 5 - x")
	s.Reset()
	e.Settle()
	require.False(t, e.c.ReadDisabled(), "a stream that has gone holds up nobody")
}
