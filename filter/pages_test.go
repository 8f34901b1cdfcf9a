package filter_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	adminv1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/admin/v1alpha"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// TestRoutesAreTold: of each listener those of its newest version.
func TestRoutesAreTold(t *testing.T) {
	mod := filter.NewModule()
	h := filtertest.NewWith(t, mod, 1)
	routes := func() (told []string) {
		t.Helper()
		w := httptest.NewRecorder()
		mod.Pages().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/routes", nil))
		require.Equal(t, http.StatusOK, w.Code)
		require.Equal(t, "application/json", w.Header().Get("Content-Type"))
		dump := new(adminv1alpha.RoutesConfigDump)
		require.NoError(t, protojson.Unmarshal(w.Body.Bytes(), dump))
		for _, s := range dump.GetStaticRouteConfigs() {
			rc := new(routev1alpha.RouteConfiguration)
			require.NoError(t, s.GetRouteConfig().UnmarshalTo(rc))
			require.WithinDuration(t, time.Now(), s.GetLastUpdated().AsTime(), time.Minute)
			told = append(told, s.GetStatPrefix()+" "+rc.GetName()+" "+rc.GetRoutes()[0].GetRoute().GetCluster())
		}
		return told
	}
	load := func(prefix, cluster string) *filtertest.Config {
		return h.MustLoad(`{"stat_prefix": "` + prefix + `", "protocol": {"name": "toy", "codec": {"name": "toy.byid"}},
			"route_config": {"name": "r", "routes": [{"route": {"cluster": "` + cluster + `"}}]}}`)
	}
	require.Empty(t, routes())
	load("b", "v1")
	old := load("a", "v1")
	require.Equal(t, []string{"a r v1", "b r v1"}, routes())
	newest := load("a", "v2")
	require.Equal(t, []string{"a r v2", "b r v1"}, routes())
	old.Destroy()
	require.Equal(t, []string{"a r v2", "b r v1"}, routes())
	newest.Destroy()
	require.Equal(t, []string{"b r v1"}, routes())
	unpublished, err := h.LoadUnpublished(`{"stat_prefix": "c", "protocol": {"name": "toy", "codec": {"name": "toy.byid"}}, "route_config": {"name": "r"}}`)
	require.NoError(t, err)
	require.Equal(t, []string{"b r v1"}, routes())
	unpublished.Destroy()
}

// TestLogsAreReopened by a POST, as Envoy's own are.
func TestLogsAreReopened(t *testing.T) {
	mod := filter.NewModule()
	h := filtertest.NewWith(t, mod, 1)
	dir := filepath.Join(t.TempDir(), "dir")
	require.NoError(t, os.Mkdir(dir, 0o700))
	path := filepath.Join(dir, "log")
	h.MustLoad(`{"stat_prefix": "t", "protocol": {"name": "toy", "codec": {"name": "toy.byid"}},
		"route_config": {"routes": [{"route": {"cluster": "up"}}]}, "access_log": [` + accessLog(path, "x\n") + `]}`)
	ask := func(method string) (int, string) {
		w := httptest.NewRecorder()
		mod.Pages().ServeHTTP(w, httptest.NewRequest(method, "/reopen_logs", nil))
		return w.Code, w.Body.String()
	}
	require.NoError(t, os.Rename(path, path+".1"))
	code, text := ask(http.MethodPost)
	require.Equal(t, http.StatusOK, code)
	require.Equal(t, path+"\n", text)
	require.FileExists(t, path)
	code, _ = ask(http.MethodGet)
	require.Equal(t, http.StatusMethodNotAllowed, code)
	require.NoError(t, os.RemoveAll(dir))
	code, text = ask(http.MethodPost)
	require.Equal(t, http.StatusInternalServerError, code)
	require.Contains(t, text, "access log "+path+": open "+path)
}
