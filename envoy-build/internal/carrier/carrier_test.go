package carrier

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

// connected is a carrier whose server is connected.
func connected(s *stage) (*Carrier, *filter, *upstream) {
	s.t.Helper()
	c, ev := s.workers[0].connect(toOne)
	s.settle()
	f := c.filter.(*filter)
	f.connect("10.0.0.1:20880")
	require.Equal(s.t, []string{"ready 10.0.0.1:20880"}, ev.take())
	require.Equal(s.t, []string{"continue", "connected"}, f.take())
	return c, f, ev
}

func TestTheWayOfACarrier(t *testing.T) {
	play(t, 1, func(t *testing.T, s *stage) {
		c, ev := s.workers[0].connect(host.Target{Cluster: "one", OriginalDst: "10.0.0.9:80"})
		require.Equal(t, waiting, c.state)
		s.settle()
		require.Equal(t, claimed, c.state)
		f := c.filter.(*filter)
		require.Equal(t, []string{"continue"}, f.take())
		require.Equal(t, map[string]string{
			"envoy.tcp_proxy.cluster":                             "one",
			"envoy.network.transport_socket.original_dst_address": "10.0.0.9:80",
		}, f.state)
		require.Empty(t, ev.events, "nothing before the server is connected")
		early := bytes("early")
		c.Write(&early.Buffer)
		require.Equal(t, 1, early.back)
		c.ReadDisable(true)
		require.Empty(t, f.take(), "nothing is sent or stopped before that")

		f.connect("10.0.0.1:20880")
		require.Equal(t, []string{"ready 10.0.0.1:20880"}, ev.take())
		b := bytes("hello")
		c.Write(&b.Buffer)
		require.Equal(t, []string{"connected", "send hello"}, f.take())
		require.Equal(t, 1, b.back)
		c.Answer([][]byte{[]byte("hi"), []byte("!")}, 3, false)
		c.Answer(nil, 0, false)
		require.Equal(t, []string{`data 3 ["hi" "!"]`}, ev.take())

		c.Close(true)
		c.Close(true)
		require.Equal(t, []string{"end"}, f.take(), "one end of stream")
		c.Answer([][]byte{[]byte("bye")}, 3, false)
		require.Equal(t, []string{`data 3 ["bye"]`}, ev.take(), "the server may still answer")
		f.end(true)
		require.Equal(t, []string{"closed"}, ev.take())
		late := bytes("late")
		c.Write(&late.Buffer)
		c.Answer([][]byte{[]byte("late")}, 4, true)
		c.Close(false)
		c.Closed(true)
		require.Equal(t, 1, late.back)
		require.Empty(t, ev.take())
		require.Empty(t, f.take())
	})
}

// TestTheServersEnd is told with its last bytes, or behind them, and by nothing else.
func TestTheServersEnd(t *testing.T) {
	play(t, 1, func(t *testing.T, s *stage) {
		for last, want := range map[string][]string{
			"":    {"closed by the server"},
			"bye": {`data 3 ["bye"]`, "closed by the server"},
		} {
			c, f, ev := connected(s)
			c.Answer([][]byte{[]byte(last)}, len(last), true)
			require.Equal(t, want, ev.take())
			require.Equal(t, []string{"close"}, f.take())
			s.settle()
			require.True(t, f.closed)
			require.Empty(t, ev.take(), "once")
		}
	})
}

// TestTheDialingSidesEnd ends the carrier, whatever its state.
func TestTheDialingSidesEnd(t *testing.T) {
	play(t, 1, func(t *testing.T, s *stage) {
		c, f, ev := connected(s)
		require.Equal(t, 1, c.Mark(1, true))
		s.settle()
		require.True(t, f.closed)
		require.Equal(t, []string{"reset"}, ev.take())
		p := s.workers[0].carriers.parked[0]
		require.Zero(t, p.Mark(1, false), "the mark waits for tcp_proxy")
		require.Zero(t, p.Mark(1, false))
		require.Equal(t, 1, p.Mark(1, true))
		s.settle()
		require.NotContains(t, s.workers[0].carriers.parked, p)
		keeps(s, s.workers[0]) // another takes its place
	})
}

