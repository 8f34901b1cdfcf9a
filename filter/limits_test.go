package filter_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

// TestAClientHasSoManyRequestsInFlight: max_requests_in_flight. What it sends
// beyond them is read when half of them have ended.
func TestAClientHasSoManyRequestsInFlight(t *testing.T) {
	e := newToyEnv(t, "toy.byid", `, "limits": {"max_requests_in_flight": 4}`)
	other := e.Dial(e.cfg)
	e.sayMany(10)
	s := e.server(0)
	waiting := ids(s)
	require.Len(t, waiting, 4)
	require.True(t, e.c.ReadDisabled())
	require.False(t, other.ReadDisabled())
	say(other, "req 1 m -")
	e.answer(s, "res "+ids(s)[0]+" m ok")
	require.Equal(t, "res 1 m a=2;ok\n", string(other.Take()), "it is no other client's limit")
	e.counts(map[string]int64{"request": 5, "request_active": 4})

	served := 0
	for _, want := range []int{0, 2, 0, 2, 0, 2, 0, 0, 0, 0} { // how many come after an answer
		e.answer(s, "res "+waiting[0]+" m ok")
		waiting = waiting[1:]
		served++
		if want > 0 {
			next := ids(s)
			require.Len(t, next, want, "after %d answers", served)
			waiting = append(waiting, next...)
		}
		require.Empty(t, s.Take())
		require.LessOrEqual(t, len(waiting), 4)
	}
	require.Len(t, lines(e.c.Take()), 10)
	require.False(t, e.c.ReadDisabled())
	e.counts(map[string]int64{"request": 11, "request_active": 0, "response_success": 11})
}

// TestSoMuchWaitsForAConnection: max_pending_requests and max_pending_bytes.
// Clients are no longer read, and requests of others are refused at twice as much.
func TestSoMuchWaitsForAConnection(t *testing.T) {
	const line = 100
	for _, tc := range []struct {
		limit   string
		waiting int // when clients are no longer read
		most    int // that wait at all
	}{
		{`"max_pending_requests": 6`, 6, 12},
		{`"max_pending_bytes": 600`, 6, 12},
		{`"max_pending_bytes": 601`, 7, 13},
		{`"max_pending_requests": 3, "max_pending_bytes": 600`, 3, 6},
	} {
		t.Run(tc.limit, func(t *testing.T) {
			e := newToyEnv(t, "toy.byid", `, "upstream": {`+tc.limit+`}`)
			request := func(id int) []byte {
				l := fmt.Sprintf("req %d m ", id)
				return []byte(l + strings.Repeat("x", line-len(l)-1) + "\n")
			}
			e.up.Hang = true
			for i := range 20 {
				e.c.Send(request(i))
				require.Equal(t, i+1 >= tc.waiting, e.c.ReadDisabled(), "after %d requests", i+1)
			}
			e.counts(map[string]int64{"request": int64(tc.waiting)})

			var others []*filtertest.Client
			for i := tc.waiting; i < tc.most+3; i++ {
				o := e.Dial(e.cfg)
				o.Send(request(i))
				if i < tc.most {
					require.Empty(t, o.Received())
				} else {
					require.Equal(t, fmt.Sprintf("err %d - too many requests wait for an upstream connection\n", i), string(o.Take()))
				}
				require.True(t, o.ReadDisabled())
				require.False(t, o.Closed())
				others = append(others, o)
			}
			e.counts(map[string]int64{"local_response_business_exception": 3, "request_active": int64(tc.most)})

			e.up.Hang, e.up.Serve = false, serveToys
			e.up.Admit()
			require.Len(t, lines(e.c.Take()), 20, "what was not read before is served")
			require.False(t, e.c.ReadDisabled())
			for i, o := range others {
				require.False(t, o.ReadDisabled())
				n := 1
				if i >= tc.most-tc.waiting {
					n = 0
				}
				require.Len(t, lines(o.Take()), n)
				o.Send(request(1))
				require.Len(t, lines(o.Take()), 1)
			}
			e.counts(map[string]int64{"request_active": 0, "local_response_business_exception": 3})
		})
	}
}

// TestSoManyExclusiveConnections: max_exclusive_connections. Further requests wait
// for one that is free, until their deadline.
func TestSoManyExclusiveConnections(t *testing.T) {
	e := newToyEnv(t, "toy.exclusive", `, "request_timeout": "1s", "upstream": {"max_exclusive_connections": 2}`)
	e.sayMany(5)
	require.Len(t, e.up.Servers(), 2)
	first, second := e.server(0), e.server(1)
	require.Equal(t, "req 0 m q=1;-\n", string(first.Take()))
	require.Equal(t, "req 1 m q=1;-\n", string(second.Take()))
	e.answer(second, "res 0 m B")
	require.Equal(t, "req 2 m q=1;-\n", string(second.Take()), "the next one takes its place")
	e.answer(first, "res 0 m A")
	require.Equal(t, "req 3 m q=1;-\n", string(first.Take()))
	require.Len(t, e.up.Servers(), 2)
	require.Equal(t, []string{"res 0 m a=2;A", "res 1 m a=2;B"}, lines(e.c.Take()))
	e.Advance(1100 * time.Millisecond)
	require.Equal(t, []string{
		"err 2 - upstream request timeout", "err 3 - upstream request timeout",
		"err 4 - timeout while waiting for an upstream connection",
	}, lines(e.c.Take()))
	e.counts(map[string]int64{"request_timeout": 3, "upstream_connect_fail": 0, "request_active": 0})
}

