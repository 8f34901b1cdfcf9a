package filter_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

// diary is what hooks of the probes a and b note.
type diary struct {
	t     *testing.T
	lines []string
	a, b  *hooks
}

// keep has probes a and b note each of their hooks.
func keep(t *testing.T) *diary {
	t.Helper()
	d := &diary{t: t}
	note := func(name string) *hooks {
		return &hooks{
			request:  func(*filter.Message) filter.Verdict { d.note(name + " request"); return filter.Continue },
			response: func(*filter.Message) filter.Verdict { d.note(name + " response"); return filter.Continue },
			local: func(_ *filter.Message, e *codecs.LocalError) {
				d.note(name + " local " + e.Message)
				e.Message += " " + name
			},
			frame: func(_ *filter.Message, dir codecs.Direction, f *codecs.Metadata) filter.Verdict {
				way := map[codecs.Direction]string{codecs.ClientToServer: "c2s", codecs.ServerToClient: "s2c"}[dir]
				d.note(fmt.Sprintf("%s %s %s", name, way, strings.TrimSpace(string(f.Raw))))
				return filter.Continue
			},
			end:        func(*filter.Message) { d.note(name + " end") },
			aside:      func(*filter.Message) { d.note(name + " aside") },
			connect:    func(*filter.Connection) any { d.note(name + " connect"); return name },
			disconnect: func(_ *filter.Connection, state any) { d.note(fmt.Sprint(name, " disconnect ", state)) },
		}
	}
	d.a, d.b = note("a"), note("b")
	setProbe(t, "probe.a", built(func(*filter.Scope) filter.Filter { return d.a }))
	setProbe(t, "probe.b", built(func(*filter.Scope) filter.Filter { return d.b }))
	return d
}

func (d *diary) note(line string) { d.lines = append(d.lines, line) }

// says takes what was noted.
func (d *diary) says(want ...string) {
	d.t.Helper()
	require.Equal(d.t, want, d.lines)
	d.lines = nil
}

func TestHooksOfARequestAndItsAnswer(t *testing.T) {
	d := keep(t)
	e := newProbed(t)
	d.says("a connect", "b connect")
	e.say("req 1 m -")
	d.says("a request", "b request")
	s := e.server(0)
	e.answer(s, "res "+ids(s)[0]+" m x")
	d.says("b response", "a response", "b end", "a end")
	e.say("one 2 m -")
	d.says("a request", "b request", "b end", "a end")
	e.c.Close()
	d.says("a disconnect a", "b disconnect b")
}

// TestHooksOfLocalReplies: those that have seen the request may change what is told.
func TestHooksOfLocalReplies(t *testing.T) {
	d := keep(t)
	e := newProbed(t)
	d.lines = nil
	e.say("req 1 x -")
	require.Equal(t, "err 1 - no route matches x b a\n", e.got())
	d.says("a request", "b request", "b local no route matches x", "a local no route matches x b", "b end", "a end")

	d.a.request = func(m *filter.Message) filter.Verdict { return m.Reply(codecs.Denied, "no") }
	e.say("req 2 m -", "one 3 m -")
	require.Equal(t, "err 2 - no a\n", e.got())
	d.says("a local no", "a end", "a end")

	d.a.request = nil
	d.b.response = func(m *filter.Message) filter.Verdict { return m.Reply(codecs.OverLimit, "too large") }
	e.say("req 4 m -")
	s := e.server(0)
	e.answer(s, "res "+ids(s)[0]+" m x")
	require.Equal(t, "err 4 - too large b a\n", e.got())
	d.says("b request", "b local too large", "a local too large b", "b end", "a end")

	e.say("req 5 m -")
	e.server(0).Reset()
	e.Settle()
	require.Equal(t, "err 5 - upstream connection ended before the answer: reset b a\n", e.got())
	e.say("req 6 m malformed")
	require.Equal(t, "err 6 - malformed request: malformed\n", e.got(), "which no filter has seen")
	d.lines = nil

	// What is told is known at the end, and its code.
	var told codecs.LocalError
	d.a.request = func(m *filter.Message) filter.Verdict {
		m.AddFlags(filter.RateLimited)
		return m.ReplyWith(codecs.LocalError{Type: codecs.OverLimit, Message: "later"})
	}
	d.a.local = func(_ *filter.Message, e *codecs.LocalError) { e.Type, e.Message = codecs.Denied, "never" }
	d.a.end = func(m *filter.Message) {
		told = *m.LocalError()
		require.Equal(t, filter.RateLimited, m.Facts().Flags)
		v, _ := m.Request().Get("method")
		require.Equal(t, "m", string(v))
	}
	e.say("req 7 m -")
	require.Equal(t, "err 7 - never\n", e.got())
	require.Equal(t, codecs.LocalError{Type: codecs.Denied, Message: "never"}, told)
}

