package e2e

import (
	"encoding/binary"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/missing"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// prologue is a PROXY header of version 2 with TLVs.
func prologue(tlvs map[byte]string) []byte {
	body := []byte{127, 0, 0, 1, 127, 0, 0, 1, 0, 1, 0, 1}
	for k, v := range tlvs {
		body = append(body, k)
		body = binary.BigEndian.AppendUint16(body, uint16(len(v)))
		body = append(body, v...)
	}
	b := append([]byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11"), 0, 0)
	binary.BigEndian.PutUint16(b[14:], uint16(len(body)))
	return append(b, body...)
}

// TestTheLoopbackListenerKeepsStrangersOut: another process that finds the
// socket reaches no cluster.
func TestTheLoopbackListenerKeepsStrangersOut(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		s := scripted.Serve(t, scripted.Answer("here"))
		socket := envoytest.Socket()
		o := v.options()
		o.Clusters = []envoytest.Resource{envoytest.Cluster("one", envoytest.At(s.Port)...)}
		o.Listeners = []envoytest.Resource{envoytest.Loopback(socket), envoytest.Listener("dubbo", envoytest.Proxy(toOne("one")))}
		e := envoytest.Start(t, o)
		before := s.Connections()
		for name, hello := range map[string][]byte{
			"silent":               nil,
			"without a prologue":   dubbotest.Request{ID: 1}.Bytes(),
			"without a token":      append(prologue(nil), '\n'),
			"with a guessed token": append(prologue(map[byte]string{0xE1: "00000000000000000000000000000000:1"}), '\n'),
			"naming a cluster":     append(prologue(map[byte]string{0xE0: "one", 0xE1: "secret"}), dubbotest.Request{ID: 1}.Bytes()...),
		} {
			c, err := net.Dial("unix", socket)
			require.NoError(t, err)
			_, err = c.Write(hello)
			require.NoError(t, err)
			require.NoError(t, c.SetReadDeadline(time.Now().Add(patience)))
			n, err := c.Read(make([]byte, 1))
			require.Error(t, err, name)
			require.Zero(t, n, name)
			c.Close()
		}
		require.Equal(t, before, s.Connections())
		require.Contains(t, e.Log(), "without this process's token")
		c := scripted.Dial(t, e.Port("dubbo"))
		c.Ask(1, dubbotest.Request{})
		require.Equal(t, "here", c.Read().Text())
	})
}

// TestTheSecretIsNotToldToAStranger: a process that has taken the socket's
// name gets a connection, and not a byte.
func TestTheSecretIsNotToldToAStranger(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		socket, other := envoytest.Socket(), envoytest.Socket()
		l, err := net.Listen("unix", other)
		require.NoError(t, err)
		defer l.Close()
		loopback := envoytest.Loopback(socket)
		// The carrier filter is told the stranger's socket.
		chain := loopback["filter_chains"].([]any)[0].(envoytest.M)
		filters := append([]any(nil), chain["filters"].([]any)...)
		filters[0] = envoytest.Module("meltemi", "carrier", envoytest.M{"path": other})
		loopback["filter_chains"] = []any{envoytest.M{"filters": filters}}
		o := v.options()
		config := toOne("one")
		config["request_timeout"] = "1s"
		o.Clusters = []envoytest.Resource{envoytest.Cluster("one", envoytest.At(1)...)}
		o.Listeners = []envoytest.Resource{loopback, envoytest.Listener("dubbo", envoytest.Proxy(config))}
		e := envoytest.Start(t, o)
		client := scripted.Dial(t, e.Port("dubbo"))
		client.Ask(1, dubbotest.Request{})
		require.NoError(t, l.(*net.UnixListener).SetDeadline(time.Now().Add(patience)))
		c, err := l.Accept()
		require.NoError(t, err)
		defer c.Close()
		require.NoError(t, c.SetReadDeadline(time.Now().Add(patience)))
		n, err := c.Read(make([]byte, 1))
		require.Error(t, err)
		require.Zero(t, n)
		require.EqualValues(t, 31, client.Read().Status, "the request fails at its deadline")
		require.Contains(t, e.Log(), "the socket belongs to process")
	})
}

