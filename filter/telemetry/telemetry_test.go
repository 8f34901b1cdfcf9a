package telemetry_test

import (
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/facts"
	"github.com/meltemi-mesh/meltemi/filter/telemetry"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

// TestMain fails when a test leaves a goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func calls(service, method string) *codecs.Metadata {
	md := new(codecs.Metadata)
	md.SetOperation([]byte(service), []byte(method))
	return md
}

func answered(took time.Duration) *facts.Facts {
	return &facts.Facts{Route: "r", Cluster: "c", Attempts: 1, Start: time.Second, Answered: time.Second + took, End: time.Second + took}
}

func gather(t *testing.T, r *telemetry.Registry) map[string]*dto.MetricFamily {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(r)
	all, err := reg.Gather()
	require.NoError(t, err)
	m := map[string]*dto.MetricFamily{}
	for _, f := range all {
		m[f.GetName()] = f
	}
	return m
}

func TestWhatIsCounted(t *testing.T) {
	r := telemetry.NewRegistry()
	w, other := r.NewWorker(), r.NewWorker()
	require.Nil(t, w.Begin("dubbo", calls("s", "m")), "nobody asks")
	r.On()
	open := w.Begin("dubbo", calls("s", "m"))
	for _, w := range []*telemetry.Worker{w, other} {
		w.End(w.Begin("dubbo", calls("s", "m")), answered(7*time.Millisecond))
	}
	late := answered(0)
	late.Answered, late.Replied, late.Status, late.Flags = 0, true, codecs.StatusError, facts.UpstreamRequestTimeout
	w.End(w.Begin("dubbo", calls("s", "m")), late)
	failed := answered(0)
	failed.Status = codecs.StatusError
	w.End(w.Begin("thrift", calls("", "m2")), failed)
	failed.Status = codecs.StatusBusinessException
	w.End(w.Begin("thrift", calls("a.b", "m\xff")), failed)
	w.End(w.Begin("thrift", calls("a.b", "tell")), &facts.Facts{Kind: facts.Oneway, Start: 1, End: 1})
	require.NoError(t, testutil.CollectAndCompare(r, strings.NewReader(`
# HELP meltemi_requests_total Requests, oneways and streams that have ended.
# TYPE meltemi_requests_total counter
meltemi_requests_total{cluster="c",method="m",outcome="UT",protocol="dubbo",route="r",service="s"} 1
meltemi_requests_total{cluster="c",method="m",outcome="ok",protocol="dubbo",route="r",service="s"} 2
meltemi_requests_total{cluster="c",method="m2",outcome="error",protocol="thrift",route="r",service=""} 1
meltemi_requests_total{cluster="c",method="m�",outcome="exception",protocol="thrift",route="r",service="a.b"} 1
meltemi_requests_total{cluster="",method="tell",outcome="none",protocol="thrift",route="",service="a.b"} 1
# HELP meltemi_requests_in_flight Requests, oneways and streams that have not ended.
# TYPE meltemi_requests_in_flight gauge
meltemi_requests_in_flight{method="m",protocol="dubbo",service="s"} 1
meltemi_requests_in_flight{method="m2",protocol="thrift",service=""} 0
meltemi_requests_in_flight{method="m�",protocol="thrift",service="a.b"} 0
meltemi_requests_in_flight{method="tell",protocol="thrift",service="a.b"} 0
`), "meltemi_requests_total", "meltemi_requests_in_flight"))
	w.End(open, answered(0))
	problems, err := testutil.CollectAndLint(r)
	require.NoError(t, err)
	require.Empty(t, problems)
}

