package filter_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

// TestHooksSeeTheirOwnMessage also when its answer has waited for its turn and
// the bytes that it came in have gone.
func TestHooksSeeTheirOwnMessage(t *testing.T) {
	var ends []string
	e := withFilter(t, &testFilter{
		onRequest: func(m *filter.Message) filter.Verdict {
			if strings.Contains(string(m.Request().AppendOperation(nil)), "Denied") {
				return m.Reply(codecs.Denied, "not you")
			}
			return filter.Continue
		},
		onEnd: func(m *filter.Message) {
			tenant, _ := m.Request().Get("tenant")
			end := fmt.Sprintf("%s of %q: ", m.Request().AppendOperation(nil), tenant)
			if l := m.LocalError(); l != nil {
				end += l.Message
			} else {
				if raw := m.Response().Raw; raw != nil { // none if they have gone
					require.Equal(t, []byte{0xda, 0xbb}, raw[:2])
				}
				by, _ := m.Response().Get("by")
				end += fmt.Sprintf("status %d by %q", m.Response().Status, by)
			}
			ends = append(ends, end)
		},
	})
	e.MayPanic()
	e.v1.Serve = nil
	send := func(method, tenant string) {
		e.c.Send(dubbotest.Request{ID: 1, Method: method, Attachments: [][2]string{{"tenant", tenant}}}.Bytes())
	}
	send("sayFirst", "a")
	send("sayDenied", "b")
	send("sayThird", "c")
	send("sayFourth", "d")
	s := e.v1.Servers()[0]
	fs := parse(s.Take())
	s.Send(dubbotest.ErrorResponse(fs[1].ID, 70, "third failed"))
	e.Settle()
	s.Send(dubbotest.Response(fs[2].ID, "fourth", [2]string{"by", "fourth"}))
	e.Settle()
	require.Empty(t, ends)
	require.Empty(t, replies(t, e.c))
	s.Send(dubbotest.Response(fs[0].ID, "first", [2]string{"by", "first"}))
	e.Settle()
	require.Equal(t, []string{
		`org.example.Greeter/sayFirst of "a": status 0 by "first"`,
		`org.example.Greeter/sayDenied of "b": not you`,
		`org.example.Greeter/sayThird of "c": status 2 by ""`,
		`org.example.Greeter/sayFourth of "d": status 0 by "fourth"`,
	}, ends)
	require.Len(t, replies(t, e.c), 4)

	ends = nil
	send("sayFirst", "a")
	send("sayDenied", "b")
	send("sayThird", "c")
	fs = parse(s.Take())
	s.Send(dubbotest.Response(fs[1].ID, "third", [2]string{"by", "third"}))
	e.Settle()
	s.Send(dubbotest.Response(99999, "stray"))
	e.c.Close() // before their turn
	require.Len(t, ends, 2, "the first is still to be answered")
	require.Contains(t, ends, `org.example.Greeter/sayDenied of "b": not you`)
	require.Contains(t, ends, `org.example.Greeter/sayThird of "c": status 0 by "third"`)
}

// TestAHookMayAskForPropertiesLate: codecs put some only when they are asked for.
func TestAHookMayAskForPropertiesLate(t *testing.T) {
	var got []string
	current = &testFilter{
		onRequest: func(m *filter.Message) filter.Verdict {
			if m.Request().ID == 2 {
				return filter.Continue
			}
			return m.Reply(codecs.Denied, "no")
		},
		onEnd: func(m *filter.Message) {
			v, _ := m.Request().Get("first")
			got = append(got, string(v))
		},
	}
	e := newToyEnv(t, "toy.late", `, "meta_protocol_filters": [{"name": "test"}, {"name": "aeraki.meta_protocol.filters.router"}]`)
	e.say("req 1 m -", "req 2 nowhere -", "one 3 m -")
	require.Equal(t, []string{"err 1 - no", "err 2 - no healthy upstream in cluster none"}, lines(e.c.Take()))
	require.Equal(t, []string{"req ", "req ", "one "}, got)
	e.counts(map[string]int64{"filter_panic": 0, "connection_panic": 0})
}