// TestALoopbackSocketInAFolderIsItsOwnersOnly: where it has a path its mode
// keeps other users from connecting at all.
func TestALoopbackSocketInAFolderIsItsOwnersOnly(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		dir, err := os.MkdirTemp("", "meltemi") // one that anybody may enter, short enough for a socket
		require.NoError(t, err)
		defer os.RemoveAll(dir)
		require.NoError(t, os.Chmod(dir, 0o755))
		socket := filepath.Join(dir, "loopback.sock")
		s := scripted.Serve(t, scripted.Answer("here"))
		o := v.options()
		o.Clusters = []envoytest.Resource{envoytest.Cluster("one", envoytest.At(s.Port)...)}
		o.Listeners = []envoytest.Resource{envoytest.Loopback(socket), envoytest.Listener("dubbo", envoytest.Proxy(toOne("one")))}
		e := envoytest.Start(t, o)
		c := scripted.Dial(t, e.Port("dubbo"))
		c.Ask(1, dubbotest.Request{})
		require.Equal(t, "here", c.Read().Text())
		info, err := os.Stat(socket)
		require.NoError(t, err)
		require.Equal(t, os.ModeSocket|0o600, info.Mode())
		if os.Geteuid() != 0 {
			missing.Skip(t, "trying as another user needs root")
		}
		dialed := make(chan error)
		go func() {
			// This thread alone becomes another user, and ends with the goroutine.
			runtime.LockOSThread()
			const nobody = 65534
			syscall.RawSyscall(syscall.SYS_SETFSUID, nobody, 0, 0)
			c, err := net.Dial("unix", socket)
			if err == nil {
				c.Close()
			}
			dialed <- err
		}()
		require.ErrorIs(t, <-dialed, syscall.EACCES)
	})
}

// TestAWrongLoopbackListener: where no carrier is ever born each call ends in
// time, nothing is tried in a loop, and the log says why.
func TestAWrongLoopbackListener(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		s := scripted.Serve(t, scripted.Answer("here"))
		right := envoytest.Loopback(envoytest.Socket())
		wrong := maps.Clone(right)
		delete(wrong, "listener_filters")
		wrong["stat_prefix"] = "loopback"
		config := toOne("one")
		config["request_timeout"] = "1s"
		clients := envoytest.Listener("dubbo", envoytest.Proxy(config))
		o := v.options()
		o.Clusters = []envoytest.Resource{envoytest.Cluster("one", envoytest.At(s.Port)...)}
		o.Listeners = []envoytest.Resource{wrong, clients}
		e := envoytest.Start(t, o)
		c := scripted.Dial(t, e.Port("dubbo"))
		for id := range uint64(3) {
			c.Ask(id, dubbotest.Request{})
			require.Contains(t, c.Read().Text(), "timeout while waiting for an upstream connection")
		}
		require.Less(t, e.Stat("listener.loopback.downstream_cx_total"), int64(500))
		require.Contains(t, e.Log(), "closes its connections before the filter carrier has them")

		require.True(t, e.SetListeners(right, clients))
		c.Ask(4, dubbotest.Request{})
		require.Equal(t, "here", c.Read().Text())
	})
}

