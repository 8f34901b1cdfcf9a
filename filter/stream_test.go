package filter_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	_ "github.com/meltemi-mesh/meltemi/codecs/brpc"
	"github.com/meltemi-mesh/meltemi/codecs/brpc/brpctest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	"github.com/meltemi-mesh/meltemi/internal/raced"
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

// TestAStreamClosedBeforeItIsOpenGetsItsAnswer: what opens it is a call.
func TestAStreamClosedBeforeItIsOpenGetsItsAnswer(t *testing.T) {
	for _, by := range []string{"client, before a connection is there", "client", "both", "server"} {
		for end, want := range map[string]string{
			"init 5 - ok":       "init 5 - a=2;ok\n",
			"res 5 - no stream": "res 5 - a=2;no stream\n",
			"err 5 - not here":  "err 5 - a=2;not here\n",
			"reset":             "err 5 - upstream connection ended before the answer: reset\n",
			"silence":           "err 5 - upstream request timeout\n",
		} {
			t.Run(by+", "+end, func(t *testing.T) {
				e := newToyEnv(t, "toy.byid", `, "request_timeout": "1s"`)
				var s *filtertest.Server
				switch by {
				case "client, before a connection is there":
					e.say("init 5 m a", "end 5 - close")
					s = e.server(0)
					require.Equal(t, "init 5 m q=1;a\nend 5 - close\n", string(s.Take()))
				case "client":
					e.say("init 5 m a")
					s = e.server(0)
					e.say("end 5 - close")
					require.Equal(t, "init 5 m q=1;a\nend 5 - close\n", string(s.Take()))
				case "both":
					e.say("init 5 m a", "half 5 - done")
					s = e.server(0)
					e.answer(s, "half 5 - done")
					want = "half 5 - done\n" + want
				case "server":
					e.say("init 5 m a")
					s = e.server(0)
					e.answer(s, "end 5 - close")
					want = "end 5 - close\n" + want
				}
				switch end {
				case "reset":
					s.Reset()
					e.Settle()
				case "silence":
					e.Advance(1100 * time.Millisecond)
				default:
					e.answer(s, end)
				}
				require.Equal(t, want, e.got())
				require.False(t, s.Open())
				e.counts(map[string]int64{
					"request_stream": 1, "request_abandoned": 0, "stream_abandoned": 0, "stream_reset": 0, "stream_active": 0, "request_active": 0,
				})
			})
		}
	}
}

