package loopback

import (
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/envoy-build/internal/process"
)

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
		c, err := Connect(socket)
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

func TestNobodyListens(t *testing.T) {
	_, err := Connect(filepath.Join(t.TempDir(), "s"))
	require.ErrorContains(t, err, "connect: ")
}

const squatAt = "LOOPBACK_TEST_SQUAT"

// TestSquat is another process, which has taken a socket's name.
func TestSquat(t *testing.T) {
	socket := os.Getenv(squatAt)
	if socket == "" {
		t.Skip("what TestASquatterGetsNothing runs")
	}
	ln, err := net.Listen("unix", socket)
	require.NoError(t, err)
	os.Stdout.WriteString(".")
	c, err := ln.Accept()
	require.NoError(t, err)
	b, err := io.ReadAll(c)
	require.NoError(t, err)
	os.Stdout.WriteString("got <" + string(b) + ">")
}

func TestASquatterGetsNothing(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	cmd := exec.Command(os.Args[0], "-test.run=^TestSquat$")
	cmd.Env = append(os.Environ(), squatAt+"="+socket)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	defer func() { require.NoError(t, cmd.Wait()) }()
	_, err = out.Read(make([]byte, 1))
	require.NoError(t, err)
	_, err = Connect(socket)
	require.ErrorIs(t, err, errSquatted)
	b, err := io.ReadAll(out)
	require.NoError(t, err)
	require.Contains(t, string(b), "got <>")
}

// TestOverARealSocket: this process is the listener's, so that it is told the token.
func TestOverARealSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	require.NoError(t, err)
	defer ln.Close()
	var log lines
	d := New(Connect, log.logf, process.NewPanics(log.logf))
	defer d.Close()
	d.Want(0, 1)
	d.Serve(socket)
	c, err := ln.Accept()
	require.NoError(t, err)
	defer c.Close()
	want := prologue(d.nonce.token(1), netip.Addr{})
	b := make([]byte, len(want)+1)
	_, err = io.ReadFull(c, b)
	require.NoError(t, err)
	require.Equal(t, string(want)+"\n", string(b))
	d.Want(0, 0)
	require.NotNil(t, d.Arrived([]byte(d.nonce.token(1)), 0))
	require.Empty(t, log.all())
}
