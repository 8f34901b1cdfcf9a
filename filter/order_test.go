package filter_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

// texts are what the lines of a server's bytes end with.
func texts(b []byte) (texts []string) {
	for _, l := range lines(b) {
		texts = append(texts, l[strings.LastIndexAny(l, " ;")+1:])
	}
	return texts
}

// TestAClientsRequestsReachOneServerInTheirOrder where answers have no ids, however
// many connections there are. (memcached: set … noreply, get.)
func TestAClientsRequestsReachOneServerInTheirOrder(t *testing.T) {
	for _, mode := range []string{"SHARED", "EXCLUSIVE"} {
		t.Run(mode, func(t *testing.T) {
			e := newToyEnv(t, "toy.inorder", "")
			e.cfg = e.MustLoad(toyConfig(`"connection_mode": "`+mode+`", "codec": {"name": "toy.inorder"}`,
				`, "upstream": {"target_in_flight": 2, "max_connections": 4, "max_connection_age": "1s"}`))
			e.up.SetHosts("h1", "h2", "h3")
			var served map[string][]string // by client, in the order of service
			hold := false
			serve := func(s *filtertest.Server, b []byte) int {
				if hold {
					return 0
				}
				for _, l := range lines(b) {
					client, _, _ := strings.Cut(l[strings.LastIndexAny(l, " ;")+1:], ":")
					served[client] = append(served[client], l[strings.Index(l, ":")+1:])
					if strings.HasPrefix(l, "req") {
						s.Send([]byte("res 0 - ok\n"))
					}
				}
				return len(b)
			}
			e.up.Serve = serve
			var clients []*filtertest.Client
			for range 8 {
				clients = append(clients, e.Dial(e.cfg))
			}
			for round := range 60 {
				served = map[string][]string{}
				for i, c := range clients {
					var b strings.Builder
					for j := range 6 {
						fmt.Fprintf(&b, "%s %d m c%d:%d\n", []string{"one", "req"}[(j+round)%2], j, i, j)
					}
					hold = true
					c.Send([]byte(b.String()))
				}
				hold = false
				e.Advance(70 * time.Millisecond) // connections come of age all the time
				for range 10 {                   // what was held
					for _, s := range e.up.Servers() {
						serve(s, s.Take())
					}
					e.Settle()
				}
				for i := range clients {
					require.Equal(t, []string{"0", "1", "2", "3", "4", "5"}, served[fmt.Sprintf("c%d", i)], "round %d, client %d", round, i)
				}
			}
			for _, c := range clients {
				require.Len(t, lines(c.Take()), 60*3)
			}
			e.counts(map[string]int64{"request_active": 0, "local_response_business_exception": 0})
		})
	}
}

// TestAPipelineOverExclusiveConnections goes one after the other, and on the same
// connection; clients do not wait for each other.
func TestAPipelineOverExclusiveConnections(t *testing.T) {
	e := newToyEnv(t, "toy.inorder", "")
	e.cfg = e.MustLoad(toyConfig(`"connection_mode": "EXCLUSIVE", "codec": {"name": "toy.inorder"}`, ""))
	a, b := e.Dial(e.cfg), e.Dial(e.cfg)
	say(a, "req 1 m a1", "one 2 m a2", "one 3 m a3", "req 4 m a4", "req 5 m a5")
	say(b, "req 1 m b1", "req 2 m b2")
	require.Len(t, e.up.Servers(), 2)
	at, bt := e.server(0), e.server(1)
	require.Equal(t, []string{"a1"}, texts(at.Take()))
	require.Equal(t, []string{"b1"}, texts(bt.Take()))
	e.answer(at, "res 0 - A1")
	require.Equal(t, []string{"a2", "a3", "a4"}, texts(at.Take()), "nothing is awaited of oneways")
	e.answer(bt, "res 0 - B1")
	require.Equal(t, []string{"b2"}, texts(bt.Take()))
	e.answer(at, "res 0 - A4")
	require.Equal(t, []string{"a5"}, texts(at.Take()))
	e.answer(at, "res 0 - A5")
	require.Equal(t, []string{"A1", "A4", "A5"}, texts(a.Take()))
	require.Equal(t, []string{"B1"}, texts(b.Take()))

	say(a, "one 6 m a6")
	c := e.Dial(e.cfg)
	say(c, "req 1 m c1") // takes the place behind it
	require.Equal(t, []string{"a6", "c1"}, texts(at.Take()))
	say(a, "req 7 m a7")
	require.Empty(t, at.Take(), "a connection has one request at a time")
	require.Len(t, e.up.Servers(), 2, "and the oneway may not have been read")
	e.answer(at, "res 0 - C1")
	require.Equal(t, []string{"a7"}, texts(at.Take()))
}