// TestACodecMayReturnNilWithItsError: it is the usual thing in Go.
func TestACodecMayReturnNilWithItsError(t *testing.T) {
	e := newToyEnv(t, "toy.bare", "")
	e.say("req 1 m a", "req 2 m bad", "req 3 m b", "req 4 m c")
	s := e.server(0)
	got := ids(s)
	require.Len(t, got, 3)
	e.answer(s, "res "+got[0]+" m one", "res "+got[1]+" m bad", "hb 7 - bad", "res "+got[2]+" m three")
	e.say("hb 5 - bad", "hb 6 - good")
	require.Equal(t, []string{
		"err 2 - cannot be encoded",
		"res 1 m a=2;one", "err 3 - response cannot be encoded: cannot be encoded", "res 4 m a=2;three",
		"hb 6 - here",
	}, lines(e.c.Take()))
	require.EqualValues(t, 1, e.count("local_response_error"), "the heartbeat that could not be answered")
	require.Contains(t, strings.Join(e.Log(), "\n"), "its heartbeat cannot be answered: cannot be encoded")
}

func heapInUse() int {
	runtime.GC()
	var ms runtime.MemStats
	runtime.ReadMemStats(&ms)
	return int(ms.HeapAlloc)
}

// TestAnswersThatWaitForTheirTurn: so much of them is kept, as it is; the others
// are replaced by errors.
func TestAnswersThatWaitForTheirTurn(t *testing.T) {
	const n, size, limit = 100, 100_000, 1 << 20
	e := newToyEnv(t, "toy.byid", fmt.Sprintf(`, "limits": {"max_write_buffer_bytes": %d}`, limit))
	ask := func(n int) (*filtertest.Server, []string) {
		e.c.Send([]byte(strings.Repeat("req 7 m -\n", n))) // always the same id
		s := e.server(0)
		return s, ids(s)
	}
	s, got := ask(n)
	before := heapInUse()
	text := strings.Repeat("x", size)
	for _, id := range got[1:] {
		e.answer(s, "res "+id+" m "+text)
	}
	require.Less(t, heapInUse()-before, 2*limit)
	require.Empty(t, e.got())
	require.False(t, e.c.Closed())
	e.answer(s, "res "+got[0]+" m first")
	all := lines(e.c.Take())
	require.Len(t, all, n)
	require.Equal(t, "res 7 m a=2;first", all[0])
	const kept = limit / size
	for i, l := range all[1:] {
		if i < kept {
			require.Len(t, l, len("res 7 m a=2;")+size)
		} else {
			require.Equal(t, "err 7 - too many bytes of answers wait for the one before", l)
		}
	}
	e.counts(map[string]int64{"downstream_overflow": n - 1 - kept, "request_active": 0})

	s, got = ask(2)
	e.answer(s, "res "+got[1]+" m "+strings.Repeat("y", 2*limit))
	e.answer(s, "res "+got[0]+" m first")
	require.Len(t, e.got(), len("res 7 m a=2;first\nres 7 m a=2;\n")+2*limit, "one always fits")

	// What is small costs little.
	s, got = ask(4000)
	before = heapInUse()
	for _, id := range got[1:] {
		e.answer(s, "res "+id+" m -")
	}
	require.Less(t, (heapInUse()-before)/4000, 256)
	e.answer(s, "res "+got[0]+" m first")
	require.Len(t, lines(e.c.Take()), 4000)
}

// TestAClientThatReadsIsServed: what it has read does not count.
func TestAClientThatReadsIsServed(t *testing.T) {
	e := newToyEnv(t, "toy.byid", `, "limits": {"max_write_buffer_bytes": 100000}`)
	text := strings.Repeat("x", 80_000)
	e.c.Block(true)
	e.sayMany(20)
	s := e.server(0)
	got := ids(s)
	for i, id := range got {
		e.answer(s, "res "+id+" m "+text)
		require.False(t, e.c.Closed(), "answer %d", i)
		if i > 0 { // it reads as much as waits in its host, which is less than has come
			e.c.Block(false)
			e.c.Block(true)
		}
	}
	e.c.Block(false)
	e.Advance(time.Second)
	require.Len(t, lines(e.c.Take()), 20)
	e.counts(map[string]int64{"downstream_overflow": 0})

	// A large answer fits, whatever the limit is.
	e.c.Block(true)
	e.sayMany(3)
	got = ids(s)
	big := strings.Repeat("x", 300_000)
	e.answer(s, "res "+got[0]+" m "+big)
	e.answer(s, "res "+got[1]+" m "+big)
	require.False(t, e.c.Closed())
	e.answer(s, "res "+got[2]+" m -")
	require.False(t, e.c.Closed(), "the first must be read before anything tells")
	e.Advance(6 * time.Second)
	require.True(t, e.c.Closed(), "it reads nothing")
	e.counts(map[string]int64{"downstream_overflow": 1, "request_active": 0})
}

