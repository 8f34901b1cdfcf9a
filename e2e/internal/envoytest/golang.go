package envoytest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	_ "google.golang.org/protobuf/types/known/structpb"   // of plugin_config
	_ "google.golang.org/protobuf/types/known/wrapperspb" // of plugin_config

	"github.com/meltemi-mesh/meltemi/control/loopback"
	"github.com/meltemi-mesh/meltemi/e2e/internal/contribhost"
)

// Golang says whether Meltemi is served by Envoy's golang network filter in place of dynamic
// modules: filters of modules are turned into such ones, and the loopback listener into one of
// Envoy's own filters.
type Golang int

const (
	// NotGolang is dynamic modules.
	NotGolang Golang = iota
	// Imitated has contribhost serve the listeners with a golang filter, and Envoy all else.
	Imitated
	// Built is for an Envoy that has the filter: all is its.
	Built
)

// adminAddress is what Meltemi logs of its own pages.
var adminAddress = regexp.MustCompile(`meltemi: admin address (\S+)`)

// Tunnels is how the loopback listener leads connections to clusters where no filter of Meltemi's
// is in it.
type Tunnels int

const (
	// ByTCPProxy goes by the header of the PROXY protocol alone.
	ByTCPProxy Tunnels = iota
	// ByConnect is HTTP's CONNECT, of which the answer tells the host, or why there is none.
	ByConnect
)

// golang is what an Envoy has whose Meltemi is served by the golang filter.
type golang struct {
	host    *contribhost.Host // nil: Envoy is it
	tunnels Tunnels
	modules string
	served  map[string]bool // listeners of the host
	told    http.Client     // of Meltemi's own pages
	scopes  map[string]bool // what names of metrics begin with
}

// settingsOf takes what the carrier filter of a loopback listener is configured with, which here
// is in the environment.
func settingsOf(listeners []Resource) M {
	for _, l := range listeners {
		for _, f := range filtersOf(l) {
			if typed, ok := f["typed_config"].(M); ok && typed["filter_name"] == "carrier" {
				settings := M{}
				for k, v := range typed["filter_config"].(M)["value"].(M) {
					settings[k] = v
				}
				return settings
			}
		}
	}
	return M{}
}

func filtersOf(listener Resource) []M {
	var all []M
	chains, _ := listener["filter_chains"].([]any)
	for _, c := range chains {
		all = append(all, chainFilters(c.(M))...)
	}
	return all
}

// chainFilters are the filters of a chain, in whichever type of slice they are.
func chainFilters(chain M) []M {
	switch filters := chain["filters"].(type) {
	case []M:
		return filters
	case []any:
		all := make([]M, len(filters))
		for i, f := range filters {
			all[i] = f.(M)
		}
		return all
	}
	return nil
}

const (
	golangFilter = "envoy.filters.network.golang"
	golangType   = networkExtensions + "golang.v3alpha.Config"
)

// golangForm is a listener with filters of dynamic modules in the form for the golang filter.
func (g *golang) golangForm(listener Resource) Resource {
	chains, _ := listener["filter_chains"].([]any)
	changed := make([]any, len(chains))
	for i, c := range chains {
		chain := M(Resource(c.(M)).With(nil))
		var filters []M
		for _, f := range chainFilters(chain) {
			if typed, ok := f["typed_config"].(M); ok && typed["filter_name"] == "carrier" {
				return g.tunnelsForm(listener)
			}
			filters = append(filters, g.filterForm(f))
		}
		chain["filters"] = filters
		changed[i] = chain
	}
	return listener.With(M{"filter_chains": changed})
}

// tunnelsForm is a loopback listener without a carrier filter.
func (g *golang) tunnelsForm(listener Resource) Resource {
	of := loopback.Listener{Socket: "@", Tunnels: true, Connect: g.tunnels == ByConnect}
	of.Sources = slices.ContainsFunc(listener["listener_filters"].([]any), func(f any) bool {
		return f.(M)["name"] == "envoy.filters.listener.original_src"
	})
	form := of.Config()
	return listener.With(M{"listener_filters": form["listener_filters"], "filter_chains": form["filter_chains"]})
}

func (g *golang) filterForm(f M) M {
	if discovery, ok := f["config_discovery"].(M); ok {
		discovery = maps.Clone(discovery)
		discovery["type_urls"] = []any{golangType}
		return M{"name": f["name"], "config_discovery": discovery}
	}
	typed, ok := f["typed_config"].(M)
	module, isModule := typed["dynamic_module_config"].(M)
	if !ok || !isModule {
		return f
	}
	if of, ok := typed["filter_config"].(M); ok {
		value, _ := of["value"].(M)
		protocol, _ := value["protocol"].(M)
		g.scopes[fmt.Sprintf("meta_protocol.%v.%v.", protocol["name"], value["stat_prefix"])] = true
	}
	name := module["name"].(string)
	return M{"name": golangFilter, "typed_config": M{
		"@type":      golangType,
		"library_id": name, "library_path": filepath.Join(g.modules, "lib"+name+".so"),
		"plugin_name": typed["filter_name"], "is_terminal_filter": true, "plugin_config": typed["filter_config"],
	}}
}

