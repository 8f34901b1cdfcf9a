package filter_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

// building is a filter that asks for metrics and does nothing.
func building(f func(s *filter.Scope) error) *probe {
	return &probe{build: func(_ filter.Config, s *filter.Scope) (filter.Filter, error) { return &hooks{}, f(s) }}
}

func counters(name string, labels ...filter.Label) *probe {
	return building(func(s *filter.Scope) error {
		_, err := s.Counter(name, labels...)
		return err
	})
}

// scraped are the lines of filters at "/metrics", without comments.
func scraped(t *testing.T, mod *filter.Module) (lines []string) {
	t.Helper()
	w := httptest.NewRecorder()
	mod.Pages().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	require.Equal(t, http.StatusOK, w.Code, w.Body)
	for _, line := range strings.Split(w.Body.String(), "\n") {
		if strings.HasPrefix(line, "meltemi_filter_") {
			lines = append(lines, line)
		}
	}
	return lines
}

func TestNamesOfMetrics(t *testing.T) {
	for _, tt := range []struct {
		name   string
		labels []filter.Label
		host   string
		page   string
	}{
		{"a.b", nil, "a.b", `a_b_total{filter="probe.a",listener="t",protocol="toy"}`},
		{"a.total", nil, "a.total", `a_total{filter="probe.a",listener="t",protocol="toy"}`},
		{
			"ok",
			[]filter.Label{{"descriptor", "login"}},
			"ok.descriptor.login",
			`ok_total{descriptor="login",filter="probe.a",listener="t",protocol="toy"}`,
		},
		{
			"ok",
			[]filter.Label{{"z", ""}, {"a", "1.2:é\xff\n-"}},
			"ok.a.1_2____-.z._",
			`ok_total{a="1.2:é` + "\uFFFD" + `\n-",filter="probe.a",listener="t",protocol="toy",z=""}`,
		},
		{
			"limit.{prefix}.{key}x",
			[]filter.Label{{"prefix", "a|b.{key}"}, {"key", "k"}, {"more", "m"}},
			"limit.a|b.{key}.kx.more.m",
			`limit_x_total{filter="probe.a",key="k",listener="t",more="m",prefix="a|b.{key}",protocol="toy"}`,
		},
		{"{p}.x", []filter.Label{{"p", "v"}}, "v.x", `x_total{filter="probe.a",listener="t",p="v",protocol="toy"}`},
	} {
		setProbe(t, "probe.a", counters(tt.name, tt.labels...))
		mod := filter.NewModule()
		require.Zero(t, filtertest.NewWith(t, mod, 1).MustLoad(toyByID(probed)).Counter("toy.t."+tt.host))
		require.Equal(t, []string{"meltemi_filter_" + tt.page + " 0"}, scraped(t, mod))
	}
}

