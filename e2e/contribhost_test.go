package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meltemi-mesh/meltemi/e2e/internal/contribhost"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// officialHost is the imitated host of contrib Envoy with a library that links Envoy's own
// package and tells of each call.
type officialHost struct {
	*contribhost.Host
	t   *testing.T
	log string
	tcp string
}

func startOfficial(t *testing.T, bin string, workers int, c contribhost.Config) *officialHost {
	t.Helper()
	h := &officialHost{t: t, log: filepath.Join(t.TempDir(), "log")}
	log, err := os.Create(h.log)
	require.NoError(t, err)
	h.Host, err = contribhost.Start(t, contribhost.Options{
		Bin: bin, Config: c, Concurrency: workers, Log: log,
		// The official package hands pointers of Go to C.
		Env: []string{"GODEBUG=cgocheck=0"},
	})
	log.Close()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the host:\n%s", h.read())
		}
	})
	require.NoError(t, err)
	h.tcp = h.address("echo")
	return h
}

func (h *officialHost) address(name string) string {
	h.t.Helper()
	all, err := h.Listeners()
	require.NoError(h.t, err)
	require.Contains(h.t, all, name)
	return all[name]
}

func (h *officialHost) read() string {
	b, err := os.ReadFile(h.log)
	require.NoError(h.t, err)
	return string(b)
}

var tellings = regexp.MustCompile(`echo (\S+) thread=(\d+) (.*)`)

// told is what the library told of one connection, and on which threads.
func (h *officialHost) told(who string) (what []string, threads map[string]bool) {
	threads = map[string]bool{}
	for _, m := range tellings.FindAllStringSubmatch(h.read(), -1) {
		if m[1] == who {
			what = append(what, m[3])
			threads[m[2]] = true
		}
	}
	return what, threads
}

// dial begins a connection and finds out what the library calls it.
func (h *officialHost) dial() (c *net.TCPConn, name string) {
	h.t.Helper()
	c = h.dialTo(h.tcp)
	begun := regexp.MustCompile(`echo (\S+) thread=\d+ new ` + regexp.QuoteMeta(h.tcp+" "+c.LocalAddr().String()))
	require.True(h.t, eventually(patience, func() bool {
		m := begun.FindStringSubmatch(h.read())
		if m != nil {
			name = m[1]
		}
		return m != nil
	}))
	return c, name
}

func (h *officialHost) dialTo(address string) *net.TCPConn {
	h.t.Helper()
	c, err := net.Dial("tcp", address)
	require.NoError(h.t, err)
	h.t.Cleanup(func() { c.Close() })
	require.NoError(h.t, c.SetDeadline(time.Now().Add(3*patience)))
	return c.(*net.TCPConn)
}

// say sends a text and waits for an answer.
func (h *officialHost) say(c net.Conn, text, answer string) {
	h.t.Helper()
	_, err := io.WriteString(c, text)
	require.NoError(h.t, err)
	h.hear(c, answer)
}

func (h *officialHost) hear(c io.Reader, answer string) {
	h.t.Helper()
	got := make([]byte, len(answer))
	_, err := io.ReadFull(c, got)
	require.NoError(h.t, err)
	require.Equal(h.t, answer, string(got))
}

// ends waits until the library has told of the connection's end, and compares all that it told
// but its beginning.
func (h *officialHost) ends(name string, told ...string) {
	h.t.Helper()
	var got []string
	var threads map[string]bool
	require.True(h.t, eventually(patience, func() bool {
		got, threads = h.told(name)
		return strings.HasPrefix(got[len(got)-1], "event")
	}))
	require.Equal(h.t, told, got[2:])
	require.Len(h.t, threads, 1, "a connection's calls come on its worker")
}

func (h *officialHost) count(name string) int {
	h.t.Helper()
	counts, err := h.Counts()
	require.NoError(h.t, err)
	return counts[name]
}

// official is a listener of the library.
func official(t *testing.T, config string) contribhost.Listener {
	t.Helper()
	a, err := anypb.New(wrapperspb.String(config))
	require.NoError(t, err)
	b, err := proto.Marshal(a)
	require.NoError(t, err)
	return contribhost.Listener{Name: "echo", Address: "127.0.0.1:0", Filter: contribhost.Filter{
		LibraryID: "echo", LibraryPath: peers.OfficialLibrary(t), PluginName: "echo", PluginConfig: b,
	}}
}