// TestTimes are in the buckets that hold them, of both kinds.
func TestTimes(t *testing.T) {
	for _, d := range []time.Duration{
		-time.Second, 0, 1, time.Microsecond, 953, 954, 999 * time.Microsecond, 5 * time.Millisecond, 5*time.Millisecond + 1,
		time.Second / 1024, time.Second / 2, time.Second, time.Second + 1, 2 * time.Second, 3 * time.Second, 10 * time.Second, 2048 * time.Second, 24 * time.Hour,
	} {
		r := telemetry.NewRegistry()
		r.On()
		w := r.NewWorker()
		w.End(w.Begin("p", calls("s", "m")), answered(d))
		h := gather(t, r)["meltemi_request_duration_seconds"].GetMetric()[0].GetHistogram()
		s := max(d, 0).Seconds()
		require.EqualValues(t, 1, h.GetSampleCount())
		require.InDelta(t, s, h.GetSampleSum(), 1e-9)
		for _, b := range h.GetBucket() {
			require.Equal(t, s <= b.GetUpperBound(), b.GetCumulativeCount() == 1, "%v in %v", d, b.GetUpperBound())
		}
		require.EqualValues(t, 3, h.GetSchema())
		require.Len(t, h.GetPositiveSpan(), 1)
		require.Equal(t, []int64{1}, h.GetPositiveDelta())
		upper := math.Exp2(float64(h.GetPositiveSpan()[0].GetOffset()) / 8)
		lower := upper / math.Exp2(1.0/8)
		switch {
		case s < 1e-6:
			require.Less(t, upper, 1.1e-6)
		case s > 2048:
			require.InEpsilon(t, 2048*math.Exp2(1.0/8), upper, 1e-6)
		default:
			require.LessOrEqual(t, s, upper*(1+1e-12), d)
			require.Greater(t, s, lower*(1-1e-12), d)
		}
	}
}

func TestNativeBucketsHaveSpansAndDeltas(t *testing.T) {
	r := telemetry.NewRegistry()
	r.On()
	w := r.NewWorker()
	for i, n := range []int{3, 1, 5} { // 1 s, the next bucket, and one far away
		for range n {
			w.End(w.Begin("p", calls("s", "m")), answered([]time.Duration{time.Second, 1050 * time.Millisecond, 8 * time.Second}[i]))
		}
	}
	h := gather(t, r)["meltemi_request_duration_seconds"].GetMetric()[0].GetHistogram()
	require.Len(t, h.GetPositiveSpan(), 2)
	require.EqualValues(t, 0, h.GetPositiveSpan()[0].GetOffset())
	require.EqualValues(t, 2, h.GetPositiveSpan()[0].GetLength())
	require.EqualValues(t, 22, h.GetPositiveSpan()[1].GetOffset(), "from 2 to 24")
	require.Equal(t, []int64{3, -2, 4}, h.GetPositiveDelta())
}

// TestSoManyMethods: what is beyond the limit is counted together, by any worker, and
// told.
func TestSoManyMethods(t *testing.T) {
	r := telemetry.NewRegistry()
	r.On()
	const n = 20_000
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			w := r.NewWorker()
			for i := range n {
				w.End(w.Begin("p", calls("s", fmt.Sprint(strings.Repeat("x", 300), i%2, "/", i))), answered(0))
				w.End(w.Begin("p", calls("s", "known")), answered(0))
				if i == 0 {
					continue
				}
				w.End(w.Begin("p", calls("s", fmt.Sprint("m", i))), answered(0))
			}
		})
	}
	wg.Wait()
	all := gather(t, r)
	total, known, beyond := 0.0, 0.0, 0.0
	for _, m := range all["meltemi_requests_total"].GetMetric() {
		total += m.GetCounter().GetValue()
		for _, l := range m.GetLabel() {
			require.LessOrEqual(t, len(l.GetValue()), 256)
			switch {
			case l.GetName() != "method":
			case l.GetValue() == "known":
				known += m.GetCounter().GetValue()
			case l.GetValue() == telemetry.Other:
				beyond += m.GetCounter().GetValue()
			}
		}
	}
	require.Equal(t, 2*(3*n-1), int(total))
	require.Equal(t, 2*n, int(known))
	require.Greater(t, beyond, 1.5*n)
	require.Less(t, len(all["meltemi_requests_total"].GetMetric()), 1010)
	require.Less(t, len(all["meltemi_requests_in_flight"].GetMetric()), 1010)
	for _, m := range all["meltemi_requests_in_flight"].GetMetric() {
		require.Zero(t, m.GetGauge().GetValue())
	}
	require.Positive(t, all["meltemi_metrics_overflow_total"].GetMetric()[0].GetCounter().GetValue())
}