func TestMetricsThatAreRefused(t *testing.T) {
	gauge := func(name string) *probe {
		return building(func(s *filter.Scope) error { _, err := s.Gauge(name); return err })
	}
	values := func(name string) *probe {
		return building(func(s *filter.Scope) error { _, err := s.Histogram(name); return err })
	}
	label := filter.Label{"l", "v"}
	for name, tt := range map[string]struct {
		a, b *probe
		why  string
	}{
		"capitals":        {counters("x", filter.Label{"Key", "v"}), nil, `the metric x has a label "Key": want small letters`},
		"no label":        {counters("x", filter.Label{"", "v"}), nil, `the metric x has a label ""`},
		"of Prometheus":   {counters("x", filter.Label{"le", "v"}), nil, "the metric x has a label le, which is not for filters"},
		"of all":          {counters("x", filter.Label{"listener", "v"}), nil, "the metric x has a label listener, which"},
		"twice":           {counters("x", label, filter.Label{"l", "w"}), nil, "the metric x has the label l twice"},
		"no name":         {counters(".{l}", label), nil, "of a metric is none"},
		"no such place":   {counters("x.{k}", label), nil, "a place for a label that it has not"},
		"the listener's":  {counters("{l}", filter.Label{"l", "request"}), nil, "is none"},
		"a listener's":    {counters("{l}t", filter.Label{"l", "reques"}), nil, "each listener has a metric request of its own"},
		"no label, one":   {counters("x"), counters("x", label), `the metric meltemi_filter_x has the labels ["l"] here, and [] in filter probe.a: they have to be the same`},
		"other labels":    {counters("x", label), counters("x", filter.Label{"k", "v"}), `has the labels ["k"] here, and ["l"] in filter probe.a`},
		"two kinds":       {counters("x"), gauge("x"), "the metric meltemi_filter_x is a gauge here, and meltemi_filter_x is a counter of filter probe.a"},
		"a total":         {counters("x"), gauge("x_total"), "is a gauge here, and meltemi_filter_x is a counter"},
		"a sum":           {values("x"), gauge("x.sum"), "is a gauge here, and meltemi_filter_x is a histogram"},
		"a count, before": {gauge("x_count"), values("x"), "is a histogram here, and meltemi_filter_x_count is a gauge"},
		"one to the host": {building(func(s *filter.Scope) error {
			_, err := s.Counter("x.l.v")
			require.NoError(t, err)
			_, err = s.Gauge("x", label)
			return err
		}), nil, "the metric toy.t.x.l.v is asked for as a counter and as a gauge"},
	} {
		t.Run(name, func(t *testing.T) {
			setProbe(t, "probe.a", tt.a)
			if tt.b != nil {
				setProbe(t, "probe.b", tt.b)
			}
			mod := filter.NewModule()
			h := filtertest.NewWith(t, mod, 1)
			_, err := h.Load(toyByID(probed))
			require.ErrorContains(t, err, tt.why)
			require.Empty(t, scraped(t, mod), "nothing of it is shown")
			if tt.b == nil {
				return
			}
			// Nor do they break a page when they come one by one.
			delete(probes, "probe.b")
			h.MustLoad(toyByID(probed))
			shown := scraped(t, mod)
			require.NotEmpty(t, shown)
			setProbe(t, "probe.a", tt.b)
			_, err = h.Load(toyByID(probed))
			require.Error(t, err)
			require.Equal(t, shown, scraped(t, mod))
		})
	}
}

