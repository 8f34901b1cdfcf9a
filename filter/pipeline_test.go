package filter_test

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

const twoRoutes = `{"name": "r", "routes": [
  {"match": {"metadata": [{"name": "tenant", "string_match": {"exact": "acme"}}]}, "route": {"cluster": "v2"}},
  {"match": {"metadata": [{"name": "method", "string_match": {"prefix": "say"}}]}, "route": {"cluster": "v1"}}]}`

// listener returns a configuration with some more fields.
func listener(routes, more string) string {
	return `{"stat_prefix": "t", "protocol": {"name": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}},
		"route_config": ` + routes + more + `}`
}

// answer serves every two-way request with its server's name.
func answer(s *filtertest.Server, b []byte) int {
	frames, rest := dubbotest.Parse(b)
	for _, f := range frames {
		if f.Flags&0x60 == 0x40 {
			s.Send(dubbotest.Response(f.ID, s.Host))
		}
	}
	return len(b) - len(rest)
}

type env struct {
	*filtertest.Host
	t      *testing.T
	v1, v2 *filtertest.Cluster
	cfg    *filtertest.Config
	c      *filtertest.Client
}

func newEnv(t *testing.T, more string) *env {
	t.Helper()
	h := filtertest.New(t)
	e := &env{Host: h, t: t, v1: h.Cluster("v1", "h1"), v2: h.Cluster("v2", "h2")}
	e.v1.Serve, e.v2.Serve = answer, answer
	e.cfg = h.MustLoad(listener(twoRoutes, more))
	e.c = h.Dial(e.cfg)
	return e
}

func (e *env) count(name string) int64 {
	e.t.Helper()
	e.Advance(50 * time.Millisecond)
	return e.cfg.Counter("dubbo.t." + name)
}

// replies takes what the client has got.
func replies(t *testing.T, c *filtertest.Client) []dubbotest.Parsed {
	t.Helper()
	frames, rest := dubbotest.Parse(c.Take())
	require.Empty(t, rest)
	return frames
}

func one(t *testing.T, c *filtertest.Client) dubbotest.Parsed {
	t.Helper()
	fs := replies(t, c)
	require.Len(t, fs, 1)
	return fs[0]
}

func req(id uint64, att ...[2]string) []byte {
	return dubbotest.Request{ID: id, Argument: "x", Attachments: att}.Bytes()
}

var acme = [2]string{"tenant", "acme"}

func TestRequestsAreRoutedByAttributesAndShareAConnection(t *testing.T) {
	e := newEnv(t, "")
	other := e.Dial(e.cfg)
	e.c.Send(req(7), req(8, acme))
	other.Send(req(7))
	got := replies(t, e.c)
	require.Len(t, got, 2)
	texts := map[uint64]string{}
	for _, f := range got {
		texts[f.ID] = f.Text()
	}
	require.Equal(t, map[uint64]string{7: "h1", 8: "h2"}, texts)
	require.EqualValues(t, 7, one(t, other).ID)
	require.Len(t, e.v1.Servers(), 1, "both clients share it")
	require.EqualValues(t, 3, e.count("request"))
	require.EqualValues(t, 3, e.count("response_success"))
	require.EqualValues(t, 0, e.count("request_active"))
	require.Len(t, e.cfg.Histogram("dubbo.t.request_time_ms"), 3)
}

func TestFramesMayBeSplitAnywhere(t *testing.T) {
	e := newEnv(t, "")
	b := append(req(1), req(2, acme)...)
	for i := 1; i < len(b); i++ {
		e.c.SendSplit(b, i)
		require.Len(t, replies(t, e.c), 2, "split at %d", i)
	}
	offsets := make([]int, len(b)-1)
	for i := range offsets {
		offsets[i] = i + 1
	}
	e.c.SendSplit(b, offsets...)
	require.Len(t, replies(t, e.c), 2)
}

func TestAnswersMayBeSplitAnywhere(t *testing.T) {
	e := newEnv(t, "")
	for i := 1; i < len(dubbotest.Response(0, "h1")); i++ {
		e.v1.Serve = func(s *filtertest.Server, b []byte) int {
			for _, f := range parse(b) {
				r := dubbotest.Response(f.ID, "h1")
				s.Send(r[:i])
				s.Send(r[i:])
			}
			return len(b)
		}
		e.c.Send(req(uint64(i)))
		f := one(t, e.c)
		require.EqualValues(t, i, f.ID)
		require.Equal(t, "h1", f.Text())
	}
}

func parse(b []byte) []dubbotest.Parsed {
	fs, _ := dubbotest.Parse(b)
	return fs
}

func TestLargeFramesPassWhateverTheHostKeeps(t *testing.T) {
	e := newEnv(t, "")
	for _, limit := range []int{0, 1, 2, 15, 16, 17, 1024, 16 << 10, 32<<10 - 1, 32 << 10, 32<<10 + 1, 1 << 20} {
		e.LimitBuffers(limit)
		c := e.Dial(e.cfg)
		for _, size := range []int{1, 1000, 20_000, 32 << 10, 60_000} {
			big := dubbotest.Request{ID: 5, Argument: strings.Repeat("x", size)}.Bytes()
			for i := 0; i < len(big); i += 7000 {
				c.Send(big[i:min(i+7000, len(big))])
			}
			require.EqualValues(t, 5, one(t, c).ID, "%d bytes, limit %d", size, limit)
			// With the next one behind it, and the end of the client's bytes.
			c.Send(big, dubbotest.Request{ID: 6}.Bytes(), big[:len(big)-1])
			require.Len(t, parse(c.Take()), 2)
			c.Send(big[len(big)-1:])
			require.EqualValues(t, 5, one(t, c).ID)
		}
		c.Send(dubbotest.Request{ID: 7}.Bytes())
		c.CloseWrite()
		require.EqualValues(t, 7, one(t, c).ID)
		require.True(t, c.Closed())
	}
}

func TestHeartbeatsAreAnsweredOnBothSides(t *testing.T) {
	e := newEnv(t, "")
	e.c.Send(dubbotest.Heartbeat(9))
	hb := one(t, e.c)
	require.Equal(t, dubbotest.Parsed{Flags: 0x22, Status: 20, ID: 9, Body: []byte{'N'}}, hb)
	e.c.Send(req(1))
	require.Len(t, replies(t, e.c), 1)
	s := e.v1.Servers()[0]
	e.v1.Serve = nil
	e.c.Send(req(2))
	id := parse(s.Take())[0].ID
	// The server's own ids collide with those of requests under way.
	s.Send(dubbotest.Heartbeat(id))
	e.Settle()
	require.Equal(t, []dubbotest.Parsed{{Flags: 0x22, Status: 20, ID: id, Body: []byte{'N'}}}, parse(s.Take()))
	s.Send(dubbotest.Response(id, "late"))
	e.Settle()
	require.Equal(t, "late", one(t, e.c).Text())
}