// TestHalfANameIsWhole: a request may have a service and no method, or the reverse.
func TestHalfANameIsWhole(t *testing.T) {
	r := telemetry.NewRegistry()
	r.On()
	w := r.NewWorker()
	for _, o := range [][2]string{{"s", ""}, {"", "m"}, {"", ""}} {
		w.Begin("p", calls(o[0], o[1]))
	}
	var got [][2]string
	for _, m := range gather(t, r)["meltemi_requests_in_flight"].GetMetric() {
		l := m.GetLabel()
		got = append(got, [2]string{l[2].GetValue(), l[0].GetValue()})
	}
	require.ElementsMatch(t, [][2]string{{"s", ""}, {"", "m"}, {"", ""}}, got)
}

// TestNamesThatFiltersMake of what clients say, of clusters for example, can be no UTF-8.
func TestNamesThatFiltersMake(t *testing.T) {
	r := telemetry.NewRegistry()
	r.On()
	w := r.NewWorker()
	for i := range 64 {
		f := answered(0)
		f.Cluster, f.Route = string([]byte{0xff, byte(0x80 + i)}), strings.Repeat("r", 256+i)
		w.End(w.Begin("p", calls("s", "m")), f)
	}
	all := gather(t, r)["meltemi_requests_total"].GetMetric()
	require.Len(t, all, 1)
	require.Equal(t, 64, int(all[0].GetCounter().GetValue()))
}

// TestNamesThatLookTheSame: clients choose names. Those of which a label shows the same,
// and those that are called as what is not told apart, cost no more than one.
func TestNamesThatLookTheSame(t *testing.T) {
	r := telemetry.NewRegistry()
	r.On()
	w := r.NewWorker()
	const n = 2000
	long := strings.Repeat("x", 300)
	request := func(service, method string) { w.End(w.Begin("p", calls(service, method)), answered(0)) }
	requests := func(from int) {
		for i := from; i < from+n; i++ {
			request("s", fmt.Sprint(long, i))
			request("s", fmt.Sprintf("\xff%c", 0x80+i%0x40)) // no UTF-8
			request(fmt.Sprint(long, i), "m")
			request(telemetry.Other, telemetry.Other)
			request(telemetry.Other, fmt.Sprint("m", i%2))
		}
	}
	requests(0)
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	requests(n)
	runtime.GC()
	runtime.ReadMemStats(&after)
	require.Less(t, int64(after.HeapAlloc)-int64(before.HeapAlloc), int64(n*20))
	total := 0.0
	for _, m := range gather(t, r)["meltemi_requests_total"].GetMetric() {
		total += m.GetCounter().GetValue()
	}
	require.Equal(t, 2*5*n, int(total))
	for _, m := range gather(t, r)["meltemi_requests_in_flight"].GetMetric() {
		require.Zero(t, m.GetGauge().GetValue())
	}
	runtime.KeepAlive(w)
}

