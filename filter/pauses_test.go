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
)

// pauseEnv has a filter that holds requests whose method is mhold, and answers to those
// whose method is mback. 1000 bytes may stand.
type pauseEnv struct {
	*toyEnv
	mod  *filter.Module
	held []filter.Resumer
	text string
}

const pauseConfig = `, "upstream": {"max_pending_bytes": 1000}, "request_timeout": "1s",
	"meta_protocol_filters": [{"name": "test"}, {"name": "aeraki.meta_protocol.filters.router"}]`

func newPauseEnv(t *testing.T, codec string) *pauseEnv {
	t.Helper()
	mod := filter.NewModule()
	mod.Seed(1)
	h := filtertest.NewWith(t, mod, 1)
	e := &pauseEnv{toyEnv: &toyEnv{Host: h, t: t, up: h.Cluster("up", "h1")}, mod: mod}
	h.Cluster("none")
	e.text = strings.Repeat("x", 400-len("req 1 mhold \n"))
	hold := func(method string) func(m *filter.Message) filter.Verdict {
		return func(m *filter.Message) filter.Verdict {
			if string(m.Request().Method()) != method {
				return filter.Continue
			}
			e.held = append(e.held, m.Resumer())
			return filter.Pause
		}
	}
	current = &testFilter{onRequest: hold("mhold"), onResponse: hold("mback")}
	e.up.Serve = serveToys
	e.cfg = h.MustLoad(toyConfig(`"codec": {"name": "`+codec+`"}`, pauseConfig))
	e.c = h.Dial(e.cfg)
	return e
}

// holds has c send a request of 400 bytes that the filter holds.
func (e *pauseEnv) holds(c *filtertest.Client) { say(c, "req 1 mhold "+e.text) }

// resume has the request go on that has been held for the longest time.
func (e *pauseEnv) resume() {
	e.held[0].Continue()
	e.held = e.held[1:]
	e.Settle()
}

func (e *pauseEnv) stand(n, bytes int) {
	e.t.Helper()
	gotN, gotBytes := e.mod.Standing()
	require.Equal(e.t, [2]int{n, bytes}, [2]int{gotN, gotBytes})
	require.Empty(e.t, e.mod.Books())
}

// TestTooMuchIsHeld: clients whose requests are held are not read then, and beyond twice
// as much is refused; others have nothing to do with it.
func TestTooMuchIsHeld(t *testing.T) {
	e := newPauseEnv(t, "toy.byid")
	e.holds(e.c)
	e.holds(e.c)
	require.False(t, e.c.ReadDisabled())
	e.holds(e.c)
	e.stand(3, 1200)
	require.True(t, e.c.ReadDisabled())
	e.holds(e.c)
	e.stand(3, 1200)

	second, third := e.Dial(e.cfg), e.Dial(e.cfg)
	e.holds(second)
	e.holds(third)
	e.stand(5, 2000)
	require.True(t, second.ReadDisabled())
	other := e.Dial(e.cfg)
	say(other, "req 1 mask -")
	require.Equal(t, "res 1 m a=2;ok\n", string(other.Take()))
	e.holds(other)
	require.Equal(t, "err 1 - filters hold too many requests\n", string(other.Take()))
	require.False(t, other.ReadDisabled())
	say(other, "one 1 mhold -")
	e.counts(map[string]int64{"request_overflow": 2, "oneway_dropped": 1})
	e.stand(5, 2000)

	e.held = e.held[:5]
	for range 3 {
		require.True(t, e.c.ReadDisabled())
		e.resume()
	}
	e.stand(3, 1200)
	require.True(t, e.c.ReadDisabled(), "nothing of it stood, and so its next request came")
	require.True(t, second.ReadDisabled())
	e.resume()
	e.stand(2, 800)
	require.False(t, second.ReadDisabled(), "nothing of its stands")
	require.True(t, third.ReadDisabled(), "there is room for half as much")
	e.resume()
	e.stand(1, 400)
	require.False(t, e.c.ReadDisabled())
	e.resume()
	e.stand(0, 0)
	require.Equal(t, 4, strings.Count(e.got(), "res 1 m a=2;ok\n"))
	e.counts(map[string]int64{"request_overflow": 2, "request_active": 0})
}

