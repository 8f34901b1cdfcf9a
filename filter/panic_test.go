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
)

// pair is two clients with a request each on one connection upstream.
type pair struct {
	*toyEnv
	other      *filtertest.Client
	s          *filtertest.Server
	first, its string // ids of the requests, as the server knows them
}

func newPair(t *testing.T, more string) *pair {
	t.Helper()
	p := &pair{toyEnv: newToyEnv(t, "toy.byid", more)}
	p.other = p.Dial(p.cfg)
	p.say("req 1 m -")
	p.other.Send([]byte("req 1 m -\n"))
	p.s = p.server(0)
	ids := ids(p.s)
	p.first, p.its = ids[0], ids[1]
	return p
}

// panicked tells that the pipeline has coped with a panic, n times by now, and
// serves.
func (e *toyEnv) panicked(n int64) {
	e.t.Helper()
	require.Zero(e.t, e.Panics(), "what reached the host")
	c := e.Dial(e.cfg)
	c.Send([]byte("req 9 m good\n"))
	for _, s := range e.up.Servers() {
		if b := string(s.Take()); strings.Contains(b, "good") {
			e.answer(s, "res "+strings.Fields(b[strings.LastIndex(b, "req "):])[1]+" m fine")
		}
	}
	require.Equal(e.t, "res 9 m a=2;fine\n", string(c.Take()))
	e.counts(map[string]int64{"connection_panic": n})
	log := strings.Join(e.Log(), "\n")
	require.EqualValues(e.t, n, strings.Count(log, "panic: "))
	require.Contains(e.t, log, ".go:", "the stack")
	c.Close()
}

func TestAPanicOverAClientsBytesEndsThatClientAfterItsAnswers(t *testing.T) {
	for name, bytes := range map[string]string{
		"decode":    "req 2 m boom-decode\n",
		"nothing":   "req 2 m boom-nothing\n",
		"heartbeat": "hb 2 - boom-heartbeat\n",
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, "")
			p.MayPanic()
			p.c.Send([]byte(bytes + "req 3 m -\n"))
			require.Empty(t, p.s.Take(), "nothing behind it is read")
			require.False(t, p.c.Closed())
			p.answer(p.s, "res "+p.first+" m x", "res "+p.its+" m y")
			require.Equal(t, "res 1 m a=2;x\n", p.got())
			require.True(t, p.c.Closed())
			require.Equal(t, "res 1 m a=2;y\n", string(p.other.Take()))
			require.False(t, p.other.Closed())
			p.panicked(1)
			p.counts(map[string]int64{"request_active": 0, "request_abandoned": 0, "request_decoding_error": 0})
		})
	}
}

func TestAPanicOverTheFirstBytes(t *testing.T) {
	e := newToyEnv(t, "toy.byid", "")
	e.MayPanic()
	e.cfg = e.MustLoad(toyConfig(`"codecs": [{"name": "toy.byid"}, {"name": "toy.inorder"}]`, ""))
	c := e.Dial(e.cfg)
	c.Send([]byte("!"))
	require.True(t, c.Closed())
	e.panicked(1)
}

func TestAPanicOverAServersBytesEndsThatConnectionAndItsRequests(t *testing.T) {
	for name, line := range map[string]string{
		"decode": "res 1 m boom-decode", "nothing": "res 1 m boom-nothing", "heartbeat": "hb 1 - boom-heartbeat",
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, "")
			p.MayPanic()
			p.say("req 2 m -")
			p.answer(p.s, line)
			require.False(t, p.s.Open())
			require.Equal(t, "err 1 - internal error\nerr 2 - internal error\n", p.got())
			require.Equal(t, "err 1 - internal error\n", string(p.other.Take()))
			require.False(t, p.c.Closed())
			p.panicked(1)
			p.counts(map[string]int64{"request_active": 0, "local_response_business_exception": 3})
		})
	}
}

func TestAPanicOverARequestThatGoesOut(t *testing.T) {
	p := newPair(t, `, "request_timeout": "1s"`)
	p.MayPanic()
	p.say("req 2 m boom-encode", "req 3 m -")
	require.Equal(t, "err 2 - internal error\n", p.got())
	require.Empty(t, string(p.s.Take()), "neither half a frame nor what is behind it")
	p.answer(p.s, "res "+p.first+" m x", "res "+p.its+" m y")
	require.Equal(t, "res 1 m a=2;x\n", p.got())
	require.True(t, p.c.Closed())
	require.Equal(t, "res 1 m a=2;y\n", string(p.other.Take()))
	p.panicked(1)
	p.Advance(2 * time.Second)
	p.panicked(1)
	p.counts(map[string]int64{"request_active": 0, "request_timeout": 0})
}