// TestScrapesBesideWorkers: counters only grow, and a histogram's parts agree.
func TestScrapesBesideWorkers(t *testing.T) {
	r := telemetry.NewRegistry()
	r.On()
	done := make(chan struct{})
	var wg sync.WaitGroup
	const n = 50_000
	for range 2 {
		wg.Go(func() {
			w := r.NewWorker()
			for i := range n {
				f := answered(time.Duration(i) * time.Microsecond)
				f.Trace.Sampled = i%3 == 0
				w.End(w.Begin("p", calls("s", fmt.Sprint(i%50))), f)
			}
		})
	}
	go func() { wg.Wait(); close(done) }()
	before := 0.0
	for over := false; !over; {
		select {
		case <-done:
			over = true
		default:
		}
		total := 0.0
		all := gather(t, r)
		for _, m := range all["meltemi_requests_total"].GetMetric() {
			total += m.GetCounter().GetValue()
		}
		require.GreaterOrEqual(t, total, before)
		before = total
		for _, m := range all["meltemi_request_duration_seconds"].GetMetric() {
			h := m.GetHistogram()
			sum, at := int64(0), int64(0)
			for _, d := range h.GetPositiveDelta() {
				at += d
				sum += at
			}
			require.EqualValues(t, h.GetSampleCount(), sum)
			last := h.GetBucket()[len(h.GetBucket())-1]
			require.LessOrEqual(t, last.GetCumulativeCount(), h.GetSampleCount())
		}
	}
	require.Equal(t, 2*n, int(before))
}

func TestARequestAllocatesNothing(t *testing.T) {
	r := telemetry.NewRegistry()
	r.On()
	w := r.NewWorker()
	a, b, f := calls("com.acme.Greeter", "hello"), calls("com.acme.Greeter", "bye"), answered(time.Millisecond)
	require.Zero(t, raced.AllocsPerRun(t, 1000, func() {
		w.End(w.Begin("dubbo", a), f)
		w.End(w.Begin("dubbo", b), f)
	}))
	// Nor does one that is traced, beyond the exemplar of each second.
	f.Trace.Sampled = true
	w.End(w.Begin("dubbo", a), f)
	require.Zero(t, raced.AllocsPerRun(t, 1000, func() { w.End(w.Begin("dubbo", a), f) }))
}

func BenchmarkRequest(b *testing.B) {
	r := telemetry.NewRegistry()
	r.On()
	w := r.NewWorker()
	md, f := calls("com.acme.Greeter", "hello"), answered(time.Millisecond)
	for b.Loop() {
		w.End(w.Begin("dubbo", md), f)
	}
}

// TestExemplars: of traced requests that are told of, the first of each bucket and
// second, of all workers the newest.
func TestExemplars(t *testing.T) {
	r := telemetry.NewRegistry()
	r.On()
	one, other := r.NewWorker(), r.NewWorker()
	traced := func(w *telemetry.Worker, id byte, took, end time.Duration) {
		f := answered(took)
		f.Start, f.End = end-took, end
		f.Trace = facts.Trace{ID: [16]byte{15: id}, Span: [8]byte{7: id}, Sampled: id%2 == 1}
		w.End(w.Begin("p", calls("s", "m")), f)
	}
	shown := func() (ids []string) {
		for _, b := range gather(t, r)["meltemi_request_duration_seconds"].GetMetric()[0].GetHistogram().GetBucket() {
			if e := b.GetExemplar(); e != nil {
				require.LessOrEqual(t, e.GetValue(), b.GetUpperBound())
				require.WithinDuration(t, time.Now(), e.GetTimestamp().AsTime(), time.Minute)
				ids = append(ids, fmt.Sprint(b.GetUpperBound(), " ", e.GetLabel()[0].GetValue(), " ", e.GetLabel()[1].GetValue(), " ", e.GetValue()))
			}
		}
		return ids
	}
	traced(one, 2, time.Millisecond, time.Minute)
	require.Empty(t, shown(), "not sampled")
	traced(one, 1, time.Millisecond, time.Minute)
	traced(one, 3, time.Millisecond, time.Minute+999*time.Millisecond)
	traced(one, 5, time.Second, time.Minute)
	traced(one, 7, time.Hour, 2*time.Hour)
	first := []string{
		"0.005 0000000000000001 00000000000000000000000000000001 0.001",
		"1 0000000000000005 00000000000000000000000000000005 1",
		"+Inf 0000000000000007 00000000000000000000000000000007 3600",
	}
	require.Equal(t, first, shown())
	traced(one, 9, 2*time.Millisecond, time.Minute+time.Second)
	require.Equal(t, "0.005 0000000000000009 00000000000000000000000000000009 0.002", shown()[0])
	traced(other, 11, 3*time.Millisecond, time.Second)
	require.Equal(t, append([]string{"0.005 000000000000000b 0000000000000000000000000000000b 0.003"}, first[1:]...), shown())

	reg := prometheus.NewRegistry()
	reg.MustRegister(r)
	w := httptest.NewRecorder()
	req := httptest.NewRequest(http.MethodGet, "/metrics", nil)
	req.Header.Set("Accept", "application/openmetrics-text")
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{EnableOpenMetrics: true}).ServeHTTP(w, req)
	require.Regexp(t, `(?m)^meltemi_request_duration_seconds_bucket\{.*le="0\.005"\} 5 # \{span_id="000000000000000b",trace_id="0000000000000000000000000000000b"\} 0\.003 \d`, w.Body.String())
	require.Regexp(t, `(?m)^meltemi_request_duration_seconds_bucket\{.*le="\+Inf"\} 7 # \{span_id="0000000000000007"`, w.Body.String())
}