// TestFramesThatAreNoAnswerDoNotEndTheDeadline of a stream that is being opened.
func TestFramesThatAreNoAnswerDoNotEndTheDeadline(t *testing.T) {
	for frame, stray := range map[string]int64{
		"data 6 - of another": 1, "init 6 - of another": 1, "end 6 - of another": 1, "res 6 - of another": 1,
		"err 6 - of another": 1, "data 5 - its own": 0, "half 5 - its own": 0, "end 5 - its own": 0,
	} {
		t.Run(frame, func(t *testing.T) {
			e := newToyEnv(t, "toy.byid", `, "request_timeout": "1s"`)
			e.say("init 5 m a")
			e.answer(e.server(0), frame)
			passed := e.got()
			e.counts(map[string]int64{"stream_stray": stray, "stream_active": 1})
			require.Equal(t, stray == 0, passed == frame+"\n", passed)
			e.Advance(1100 * time.Millisecond)
			require.Equal(t, "err 5 - upstream request timeout\n", e.got())
			e.counts(map[string]int64{"stream_active": 0, "request_timeout": 1})
		})
	}
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

// TestAMalformedFrameEndsItsStream, whether it is open or not, and no other.
func TestAMalformedFrameEndsItsStream(t *testing.T) {
	e := newToyEnv(t, "toy.byid", "")
	e.say("init 5 m a", "init 6 m b", "init 7 m c")
	a, b, c := e.server(0), e.server(1), e.server(2)
	e.answer(a, "init 5 - ok")
	e.answer(b, "init 6 - ok")
	e.c.Take()
	e.say("data 5 - malformed", "data 8 - malformed", "end 7 - malformed")
	require.Equal(t, "end 5 - malformed frame of a stream: malformed\nerr 7 - malformed frame of a stream: malformed\n", e.got())
	require.False(t, a.Open())
	require.True(t, b.Open())
	require.False(t, c.Open())
	e.counts(map[string]int64{"stream_active": 1, "stream_stray": 1, "stream_reset": 1, "request_decoding_error": 3})
}

// TestAFrameOfAStreamAboveTheLimitEndsThatStream, or refuses it; what is left of the
// frame is passed over.
func TestAFrameOfAStreamAboveTheLimitEndsThatStream(t *testing.T) {
	h := filtertest.New(t)
	up := h.Cluster("up", "h1")
	c := h.Dial(h.MustLoad(`{"stat_prefix": "t", "limits": {"max_frame_bytes": 1000},
		"protocol": {"name": "brpc", "codec": {"name": "aeraki.meta_protocol.codec.brpc"}},
		"route_config": {"name": "r", "routes": [{"route": {"cluster": "up"}}]}}`))
	open := func(id uint64) *filtertest.Server {
		c.Send(brpctest.Request{ID: id, Stream: id}.Bytes())
		s := up.Servers()[len(up.Servers())-1]
		s.Send(brpctest.Response{ID: id, Stream: 100 + id}.InStream(id))
		h.Settle()
		return s
	}
	first, second := open(1), open(2)
	got, _ := brpctest.Parse(c.Take())
	require.Len(t, got, 2)
	body := make([]byte, 2000)
	c.SendSplit(brpctest.StreamFrame(101, 1, brpctest.Data, body), 5, 30, 1500)
	c.SendSplit(brpctest.Request{ID: 3, Stream: 3, Body: body}.Bytes(), 5, 30, 1500)
	c.Send(brpctest.StreamFrame(102, 2, brpctest.Data, []byte("on")))
	got, _ = brpctest.Parse(c.Take())
	require.Len(t, got, 2)
	require.Equal(t, brpctest.Reset, got[0].Kind)
	require.EqualValues(t, 1, got[0].To)
	require.EqualValues(t, 1003, got[1].Code)
	require.EqualValues(t, 3, got[1].ID)
	require.False(t, first.Open())
	require.Contains(t, string(second.Take()), "on")
	require.False(t, c.Closed())
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
	e.say("init 7 m a", "data 7 - "+strings.Repeat("x", 1<<20))
	require.Equal(t, "err 7 - too much was sent before the stream was open\n", e.got())
	e.counts(map[string]int64{"stream_active": 1})
}

// TestEarlyFramesCountAsPending, of whatever kind they are, until they are sent or
// their stream is over.
func TestEarlyFramesCountAsPending(t *testing.T) {
	const kib = 1 << 10
	text := strings.Repeat("x", 100*kib)
	for _, kind := range []string{"data", "half", "end"} {
		for name, release := range map[string]func(*toyEnv){
			"sent":         func(e *toyEnv) { e.up.Admit() },
			"timed out":    func(e *toyEnv) { e.Advance(20 * time.Second) },
			"client gone":  func(e *toyEnv) { e.c.Close() },
			"cluster gone": func(e *toyEnv) { e.up.SetHosts(); e.up.Admit() },
		} {
			t.Run(kind+", "+name, func(t *testing.T) {
				e := newToyEnv(t, "toy.byid", `, "upstream": {"max_pending_bytes": 1000000}`)
				e.up.Hang = true
				other := e.Dial(e.cfg)
				for id := 1; id <= 10; id++ {
					e.say(fmt.Sprintf("init %d m -", id), fmt.Sprintf("%s %d - %s", kind, id, text))
					require.Equal(t, id == 10, e.c.ReadDisabled(), id)
				}
				say(other, "init 1 m -")
				require.True(t, other.ReadDisabled(), "the pool is full, whoever has filled it")
				e.up.Hang = false
				release(e)
				e.Settle()
				require.False(t, other.ReadDisabled())
				if name != "client gone" {
					require.False(t, e.c.ReadDisabled())
				}
			})
		}
	}
	t.Run("too much of many clients", func(t *testing.T) {
		e := newToyEnv(t, "toy.byid", `, "upstream": {"max_pending_bytes": 1000000}`)
		e.up.Hang = true
		var wl []*filtertest.Client
		for range 30 { // none of which is stopped before its early frame
			c := e.Dial(e.cfg)
			say(c, "init 1 m -")
			wl = append(wl, c)
		}
		refused := 0
		for _, c := range wl {
			say(c, "data 1 - "+text)
			if string(c.Take()) == "err 1 - too much was sent before the stream was open\n" {
				refused++
			}
		}
		require.Equal(t, 30-19, refused)
		e.up.Admit()
		served := 0
		for _, s := range e.up.Servers() {
			if len(s.Take()) > 0 {
				served++
			}
		}
		require.Equal(t, 19, served)
	})
}

// TestWhileAFilterHoldsAStreamItsClientIsNotRead behind the first early frame.
func TestWhileAFilterHoldsAStreamItsClientIsNotRead(t *testing.T) {
	for _, goOn := range []bool{true, false} {
		var r filter.Resumer
		current = &testFilter{onRequest: func(m *filter.Message) filter.Verdict {
			r = m.Resumer()
			return filter.Pause
		}}
		e := newToyEnv(t, "toy.byid", `, "meta_protocol_filters": [{"name": "test"}, {"name": "aeraki.meta_protocol.filters.router"}]`)
		e.say("init 5 m a")
		require.False(t, e.c.ReadDisabled())
		e.say("data 5 - b", "data 5 - c")
		require.True(t, e.c.ReadDisabled())
		if goOn {
			r.Continue()
		} else {
			r.Do(func(m *filter.Message) filter.Verdict { return m.Reply(codecs.Denied, "no") })
		}
		e.Settle()
		require.False(t, e.c.ReadDisabled())
		if goOn {
			require.Equal(t, "init 5 m q=1;a\ndata 5 - b\ndata 5 - c\n", string(e.server(0).Take()))
		} else {
			require.Equal(t, "err 5 - no\n", e.got())
		}
	}
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

// TestAStreamIsNoOneway: one that waits for a connection leaves with its client.
func TestAStreamIsNoOneway(t *testing.T) {
	for _, leave := range []func(*filtertest.Client){(*filtertest.Client).Close, (*filtertest.Client).CloseWrite} {
		e := newToyEnv(t, "toy.hidden", "")
		e.up.Hang = true
		e.say("init 5 m a")
		leave(e.c)
		e.up.Admit()
		require.Zero(t, e.Panics())
		for _, s := range e.up.Servers() {
			require.Empty(t, s.Take())
		}
		e.c = e.Dial(e.cfg)
		e.counts(map[string]int64{"request_abandoned": 1, "stream_active": 0, "request_active": 0})
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

// TestOnlyServersThatSendToASlowClientAreStopped: to stop one costs a lot. Once
// much is waiting all are.
func TestOnlyServersThatSendToASlowClientAreStopped(t *testing.T) {
	e := newToyEnv(t, "toy.byid", `, "limits": {"max_write_buffer_bytes": 1048576}`)
	e.say("init 1 m a", "init 2 m b", "init 3 m c")
	s := e.up.Servers()
	for i := range s {
		e.answer(s[i], fmt.Sprintf("init %d - ok", i+1))
	}
	e.c.Take()
	e.c.Block(true)
	send := func(i, size int) {
		e.answer(s[i], fmt.Sprintf("data %d - %s", i+1, strings.Repeat("x", size)))
	}
	send(0, 100<<10) // now it is blocked
	send(0, 1000)
	send(0, 1000)
	require.NotZero(t, s[0].Unread())
	send(1, 1000)
	require.Zero(t, s[1].Unread(), "it had sent nothing")
	e.c.Block(false)
	require.Zero(t, s[0].Unread())
	require.Equal(t, 4, strings.Count(e.got(), "data"))

	e.c.Block(true)
	send(0, 100<<10)
	send(1, 600<<10)
	send(2, 1000)
	require.NotZero(t, s[2].Unread(), "much is waiting already")
	e.say("end 1 - close")
	e.c.Block(false)
	require.Equal(t, 3, strings.Count(e.got(), "data"))
	send(2, 1000)
	send(1, 1000)
	require.Equal(t, 2, strings.Count(e.got(), "data"))
	e.counts(map[string]int64{"downstream_overflow": 0, "stream_active": 2})
}

// TestASlowServerGetsAllOfAStreamThatHasEnded, as long as something moves.
func TestASlowServerGetsAllOfAStreamThatHasEnded(t *testing.T) {
	raced.Skip(t)
	for name, end := range map[string]func(*toyEnv, *filtertest.Server){
		"the client closes it":     func(e *toyEnv, _ *filtertest.Server) { e.say("end 5 - close") },
		"both close it":            func(e *toyEnv, s *filtertest.Server) { e.answer(s, "half 5 - done"); e.say("half 5 - done") },
		"the server closes it":     func(e *toyEnv, s *filtertest.Server) { e.answer(s, "end 5 - close") },
		"the client leaves":        func(e *toyEnv, _ *filtertest.Server) { e.c.Close() },
		"the client says no more":  func(e *toyEnv, _ *filtertest.Server) { e.c.CloseWrite() },
		"it is idle for too long":  func(e *toyEnv, _ *filtertest.Server) { e.Advance(61 * time.Second) },
		"the client sends garbage": func(e *toyEnv, _ *filtertest.Server) { e.say("garbage") },
	} {
		for what, tt := range map[string]struct {
			happens func(*toyEnv, *filtertest.Server)
			open    bool
		}{
			"slowly": {func(e *toyEnv, _ *filtertest.Server) { e.Advance(50 * time.Second) }, true},
			"with window updates": {func(e *toyEnv, s *filtertest.Server) {
				for range 10 {
					e.Advance(50 * time.Second)
					e.answer(s, "data 5 - window")
				}
			}, true},
			"not at all": {func(e *toyEnv, _ *filtertest.Server) { e.Advance(70 * time.Second) }, false},
			"but sends a lot": {func(e *toyEnv, s *filtertest.Server) {
				for range 65 {
					e.answer(s, "data 5 - "+strings.Repeat("x", 1<<20))
				}
			}, false},
		} {
			t.Run(name+", it reads "+what, func(t *testing.T) {
				e := newToyEnv(t, "toy.byid", `, "limits": {"stream_idle_timeout": "60s"}`)
				e.say("init 5 m a")
				s := e.server(0)
				e.answer(s, "init 5 - ok")
				s.Take()
				e.say("data 5 - last")
				s.Block(true)
				end(e, s)
				require.True(t, s.Ended())
				tt.happens(e, s)
				require.Equal(t, tt.open, s.Open())
				if tt.open {
					s.Block(false)
					e.Settle()
					require.Contains(t, string(s.Take()), "data 5 - last\n")
					require.False(t, s.Open())
				}
			})
		}
	}
}

// TestAServerThatWasNotReadIsReadBehindTheEnd: one that cannot write may not read.
func TestAServerThatWasNotReadIsReadBehindTheEnd(t *testing.T) {
	e := newToyEnv(t, "toy.byid", "")
	e.say("init 5 m a")
	s := e.server(0)
	e.answer(s, "init 5 - ok")
	e.c.Block(true)
	for range 3 {
		e.answer(s, "data 5 - "+strings.Repeat("x", 100<<10))
	}
	require.NotZero(t, s.Unread())
	s.Block(true)
	e.c.Close()
	require.Zero(t, s.Unread())
	require.True(t, s.Open())
}

// TestFewConnectionsWaitForSlowServers: beyond the number of those that are in use
// they are closed soon.
func TestFewConnectionsWaitForSlowServers(t *testing.T) {
	e := newToyEnv(t, "toy.byid", `, "upstream": {"max_exclusive_connections": 2}`)
	for id := range 6 {
		e.say(fmt.Sprintf("init %d m a", id))
		s := e.serverWith("init")
		e.answer(s, fmt.Sprintf("init %d - ok", id))
		s.Block(true)
		e.say(fmt.Sprintf("end %d - close", id))
	}
	require.Len(t, e.up.Servers(), 6)
	e.Advance(6 * time.Second)
	require.Len(t, e.up.Servers(), 2)
	e.Advance(time.Minute)
	require.Len(t, e.up.Servers(), 2)
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