// TestAPanicOverARequestThatHasWaited: those that wait behind it are sent.
func TestAPanicOverARequestThatHasWaited(t *testing.T) {
	for _, boom := range []string{"boom-encode", "boom-size"} {
		t.Run(boom, func(t *testing.T) {
			e := newToyEnv(t, "toy.byid", `, "request_timeout": "1s"`)
			e.MayPanic()
			other := e.Dial(e.cfg)
			e.up.Hang = true
			e.say("req 2 m " + boom)
			other.Send([]byte("req 1 m -\n"))
			e.up.Hang = false
			e.up.Admit()
			require.Equal(t, "err 2 - internal error\n", e.got())
			s := e.server(0)
			e.answer(s, "res "+ids(s)[0]+" m x")
			require.Equal(t, "res 1 m a=2;x\n", string(other.Take()))
			e.panicked(1)
			e.Advance(2 * time.Second)
			e.panicked(1)
			e.counts(map[string]int64{"request_active": 0, "request_timeout": 0})
		})
	}
}

func TestAPanicOverAnAnswerThatGoesOut(t *testing.T) {
	p := newPair(t, "")
	p.MayPanic()
	p.say("req 2 m -")
	second := ids(p.s)[0]
	p.answer(p.s, "res "+p.first+" m boom-encode", "res "+p.its+" m y")
	require.Equal(t, "err 1 - internal error\n", p.got())
	require.Equal(t, "res 1 m a=2;y\n", string(p.other.Take()))
	require.True(t, p.s.Open())
	p.answer(p.s, "res "+second+" m z")
	require.Equal(t, "res 2 m a=2;z\n", p.got())
	require.True(t, p.c.Closed())
	p.panicked(1)
	p.counts(map[string]int64{"request_active": 0})
}

// TestAPanicOfThePipelineItself over an answer ends the client whose answer it
// is: the server's connection is others' too.
func TestAPanicOfThePipelineItself(t *testing.T) {
	p := newPair(t, "")
	p.MayPanic()
	p.say("req 2 m -")
	p.s.Take()
	p.answer(p.s, "res "+p.first+" m boom-size", "res "+p.its+" m y")
	require.True(t, p.c.Closed())
	require.Equal(t, "res 1 m a=2;y\n", string(p.other.Take()))
	require.True(t, p.s.Open())
	p.panicked(1)
	p.counts(map[string]int64{"request_active": 0, "cx_destroy_local_with_active_rq": 1})
}

// TestAPanicOverTheRoomForAFrame ends the connection whose event it is. That of a
// client reaches the host.
func TestAPanicOverTheRoomForAFrame(t *testing.T) {
	p := newPair(t, "")
	p.MayPanic()
	p.say("hb 2 - boom-size")
	require.True(t, p.c.Closed())
	require.Equal(t, 1, p.Panics())
	p.c = p.Dial(p.cfg)
	p.say("req 2 m -")
	p.answer(p.s, "res "+p.its+" m y", "hb 3 - boom-size")
	require.Equal(t, 1, p.Panics())
	require.Equal(t, "res 1 m a=2;y\n", string(p.other.Take()))
	require.Equal(t, "err 2 - internal error\n", p.got())
	require.False(t, p.s.Open())
	p.say("req 3 m -")
	s := p.server(0)
	p.answer(s, "res "+ids(s)[0]+" m x")
	require.Equal(t, "res 3 m a=2;x\n", p.got())
	p.counts(map[string]int64{"request_active": 0, "request_abandoned": 1, "connection_panic": 2})
}

// TestAPanicOverWhatAServerDoes, not over what it sends, is one of the pool's own.
func TestAPanicOverWhatAServerDoes(t *testing.T) {
	roundTrip, h := newRoundTrip(t)
	roundTrip()
	h.down.Data(h.request, len(h.request[0]), false)
	h.shard.EndHook()
	h.got = nil
	h.up.Aborted()
	h.up.Aborted()
	h.shard.EndHook()
	require.Contains(t, string(h.got), "internal error")
}