// TestNoWorkerWaitsForAScrape, also when it sees what it has not seen before.
func TestNoWorkerWaitsForAScrape(t *testing.T) {
	r := telemetry.NewRegistry()
	r.On()
	w := r.NewWorker()
	w.End(w.Begin("p", calls("s", "m")), answered(0))
	scrape := make(chan prometheus.Metric)
	go func() { defer close(scrape); r.Collect(scrape) }()
	<-scrape // and it waits for somebody to take the next
	for i := range 10 {
		w.End(w.Begin("p", calls("s", fmt.Sprint(i))), answered(0))
		r.NewWorker().Begin("p", calls("s", "m"))
	}
	n := 1
	for range scrape {
		n++
	}
	require.Equal(t, 4, n, "what there was when it began: in flight, ended, their times, the overflow")
}

// TestAScrapeKeepsWhatItHas: it shows what a collector that keeps nothing shows, also of
// label sets, buckets and exemplars that have come since the one before, and a second one
// at the same time does not touch its values. Again it allocates nothing.
func TestAScrapeKeepsWhatItHas(t *testing.T) {
	r := telemetry.NewRegistry()
	r.On()
	one, other := r.NewWorker(), r.NewWorker()
	count := func(w *telemetry.Worker, method string, took time.Duration) {
		f := answered(took)
		f.Trace = facts.Trace{ID: [16]byte{1}, Span: [8]byte{2}, Sampled: took > time.Second}
		w.End(w.Begin("p", calls("s", method)), f)
	}
	reg, nothing := prometheus.NewPedanticRegistry(), prometheus.NewRegistry()
	reg.MustRegister(r)
	s := &telemetry.Scrapes{Keepers: func() []telemetry.Keeper { return []telemetry.Keeper{r} }, Rest: nothing}
	text := func(families []*dto.MetricFamily) string {
		var all []string
		for _, f := range families {
			for _, m := range f.GetMetric() {
				all = append(all, f.GetName()+" "+f.GetHelp()+f.GetType().String()+protojson.Format(m))
			}
		}
		slices.Sort(all)
		return strings.Join(all, "\n")
	}
	check := func() {
		want, err := reg.Gather()
		require.NoError(t, err)
		got, done, err := s.Gather()
		require.NoError(t, err)
		require.Equal(t, text(want), text(got))
		count(other, "m", time.Hour)
		again, done2, err := s.Gather()
		require.NoError(t, err)
		require.Equal(t, text(want), text(got), "it is not done with it")
		require.NotEqual(t, text(want), text(again))
		done2()
		done()
	}
	check()
	for i := range 40 {
		count(one, fmt.Sprint("m", i%7), time.Duration(i*i)*time.Millisecond)
		count(other, fmt.Sprint("m", i%5), time.Duration(i*i*i)*time.Millisecond)
		check()
	}
	p := r.Keep()
	p.Update()
	again, f := calls("s", "m1"), answered(time.Millisecond)
	require.Zero(t, raced.AllocsPerRun(t, 100, func() {
		one.End(one.Begin("p", again), f)
		p.Update()
	}))
}

