package filter_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

// TestMetricsPage is what Prometheus gets.
func TestMetricsPage(t *testing.T) {
	mod := filter.NewModule()
	mod.Seed(1)
	pages := httptest.NewServer(mod.Pages())
	defer pages.Close()
	h := filtertest.NewWith(t, mod, 1)
	clusters := h.Cluster("up", "h")
	clusters.Serve = func(s *filtertest.Server, b []byte) int {
		requests, rest := dubbotest.Parse(b)
		for _, r := range requests {
			s.Send(dubbotest.Response(r.ID, "x"))
		}
		return len(b) - len(rest)
	}
	c := h.Dial(h.MustLoad(`{"stat_prefix": "t", "protocol": {"name": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}},
		"route_config": {"routes": [{"name": "all", "match": {"metadata": [{"name": "method", "string_match": {"exact": "hello"}}]}, "route": {"cluster": "up"}}]}}`))
	c.Send(dubbotest.Request{ID: 1, Method: "hello"}.Bytes(), dubbotest.Request{ID: 2, Method: "none"}.Bytes())
	h.Advance(1e9)
	for accept, want := range map[string]string{"": "text/plain", "application/openmetrics-text": "application/openmetrics-text"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, pages.URL+"/metrics", nil)
		require.NoError(t, err)
		req.Header.Set("Accept", accept)
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		text, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		resp.Body.Close()
		require.True(t, strings.HasPrefix(resp.Header.Get("Content-Type"), want), resp.Header)
		for _, line := range []string{
			`meltemi_requests_total{cluster="up",method="hello",outcome="ok",protocol="dubbo",route="all",service="org.example.Greeter"} 1`,
			`meltemi_requests_total{cluster="",method="none",outcome="NR",protocol="dubbo",route="",service="org.example.Greeter"} 1`,
			`meltemi_listener_request_total{listener="t",protocol="dubbo"} 2`,
			`meltemi_listener_request_active{listener="t",protocol="dubbo"} 0`,
		} {
			require.Contains(t, string(text), line)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	problems, err := testutil.GatherAndLint(mod.Metrics())
	require.NoError(t, err)
	require.Empty(t, problems)
}