func TestHooksOfAStream(t *testing.T) {
	d := keep(t)
	e := newProbed(t)
	d.lines = nil
	e.say("init 5 m hello")
	s := e.server(0)
	d.says("a request", "b request")
	e.answer(s, "init 5 - welcome")
	d.says() // it is the answer, whose changes are the route's
	e.say("data 5 - x")
	e.answer(s, "data 5 - y")
	e.say("half 5 - done")
	e.answer(s, "half 5 - done")
	d.says("a c2s data 5 - x", "b c2s data 5 - x", "b s2c data 5 - y", "a s2c data 5 - y",
		"a c2s half 5 - done", "b c2s half 5 - done", "b s2c half 5 - done", "a s2c half 5 - done", "b end", "a end")
	require.Equal(t, "init 5 m q=1;hello\ndata 5 - x\nhalf 5 - done\n", string(s.Take()))
	e.say("data 5 - stray")
	d.says()
}

func TestAFilterEndsAStream(t *testing.T) {
	for _, by := range []string{"a reply", "a panic"} {
		for _, dir := range []codecs.Direction{codecs.ClientToServer, codecs.ServerToClient} {
			for _, open := range []bool{true, false} {
				t.Run(fmt.Sprint(by, " ", dir, " open ", open), func(t *testing.T) {
					d := keep(t)
					said := "not so"
					d.b.frame = func(m *filter.Message, at codecs.Direction, _ *codecs.Metadata) filter.Verdict {
						d.note("b frame")
						if at != dir {
							return filter.Continue
						}
						if by == "a panic" {
							said = "internal error"
							panic("boom")
						}
						return m.Reply(codecs.Denied, said)
					}
					e := newProbed(t)
					e.MayPanic()
					d.lines = nil
					e.say("init 5 m -")
					s := e.server(0)
					opened := ""
					end := "err"
					if open {
						e.answer(s, "init 5 - ok")
						end, opened = "end", "init 5 - a=2;ok\n"
					}
					s.Take()
					d.lines = nil
					var seen []string
					if dir == codecs.ClientToServer {
						e.say("data 5 - x")
						seen = []string{"a c2s data 5 - x", "b frame"}
					} else {
						e.answer(s, "data 5 - x")
						seen = []string{"b frame"}
					}
					require.Empty(t, s.Take())
					require.Equal(t, opened+end+" 5 - "+said+" b a\n", e.got())
					d.says(append(seen, "b local "+said, "a local "+said+" b", "b end", "a end")...)
					require.False(t, s.Open())
					e.say("data 5 - y")
					d.says()
					e.counts(map[string]int64{"stream_active": 0, "request_active": 0, "connection_panic": 0, "stream_stray": 1})

					e.say("req 1 m -")
					s = e.serverWith("req ")
					e.answer(s, "res 0 m x")
				})
			}
		}
	}
}