// nowhere is a connection of HTTP's to somebody who reads as fast as can be.
type nowhere struct {
	header http.Header
	bytes  int
}

func (n *nowhere) Header() http.Header { return n.header }
func (n *nowhere) WriteHeader(int)     {}
func (n *nowhere) Write(b []byte) (int, error) {
	n.bytes += len(b)
	return len(b), nil
}

// BenchmarkScrape measures a scrape, and how long a worker that goes on counting, and which
// nothing should stop, waits meanwhile for others of this process, beside the same without
// scrapes: the longest pause of all, and the longest of each millisecond but for one in a
// thousand. What the system does is left out as far as it can be: the worker has a
// processor of its own, and before others, if that is allowed ("taskset -c 0"
// leaves it to it), and no pause counts in which the system ran somebody else. Go's
// collector, which everybody's garbage has run and which runs every two minutes without
// any, has pauses of its own beside: the longest that a worker has by it, and after how many
// scrapes in a row it runs.
func BenchmarkScrape(b *testing.B) {
	for name, n := range map[string]int{"10000": 10_000, "all": 1 << 20} {
		b.Run(name, func(b *testing.B) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(3)) // as beside one worker
			r := telemetry.NewRegistry()
			r.On()
			const perSet = 1 + 15 + 3 // the counter, the classic buckets, sum and count
			workers := [3]*telemetry.Worker{r.NewWorker(), r.NewWorker(), r.NewWorker()}
			sets := min(n/perSet, 4000)
			requests, ends := make([]*codecs.Metadata, sets), make([]*facts.Facts, sets)
			count := func(w *telemetry.Worker, i int) { w.End(w.Begin("dubbo", requests[i]), ends[i]) }
			for i := range sets {
				requests[i], ends[i] = calls("com.acme.shop.Orders", fmt.Sprint("method", i/4)), answered(time.Duration(i%100)*time.Millisecond)
				ends[i].Cluster = fmt.Sprint("outbound|20880||c", i%4)
				for _, w := range workers {
					count(w, i)
				}
			}
			h := promhttp.HandlerForTransactional(&telemetry.Scrapes{
				Keepers: func() []telemetry.Keeper { return []telemetry.Keeper{r} }, Rest: prometheus.NewRegistry(),
			}, promhttp.HandlerOpts{EnableOpenMetrics: true})
			bytes := 0
			scrape := func() {
				w := &nowhere{header: http.Header{}}
				h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
				bytes = w.bytes
			}
			scrape()
			beside := func(f func()) *pauses {
				var stop atomic.Bool
				done := make(chan *pauses)
				go func() { done <- wait(&stop, func(i int) { count(workers[2], i%sets) }) }()
				f()
				stop.Store(true)
				return <-done
			}
			var before, after runtime.MemStats
			scrapes := 0
			runtime.ReadMemStats(&before)
			collected := beside(func() {
				for start := time.Now(); time.Since(start) < 2*time.Second; scrapes++ {
					scrape()
				}
			})
			runtime.ReadMemStats(&after)

			defer debug.SetGCPercent(debug.SetGCPercent(-1))
			alone := beside(func() { time.Sleep(time.Second) })
			b.ReportAllocs()
			with := beside(func() {
				for b.Loop() {
					scrape()
				}
			})
			b.ReportMetric(float64(with.longest()), "ns-pause-max")
			b.ReportMetric(float64(with.usual()), "ns-pause-p99.9")
			b.ReportMetric(float64(alone.longest()), "ns-pause-max-alone")
			b.ReportMetric(float64(alone.usual()), "ns-pause-p99.9-alone")
			b.ReportMetric(float64(collected.longest()), "ns-pause-max-collected")
			b.ReportMetric(float64(scrapes)/float64(after.NumGC-before.NumGC), "scrapes/collection")
			b.ReportMetric(float64(sets*perSet), "series")
			b.ReportMetric(float64(bytes), "bytes")
		})
	}
}