// extensionForm is the configuration of a discovered filter in the form for the golang filter.
func (g *golang) extensionForm(x M) M {
	if g == nil {
		return x
	}
	return Resource(x).With(M{"typed_config": g.filterForm(M{"typed_config": x["typed_config"]})["typed_config"]})
}

// split sets apart the listeners that the imitated host serves. A test with one that it cannot
// imitate is skipped.
func (g *golang) split(t testing.TB, listeners []Resource) (of contribhost.Config, others []Resource) {
	t.Helper()
	for _, l := range listeners {
		l = g.golangForm(l)
		if slices.ContainsFunc(filtersOf(l), func(f M) bool { return f["config_discovery"] != nil }) {
			t.Skipf("not on the imitated host: listener %s has a filter that is discovered", l["name"])
		}
		if !slices.ContainsFunc(filtersOf(l), func(f M) bool { return f["name"] == golangFilter }) {
			others = append(others, l)
			continue
		}
		imitated, err := imitate(l)
		if err != nil {
			t.Skipf("not on the imitated host: listener %s: %v", l["name"], err)
		}
		g.served[imitated.Name] = true
		of.Listeners = append(of.Listeners, imitated)
	}
	return of, others
}

// known are the fields of listeners that make no difference to the imitated host, beside those that
// it reads.
var known = []string{"@type", "name", "address", "filter_chains", "per_connection_buffer_limit_bytes", "traffic_direction", "stat_prefix"}

func imitate(l Resource) (of contribhost.Listener, err error) {
	for field := range l {
		if !slices.Contains(known, field) {
			return of, fmt.Errorf("it has %s", field)
		}
	}
	chains := l["filter_chains"].([]any)
	if len(chains) != 1 {
		return of, fmt.Errorf("it has %d filter chains", len(chains))
	}
	chain := chains[0].(M)
	for field := range chain {
		if field != "filters" && field != "name" {
			return of, fmt.Errorf("its chain has %s", field)
		}
	}
	address, ok := l["address"].(M)["socket_address"].(M)
	if !ok {
		return of, fmt.Errorf("it is at %v", l["address"])
	}
	of.Name = l["name"].(string)
	of.Address = net.JoinHostPort(address["address"].(string), fmt.Sprint(address["port_value"]))
	if limit, ok := l["per_connection_buffer_limit_bytes"].(int); ok {
		of.BufferLimit = limit
	}
	filters := chainFilters(chain)
	if len(filters) != 1 {
		return of, fmt.Errorf("its chain has %d filters", len(filters))
	}
	typed := filters[0]["typed_config"].(M)
	b, err := json.Marshal(typed["plugin_config"])
	if err != nil {
		return of, err
	}
	var plugin anypb.Any
	if err := protojson.Unmarshal(b, &plugin); err != nil {
		return of, err
	}
	of.Filter = contribhost.Filter{
		LibraryID: typed["library_id"].(string), LibraryPath: typed["library_path"].(string), PluginName: typed["plugin_name"].(string),
	}
	of.Filter.PluginConfig, err = proto.MarshalOptions{Deterministic: true}.Marshal(&plugin)
	return of, err
}

// serveGolang gets an Envoy ready for listeners of the golang filter, of which it returns those that
// are Envoy's, and what to add to the environment.
func (e *Envoy) serveGolang(o Options) (listeners []Resource, env []string) {
	e.t.Helper()
	settings := settingsOf(o.Listeners)
	g := &golang{modules: o.Modules, tunnels: o.Tunnels, served: map[string]bool{}, scopes: map[string]bool{}}
	e.golang = g
	address, _ := settings["admin_address"].(string)
	if address == "" {
		// Envoy has no metrics for the filter: they are on Meltemi's own pages. Names of sockets are
		// short.
		dir, err := os.MkdirTemp("", "meltemi")
		require.NoError(e.t, err)
		e.t.Cleanup(func() { os.RemoveAll(dir) })
		address = "unix:" + filepath.Join(dir, "admin")
		settings["admin_address"] = address
	}
	g.told.Timeout = patience
	g.told.Transport = &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		if path, ok := strings.CutPrefix(address, "unix:"); ok {
			return d.DialContext(ctx, "unix", path)
		}
		if m := adminAddress.FindStringSubmatch(e.Log()); m != nil { // with the port that the kernel chose
			return d.DialContext(ctx, "tcp", m[1])
		}
		return d.DialContext(ctx, "tcp", address)
	}}
	settings["connect"] = o.Tunnels == ByConnect
	b, err := json.Marshal(settings)
	require.NoError(e.t, err)
	env = append(slices.Clone(o.Env), "MELTEMI_PROCESS="+string(b))
	if o.Golang == Built {
		for _, l := range o.Listeners {
			listeners = append(listeners, g.golangForm(l))
		}
		return listeners, env
	}
	config, listeners := g.split(e.t, o.Listeners)
	argument := func(name string) string {
		if i := slices.Index(o.Args, name); i >= 0 {
			return o.Args[i+1]
		}
		return ""
	}
	bin := contribhost.Binary
	if o.Sanitized {
		bin = contribhost.BinaryWithAddressSanitizer
	}
	var before *contribhost.Host
	if o.Replaces != nil {
		before = o.Replaces.golang.host
	}
	g.host, err = contribhost.Start(e.t, contribhost.Options{
		Replaces: before, ParentShutdown: parentShutdown,
		Bin: bin(e.t), Config: config, Concurrency: o.Concurrency, Drain: o.Drain, Env: env, Log: e.log,
		Level: argument("-l"), ComponentLevels: argument("--component-log-level"),
	})
	require.NoError(e.t, err, "%s", e.Log())
	return listeners, o.Env
}

