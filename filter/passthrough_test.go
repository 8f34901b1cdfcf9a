package filter_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

type plainEnv struct {
	*filtertest.Host
	cfg     *filtertest.Config
	up, web *filtertest.Cluster
}

func newPlainEnv(t *testing.T, more string) *plainEnv {
	h := filtertest.New(t)
	e := &plainEnv{Host: h, up: h.Cluster("up", "h1"), web: h.Cluster("web", "w1")}
	e.cfg = h.MustLoad(toyConfig(`"codec": {"name": "toy.byid"}`, `, "passthrough": {"cluster": "web"}`+more))
	return e
}

func (e *plainEnv) counter(name string) int64 { return e.cfg.Counter("toy.t." + name) }

const hello = "GET /health HTTP/1.1\r\n\r\n"

func TestUnrecognisedBytesAreCarriedToTheirCluster(t *testing.T) {
	e := newPlainEnv(t, "")
	c := e.Dial(e.cfg)
	for _, b := range []byte(hello) {
		c.Send([]byte{b})
	}
	require.Len(t, e.web.Servers(), 1)
	s := e.web.Servers()[0]
	require.Equal(t, hello, string(s.Take()))
	s.Send([]byte("HTTP/1.1 200 OK\r\n\r\n"))
	e.Settle()
	require.Equal(t, "HTTP/1.1 200 OK\r\n\r\n", string(c.Take()))
	c.Send([]byte("req 1 m -\n")) // it is no request any more
	require.Equal(t, "req 1 m -\n", string(s.Take()))
	require.Empty(t, e.up.Servers())

	s.Send([]byte("bye"))
	s.Close()
	e.Settle()
	require.Equal(t, "bye", string(c.Take()))
	require.True(t, c.Closed())
	e.Advance(time.Second)
	other := e.Dial(e.cfg) // by which the statistics are told
	e.Advance(time.Second)
	require.EqualValues(t, 1, e.counter("passthrough_connection"))
	require.Zero(t, e.counter("passthrough_active"))
	require.Zero(t, e.counter("request"))
	require.Zero(t, e.counter("request_decoding_error"))

	say(other, "req 1 m -")
	require.Len(t, e.up.Servers(), 1, "what a codec recognises goes by the rules")
}

func TestAClientsEndOfStreamIsCarriedToo(t *testing.T) {
	e := newPlainEnv(t, "")
	e.web.Hang = true
	c := e.Dial(e.cfg)
	c.Send([]byte("GET"))
	c.Send([]byte(" /")) // while there is no server yet
	c.CloseWrite()
	e.web.Hang = false
	e.web.Admit()
	for _, s := range e.web.Servers() {
		require.Equal(t, "GET /", string(s.Take()))
	}
	require.True(t, c.Closed(), "the server has read to the end and closes")
}

// Of a client that sends no more no codec will recognise the protocol, though what it has
// sent may be how a request begins.
func TestWhatEndsBeforeACodecRecognisesItIsCarriedToo(t *testing.T) {
	for name, behind := range map[string]bool{"with its end": false, "before its end": true} {
		t.Run(name, func(t *testing.T) {
			e := newPlainEnv(t, "")
			got := ""
			e.web.Serve = func(_ *filtertest.Server, b []byte) int {
				got += string(b)
				return len(b)
			}
			c := e.Dial(e.cfg)
			if behind {
				c.Send([]byte("r"))
				require.Empty(t, e.web.Servers(), "it may be a request")
				c.CloseWrite()
			} else {
				c.SendLast([]byte("r"))
			}
			require.Equal(t, "r", got)
			require.True(t, c.Closed(), "the server has read to the end and closes")
			e.Dial(e.cfg) // by which the statistics are told
			e.Advance(time.Minute)
			require.EqualValues(t, 1, e.counter("passthrough_connection"))
			require.Zero(t, e.counter("passthrough_active"))
			require.Zero(t, e.counter("request_decoding_error"))
			require.Zero(t, e.counter("partial_frame_timeout"))
		})
	}
}

func TestPassthroughWithoutAServer(t *testing.T) {
	for _, r := range []host.CloseReason{host.ConnectFailed, host.NoHost, host.NoCluster, host.Overflow} {
		e := newPlainEnv(t, "")
		e.web.Fail = func() (host.CloseReason, bool) { return r, true }
		c := e.Dial(e.cfg)
		c.Send([]byte(hello))
		require.True(t, c.Closed())
		require.Empty(t, c.Received())
		require.Contains(t, strings.Join(e.Log(), "\n"), "unrecognised bytes")
	}
}

func TestPassthroughStopsWhoeverIsTooFast(t *testing.T) {
	e := newPlainEnv(t, "")
	c := e.Dial(e.cfg)
	c.Send([]byte(hello))
	s := e.web.Servers()[0]
	s.Block(true)
	c.Send([]byte("a"))
	require.True(t, c.ReadDisabled())
	c.Send([]byte("b"))
	s.Block(false)
	e.Settle()
	require.False(t, c.ReadDisabled())
	require.Equal(t, hello+"ab", string(s.Take()))

	c.Block(true)
	big := strings.Repeat("x", 1<<20)
	for range 4 {
		s.Send([]byte(big))
		e.Settle()
	}
	require.GreaterOrEqual(t, s.Unread(), 2<<20)
	// As with tcp_proxy: it may read only when it has sent all that it has.
	require.False(t, c.ReadDisabled())
	c.Send([]byte("c"))
	require.Equal(t, "c", string(s.Take()))
	c.Block(false)
	e.Settle()
	require.Len(t, c.Take(), 4<<20)
	require.Zero(t, s.Unread())
}

func TestAClientThatHasGoneLeavesItsServer(t *testing.T) {
	e := newPlainEnv(t, "")
	c := e.Dial(e.cfg)
	c.Send([]byte(hello))
	s := e.web.Servers()[0]
	c.Close()
	require.False(t, s.Open())
	require.Equal(t, hello, string(s.Take()))

	e.web.Hang = true // and one that goes before there is a server
	c = e.Dial(e.cfg)
	c.Send([]byte(hello))
	c.Close()
	e.web.Admit()
	require.Empty(t, e.web.Servers())
}

func TestAnIdlePassthroughIsClosed(t *testing.T) {
	for more, idle := range map[string]time.Duration{"": time.Hour, `, "idle_timeout": "2s"`: 2 * time.Second} {
		e := newPlainEnv(t, more)
		c := e.Dial(e.cfg)
		c.Send([]byte(hello))
		s := e.web.Servers()[0]
		for range 3 { // either side's bytes count
			e.Advance(idle - time.Second)
			s.Send([]byte("x"))
			e.Settle()
		}
		require.False(t, c.Closed())
		e.Advance(idle + time.Second)
		require.True(t, c.Closed())
		require.False(t, s.Open())
	}
}

func TestPassthroughOfAReplacedListenerGoesOn(t *testing.T) {
	e := newPlainEnv(t, "")
	c := e.Dial(e.cfg)
	c.Send([]byte(hello))
	e.MustLoad(toyConfig(`"codec": {"name": "toy.byid"}`, `, "passthrough": {"cluster": "web"}`))
	e.Advance(time.Minute)
	require.False(t, c.Closed())
}

func TestPassthroughThatIsRefused(t *testing.T) {
	h := filtertest.New(t)
	_, err := h.Load(toyConfig(`"codec": {"name": "toy.byid"}`, `, "passthrough": {}`))
	require.ErrorContains(t, err, "passthrough.cluster: required")
}
