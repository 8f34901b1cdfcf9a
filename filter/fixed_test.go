package filter_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestARequestThatKeepsItsIDHasAConnectionToItself(t *testing.T) {
	e := newToyEnv(t, "toy.byid", `, "request_timeout": "1s"`)
	other := e.Dial(e.cfg)
	e.say("req 7 mfixed a", "req 1 m -")
	other.Send([]byte("req 7 mfixed b\n"))
	a, shared, b := e.server(0), e.server(1), e.server(2)
	require.Equal(t, "req 7 mfixed q=1;a\n", string(a.Take()))
	require.Equal(t, "req 7 mfixed q=1;b\n", string(b.Take()))
	e.answer(shared, "res "+ids(shared)[0]+" m x")
	require.Equal(t, "res 1 m a=2;x\n", e.got(), "it shares no connection with others")
	e.answer(b, "res 99 mfixed of-b") // whatever id it has
	require.Equal(t, "res 7 mfixed a=2;of-b\n", string(other.Take()))
	e.answer(a, "res 7 mfixed of-a")
	require.Equal(t, "res 7 mfixed a=2;of-a\n", e.got())

	e.say("req 8 mfixed -")
	require.Len(t, e.up.Servers(), 3, "free ones are used again")
	e.Advance(1100 * time.Millisecond)
	require.Equal(t, "err 8 - upstream request timeout\n", e.got())
	e.say("req 9 mfixed -")
	open := 0
	for _, s := range e.up.Servers() {
		if s.Open() {
			open++
		}
	}
	require.Equal(t, 2, open, "the one that owes an answer is closed")
}
