package filter_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// probe is what a test wants of the builder "probe.a", "probe.b" or "probe.c".
type probe struct {
	parse, parseRoute func(config *anypb.Any) (filter.Config, error)
	build             func(c filter.Config, s *filter.Scope) (filter.Filter, error)
}

var probes = map[string]*probe{}

// setProbe has a builder do what a test wants until its end.
func setProbe(t *testing.T, name string, p *probe) {
	t.Helper()
	probes[name] = p
	t.Cleanup(func() { delete(probes, name) })
}

// builder is one that does what the probe of its name says. What that does not say makes
// a filter that does nothing.
type builder string

func init() {
	for _, name := range []string{"probe.a", "probe.b", "probe.c"} {
		filter.Register(name, builder(name))
	}
}

func (b builder) Parse(config *anypb.Any, _ *filter.Env) (filter.Config, error) {
	if p := probes[string(b)]; p != nil && p.parse != nil {
		return p.parse(config)
	}
	return config.GetTypeUrl(), nil
}

func (b builder) ParseRoute(config *anypb.Any, _ *filter.Env) (filter.Config, error) {
	if p := probes[string(b)]; p != nil && p.parseRoute != nil {
		return p.parseRoute(config)
	}
	return string(config.MessageName().Name()), nil
}

func (b builder) Build(c filter.Config, s *filter.Scope) (filter.Filter, error) {
	if p := probes[string(b)]; p != nil && p.build != nil {
		return p.build(c, s)
	}
	return &hooks{}, nil
}

// hooks is a filter of functions with each hook that there is.
type hooks struct {
	request, response func(m *filter.Message) filter.Verdict
	local             func(m *filter.Message, e *codecs.LocalError)
	frame             func(m *filter.Message, d codecs.Direction, f *codecs.Metadata) filter.Verdict
	end, aside        func(m *filter.Message)
	connect           func(c *filter.Connection) any
	disconnect        func(c *filter.Connection, state any)
	worker            func(w *filter.Worker) filter.Filter
	close             func()
}

func (f *hooks) OnRequest(m *filter.Message) filter.Verdict {
	if f.request == nil {
		return filter.Continue
	}
	return f.request(m)
}

func (f *hooks) OnResponse(m *filter.Message) filter.Verdict {
	if f.response == nil {
		return filter.Continue
	}
	return f.response(m)
}

func (f *hooks) OnLocalReply(m *filter.Message, e *codecs.LocalError) {
	if f.local != nil {
		f.local(m, e)
	}
}

func (f *hooks) OnStreamFrame(m *filter.Message, d codecs.Direction, md *codecs.Metadata) filter.Verdict {
	if f.frame == nil {
		return filter.Continue
	}
	return f.frame(m, d, md)
}

func (f *hooks) OnEnd(m *filter.Message) {
	if f.end != nil {
		f.end(m)
	}
}

func (f *hooks) OnAside(m *filter.Message) {
	if f.aside != nil {
		f.aside(m)
	}
}

func (f *hooks) OnConnect(c *filter.Connection) any {
	if f.connect == nil {
		return nil
	}
	return f.connect(c)
}

func (f *hooks) OnDisconnect(c *filter.Connection, state any) {
	if f.disconnect != nil {
		f.disconnect(c, state)
	}
}

func (f *hooks) Close() {
	if f.close != nil {
		f.close()
	}
}

// split is hooks with a part for each worker.
type split struct{ hooks }

func (f *split) ForWorker(w *filter.Worker) filter.Filter { return f.worker(w) }

// built is a probe that makes a filter as f says.
func built(f func(s *filter.Scope) filter.Filter) *probe {
	return &probe{build: func(_ filter.Config, s *filter.Scope) (filter.Filter, error) { return f(s), nil }}
}

// probed is a configuration of the chain probe.a, probe.b, router.
const probed = `, "meta_protocol_filters": [{"name": "probe.a"}, {"name": "probe.b"}, {"name": "aeraki.meta_protocol.filters.router"}]`

func toyByID(more string) string { return toyConfig(`"codec": {"name": "toy.byid"}`, more) }

func newProbed(t *testing.T) *toyEnv {
	t.Helper()
	return newToyEnv(t, "toy.byid", probed)
}

