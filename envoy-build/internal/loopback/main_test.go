package loopback

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/meltemi-mesh/meltemi/envoy-build/internal/process"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// TestMain fails when a test leaves a goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// listener is a loopback listener that the test plays, in virtual time.
type listener struct {
	t       *testing.T
	d       *Dialer
	panics  *process.Panics
	started time.Time
	log     lines

	// world is what follows and the sockets: the test's, but for when it waits.
	world sync.Mutex
	// attempts are when which path was dialled.
	attempts []attempt
	sockets  []*socket
	// on, if set, is called for each attempt instead of accepting it.
	on func(path string) error
	// accepted, if set, is called for each accepted one when its prologue is there.
	accepted func(s *socket)
}

type attempt struct {
	path  string
	after time.Duration
}

// socket is the listener's end of a connection.
type socket struct {
	net.Conn
	received []byte
	ended    bool
}

// virtually runs f in virtual time with a dialer whose listener the test plays.
func virtually(t *testing.T, f func(t *testing.T, l *listener)) {
	synctest.Test(t, func(t *testing.T) {
		l := &listener{t: t, started: time.Now()}
		l.panics = process.NewPanics(l.log.logf)
		l.d = New(l.connect, l.log.logf, l.panics)
		l.world.Lock()
		defer l.world.Unlock()
		defer func() {
			l.d.Close()
			l.settle()
			for _, s := range l.sockets {
				s.Close()
			}
		}()
		f(t, l)
	})
}

// lines is a log, without what is for debugging.
type lines struct {
	mu    sync.Mutex
	lines []string
}

func (l *lines) logf(level host.Level, format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if level > host.Debug {
		l.lines = append(l.lines, fmt.Sprintf(format, args...))
	}
}

func (l *lines) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.lines)
}

func (l *listener) connect(path string) (net.Conn, error) {
	l.world.Lock()
	defer l.world.Unlock()
	l.attempts = append(l.attempts, attempt{path, time.Since(l.started)})
	if l.on != nil {
		if err := l.on(path); err != nil {
			return nil, err
		}
	}
	dialing, accepted := net.Pipe()
	s := &socket{Conn: accepted}
	l.sockets = append(l.sockets, s)
	go s.read(l)
	return dialing, nil
}

func (s *socket) read(l *listener) {
	buf := make([]byte, 4096)
	for {
		n, err := s.Conn.Read(buf)
		l.world.Lock()
		first := len(s.received) == 0
		s.received = append(s.received, buf[:n]...)
		s.ended = err != nil
		if first && err == nil && l.accepted != nil {
			l.accepted(s)
		}
		l.world.Unlock()
		if err != nil {
			return
		}
	}
}

// header is what a PROXY header says.
type header struct {
	source, destination netip.AddrPort
	token               string
	behind              string
}

// header reads the prologue of a socket.
func (s *socket) header(t *testing.T) (h header) {
	t.Helper()
	b, ok := strings.CutPrefix(string(s.received), "\r\n\r\n\x00\r\nQUIT\n\x21")
	require.True(t, ok, "%q", s.received)
	size := map[byte]int{0x11: 4, 0x21: 16}[b[0]]
	require.NotZero(t, size)
	body := []byte(b[3:][:binary.BigEndian.Uint16([]byte(b[1:]))])
	h.behind = b[3+len(body):]
	address := func(i int) netip.AddrPort {
		a, ok := netip.AddrFromSlice(body[i*size:][:size])
		require.True(t, ok)
		return netip.AddrPortFrom(a, binary.BigEndian.Uint16(body[2*size+2*i:]))
	}
	h.source, h.destination = address(0), address(1)
	tlv := body[2*size+4:]
	require.Equal(t, byte(0xe1), tlv[0])
	require.Equal(t, len(tlv)-3, int(binary.BigEndian.Uint16(tlv[1:])))
	h.token = string(tlv[3:])
	return h
}

// arrive has the carrier of a socket appear on a worker.
func (l *listener) arrive(s *socket, worker int) *Conn {
	return l.d.Arrived([]byte(s.header(l.t).token), worker)
}

// settle waits until nothing happens any more at this time.
func (l *listener) settle() {
	l.world.Unlock()
	synctest.Wait()
	l.world.Lock()
}

// advance lets time pass.
func (l *listener) advance(d time.Duration) {
	l.world.Unlock()
	time.Sleep(d)
	synctest.Wait()
	l.world.Lock()
}

var errRefused = errors.New("connection refused")