func TestOnewayIsForwardedAndNotAnswered(t *testing.T) {
	e := newEnv(t, "")
	e.v1.Serve = nil
	e.c.Send(dubbotest.Request{ID: 3, Oneway: true}.Bytes())
	require.Len(t, parse(e.v1.Servers()[0].Take()), 1)
	require.Empty(t, replies(t, e.c))
	require.EqualValues(t, 1, e.count("request_oneway"))
	require.EqualValues(t, 0, e.count("request_active"))
}

func TestAOnewayIsDeliveredThoughItsClientCloses(t *testing.T) {
	e := newEnv(t, "")
	e.v1.Serve = nil
	e.v1.Hang = true // until its client has gone it waits for a connection
	c := e.Dial(e.cfg)
	c.Send(dubbotest.Request{ID: 3, Oneway: true}.Bytes(), req(4))
	c.Close()
	e.v1.Hang = false
	e.v2.Serve = nil
	e.Advance(100 * time.Millisecond)
	e.c.Send(req(5))
	e.v1.Admit()
	fs := parse(e.v1.Servers()[0].Take())
	require.Len(t, fs, 2, "the oneway, and the other client's request")
	require.EqualValues(t, 0x82, fs[0].Flags)
	require.EqualValues(t, 1, e.count("request_abandoned"))
	require.EqualValues(t, 0, e.count("oneway_dropped"))
}

func TestFailuresAreAnsweredInTheClientsProtocol(t *testing.T) {
	for _, tc := range []struct {
		name   string
		set    func(e *env)
		req    []byte
		status byte
		text   string
	}{
		{"no route", nil, dubbotest.Request{ID: 1, Method: "other"}.Bytes(), 60, "no route matches org.example.Greeter/other"},
		{"no route for a long name", nil, dubbotest.Request{ID: 1, Interface: "s", Method: strings.Repeat("m", 1<<20)}.Bytes(), 60, "no route matches s/" + strings.Repeat("m", 1<<10)},
		{"unknown cluster", func(e *env) { e.RemoveCluster("v1") }, req(1), 60, "unknown cluster v1"},
		{"no host", func(e *env) { e.v1.SetHosts() }, req(1), 80, "no healthy upstream in cluster v1"},
		{"refused", func(e *env) {
			e.v1.Fail = func() (host.CloseReason, bool) { return host.ConnectFailed, true }
		}, req(1), 80, "upstream connect failure in cluster v1"},
		{"closed by the server", func(e *env) {
			e.v1.Serve = func(s *filtertest.Server, b []byte) int { s.Close(); return len(b) }
		}, req(1), 80, "upstream connection ended before the answer: closed by the server"},
		{"garbage", func(e *env) {
			e.v1.Serve = func(s *filtertest.Server, b []byte) int { s.Send([]byte("garbage, garbage")); return len(b) }
		}, req(1), 50, "undecodable response: dubbo: bad magic at offset 0"},
		{"unreadable request", nil, dubbotest.Frame(0xc2, 0, 1, []byte{5, 'x'}), 40, "malformed request: hessian: value is cut off"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := newEnv(t, "")
			if tc.set != nil {
				tc.set(e)
			}
			e.c.Send(tc.req)
			e.Advance(2 * time.Second)
			f := one(t, e.c)
			require.EqualValues(t, 1, f.ID)
			require.Equal(t, tc.status, f.Status)
			require.Equal(t, tc.text, f.Text())
			require.EqualValues(t, 1, e.count("local_response_business_exception"))
			require.False(t, e.c.Closed())
		})
	}
}

func TestARequestWithoutAnAnswerTimesOutAndItsLateAnswerReachesNobody(t *testing.T) {
	e := newEnv(t, `, "request_timeout": "2s"`)
	e.c.Send(req(1))
	require.Len(t, replies(t, e.c), 1)
	e.v1.Serve = nil
	s := e.v1.Servers()[0]
	e.c.Send(req(2))
	id := parse(s.Take())[0].ID
	e.Advance(1900 * time.Millisecond)
	require.Empty(t, replies(t, e.c))
	e.Advance(200 * time.Millisecond)
	f := one(t, e.c)
	require.EqualValues(t, 31, f.Status)
	s.Send(dubbotest.Response(id, "late"))
	s.Send(dubbotest.Response(id, "again"))
	s.Send(dubbotest.Response(12345, "unasked"))
	e.Settle()
	require.Empty(t, replies(t, e.c))
	require.EqualValues(t, 1, e.count("request_timeout"))
}

func TestDoubleAndForeignAnswersReachNobody(t *testing.T) {
	e := newEnv(t, "")
	e.v1.Serve = func(s *filtertest.Server, b []byte) int {
		for _, f := range parse(b) {
			s.Send(dubbotest.Response(f.ID+1, "wrong"))
			s.Send(dubbotest.Response(f.ID, "right"))
			s.Send(dubbotest.Response(f.ID, "twice"))
		}
		return len(b)
	}
	for i := range 1000 {
		e.c.Send(req(uint64(i)))
		require.Equal(t, "right", one(t, e.c).Text())
	}
	require.EqualValues(t, 2000, e.count("upstream_stray_response"))
}

func TestRequestsWaitForTheConnectionAndFailAtTheirDeadline(t *testing.T) {
	e := newEnv(t, `, "request_timeout": "1s"`)
	e.v1.Hang = true
	e.c.Send(req(1))
	e.Advance(900 * time.Millisecond)
	require.Empty(t, replies(t, e.c))
	e.Advance(200 * time.Millisecond)
	f := one(t, e.c)
	require.EqualValues(t, 31, f.Status)
	require.Equal(t, "timeout while waiting for an upstream connection", f.Text())
}

