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
	e.say("req 5 mnew -")
	e.Advance(1100 * time.Millisecond)
	require.Equal(t, "err 5 - upstream request timeout\n", e.got(), "its client may be waiting")
}

func TestAOnewayInDisguiseIsDeliveredThoughItsClientHasGone(t *testing.T) {
	e := newToyEnv(t, "toy.hidden", "")
	e.up.Hang = true
	e.say("req 1 m fire")
	e.c.Close()
	e.up.Admit()
	e.Settle()
	require.Contains(t, string(e.server(0).Take()), "fire")

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
}