// TestFramesOfAStreamThatAFilterHolds are seen by those behind it, too, when they have
// seen its opening.
func TestFramesOfAStreamThatAFilterHolds(t *testing.T) {
	for _, refused := range []bool{false, true} {
		for _, gone := range []bool{false, true} {
			t.Run(fmt.Sprint("refused ", refused, " gone ", gone), func(t *testing.T) {
				d := keep(t)
				var held filter.Resumer
				d.a.request = func(m *filter.Message) filter.Verdict {
					d.note("a request")
					held = m.Resumer()
					return filter.Pause
				}
				noted := d.b.frame
				d.b.frame = func(m *filter.Message, dir codecs.Direction, f *codecs.Metadata) filter.Verdict {
					noted(m, dir, f)
					v, _ := f.Get("method")
					require.Equal(t, "m2", string(v))
					if refused {
						return m.Reply(codecs.Denied, "not so")
					}
					return filter.Continue
				}
				e := newProbed(t)
				d.lines = nil
				e.say("init 5 m -", "data 5 m2 x", "data 5 m2 y")
				d.says("a request")
				require.True(t, e.c.ReadDisabled())
				if gone {
					e.c.Close()
					d.says("a end", "a disconnect a", "b disconnect b")
					held.Continue()
					e.Settle()
					d.says()
					return
				}
				held.Continue()
				e.Settle()
				if refused {
					d.says("b request", "a c2s data 5 m2 x", "b c2s data 5 m2 x", "b local not so", "a local not so b", "b end", "a end")
					require.Equal(t, "err 5 - not so b a\n", e.got())
					require.False(t, e.c.ReadDisabled())
					e.counts(map[string]int64{"stream_active": 0, "request_active": 0, "stream_stray": 1})
					return
				}
				d.says("b request", "a c2s data 5 m2 x", "b c2s data 5 m2 x", "a c2s data 5 m2 y", "b c2s data 5 m2 y")
				require.Equal(t, "init 5 m q=1;-\ndata 5 m2 x\ndata 5 m2 y\n", string(e.server(0).Take()))
			})
		}
	}
}

func TestHooksOfConnections(t *testing.T) {
	type state struct{ requests int }
	var log []string
	setProbe(t, "probe.a", built(func(*filter.Scope) filter.Filter {
		return &hooks{
			connect: func(c *filter.Connection) any {
				log = append(log, fmt.Sprint(c.ID() > 0, " ", c.RemoteAddress(), " ", c.LocalAddress(), " ", c.RemoteIP(), " ", c.Codec() != nil))
				return &state{}
			},
			request: func(m *filter.Message) filter.Verdict {
				s := m.ConnectionState().(*state)
				s.requests++
				if s.requests == 2 {
					m.Connection().Close()
					m.Connection().Close()
				}
				return filter.Continue
			},
			disconnect: func(c *filter.Connection, s any) {
				log = append(log, fmt.Sprint("gone after ", s.(*state).requests, " ", c.ID(), c.RemoteAddress(), c.LocalAddress()))
			},
		}
	}))
	setProbe(t, "probe.b", built(func(*filter.Scope) filter.Filter {
		return &hooks{request: func(m *filter.Message) filter.Verdict {
			require.Nil(t, m.ConnectionState(), "it has none of its own")
			return filter.Continue
		}}
	}))
	e := newProbed(t)
	e.say("req 1 m -", "req 2 m -", "req 3 m -")
	require.False(t, e.c.Closed(), "its answers are awaited")
	s := e.server(0)
	got := ids(s)
	require.Len(t, got, 3, "what has come with the request is served")
	e.say("req 4 m -")
	require.Empty(t, s.Take(), "nothing more is read")
	e.answer(s, "res "+got[0]+" m x", "res "+got[1]+" m y", "res "+got[2]+" m z")
	require.Equal(t, "res 1 m a=2;x\nres 2 m a=2;y\nres 3 m a=2;z\n", e.got())
	require.True(t, e.c.Closed())
	require.Len(t, log, 2)
	require.Regexp(t, `^true 10.0.0.2:\d+ 10.0.0.1:20880 10.0.0.2 true$`, log[0])
	require.Equal(t, "gone after 3 0", log[1])
}

// TestAConnectionThatAFilterClosesAtOnce: nothing of it is read.
func TestAConnectionThatAFilterClosesAtOnce(t *testing.T) {
	for _, how := range []string{"close", "panic"} {
		t.Run(how, func(t *testing.T) {
			d := keep(t)
			d.a.connect = func(c *filter.Connection) any {
				if how == "panic" {
					panic("boom")
				}
				c.Close()
				return "a"
			}
			e := newProbed(t)
			e.MayPanic()
			require.True(t, e.c.Closed())
			if how == "panic" {
				d.says("b connect", "b disconnect b") // a has not taken it in
			} else {
				d.says("b connect", "a disconnect a", "b disconnect b")
			}
		})
	}
}

func TestAPanicAtTheEndOfAConnection(t *testing.T) {
	d := keep(t)
	d.a.disconnect = func(*filter.Connection, any) { panic("boom") }
	e := newProbed(t)
	e.MayPanic()
	other := e.Dial(e.cfg)
	d.lines = nil
	e.c.Close()
	d.says("b disconnect b")
	e.c = other
	e.counts(map[string]int64{"filter_panic": 1})
}