// TestMetricsOfFiltersOnThePage are totals over versions and workers that only grow.
func TestMetricsOfFiltersOnThePage(t *testing.T) {
	var held *filter.Gauge
	var others *filter.Counter
	setProbe(t, "probe.a", built(func(s *filter.Scope) filter.Filter {
		var errs [5]error
		var seen, alike *filter.Counter
		var size *filter.Histogram
		seen, errs[0] = s.Counter("seen", filter.Label{"where", "a.b"})
		alike, errs[1] = s.Counter("seen", filter.Label{"where", "a_b"})
		held, errs[2] = s.Gauge("held", filter.Label{"where", "here"})
		size, errs[3] = s.Histogram("size", filter.Label{"where", "here"})
		others, errs[4] = s.Counter("others")
		require.NoError(t, errors.Join(errs[:]...))
		require.NotSame(t, seen, alike)
		f := &split{}
		f.worker = func(w *filter.Worker) filter.Filter {
			return &hooks{
				request: func(m *filter.Message) filter.Verdict {
					m.Count(seen, 2)
					m.Count(alike, 1)
					m.Record(size, 7)
					return filter.Continue
				},
				close: func() { w.Count(seen, 100) }, // behind the last connection
			}
		}
		return f
	}))
	setProbe(t, "probe.b", built(func(s *filter.Scope) filter.Filter {
		seen, err := s.Counter("seen", filter.Label{"where", "a.b"})
		require.NoError(t, err)
		return &hooks{request: func(m *filter.Message) filter.Verdict { m.Count(seen, 1); return filter.Continue }}
	}))
	mod := filter.NewModule()
	mod.Seed(1)
	h := filtertest.NewWith(t, mod, 2)
	h.Cluster("up", "h1")
	first := h.MustLoad(toyByID(probed))
	send := func(cfg *filtertest.Config, worker int) {
		c := h.DialOn(cfg, worker)
		c.Send([]byte("req 1 m -\n"))
		h.Advance(50 * time.Millisecond)
		c.Close()
	}
	at := func(series string) string {
		t.Helper()
		for _, line := range scraped(t, mod) {
			if rest, ok := strings.CutPrefix(line, series+" "); ok {
				return rest
			}
		}
		return ""
	}
	const (
		seenA  = `meltemi_filter_seen_total{filter="probe.a",listener="t",protocol="toy",where="a.b"}`
		alikeA = `meltemi_filter_seen_total{filter="probe.a",listener="t",protocol="toy",where="a_b"}`
		seenB  = `meltemi_filter_seen_total{filter="probe.b",listener="t",protocol="toy",where="a.b"}`
		other  = `meltemi_filter_others_total{filter="probe.a",listener="t",protocol="toy"}`
		gauge  = `meltemi_filter_held{filter="probe.a",listener="t",protocol="toy",where="here"}`
		of     = `{filter="probe.a",listener="t",protocol="toy",where="here"`
	)
	require.Equal(t, "0", at(seenA), "from the beginning")
	send(first, 0)
	send(first, 1)
	require.Equal(t, "4", at(seenA))
	require.Equal(t, "2", at(alikeA))
	require.Equal(t, "2", at(seenB))
	require.EqualValues(t, 8, first.Counter("toy.t.seen.where.a_b"), "the host knows one")

	next := h.MustLoad(toyByID(probed))
	send(next, 0)
	held.Add(3)
	others.Add(5)
	require.Equal(t, "6", at(seenA))
	require.Equal(t, "3", at(gauge), "at once")
	require.Equal(t, "5", at(other), "at once")
	require.Equal(t, "3", at("meltemi_filter_size_count"+of+"}"))
	require.Equal(t, "21", at("meltemi_filter_size_sum"+of+"}"))
	require.Equal(t, "0", at("meltemi_filter_size_bucket"+of+`,le="5"}`))
	require.Equal(t, "3", at("meltemi_filter_size_bucket"+of+`,le="10"}`))
	require.Equal(t, "3", at("meltemi_filter_size_bucket"+of+`,le="+Inf"}`))
	problems, err := testutil.GatherAndLint(mod.Metrics())
	require.NoError(t, err)
	require.Empty(t, problems)

	first.Destroy()
	require.Equal(t, "206", at(seenA), "what the parts of two workers have counted at their end")
	send(next, 0)
	require.Equal(t, "208", at(seenA))
	require.EqualValues(t, 4+4+200, next.Counter("toy.t.seen.where.a_b"), "the host is told by the next one")
	next.Destroy()
	require.Equal(t, "308", at(seenA))
	require.Equal(t, "5", at(other))
	require.Equal(t, "4", at("meltemi_filter_size_count"+of+"}"))
	require.Empty(t, at(gauge), "it has gone with the listener")
	again := h.MustLoad(toyByID(probed))
	require.Equal(t, "0", at(gauge))
	send(again, 1)
	require.Equal(t, "310", at(seenA))
}

// TestRecordedValuesAreOnThePage also when there are too many for the host.
func TestRecordedValuesAreOnThePage(t *testing.T) {
	var size *filter.Histogram
	var worker *filter.Worker
	setProbe(t, "probe.a", built(func(s *filter.Scope) filter.Filter {
		size, _ = s.Histogram("size")
		f := &split{}
		f.worker = func(w *filter.Worker) filter.Filter { worker = w; return &hooks{} }
		return f
	}))
	mod := filter.NewModule()
	h := filtertest.NewWith(t, mod, 1)
	cfg := h.MustLoad(toyByID(probed))
	h.Dial(cfg).Close()
	worker.Post(func() {
		for i := range uint64(10_001) { // nobody can be told
			worker.Record(size, i)
		}
	})
	h.Settle()
	cfg.Destroy()
	got := strings.Join(scraped(t, mod), "\n")
	require.Contains(t, got, `meltemi_filter_size_count{filter="probe.a",listener="t",protocol="toy"} 10001`)
	require.Contains(t, got, `meltemi_filter_size_sum{filter="probe.a",listener="t",protocol="toy"} 5.0005e+07`)
	require.Contains(t, got, `meltemi_filter_size_bucket{filter="probe.a",listener="t",protocol="toy",le="1"} 2`)
	require.Contains(t, got, `meltemi_filter_size_bucket{filter="probe.a",listener="t",protocol="toy",le="500"} 501`)
	require.Contains(t, got, `meltemi_filter_size_bucket{filter="probe.a",listener="t",protocol="toy",le="1e+09"} 10001`)
}