func TestAClientThatLeavesTakesNothingWithIt(t *testing.T) {
	e := newEnv(t, "")
	e.v1.Serve = nil
	gone := e.Dial(e.cfg)
	gone.Send(req(1))
	e.c.Send(req(1))
	s := e.v1.Servers()[0]
	fs := parse(s.Take())
	require.Len(t, fs, 2)
	gone.Close()
	require.EqualValues(t, 1, e.count("request_active"), "the other client's")
	for _, f := range fs {
		s.Send(dubbotest.Response(f.ID, "x"))
	}
	e.Settle()
	require.Len(t, replies(t, e.c), 1)
	require.EqualValues(t, 1, e.count("request_abandoned"))
	require.EqualValues(t, 1, e.count("cx_destroy_remote_with_active_rq"))
	require.EqualValues(t, 0, e.count("request_active"))
}

func TestAHalfClosedClientGetsItsAnswersFirst(t *testing.T) {
	e := newEnv(t, "")
	e.v1.Serve = nil
	e.c.Send(req(1))
	e.c.CloseWrite()
	require.False(t, e.c.Closed())
	s := e.v1.Servers()[0]
	s.Send(dubbotest.Response(parse(s.Take())[0].ID, "x"))
	e.Settle()
	require.Len(t, replies(t, e.c), 1)
	require.True(t, e.c.Closed())
}

func TestBadBytesFromAClientEndItAfterItsAnswers(t *testing.T) {
	e := newEnv(t, "")
	e.v1.Serve = nil
	e.c.Send(append(req(1), "garbage"...))
	require.False(t, e.c.Closed())
	s := e.v1.Servers()[0]
	s.Send(dubbotest.Response(parse(s.Take())[0].ID, "x"))
	e.Settle()
	require.Len(t, replies(t, e.c), 1)
	require.True(t, e.c.Closed())
	require.Contains(t, strings.Join(e.Log(), "\n"), "bad magic")
}

func TestAFrameThatIsNeverCompleteEndsTheConnection(t *testing.T) {
	e := newEnv(t, `, "limits": {"partial_frame_timeout": "5s"}`)
	e.c.Send(req(1)[:20])
	e.Advance(4 * time.Second)
	require.False(t, e.c.Closed())
	e.Advance(2 * time.Second)
	require.True(t, e.c.Closed())

	e = newEnv(t, `, "limits": {"partial_frame_timeout": "5s"}, "idle_timeout": "60s"`)
	e.c.Send(req(1)[:20])
	e.Advance(6 * time.Second)
	require.True(t, e.c.Closed(), "a later timeout holds nothing up")
}

func TestFramesThatFollowEachOtherAreNotOneThatNeverEnds(t *testing.T) {
	e := newEnv(t, `, "limits": {"partial_frame_timeout": "5s"}`)
	for _, size := range []int{100, 50000} { // kept by the host, kept by us
		b := dubbotest.Request{ID: 5, Argument: strings.Repeat("x", size)}.Bytes()
		half := len(b) / 2
		e.c.Send(b[:half])
		for range 10 {
			e.Advance(time.Second)
			e.c.Send(b[half:], b[:half])
			require.Len(t, replies(t, e.c), 1)
		}
		e.c.Send(b[half:])
		require.Len(t, replies(t, e.c), 1)
	}
	require.False(t, e.c.Closed())
}

func TestAnIdleTimeoutDoesNotEndARequest(t *testing.T) {
	e := newEnv(t, `, "idle_timeout": "1s"`)
	e.v1.Serve = nil
	e.c.Send(req(1))
	e.Advance(10 * time.Second)
	require.False(t, e.c.Closed())
	s := e.v1.Servers()[0]
	s.Send(dubbotest.Response(parse(s.Take())[0].ID, "x"))
	e.Settle()
	require.Len(t, replies(t, e.c), 1)
	e.Advance(900 * time.Millisecond)
	require.False(t, e.c.Closed())
	e.Advance(300 * time.Millisecond)
	require.True(t, e.c.Closed())
}

func TestIdleConnectionsAreClosed(t *testing.T) {
	e := newEnv(t, `, "idle_timeout": "10s"`)
	busy := e.Dial(e.cfg)
	for range 5 {
		e.Advance(4 * time.Second)
		busy.Send(req(1))
		require.Len(t, replies(t, busy), 1)
	}
	require.True(t, e.c.Closed())
	require.False(t, busy.Closed())
}

func TestASlowReaderIsStoppedAndThenClosed(t *testing.T) {
	e := newEnv(t, `, "limits": {"max_write_buffer_bytes": 100000}`)
	e.v1.Serve = func(s *filtertest.Server, b []byte) int {
		for _, f := range parse(b) {
			s.Send(dubbotest.Response(f.ID, strings.Repeat("x", 20000)))
		}
		return len(b)
	}
	e.c.Block(true)
	for i := range 4 {
		e.c.Send(req(uint64(i)))
	}
	require.True(t, e.c.ReadDisabled())
	e.c.Block(false)
	require.False(t, e.c.ReadDisabled())
	require.Len(t, replies(t, e.c), 4)

	e.c.Block(true)
	var all []byte
	for i := range 20 {
		all = append(all, req(uint64(i))...)
	}
	e.c.Send(all)
	e.Advance(4 * time.Second)
	require.False(t, e.c.Closed(), "it may be slow")
	e.Advance(2 * time.Second)
	require.True(t, e.c.Closed())
	require.EqualValues(t, 1, e.count("downstream_overflow"))

	fast := e.Dial(e.cfg)
	fast.Block(true)
	fast.Send(append(all, all...))
	require.True(t, fast.Closed(), "four times the limit")
}

// TestStuckClientsAreClosedIfTooMuchWaits, what the host holds for them included.
func TestStuckClientsAreClosedIfTooMuchWaits(t *testing.T) {
	for limit, closed := range map[string]bool{"3000000": true, "5000000": false} {
		e := newEnv(t, `, "limits": {"max_unread_bytes": `+limit+`}`)
		e.v1.Serve = func(s *filtertest.Server, b []byte) int {
			for _, f := range parse(b) {
				s.Send(dubbotest.Response(f.ID, strings.Repeat("x", 100_000)))
			}
			return len(b)
		}
		var clients []*filtertest.Client
		for range 4 { // the host says nothing of its buffers: a mebibyte each
			c := e.Dial(e.cfg)
			c.Block(true)
			c.Send(req(1))
			clients = append(clients, c)
		}
		e.Advance(9 * time.Second)
		clients[3].Block(false) // it reads after all, and stops again
		clients[3].Block(true)
		clients[3].Send(req(2))
		e.Advance(2 * time.Second)
		require.Equal(t, closed, slices.ContainsFunc(clients[:3], (*filtertest.Client).Closed))
		require.False(t, clients[3].Closed())
		e.Advance(9 * time.Second)
		if n := e.count("downstream_overflow"); closed {
			require.Less(t, n, int64(4), "no more than needed")
		} else {
			require.Zero(t, n)
		}
	}
}

