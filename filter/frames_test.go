package filter_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// sized is a line of so many bytes, which says how many it has.
func sized(kind string, id, size int) string {
	head := fmt.Sprintf("%s %d m size=%d;", kind, id, size)
	return head + strings.Repeat("x", size-len(head)-1) + "\n"
}

// TestAFrameThatIsTooLargeCostsItself where its codec can tell what it is.
func TestAFrameThatIsTooLargeCostsItself(t *testing.T) {
	all := "req 1 m a\n" + sized("req", 2, 41) + sized("one", 3, 500) + "req 4 m b\n" + sized("hb", 5, 99) + "hb 6 - -\n" + sized("req", 7, 640)
	check := func(t *testing.T, e *toyEnv) {
		s := e.server(0)
		got := ids(s)
		require.Len(t, got, 2, "the neighbours")
		e.answer(s, "res "+got[1]+" m B", "res "+got[0]+" m A")
		require.ElementsMatch(t, []string{
			"err 2 - malformed request: a frame of 41 bytes is larger than the limit of 40",
			"err 7 - malformed request: a frame of 640 bytes is larger than the limit of 40",
			"hb 6 - here", "res 4 m a=2;B", "res 1 m a=2;A",
		}, lines(e.c.Take()))
		require.False(t, e.c.Closed())
		e.counts(map[string]int64{
			"request_decoding_error": 4, "request_decoding_success": 3, "request": 5, "oneway_dropped": 1,
			"request_active": 0, "partial_frame_timeout": 0,
		})
		require.Contains(t, strings.Join(e.Log(), "\n"), "a frame of 41 bytes is larger than the limit of 40")
	}
	t.Run("at once", func(t *testing.T) {
		e := newToyEnv(t, "toy.bounded", "")
		e.c.Send([]byte(all))
		check(t, e)
	})
	for at := 1; at < len(all); at += 7 {
		t.Run(fmt.Sprintf("cut at %d", at), func(t *testing.T) {
			e := newToyEnv(t, "toy.bounded", "")
			e.c.SendSplit([]byte(all), at)
			check(t, e)
		})
	}
	t.Run("byte by byte", func(t *testing.T) {
		e := newToyEnv(t, "toy.bounded", "")
		for i := range len(all) {
			e.c.Send([]byte{all[i]})
		}
		check(t, e)
	})
	t.Run("in its turn", func(t *testing.T) {
		e := newToyEnv(t, "toy.bounded", "")
		e.c.Send([]byte("req 7 m a\nreq 7 m b\n" + sized("req", 7, 50) + "req 7 m c\n"))
		s := e.server(0)
		got := ids(s)
		e.answer(s, "res "+got[2]+" m C", "res "+got[1]+" m B")
		require.Empty(t, e.got())
		e.answer(s, "res "+got[0]+" m A")
		require.Equal(t, []string{
			"res 7 m a=2;A", "res 7 m a=2;B",
			"err 7 - malformed request: a frame of 50 bytes is larger than the limit of 40", "res 7 m a=2;C",
		}, lines(e.c.Take()))
	})
	t.Run("while the client is not read", func(t *testing.T) {
		e := newToyEnv(t, "toy.bounded", `, "limits": {"max_requests_in_flight": 1}`)
		b := sized("req", 1, 100)
		e.c.Send([]byte("req 7 m a\n" + b[:50]))
		e.c.Send([]byte(b[50:] + "req 8 m b\n"))
		s := e.server(0)
		e.answer(s, "res "+ids(s)[0]+" m A")
		e.answer(s, "res "+ids(s)[0]+" m B")
		require.Equal(t, []string{
			"res 7 m a=2;A", "err 1 - malformed request: a frame of 100 bytes is larger than the limit of 40", "res 8 m a=2;B",
		}, lines(e.c.Take()))
	})
}

// TestWhatIsTooLargeForItsConnection: much larger than the limit, a frame whose rest
// does not come.
func TestWhatIsTooLargeForItsConnection(t *testing.T) {
	const text = "malformed request: a frame of %d bytes is larger than the limit of 40"
	for name, tc := range map[string]struct {
		send, want string
		wait       time.Duration
		counts     map[string]int64
	}{
		"far too large": {
			send: sized("req", 2, 41*16), want: "err 2 - " + fmt.Sprintf(text, 41*16) + "\n",
			counts: map[string]int64{"request_decoding_error": 1},
		},
		"one that stops": {
			send: sized("req", 2, 99)[:60], want: "err 2 - " + fmt.Sprintf(text, 99) + "\n", wait: time.Second,
			counts: map[string]int64{"request_decoding_error": 1, "partial_frame_timeout": 1},
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := newToyEnv(t, "toy.bounded", `, "limits": {"partial_frame_timeout": "1s"}`)
			e.say("req 1 m a")
			e.c.Send([]byte(tc.send))
			require.Equal(t, tc.want, e.got())
			e.Advance(tc.wait + 10*time.Millisecond)
			s := e.server(0)
			require.False(t, e.c.Closed())
			e.answer(s, "res "+ids(s)[0]+" m A")
			require.Equal(t, "res 1 m a=2;A\n", e.got())
			require.True(t, e.c.Closed(), "behind the last answer")
			e.counts(tc.counts)
		})
	}
	t.Run("one whose client ends", func(t *testing.T) {
		e := newToyEnv(t, "toy.bounded", "")
		e.c.Send([]byte(sized("req", 2, 99)[:60]))
		e.c.CloseWrite()
		require.True(t, e.c.Closed())
		e.counts(map[string]int64{"request_decoding_error": 2})
	})
}

// TestAClientSaysGoodbye: its connection is closed behind the last answer, and
// nothing is wrong with that.
func TestAClientSaysGoodbye(t *testing.T) {
	e := newToyEnv(t, "toy.bounded", "")
	e.c.Send([]byte("req 1 m a\nreq 2 m b\nbye\nreq 3 m c\n"))
	s := e.server(0)
	got := ids(s)
	require.Len(t, got, 2, "what comes behind it is not read")
	e.c.CloseWrite()
	e.answer(s, "res "+got[1]+" m B")
	require.False(t, e.c.Closed())
	e.answer(s, "res "+got[0]+" m A")
	require.Equal(t, []string{"res 2 m a=2;B", "res 1 m a=2;A"}, lines(e.c.Take()))
	require.True(t, e.c.Closed())
	e.Advance(time.Second)
	require.EqualValues(t, 1, e.cfg.Counter("toy.t.request_event"))
	for _, name := range []string{"request_decoding_error", "cx_destroy_local_with_active_rq", "request_abandoned", "request_unserved"} {
		require.Zero(t, e.cfg.Counter("toy.t."+name), name)
	}
	for _, l := range e.Log() {
		require.False(t, strings.HasPrefix(l, "[3]"), l)
	}
}