// TestHostileStrangers: any process of the network namespace may connect
// to an abstract socket, as often as it likes and with what it likes.
func TestHostileStrangers(t *testing.T) {
	once(t, func(t *testing.T, v variant) {
		s := scripted.Serve(t, scripted.Answer("here"))
		socket := envoytest.Socket()
		config := toOne("one")
		config["upstream"] = envoytest.M{"max_connection_age": "0.5s"} // so that carriers are always wanted
		o := v.options()
		o.Clusters = []envoytest.Resource{envoytest.Cluster("one", envoytest.At(s.Port)...)}
		o.Listeners = []envoytest.Resource{envoytest.Loopback(socket), envoytest.Listener("dubbo", envoytest.Proxy(config))}
		e := envoytest.Start(t, o)
		stop := make(chan struct{})
		var came atomic.Int64
		var strangers sync.WaitGroup
		stranger := func(hello []byte, keeps int) {
			strangers.Go(func() {
				var kept []net.Conn
				for !isClosed(stop) {
					c, err := net.Dial("unix", socket)
					if err != nil { // the queue is full
						continue
					}
					came.Add(1)
					c.Write(hello)
					if kept = append(kept, c); len(kept) > keeps {
						kept[0].Close()
						kept = kept[1:]
					}
				}
				for _, c := range kept {
					c.Close()
				}
			})
		}
		stranger(nil, 0)
		stranger(nil, 1000)
		stranger(append(prologue(nil), '\n'), 0)
		stranger(append(prologue(map[byte]string{0xE1: "00000000000000000000000000000000:1"}), '\n'), 1000)
		begin := time.Now()
		var callers sync.WaitGroup
		for range 4 {
			c := scripted.Dial(t, e.Port("dubbo"))
			callers.Go(func() {
				for id := range uint64(200) {
					c.Ask(id, dubbotest.Request{})
					if text := c.Read().Text(); text != "here" {
						t.Errorf("call %d beside strangers: %q", id, text)
					}
				}
			})
		}
		callers.Wait()
		require.Eventually(t, func() bool { return came.Load() > 1000 }, patience, tick)
		close(stop)
		strangers.Wait()
		lines := strings.Count(e.Log(), "without this process's token")
		require.Positive(t, lines)
		require.LessOrEqual(t, lines, int(time.Since(begin).Seconds())+2)
		t.Logf("%d strangers in %v", came.Load(), time.Since(begin).Round(time.Millisecond))
	})
}

// TestHostileSquatter: whoever holds the loopback socket's name stops
// traffic for as long as that, not longer, and the log says who it is.
func TestHostileSquatter(t *testing.T) {
	once(t, func(t *testing.T, v variant) {
		s := scripted.Serve(t, scripted.Answer("here"))
		start := func(t *testing.T, socket string) (*envoytest.Envoy, []envoytest.Resource) {
			config := toOne("one")
			config["request_timeout"] = "1s"
			config["upstream"] = envoytest.M{"idle_timeout": "0.1s"} // so that a new one is wanted now and then
			o := v.options()
			o.Clusters = []envoytest.Resource{envoytest.Cluster("one", envoytest.At(s.Port)...)}
			o.Listeners = []envoytest.Resource{envoytest.Loopback(socket), envoytest.Listener("dubbo", envoytest.Proxy(config))}
			return envoytest.Start(t, o), o.Listeners
		}
		// squatted is called while another process has the name.
		squatted := func(t *testing.T, e *envoytest.Envoy, c *scripted.Client) {
			begin := time.Now()
			require.Eventually(t, func() bool {
				c.Ask(1, dubbotest.Request{})
				return c.Read().Status == 31 // for want of a carrier
			}, patience, 300*time.Millisecond)
			for id := range uint64(3) {
				c.Ask(id, dubbotest.Request{})
				require.EqualValues(t, 31, c.Read().Status)
			}
			lines := strings.Count(e.Log(), "the socket belongs to process "+strconv.Itoa(os.Getpid()))
			require.Positive(t, lines)
			require.LessOrEqual(t, lines, int(time.Since(begin).Seconds())+2)
		}
		served := func(t *testing.T, c *scripted.Client) {
			require.Eventually(t, func() bool {
				c.Ask(1, dubbotest.Request{})
				return c.Read().Text() == "here"
			}, patience, tick)
		}
		t.Run("before Envoy has it", func(t *testing.T) {
			socket := envoytest.Socket()
			l, err := net.Listen("unix", socket)
			require.NoError(t, err)
			e, listeners := start(t, socket)
			c := scripted.Dial(t, e.Port("dubbo"))
			squatted(t, e, c)
			l.Close()
			require.True(t, e.SetListeners(listeners...))
			served(t, c)
		})
		t.Run("while Envoy has it", func(t *testing.T) {
			dir, err := os.MkdirTemp("", "meltemi")
			require.NoError(t, err)
			defer os.RemoveAll(dir)
			socket := filepath.Join(dir, "loopback.sock")
			e, _ := start(t, socket)
			c := scripted.Dial(t, e.Port("dubbo"))
			served(t, c)
			require.NoError(t, os.Rename(socket, socket+".envoy"))
			l, err := net.Listen("unix", socket)
			require.NoError(t, err)
			squatted(t, e, c)
			l.Close()
			require.NoError(t, os.Rename(socket+".envoy", socket))
			served(t, c)
		})
	})
}
