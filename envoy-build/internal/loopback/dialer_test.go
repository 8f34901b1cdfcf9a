package loopback

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var localhost = netip.MustParseAddr("127.0.0.1")

func TestWhatIsMissingIsDialled(t *testing.T) {
	virtually(t, func(t *testing.T, l *listener) {
		l.d.Want(0, 2)
		l.d.Want(3, 1)
		l.settle()
		require.Empty(t, l.attempts, "there is no listener yet")
		l.d.Serve("@here")
		l.settle()
		require.Len(t, l.sockets, 3)
		tokens := map[string]bool{}
		for _, s := range l.sockets {
			h := s.header(t)
			require.Equal(t, netip.AddrPortFrom(localhost, 1), h.source)
			require.Equal(t, netip.AddrPortFrom(localhost, 1), h.destination)
			require.Equal(t, "\n", h.behind, "the mark")
			tokens[h.token] = true
		}
		require.Len(t, tokens, 3, "no two have the same token")
		// Which worker gets one is the balancer's matter: all of them go to one here.
		l.d.Want(0, 0)
		l.d.Want(3, 0)
		for _, s := range l.sockets {
			c := l.arrive(s, 7)
			require.NotNil(t, c)
			require.False(t, c.Source().IsValid())
		}
		l.advance(time.Minute)
		require.Len(t, l.sockets, 3)
		require.Empty(t, l.log.all())
		for _, s := range l.sockets {
			require.False(t, s.ended, "it is held")
		}
	})
}

func TestATokenIsGoodOnce(t *testing.T) {
	virtually(t, func(t *testing.T, l *listener) {
		l.d.Want(0, 1)
		l.d.Serve("@here")
		l.settle()
		l.d.Want(0, 0)
		token := l.sockets[0].header(t).token
		secret := strings.TrimSuffix(token, ":1")
		require.NotEqual(t, token, secret)
		for _, other := range []string{
			"", "1", secret, secret + ":", secret + ":2", secret + ":x", secret + " 1", secret + ":-1",
			strings.Repeat("0", len(secret)) + ":1", secret[1:] + ":1", token + "0",
		} {
			require.Nil(t, l.d.Arrived([]byte(other), 0), other)
		}
		require.NotNil(t, l.d.Arrived([]byte(token), 0))
		require.Nil(t, l.d.Arrived([]byte(token), 0))
		require.Equal(t, []string{"meltemi: a connection to the loopback listener without this process's token was closed"}, l.log.all())
	})
}

func TestNoTwoProcessesHaveTheSameSecret(t *testing.T) {
	require.NotEqual(t, newNonce(), newNonce())
	require.Len(t, newNonce(), 32)
}

// TestFewAreOnTheirWay: the next is dialled when one has appeared.
func TestFewAreOnTheirWay(t *testing.T) {
	virtually(t, func(t *testing.T, l *listener) {
		l.d.Want(0, 100)
		l.d.Want(1, 100)
		l.d.Serve("@here")
		l.settle()
		require.Len(t, l.sockets, maxUnborn)
		for i := range 10 {
			l.arrive(l.sockets[i], i%2)
			l.settle()
			require.Len(t, l.sockets, maxUnborn+1+i)
		}
		l.d.Want(0, 0)
		l.d.Want(1, 4)
		l.arrive(l.sockets[10], 0)
		l.settle()
		require.Len(t, l.sockets, maxUnborn+10, "those on their way are enough")
	})
}

// TestOneThatNeverAppearsIsGivenUp: another process, which has inherited the
// listener, has taken it.
func TestOneThatNeverAppearsIsGivenUp(t *testing.T) {
	virtually(t, func(t *testing.T, l *listener) {
		l.d.Want(0, 1)
		l.d.Serve("@here")
		l.advance(bornTime - time.Millisecond)
		require.Len(t, l.sockets, 1)
		require.False(t, l.sockets[0].ended)
		l.advance(time.Millisecond)
		require.True(t, l.sockets[0].ended)
		require.Nil(t, l.arrive(l.sockets[0], 0), "it comes too late")
		l.advance(dialPause)
		require.Len(t, l.sockets, 2, "another is dialled")
		require.NotNil(t, l.arrive(l.sockets[1], 0))
		l.d.Want(0, 0)
		l.advance(time.Minute)
		require.False(t, l.sockets[1].ended, "one that has appeared is not given up")
		require.Empty(t, l.d.conns[1])
	})
}

func TestPausesAfterFailedAttempts(t *testing.T) {
	virtually(t, func(t *testing.T, l *listener) {
		l.on = func(string) error { return errRefused }
		l.d.Want(0, 1)
		l.d.Serve("@here")
		l.advance(4 * time.Second)
		var after []string
		for _, a := range l.attempts {
			after = append(after, a.after.String())
		}
		require.Equal(t, []string{"0s", "20ms", "60ms", "140ms", "300ms", "620ms", "1.26s", "2.26s", "3.26s"}, after)
		// Another listener is tried at once, and the pauses begin anew.
		l.d.Serve("@there")
		l.settle()
		require.Equal(t, attempt{"@there", 4 * time.Second}, l.attempts[len(l.attempts)-1])
		l.advance(dialPause)
		require.Equal(t, attempt{"@there", 4*time.Second + dialPause}, l.attempts[len(l.attempts)-1])
		l.on = nil
		l.advance(2 * dialPause)
		require.Len(t, l.sockets, 1)
	})
}