func TestCheckingBuildsNothing(t *testing.T) {
	parsed := 0
	setProbe(t, "probe.a", &probe{
		parse: func(*anypb.Any) (filter.Config, error) { parsed++; return 7, nil },
		build: func(filter.Config, *filter.Scope) (filter.Filter, error) { t.Error("built"); return nil, nil },
	})
	require.Empty(t, filter.Check([]byte(toyByID(probed))))
	require.Equal(t, 1, parsed)
	for _, fault := range []string{`, "request_timeout": "0s"`, `, "stat_prefix": ""`} {
		_, err := filtertest.New(t).Load(toyByID(probed + fault))
		require.Error(t, err)
	}
}

func TestWhatIsParsedIsWhatIsBuiltOf(t *testing.T) {
	var got []filter.Config
	setProbe(t, "probe.a", &probe{
		parse: func(c *anypb.Any) (filter.Config, error) { return fmt.Sprintf("of %d bytes", len(c.GetValue())), nil },
		build: func(c filter.Config, s *filter.Scope) (filter.Filter, error) {
			got = append(got, c, s.StatPrefix, len(s.Codecs))
			return &hooks{}, nil
		},
	})
	newToyEnv(t, "toy.byid", strings.Replace(probed, `"probe.a"`, `"probe.a", "config": {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "abc"}`, 1))
	require.Equal(t, []filter.Config{"of 5 bytes", "t", 1}, got)
}

func TestFaultsOfFiltersHaveTheirPaths(t *testing.T) {
	setProbe(t, "probe.a", &probe{parse: func(*anypb.Any) (filter.Config, error) {
		var f fields.Faults
		f.Add("x.y", "is %d", 3)
		f.Add("rules[2]", "twice")
		f.AddAll("z", errors.Join(&fields.Error{Path: "[1]", Reason: "bad"}, errors.New("all of it")))
		return nil, f.Err()
	}})
	setProbe(t, "probe.b", &probe{
		parse: func(*anypb.Any) (filter.Config, error) { return nil, errors.New("none is wanted") },
		parseRoute: func(*anypb.Any) (filter.Config, error) {
			return nil, &fields.Error{Path: "limit", Reason: "must be at least 1"}
		},
	})
	const override = `"typed_per_filter_config": {"probe.b": {"@type": "type.googleapis.com/google.protobuf.Empty"}}`
	routes := fmt.Sprintf(`, "route_config": {%s, "routes": [{"route": {"cluster": "up"}, %s}]}`, override, override)
	bad := strings.Replace(toyConfig(`"codec": {"name": "toy.byid"}`, probed), toyRoutes, routes, 1)
	bad = strings.Replace(bad, `{"name": "probe.b"}`, `{"name": "probe.b", "match": {"metadata": [{"name": "x", "safe_regex_match": {"regex": "("}}]}}`, 1)
	var said []string
	for _, e := range filter.Check([]byte(bad)) {
		path, _, _ := strings.Cut(e.Error(), ": error parsing")
		said = append(said, strings.TrimPrefix(path, `stat_prefix "t": `))
	}
	require.Equal(t, []string{
		"meta_protocol_filters[0].config.x.y: is 3",
		"meta_protocol_filters[0].config.rules[2]: twice",
		"meta_protocol_filters[0].config.z[1]: bad",
		"meta_protocol_filters[0].config.z: all of it",
		"meta_protocol_filters[1].config: none is wanted",
		"meta_protocol_filters[1].match.metadata[0].safe_regex_match.regex",
		"route_config.typed_per_filter_config[probe.b].limit: must be at least 1",
		"route_config.routes[0].typed_per_filter_config[probe.b].limit: must be at least 1",
	}, said)
}