// updateGolang replaces the listeners of the imitated host, and returns those of Envoy.
func (e *Envoy) updateGolang(listeners []Resource) []Resource {
	e.t.Helper()
	g := e.golang
	if g.host == nil {
		var all []Resource
		for _, l := range listeners {
			all = append(all, g.golangForm(l))
		}
		return all
	}
	g.served = map[string]bool{}
	config, others := g.split(e.t, listeners)
	require.NoError(e.t, g.host.Update(config))
	return others
}

// imitated is the imitated host, nil if there is none.
func (g *golang) imitated() *contribhost.Host {
	if g == nil {
		return nil
	}
	return g.host
}

// exited is closed when the imitated host has ended.
func (g *golang) exited() <-chan struct{} {
	if h := g.imitated(); h != nil {
		return h.Exited()
	}
	return nil
}

// port is that of a listener of the imitated host, 0 if it is not one.
func (g *golang) port(t testing.TB, listener string) int {
	t.Helper()
	if g == nil || g.host == nil || !g.served[listener] {
		return 0
	}
	all, err := g.host.Listeners()
	require.NoError(t, err)
	require.Contains(t, all, listener)
	_, port, err := net.SplitHostPort(all[listener])
	require.NoError(t, err)
	n, err := strconv.Atoi(port)
	require.NoError(t, err)
	return n
}

// listenerStats are those of the imitated host whose names match.
func (g *golang) listenerStats(t testing.TB, pattern string) map[string]int64 {
	t.Helper()
	h := g.imitated()
	if h == nil {
		return nil
	}
	all, err := h.Stats()
	require.NoError(t, err)
	wanted := regexp.MustCompile(pattern)
	maps.DeleteFunc(all, func(name string, _ int64) bool { return !wanted.MatchString(name) })
	return all
}

// metric is one of Meltemi's counters and gauges, by Envoy's name for it.
func (g *golang) metric(t testing.TB, name string) int64 {
	t.Helper()
	return g.metrics(t)[forPrometheus(name)]
}

// page is Meltemi's own page of metrics.
func (g *golang) page(t testing.TB) string {
	t.Helper()
	r, err := g.told.Get("http://meltemi/metrics")
	require.NoError(t, err)
	defer r.Body.Close()
	require.Equal(t, http.StatusOK, r.StatusCode)
	b, err := io.ReadAll(r.Body)
	require.NoError(t, err)
	return string(b)
}

// metrics are Meltemi's counters and gauges on its own pages, by their names for Prometheus.
// Histograms are none, as on Envoy's page.
func (g *golang) metrics(t testing.TB) map[string]int64 {
	t.Helper()
	all := map[string]int64{}
	lines := bufio.NewScanner(strings.NewReader(g.page(t)))
	histogram := ""
	for lines.Scan() {
		if of, ok := strings.CutPrefix(lines.Text(), "# TYPE "); ok {
			if histogram, ok = strings.CutSuffix(of, " histogram"); !ok {
				histogram = ""
			}
		}
		name, value, ok := strings.Cut(lines.Text(), " ")
		if histogram != "" && strings.HasPrefix(name, histogram+"_") {
			continue
		}
		if v, err := strconv.ParseFloat(value, 64); ok && err == nil {
			all[name] = int64(v)
		}
	}
	require.NoError(t, lines.Err())
	return all
}

// stats are those whose names match as Envoy would have them: the listener is told from the metric
// by what is configured.
func (g *golang) stats(t testing.TB, pattern string) map[string]int64 {
	t.Helper()
	wanted := regexp.MustCompile(pattern)
	all := map[string]int64{}
	for name, v := range g.metrics(t) {
		for scope := range g.scopes {
			if rest, ok := strings.CutPrefix(name, forPrometheus(scope)); ok && wanted.MatchString(scope+rest) {
				all[scope+rest] = v
			}
		}
	}
	return all
}

// forPrometheus is a name of Envoy's in the form in which it prints it for Prometheus.
func forPrometheus(name string) string {
	return "envoy_" + strings.Map(func(r rune) rune {
		switch {
		case r >= '0' && r <= '9', r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z':
			return r
		}
		return '_'
	}, name)
}