func TestClientsAreNotReadWhileTooManyRequestsWait(t *testing.T) {
	e := newEnv(t, `, "upstream": {"max_pending_requests": 10}`)
	e.v1.Hang = true
	for i := range 15 {
		e.c.Send(req(uint64(i)))
	}
	require.True(t, e.c.ReadDisabled())
	e.Advance(32 * time.Second)
	require.Len(t, replies(t, e.c), 15, "each has failed at its deadline")
	require.False(t, e.c.ReadDisabled())
}

func TestAServerThatTakesNoBytesFillsTheQueueAndRecovers(t *testing.T) {
	e := newEnv(t, `, "upstream": {"max_pending_requests": 10}`)
	e.c.Send(req(0))
	require.Len(t, replies(t, e.c), 1)
	s := e.v1.Servers()[0]
	s.Block(true)
	for i := range 15 {
		e.c.Send(req(uint64(i)))
	}
	require.True(t, e.c.ReadDisabled())
	s.Block(false)
	s.Send(nil)
	e.Settle()
	for _, f := range parse(s.Take()) {
		s.Send(dubbotest.Response(f.ID, "x"))
	}
	e.Advance(time.Second)
	require.Len(t, replies(t, e.c), 15)
	require.False(t, e.c.ReadDisabled())
}

func TestOneClientsRequestsAreSpreadOverAllHosts(t *testing.T) {
	e := newEnv(t, "")
	e.v1.SetHosts("a", "b", "c", "d")
	seen := map[string]int{}
	for i := range 10000 {
		e.c.Send(req(uint64(i)))
		seen[one(t, e.c).Text()]++
	}
	for _, h := range []string{"a", "b", "c", "d"} {
		require.InDelta(t, 2500, seen[h], 300, h)
	}
}

func TestSharesFollowTheLoadBalancersPicks(t *testing.T) {
	e := newEnv(t, "")
	e.v1.SetHosts("light", "heavy")
	n := 0
	e.v1.Pick = func([]string) string { // as a weighted round robin of 1:3
		n++
		if n%4 == 3 {
			return "light"
		}
		return "heavy"
	}
	seen := map[string]int{}
	e.load(10*time.Second, time.Millisecond, seen)
	require.InDelta(t, 0.75, float64(seen["heavy"])/10000, 0.05)
}

// TestFirstPicksThatRepeatByChance look like a weighted round robin, until soon
// more are known.
func TestFirstPicksThatRepeatByChance(t *testing.T) {
	e := newEnv(t, "")
	e.v1.SetHosts("a", "b")
	n := 0
	e.v1.Pick = func([]string) string {
		n++
		return "aabaabaabbabbbab"[(n-1)%16:][:1]
	}
	seen := map[string]int{}
	share := func(calls int) float64 {
		e.load(time.Duration(calls)*time.Millisecond, time.Millisecond, seen)
		return float64(seen["a"]) / float64(calls)
	}
	require.InDelta(t, 0.67, share(99), 0.03)
	share(100)
	require.InDelta(t, 0.5, share(1000), 0.03)
}

func TestConnectionsAreRenewedWithoutAFailedRequest(t *testing.T) {
	e := newEnv(t, `, "upstream": {"max_connection_age": "3s"}`)
	e.v1.SetHosts("a", "b")
	seen := map[string]int{}
	send := func(d time.Duration) { e.load(d, 10*time.Millisecond, seen) }
	send(time.Second)
	require.Len(t, seen, 2)
	e.v1.SetHosts("a", "c") // the count stays the same
	send(3 * time.Second)
	send(time.Second)
	require.NotContains(t, seen, "b")
	require.Contains(t, seen, "c")
	e.v1.SetHosts("a", "c", "d")
	send(500 * time.Millisecond)
	require.Contains(t, seen, "d", "a change of the count acts at once")
	e.v1.SetHosts("d")
	send(1500 * time.Millisecond)
	send(time.Second)
	require.Len(t, seen, 1)
	require.EqualValues(t, 0, e.count("local_response_business_exception"))
}

func TestAServerThatLeavesGetsNoNewRequest(t *testing.T) {
	e := newEnv(t, "")
	e.c.Send(req(1))
	replies(t, e.c)
	old := e.v1.Servers()[0]
	old.Send(dubbotest.ReadOnly(1))
	e.Settle()
	e.c.Send(req(2))
	require.Len(t, replies(t, e.c), 1)
	require.NotSame(t, old, e.v1.Servers()[0])
}

// TestALeavingServerIsTheLastResort has a server announce that it leaves while
// the load balancer goes on choosing it: the new connection to it is used only
// while there is no other, until it must have left, or has been replaced.
func TestALeavingServerIsTheLastResort(t *testing.T) {
	e := newEnv(t, `, "upstream": {"max_connection_age": "3s"}`)
	e.v1.SetHosts("a", "b")
	seen := map[string]int{}
	send := func(d time.Duration) { e.load(d, 10*time.Millisecond, seen) }
	send(time.Second)
	require.Len(t, seen, 2)

	e.leave("b")
	send(14 * time.Second)
	require.NotContains(t, seen, "b")
	send(7 * time.Second)
	require.Contains(t, seen, "b", "it did not leave")

	e.leave("b")
	send(4 * time.Second)
	require.NotContains(t, seen, "b")
	require.NotEmpty(t, e.to("b"), "a connection is at hand")
	e.v1.SetHosts("b", "b")
	for _, s := range e.to("a") {
		s.Close()
	}
	send(time.Second)
	require.Contains(t, seen, "b", "the last resort")
	e.v1.SetHosts("a", "b")
	send(2 * time.Second)
	send(time.Second)
	require.NotContains(t, seen, "b")

	for _, s := range e.to("b") {
		s.Close() // the process has ended, and another one starts in its place
	}
	send(4 * time.Second)
	require.Contains(t, seen, "b")
	require.EqualValues(t, 0, e.count("local_response_business_exception"))
}

