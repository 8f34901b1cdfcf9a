package filter_test

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

// Serializations of Dubbo that the codec does not read.
const (
	protobuf  = 22
	fastjson2 = 23
)

// unread is the body of a request that the codec must not look into: as Hessian 2
// it would be a call of another method.
const unread = "\x052.0.2\x13org.example.Greeter\x00\x08sayHello\x00H\x06tenant\x04acmeZ"

func serialized(serialization byte, id uint64, body string) []byte {
	return dubbotest.Frame(0xc0|serialization, 0, id, []byte(body))
}

// withID is a frame with another id.
func withID(frame []byte, id uint64) []byte {
	b := append([]byte(nil), frame...)
	binary.BigEndian.PutUint64(b[4:], id)
	return b
}

func TestARequestInAnotherSerializationIsCarriedThrough(t *testing.T) {
	h := filtertest.New(t)
	e := &env{Host: h, t: t, v1: h.Cluster("v1", "h1"), v2: h.Cluster("v2", "h2")}
	all := h.Cluster("all", "h3")
	mutated := `, "request_mutation": [{"key": "zone", "value": "a"}], "response_mutation": [{"key": "by", "value": "meltemi"}]`
	e.cfg = h.MustLoad(listener(`{"routes": [
		{"match": {"metadata": [{"name": "method", "string_match": {"prefix": "say"}}]}, "route": {"cluster": "v1"}`+mutated+`},
		{"match": {"metadata": [{"name": "tenant", "string_match": {"exact": "acme"}}]}, "route": {"cluster": "v1"}},
		{"match": {"metadata": [{"name": "serialization", "string_match": {"exact": "22"}}]}, "route": {"cluster": "v2"}},
		{"route": {"cluster": "all"}`+mutated+`}]}`, ""))
	e.c = h.Dial(e.cfg)
	for i, tc := range []struct {
		serialization byte
		up            *filtertest.Cluster
		skipped       int64 // mutations, by then
	}{{fastjson2, all, 2}, {protobuf, e.v2, 2}, {fastjson2, all, 4}} {
		id := uint64(7 + i)
		sent := serialized(tc.serialization, id, unread)
		e.c.Send(sent)
		require.Len(t, tc.up.Servers(), 1)
		s := tc.up.Servers()[0]
		got := s.Take()
		upstreamID := parse(got)[0].ID
		require.Equal(t, withID(sent, upstreamID), got, "nothing but its id has changed")
		answer := dubbotest.Frame(tc.serialization, 20, upstreamID, []byte("\x92\x00whatever"))
		s.Send(answer)
		h.Settle()
		require.Equal(t, withID(answer, id), e.c.Take())
		require.Equal(t, tc.skipped, e.count("mutation_skipped"))
	}
	require.Empty(t, e.v1.Servers())
	require.EqualValues(t, 3, e.count("response_success"))

	e.c.Send(dubbotest.Frame(0x80|fastjson2, 0, 7, []byte(unread))) // oneway
	require.Len(t, parse(all.Servers()[0].Take()), 1)
	require.EqualValues(t, 5, e.count("mutation_skipped"))
	e.c.Send(dubbotest.Request{ID: 7}.Bytes())
	require.Len(t, e.v1.Servers(), 1, "others are routed as ever, on the same connection")
	require.EqualValues(t, 0, e.count("request_decoding_error"))
}

// TestARequestInAnotherSerializationThatNoRouteMatches gets an answer that its
// client understands: errors are in Hessian 2 from Dubbo's own servers, too.
func TestARequestInAnotherSerializationThatNoRouteMatches(t *testing.T) {
	e := newEnv(t, "")
	e.c.Send(serialized(fastjson2, 9, unread))
	f := one(t, e.c)
	require.EqualValues(t, 9, f.ID)
	require.EqualValues(t, 0x02, f.Flags)
	require.EqualValues(t, 60, f.Status)
	require.Equal(t, "no route matches the request", f.Text())
	e.c.Send(req(10))
	require.EqualValues(t, 20, one(t, e.c).Status)
}

// TestATimeoutIsToldWithoutTheEntries that a request cannot carry.
func TestATimeoutIsToldWithoutTheEntries(t *testing.T) {
	key := ""
	current = &testFilter{onRequest: func(m *filter.Message) filter.Verdict {
		if key != "" {
			m.MutateRequest().Set(key, "x")
		}
		return filter.Continue
	}}
	h := filtertest.New(t)
	e := &env{Host: h, t: t, v1: h.Cluster("v1", "h1")}
	e.cfg = h.MustLoad(listener(`{"routes": [{"route": {"cluster": "v1", "timeout": "1.234s"}}]}`,
		`, "meta_protocol_filters": [{"name": "test"}, {"name": "aeraki.meta_protocol.filters.router"}]`))
	e.c = h.Dial(e.cfg)
	e.v1.Serve = nil
	for skipped, k := range []string{"", "method"} {
		key = k
		e.c.Send(req(1))
		f := parse(e.v1.Servers()[0].Take())
		require.Len(t, f, 1)
		require.Contains(t, string(f[0].Body), "\x07timeout\x041234")
		require.NotContains(t, string(f[0].Body), "\x06method")
		require.EqualValues(t, skipped, e.count("mutation_skipped"))
	}
}

// TestWhatASideMayNotSendIsCountedAndDropped: callbacks, which are requests by a
// server, and answers by a client. Whatever their ids, the connections go on.
func TestWhatASideMayNotSendIsCountedAndDropped(t *testing.T) {
	e := newEnv(t, "")
	e.v1.Serve = nil
	e.c.Send(req(1))
	s := e.v1.Servers()[0]
	id := parse(s.Take())[0].ID
	for i, flags := range []byte{0xc2, 0x82, 0xc0 | fastjson2} {
		s.Send(dubbotest.Frame(flags, 0, id, []byte(unread)))
		e.Settle()
		require.EqualValues(t, i+1, e.count("upstream_unserved"), "%x", flags)
	}
	require.Empty(t, e.c.Take())
	require.Empty(t, s.Take())
	e.c.Send(dubbotest.Response(id, "x"), dubbotest.ErrorResponse(id, 80, "x"))
	require.Empty(t, s.Take())
	require.EqualValues(t, 2, e.count("request_unserved"))
	s.Send(dubbotest.Response(id, "answer"))
	e.Settle()
	require.Equal(t, "answer", one(t, e.c).Text())
	require.True(t, s.Open())
	require.False(t, e.c.Closed())
	require.EqualValues(t, 1, e.count("request"))
	require.EqualValues(t, 0, e.count("upstream_stray_response"))
}
