package filter_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
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

func TestAKnownOnewayInDisguiseKeepsNothing(t *testing.T) {
	e := newToyEnv(t, "toy.hidden", `, "request_timeout": "1s"`)
	e.say("req 1 mfire -", "req 2 mask -")
	s := e.server(1)
	e.answer(s, "res "+ids(s)[0]+" mask yes")
	require.Equal(t, "res 2 mask a=2;yes\n", e.got())
	e.Advance(1100 * time.Millisecond)
	e.counts(map[string]int64{"oneway_presumed": 1})

	for range 100 { // each goes on behind the one before
		e.say("req 3 mfire -", "req 4 mask -")
		ids := ids(s)
		require.Len(t, ids, 2, "one connection serves them all")
		e.answer(s, "res "+ids[1]+" mask yes")
		require.Equal(t, "res 4 mask a=2;yes\n", e.got())
	}
	e.counts(map[string]int64{"oneway_presumed": 101})
	e.say("req 5 mfire -")
	id := ids(s)[0]
	e.c.CloseWrite()
	require.True(t, e.c.Closed(), "there is nothing to wait for")

	// It has an answer after all.
	e.c = e.Dial(e.cfg)
	e.answer(s, "res "+id+" mfire done")
	e.counts(map[string]int64{"oneway_presumed": 102, "upstream_stray_response": 1})
	e.say("req 6 mfire -", "req 7 mask -")
	e.answer(s, "res "+ids(s)[0]+" mfire done")
	require.Equal(t, "res 6 mfire a=2;done\n", e.got())
}

func TestALeavingClientTellsThatItDoesNotWait(t *testing.T) {
	e := newToyEnv(t, "toy.hidden", `, "request_timeout": "1s"`)
	e.say("req 1 mfire -")
	e.c.CloseWrite()
	require.False(t, e.c.Closed(), "it may want the answer")
	e.Advance(1100 * time.Millisecond)
	require.True(t, e.c.Closed())
	require.Empty(t, e.got())
	e.c = e.Dial(e.cfg)
	e.say("req 1 mfire -")
	e.c.CloseWrite()
	require.True(t, e.c.Closed())
	e.counts(map[string]int64{"request": 2})
	e.c = e.Dial(e.cfg)
	e.counts(map[string]int64{"oneway_presumed": 2, "request_timeout": 0})
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