func TestALeavingServerIsTheLastResortOfExclusiveConnections(t *testing.T) {
	h := filtertest.New(t)
	e := &env{Host: h, t: t, v1: h.Cluster("v1", "a", "b")}
	e.v1.Serve = answer
	c := h.Dial(h.MustLoad(`{"stat_prefix": "t", "protocol": {"name": "dubbo", "connection_mode": "EXCLUSIVE",
		"codec": {"name": "aeraki.meta_protocol.codec.dubbo"}}, "route_config": {"routes": [{"route": {"cluster": "v1"}}]}}`))
	c.Send(req(1), req(2))
	require.Len(t, replies(t, c), 2)
	e.leave("b")
	e.v1.SetHosts("b")
	c.Send(req(1), req(2))
	require.Len(t, replies(t, c), 2, "one of them by the last resort")
	require.Len(t, e.to("b"), 1)
	for range 10 {
		h.Advance(time.Millisecond)
		c.Send(req(1))
		require.Equal(t, "a", one(t, c).Text())
	}
}

// TestAllWorkersHeedThatAServerLeaves: a connection that the server had not
// accepted yet when it announced its leaving is told nothing.
func TestAllWorkersHeedThatAServerLeaves(t *testing.T) {
	h := filtertest.NewWith(t, filter.NewModule(), 2)
	e := &env{Host: h, t: t, v1: h.Cluster("v1", "a", "b")}
	e.v1.Serve = answer
	cfg := h.MustLoad(`{"stat_prefix": "t", "protocol": {"name": "dubbo",
		"codec": {"name": "aeraki.meta_protocol.codec.dubbo"}}, "route_config": {"routes": [{"route": {"cluster": "v1"}}]}}`)
	clients := []*filtertest.Client{h.DialOn(cfg, 0), h.DialOn(cfg, 1)}
	seen := map[string]int{}
	send := func() {
		clear(seen)
		for range 20 {
			for _, c := range clients {
				c.Send(req(1))
				seen[one(t, c).Text()]++
			}
			h.Advance(10 * time.Millisecond)
		}
	}
	send()
	require.Len(t, seen, 2)
	require.Greater(t, len(e.to("b")), 1)
	e.to("b")[0].Send(dubbotest.ReadOnly(1))
	h.Advance(100 * time.Millisecond)
	send()
	require.Len(t, seen, 1)
	require.Contains(t, seen, "a")
	require.NotEmpty(t, e.to("b"))
}

// load sends requests for a while, one every so often, and sets how many each host
// has answered.
func (e *env) load(d, every time.Duration, seen map[string]int) {
	e.t.Helper()
	clear(seen)
	for range int(d / every) {
		e.c.Send(req(1))
		seen[one(e.t, e.c).Text()]++
		e.Advance(every)
	}
}

// to returns the connections to a host.
func (e *env) to(name string) (open []*filtertest.Server) {
	for _, s := range e.v1.Servers() {
		if s.Host == name {
			open = append(open, s)
		}
	}
	return open
}

// leave has a host announce that it leaves, on all its connections.
func (e *env) leave(name string) {
	e.t.Helper()
	told := e.to(name)
	require.NotEmpty(e.t, told)
	for _, s := range told {
		s.Send(dubbotest.ReadOnly(1))
	}
	e.Settle()
	for _, s := range told {
		require.True(e.t, s.Ended(), "it gets no new request")
	}
}

func TestExclusiveConnectionsServeOneRequestAtATime(t *testing.T) {
	h := filtertest.New(t)
	v1 := h.Cluster("v1", "h1")
	cfg := h.MustLoad(`{"stat_prefix": "t", "protocol": {"name": "dubbo", "connection_mode": "EXCLUSIVE",
		"codec": {"name": "aeraki.meta_protocol.codec.dubbo"}}, "route_config": {"routes": [{"route": {"cluster": "v1"}}]}}`)
	c := h.Dial(cfg)
	c.Send(req(1), req(2), req(3))
	require.Len(t, v1.Servers(), 3)
	for _, s := range v1.Servers() {
		fs := parse(s.Take())
		require.Len(t, fs, 1)
		s.Send(dubbotest.Response(fs[0].ID, "x"))
	}
	h.Settle()
	require.Len(t, replies(t, c), 3)
	c.Send(req(4))
	require.Len(t, v1.Servers(), 3, "an idle one is used again")
	c.Close()
	require.Len(t, v1.Servers(), 2, "the one that still owes an answer is closed")
}

func TestRouteTablesAreReplacedUnderOpenConnections(t *testing.T) {
	e := newEnv(t, "")
	e.c.Send(req(1))
	require.Equal(t, "h1", one(t, e.c).Text())
	all := `{"name": "r", "routes": [{"route": {"cluster": "v2"}}]}`
	next, err := e.LoadUnpublished(listener(all, `, "delivery": "ECDS"`))
	require.NoError(t, err)
	e.c.Send(req(2))
	require.Equal(t, "h1", one(t, e.c).Text(), "not before the host has accepted it")
	next.Publish()
	e.c.Send(req(3))
	require.Equal(t, "h2", one(t, e.c).Text())
	next.Destroy()
	e.c.Send(req(4))
	require.Equal(t, "h1", one(t, e.c).Text())
}

func TestAReplacedListenersConnectionsLeaveWhileIdle(t *testing.T) {
	e := newEnv(t, "")
	e.v1.Serve = nil
	idle := e.Dial(e.cfg)
	e.c.Send(req(1))
	e.MustLoad(listener(twoRoutes, ""))
	e.Advance(6 * time.Second)
	require.True(t, idle.Closed())
	require.False(t, e.c.Closed(), "it has a request in flight")
	require.Equal(t, dubbotest.ReadOnly(0), e.c.Take(), "and is told to send no more")
	s := e.v1.Servers()[0]
	s.Send(dubbotest.Response(parse(s.Take())[0].ID, "x"))
	e.Advance(2 * time.Second)
	require.Len(t, replies(t, e.c), 1)
	require.True(t, e.c.Closed())
}

// TestABusyClientIsToldFirst: there are good moments to close its connection all
// the time.
func TestABusyClientIsToldFirst(t *testing.T) {
	e := newToyEnv(t, "toy.leaver", "")
	e.up.Serve = serveToys
	e.say("req 1 m -")
	e.MustLoad(toyConfig(`"codec": {"name": "toy.leaver"}`, ""))
	told := 0
	for id := 2; !e.c.Closed(); id++ {
		require.Less(t, id, 7000)
		e.say(fmt.Sprintf("req %d m -", id))
		if strings.Contains(e.got(), "away 0 - -\n") {
			told = id
		}
		e.Advance(time.Millisecond)
		if told == 0 {
			require.False(t, e.c.Closed(), "without a word")
		} else if id < told+450 {
			require.False(t, e.c.Closed(), "it has half a second")
		}
	}
	require.NotZero(t, told)
	e.counts(map[string]int64{"cx_destroy_local_with_active_rq": 0, "drain_closed": 1})
}

