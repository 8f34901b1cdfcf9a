package parley_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	_ "github.com/meltemi-mesh/meltemi/examples/custom-protocol/parley"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

const listener = `{
  "stat_prefix": "t", "protocol": {"name": "parley", "codec": {"name": "example.codec.parley"}},
  "request_timeout": "1s",
  "route_config": {"routes": [
    {"match": {"metadata": [{"name": "tenant", "string_match": {"exact": "acme"}}]}, "route": {"cluster": "v2"},
     "request_mutation": [{"key": "canary", "value": "true"}], "response_mutation": [{"key": "by", "value": "meltemi"}]},
    {"match": {"metadata": [{"name": "method", "string_match": {"prefix": "Greeter."}}]}, "route": {"cluster": "v1"}}]}}`

func TestCallsAreRoutedByTheirAttributes(t *testing.T) {
	h := filtertest.New(t)
	v1, v2 := h.Cluster("v1", "10.0.0.1:7701"), h.Cluster("v2", "10.0.0.2:7702")
	c := h.Dial(h.MustLoad(listener))

	c.Send([]byte("CALL id=7 len=5 method=Greeter.hello tenant=acme\nworld"))
	id, head := sent(t, v2)
	require.Equal(t, "len=5 method=Greeter.hello tenant=acme canary=true\nworld", head)
	v2.Servers()[0].Send([]byte("DONE id=" + id + " len=2 zone=south\nhi"))
	h.Settle()
	require.Equal(t, "DONE id=7 len=2 zone=south by=meltemi\nhi", string(c.Take()))

	c.Send([]byte("TELL id=8 len=0 method=Greeter.hello\n"))
	_, head = sent(t, v1)
	require.Equal(t, "len=0 method=Greeter.hello\n", head)
}

func TestWhatCannotBeServedIsAnswered(t *testing.T) {
	h := filtertest.New(t)
	h.Cluster("v1", "10.0.0.1:7701")
	c := h.Dial(h.MustLoad(listener))
	for request, want := range map[string]string{
		"CALL id=1 len=0 method=Bank.pay\n": "NOPE id=1 len=25 code=no-route\nno route matches Bank.pay",
		"CALL id=2 len=0\n":                 "NOPE id=2 len=28 code=bad-request\nmalformed request: no method",
		"PING id=3 len=0\n":                 "PONG id=3 len=0\n",
	} {
		c.Send([]byte(request))
		require.Equal(t, want, string(c.Take()))
	}
	c.Send([]byte("CALL id=4 len=0 method=Greeter.hello\n"))
	h.Advance(2 * time.Second)
	require.Equal(t, "NOPE id=4 len=24 code=timeout\nupstream request timeout", string(c.Take()))
	require.False(t, c.Closed())
	c.Send([]byte("GET / HTTP/1.1\r\n"))
	require.True(t, c.Closed())
}

// sent takes a request that a cluster has got apart: its id, which Meltemi
// chooses, and what is behind that.
func sent(t *testing.T, cluster *filtertest.Cluster) (id, rest string) {
	t.Helper()
	require.Len(t, cluster.Servers(), 1)
	_, rest, _ = strings.Cut(string(cluster.Servers()[0].Take()), " id=")
	id, rest, ok := strings.Cut(rest, " ")
	require.True(t, ok)
	return id, rest
}