// TestAFilterThatCannotBeBuilt has the configuration refused, and what was begun ended.
func TestAFilterThatCannotBeBuilt(t *testing.T) {
	for name, f := range map[string]func() (filter.Filter, error){
		"an error": func() (filter.Filter, error) { return nil, errors.New("no such file") },
		"a panic":  func() (filter.Filter, error) { panic("no such file") },
		"nothing":  func() (filter.Filter, error) { return nil, nil },
	} {
		t.Run(name, func(t *testing.T) {
			var did []string
			never := func(context.Context) { t.Error("runs") }
			setProbe(t, "probe.a", built(func(s *filter.Scope) filter.Filter {
				s.Life().Go(never)
				s.Shared("k", func(l *filter.Life) any {
					did = append(did, "shared")
					l.Go(never)
					return 1
				})
				_, err := s.Gauge("g")
				require.NoError(t, err)
				return &hooks{close: func() { did = append(did, "closed") }}
			}))
			setProbe(t, "probe.b", &probe{build: func(_ filter.Config, s *filter.Scope) (filter.Filter, error) {
				s.Life().Go(never)
				return f()
			}})
			h := filtertest.New(t)
			for range 2 {
				_, err := h.Load(toyByID(probed))
				require.ErrorContains(t, err, `stat_prefix "t": meta_protocol_filters[1]: `)
				require.Regexp(t, `no such file|Build has made nothing`, err.Error())
			}
			require.Equal(t, []string{"shared", "closed", "shared", "closed"}, did)
			h.MustLoad(toyByID("")) // which is no rival of what was refused
		})
	}
}

func TestPanicsOverConfigurationsRefuseThem(t *testing.T) {
	boom := func(*anypb.Any) (filter.Config, error) { panic("boom") }
	const override = `"typed_per_filter_config": {"probe.b": {"@type": "type.googleapis.com/google.protobuf.Empty"}}`
	for path, tc := range map[string]struct {
		p    probe
		more string
	}{
		"meta_protocol_filters[1].config":                         {p: probe{parse: boom}},
		"meta_protocol_filters[1]":                                {p: probe{build: func(filter.Config, *filter.Scope) (filter.Filter, error) { panic("boom") }}},
		"route_config.typed_per_filter_config[probe.b]":           {probe{parseRoute: boom}, `, "route_config": {` + override + `}`},
		"route_config.routes[0].typed_per_filter_config[probe.b]": {probe{parseRoute: boom}, `, "route_config": {"routes": [{"route": {"cluster": "up"}, ` + override + `}]}`},
	} {
		t.Run(path, func(t *testing.T) {
			setProbe(t, "probe.b", &tc.p)
			cfg := toyByID(probed)
			if tc.more != "" {
				cfg = strings.Replace(cfg, toyRoutes, tc.more, 1)
			}
			h := filtertest.New(t)
			_, err := h.Load(cfg)
			require.Error(t, err)
			require.Regexp(t, `^stat_prefix "t": `+regexpQuote(path)+`: the filter has panicked at \S+contract_test.go:\d+: boom$`, err.Error())
			require.Zero(t, h.Panics())
		})
	}
}

func regexpQuote(s string) string {
	return strings.NewReplacer("[", `\[`, "]", `\]`, ".", `\.`).Replace(s)
}

// life is what a test sees of the goroutine of one.
type life struct{ began, ended chan struct{} }

func newLife() life { return life{make(chan struct{}, 10), make(chan struct{}, 10)} }

func (l life) run(ctx context.Context) {
	l.began <- struct{}{}
	<-ctx.Done()
	l.ended <- struct{}{}
}

func (l life) await(t *testing.T, c chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(5 * time.Second):
		t.Fatal("has not happened")
	}
}

func TestALifeBeginsWithItsPublication(t *testing.T) {
	l := newLife()
	setProbe(t, "probe.a", built(func(s *filter.Scope) filter.Filter {
		s.Life().Go(l.run)
		return &hooks{}
	}))
	h := filtertest.New(t)
	dropped, err := h.LoadUnpublished(toyByID(probed))
	require.NoError(t, err)
	dropped.Destroy()
	cfg, err := h.LoadUnpublished(toyByID(probed))
	require.NoError(t, err)
	h.Advance(time.Minute)
	require.Empty(t, l.began)
	cfg.Publish()
	l.await(t, l.began)
	require.Empty(t, l.ended)
	cfg.Destroy()
	l.await(t, l.ended)
	require.Empty(t, l.began, "once, and of the dropped one never")
}

// TestGoroutinesAreAskedForAtAnyTime: behind the end of a life they do not begin.
func TestGoroutinesAreAskedForAtAnyTime(t *testing.T) {
	var lives []*filter.Life
	setProbe(t, "probe.a", built(func(s *filter.Scope) filter.Filter {
		lives = append(lives, s.Life())
		return &hooks{}
	}))
	h := filtertest.New(t)
	cfg := h.MustLoad(toyByID(probed))
	l := newLife()
	lives[0].Go(l.run)
	l.await(t, l.began)
	cfg.Destroy()
	l.await(t, l.ended)
	lives[0].Go(l.run)
	require.Empty(t, l.began)
}

