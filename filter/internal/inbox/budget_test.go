package inbox

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/internal/timer"
)

// sender is a peer that sends one frame after the other.
type sender struct {
	in      Inbox
	frame   Frame
	starved bool
	stalled bool
	held    bool
}

func (s *sender) Starve(starve bool) { s.starved = starve }
func (s *sender) Held() bool         { return s.held }
func (s *sender) Stalled()           { s.stalled = true; s.gone() }

// sends makes the beginning of its frame, of which need bytes are to come, n bytes
// long, if it may.
func (s *sender) sends(n, need int) {
	if s.frame.MayGrow(n - s.in.Size()) {
		s.in.Keep(make([]byte, n), need)
		s.frame.Kept(false)
	} else if s.in.Buffered() == 0 {
		s.in.Wait(need) // the host keeps it
	}
}

// ends has the frame be whole.
func (s *sender) ends() {
	s.in.Wait(0)
	s.frame.Kept(true)
}

// gone is the end of the peer.
func (s *sender) gone() { s.in.Wait(0); s.frame.Forget() }

// desk is a budget with its clock.
type desk struct {
	Budget
	now    time.Duration
	timers *timer.Wheel
}

func newDesk(limit int, senders ...*sender) *desk {
	d := &desk{now: time.Hour}
	d.timers = timer.New(d.now)
	d.Init(time.Second, func() time.Duration { return d.now }, d.timers)
	for _, s := range senders {
		s.frame.Init(s, &s.in, &d.Budget, limit)
	}
	return d
}

func (d *desk) pass(t time.Duration) { d.now += t; d.timers.Advance(d.now) }

// TestAFrameThatHasJustBegunHasItsTime, however long its peer was idle before and
// however little of it has come.
func TestAFrameThatHasJustBegunHasItsTime(t *testing.T) {
	const piece, need, limit = 10_000, 16 << 20, 100_000
	var one, other, favoured, starved sender
	d := newDesk(limit, &one, &other, &favoured, &starved)
	other.sends(piece, need)
	other.gone()
	d.pass(time.Minute)
	favoured.sends(2*limit, need)
	starved.sends(piece, need)
	require.True(t, starved.starved)
	// There is room for what has come of others, not for all of starved's.
	favoured.in = Inbox{}
	favoured.in.Keep(make([]byte, piece), need)
	favoured.frame.Kept(false)
	require.True(t, starved.starved)
	one.sends(piece, need)
	other.sends(piece, need)
	d.pass(600 * time.Millisecond)
	require.False(t, one.stalled)
	require.False(t, other.stalled)
	d.pass(time.Second)
	require.True(t, favoured.stalled)
	require.False(t, starved.starved)
	require.False(t, other.stalled, "nobody waits any more")
}

// TestBeyondTheLimitOneGoesOn, and the next one when its frame is whole, in the
// order in which they came.
func TestBeyondTheLimitOneGoesOn(t *testing.T) {
	const limit, large = 1000, 700
	var a, b, c, small sender
	d := newDesk(limit, &a, &b, &c, &small)
	a.sends(large, 5*large)
	b.sends(large, 2*large)
	require.False(t, b.starved, "one may")
	c.sends(large, large+1)
	a.sends(2*large, 5*large)
	require.True(t, c.starved)
	require.True(t, a.starved)
	bytes, peers := d.Held()
	require.Equal(t, 2*large, bytes, "more stays with the host")
	require.Equal(t, 3, peers)
	b.ends()
	require.Equal(t, []bool{true, false, false}, []bool{a.starved, b.starved, c.starved}, "c came first")
	c.sends(large, large+1)
	require.False(t, c.starved)
	c.ends()
	require.False(t, a.starved)
	a.sends(5*large-1, 5*large)
	a.ends()
	bytes, peers = d.Held()
	require.Zero(t, bytes+peers)
	// Whoever has room is in nobody's way.
	small.sends(limit/2, limit)
	a.sends(limit/2, limit)
	_, peers = d.Held()
	require.Zero(t, peers)
}

