package e2e

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/brpc/brpctest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// TestPassthrough has HTTP and TLS come to a port of bRPC, as health checks and
// consoles of bRPC's servers do.
func TestPassthrough(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		digest := func(w http.ResponseWriter, r *http.Request) {
			h := sha256.New()
			n, err := io.Copy(h, r.Body)
			if err == nil {
				fmt.Fprintf(w, "%d %x ", n, h.Sum(nil))
				w.Write(bytes.Repeat([]byte("y"), 3<<20))
			}
		}
		plain := httptest.NewServer(http.HandlerFunc(digest))
		defer plain.Close()
		secure := httptest.NewTLSServer(http.HandlerFunc(digest))
		defer secure.Close()
		rpc := scripted.ServeBRPC(t, scripted.BRPCEcho)

		config := func(prefix, cluster string) envoytest.M {
			c := envoytest.Protocol("brpc", prefix, envoytest.Route("rpc", nil))
			c["passthrough"] = envoytest.M{"cluster": cluster}
			return c
		}
		portOf := func(s *httptest.Server) int { return s.Listener.Addr().(*net.TCPAddr).Port }
		o := v.options()
		o.Clusters = []envoytest.Resource{
			envoytest.Cluster("rpc", envoytest.At(rpc.Port)...),
			envoytest.Cluster("plain", envoytest.At(portOf(plain))...),
			envoytest.Cluster("secure", envoytest.At(portOf(secure))...),
			envoytest.Cluster("none"),
		}
		o.Listeners = []envoytest.Resource{envoytest.Loopback(envoytest.Socket())}
		for _, to := range []string{"plain", "secure", "none"} {
			o.Listeners = append(o.Listeners, envoytest.Listener(to, envoytest.Proxy(config(to, to))))
		}
		e := envoytest.Start(t, o)

		body := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB
		want := fmt.Sprintf("%d %x ", len(body), sha256.Sum256(body))
		transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // the test's own certificate
		defer transport.CloseIdleConnections()
		client := &http.Client{Transport: transport}
		post := func(url string) {
			r, err := client.Post(url, "text/plain", bytes.NewReader(body))
			require.NoError(t, err)
			got, err := io.ReadAll(r.Body)
			require.NoError(t, err)
			r.Body.Close()
			require.Len(t, got, len(want)+3<<20)
			require.Equal(t, want, string(got[:len(want)]))
		}
		for range 3 { // over one connection
			post(fmt.Sprintf("http://127.0.0.1:%d/health", e.Port("plain")))
			post(fmt.Sprintf("https://127.0.0.1:%d/health", e.Port("secure")))
		}
		for _, to := range []string{"plain", "secure"} {
			c := scripted.DialBRPC(t, e.Port(to))
			c.Send(brpctest.Request{ID: 7, Body: []byte("hello")}.Bytes())
			require.EqualValues(t, 7, c.Read().ID)
			stats := "meta_protocol.brpc." + to + "."
			e.WaitStat(stats+"passthrough_connection", envoytest.Exactly(1))
			e.WaitStat(stats+"request", envoytest.Exactly(1))
			e.WaitStat(stats+"request_decoding_error", envoytest.Exactly(0))
		}

		r, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/health", e.Port("none")))
		if err == nil {
			r.Body.Close()
		}
		require.Error(t, err)
		e.WaitStat("meta_protocol.brpc.none.passthrough_connect_fail", envoytest.AtLeast(1))
	})
}