// TestALifeLastsAsLongAsHooksMayRun: also those of a oneway that is delivered when its
// client has left.
func TestALifeLastsAsLongAsHooksMayRun(t *testing.T) {
	l := newLife()
	var did []string
	var mu sync.Mutex
	do := func(what string) {
		mu.Lock()
		defer mu.Unlock()
		did = append(did, what)
	}
	over := make(chan struct{})
	setProbe(t, "probe.a", built(func(s *filter.Scope) filter.Filter {
		s.Life().Go(func(ctx context.Context) {
			l.run(ctx)
			do("goroutine")
			close(over)
		})
		f := &split{}
		f.close = func() {
			<-over // what runs may be waited for
			do("filter")
		}
		f.worker = func(*filter.Worker) filter.Filter {
			return &hooks{
				end:        func(*filter.Message) { do("end") },
				disconnect: func(*filter.Connection, any) { do("disconnect") },
				close:      func() { do("part") },
			}
		}
		return f
	}))
	e := newProbed(t)
	e.up.Hang = true
	e.say("one 1 m -")
	e.c.Close()
	e.cfg.Destroy()
	require.Empty(t, l.ended)
	require.Equal(t, []string{"disconnect"}, did)
	e.up.Hang = false
	e.up.Admit()
	require.Equal(t, []string{"disconnect", "end", "part", "goroutine", "filter"}, did)
}

func TestWhatIsSharedGoesOnAcrossVersions(t *testing.T) {
	var made []string
	lives := map[string]life{}
	values := map[string][]any{}
	for _, name := range []string{"probe.a", "probe.b"} {
		setProbe(t, name, &probe{
			parse: func(c *anypb.Any) (filter.Config, error) { return string(c.GetValue()), nil },
			build: func(c filter.Config, s *filter.Scope) (filter.Filter, error) {
				key, id := c.(string), name+c.(string)
				for range 2 { // asked for twice it is counted once
					v := s.Shared(key, func(l *filter.Life) any {
						made = append(made, id)
						lives[id] = newLife()
						l.Go(lives[id].run)
						return new(int)
					})
					values[id] = append(values[id], v)
				}
				return &hooks{}, nil
			},
		})
	}
	config := func(key string) string {
		return toyByID(strings.Replace(probed, `"probe.a"`, `"probe.a", "config": {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "`+key+`"}`, 1))
	}
	h := filtertest.New(t)
	first := h.MustLoad(config("x"))
	require.Len(t, made, 2, "filters of two names share nothing")
	a := made[0]
	lives[a].await(t, lives[a].began)
	second := h.MustLoad(config("x"))
	unpublished, err := h.LoadUnpublished(config("x"))
	require.NoError(t, err)
	require.Len(t, made, 2)
	first.Destroy()
	unpublished.Destroy()
	require.Empty(t, lives[a].ended)
	third := h.MustLoad(config("y"))
	require.Len(t, made, 3, "another key")
	second.Destroy()
	lives[a].await(t, lives[a].ended)
	require.Empty(t, lives[a].began)
	require.Empty(t, lives["probe.b"].ended, "which all of them have had")
	third.Destroy()
	lives["probe.b"].await(t, lives["probe.b"].ended)
	h.MustLoad(config("x"))
	require.Len(t, made, 5, "what has ended is made again")
	require.Len(t, values[a], 8)
	for _, v := range values[a][1:6] {
		require.Same(t, values[a][0], v)
	}
	require.NotSame(t, values[a][0], values[a][6])
}

func TestALifeReachesClusters(t *testing.T) {
	var l *filter.Life
	setProbe(t, "probe.a", built(func(s *filter.Scope) filter.Filter { l = s.Life(); return &hooks{} }))
	e := newProbed(t)
	_, err := l.Dial(t.Context(), "limiter")
	require.Error(t, err)
	here, there := net.Pipe()
	var asked string
	e.DialCluster = func(_ context.Context, cluster string) (net.Conn, error) { asked = cluster; return here, nil }
	c, err := l.Dial(t.Context(), "limiter")
	require.NoError(t, err)
	go io.WriteString(there, "x")
	b := make([]byte, 1)
	_, err = io.ReadFull(c, b)
	require.NoError(t, err)
	require.Equal(t, "limiterx", asked+string(b))
	l.Logf(host.Warn, "seen %d", 7)
	require.Contains(t, e.Log(), "[3] seen 7")
	there.Close()
}

