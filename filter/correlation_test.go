package filter_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

// lines are what has come, one after the other.
func lines(b []byte) []string {
	if len(b) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

// say is toyEnv's say of another client.
func say(c *filtertest.Client, lines ...string) { c.Send([]byte(strings.Join(lines, "\n") + "\n")) }

func TestAnswersInOrderFindTheirRequests(t *testing.T) {
	e := newToyEnv(t, "toy.inorder", "")
	other := e.Dial(e.cfg)
	e.say("req 1 m a", "req 2 m b")
	say(other, "req 1 m c")
	e.say("one 7 m d", "req 1 m e")
	say(other, "req 5 m f")
	require.Len(t, e.up.Servers(), 1, "all of them share it")
	s := e.server(0)
	require.Equal(t, []string{
		"req 1 m q=1;a", "req 2 m q=1;b", "req 1 m q=1;c", "one 7 m q=1;d", "req 1 m q=1;e", "req 5 m q=1;f",
	}, lines(s.Take()), "with the ids of their clients")
	for _, b := range []byte("res 0 - A\nerr 0 - B\nres 99 - C\nres 2 - E\nres 1 - F\n") {
		s.Send([]byte{b})
	}
	e.Settle()
	require.Equal(t, []string{"res 1 - a=2;A", "err 2 - a=2;B", "res 1 - a=2;E"}, lines(e.c.Take()))
	require.Equal(t, []string{"res 1 - a=2;C", "res 5 - a=2;F"}, lines(other.Take()))
	require.True(t, s.Open())
	e.counts(map[string]int64{"request": 6, "response": 5, "request_active": 0, "upstream_stray_response": 0})
}

// TestAClientGetsItsAnswersInItsOrder where ids tell nothing, whichever server is
// first.
func TestAClientGetsItsAnswersInItsOrder(t *testing.T) {
	for _, codec := range []string{"toy.inorder", "toy.exclusive"} {
		t.Run(codec, func(t *testing.T) {
			e := newToyEnv(t, codec, "")
			other := e.Cluster("none", "h2") // where "nowhere" leads
			e.say("req 1 m first", "req 2 nowhere second", "req 3 unroutable third")
			e.answer(other.Servers()[0], "res 0 - 2")
			require.Empty(t, e.got())
			e.answer(e.server(0), "res 0 - 1")
			require.Equal(t, []string{"res 1 - a=2;1", "res 2 - 2", "err 3 - no route matches unroutable"}, lines(e.c.Take()))
		})
	}
}

// TestAClientThatLeavesCostsItsNeighboursNothing: those behind its requests get
// their own answers, and the connection serves on.
func TestAClientThatLeavesCostsItsNeighboursNothing(t *testing.T) {
	e := newToyEnv(t, "toy.inorder", "")
	gone, behind := e.Dial(e.cfg), e.Dial(e.cfg)
	say(gone, "req 1 m gone", "req 2 m gone")
	e.say("req 1 m a")
	say(behind, "req 1 m b")
	s := e.server(0)
	gone.Close()
	e.say("req 2 m c")
	require.Len(t, lines(s.Take()), 5)
	e.answer(s, "res 0 - gone", "res 0 - gone", "res 0 - A", "res 0 - B", "res 0 - C")
	require.Equal(t, []string{"res 1 - a=2;A", "res 2 - a=2;C"}, lines(e.c.Take()))
	require.Equal(t, "res 1 - a=2;B\n", string(behind.Take()))
	require.Empty(t, gone.Take())

	last := e.Dial(e.cfg) // one that is alone on it
	say(last, "req 1 m last")
	last.Close()
	e.say("req 3 m d")
	require.Len(t, lines(s.Take()), 2)
	e.answer(s, "res 0 - last", "res 0 - D")
	require.Equal(t, "res 3 - a=2;D\n", e.got())
	require.Len(t, e.up.Servers(), 1)
	e.counts(map[string]int64{"request_active": 0, "request_abandoned": 3, "upstream_stray_response": 0})
}

// TestARequestWhoseDeadlinePassesKeepsItsPlace: those behind it get their own
// answers, and the connection gets no more requests. Its client may have left.
func TestARequestWhoseDeadlinePassesKeepsItsPlace(t *testing.T) {
	for name, give := range map[string]func(gone *filtertest.Client){
		"its client stays":  func(*filtertest.Client) {},
		"its client leaves": func(gone *filtertest.Client) { gone.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			e := newToyEnv(t, "toy.inorder", `, "request_timeout": "1s"`)
			hangs, behind := e.Dial(e.cfg), e.Dial(e.cfg)
			say(hangs, "req 1 m gone")
			e.Advance(500 * time.Millisecond)
			e.say("req 1 m a")
			say(behind, "req 1 m b", "req 2 m c")
			s := e.server(0)
			require.Len(t, lines(s.Take()), 4)
			give(hangs)
			e.Advance(600 * time.Millisecond)
			say(hangs, "req 2 m later")
			e.say("req 2 m behind")
			if name == "its client stays" {
				require.Equal(t, "err 1 - upstream request timeout\n", string(hangs.Take()))
				later := e.serverWith("later") // for its client that request is over
				require.NotSame(t, s, later)
				e.answer(later, "res 0 - L")
				require.Equal(t, "res 2 - a=2;L\n", string(hangs.Take()))
			}
			e.answer(s, "res 0 - gone", "res 0 - A", "res 0 - B")
			require.Equal(t, "res 1 - a=2;A\n", e.got())
			require.Equal(t, "res 1 - a=2;B\n", string(behind.Take()))
			require.Empty(t, hangs.Take())
			require.True(t, s.Open(), "it owes one more")
			e.answer(e.serverWith("behind"), "res 0 - D")
			require.Equal(t, "res 2 - a=2;D\n", e.got())
			e.answer(s, "res 0 - C")
			require.Equal(t, "res 2 - a=2;C\n", string(behind.Take()))
			require.False(t, s.Open())
			e.counts(map[string]int64{"request_active": 0, "upstream_stray_response": 0})
		})
	}
}

