package e2e

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/control/loopback"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// TestTunnelsOfStockFilters: the golang filter's loopback listener, as Istio's proxies get
// it, leads connections to the cluster and to the original destination that they name. Envoy
// 1.38 is that of Istio 1.30.
func TestTunnelsOfStockFilters(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		s, other := scripted.Serve(t, scripted.Answer("one")), scripted.Serve(t, scripted.Answer("other"))
		n := startTunnels(t, v, envoytest.Cluster("one", envoytest.At(s.Port)...), envoytest.Resource{
			"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
			"name":  "inbound", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "1s",
		})
		info, err := os.Stat(n.tcp)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm())

		ask := func(c net.Conn, id uint64) string {
			_, err := c.Write(dubbotest.Request{ID: id}.Bytes())
			require.NoError(t, err)
			var got []byte
			for {
				b := make([]byte, 4096)
				n, err := c.Read(b)
				require.NoError(t, err)
				got = append(got, b[:n]...)
				if frames, _ := dubbotest.Parse(got); len(frames) > 0 {
					require.Equal(t, id, frames[0].ID)
					return frames[0].Text()
				}
			}
		}
		closed := func(c net.Conn) {
			n, err := c.Read(make([]byte, 1))
			require.Zero(t, n)
			require.ErrorIs(t, err, io.EOF)
		}
		// What the header says the destination was, in place of the usual 127.0.0.1:1.
		destined := func(prologue []byte, port int) []byte {
			binary.BigEndian.PutUint16(prologue[26:], uint16(port))
			return prologue
		}
		for name, tc := range map[string]struct {
			prologue      []byte
			cluster, want string
		}{
			"a cluster":                             {prologue(map[byte]string{loopback.ClusterTLV: "one"}), "one", "one"},
			"a destination":                         {prologue(map[byte]string{loopback.ClusterTLV: "inbound", loopback.DestinationTLV: fmt.Sprintf("127.0.0.1:%d", other.Port)}), "inbound", "other"},
			"a destination of the header":           {destined(prologue(map[byte]string{loopback.ClusterTLV: "inbound"}), other.Port), "inbound", "other"},
			"of two destinations the TLV's":         {destined(prologue(map[byte]string{loopback.ClusterTLV: "inbound", loopback.DestinationTLV: fmt.Sprintf("127.0.0.1:%d", other.Port)}), s.Port), "inbound", "other"},
			"a destination that counts for nothing": {prologue(map[byte]string{loopback.ClusterTLV: "one", loopback.DestinationTLV: fmt.Sprintf("127.0.0.1:%d", other.Port)}), "one", "one"},
		} {
			t.Run(name, func(t *testing.T) {
				c := n.dial(n.tcp, tc.prologue)
				for id := range uint64(3) {
					require.Equal(t, tc.want, ask(c, id))
				}
				c = n.dial(n.connect, tc.prologue)
				status, header := n.ask(c, tc.cluster)
				require.Equal(t, http.StatusOK, status)
				require.Equal(t, fmt.Sprintf("127.0.0.1:%d", map[string]int{"one": s.Port, "other": other.Port}[tc.want]), header.Get(loopback.HostHeader))
				for id := range uint64(3) {
					require.Equal(t, tc.want, ask(c, id))
				}
			})
		}
		closed(n.dial(n.tcp, prologue(map[byte]string{loopback.ClusterTLV: "unknown"})))
		closed(n.dial(n.tcp, prologue(nil)))
	})
}