// TestTheContribHostServesTheOfficialPackage: what Envoy's own Go code sees on the imitated host is
// what it would see in Envoy: golang.cc, upstream.cc and connection_impl.cc say it.
func TestTheContribHostServesTheOfficialPackage(t *testing.T) {
	t.Parallel()
	c := contribhost.Config{PlainText: time.Minute, Listeners: []contribhost.Listener{official(t, "a")}}
	h := startOfficial(t, contribhost.BinaryWithAddressSanitizer(t), 2, c)

	told, threads := h.told("config")
	require.Equal(t, []string{"parse a"}, told)
	require.Equal(t, map[string]bool{fmt.Sprint(h.Pid()): true}, threads, "configurations come on the main thread")

	t.Run("writes are posted and come back as OnWrite", func(t *testing.T) {
		h := h.in(t)
		c, name := h.dial()
		h.say(c, "hello", "hello")
		h.say(c, "twice", "onetwo")
		h.say(c, "drop", "kept")
		c.Close()
		h.ends(name, `data "hello"`, `write "hello"`, `data "twice"`, `written`, `write "one"`, `write "two"`,
			`data "drop"`, `write "lost"`, `write "kept"`, `event RemoteClose`)
	})
	t.Run("other threads may write", func(t *testing.T) {
		h := h.in(t)
		c, name := h.dial()
		h.say(c, "elsewhere", "from elsewhere")
		told, threads := h.told(name)
		require.ElementsMatch(t, []string{`data "elsewhere"`, `writes`, `written`, `write "from elsewhere"`}, told[2:])
		require.Len(t, threads, 2)
	})
	t.Run("long data come in slices", func(t *testing.T) {
		h := h.in(t)
		c, _ := h.dial()
		long := strings.Repeat("0123456789abcdef", 20000)
		sent := make(chan error, 1)
		go func() {
			_, err := io.WriteString(c, long)
			sent <- err
		}()
		h.hear(c, long)
		require.NoError(t, <-sent)
	})
	for kind, answer := range []string{"bye", "bye", "bye", "", ""} { // ConnectionCloseType
		t.Run(fmt.Sprint("close ", kind), func(t *testing.T) {
			h := h.in(t)
			c, name := h.dial()
			_, err := fmt.Fprint(c, "close ", kind)
			require.NoError(t, err)
			got, err := io.ReadAll(c)
			require.Equal(t, kind == 4, errors.Is(err, syscall.ECONNRESET), "%v", err)
			require.Equal(t, answer, string(got))
			h.ends(name, fmt.Sprintf(`data "close %d"`, kind), `write "bye"`, `event LocalClose`)
		})
	}
	t.Run("a FIN behind a request loses its answer", func(t *testing.T) {
		h := h.in(t)
		c, name := h.dial()
		require.NoError(t, h.Stop())
		_, err := io.WriteString(c, "hello")
		require.NoError(t, err)
		require.NoError(t, c.CloseWrite())
		h.Signal(syscall.SIGCONT)
		got, err := io.ReadAll(c)
		require.NoError(t, err)
		require.Empty(t, got)
		h.ends(name, `data "hello"`, `event RemoteClose`)
	})
	t.Run("a reset behind a request", func(t *testing.T) {
		h := h.in(t)
		c, name := h.dial()
		require.NoError(t, c.SetLinger(0))
		c.Close()
		h.ends(name, `event RemoteClose`)
	})
	t.Run("there is no half close for clients", func(t *testing.T) {
		h := h.in(t)
		c, name := h.dial()
		h.say(c, "end", "last")
		_, err := c.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
		require.NoError(t, c.CloseWrite())
		h.ends(name, `data "end"`, `write "last" end`, `event RemoteClose`)
		require.Contains(t, h.read(), "end_stream without half close")
	})
	t.Run("state", func(t *testing.T) {
		h := h.in(t)
		c, _ := h.dial()
		h.say(c, "state", "set")
	})
	t.Run("upstream", func(t *testing.T) {
		h := h.in(t)
		server, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer server.Close()
		c, name := h.dial()
		h.say(c, "dial "+server.Addr().String(), "ready")
		up, err := server.Accept()
		require.NoError(t, err)
		defer up.Close()
		_, err = io.WriteString(c, "up there")
		require.NoError(t, err)
		h.hear(up, "there")
		_, err = io.WriteString(up, "back")
		require.NoError(t, err)
		h.hear(c, "back")
		h.say(c, "up-close", "LocalClose")
		told, _ := h.told(name + "-up")
		require.Equal(t, []string{"ready " + server.Addr().String(), `data "back"`, "event LocalClose"}, told)
		h.say(c, "dial nowhere", "failure LocalConnectionFailure")
		server.Close()
		h.say(c, "dial "+server.Addr().String(), "failure RemoteConnectionFailure")
	})
	t.Run("what is collected is freed", func(t *testing.T) {
		h := h.in(t)
		// Only the collector tells when; the filter of the connection that asks lives.
		c, _ := h.dial()
		require.True(t, eventually(patience, func() bool {
			h.say(c, "collect", "collected")
			return h.count("wrappers") == 1 && h.count("upstream_wrappers") == 0
		}))
		require.Equal(t, 1, h.count("filters"))
		require.Zero(t, h.count("upstreams"))
	})
	t.Run("the end", func(t *testing.T) {
		h := h.in(t)
		c, name := h.dial()
		h.Signal(syscall.SIGTERM)
		_, err := c.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
		require.NoError(t, h.Err())
		h.ends(name, `event LocalClose`)
	})
	require.NotContains(t, h.read(), "AddressSanitizer")
}

