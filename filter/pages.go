package filter

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/meltemi-mesh/meltemi/filter/route"
	adminv1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/admin/v1alpha"
)

// reopenTime is how long the files of access logs may take to be opened anew.
const reopenTime = 10 * time.Second

// Pages implements host.Teller: "/routes" is a RoutesConfigDump in JSON, "/metrics" is
// for Prometheus, and a POST to "/reopen_logs" is Envoy's. Requests are counted by what they call from the first call on, as
// there is somebody to see it.
func (mod *Module) Pages() http.Handler {
	mod.Observe()
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerForTransactional(mod.Scrapes(), promhttp.HandlerOpts{EnableOpenMetrics: true, MaxRequestsInFlight: 4}))
	mux.HandleFunc("POST /reopen_logs", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), reopenTime)
		defer cancel()
		paths, err := mod.files.Reopen(ctx)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		for _, p := range paths {
			fmt.Fprintln(w, p) //nolint:errcheck // whoever asks may be gone
		}
	})
	mux.HandleFunc("GET /routes", func(w http.ResponseWriter, _ *http.Request) {
		dump, err := mod.routes()
		var text []byte
		if err == nil {
			text, err = protojson.MarshalOptions{Multiline: true, UseProtoNames: true}.Marshal(dump)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(append(text, '\n')) // who has gone needs none
	})
	return mux
}

// routes are the tables of all listeners. Of versions of a listener, which have the same
// one, the newest counts.
func (mod *Module) routes() (*adminv1alpha.RoutesConfigDump, error) {
	dump := &adminv1alpha.RoutesConfigDump{}
	for _, l := range mod.static() {
		rc, err := anypb.New(l.RouteConfig)
		if err != nil {
			return nil, err
		}
		dump.StaticRouteConfigs = append(dump.StaticRouteConfigs, &adminv1alpha.RoutesConfigDump_StaticRouteConfig{
			RouteConfig: rc, LastUpdated: timestamppb.New(l.loaded), StatPrefix: l.StatPrefix,
		})
	}
	var err error
	dump.DynamicRouteConfigs, err = mod.discovered.Dump()
	return dump, err
}

// static are the listeners that have their routes with them, by the names of those.
func (mod *Module) static() (ls []*listener) {
	mod.mu.Lock()
	defer mod.mu.Unlock()
	newest := map[route.Key]*listener{}
	for l := range mod.listeners {
		switch o := newest[l.key]; {
		case !l.published || l.RDS != nil:
		case l.apart:
			ls = append(ls, l)
		case o == nil || l.loaded.After(o.loaded):
			newest[l.key] = l
		}
	}
	for _, l := range newest {
		ls = append(ls, l)
	}
	slices.SortFunc(ls, func(a, b *listener) int {
		return cmp.Or(cmp.Compare(a.TableName(), b.TableName()), cmp.Compare(a.StatPrefix, b.StatPrefix), a.loaded.Compare(b.loaded))
	})
	return ls
}