// pauses are the longest of each millisecond.
type pauses []time.Duration

func (p *pauses) longest() time.Duration { return slices.Max(*p) }

// usual is what one millisecond in a thousand is longer than.
func (p *pauses) usual() time.Duration {
	slices.Sort(*p)
	return (*p)[len(*p)*999/1000]
}

// wait has a thread work until it is told to stop, and returns how long others of this
// process, and the collector, made it wait.
func wait(stop *atomic.Bool, work func(i int)) *pauses {
	runtime.LockOSThread() // as a worker is, and not unlocked: it ends with its goroutine
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Policy: unix.SCHED_FIFO, Priority: 50}, 0)
	for cpu := 63; cpu >= 0; cpu-- {
		var last unix.CPUSet
		last.Set(cpu)
		if unix.SchedSetaffinity(0, &last) == nil {
			break
		}
	}
	preempted := func() int64 {
		var u unix.Rusage
		_ = unix.Getrusage(unix.RUSAGE_THREAD, &u)
		return u.Nivcsw
	}
	p := make(pauses, 1, 1<<20)
	before, start := preempted(), time.Now()
	for i, window := 0, start; !stop.Load(); i++ {
		work(i)
		now := time.Now()
		if took := now.Sub(start); took > max(p[len(p)-1], 5*time.Microsecond) {
			if times := preempted(); times == before {
				p[len(p)-1] = took
			} else {
				before = times
			}
			now = time.Now()
		}
		if start = now; start.Sub(window) > time.Millisecond {
			time.Sleep(100 * time.Microsecond) // as workers do, whom Go's scheduler does not stop for others therefore
			p = append(p, 0)
			before, start = preempted(), time.Now()
			window = start
		}
	}
	return &p
}

func heap() int {
	runtime.GC()
	var ms runtime.MemStats
	runtime.ReadMemStats(&ms)
	return int(ms.HeapAlloc)
}

// TestALongNameIsNotKept: what a request calls may be as long as its frame.
func TestALongNameIsNotKept(t *testing.T) {
	r := telemetry.NewRegistry()
	r.On()
	w := r.NewWorker()
	before := heap()
	long := strings.Repeat("x", 8<<20)
	for _, o := range [][2]string{{"s", long}, {long, "m"}, {long, long}, {long, ""}} {
		w.End(w.Begin("p", calls(o[0], o[1])), answered(0))
	}
	require.Less(t, heap()-before, 1<<20)
	var got [][2]string
	for _, m := range gather(t, r)["meltemi_requests_in_flight"].GetMetric() {
		l := m.GetLabel()
		got = append(got, [2]string{l[2].GetValue(), l[0].GetValue()})
	}
	label := strings.Repeat("x", 256)
	require.ElementsMatch(t, [][2]string{{"s", label}, {label, "m"}, {label, label}, {label, ""}}, got)
	runtime.KeepAlive(w)
}

// TestALabelKeepsNoMoreThanItSays of a name that is longer.
func TestALabelKeepsNoMoreThanItSays(t *testing.T) {
	before := heap()
	var labels [64]string
	for i := range labels {
		labels[i] = telemetry.Label(strings.Repeat("x", 1<<20))
		require.Len(t, labels[i], 256)
	}
	require.Less(t, heap()-before, 1<<20)
	runtime.KeepAlive(&labels)
}