// TestAPanicBetweenTheEvents: over bytes that are taken up when another event is
// over, which may be one of another connection.
func TestAPanicBetweenTheEvents(t *testing.T) {
	p := newPair(t, `, "limits": {"max_requests_in_flight": 4}`)
	p.MayPanic()
	p.say("req 2 m -", "req 3 m -")
	second := ids(p.s)[0]
	large := "req 4 m " + strings.Repeat("x", 40000) // more than is left to the host
	p.c.SendSplit([]byte(large+"\nhb 5 - boom-size\n"), len(large))
	require.True(t, p.c.ReadDisabled())
	p.c.Block(true)
	p.answer(p.s, "res "+p.first+" m "+strings.Repeat("x", 70000))
	p.answer(p.s, "res "+second+" m x", "res "+p.its+" m y")
	require.False(t, p.c.Closed())
	p.c.Block(false) // only now the rest is looked at
	require.True(t, p.c.Closed())
	require.Equal(t, "res 1 m a=2;y\n", string(p.other.Take()))
	require.False(t, p.other.Closed())
	require.True(t, p.s.Open())
	p.panicked(1)
}

func TestAPanicOverAResumedMessage(t *testing.T) {
	for _, boom := range []string{"boom-encode", "boom-size", "boom-load"} {
		for _, where := range []string{"request", "response"} {
			t.Run(boom+" "+where, func(t *testing.T) {
				var paused []filter.Resumer
				pause := func(m *filter.Message) filter.Verdict {
					paused = append(paused, m.Resumer())
					return filter.Pause
				}
				resume := func(e *toyEnv) {
					rs := paused
					paused = nil
					for _, r := range rs {
						r.Continue()
					}
					e.Settle()
				}
				current = &testFilter{onRequest: pause, onResponse: pause}
				e := newToyEnv(t, "toy.byid", `, "meta_protocol_filters": [{"name": "test"}, {"name": "aeraki.meta_protocol.filters.router"}]`)
				e.MayPanic()
				other := e.Dial(e.cfg)
				texts := map[string]string{where: boom}
				e.say("req 1 m " + texts["request"])
				other.Send([]byte("req 1 m -\n"))
				resume(e) // both at once, and the panic is over the first
				s := e.server(0)
				for _, l := range strings.Split(strings.TrimSpace(string(s.Take())), "\n") {
					f := strings.Fields(l)
					text := "y"
					if where == "response" && !strings.HasSuffix(l, "-") {
						text = boom
					}
					e.answer(s, "res "+f[1]+" m "+text)
				}
				resume(e)
				if where == "response" && boom == "boom-size" {
					require.Empty(t, e.got(), "there is no room for a word")
				} else {
					require.Equal(t, "err 1 - internal error\n", e.got())
				}
				require.True(t, e.c.Closed())
				require.Equal(t, "res 1 m a=2;y\n", string(other.Take()))
				require.True(t, s.Open())
				current.onRequest, current.onResponse = nil, nil
				e.panicked(1)
				e.counts(map[string]int64{"request_active": 0})
			})
		}
	}
}

// TestAPanicOverALocalReply: in a timer's time, for which no connection's event
// stands.
func TestAPanicOverALocalReply(t *testing.T) {
	e := newToyEnv(t, "toy.byid", `, "request_timeout": "1s"`)
	e.MayPanic()
	other := e.Dial(e.cfg)
	e.say("req 500 m -", "req 2 m -")
	other.Send([]byte("req 1 m -\n"))
	e.Advance(1100 * time.Millisecond)
	require.Equal(t, "err 2 - upstream request timeout\n", e.got())
	require.True(t, e.c.Closed(), "its client would wait for ever")
	require.Equal(t, "err 1 - upstream request timeout\n", string(other.Take()))
	require.False(t, other.Closed())
	e.panicked(1)
	e.counts(map[string]int64{"request_active": 0, "local_response_error": 1})
}