// TestWhatDrainsKeepsTheOrder: as long as answers are owed there the next request
// waits; behind a oneway it follows it there.
func TestWhatDrainsKeepsTheOrder(t *testing.T) {
	e := newToyEnv(t, "toy.inorder", `, "upstream": {"max_connections": 2}`)
	other := e.Dial(e.cfg)
	e.say("req 1 m 1")
	s := e.server(0)
	e.answer(s, "away 0 - bye") // drains
	e.say("one 2 m 2", "req 3 m 3")
	say(other, "req 1 m other")
	require.Equal(t, []string{"1"}, texts(s.Take()))
	next := e.serverWith("other")
	require.Empty(t, next.Take())
	e.answer(s, "res 0 - ok")
	require.Equal(t, []string{"2", "3"}, texts(next.Take()))
	require.False(t, s.Open())

	e.answer(next, "res 0 - ok", "res 0 - ok")
	e.say("one 4 m 4")
	e.answer(next, "away 0 - bye")
	e.say("req 5 m 5", "req 6 m 6")
	require.Equal(t, []string{"4", "5"}, texts(next.Take()), "the oneway may not have been read")
	say(other, "req 2 m other")
	e.Advance(25 * time.Millisecond) // behind a host that says again that it leaves
	last := e.serverWith("other")
	e.answer(next, "res 0 - ok")
	require.Equal(t, []string{"6"}, texts(last.Take()))
}

// TestALineEndsWithItsConnection: what is owed fails, what waits goes on elsewhere.
func TestALineEndsWithItsConnection(t *testing.T) {
	for _, mode := range []string{"SHARED", "EXCLUSIVE"} {
		t.Run(mode, func(t *testing.T) {
			e := newToyEnv(t, "toy.inorder", "")
			e.cfg = e.MustLoad(toyConfig(`"connection_mode": "`+mode+`", "codec": {"name": "toy.inorder"}`, ""))
			c := e.Dial(e.cfg)
			say(c, "req 1 m 1")
			s := e.server(0)
			e.answer(s, "away 0 - bye")
			say(c, "req 2 m 2", "req 3 m 3")
			s.Reset()
			e.Settle()
			require.Contains(t, string(c.Take()), "err 1 - upstream connection ended before the answer: reset\n")
			e.up.Serve = serveToys
			e.Advance(time.Second)
			for _, s := range e.up.Servers() {
				serveToys(s, s.Take())
			}
			e.Settle()
			require.Equal(t, "res 2 m a=2;ok\nres 3 m a=2;ok\n", string(c.Take()))
		})
	}
}

// TestALineWhoseClientLeaves: what waits is abandoned, but for oneways, and nobody
// else notices.
func TestALineWhoseClientLeaves(t *testing.T) {
	e := newToyEnv(t, "toy.inorder", "")
	e.cfg = e.MustLoad(toyConfig(`"connection_mode": "EXCLUSIVE", "codec": {"name": "toy.inorder"}`, ""))
	c := e.Dial(e.cfg)
	say(c, "req 1 m 1", "req 2 m 2", "one 3 m 3", "req 4 m 4", "one 5 m 5")
	s := e.server(0)
	require.Equal(t, []string{"1"}, texts(s.Take()))
	c.Close()
	require.False(t, s.Open(), "the answer would be taken for another's")
	e.Advance(100 * time.Millisecond)
	require.Equal(t, []string{"3", "5"}, texts(e.server(0).Take()))
	other := e.Dial(e.cfg)
	say(other, "req 1 m x")
	e.answer(e.serverWith("x"), "res 0 - X")
	require.Equal(t, "res 1 - a=2;X\n", string(other.Take()))
}

// TestALongPipelineStopsItsClientOnly.
func TestALongPipelineStopsItsClientOnly(t *testing.T) {
	e := newToyEnv(t, "toy.inorder", "")
	e.cfg = e.MustLoad(toyConfig(`"connection_mode": "EXCLUSIVE", "codec": {"name": "toy.inorder"}`, ""))
	a, b := e.Dial(e.cfg), e.Dial(e.cfg)
	a.Send([]byte(strings.Repeat("req 1 m -\n", 5000)))
	require.True(t, a.ReadDisabled())
	say(b, "req 1 m b")
	require.False(t, b.ReadDisabled())
	e.answer(e.serverWith("b"), "res 0 - B")
	require.Equal(t, "res 1 - a=2;B\n", string(b.Take()))
	e.up.Serve = serveToys
	for _, s := range e.up.Servers() {
		s.Send([]byte("res 0 m ok\n"))
	}
	e.Settle()
	require.Len(t, lines(a.Take()), 5000)
	require.False(t, a.ReadDisabled())
	e.counts(map[string]int64{"request_active": 0})
}