// TestAClientIsToldThatItsListenerIsReplaced before its connection is closed, if
// the protocol can say so, in the form of its last request.
func TestAClientIsToldThatItsListenerIsReplaced(t *testing.T) {
	e := newToyEnv(t, "toy.leaver", "")
	e.up.Serve = serveToys
	silent, busy, other := e.Dial(e.cfg), e.Dial(e.cfg), e.Dial(e.cfg)
	e.say("req 1 m -")
	e.got()
	say(other, "req 1 m -", "vreq 2 m -")
	require.Len(t, lines(other.Take()), 2)
	e.up.Serve = nil
	say(busy, "req 1 m -")
	e.MustLoad(toyConfig(`"codec": {"name": "toy.leaver"}`, ""))
	told := map[*filtertest.Client]int{}
	for range 600 {
		e.Advance(10 * time.Millisecond)
		for _, c := range []*filtertest.Client{e.c, busy} {
			if b := string(c.Take()); b != "" {
				require.Equal(t, "away 0 - -\n", b)
				require.NotContains(t, told, c, "once")
				told[c] = 0
			}
			if _, ok := told[c]; ok && !c.Closed() {
				told[c]++
			}
		}
	}
	require.InDelta(t, 50, told[e.c], 3, "it has half a second to go elsewhere")
	require.Greater(t, told[busy], 50)
	require.True(t, e.c.Closed())
	require.True(t, silent.Closed())
	require.True(t, other.Closed())
	require.Empty(t, silent.Take())
	require.Empty(t, other.Take(), "its form has no words for it")
	require.False(t, busy.Closed())
	say(busy, "req 2 m -") // all the same
	s := e.server(0)
	for _, id := range ids(s) {
		e.answer(s, "res "+id+" m ok")
	}
	require.Equal(t, []string{"res 1 m a=2;ok", "res 2 m a=2;ok"}, lines(busy.Take()))
	require.True(t, busy.Closed())
	e.Advance(50 * time.Millisecond)
	require.EqualValues(t, 4, e.cfg.Counter("toy.t.drain_closed"))
}

// TestADrainingConnectionEndsBehindAnAnswer if its client is never idle: it hears of
// both together. What has come before is answered.
func TestADrainingConnectionEndsBehindAnAnswer(t *testing.T) {
	for _, pipelined := range []int{1, 3} {
		t.Run(fmt.Sprint(pipelined), func(t *testing.T) {
			e := newToyEnv(t, "toy.byid", "")
			batch := strings.Repeat("req 1 m -\nreq 2 nowhere -\n", pipelined)
			e.c.Send([]byte(batch))
			e.MustLoad(toyConfig(`"codec": {"name": "toy.byid"}`, ""))
			s := e.server(0)
			for range 1000 { // each time the answer takes 10 ms, and the next request none
				e.Advance(10 * time.Millisecond)
				for _, id := range ids(s) {
					e.answer(s, "res "+id+" m ok")
				}
				require.Len(t, lines(e.c.Take()), 2*pipelined, "nothing is lost")
				if e.c.Closed() {
					break
				}
				e.c.Send([]byte(batch))
			}
			require.True(t, e.c.Closed())
			e.Advance(50 * time.Millisecond)
			require.Zero(t, e.cfg.Counter("toy.t.cx_destroy_local_with_active_rq"))
		})
	}
}

// TestADrainingConnectionThatIsNeverIdle is not read for a while, so that it becomes idle:
// what servers have got is answered, and what they have not got is lost.
func TestADrainingConnectionThatIsNeverIdle(t *testing.T) {
	for _, tc := range []struct {
		name, codec, more string
		slow              time.Duration // what one request takes, the others take 50 ms
		leaves            bool
	}{
		{name: "by id", codec: "toy.byid", leaves: true},
		{name: "in order", codec: "toy.inorder", leaves: true},
		{name: "full", codec: "toy.byid", more: `, "limits": {"max_requests_in_flight": 4}`, leaves: true},
		{name: "a slow call ends", codec: "toy.byid", slow: 25 * time.Second, leaves: true},
		{name: "a slow call goes on", codec: "toy.byid", slow: time.Hour},
	} {
		t.Run(tc.name, func(t *testing.T) {
			const step = 10 * time.Millisecond
			e := newToyEnv(t, tc.codec, tc.more+`, "request_timeout": "3600s"`)
			config := toyConfig(`"codec": {"name": "`+tc.codec+`"}`, "")
			due := map[int][]func(){}
			now, got, answered := 0, 0, 0
			e.up.Serve = func(s *filtertest.Server, b []byte) int {
				for _, l := range lines(b) {
					f := strings.SplitN(l, " ", 4)
					at := now + 5
					if strings.Contains(f[3], "slow") {
						at = now + int(tc.slow/step)
					}
					got++
					due[at] = append(due[at], func() { s.Send([]byte("res " + f[1] + " m ok\n")) })
				}
				return len(b)
			}
			if tc.slow > 0 {
				e.say("req 99999 m slow")
			}
			longest := time.Duration(0) // for which nothing was answered
			since, sent := 0, 0
			for ; now < 4000 && !e.c.Closed(); now++ {
				if now == 100 {
					e.MustLoad(config)
				}
				sent++
				e.say(fmt.Sprintf("req %d m -", sent))
				e.Advance(step)
				for _, f := range due[now] {
					f()
				}
				e.Settle()
				if n := len(lines(e.c.Take())); n > 0 {
					answered += n
					longest, since = max(longest, time.Duration(now-since)*step), now
				}
			}
			require.Equal(t, tc.leaves, e.c.Closed())
			require.LessOrEqual(t, longest, restTime+200*time.Millisecond)
			if !tc.leaves {
				require.Greater(t, longest, restTime-200*time.Millisecond, "it was tried")
				require.Less(t, sent-answered, 100, "what came meanwhile is answered late")
				return
			}
			require.Equal(t, got, answered, "nothing is lost of what was executed")
			require.Greater(t, now, 1000, "before that there is no need")
			e.Advance(50 * time.Millisecond)
			require.EqualValues(t, 1, e.cfg.Counter("toy.t.drain_closed"))
			require.Zero(t, e.cfg.Counter("toy.t.cx_destroy_local_with_active_rq"))
			require.Zero(t, e.cfg.Counter("toy.t.request_active"))
		})
	}
}