func TestAPanicOverAStream(t *testing.T) {
	e := newToyEnv(t, "toy.byid", "")
	e.MayPanic()
	e.say("init 5 m boom-encode")
	require.Equal(t, "err 5 - internal error\n", e.got())
	require.True(t, e.c.Closed())
	e.panicked(1)

	e.c = e.Dial(e.cfg)
	e.say("init 5 m -", "init 500 m -")
	first, second := e.serverWith("init 5 "), e.serverWith("init 500 ")
	e.answer(second, "init 500 - ok")
	require.Equal(t, "init 500 - a=2;ok\n", e.got())
	second.Reset()
	e.Settle()
	require.True(t, e.c.Closed())
	require.True(t, first.Ended())
	e.panicked(2)

	e.Advance(time.Second) // another panic at the same place is another line
	e.c = e.Dial(e.cfg)
	e.say("init 5 m -")
	s := e.serverWith("init 5 ")
	e.answer(s, "init 5 - boom-encode")
	require.Equal(t, "err 5 - internal error\n", e.got())
	require.True(t, e.c.Closed())
	require.False(t, s.Open())
	e.panicked(3)
	e.counts(map[string]int64{"stream_active": 0, "request_active": 0})
}

// TestPanicsLeaveNothingBehind wherever and in whatever order they come: each
// request is answered, or the connection of its client has ended.
func TestPanicsLeaveNothingBehind(t *testing.T) {
	texts := []string{"-", "-", "-", "-", "boom-encode", "boom-load", "boom-size", "boom-decode", "boom-nothing"}
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(1, seed))
		pick := func(from ...string) string { return from[rng.IntN(len(from))] }
		pause := func(m *filter.Message) filter.Verdict {
			if rng.IntN(3) > 0 {
				return filter.Continue
			}
			m.Resumer().Continue()
			return filter.Pause
		}
		current = &testFilter{onRequest: pause, onResponse: pause}
		e := newToyEnv(t, pick("toy.byid", "toy.inorder", "toy.exclusive"), `, "request_timeout": "1s", "idle_timeout": "9s",
			"upstream": {"max_pending_requests": 4, "max_connection_age": "0.5s", "target_in_flight": 2},
			"meta_protocol_filters": [{"name": "test"}, {"name": "aeraki.meta_protocol.filters.router"}]`)
		e.MayPanic()
		e.up.SetHosts("h1", "h2")
		e.up.Serve = func(s *filtertest.Server, b []byte) int {
			for _, l := range lines(b) {
				if f := strings.Fields(l); f[0] == "req" && rng.IntN(8) > 0 {
					s.Send([]byte("res " + f[1] + " m " + pick(texts...) + "\n"))
				} else if f[0] == "init" {
					s.Send([]byte("init " + f[1] + " - " + pick(texts[:6]...) + "\n"))
				}
			}
			return len(b)
		}
		var clients [4]*filtertest.Client
		var asked [4]int
		var sent [4]string
		for i := range clients {
			clients[i] = e.Dial(e.cfg)
		}
		for range 40 {
			i := rng.IntN(len(clients))
			if clients[i].Closed() {
				clients[i], asked[i], sent[i] = e.Dial(e.cfg), 0, ""
			}
			asked[i]++
			kind := pick("req", "req", "req", "req", "init", "hb")
			text := pick(texts...)
			if kind == "hb" {
				text = pick("-", "boom-heartbeat", "boom-size") // the last reaches the host
			}
			line := fmt.Sprintf("%s %d m %s", kind, asked[i]+rng.IntN(2)*speechless, text)
			sent[i] += line + "\n"
			say(clients[i], line)
			e.up.Hang = rng.IntN(6) == 0
			if !e.up.Hang {
				e.up.Admit()
			}
			e.Advance(time.Duration(rng.IntN(100)) * time.Millisecond)
		}
		e.up.Hang = false
		e.up.Admit()
		e.Advance(3 * time.Second)
		for i, c := range clients {
			if c.Closed() {
				continue
			}
			answered := strings.Count(string(c.Received()), "\n")
			require.Equal(t, asked[i], answered, "seed %d, client %d sent\n%s, not read %v, got\n%s", seed, i, sent[i], c.ReadDisabled(), c.Received())
			c.Send([]byte("end 1 - bye\n"))
		}
		for _, c := range clients {
			c.Close()
		}
		e.Advance(10 * time.Second)
		e.c.Close()
		e.c = e.Dial(e.cfg)
		e.counts(map[string]int64{"request_active": 0, "stream_active": 0})
	}
}
