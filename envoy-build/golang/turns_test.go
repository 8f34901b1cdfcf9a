package golang

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

// together has what it posts be due in the same turn of Envoy's loop.
func (e *envoy) together(do func()) {
	begin := make(chan struct{})
	e.post(func() { <-begin })
	do()
	close(begin)
}

func (p *peer) gets(n int) {
	p.e.t.Helper()
	p.e.Until("an answer", func() bool { return len(p.Received()) == n })
}

// TestATurnIsOneEvent: what clients send in one turn of Envoy's loop is carried out at its end.
func TestATurnIsOneEvent(t *testing.T) {
	m := &echo{}
	e := newEnvoy(t, m, true)
	require.NoError(t, e.Load("{}"))
	p, q := e.dial(PluginName), e.dial(PluginName)
	p.Send([]byte("a"))
	p.gets(1)
	before := m.ends.Load()
	e.together(func() {
		p.Send([]byte("b"))
		q.Send([]byte("c"))
		p.Send([]byte("d"))
	})
	p.gets(3)
	q.gets(1)
	require.EqualValues(t, 1, m.ends.Load()-before)
	p.mu.Lock()
	require.Equal(t, 2, p.writes)
	p.mu.Unlock()

	// Much does not wait.
	before = m.ends.Load()
	e.together(func() {
		p.Send(make([]byte, maxGathered+1))
		q.Send([]byte("c"))
	})
	p.gets(3 + maxGathered + 1)
	q.gets(2)
	require.EqualValues(t, 2, m.ends.Load()-before)
}

// TestATurnEndsWithoutTheClientThatWasToTell: that one is gone before the turn is over.
func TestATurnEndsWithoutTheClientThatWasToTell(t *testing.T) {
	m := &echo{}
	e := newEnvoy(t, m, true)
	require.NoError(t, e.Load("{}"))
	p, q := e.dial(PluginName), e.dial(PluginName)
	e.together(func() {
		p.Send([]byte("a"))
		p.Close()
		q.Send([]byte("b"))
	})
	q.gets(1)

	// Its end comes while somebody else is at work, and is told when that one has gone.
	r := e.dial(PluginName)
	e.together(func() {
		r.Send([]byte("a"))
		e.post(func() {
			r.c.w.lock.Lock()
			r.end(true)
			r.c.w.lock.Unlock()
		})
		q.Send([]byte("c"))
	})
	q.gets(2)

	// The same, of another one; with it there are bytes, and then the turn is over.
	p, r = e.dial(PluginName), e.dial(PluginName)
	e.together(func() {
		p.Send([]byte("a"))
		e.post(func() { p.c.w.lock.Lock() })
		q.Send([]byte("d"))
		e.post(func() {
			r.end(true)
			p.c.w.lock.Unlock()
		})
	})
	p.gets(1)
	q.gets(3)
}

// TestThePollerDoesNotWait: what it sees while somebody else is at work is done by that one.
func TestThePollerDoesNotWait(t *testing.T) {
	e, w := startedWorker(t)
	done := make(chan struct{})
	w.lock.Lock()
	w.Post(func() { close(done) })
	far, heard := w.tunnelWith(t, "answer", false)
	e.Until("the poller has looked", func() bool { return w.queued.Load() == 3 })
	require.Empty(t, heard.bytes)
	w.begin()
	<-done
	require.Equal(t, "answer", string(heard.bytes))
	require.Nil(t, heard.closed)
	w.leave()
	require.NoError(t, unix.Close(far))
	e.Until("its end is told", func() bool { w.lock.Lock(); defer w.lock.Unlock(); return heard.closed != nil })
}

// TestAnEndThatComesWithTheAnswer: both are told of once.
func TestAnEndThatComesWithTheAnswer(t *testing.T) {
	e, w := startedWorker(t)
	w.lock.Lock()
	_, heard := w.tunnelWith(t, "answer", true)
	w.leave()
	e.Until("its end is told", func() bool { w.lock.Lock(); defer w.lock.Unlock(); return heard.closed != nil })
	require.Equal(t, "answer", string(heard.bytes))
	require.Equal(t, host.Remote, *heard.closed)
}

// startedWorker is one that has answered a client.
func startedWorker(t *testing.T) (*envoy, *worker) {
	t.Helper()
	e := newEnvoy(t, &echo{}, true)
	require.NoError(t, e.Load("{}"))
	p := e.dial(PluginName)
	p.Send([]byte("a"))
	p.gets(1)
	return e, p.c.w
}