// restTime is how long such a client is not read at the most.
const restTime = time.Second

// TestAClientThatEndsWhileItRests is answered what it has sent before.
func TestAClientThatEndsWhileItRests(t *testing.T) {
	e := newToyEnv(t, "toy.byid", `, "request_timeout": "3600s"`)
	got := 0
	e.up.Serve = func(_ *filtertest.Server, b []byte) int {
		got += len(lines(b))
		return len(b)
	}
	e.say("req 1 m -")
	e.MustLoad(toyConfig(`"codec": {"name": "toy.byid"}`, ""))
	sent := 1
	for ; got == sent; sent++ {
		require.Less(t, sent, 250)
		e.Advance(100 * time.Millisecond)
		e.say(fmt.Sprintf("req %d m -", sent+1))
	}
	e.c.CloseWrite()
	e.up.Serve = serveToys
	e.Advance(2 * time.Second)
	require.Equal(t, fmt.Sprintf("res %d m a=2;ok\n", sent), e.got())
	e.counts(map[string]int64{"drain_closed": 0})
}

// TestAListenerThatWarms: while the new version of it does the old one takes connections.
// They leave, too, when the new one is seen to take some, or some time after it has come.
func TestAListenerThatWarms(t *testing.T) {
	mod := filter.NewModule()
	mod.Seed(1)
	h := filtertest.NewWith(t, mod, 2)
	config := func(more string) string { return toyConfig(`"codec": {"name": "toy.byid"}`, more) }
	old := h.MustLoad(config(""))
	c := h.Dial(old)
	h.MustLoad(config(`, "delivery": "ECDS"`))
	h.Advance(time.Minute)
	require.False(t, c.Closed())

	newer := h.MustLoad(config(""))
	h.Advance(5 * time.Second)
	require.True(t, c.Closed())
	c = h.DialOn(old, 1) // nothing has come on that worker before
	h.Advance(12 * time.Second)
	require.False(t, c.Closed(), "it would come to the old version again")
	n := h.Dial(newer)
	late := h.Dial(old) // to a worker that has not heard of the new version yet
	h.Advance(6 * time.Second)
	require.True(t, c.Closed())
	require.True(t, late.Closed())
	c = h.Dial(old) // so it is another listener, with the same stat_prefix
	h.Advance(time.Minute)
	require.False(t, c.Closed())
	require.False(t, n.Closed())

	h.MustLoad(config("")) // and nobody comes
	h.Advance(6 * time.Second)
	require.True(t, n.Closed())
	n = h.Dial(newer)
	h.Advance(13 * time.Second)
	require.False(t, n.Closed())
	h.Advance(6 * time.Second)
	require.True(t, n.Closed())
	n = h.Dial(newer)
	h.Advance(time.Minute)
	require.False(t, n.Closed(), "once")
}

func TestMutationsReachBothSides(t *testing.T) {
	h := filtertest.New(t)
	v1 := h.Cluster("v1", "h1")
	cfg := h.MustLoad(listener(`{"routes": [{"route": {"cluster": "v1"},
		"request_mutation": [{"key": "zone", "value": "a"}, {"key": "zone", "value": "b"}],
		"response_mutation": [{"key": "by", "value": "meltemi"}]}]}`, ""))
	c := h.Dial(cfg)
	c.Send(req(1, [2]string{"k", "v"}, [2]string{"zone", "z"}))
	s := v1.Servers()[0]
	f := parse(s.Take())[0]
	require.Contains(t, string(f.Body), "\x04zone\x01b")
	require.Contains(t, string(f.Body), "\x01k\x01v")
	s.Send(dubbotest.Response(f.ID, "x"))
	h.Settle()
	require.Contains(t, string(one(t, c).Body), "\x02by\x07meltemi")
}

// testFilter is a filter made of functions.
type testFilter struct {
	onRequest, onResponse func(m *filter.Message) filter.Verdict
	onEnd                 func(m *filter.Message)
}

func (f *testFilter) OnRequest(m *filter.Message) filter.Verdict {
	if f.onRequest == nil {
		return filter.Continue
	}
	return f.onRequest(m)
}

func (f *testFilter) OnResponse(m *filter.Message) filter.Verdict {
	if f.onResponse == nil {
		return filter.Continue
	}
	return f.onResponse(m)
}

func (f *testFilter) OnEnd(m *filter.Message) {
	if f.onEnd != nil {
		f.onEnd(m)
	}
}

var current *testFilter

func init() {
	filter.Register("test", filter.Factory(func(*anypb.Any, *filter.Env) (filter.Filter, error) { return current, nil }))
}

func withFilter(t *testing.T, f *testFilter) *env {
	t.Helper()
	current = f
	return newEnv(t, `, "meta_protocol_filters": [{"name": "test"}, {"name": "aeraki.meta_protocol.filters.router"}]`)
}

func TestAFilterMayPauseAndResumeFromAnyGoroutine(t *testing.T) {
	ended := 0
	e := withFilter(t, &testFilter{
		onRequest: func(m *filter.Message) filter.Verdict {
			r := m.Resumer()
			go r.Do(func(m *filter.Message) filter.Verdict {
				m.MutateRequest().Set("checked", "yes")
				return filter.Continue
			})
			return filter.Pause
		},
		onResponse: func(m *filter.Message) filter.Verdict {
			v, _ := m.Request().Get("tenant")
			m.MutateResponse().Set("for", string(v))
			r := m.Resumer()
			go r.Continue()
			return filter.Pause
		},
		onEnd: func(*filter.Message) { ended++ },
	})
	e.v2.Serve = func(s *filtertest.Server, b []byte) int {
		for _, f := range parse(b) {
			require.Contains(t, string(f.Body), "\x07checked\x03yes")
			s.Send(dubbotest.Response(f.ID, "x"))
		}
		return len(b)
	}
	e.c.Send(req(1, acme))
	e.WaitUntil(func() bool { return ended == 1 })
	require.Contains(t, string(one(t, e.c).Body), "\x03for\x04acme")
	require.Equal(t, 1, ended)
}