func TestDelays(t *testing.T) {
	var then func(m *filter.Message) filter.Verdict
	var first filter.Resumer
	ran := 0
	d := keep(t)
	d.a.request = func(m *filter.Message) filter.Verdict {
		first = m.Resumer()
		return m.Delay(time.Second, then)
	}
	count := func(v filter.Verdict) func(*filter.Message) filter.Verdict {
		return func(*filter.Message) filter.Verdict { ran++; return v }
	}
	sent := func(e *toyEnv) bool {
		return len(e.up.Servers()) > 0 && len(e.server(0).Take()) > 0
	}
	for name, play := range map[string]func(e *toyEnv){
		"no then": func(e *toyEnv) {
			e.Advance(900 * time.Millisecond)
			require.False(t, sent(e))
			e.Advance(200 * time.Millisecond)
			require.True(t, sent(e))
		},
		"then": func(e *toyEnv) {
			e.Advance(1100 * time.Millisecond)
			require.Equal(t, 1, ran)
			require.True(t, sent(e))
			first.Continue()
			e.Advance(time.Hour)
			require.Equal(t, 1, ran)
		},
		"a reply": func(e *toyEnv) {
			e.Advance(1100 * time.Millisecond)
			require.Equal(t, "err 1 - late a\n", e.got())
			require.False(t, sent(e))
		},
		"a resumer is first": func(e *toyEnv) {
			first.Do(func(*filter.Message) filter.Verdict { ran += 10; return filter.Continue })
			e.Settle()
			require.True(t, sent(e))
			e.Advance(time.Hour)
			require.Equal(t, 10, ran)
		},
		"again": func(e *toyEnv) {
			e.Advance(1100 * time.Millisecond)
			require.False(t, sent(e))
			e.Advance(1100 * time.Millisecond)
			require.True(t, sent(e))
			require.Equal(t, 2, ran)
		},
		"the client leaves": func(e *toyEnv) {
			e.c.Close()
			e.Advance(2 * time.Second)
			require.Zero(t, ran)
			require.False(t, sent(e))
			e.cfg.Destroy()
			e.Advance(2 * time.Second)
		},
		"and its place is taken": func(e *toyEnv) {
			e.Advance(500 * time.Millisecond)
			e.c.Close()
			e.c = e.Dial(e.cfg)
			e.say("req 1 m -")
			e.Advance(900 * time.Millisecond)
			require.Zero(t, ran)
			e.Advance(200 * time.Millisecond)
			require.Equal(t, 1, ran)
		},
	} {
		t.Run(name, func(t *testing.T) {
			ran = 0
			switch then = count(filter.Continue); name {
			case "no then":
				then = nil
			case "a reply":
				then = func(m *filter.Message) filter.Verdict { return m.Reply(codecs.Timeout, "late") }
			case "again":
				then = func(m *filter.Message) filter.Verdict {
					ran++
					return m.Delay(time.Second, count(filter.Continue))
				}
			}
			e := newProbed(t)
			e.say("req 1 m -")
			play(e)
		})
	}
}

// TestADelayOfAHookThatGoesOn comes to nothing. One of an answer is one.
func TestADelayOfAHookThatGoesOn(t *testing.T) {
	d := keep(t)
	d.a.request = func(m *filter.Message) filter.Verdict {
		m.Delay(time.Second, func(*filter.Message) filter.Verdict { t.Error("comes"); return filter.Continue })
		return filter.Continue
	}
	d.b.response = func(m *filter.Message) filter.Verdict {
		return m.Delay(5*time.Second, nil)
	}
	e := newProbed(t)
	e.say("req 1 m -")
	s := e.server(0)
	e.answer(s, "res "+ids(s)[0]+" m x")
	e.Advance(4 * time.Second)
	require.Empty(t, e.got())
	e.Advance(2 * time.Second)
	require.Equal(t, "res 1 m a=2;x\n", e.got())
}