func TestWhyACarrierHasEnded(t *testing.T) {
	unavailable := host.Hosts{Total: 2}
	for name, tc := range map[string]struct {
		cluster string // default: one
		dst     string
		hosts   *host.Hosts
		unknown bool
		chosen  bool
		flags   uint64
		dead    bool
		want    string
	}{
		"refused":                                {chosen: true, flags: 0x8020, want: "connect failure"},
		"refused, before 1.39":                   {chosen: true, want: "connect failure"},
		"no host":                                {hosts: &unavailable, flags: 2, want: "no healthy upstream"},
		"no host, before 1.39":                   {hosts: &unavailable, want: "no healthy upstream"},
		"no cluster":                             {cluster: "none", flags: 1 << 24, want: "unknown cluster"},
		"no cluster, before 1.39":                {cluster: "none", want: "unknown cluster"},
		"no cluster, and nobody to ask":          {unknown: true, flags: 1 << 24, want: "unknown cluster"},
		"circuit breaker":                        {flags: 0x80, want: "circuit breaker open"},
		"circuit breaker, before 1.39":           {want: "circuit breaker open"},
		"original destination":                   {dst: "10.0.0.9:80", hosts: &unavailable, want: "connect failure"},
		"original destination, no host":          {dst: "10.0.0.9:80", hosts: &host.Hosts{}, want: "no healthy upstream"},
		"nobody to ask":                          {unknown: true, want: "no healthy upstream"},
		"the listener went before it could tell": {dead: true, chosen: true, want: "draining"},
	} {
		t.Run(name, func(t *testing.T) {
			play(t, 1, func(t *testing.T, s *stage) {
				if tc.hosts != nil {
					s.workers[0].clusters["one"] = *tc.hosts
				}
				if tc.cluster == "" {
					tc.cluster = "one"
				}
				s.workers[0].unknown = tc.unknown
				c, ev := s.workers[0].connect(host.Target{Cluster: tc.cluster, OriginalDst: tc.dst})
				s.settle()
				f := c.filter.(*filter)
				f.chosen, f.flags = tc.chosen, tc.flags
				f.end(!tc.dead)
				require.Equal(t, []string{tc.want}, ev.take())
			})
		})
	}
}

func TestACarrierThatIsClosedWhileItConnects(t *testing.T) {
	play(t, 1, func(t *testing.T, s *stage) {
		for _, graceful := range []bool{true, false} {
			c, ev := s.workers[0].connect(toOne)
			s.settle()
			c.Close(graceful)
			require.Empty(t, ev.take(), "not within Close")
			s.settle()
			require.Equal(t, []string{"closed"}, ev.take())
		}
	})
}

// TestAServerThatTakesNoBytes: the mark that is sent then is read when it does again.
func TestAServerThatTakesNoBytes(t *testing.T) {
	play(t, 1, func(t *testing.T, s *stage) {
		c, f, ev := connected(s)
		require.Equal(t, 1, f.socket.marks())
		c.Blocked()
		c.Blocked()
		require.Equal(t, []string{"blocked true"}, ev.take())
		s.settle()
		require.Equal(t, 2, f.socket.marks(), "one more")
		require.Empty(t, f.take())
		require.Equal(t, 1, c.Mark(1, false))
		require.Equal(t, []string{"blocked false"}, ev.take())
		require.Equal(t, []string{"unblocked"}, f.take())
		require.Equal(t, 1, c.Mark(1, false), "a stray one")
		require.Empty(t, ev.take())
		c.Blocked()
		require.Equal(t, []string{"blocked true"}, ev.take(), "again")
		c.Close(false)
		s.settle()
		c.Blocked()
		require.Equal(t, []string{"closed"}, ev.take())
	})
}

