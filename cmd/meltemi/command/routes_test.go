package command

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"

	adminv1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/admin/v1alpha"
	_ "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha" // in an Any
)

// TestRoutes of a process at either kind of address.
func TestRoutes(t *testing.T) {
	const text = `{"static_route_configs": [{"route_config": {"name": "r", "routes": []}, "stat_prefix": "a"}],
		"dynamic_route_configs": [{"version_info": "1", "client_status": "ACKED"}]}`
	socket := filepath.Join(t.TempDir(), "s")
	for network, address := range map[string]string{"unix": socket, "tcp": "127.0.0.1:0"} {
		l, err := net.Listen(network, address)
		require.NoError(t, err)
		srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/routes" {
				http.Error(w, "no", http.StatusNotFound)
				return
			}
			_, _ = w.Write([]byte(text))
		})}}
		srv.Start()
		defer srv.Close()
		address = l.Addr().String()
		if network == "unix" {
			address = "unix:" + address
		}
		run := func(args ...string) (int, string, string) {
			var stdout, stderr bytes.Buffer
			status := Main(append([]string{"routes", "--address", address}, args...), strings.NewReader(""), &stdout, &stderr)
			return status, stdout.String(), stderr.String()
		}
		status, out, complaint := run()
		require.Zero(t, status, complaint)
		require.Equal(t, `static_route_configs:
    - route_config:
        name: r
        routes: []
      stat_prefix: a
dynamic_route_configs:
    - version_info: "1"
      client_status: ACKED
`, out)
		_, out, _ = run("-json")
		require.JSONEq(t, text, out)
		_, err = page(http.MethodGet, address, "/other")
		require.ErrorContains(t, err, "answers 404 Not Found: no")
	}
}

// TestLogsReopen has a process do so, and tells what it says.
func TestLogsReopen(t *testing.T) {
	answer := http.StatusOK
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if got := r.Method + " " + r.URL.Path; got != "POST /reopen_logs" {
			t.Error(got)
		}
		w.WriteHeader(answer)
		_, _ = w.Write([]byte("/var/log/a\n"))
	}))
	defer srv.Close()
	for _, tt := range []struct {
		code, status   int
		out, complaint string
	}{
		{http.StatusOK, 0, "/var/log/a\n", ""},
		{http.StatusInternalServerError, 1, "", "meltemi: ADDRESS answers 500 Internal Server Error: /var/log/a\n"},
	} {
		answer = tt.code
		address := srv.Listener.Addr().String()
		var stdout, stderr bytes.Buffer
		status := Main([]string{"logs", "reopen", "-address", address}, strings.NewReader(""), &stdout, &stderr)
		require.Equal(t, tt.status, status)
		require.Equal(t, tt.out, stdout.String())
		require.Equal(t, tt.complaint, strings.ReplaceAll(stderr.String(), address, "ADDRESS"))
	}
}

// TestTheTrafficPagesDump is one.
func TestTheTrafficPagesDump(t *testing.T) {
	page, err := os.ReadFile("../../../docs/traffic.md")
	require.NoError(t, err)
	block := regexp.MustCompile("(?ms)^```yaml\n(dynamic_route_configs:.*?)^```$").FindSubmatch(page)
	require.NotNil(t, block)
	var v any
	require.NoError(t, yaml.Unmarshal(block[1], &v))
	text, err := json.Marshal(v)
	require.NoError(t, err)
	require.NoError(t, protojson.Unmarshal(text, new(adminv1alpha.RoutesConfigDump)))
}