func TestScopesEndWithTheBuilding(t *testing.T) {
	var s *filter.Scope
	setProbe(t, "probe.a", built(func(scope *filter.Scope) filter.Filter { s = scope; return &hooks{} }))
	newProbed(t)
	for name, late := range map[string]func(){
		"Shared":    func() { s.Shared("k", func(*filter.Life) any { return 1 }) },
		"Counter":   func() { _, _ = s.Counter("c") },
		"Gauge":     func() { _, _ = s.Gauge("g") },
		"Histogram": func() { _, _ = s.Histogram("h") },
	} {
		require.Panics(t, late, name)
	}
	require.NotNil(t, s.Life())
}

func TestFiltersCount(t *testing.T) {
	type own struct {
		c *filter.Counter
		g *filter.Gauge
		h *filter.Histogram
	}
	var all []own
	setProbe(t, "probe.a", built(func(s *filter.Scope) filter.Filter {
		var o own
		var err error
		o.c, err = s.Counter("denied")
		require.NoError(t, err)
		again, err := s.Counter("denied")
		require.NoError(t, err)
		require.Same(t, o.c, again)
		o.g, err = s.Gauge("held")
		require.NoError(t, err)
		o.h, err = s.Histogram("size")
		require.NoError(t, err)
		_, err = s.Gauge("denied")
		require.ErrorContains(t, err, "the metric meltemi_filter_denied is a gauge here, and meltemi_filter_denied is a counter of filter probe.a")
		for _, taken := range []string{"request", "request_active", "request_time_ms"} {
			_, err = s.Counter(taken)
			require.ErrorContains(t, err, "each listener has a metric "+taken+" of its own")
		}
		all = append(all, o)
		return &hooks{
			request: func(m *filter.Message) filter.Verdict {
				m.Count(o.c, 2)
				m.Record(o.h, uint64(m.Request().BodySize))
				o.g.Add(1)
				return filter.Continue
			},
			end: func(*filter.Message) { o.g.Add(-1) },
		}
	}))
	e := newProbed(t)
	o := all[0]
	e.say("req 1 m -", "req 2 m --")
	e.counts(map[string]int64{"denied": 4, "held": 2})
	require.Equal(t, []uint64{10, 11}, e.cfg.Histogram("toy.t.size"))

	// Any goroutine may count. The host is told with the next traffic.
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				o.c.Add(1)
				o.g.Add(1)
				o.g.Add(-1)
			}
		})
	}
	wg.Wait()
	e.say("req 3 m -")
	e.counts(map[string]int64{"denied": 8006, "held": 3})

	// The next version of the listener goes on with the gauge.
	next := e.MustLoad(toyByID(probed))
	c := e.Dial(next)
	c.Send([]byte("req 1 m -\n"))
	e.Advance(50 * time.Millisecond)
	require.EqualValues(t, 3, e.cfg.Counter("toy.t.held"))
	require.EqualValues(t, 1, next.Counter("toy.t.held"), "what has changed since")
	e.c.Close()
	require.EqualValues(t, 0, e.cfg.Counter("toy.t.held")+next.Counter("toy.t.held")-1)
	all[1].g.Set(7)
	o.c.Add(1)
	all[1].c.Add(1)
	c.Close() // the last connection tells what there is
	require.EqualValues(t, 6, e.cfg.Counter("toy.t.held")+next.Counter("toy.t.held"), "7, and one request less")
	require.EqualValues(t, 8006+2+2, e.cfg.Counter("toy.t.denied")+next.Counter("toy.t.denied"))
}