// TestAServerIsNotRead: the dialing side takes nothing as long as that is.
func TestAServerIsNotRead(t *testing.T) {
	play(t, 1, func(t *testing.T, s *stage) {
		c, f, _ := connected(s)
		taken := 0
		fill := func() {
			go func() {
				n, _ := f.socket.Write([]byte("filler"))
				s.world.Lock()
				taken += n
				s.world.Unlock()
			}()
			s.settle()
		}
		fill()
		require.Equal(t, 6, taken)
		c.ReadDisable(true)
		c.ReadDisable(true)
		require.Equal(t, []string{"pause"}, f.take())
		fill() // is read just now
		fill()
		require.Equal(t, 12, taken)
		c.ReadDisable(false)
		c.ReadDisable(false)
		s.settle()
		require.Equal(t, []string{"resume"}, f.take())
		require.Equal(t, 18, taken)
		// One that ends while it is not read: its dialing side goes on, and ends.
		c.ReadDisable(true)
		fill()
		fill()
		require.Equal(t, 24, taken)
		f.end(true)
		s.settle()
		require.True(t, f.socket.ended)
	})
}

func TestAPanicEndsItsCarrierOnly(t *testing.T) {
	play(t, 1, func(t *testing.T, s *stage) {
		w := s.workers[0]
		// In an event: the host calls Failed and closes.
		c, f, ev := connected(s)
		ev.panics = true
		require.Panics(t, func() { c.Answer([][]byte{[]byte("x")}, 1, true) })
		ev.panics = false
		c.Aborted()
		c.Aborted()
		require.Equal(t, []string{`data 1 ["x"]`, "failed"}, ev.take())
		f.end(true)
		f.end(true)
		require.Equal(t, []string{"closed"}, ev.take(), "its end comes once")
		require.Zero(t, s.panics.Take())

		// In the last event, which nothing follows.
		c, ev = w.connect(toOne)
		s.settle()
		ev.panics = true
		c.filter.(*filter).end(false)
		require.Equal(t, over, c.state)
		require.Equal(t, []string{"draining", "failed"}, ev.take())
		require.EqualValues(t, 2, s.panics.Take(), "Failed has one too")

		// Of one that never had a filter.
		s.balance = func() int { return 0 }
		s.refuse = func() bool { return true }
		for range wantParked {
			w.connect(toOne)
		}
		c, ev = w.connect(toOne)
		ev.panics = true
		c.Close(false)
		other, otherEv := w.connect(toOne)
		other.Close(false)
		s.advance(10 * time.Millisecond)
		require.Equal(t, []string{"closed", "failed"}, ev.take())
		require.Equal(t, []string{"closed"}, otherEv.take(), "what is behind it is not lost")
		require.EqualValues(t, 2, s.panics.Take())

		// A paused one that fails is resumed, so that its dialing side ends.
		s.refuse = nil
		s.advance(2 * time.Second)
		c, f, _ = connected(s)
		c.ReadDisable(true)
		c.Aborted()
		f.end(true)
		s.settle()
		require.True(t, f.socket.ended)
	})
}

// TestWhatIsKnownOfTheServer is what Envoy knows when it is asked, while the server is
// connected.
func TestWhatIsKnownOfTheServer(t *testing.T) {
	play(t, 1, func(t *testing.T, s *stage) {
		waits, _ := s.workers[0].connect(toOne)
		require.Zero(t, waits.Server())
		c, f, _ := connected(s)
		require.Zero(t, c.Server(), "nothing has been sent")
		f.SetState("meltemi.workload", "cart;shop;cart;v1;east")
		f.SetState("meltemi.services", "[]")
		f.SetState("ours", "spiffe://ours")
		f.SetState("theirs", "spiffe://theirs")
		require.Equal(t, host.Server{Workload: "cart;shop;cart;v1;east", Services: "[]", Principal: "spiffe://theirs", OwnPrincipal: "spiffe://ours"}, c.Server())
		c.Close(false)
		s.settle()
		require.Zero(t, c.Server(), "it is gone")
	})
}
