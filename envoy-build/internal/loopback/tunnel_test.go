package loopback

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// dial dials a tunnel, while the listener goes on.
func (l *listener) dial(ctx context.Context, cluster string) (c net.Conn, err error) {
	l.world.Unlock()
	defer l.world.Lock()
	return l.d.Tunnel(ctx, cluster)
}

// tunnels is how many have not appeared yet.
func (l *listener) tunnels() int {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	return len(l.d.tunnels)
}

func TestATunnel(t *testing.T) {
	virtually(t, func(t *testing.T, l *listener) {
		l.d.Serve("@here")
		c, err := l.dial(t.Context(), "xds")
		require.NoError(t, err)
		defer c.Close()
		l.settle()
		require.Len(t, l.sockets, 1)
		s := l.sockets[0]
		h := s.header(t)
		require.Equal(t, netip.AddrPortFrom(localhost, 1), h.source)
		require.Empty(t, h.behind, "no mark: the bytes are the server's")
		token := []byte(h.token)
		cluster, ok := l.d.TunnelTo(token)
		require.True(t, ok)
		require.Equal(t, "xds", cluster)
		_, ok = l.d.TunnelTo(token)
		require.False(t, ok, "once")
		require.Nil(t, l.d.Arrived(token, 0), "it is no carrier")
		go c.Write([]byte("PRI"))
		l.settle()
		require.Contains(t, string(s.received), h.token+"PRI")

		// A carrier is no tunnel.
		l.d.Want(0, 1)
		l.settle()
		l.d.Want(0, 0)
		_, ok = l.d.TunnelTo([]byte(l.sockets[1].header(t).token))
		require.False(t, ok)
		require.NotNil(t, l.arrive(l.sockets[1], 0))
		for _, stranger := range []string{"", "x", "nonce:1"} {
			_, ok = l.d.TunnelTo([]byte(stranger))
			require.False(t, ok)
		}
	})
}

// TestATunnelWaitsForTheListener as long as its caller does.
func TestATunnelWaitsForTheListener(t *testing.T) {
	virtually(t, func(t *testing.T, l *listener) {
		time.AfterFunc(3*time.Second, func() { l.d.Serve("@here") })
		l.on = func(string) error {
			if time.Since(l.started) < 5*time.Second {
				return errRefused
			}
			return nil
		}
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := l.dial(impatient, "xds")
		require.ErrorIs(t, err, errNoListener)
		impatient, cancel = context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		_, err = l.dial(impatient, "xds")
		require.ErrorIs(t, err, errRefused)
		c, err := l.dial(t.Context(), "xds")
		require.NoError(t, err)
		c.Close()
		require.Less(t, time.Since(l.started), 6*time.Second)
	})
}

// TestATunnelThatNeverAppears leaves nothing behind.
func TestATunnelThatNeverAppears(t *testing.T) {
	virtually(t, func(t *testing.T, l *listener) {
		l.d.Serve("@here")
		c, err := l.dial(t.Context(), "xds")
		require.NoError(t, err)
		defer c.Close()
		l.settle()
		require.Equal(t, 1, l.tunnels())
		l.advance(bornTime)
		synctest.Wait()
		require.Zero(t, l.tunnels())
	})
}