// TestALargeRequestIsHeld alone, however large it is.
func TestALargeRequestIsHeld(t *testing.T) {
	e := newPauseEnv(t, "toy.byid")
	say(e.c, "req 1 mhold "+strings.Repeat("x", 5000))
	require.True(t, e.c.ReadDisabled())
	second := e.Dial(e.cfg)
	say(second, "req 1 mhold -")
	require.Equal(t, "err 1 - filters hold too many requests\n", string(second.Take()))
	e.resume()
	require.Equal(t, "res 1 m a=2;ok\n", e.got())
	e.stand(0, 0)
}

// TestWhatIsHeldEnds in whatever way, and counts no more.
func TestWhatIsHeldEnds(t *testing.T) {
	all := func(e *pauseEnv, f func(m *filter.Message) filter.Verdict) {
		for _, r := range e.held {
			r.Do(f)
		}
		e.Settle()
	}
	for name, end := range map[string]func(e *pauseEnv, clients []*filtertest.Client){
		"continued": func(e *pauseEnv, _ []*filtertest.Client) { all(e, nil) },
		"answered": func(e *pauseEnv, _ []*filtertest.Client) {
			all(e, func(m *filter.Message) filter.Verdict { return m.Reply(codecs.Denied, "no") })
		},
		"panic": func(e *pauseEnv, _ []*filtertest.Client) {
			e.MayPanic()
			all(e, func(*filter.Message) filter.Verdict { panic("boom") })
		},
		"out of time": func(e *pauseEnv, _ []*filtertest.Client) { e.Advance(late) },
		"clients leave": func(_ *pauseEnv, clients []*filtertest.Client) {
			for _, c := range clients {
				c.Close()
			}
		},
		"clients send no more": func(e *pauseEnv, clients []*filtertest.Client) {
			for _, c := range clients {
				c.CloseWrite()
			}
			all(e, nil)
			for _, c := range clients {
				require.True(e.t, c.Closed())
			}
		},
		"an update": func(e *pauseEnv, _ []*filtertest.Client) {
			old := e.cfg
			e.cfg = e.MustLoad(toyConfig(`"codec": {"name": "toy.byid"}`, pauseConfig))
			c := e.Dial(e.cfg)
			e.holds(c) // of which there is none yet
			e.stand(4, 1600)
			require.False(e.t, c.ReadDisabled())
			old.Destroy()
			all(e, nil)
			require.Equal(e.t, "res 1 m a=2;ok\n", string(c.Take()))
		},
		"held again": func(e *pauseEnv, _ []*filtertest.Client) {
			again := []filter.Resumer{}
			all(e, func(m *filter.Message) filter.Verdict {
				again = append(again, m.Resumer())
				return filter.Pause
			})
			e.stand(3, 1200)
			e.held = again
			all(e, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := newPauseEnv(t, "toy.byid")
			clients := []*filtertest.Client{e.c, e.Dial(e.cfg), e.Dial(e.cfg)}
			for _, c := range clients {
				e.holds(c)
			}
			e.stand(3, 1200)
			require.True(t, clients[2].ReadDisabled())
			end(e, clients)
			e.stand(0, 0)
			for _, c := range clients {
				if !c.Closed() {
					require.False(t, c.ReadDisabled())
					c.Take()
					say(c, "req 2 mask -")
					require.Equal(t, "res 2 m a=2;ok\n", string(c.Take()))
				}
			}
		})
	}
}

// TestAnswersThatAreHeldCount as requests do.
func TestAnswersThatAreHeldCount(t *testing.T) {
	e := newPauseEnv(t, "toy.byid")
	e.up.Serve = nil
	for i := range 6 {
		say(e.c, fmt.Sprintf("req %d mback -", i+1))
	}
	s := e.server(0)
	for _, id := range ids(s) {
		answer := "res " + id + " mback "
		e.answer(s, answer+strings.Repeat("x", 399-len(answer)))
	}
	e.stand(5, 2000)
	require.Equal(t, "err 6 - filters hold too many requests\n", e.got())
	require.True(t, e.c.ReadDisabled())
	e.Advance(2 * time.Second) // an answer has no deadline
	for range 5 {
		e.resume()
	}
	e.stand(0, 0)
	require.Equal(t, 5, strings.Count(e.got(), "res "))
	require.False(t, e.c.ReadDisabled())
}