// TestWhatTunnelsTell: of which host is at a tunnel's end, and why there is none, CONNECT's
// answer tells, in its own bytes and before anything else. tcp_proxy says nothing; it can
// write the host into a log when it is connected.
func TestWhatTunnelsTell(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		named := func() (port int) {
			var told string
			port = origin(t, func(c *net.TCPConn) { io.WriteString(c, told) })
			told = fmt.Sprintf("127.0.0.1:%d", port)
			return port
		}
		one, other := named(), named()
		n := startTunnels(t, v,
			envoytest.Cluster("two", envoytest.At(one, other)...),
			envoytest.Cluster("empty"),
			envoytest.Cluster("refused", refused(t)...),
			envoytest.Cluster("full", envoytest.At(one)...).With(noConnections),
		)
		seen := map[string]bool{}
		for range 8 {
			c := n.dial(n.connect, prologue(nil))
			_, header := n.ask(c, "two")
			got, err := io.ReadAll(c)
			require.NoError(t, err)
			require.Equal(t, header.Get(loopback.HostHeader), string(got))
			seen[string(got)] = true
		}
		require.Len(t, seen, 2)
		for cluster, flag := range map[string]string{"empty": "UH", "refused": "UF", "unknown": "NC", "full": "UO"} {
			status, header := n.ask(n.dial(n.connect, prologue(nil)), cluster)
			require.Equal(t, http.StatusServiceUnavailable, status, cluster)
			require.Contains(t, header.Get(loopback.FlagsHeader), flag)
			got, err := io.ReadAll(n.dial(n.tcp, prologue(map[byte]string{loopback.ClusterTLV: cluster})))
			require.NoError(t, err)
			require.Empty(t, got, "%s: tcp_proxy says the same of all", cluster)
		}
		c := n.dial(n.tcp, prologue(map[byte]string{loopback.ClusterTLV: "two", loopback.TokenTLV: "7"}))
		got, err := io.ReadAll(c)
		require.NoError(t, err)
		require.True(t, eventually(patience, func() bool {
			b, _ := os.ReadFile(n.log)
			return strings.Contains(string(b), "7 "+string(got)+"\n")
		}))
	})
}

// TestHalfCloseOfTunnels: through tcp_proxy an end of stream passes in both directions, and
// the other one goes on. Envoy's HTTP/1 ends both directions of a CONNECT.
func TestHalfCloseOfTunnels(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		heard := make(chan string, 1)
		answering := origin(t, func(c *net.TCPConn) { // at the end of what it is sent
			io.WriteString(c, "hi")
			b, _ := io.ReadAll(c)
			fmt.Fprintf(c, "you said %s", b)
		})
		ending := origin(t, func(c *net.TCPConn) { // at once, and goes on reading
			io.WriteString(c, "bye")
			c.CloseWrite()
			b, _ := io.ReadAll(c)
			heard <- string(b)
		})
		n := startTunnels(t, v, envoytest.Cluster("answering", envoytest.At(answering)...), envoytest.Cluster("ending", envoytest.At(ending)...))

		c := n.dial(n.tcp, prologue(map[byte]string{loopback.ClusterTLV: "answering"}))
		hear(t, c, "hi") // an end of stream that comes with the header is that of the connection
		require.Equal(t, "you said hello", n.last(c, "hello"))
		c = n.dial(n.tcp, prologue(map[byte]string{loopback.ClusterTLV: "ending"}))
		got, err := io.ReadAll(c)
		require.NoError(t, err)
		require.Equal(t, "bye", string(got))
		require.Empty(t, n.last(c, "still here"))
		require.Equal(t, "still here", <-heard)

		c = n.dial(n.connect, prologue(nil))
		n.ask(c, "answering")
		hear(t, c, "hi")
		require.Empty(t, n.last(c, "hello"), "the answer is lost")
		c = n.dial(n.connect, prologue(nil))
		n.ask(c, "ending")
		got, err = io.ReadAll(c)
		require.NoError(t, err)
		require.Equal(t, "bye", string(got))
		require.Empty(t, <-heard, "the server's end is the client's")
	})
}

// TestAServersLastWordsWaitInATunnel of CONNECT: what it has sent before it ends is there for who reads late.
func TestAServersLastWordsWaitInATunnel(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		words := bytes.Repeat([]byte("last words "), 32<<10) // too many for the socket, few enough for Envoy
		speaking := origin(t, func(c *net.TCPConn) { c.Write(words) })
		n := startTunnels(t, v, envoytest.Cluster("speaking", envoytest.At(speaking)...))
		c := n.dial(n.connect, prologue(nil))
		n.ask(c, "speaking")
		n.WaitStat("cluster.speaking.upstream_cx_destroy", envoytest.Exactly(1))
		time.Sleep(2 * time.Second) // longer than Envoy has by default for what is still to be read
		got, err := io.ReadAll(c)
		require.NoError(t, err)
		require.Len(t, got, len(words))
	})
}

