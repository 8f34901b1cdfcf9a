package linger

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// TestMain fails when a test leaves a goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// reader is a closed client that reads so many bytes of what is left at a time.
type reader struct {
	place  *Place
	closed time.Time
	left   uint32
	speed  uint32
	every  time.Duration
	cut    time.Duration // when it was, since it was closed
}

func (r *reader) Unsent(most uint32) uint32 {
	read := r.speed * uint32(time.Since(r.closed)/max(r.every, 1))
	return min(most, r.left-min(read, r.left))
}

func (r *reader) Cut() {
	if r.cut == 0 {
		r.cut = time.Since(r.closed)
	}
}

// run has the list's work done for a while, on this goroutine.
func run(posted chan func(), d time.Duration) {
	for end := time.After(d); ; {
		select {
		case f := <-posted:
			f()
		case <-end:
			return
		}
	}
}

func newList() (l *List, posted chan func()) {
	start := time.Now()
	posted = make(chan func(), 10)
	return &List{
		Now:  func() time.Duration { return time.Since(start) },
		Post: func(f func()) { posted <- f },
	}, posted
}

func TestWhoReadsNothingIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, posted := newList()
		silent := &reader{closed: time.Now(), left: 1 << 20}
		slow := &reader{closed: time.Now(), left: 1 << 30, speed: 1, every: time.Second}
		rare := &reader{closed: time.Now(), left: 1 << 30, speed: 1, every: lingerTime - lingerTick}
		silent.place = l.Add(silent, silent.place)
		slow.place = l.Add(slow, slow.place)
		rare.place = l.Add(rare, rare.place)
		run(posted, 10*time.Minute)
		require.InDelta(t, lingerTime, silent.cut, float64(2*lingerTick))
		require.Zero(t, slow.cut, "one that reads is given its time")
		require.Zero(t, rare.cut)
		l.Remove(rare.place)
		l.Remove(silent.place)
		slow.speed = 0
		slow.left /= 2
		run(posted, lingerTime+2*lingerTick)
		require.NotZero(t, slow.cut, "it has stopped")
		l.Remove(slow.place)
		run(posted, 2*lingerTick)
		require.Nil(t, l.places)
		require.False(t, l.swept, "nobody is looked after")
		again := &reader{closed: time.Now(), left: 1}
		again.place = l.Add(again, again.place)
		run(posted, 10*time.Minute)
		require.NotZero(t, again.cut)
		l.Remove(again.place)
		run(posted, 2*lingerTick)
	})
}

func TestClientsThatAreGoneLeaveNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, posted := newList()
		clients := make([]*reader, 5)
		for i := range clients {
			clients[i] = &reader{}
			clients[i].place = l.Add(clients[i], clients[i].place)
			clients[i].place = l.Add(clients[i], clients[i].place)
		}
		for n, i := range []int{2, 4, 0, 3, 1} {
			l.Remove(clients[i].place)
			l.Remove(clients[i].place)
			require.Len(t, l.places, len(clients)-1-n)
			for place, p := range l.places {
				require.Equal(t, place+1, p.at)
			}
		}
		run(posted, 2*lingerTick)
	})
}