// TestAHistogramOfManyValues hands them over when there are too many to keep.
func TestAHistogramOfManyValues(t *testing.T) {
	setProbe(t, "probe.a", built(func(s *filter.Scope) filter.Filter {
		h, err := s.Histogram("size")
		require.NoError(t, err)
		return &hooks{request: func(m *filter.Message) filter.Verdict {
			for i := range uint64(10_000) {
				m.Record(h, i)
			}
			return filter.Continue
		}}
	}))
	e := newProbed(t)
	e.say("req 1 m -")
	e.Advance(50 * time.Millisecond)
	got := e.cfg.Histogram("toy.t.size")
	require.Len(t, got, 10_000)
	require.True(t, slices.IsSorted(got))
}

func TestGaugesAreForgottenWithTheirListeners(t *testing.T) {
	var g *filter.Gauge
	setProbe(t, "probe.a", built(func(s *filter.Scope) filter.Filter {
		g, _ = s.Gauge("held")
		return &hooks{}
	}))
	h := filtertest.New(t)
	h.Cluster("up", "h1")
	for range 2 { // the host has forgotten the gauge, too
		cfg := h.MustLoad(toyByID(probed))
		g.Add(5)
		c := h.Dial(cfg)
		c.Send([]byte("req 1 m -\n"))
		h.Advance(50 * time.Millisecond)
		require.EqualValues(t, 5, cfg.Counter("toy.t.held"))
		c.Close()
		cfg.Destroy()
	}
}

// TestWhatIsCountedOfTheLast message of a configuration that has gone is told by the next.
func TestWhatIsCountedOfTheLast(t *testing.T) {
	setProbe(t, "probe.a", built(func(s *filter.Scope) filter.Filter {
		c, _ := s.Counter("ends")
		return &hooks{end: func(m *filter.Message) { m.Count(c, 1) }}
	}))
	e := newProbed(t)
	e.up.Hang = true
	e.say("one 1 m -")
	e.c.Close() // the oneway is delivered all the same
	next := e.MustLoad(toyByID(probed))
	e.cfg.Destroy()
	e.up.Hang = false
	e.up.Admit()
	e.Dial(next).Send([]byte("one 2 m -\n"))
	e.Advance(time.Second)
	require.EqualValues(t, 2, next.Counter("toy.t.ends"))
}

func TestEachWorkerHasItsPart(t *testing.T) {
	var did []string
	var parts []*filter.Worker
	setProbe(t, "probe.a", built(func(s *filter.Scope) filter.Filter {
		c, err := s.Counter("seen")
		require.NoError(t, err)
		f := &split{}
		f.request = func(*filter.Message) filter.Verdict { t.Error("not the part's"); return filter.Continue }
		f.close = func() { did = append(did, "closed all") }
		f.worker = func(w *filter.Worker) filter.Filter {
			n := len(parts)
			parts = append(parts, w)
			at := w.Now()
			timer := w.NewTimer(func() { did = append(did, fmt.Sprintf("timer %d at %v", n, w.Now()-at)) })
			never := w.NewTimer(func() { t.Error("was stopped") })
			late := w.NewTimer(func() { t.Error("is over") })
			timer.Start(time.Minute)
			timer.Start(time.Second)
			never.Start(time.Second)
			late.Start(time.Hour)
			first := w.Rand()
			require.NotEqual(t, first, w.Rand())
			return &hooks{
				request: func(m *filter.Message) filter.Verdict {
					never.Stop()
					w.Count(c, 1)
					m.MutateRequest().Set("part", fmt.Sprint(n))
					return filter.Continue
				},
				close: func() {
					did = append(did, fmt.Sprintf("closed %d", n))
					late.Start(time.Millisecond)
				},
			}
		}
		return f
	}))
	mod := filter.NewModule()
	mod.Seed(1)
	h := filtertest.NewWith(t, mod, 3)
	up := h.Cluster("up", "h1")
	cfg := h.MustLoad(toyByID(probed))
	require.Empty(t, parts, "before the first connection")
	a, b := h.DialOn(cfg, 0), h.DialOn(cfg, 2)
	require.Len(t, parts, 2)
	other := h.DialOn(cfg, 0)
	require.Len(t, parts, 2)
	a.Send([]byte("req 1 m -\n"))
	b.Send([]byte("req 1 m -\n"))
	other.Send([]byte("req 1 m -\n"))
	var got string
	for _, s := range up.Servers() {
		got += string(s.Take())
	}
	require.Equal(t, 2, strings.Count(got, "part=0"))
	require.Equal(t, 1, strings.Count(got, "part=1"))
	h.Advance(1100 * time.Millisecond)
	require.Len(t, did, 2)
	require.Regexp(t, `^timer 0 at 1(\.00\d)?s$`, did[0])
	require.EqualValues(t, 3, cfg.Counter("toy.t.seen"))
	ran := make(chan struct{}, 2)
	go parts[1].Post(func() { ran <- struct{}{} })
	h.WaitUntil(func() bool { return len(ran) == 1 })

	did = nil
	a.Close()
	b.Close()
	other.Close()
	require.Empty(t, did)
	parts[0].Post(func() { did = append(did, "posted") }) // before the end
	cfg.Destroy()
	require.Equal(t, []string{"posted", "closed 0", "closed 1", "closed all"}, did)
	parts[0].Post(func() { t.Error("is over") })
	h.Advance(2 * time.Hour)
	require.Len(t, did, 4)
}