// origin is a server that does as it is told with each connection, and closes it.
func origin(t *testing.T, do func(c *net.TCPConn)) (port int) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(3 * patience))
				do(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		conns.Wait()
	})
	return l.Addr().(*net.TCPAddr).Port
}

// tunnels is an Envoy with a loopback listener of stock filters of both kinds.
type tunnels struct {
	*envoytest.Envoy
	t                 *testing.T
	tcp, connect, log string
}

func startTunnels(t *testing.T, v variant, clusters ...envoytest.Resource) tunnels {
	t.Helper()
	dir, err := os.MkdirTemp("", "tunnels") // t's own may be too long for a socket
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	n := tunnels{t: t, tcp: filepath.Join(dir, "tcp.sock"), connect: filepath.Join(dir, "connect.sock"), log: filepath.Join(dir, "log")}
	byTCP := envoytest.LoopbackOfTunnels(n.tcp, false)
	rules := byTCP["listener_filters"].([]any)[0].(envoytest.M)["typed_config"].(envoytest.M)
	rules["rules"] = append(rules["rules"].([]any), envoytest.M{
		"tlv_type": loopback.TokenTLV, "on_tlv_present": envoytest.M{"metadata_namespace": "meltemi", "key": "token"},
	})
	filters := byTCP["filter_chains"].([]any)[0].(envoytest.M)["filters"].([]any)
	proxy := filters[len(filters)-1].(envoytest.M)["typed_config"].(envoytest.M)
	proxy["access_log_options"] = envoytest.M{"flush_access_log_on_connected": true}
	proxy["access_log"] = []any{envoytest.M{"name": "file", "typed_config": envoytest.M{
		"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": n.log,
		"log_format": envoytest.M{"text_format_source": envoytest.M{"inline_string": "%DYNAMIC_METADATA(meltemi:token)% %UPSTREAM_REMOTE_ADDRESS%\n"}},
	}}}
	o := v.options()
	o.Listeners = []envoytest.Resource{byTCP, envoytest.LoopbackOfTunnels(n.connect, true).With(envoytest.M{"name": "by-connect"})}
	o.Clusters = clusters
	n.Envoy = envoytest.Start(t, o)
	return n
}

// dial connects to a listener with that header of the PROXY protocol.
func (n tunnels) dial(socket string, header []byte) *net.UnixConn {
	n.t.Helper()
	c, err := net.Dial("unix", socket)
	require.NoError(n.t, err)
	n.t.Cleanup(func() { c.Close() })
	require.NoError(n.t, c.SetDeadline(time.Now().Add(3*patience)))
	_, err = c.Write(header)
	require.NoError(n.t, err)
	return c.(*net.UnixConn)
}

// ask asks for a cluster. What is behind the answer stays.
func (n tunnels) ask(c net.Conn, cluster string) (status int, header http.Header) {
	n.t.Helper()
	fmt.Fprintf(c, "CONNECT meltemi:1 HTTP/1.1\r\nhost: meltemi:1\r\n%s: %s\r\n\r\n", loopback.ClusterHeader, cluster)
	answer, err := http.ReadResponse(bufio.NewReaderSize(iotest.OneByteReader(c), 16), &http.Request{Method: http.MethodConnect})
	require.NoError(n.t, err)
	require.NoError(n.t, answer.Body.Close())
	return answer.StatusCode, answer.Header
}

func hear(t *testing.T, c io.Reader, text string) {
	t.Helper()
	got := make([]byte, len(text))
	_, err := io.ReadFull(c, got)
	require.NoError(t, err)
	require.Equal(t, text, string(got))
}

// last says the last words and returns what comes behind them.
func (n tunnels) last(c *net.UnixConn, words string) string {
	n.t.Helper()
	_, err := io.WriteString(c, words)
	require.NoError(n.t, err)
	require.NoError(n.t, c.CloseWrite())
	got, err := io.ReadAll(c)
	if err != nil {
		require.ErrorIs(n.t, err, syscall.ECONNRESET)
	}
	return string(got)
}