// TestAnswersThatNobodyWaitsForKeepTheirConnectionForAWhile: their requests may
// not have been read.
func TestAnswersThatNobodyWaitsForKeepTheirConnectionForAWhile(t *testing.T) {
	e := newToyEnv(t, "toy.inorder", `, "request_timeout": "1s", "upstream": {"idle_timeout": "3s"}`)
	gone := e.Dial(e.cfg)
	e.say("req 1 m a", "req 2 m b")
	say(gone, "req 1 m c")
	s := e.server(0)
	gone.Close()
	e.answer(s, "res 0 - A")
	e.Advance(1100 * time.Millisecond)
	require.Equal(t, []string{"res 1 - a=2;A", "err 2 - upstream request timeout"}, lines(e.c.Take()))
	e.Advance(1800 * time.Millisecond)
	require.True(t, s.Open())
	e.Advance(300 * time.Millisecond)
	require.False(t, s.Open(), "they never come")
	e.counts(map[string]int64{"request_active": 0})
}

// TestAnAnswerThatNobodyAskedForEndsAConnectionWithoutIDs: whose the next one is
// cannot be told.
func TestAnAnswerThatNobodyAskedForEndsAConnectionWithoutIDs(t *testing.T) {
	for _, codec := range []string{"toy.inorder", "toy.exclusive"} {
		t.Run(codec, func(t *testing.T) {
			e := newToyEnv(t, codec, "")
			e.say("req 1 m a")
			s := e.server(0)
			e.answer(s, "res 0 - A", "res 0 - unasked", "res 0 - behind")
			require.Equal(t, "res 1 - a=2;A\n", e.got())
			require.False(t, s.Open())
			e.counts(map[string]int64{"upstream_stray_response": 1, "response": 1})
			e.say("req 2 m b")
			s = e.server(0)
			e.answer(s, "res 0 - B")
			require.Equal(t, "res 2 - a=2;B\n", e.got())
		})
	}
}

func TestAnExclusiveProtocolHasOneRequestAtATimeOnAConnection(t *testing.T) {
	e := newToyEnv(t, "toy.exclusive", "")
	clients := []*filtertest.Client{e.c, e.Dial(e.cfg), e.Dial(e.cfg)}
	for i, c := range clients {
		say(c, fmt.Sprintf("req 1 m %d", i))
	}
	say(clients[0], "req 2 m 3")
	require.Len(t, e.up.Servers(), 4)
	for i, s := range e.up.Servers() {
		require.Len(t, lines(s.Take()), 1)
		e.answer(s, fmt.Sprintf("res 77 - of-%d", i))
	}
	require.Equal(t, []string{"res 1 - a=2;of-0", "res 2 - a=2;of-3"}, lines(clients[0].Take()))
	require.Equal(t, "res 1 - a=2;of-1\n", string(clients[1].Take()))
	require.Equal(t, "res 1 - a=2;of-2\n", string(clients[2].Take()))

	for range 10 {
		e.say("req 3 m -")
		e.answer(e.serverWith("req 3"), "res 0 - x")
		require.Equal(t, "res 3 - a=2;x\n", e.got())
	}
	require.Len(t, e.up.Servers(), 4, "they are used again")

	say(clients[1], "req 4 m -")
	owes := e.serverWith("req 4")
	clients[1].Close()
	require.False(t, owes.Open(), "the answer would be taken for another's")
}

func TestAProtocolThatCannotShareConnections(t *testing.T) {
	h := filtertest.New(t)
	const one = `: codec toy.exclusive cannot share connections: its protocol has one request at a time on each`
	for config, want := range map[string]string{
		`"codec": {"name": "toy.exclusive"}, "connection_mode": "SHARED"`:                          `protocol.connection_mode` + one,
		`"codec": {"name": "toy.exclusive"}, "multiplexing": true`:                                 `protocol.multiplexing` + one,
		`"codec": {"name": "toy.exclusive"}, "multiplexing": true, "connection_mode": "SHARED"`:    `protocol.connection_mode` + one,
		`"codecs": [{"name": "toy.byid"}, {"name": "toy.exclusive"}], "multiplexing": true`:        `protocol.multiplexing` + one,
		`"codec": {"name": "toy.exclusive"}, "multiplexing": true, "connection_mode": "EXCLUSIVE"`: ``,
		`"codec": {"name": "toy.exclusive"}, "connection_mode": "EXCLUSIVE"`:                       ``,
		`"codec": {"name": "toy.exclusive"}`:                                                       ``,
		`"codec": {"name": "toy.inorder"}, "connection_mode": "SHARED"`:                            ``,
		`"codecs": [{"name": "toy.byid"}, {"name": "toy.exclusive"}]`:                              ``,
	} {
		_, err := h.Load(toyConfig(config, ""))
		if want == "" {
			require.NoError(t, err, config)
		} else {
			require.ErrorContains(t, err, want, config)
		}
	}
}