func TestPanicsOfFiltersEndWhatTheyBelongTo(t *testing.T) {
	boom := func() { panic("boom") }
	one := func(f hooks) func(*testing.T, *filter.Scope) filter.Filter {
		return func(*testing.T, *filter.Scope) filter.Filter { return &f }
	}
	verdict := func(m *filter.Message) filter.Verdict {
		if m.Request().ID == 1 {
			boom()
		}
		return filter.Continue
	}
	part := func(f func(w *filter.Worker) filter.Filter) func(*testing.T, *filter.Scope) filter.Filter {
		return func(*testing.T, *filter.Scope) filter.Filter {
			s := &split{}
			s.worker = f
			return s
		}
	}
	const internal, good = "err 1 - internal error\n", "res 1 m a=2;x\n"
	for name, tc := range map[string]struct {
		f      func(*testing.T, *filter.Scope) filter.Filter
		told   string // to the first request
		other  string // to another
		panics int64
	}{
		"request":  {one(hooks{request: verdict}), internal, "", 1},
		"response": {one(hooks{response: verdict}), internal, "", 1},
		"end":      {one(hooks{end: func(m *filter.Message) { verdict(m) }}), good, "", 1},
		"local reply": {one(hooks{
			request: func(m *filter.Message) filter.Verdict {
				if m.Request().ID == 1 {
					return m.Reply(codecs.Denied, "no")
				}
				return filter.Continue
			},
			local: func(m *filter.Message, _ *codecs.LocalError) { verdict(m) },
		}), internal, "", 1},
		"delay": {one(hooks{request: func(m *filter.Message) filter.Verdict {
			if m.Request().ID == 1 {
				return m.Delay(time.Millisecond, verdict)
			}
			return filter.Continue
		}}), internal, "", 1},
		"resumed": {one(hooks{request: func(m *filter.Message) filter.Verdict {
			if m.Request().ID == 1 {
				m.Resumer().Do(verdict)
				return filter.Pause
			}
			return filter.Continue
		}}), internal, "", 1},
		"for worker":          {part(func(*filter.Worker) filter.Filter { panic("boom") }), internal, "err 9 - internal error\n", 1},
		"for worker, nothing": {part(func(*filter.Worker) filter.Filter { return nil }), internal, "err 9 - internal error\n", 1},
		"timer": {part(func(w *filter.Worker) filter.Filter {
			w.NewTimer(boom).Start(time.Millisecond)
			return &hooks{}
		}), good, "", 1},
		"post": {part(func(w *filter.Worker) filter.Filter {
			w.Post(boom)
			return &hooks{}
		}), good, "", 1},
		"goroutine": {func(_ *testing.T, s *filter.Scope) filter.Filter {
			s.Life().Go(func(context.Context) { boom() })
			return &hooks{}
		}, good, "", 1},
		"goroutine of what is shared": {func(_ *testing.T, s *filter.Scope) filter.Filter {
			s.Shared("k", func(l *filter.Life) any { l.Go(func(context.Context) { boom() }); return 1 })
			return &hooks{}
		}, good, "", 1},
	} {
		t.Run(name, func(t *testing.T) {
			setProbe(t, "probe.a", built(func(s *filter.Scope) filter.Filter { return tc.f(t, s) }))
			mod := filter.NewModule()
			mod.Seed(1)
			h := filtertest.NewWith(t, mod, 1)
			h.MayPanic()
			e := &toyEnv{Host: h, t: t, up: h.Cluster("up", "h1")}
			e.cfg = h.MustLoad(toyByID(probed))
			e.up.Serve = func(s *filtertest.Server, b []byte) int {
				for _, l := range lines(b) {
					s.Send([]byte("res " + strings.Fields(l)[1] + " m x\n"))
				}
				return len(b)
			}
			e.c = h.Dial(e.cfg)
			e.say("req 1 m -")
			e.Advance(10 * time.Millisecond)
			require.Equal(t, tc.told, e.got())
			mod.Wait()
			require.Equal(t, tc.panics, mod.Panics())
			e.say("req 9 m -")
			if tc.other == "" {
				tc.other = "res 9 m a=2;x\n"
			}
			require.Equal(t, tc.other, e.got())
			e.counts(map[string]int64{"filter_panic": tc.panics, "connection_panic": 0, "request_active": 0})
			require.Zero(t, h.Panics())
			log := strings.Join(h.Log(), "\n")
			require.Equal(t, 1, strings.Count(log, "panic "), log)
			require.Contains(t, log, "contract_test.go:")
		})
	}
}

