package e2e

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
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
		dir, err := os.MkdirTemp("", "tunnels") // t's own may be too long for a socket
		require.NoError(t, err)
		t.Cleanup(func() { os.RemoveAll(dir) })
		socket, byConnect := filepath.Join(dir, "meltemi.sock"), filepath.Join(dir, "connect.sock")
		o := v.options()
		o.Listeners = []envoytest.Resource{envoytest.LoopbackOfTunnels(socket, false), envoytest.LoopbackOfTunnels(byConnect, true).With(envoytest.M{"name": "by-connect"})}
		o.Clusters = []envoytest.Resource{envoytest.Cluster("one", envoytest.At(s.Port)...), {
			"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
			"name":  "inbound", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "1s",
		}}
		envoytest.Start(t, o)
		info, err := os.Stat(socket)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm())

		dial := func(socket string, prologue []byte) net.Conn {
			c, err := net.Dial("unix", socket)
			require.NoError(t, err)
			t.Cleanup(func() { c.Close() })
			require.NoError(t, c.SetDeadline(time.Now().Add(30*time.Second)))
			_, err = c.Write(prologue)
			require.NoError(t, err)
			return c
		}
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
		// What is behind the answer stays.
		connect := func(c net.Conn, cluster string) (status int, header http.Header) {
			fmt.Fprintf(c, "CONNECT meltemi:1 HTTP/1.1\r\nhost: meltemi:1\r\n%s: %s\r\n\r\n", loopback.ClusterHeader, cluster)
			answer, err := http.ReadResponse(bufio.NewReaderSize(iotest.OneByteReader(c), 16), &http.Request{Method: http.MethodConnect})
			require.NoError(t, err)
			require.NoError(t, answer.Body.Close())
			return answer.StatusCode, answer.Header
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
				c := dial(socket, tc.prologue)
				for id := range uint64(3) {
					require.Equal(t, tc.want, ask(c, id))
				}
				c = dial(byConnect, tc.prologue)
				status, header := connect(c, tc.cluster)
				require.Equal(t, http.StatusOK, status)
				require.Equal(t, fmt.Sprintf("127.0.0.1:%d", map[string]int{"one": s.Port, "other": other.Port}[tc.want]), header.Get(loopback.HostHeader))
				for id := range uint64(3) {
					require.Equal(t, tc.want, ask(c, id))
				}
			})
		}
		closed(dial(socket, prologue(map[byte]string{loopback.ClusterTLV: "unknown"})))
		closed(dial(socket, prologue(nil)))
		status, header := connect(dial(byConnect, prologue(nil)), "unknown")
		require.Equal(t, http.StatusServiceUnavailable, status)
		require.Contains(t, header.Get(loopback.FlagsHeader), "NC")
	})
}