// TestFramesOfStreamsThatAreHeldCount with what opens them, whether filters see them or
// not.
func TestFramesOfStreamsThatAreHeldCount(t *testing.T) {
	e := newPauseEnv(t, "toy.byid")
	e.up.Serve = nil
	clients := []*filtertest.Client{e.c, e.Dial(e.cfg), e.Dial(e.cfg)}
	open := len("init 1 mhold -\n")
	for _, c := range clients {
		say(c, "init 1 mhold -")
	}
	e.stand(3, 3*open)
	frame := "data 1 - " + strings.Repeat("x", 890)
	for _, c := range clients {
		say(c, frame)
	}
	require.Equal(t, "err 1 - too much was sent before the stream was open\n", string(clients[2].Take()))
	e.stand(2, 2*(open+len(frame)+1))
	e.resume()
	require.Contains(t, string(e.server(0).Take()), frame)
	clients[1].Close()
	e.stand(0, 0)
}

// TestRequestsThatWaitForOthersCount: they are not sent before the client's other ones,
// over connections of another kind.
func TestRequestsThatWaitForOthersCount(t *testing.T) {
	e := newPauseEnv(t, "toy.inorder")
	e.up.Serve = nil
	clients := []*filtertest.Client{}
	for range 6 {
		c := e.Dial(e.cfg)
		say(c, "req 1 m -", "vreq 2 m "+strings.Repeat("x", 400-len("vreq 2 m \n")))
		clients = append(clients, c)
	}
	e.stand(5, 2000)
	require.Empty(t, clients[5].Take(), "the answer has its turn")
	clients[4].Close()
	e.stand(4, 1600)
	for _, s := range e.up.Servers() {
		for range ids(s) {
			e.answer(s, "res 0 m yes")
		}
	}
	e.stand(0, 0)
	require.Contains(t, string(clients[5].Take()), "too many requests wait for those before them")
	e.counts(map[string]int64{"request_overflow": 1})
}

// TestAPauseEndsWithTheRequestsTime, whoever was to end it: nothing else might.
func TestAPauseEndsWithTheRequestsTime(t *testing.T) {
	const spent = "the deadline of the request has passed before it could be sent"
	for _, codec := range []string{"toy.byid", "toy.inorder", "toy.exclusive", "toy.hidden"} {
		for name, hold := range map[string]func(m *filter.Message) filter.Verdict{
			"resumer": func(m *filter.Message) filter.Verdict { m.Resumer(); return filter.Pause },
			"delay":   func(m *filter.Message) filter.Verdict { return m.Delay(time.Hour, nil) },
			"twice": func(m *filter.Message) filter.Verdict {
				return m.Delay(time.Second/2, func(m *filter.Message) filter.Verdict { return m.Delay(time.Second, nil) })
			},
		} {
			t.Run(codec+" "+name, func(t *testing.T) {
				e := newPauseEnv(t, codec)
				var flags []string
				current = &testFilter{onRequest: hold, onEnd: func(m *filter.Message) { flags = append(flags, m.Facts().Flags.String()) }}
				e.cfg = e.MustLoad(toyConfig(`"codec": {"name": "`+codec+`"}`, pauseConfig))
				e.c = e.Dial(e.cfg)
				stream := codec == "toy.byid"
				e.say("req 1 m -")
				if stream {
					e.say("init 2 m -", "data 2 - x")
				}
				one := e.Dial(e.cfg)
				say(one, "one 1 m -")
				e.Advance(990 * time.Millisecond)
				require.Empty(t, e.got())
				e.Advance(20 * time.Millisecond)
				want := "err 1 - " + spent + "\n"
				n := int64(2)
				if stream {
					want += "err 2 - " + spent + "\n"
					n++
				}
				require.Equal(t, want, e.got())
				require.Empty(t, one.Take())
				require.Empty(t, e.up.Servers())
				require.Len(t, flags, int(n))
				require.Equal(t, "UT", flags[0])
				e.counts(map[string]int64{"request_deadline_spent": n, "request_timeout": 0, "oneway_dropped": 1, "request_active": 0})
				e.stand(0, 0)
			})
		}
	}
}
