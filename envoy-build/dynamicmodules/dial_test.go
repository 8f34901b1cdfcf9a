package dynamicmodules

import (
	"bufio"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestDialingGoesOn: after a panic, and once there is a listener. This process is
// the listener's, so that it is told the token.
func TestDialingGoesOn(t *testing.T) {
	l := newLoopback()
	l.want(0, 1)
	l.start.Do(func() { go l.run() }) // without a path it panics
	before := panics.Load()
	l.poke()
	require.Eventually(t, func() bool { return panics.Load() > before }, 10*time.Second, time.Millisecond)
	socket := filepath.Join(t.TempDir(), "s")
	l.serve(socket) // nobody listens yet
	ln, err := net.Listen("unix", socket)
	require.NoError(t, err)
	defer ln.Close()
	c, err := ln.Accept()
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
	b, err := bufio.NewReader(c).Peek(16 + 12 + 3 + len(l.nonce) + len(":1\n"))
	require.NoError(t, err)
	require.Contains(t, string(b), l.nonce+":1\n")
	l.want(0, 0)
}

// TestConnectWaitsForItsTurn: as long as the listener's queue is full of others.
func TestConnectWaitsForItsTurn(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	require.NoError(t, err)
	defer ln.Close()
	for {
		c, err := net.Dial("unix", socket)
		if err != nil {
			break
		}
		defer c.Close()
	}
	connected := make(chan error)
	go func() {
		c, err := connect(socket)
		if err == nil {
			c.Close()
		}
		connected <- err
	}()
	select {
	case err := <-connected:
		t.Fatalf("connected to a full queue: %v", err)
	case <-time.After(10 * time.Millisecond):
	}
	c, err := ln.Accept()
	require.NoError(t, err)
	c.Close()
	require.NoError(t, <-connected)
}

func TestTokensOfOthersAreNone(t *testing.T) {
	l := newLoopback()
	l.births[1] = &birth{id: 1}
	l.unborn.Add(1)
	zeros := strings.Repeat("0", len(l.nonce))
	for _, token := range []string{"", "1", l.nonce, l.nonce + ":", l.nonce + ":2", l.nonce + ":x", zeros + ":1", l.nonce + " 1"} {
		require.Nil(t, l.born([]byte(token), 0), token)
	}
	require.NotNil(t, l.born([]byte(l.nonce+":1"), 0))
	require.Nil(t, l.born([]byte(l.nonce+":1"), 0), "it is good once")
}
