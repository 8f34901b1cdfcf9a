package inbox

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/internal/timer"
)

type sender struct {
	in      Inbox
	frame   Frame
	starved bool
	stalled bool
}

func (s *sender) Starve(starve bool) { s.starved = starve }
func (*sender) Held() bool           { return false }
func (s *sender) Stalled()           { s.stalled = true; s.in.Wait(0); s.frame.Forget() }

func (s *sender) sends(n, need int) {
	if s.frame.MayGrow(n) {
		s.in.Keep(make([]byte, n), need)
		s.frame.Kept(false)
	} else {
		s.in.Wait(need)
	}
}

// TestAFrameThatHasJustBegunHasItsTime, however long its peer was idle before and
// however little of it has come.
func TestAFrameThatHasJustBegunHasItsTime(t *testing.T) {
	const piece, need, limit = 10_000, 16 << 20, 100_000
	now := time.Hour
	w := timer.New(now)
	var b Budget
	b.Init(time.Second, func() time.Duration { return now }, w)
	var one, other, favoured, starved sender
	for _, s := range []*sender{&one, &other, &favoured, &starved} {
		s.frame.Init(s, &s.in, &b, limit)
	}
	other.sends(piece, need)
	other.in.Wait(0)
	other.frame.Forget()
	now += time.Minute
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
	pass := func(d time.Duration) { now += d; w.Advance(now) }
	pass(600 * time.Millisecond)
	require.False(t, one.stalled)
	require.False(t, other.stalled)
	pass(time.Second)
	require.True(t, favoured.stalled)
	require.False(t, starved.starved)
	require.False(t, other.stalled, "nobody waits any more")
}