// TestAnswersWaitBehindThoseThatWait until the client reads, and the connection is
// closed behind the last of them.
func TestAnswersWaitBehindThoseThatWait(t *testing.T) {
	for _, reads := range []bool{true, false} {
		t.Run(fmt.Sprintf("reads=%v", reads), func(t *testing.T) {
			e := newToyEnv(t, "toy.byid", `, "idle_timeout": "1s"`)
			e.c.Block(true)
			e.sayMany(50)
			s := e.server(0)
			for i, id := range ids(s) {
				e.answer(s, fmt.Sprintf("res %s m %d%s", id, i, strings.Repeat("x", 99_000)))
			}
			e.Advance(28 * time.Second) // so it is to be closed when it has read them
			require.False(t, e.c.Closed())
			if !reads {
				e.Advance(4 * time.Second)
				require.True(t, e.c.Closed())
				e.counts(map[string]int64{"idle_timeout": 1, "downstream_overflow": 0})
				return
			}
			for range 20 {
				e.c.Block(false)
				e.Advance(10 * time.Millisecond)
			}
			require.True(t, e.c.Closed())
			all := lines(e.c.Take())
			require.Len(t, all, 50)
			for i, l := range all {
				require.True(t, strings.HasPrefix(l, fmt.Sprintf("res %d m a=2;%dx", i, i)), l[:20])
			}
		})
	}
}

// TestTheClientsOfAWorkerLeaveSoMuchUnread: max_unread_bytes. Those that take
// least are closed.
func TestTheClientsOfAWorkerLeaveSoMuchUnread(t *testing.T) {
	e := newToyEnv(t, "toy.byid", `, "limits": {"max_unread_bytes": 1000000}`)
	text := strings.Repeat("x", 100_000)
	var lazy []*filtertest.Client
	ask := func(c *filtertest.Client, n int) {
		c.Send([]byte(strings.Repeat("req 1 m -\n", n)))
		s := e.server(0)
		for _, id := range ids(s) {
			e.answer(s, "res "+id+" m "+text)
		}
	}
	for range 50 {
		c := e.Dial(e.cfg)
		c.Block(true)
		ask(c, 3) // the first goes to the host
		lazy = append(lazy, c)
		e.Advance(10 * time.Millisecond)
	}
	require.Equal(t, 4, open(lazy))
	require.Equal(t, 4, open(lazy[46:]), "those that have taken nothing for longest are closed first")
	e.counts(map[string]int64{"downstream_overflow": 46, "request_active": 0})
	e.Advance(time.Second)

	// One that reads has little to fear, though more waits for it.
	e.c.Block(true)
	ask(e.c, 10)
	require.False(t, e.c.Closed())
	require.Zero(t, open(lazy))
	e.c.Block(false)
	e.Advance(time.Second)
	require.Len(t, lines(e.c.Take()), 10)

	// What waits for its turn counts too.
	e.c.Send([]byte(strings.Repeat("req 7 m -\n", 20)))
	s := e.server(0)
	for _, id := range ids(s)[1:] {
		e.answer(s, "res "+id+" m "+text)
	}
	require.True(t, e.c.Closed())
	e.counts(map[string]int64{"downstream_overflow": 51, "request_active": 0})
}

// TestAResumerResumesOnePause, that of the hook in which it was taken.
func TestAResumerResumesOnePause(t *testing.T) {
	for name, pauses := range map[string]bool{"used twice": true, "of a hook that did not pause": false} {
		t.Run(name, func(t *testing.T) {
			var first filter.Resumer
			current = &testFilter{onRequest: func(m *filter.Message) filter.Verdict {
				first = m.Resumer()
				if pauses {
					return filter.Pause
				}
				return filter.Continue
			}}
			var second filter.Resumer
			next = &testFilter{onRequest: func(m *filter.Message) filter.Verdict {
				second = m.Resumer()
				return filter.Pause
			}}
			e := newToyEnv(t, "toy.byid", `, "meta_protocol_filters": [{"name": "test"}, {"name": "next"}, {"name": "aeraki.meta_protocol.filters.router"}]`)
			e.say("req 1 m -")
			for range 3 {
				first.Continue()
				first.Do(func(*filter.Message) filter.Verdict { return filter.Continue })
				e.Settle()
			}
			require.Empty(t, e.up.Servers(), "the second filter has not decided yet")
			second.Do(func(m *filter.Message) filter.Verdict { // a pause of its own
				second = m.Resumer()
				return filter.Pause
			})
			first.Continue()
			e.Settle()
			require.Empty(t, e.up.Servers())
			second.Continue()
			e.Settle()
			require.Len(t, e.up.Servers(), 1)
		})
	}
}