// TestStreamsAreBoundedAsExclusiveConnectionsAre: each has its own.
func TestStreamsAreBoundedAsExclusiveConnectionsAre(t *testing.T) {
	e := newToyEnv(t, "toy.byid", `, "request_timeout": "1s", "upstream": {"max_exclusive_connections": 2}`)
	e.say("init 1 m -", "init 2 m -", "init 3 m -", "req 4 m -")
	require.Len(t, e.up.Servers(), 3, "two streams, and the one for requests")
	e.answer(e.serverWith("init 1"), "init 1 - ok")
	require.Equal(t, "init 1 - a=2;ok\n", e.got())
	e.say("end 1 - bye")
	s := e.serverWith("init 3")
	require.Len(t, e.up.Servers(), 3)
	e.answer(s, "init 3 - ok")
	require.Equal(t, "init 3 - a=2;ok\n", e.got())
}

// TestSoLongIsAFrame: max_frame_bytes. A longer one costs itself, as soon as its
// length is known.
func TestSoLongIsAFrame(t *testing.T) {
	request := func(size int) []byte {
		b := dubbotest.Request{ID: 2}.Bytes()
		return dubbotest.Request{ID: 2, Argument: strings.Repeat("x", size-len(b)-1)}.Bytes()
	}
	const limit = 300
	require.Len(t, request(limit), limit)
	t.Run("of a client", func(t *testing.T) {
		e := newEnv(t, `, "limits": {"max_frame_bytes": 300}`)
		e.c.Send(request(limit))
		require.Equal(t, "h1", one(t, e.c).Text())
		e.v1.Serve = nil
		other := e.Dial(e.cfg)
		other.Send(req(1))
		e.c.Send(req(1))
		long := request(limit + 1)
		e.c.Send(long[:16])
		f := one(t, e.c)
		require.EqualValues(t, 2, f.ID)
		require.EqualValues(t, 40, f.Status)
		require.Equal(t, "malformed request: a frame of 301 bytes is larger than the limit of 300", f.Text())
		e.c.Send(long[16:], dubbotest.Frame(0xe2, 0, 8, make([]byte, limit)), dubbotest.Heartbeat(9), req(4))
		require.EqualValues(t, 9, one(t, e.c).ID, "the other heartbeat's answer")
		s := e.v1.Servers()[0]
		for _, f := range parse(s.Take()) {
			s.Send(dubbotest.Response(f.ID, "x"))
		}
		e.Settle()
		require.Len(t, replies(t, e.c), 2)
		require.Len(t, replies(t, other), 1)
		require.False(t, e.c.Closed())
		require.False(t, other.Closed())
		require.EqualValues(t, 2, e.count("request_decoding_error"))
		require.EqualValues(t, 5, e.count("request_decoding_success"))
		require.Contains(t, strings.Join(e.Log(), "\n"), "a frame of 301 bytes is larger than the limit of 300")
	})
	t.Run("of a server", func(t *testing.T) {
		e := newEnv(t, `, "limits": {"max_frame_bytes": 300}`)
		other := e.Dial(e.cfg)
		answer := func(id uint64, size int) []byte {
			b := dubbotest.Response(id, strings.Repeat("x", 100))
			return dubbotest.Response(id, strings.Repeat("x", 100+size-len(b)))
		}
		e.v1.Serve = nil
		e.c.Send(req(1), req(2))
		other.Send(req(3))
		s := e.v1.Servers()[0]
		fs := parse(s.Take())
		require.Len(t, answer(fs[0].ID, limit), limit)
		s.Send(answer(fs[0].ID, limit))
		e.Settle()
		require.EqualValues(t, 20, one(t, e.c).Status)
		long := answer(fs[1].ID, limit+1)
		s.Send(long[:16])
		e.Settle()
		f := one(t, e.c)
		require.EqualValues(t, 2, f.ID)
		require.EqualValues(t, 50, f.Status)
		require.Equal(t, "response: a frame of 301 bytes is larger than the limit of 300", f.Text())
		s.Send(slices.Concat(long[16:], dubbotest.Frame(0xe2, 0, 8, make([]byte, limit)), answer(fs[2].ID, limit)))
		e.Settle()
		require.EqualValues(t, 20, one(t, other).Status)
		require.False(t, e.c.Closed())
		require.True(t, s.Open())
		require.EqualValues(t, 2, e.count("response_decoding_error"))
		require.Zero(t, e.count("response_error_caused_connection_close"))
		require.EqualValues(t, 1, e.count("upstream_reset"), "the one call")
	})
}