func TestAResumeAfterTheClientLeftIsHarmless(t *testing.T) {
	var rs []filter.Resumer
	ended := 0
	e := withFilter(t, &testFilter{
		onRequest: func(m *filter.Message) filter.Verdict {
			rs = append(rs, m.Resumer())
			return filter.Pause
		},
		onEnd: func(*filter.Message) { ended++ },
	})
	c := e.Dial(e.cfg)
	c.Send(req(1))
	c.Close()
	require.Equal(t, 1, ended)
	e.c.Send(req(1)) // may be where the other one was
	rs[0].Continue()
	rs[0].Continue()
	e.Settle()
	require.Empty(t, e.v1.Servers())
	require.Equal(t, 1, ended)
	rs[1].Continue()
	e.Settle()
	require.Equal(t, "h1", one(t, e.c).Text())
	require.Equal(t, 2, ended)
	require.Zero(t, e.Panics())
}

func TestAFilterMayReply(t *testing.T) {
	e := withFilter(t, &testFilter{onRequest: func(m *filter.Message) filter.Verdict {
		return m.Reply(codecs.Denied, "not you")
	}})
	e.c.Send(req(1))
	f := one(t, e.c)
	require.EqualValues(t, 40, f.Status)
	require.Equal(t, "not you", f.Text())
}

func TestAFilterMayReplaceAnAnswer(t *testing.T) {
	e := withFilter(t, &testFilter{onResponse: func(m *filter.Message) filter.Verdict {
		return m.Reply(codecs.OverLimit, "too much")
	}})
	e.c.Send(req(1))
	require.EqualValues(t, 100, one(t, e.c).Status)
}

func TestAPanicInAFilterEndsOneMessageOnly(t *testing.T) {
	for where, told := range map[string]string{
		"request":  "internal error",
		"response": "internal error",
		"end":      "h1", // its answer has gone out before
	} {
		t.Run(where, func(t *testing.T) {
			boom := func(m *filter.Message) filter.Verdict {
				if string(m.Request().AppendOperation(nil)) == "org.example.Greeter/sayBoom" {
					panic("boom")
				}
				return filter.Continue
			}
			f := &testFilter{}
			switch where {
			case "request":
				f.onRequest = boom
			case "response":
				f.onResponse = boom
			case "end":
				f.onEnd = func(m *filter.Message) { boom(m) }
			}
			e := withFilter(t, f)
			e.MayPanic()
			texts := func() map[uint64]string {
				texts := map[uint64]string{}
				for _, f := range replies(t, e.c) {
					texts[f.ID] += f.Text()
				}
				return texts
			}
			e.c.Send(dubbotest.Request{ID: 1, Method: "sayBoom"}.Bytes(), req(2))
			require.Equal(t, map[uint64]string{1: told, 2: "h1"}, texts())
			require.EqualValues(t, 1, e.count("filter_panic"))
			require.Zero(t, e.Panics())
			e.c.Send(req(3))
			require.Equal(t, map[uint64]string{3: "h1"}, texts())
			require.EqualValues(t, 1, e.count("filter_panic"))
			require.Zero(t, e.count("request_active"))
		})
	}
}

func TestBadConfigurationsAreRefusedByField(t *testing.T) {
	h := filtertest.New(t)
	for _, tc := range []struct{ cfg, want string }{
		{listener(`{"routes": []}`, `, "meta_protocol_filters": [{"name": "nope"}]`), `stat_prefix "t": meta_protocol_filters[0].name: unknown filter "nope"`},
		{strings.Replace(listener(`{"routes": []}`, ""), "codec.dubbo", "codec.nope", 1), `stat_prefix "t": protocol.codec.name: unknown codec`},
		{listener(`{"routes": [{"route": {"cluster": "c"}, "request_mutation": [{"key": "path", "value": "x"}]}]}`, ""), `route_config.routes[0].request_mutation[0].key: "path" belongs to the call itself`},
		{listener(`{"routes": [{"match": {"metadata": [{"name": "m", "safe_regex_match": {"regex": "("}}]}, "route": {"cluster": "c"}}]}`, ""), `route_config.routes[0].match.metadata[0].safe_regex_match.regex: `},
	} {
		_, err := h.Load(tc.cfg)
		require.ErrorContains(t, err, tc.want)
	}
	// Routes are judged though other fields are refused.
	var faults []string
	for _, e := range filter.Check([]byte(listener(`{"routes": [{}]}`, `, "request_timeout": "0s"`))) {
		faults = append(faults, e.Error())
	}
	require.Equal(t, []string{`stat_prefix "t": request_timeout: must be at least 1ms, is 0s`, `stat_prefix "t": route_config.routes[0].route: required`}, faults)
}

// TestManyClientsAndServersInAnyOrder: answers come to those who have asked,
// though all number alike and each server answers the last one first.
func TestManyClientsAndServersInAnyOrder(t *testing.T) {
	const clients, rounds = 20, 20
	e := newEnv(t, "")
	e.v1.SetHosts("a", "b", "c")
	held := map[*filtertest.Server][]dubbotest.Parsed{}
	e.v1.Serve = func(s *filtertest.Server, b []byte) int {
		frames, rest := dubbotest.Parse(b)
		for _, f := range frames {
			f.Body = slices.Clone(f.Body)
			held[s] = append(held[s], f)
		}
		return len(b) - len(rest)
	}
	argument := regexp.MustCompile(`by \d+ in \d+`)
	cs := make([]*filtertest.Client, clients)
	for i := range cs {
		cs[i] = e.Dial(e.cfg)
	}
	for round := range rounds {
		for i, c := range cs {
			c.Send(dubbotest.Request{ID: uint64(round), Argument: fmt.Sprintf("by %d in %d", i, round)}.Bytes())
		}
		asked := map[string]int{}
		for _, s := range e.v1.Servers() {
			asked[s.Host] += len(held[s])
			for _, f := range slices.Backward(held[s]) {
				s.Send(dubbotest.Response(f.ID, string(argument.Find(f.Body))))
			}
		}
		require.Len(t, asked, 3)
		require.Equal(t, clients, asked["a"]+asked["b"]+asked["c"])
		clear(held)
		e.Settle()
		for i, c := range cs {
			f := one(t, c)
			require.EqualValues(t, round, f.ID)
			require.Equal(t, fmt.Sprintf("by %d in %d", i, round), f.Text())
		}
	}
}