// in is the same host for a test within the test.
func (h *officialHost) in(t *testing.T) *officialHost {
	c := *h
	c.t = t
	return &c
}

// TestTheContribHostReplacesListeners: connections stay with the configuration that they began
// with, and are closed when the drain time is over; what has not changed is not touched.
func TestTheContribHostReplacesListeners(t *testing.T) {
	t.Parallel()
	a, other := official(t, "a"), official(t, "other")
	other.Name = "other"
	h := startOfficial(t, contribhost.Binary(t), 2, contribhost.Config{Listeners: []contribhost.Listener{a, other}})
	before, name := h.dial()
	require.Regexp(t, `^a/`, name)
	stays := h.dialTo(h.address("other"))
	h.say(stays, "hello", "hello")
	port := h.tcp

	b := official(t, "b")
	// The library of an id is the first one.
	b.Filter.LibraryPath = "/nowhere"
	require.NoError(t, h.Update(contribhost.Config{Listeners: []contribhost.Listener{b, other}}))
	require.Equal(t, port, h.address("echo"))
	_, err := before.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	h.ends(name, `event LocalClose`)
	after, name := h.dial()
	require.Regexp(t, `^b/`, name)
	h.say(stays, "hello", "hello")
	require.Equal(t, 3, h.count("configs"))

	require.ErrorContains(t, h.Update(contribhost.Config{Listeners: []contribhost.Listener{b, other, b}}), "a second listener")
	require.NoError(t, h.Update(contribhost.Config{Listeners: []contribhost.Listener{other}}))
	_, err = after.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	var d net.Dialer
	require.True(t, eventually(patience, func() bool {
		c, err := d.DialContext(context.Background(), "tcp", port)
		if err == nil {
			c.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	}))
	h.say(stays, "hello", "hello")
}

// TestTheContribHostTellsOfAnEndBeforeTheBeginning: a filter before this one closes in
// onNewConnection, and onEvent comes with no wrapper. It is one of the things that kill the official
// package.
func TestTheContribHostTellsOfAnEndBeforeTheBeginning(t *testing.T) {
	t.Parallel()
	l := official(t, "a")
	l.ConnectionLimit = 1
	h := startOfficial(t, contribhost.Binary(t), 1, contribhost.Config{Listeners: []contribhost.Listener{l}})
	c, _ := h.dial()
	h.say(c, "hello", "hello")
	h.dialTo(h.tcp)
	require.ErrorContains(t, h.Err(), "abort")
	require.Contains(t, h.read(), "invalid memory address or nil pointer dereference")
}

// TestTheContribHostTakesWhatItCannotLoad: the configuration is accepted, and the first connection
// ends the process.
func TestTheContribHostTakesWhatItCannotLoad(t *testing.T) {
	t.Parallel()
	l := official(t, "a")
	l.Filter.LibraryPath = "/nowhere"
	h := startOfficial(t, contribhost.Binary(t), 1, contribhost.Config{Listeners: []contribhost.Listener{l}})
	require.Contains(t, h.read(), "cannot load : /nowhere")
	h.dialTo(h.tcp)
	require.ErrorContains(t, h.Err(), "segmentation fault")
}
