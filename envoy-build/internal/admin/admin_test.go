package admin

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

// TestMain fails when a test leaves a goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bed is a server, and what it logs.
type bed struct {
	*testing.T
	*Server
	mu  sync.Mutex
	log []string

	waiting, wait chan struct{} // a request of a page that waits, and that it shall not
}

func newBed(t *testing.T) *bed {
	b := &bed{T: t, waiting: make(chan struct{}), wait: make(chan struct{})}
	b.Server = New(func() http.Handler {
		mux := http.NewServeMux()
		mux.HandleFunc("GET /page", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") })
		mux.HandleFunc("GET /waits", func(_ http.ResponseWriter, r *http.Request) {
			b.waiting <- struct{}{}
			select {
			case <-b.wait:
			case <-r.Context().Done():
			}
		})
		mux.HandleFunc("GET /panic", func(http.ResponseWriter, *http.Request) { panic("dropped") })
		return mux
	}, func(_ host.Level, format string, args ...any) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.log = append(b.log, fmt.Sprintf(format, args...))
	})
	t.Cleanup(func() { b.Serve("") })
	return b
}

// said waits for a line of the log that has a text, and returns what is behind that.
func (b *bed) said(text string) (behind string) {
	b.Helper()
	require.Eventually(b, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, l := range b.log {
			if _, rest, ok := strings.Cut(l, text); ok {
				behind = rest
				return true
			}
		}
		return false
	}, 10*time.Second, time.Millisecond)
	return behind
}

// get asks for a page.
func get(address, path string) (string, error) {
	network := "tcp"
	if socket, ok := strings.CutPrefix(address, "unix:"); ok {
		network, address = "unix", socket
	}
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}}
	resp, err := (&http.Client{Transport: tr}).Get("http://x" + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return fmt.Sprint(resp.StatusCode, " ", string(text)), err
}

// serves waits until the page comes.
func (b *bed) serves(address string) {
	b.Helper()
	require.Eventually(b, func() bool {
		text, err := get(address, "/page")
		return err == nil && text == "200 hello"
	}, 10*time.Second, 5*time.Millisecond, address)
}

// TestAddresses come, change and go.
func TestAddresses(t *testing.T) {
	b := newBed(t)
	b.Serve("127.0.0.1:0")
	tcp := b.said("meltemi: admin address ")
	b.serves(tcp)
	text, err := get(tcp, "/")
	require.NoError(t, err)
	require.Contains(t, text, "404")
	b.Serve("127.0.0.1:0") // the same
	b.serves(tcp)

	path := filepath.Join(t.TempDir(), "s")
	b.Serve("unix:" + path)
	b.serves("unix:" + path)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), "its owner's")
	_, err = get(tcp, "/page")
	require.Error(t, err, "no more")
	b.Serve("")
	_, err = get("unix:"+path, "/page")
	require.Error(t, err)
}

// TestASocketIsTakenOver from a process that is gone, or one that goes: then it leaves
// that of the next alone.
func TestASocketIsTakenOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	old, next := newBed(t), newBed(t)
	old.Serve("unix:" + path)
	old.serves("unix:" + path)
	next.Serve("unix:" + path)
	next.said("admin address")
	old.Serve("")
	next.serves("unix:" + path)
	next.Serve("")
	_, err := os.Lstat(path)
	require.NoError(t, err, "it is left")
	old.Serve("unix:" + path)
	old.serves("unix:" + path)
}

// TestATakenAddressIsTriedAgain, and told once. What is no socket stays.
func TestATakenAddressIsTriedAgain(t *testing.T) {
	b, file := newBed(t), filepath.Join(t.TempDir(), "precious")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	b.Serve(l.Addr().String())
	require.Contains(t, b.said("meltemi: admin address "+l.Addr().String()+": "), "address already in use")
	l.Close()
	b.serves(l.Addr().String())

	require.NoError(t, os.WriteFile(file, []byte("data"), 0o600))
	b.Serve("unix:" + file)
	b.said("precious is there, and is no socket")
	b.Serve("")
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, "data", string(text))
}

// TestSoManyAreServedAtOnce: those that ask for nothing make room, and where all ask
// others wait for their turn.
func TestSoManyAreServedAtOnce(t *testing.T) {
	b := newBed(t)
	b.Serve("127.0.0.1:0")
	address := b.said("meltemi: admin address ")
	dial := func(ask string) net.Conn {
		c, err := net.Dial("tcp", address)
		require.NoError(t, err)
		t.Cleanup(func() { c.Close() })
		_, err = io.WriteString(c, ask)
		require.NoError(t, err)
		return c
	}
	answered := func(c net.Conn, within time.Duration) error {
		c.SetReadDeadline(time.Now().Add(within))
		_, err := bufio.NewReader(c).ReadString('\n')
		return err
	}
	silent := make([]net.Conn, maxConnections)
	for i := range silent {
		silent[i] = dial("")
	}
	require.NoError(t, answered(dial("GET /page HTTP/1.1\r\nHost: x\r\n\r\n"), 10*time.Second))
	require.ErrorIs(t, answered(silent[0], 10*time.Second), io.EOF, "which was silent for the longest time")

	for range maxConnections {
		dial("GET /waits HTTP/1.1\r\nHost: x\r\n\r\n")
		<-b.waiting
	}
	last := dial("GET /page HTTP/1.1\r\nHost: x\r\n\r\n")
	require.Error(t, answered(last, 50*time.Millisecond))
	b.wait <- struct{}{}
	require.NoError(t, answered(last, 10*time.Second))
}

// TestEachTakesThePlaceOfAnother: of two that come at once, also before the server has
// noticed that the first one's place was given away.
func TestEachTakesThePlaceOfAnother(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer inner.Close()
	closed := make(chan struct{})
	defer time.AfterFunc(10*time.Second, func() { close(closed) }).Stop()
	l := &limited{Listener: inner, places: make(chan struct{}, maxConnections), closed: closed}
	for range maxConnections + 2 {
		c, err := net.Dial("tcp", inner.Addr().String())
		require.NoError(t, err)
		defer c.Close()
		served, err := l.Accept()
		require.NoError(t, err, "there is no place for it")
		defer served.Close()
		l.state(served, http.StateNew)
	}
}

// TestAPanicCostsItsConnection only, and is told.
func TestAPanicCostsItsConnection(t *testing.T) {
	b := newBed(t)
	b.Serve("127.0.0.1:0")
	address := b.said("meltemi: admin address ")
	_, err := get(address, "/panic")
	require.Error(t, err)
	b.said("panic serving")
	b.serves(address)
}