// TestWhatMayBlock runs beside the worker, and its panic ends the message alone.
func TestWhatMayBlock(t *testing.T) {
	d := keep(t)
	release := make(chan struct{})
	d.a.request = func(m *filter.Message) filter.Verdict {
		id := m.Request().ID
		return m.Go(func(context.Context) func(*filter.Message) filter.Verdict {
			<-release
			switch id {
			case 1:
				return nil
			case 2:
				return func(m *filter.Message) filter.Verdict { return m.Reply(codecs.Denied, "no") }
			default:
				panic("boom")
			}
		})
	}
	mod := filter.NewModule()
	h := filtertest.NewWith(t, mod, 1)
	h.MayPanic()
	e := &toyEnv{Host: h, t: t, up: h.Cluster("up", "h1")}
	e.cfg = h.MustLoad(toyByID(probed))
	e.c = h.Dial(e.cfg)
	gone := h.Dial(e.cfg)
	gone.Send([]byte("req 2 m -\n"))
	gone.Close()
	e.say("req 1 m -", "req 2 m -", "req 3 m -")
	require.Empty(t, e.got())
	close(release)
	got := ""
	h.WaitUntil(func() bool { // the goroutines end in any order
		got += e.got()
		return strings.Count(got, "\n") == 2 && len(e.up.Servers()) == 1
	})
	require.Contains(t, got, "err 2 - no")
	require.Contains(t, got, "err 3 - internal error")
	require.Len(t, ids(e.server(0)), 1)
	require.EqualValues(t, 1, mod.Panics())
	e.counts(map[string]int64{"filter_panic": 1})
	require.Contains(t, strings.Join(h.Log(), "\n"), "panic in filter probe.a: boom")
}

// TestValuesAreOfAllFilters, and of one message.
func TestValuesAreOfAllFilters(t *testing.T) {
	type key struct{}
	d := keep(t)
	d.a.request = func(m *filter.Message) filter.Verdict {
		require.Nil(t, m.Value(key{}))
		m.SetValue(key{}, 1)
		m.SetValue("other", 2)
		m.SetValue(key{}, 3)
		return filter.Continue
	}
	seen := 0
	d.b.end = func(m *filter.Message) {
		seen++
		require.Equal(t, 3, m.Value(key{}))
		require.Equal(t, 2, m.Value("other"))
	}
	e := newProbed(t)
	e.say("one 1 m -")
	e.say("one 2 m -")
	require.Equal(t, 2, seen)
}

// TestManyDelays: each is over at its own time.
func TestManyDelays(t *testing.T) {
	d := keep(t)
	d.a.request = func(m *filter.Message) filter.Verdict {
		return m.Delay(time.Duration(m.Request().ID)*time.Millisecond, nil)
	}
	e := newToyEnv(t, "toy.byid", probed+`, "request_timeout": "60s"`)
	want := make([]string, 0, 1000)
	for i := range 1000 {
		n := 10 * ((i*7)%1000 + 1)
		e.say(fmt.Sprintf("req %d m %d", n, n))
		want = append(want, fmt.Sprint(n))
	}
	e.Advance(5 * time.Second)
	sent := ""
	take := func() {
		for _, s := range e.up.Servers() {
			sent += string(s.Take())
		}
	}
	take()
	require.InDelta(t, 500, strings.Count(sent, "\n"), 3)
	e.Advance(6 * time.Second)
	take()
	var got []string
	for l := range strings.Lines(sent) {
		got = append(got, strings.TrimPrefix(strings.TrimSpace(strings.Fields(l)[3]), "q=1;"))
	}
	slices.Sort(got)
	slices.Sort(want)
	require.Equal(t, want, got)
}

// TestHooksBehindTheEnd are found: a pipeline that called one would count a panic, which
// filtertest has a test fail over.
func TestHooksBehindTheEndAreFound(t *testing.T) {
	d := keep(t)
	var kept *filter.Message
	d.b.request = func(m *filter.Message) filter.Verdict { kept = m; return filter.Pause }
	mod := filter.NewModule()
	h := filtertest.NewWith(t, mod, 1)
	h.MayPanic()
	h.Cluster("up", "h1")
	cfg := h.MustLoad(toyByID(probed))
	c := h.Dial(cfg)
	c.Send([]byte("req 1 m -\n"))
	mod.EndEarly()
	c.Close() // it ends, which it must not any more
	require.NotNil(t, kept)
	require.EqualValues(t, 5, mod.Panics(), "the ends of two messages and three connections")
	require.Contains(t, strings.Join(h.Log(), "\n"), "panic in filter probe.b: a hook is called after the end")
}