func TestDialingGoesOnAfterAPanic(t *testing.T) {
	virtually(t, func(t *testing.T, l *listener) {
		l.on = func(string) error {
			l.on = nil
			panic("once")
		}
		l.d.Want(0, 1)
		l.d.Serve("@here")
		l.settle()
		require.EqualValues(t, 1, l.panics.Take())
		require.Empty(t, l.sockets)
		l.advance(dialPause)
		require.Len(t, l.sockets, 1)
		require.NotNil(t, l.arrive(l.sockets[0], 0))
	})
}

// TestAListenerThatClosesAll: it is not dialled in a loop, the log says why nothing
// goes on, and a right one is dialled at once.
func TestAListenerThatClosesAll(t *testing.T) {
	virtually(t, func(t *testing.T, l *listener) {
		l.accepted = func(s *socket) { s.Close() }
		l.d.Want(0, 3)
		l.d.Serve("@wrong")
		l.advance(time.Minute)
		wrong := len(l.attempts)
		require.Greater(t, wrong, 60, "it is tried on")
		require.Less(t, wrong, 1000)
		require.Equal(t, []string{"meltemi: loopback listener @wrong closes its connections before the filter carrier has them"}, l.log.all())
		require.Empty(t, l.d.conns, "nothing is kept of them")

		l.accepted = nil
		l.d.Serve("@right")
		l.settle()
		last := l.attempts[len(l.attempts)-1]
		require.Equal(t, attempt{"@right", time.Minute}, last)
		require.NotNil(t, l.arrive(l.sockets[len(l.sockets)-1], 0))
		require.Zero(t, l.d.stillborn.Load())
	})
}

// TestWhoHoldsTheSocket is told in the log, a line a second.
func TestWhoHoldsTheSocket(t *testing.T) {
	virtually(t, func(t *testing.T, l *listener) {
		l.on = func(string) error { return fmt.Errorf("%w 7, not to this one (8)", errSquatted) }
		l.d.Want(0, 1)
		l.d.Expect("@taken")
		l.d.Expect("@other")
		l.advance(10 * time.Second)
		require.Equal(t, "meltemi: loopback listener @taken: the socket belongs to process 7, not to this one (8)", l.log.all()[0])
		require.Contains(t, l.log.all()[1], "more such lines left out")
		require.LessOrEqual(t, len(l.log.all()), 10)
	})
}

// TestABrokenSocketIsDialledAgain: the prologue cannot be sent.
func TestABrokenSocketIsDialledAgain(t *testing.T) {
	virtually(t, func(t *testing.T, l *listener) {
		l.d.connect = func(path string) (net.Conn, error) {
			c, err := l.connect(path)
			if len(l.sockets) == 1 {
				l.sockets[0].Close()
			}
			return c, err
		}
		l.d.Want(0, 1)
		l.d.Serve("@here")
		l.settle()
		require.Len(t, l.sockets, 1)
		require.Empty(t, l.d.conns)
		require.Zero(t, l.d.unborn.Load())
		l.advance(3 * dialPause)
		require.Len(t, l.sockets, 2)
		require.NotNil(t, l.arrive(l.sockets[1], 0))
	})
}

// TestAPausedOneReadsNothing: so that the host cannot get rid of the filler, and with
// it stops to read the server.
func TestAPausedOneReadsNothing(t *testing.T) {
	virtually(t, func(t *testing.T, l *listener) {
		l.d.Want(0, 1)
		l.d.Serve("@here")
		l.settle()
		l.d.Want(0, 0)
		s := l.sockets[0]
		c := l.arrive(s, 0)
		written := 0
		write := func(n int) {
			go func() {
				n, _ := s.Write(make([]byte, n))
				l.world.Lock()
				written += n
				l.world.Unlock()
			}()
			l.settle()
		}
		write(1)
		require.Equal(t, 1, written)
		c.Pause()
		write(10)
		require.Equal(t, 11, written, "what is being read just now")
		write(20)
		l.advance(time.Hour)
		require.Equal(t, 11, written)
		c.Resume()
		l.settle()
		require.Equal(t, 31, written)
		c.Resume() // of none
		c.Pause()
		c.Resume()
		c.Pause()
		write(10)
		write(10)
		require.Equal(t, 41, written)
		c.Resume()
		l.settle()
		require.Equal(t, 51, written)

		c.Mark()
		l.settle()
		require.Equal(t, "\n\n", s.header(t).behind)
		s.Close()
		l.settle()
		require.Empty(t, l.d.conns)
		c.Mark() // nobody reads it, and nobody waits
		l.settle()
	})
}

// TestAPausedOneThatEnds needs to be resumed to notice it.
func TestAPausedOneThatEnds(t *testing.T) {
	virtually(t, func(t *testing.T, l *listener) {
		l.d.Want(0, 1)
		l.d.Serve("@here")
		l.settle()
		l.d.Want(0, 0)
		c := l.arrive(l.sockets[0], 0)
		c.Pause()
		go l.sockets[0].Write([]byte("filler"))
		l.settle()
		l.sockets[0].Close()
		l.settle()
		require.NotEmpty(t, l.d.conns)
		c.Resume()
		l.settle()
		require.Empty(t, l.d.conns)
	})
}