// TestPanicsAtTheEnd: all else ends all the same.
func TestPanicsAtTheEnd(t *testing.T) {
	l := newLife()
	closed := 0
	setProbe(t, "probe.a", built(func(s *filter.Scope) filter.Filter {
		s.Life().Go(l.run)
		f := &split{}
		f.close = func() { panic("boom") }
		f.worker = func(*filter.Worker) filter.Filter { return &hooks{close: func() { panic("boom") }} }
		return f
	}))
	setProbe(t, "probe.b", built(func(*filter.Scope) filter.Filter {
		f := &split{}
		f.close = func() { closed++ }
		f.worker = func(*filter.Worker) filter.Filter { return &hooks{close: func() { closed++ }} }
		return f
	}))
	mod := filter.NewModule()
	h := filtertest.NewWith(t, mod, 1)
	h.MayPanic()
	h.Cluster("up", "h1")
	cfg := h.MustLoad(toyByID(probed))
	h.Dial(cfg).Close()
	l.await(t, l.began)
	cfg.Destroy()
	l.await(t, l.ended)
	require.Equal(t, 2, closed)
	require.EqualValues(t, 2, mod.Panics())
	require.Zero(t, h.Panics())
}

// TestConfigurationsComeAndGoOnManyWorkers while goroutines count and post: for the race
// detector, and for what is left.
func TestConfigurationsComeAndGoOnManyWorkers(t *testing.T) {
	var made, closed, posted atomic.Int64
	setProbe(t, "probe.a", built(func(s *filter.Scope) filter.Filter {
		c, err := s.Counter("seen")
		require.NoError(t, err)
		s.Shared("k", func(l *filter.Life) any {
			l.Go(func(ctx context.Context) { <-ctx.Done() })
			return 1
		})
		life := s.Life()
		made.Add(1)
		f := &split{}
		f.close = func() { closed.Add(1) }
		f.worker = func(w *filter.Worker) filter.Filter {
			made.Add(1)
			life.Go(func(ctx context.Context) {
				for i := 0; i < 100 && ctx.Err() == nil; i++ {
					c.Add(1)
					w.Post(func() { posted.Add(1) })
				}
			})
			return &hooks{close: func() { closed.Add(1) }}
		}
		return f
	}))
	mod := filter.NewModule()
	h := filtertest.NewWith(t, mod, 4)
	h.Cluster("up", "h1")
	var cfgs []*filtertest.Config
	for i := range 30 {
		cfg := h.MustLoad(toyByID(probed))
		cfgs = append(cfgs, cfg)
		for w := range i % 5 {
			c := h.DialOn(cfg, w)
			c.Send([]byte("req 1 m -\n"))
			h.Advance(30 * time.Millisecond)
			c.Close()
		}
		if len(cfgs) > 2 {
			cfgs[0].Destroy()
			cfgs = cfgs[1:]
		}
	}
	// Goroutines of those that are destroyed may have come too late.
	h.WaitUntil(func() bool { return posted.Load() > 0 })
	for _, c := range cfgs {
		c.Destroy()
	}
	h.Advance(time.Second)
	require.Equal(t, made.Load(), closed.Load())
	mod.Wait()
	h.Settle()
}
