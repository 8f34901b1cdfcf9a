package doctest

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	_ "github.com/meltemi-mesh/meltemi/filters/connectionlimit"
	_ "github.com/meltemi-mesh/meltemi/filters/router"
)

// TestEachExposedMetricIsDescribed, with its labels, and each described one is exposed.
// NAME stands for that of a counter, a gauge or a filter's metric, … for an end.
func TestEachExposedMetricIsDescribed(t *testing.T) {
	mod := filter.NewModule()
	mod.Observe()
	h := filtertest.NewWith(t, mod, 1)
	h.Cluster("up", "h").Serve = func(s *filtertest.Server, b []byte) int {
		requests, rest := dubbotest.Parse(b)
		for _, r := range requests {
			s.Send(dubbotest.Response(r.ID, "x"))
		}
		return len(b) - len(rest)
	}
	c := h.Dial(h.MustLoad(`{"stat_prefix": "t", "protocol": {"name": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}},
		"route_config": {"routes": [{"route": {"cluster": "up"}}]},
		"meta_protocol_filters": [
			{"name": "aeraki.meta_protocol.filters.connection_limit", "config": {"stat_prefix": "limit", "max_connections": 10,
				"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.connection_limit.v1alpha.ConnectionLimit"}},
			{"name": "aeraki.meta_protocol.filters.router"}]}`))
	c.Send(dubbotest.Request{ID: 1}.Bytes())
	h.Advance(1e9)
	require.NotEmpty(t, c.Take())

	type described struct {
		name   *regexp.Regexp
		labels []string
		found  bool
	}
	var table []*described
	for _, r := range rows(section(t, read(t, "docs/observability.md"), "## Metrics of methods")) {
		require.Len(t, r, 3, r)
		require.NotEmpty(t, r[2], r[0])
		for _, name := range spans(r[0]) {
			pattern := strings.NewReplacer("NAME", "[a-z0-9_]+", "…", "[a-z0-9_]+").Replace(name)
			d := &described{name: regexp.MustCompile("^" + pattern + "$")}
			if !strings.Contains(r[1], "its own") {
				d.labels = append([]string{}, spans(r[1])...)
			}
			table = append(table, d)
		}
	}
	all, err := mod.Metrics().Gather()
	require.NoError(t, err)
	for _, f := range all {
		i := slices.IndexFunc(table, func(d *described) bool { return d.name.MatchString(f.GetName()) })
		require.GreaterOrEqual(t, i, 0, "%s is not described", f.GetName())
		d := table[i]
		d.found = true
		if d.labels != nil {
			var labels []string
			for _, l := range f.GetMetric()[0].GetLabel() {
				labels = append(labels, l.GetName())
			}
			require.ElementsMatch(t, d.labels, labels, f.GetName())
		}
		require.NotEmpty(t, f.GetHelp())
	}
	for _, d := range table {
		require.True(t, d.found, "%s is described, and not there", d.name)
	}
}