// heard is what a tunnel has told.
type heard struct {
	bytes  []byte
	closed *host.CloseReason
}

func (h *heard) Ready(string)                { panic("it is ready") }
func (h *heard) WriteBlocked(bool)           {}
func (h *heard) Closed(why host.CloseReason) { h.closed = &why }
func (h *heard) Aborted()                    {}

func (h *heard) Data(bufs [][]byte, _ int) {
	for _, b := range bufs {
		h.bytes = append(h.bytes, b...)
	}
}

// tunnelWith is a tunnel whose server has said something before the poller looks, and maybe
// gone. It is called with the worker's lock held.
func (w *worker) tunnelWith(t *testing.T, said string, gone bool) (server int, h *heard) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	_, err = unix.Write(fds[1], []byte(said))
	require.NoError(t, err)
	if gone {
		require.NoError(t, unix.Close(fds[1]))
	}
	h = &heard{}
	u := &tunnel{w: w, ev: h, fd: fds[0], slot: -1, state: ready}
	w.place(u)
	u.want(unix.EPOLLIN)
	return fds[1], h
}

// TestWhatATunnelWrites arrives in its order and whole, in however many buffers it was, and
// costs no memory.
func TestWhatATunnelWrites(t *testing.T) {
	_, w := startedWorker(t)
	w.lock.Lock()
	defer w.leave()
	server, _ := w.tunnelWith(t, "", false)
	u := w.slots[len(w.slots)-1]
	got := make([]byte, 64<<10)
	read := func() string {
		n, err := unix.Read(server, got)
		require.NoError(t, err)
		return string(got[:n])
	}
	write := func(texts ...string) {
		for _, text := range texts {
			b := w.Buffer(len(text))
			b.B = append(b.B, text...)
			u.Write(b)
		}
		w.carryOutTunnels()
	}
	write("one")
	require.Equal(t, "one", read())
	parts := []string{"", "b", "c", "", "d", "e", "f", "g", "h", "i", "j", ""}
	write(parts...)
	require.Equal(t, strings.Join(parts, ""), read())
	require.Empty(t, u.out)

	var want strings.Builder
	for i := range 40 { // more than fits
		parts := []string{strings.Repeat(string(rune('a'+i%26)), 9000), strings.Repeat("-", i)}
		write(parts...)
		want.WriteString(strings.Join(parts, ""))
	}
	require.True(t, u.blocked)
	var all strings.Builder
	for all.Len() < want.Len() {
		all.WriteString(read())
		u.flush()
	}
	require.Equal(t, want.String(), all.String())
	require.Empty(t, u.out)
	require.False(t, u.blocked)

	require.Zero(t, raced.AllocsPerRun(t, 100, func() {
		for range 20 {
			b := w.Buffer(100)
			b.B = b.B[:100]
			u.Write(b)
		}
		w.carryOutTunnels()
		if n, err := unix.Read(server, got); n != 2000 || err != nil {
			t.Error(n, err)
		}
	}))
	u.end(host.Local)
	require.NoError(t, unix.Close(server))
}

// TestAClientThatHasLeftIsClosed by the pipeline, which has not been handed all that it had sent:
// it is over at once, as Envoy has nothing more to tell of it.
func TestAClientThatHasLeftIsClosed(t *testing.T) {
	for _, flush := range []bool{true, false} {
		e := newEnvoy(t, &echo{}, true)
		require.NoError(t, e.Load("{}"))
		p := e.dial(PluginName)
		p.Send([]byte("a"))
		p.gets(1)
		w := p.c.w
		w.lock.Lock()
		p.c.ReadDisable(true)
		w.lock.Unlock()
		p.Send([]byte("b"))
		p.Close()
		e.Until("it has left", func() bool { w.lock.Lock(); defer w.lock.Unlock(); return p.c.away })
		w.lock.Lock()
		w.begin()
		require.False(t, p.c.gone)
		b := w.Buffer(6)
		b.B = append(b.B, "nobody"...)
		p.c.Write(b)
		p.c.Close(flush)
		w.finish()
		require.True(t, p.c.gone)
		require.Zero(t, w.holding.size)
		w.leave()
		p.gets(1)
	}
}