// TestAFrameBehindTheLastOneHasItsOwnTurn: who sends one large frame right behind
// the other does not go on for good.
func TestAFrameBehindTheLastOneHasItsOwnTurn(t *testing.T) {
	var a, b sender
	d := newDesk(1000, &a, &b)
	a.sends(2000, 9000)
	b.sends(2000, 9000)
	require.True(t, b.starved)
	// The frame and the beginning of another have come at once.
	a.frame.Passed()
	require.False(t, a.frame.MayGrow(2000))
	a.in.Wait(9000)
	a.frame.Kept(true)
	require.Equal(t, []bool{true, false}, []bool{a.starved, b.starved})
	b.sends(9000-1, 9000)
	b.ends()
	require.False(t, a.starved)
	a.sends(2000, 9000)
	bytes, peers := d.Held()
	require.Equal(t, 2000, bytes)
	require.Equal(t, 1, peers)
}

// TestWhoLeavesIsNotWaitedFor, whether it is the one that goes on or starved.
func TestWhoLeavesIsNotWaitedFor(t *testing.T) {
	var a, b, c sender
	d := newDesk(1000, &a, &b, &c)
	a.sends(2000, 9000)
	b.sends(2000, 9000)
	c.sends(2000, 9000)
	b.gone()
	require.Equal(t, []bool{true, true}, []bool{b.starved, c.starved}, "b is not told")
	a.gone()
	require.False(t, c.starved)
	c.sends(2000, 9000)
	bytes, peers := d.Held()
	require.Equal(t, 2000, bytes)
	require.Equal(t, 1, peers)
}

// TestWhoSendsNothingMoreIsGivenUp while others wait: not who goes on, however slowly
// by its size, nor who cannot go on for another reason.
func TestWhoSendsNothingMoreIsGivenUp(t *testing.T) {
	const need = 32 * 1000
	for name, tc := range map[string]struct {
		each    int // bytes, each 0.9 s
		held    bool
		waiting bool
		stalls  bool
	}{
		"silence":           {0, false, true, true},
		"a trickle":         {need/32/2 - 1, false, true, true},
		"a 32nd of it":      {need/32 + 1, false, true, false},
		"not its own fault": {0, true, true, false},
		"nobody waits":      {0, false, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			first, second := sender{held: tc.held}, sender{}
			d := newDesk(1000, &first, &second)
			size := 2000
			first.sends(size, need)
			if tc.waiting {
				second.sends(2000, need)
				require.True(t, second.starved)
			}
			for range 2 {
				d.pass(900 * time.Millisecond)
				if size += tc.each; !first.stalled {
					first.sends(size, need)
				}
			}
			require.Equal(t, tc.stalls, first.stalled)
			require.Equal(t, tc.waiting && !tc.stalls, second.starved)
			require.False(t, second.stalled)
		})
	}
}

// TestTheBudgetsBooks: whatever many peers do, the sum is right, nobody is starved
// while there is nobody that goes on, and in the end nothing is left.
func TestTheBudgetsBooks(t *testing.T) {
	const limit = 50_000
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		peers := make([]*sender, 12)
		for i := range peers {
			peers[i] = &sender{}
		}
		d := newDesk(limit, peers...)
		starved := 0
		for range 2000 {
			s := peers[rnd.IntN(len(peers))]
			switch op := rnd.IntN(20); {
			case op == 0:
				s.gone()
				s.starved = false // another peer has come
			case s.starved: // it is not read
			case op < 4 && s.in.Buffered() > 0:
				s.ends()
			case op < 18:
				n := s.in.Buffered() + 1 + rnd.IntN(20_000)
				s.sends(n, 2*n)
			default:
				d.pass(100 * time.Millisecond)
			}
			sum, waiting := 0, 0
			for _, s := range peers {
				sum += s.in.Size()
				if s.in.Size() != s.frame.Size() {
					t.Fatalf("%d bytes are counted for %d", s.frame.Size(), s.in.Size())
				}
				if s.starved {
					waiting++
				}
			}
			bytes, n := d.Held()
			if bytes != sum || waiting > 0 && n != waiting+1 {
				t.Fatalf("%d bytes of %d are counted, %d peers of %d that wait and one", bytes, sum, n, waiting)
			}
			starved = max(starved, waiting)
		}
		require.Greater(t, starved, 3, "the limit was reached")
		for range peers {
			for _, s := range peers {
				if !s.starved {
					s.ends()
				}
			}
		}
		bytes, n := d.Held()
		require.Zero(t, bytes+n)
		d.pass(time.Minute)
		_, running := d.timers.Next()
		require.False(t, running, "nothing is looked for any more")
	}
}
