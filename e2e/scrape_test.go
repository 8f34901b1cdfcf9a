package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
	"github.com/meltemi-mesh/meltemi/e2e/internal/rdsserver"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// scraper scrapes an address all the time, as several Prometheus would, and proves that
// what each process tells is what a counter may be.
type scraper struct {
	client http.Client
	stop   context.CancelFunc
	done   sync.WaitGroup

	mu        sync.Mutex
	processes map[float64]map[string]float64 // counters, by when the process has started
	last      map[string]*dto.MetricFamily
	scrapes   int
	wrong     error
}

func startScraper(t *testing.T, socket string) *scraper {
	ctx, stop := context.WithCancel(t.Context())
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	s := &scraper{client: http.Client{Transport: transport}, stop: stop, processes: map[float64]map[string]float64{}}
	s.done.Go(func() {
		for ctx.Err() == nil {
			s.scrape(ctx)
			time.Sleep(10 * time.Millisecond)
		}
	})
	t.Cleanup(s.end)
	return s
}

func (s *scraper) end() { s.stop(); s.done.Wait() }

// scrape keeps what is wrong with one scrape. Between two processes nobody may listen.
func (s *scraper) scrape(ctx context.Context) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://meltemi/metrics", nil)
	if err != nil {
		panic(err)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	all, err := parser.TextToMetricFamilies(resp.Body)
	if ctx.Err() != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	started := all["meltemi_process_start_time_seconds"].GetMetric()
	switch {
	case err != nil || resp.StatusCode != http.StatusOK:
		// The process may have ended meanwhile.
		return
	case len(started) != 1:
		s.wrong = errors.Join(s.wrong, errors.New("no time of start"))
		return
	}
	s.scrapes++
	s.last = all
	before, now := s.processes[started[0].GetGauge().GetValue()], counted(all)
	for name, v := range before {
		if got, ok := now[name]; !ok || got < v {
			s.wrong = errors.Join(s.wrong, fmt.Errorf("%s was %v, and is %v", name, v, got))
		}
	}
	s.processes[started[0].GetGauge().GetValue()] = now
}

// counted are the counters of a page, and those of its histograms, by their labels.
func counted(all map[string]*dto.MetricFamily) map[string]float64 {
	values := map[string]float64{}
	for name, f := range all {
		for _, m := range f.GetMetric() {
			key := name + fmt.Sprint(m.GetLabel())
			switch f.GetType() {
			case dto.MetricType_COUNTER:
				values[key] = m.GetCounter().GetValue()
			case dto.MetricType_HISTOGRAM:
				h := m.GetHistogram()
				values[key], values[key+"sum"] = float64(h.GetSampleCount()), h.GetSampleSum()
				for _, b := range h.GetBucket() {
					values[fmt.Sprint(key, b.GetUpperBound())] = float64(b.GetCumulativeCount())
				}
			}
		}
	}
	return values
}

// TestScrapesThroughUpdatesAndRestarts: while listeners are replaced and drain, routes
// change and another process takes over, what is scraped only grows, and in the end
// nothing is in flight.
func TestScrapesThroughUpdatesAndRestarts(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		server, rds := scripted.Serve(t, scripted.Answer("here")), rdsserver.Start(t, 0, nil)
		port, socket := peers.RestartPort(t), filepath.Join(t.TempDir(), "admin")
		o := v.options()
		o.HotRestart = true
		for _, name := range []string{"a", "b"} {
			o.Clusters = append(o.Clusters, envoytest.Cluster(name, envoytest.At(server.Port)...))
		}
		o.Clusters = append(o.Clusters, envoytest.Cluster("xds", envoytest.At(rds.Port)...))
		loopback := envoytest.LoopbackWithAdmin(envoytest.Socket(), "unix:"+socket)
		with := func(cluster string) []envoytest.Resource {
			fixed := envoytest.Dubbo("fixed", envoytest.Route(cluster, nil))
			return []envoytest.Resource{
				loopback,
				envoytest.Listener("dubbo", envoytest.Proxy(fixed)).On(port),
				envoytest.Listener("discovered", envoytest.Proxy(discovered("dubbo", "test", "GRPC", fromCluster()))),
			}
		}
		o.Listeners = with("a")
		older := envoytest.Start(t, o)
		require.True(t, eventually(patience, func() bool { open, _ := rds.Streams(); return open == 1 }))
		rds.To("test", "a")
		s := startScraper(t, socket)
		l := startLoad(t, port, 4)
		l.more(t, 500)
		d := startLoad(t, older.Port("discovered"), 2)
		d.more(t, 100)
		for _, cluster := range []string{"b", "a", "b"} {
			require.True(t, older.SetListeners(with(cluster)...))
			rds.To("test", cluster)
			l.more(t, 500)
			d.more(t, 100)
		}
		d.end()
		o.Listeners = with("b")
		o.Replaces = older
		newer := envoytest.Start(t, o)
		l.more(t, 500)
		older.WaitExit()
		l.more(t, 500)
		l.end()
		require.Zero(t, l.wrong.Load()+d.wrong.Load())
		c := scripted.Dial(t, newer.Port("dubbo"))
		c.Ask(1, dubbotest.Request{Method: "last"})
		require.Equal(t, "here", c.Read().Text())
		require.True(t, eventually(patience, func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			last := false
			for _, m := range s.last["meltemi_requests_total"].GetMetric() {
				for _, l := range m.GetLabel() {
					last = last || l.GetValue() == "last"
				}
			}
			return last && sum(s.last["meltemi_requests_in_flight"], "dubbo") == 0 && len(s.processes) == 2
		}))
		s.end()
		require.NoError(t, s.wrong)
		require.Greater(t, s.scrapes, 10)
	})
}
