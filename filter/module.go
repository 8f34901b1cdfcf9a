package filter

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/accesslog"
	"github.com/meltemi-mesh/meltemi/filter/config"
	"github.com/meltemi-mesh/meltemi/filter/export"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
	"github.com/meltemi-mesh/meltemi/filter/metrics"
	"github.com/meltemi-mesh/meltemi/filter/rds"
	"github.com/meltemi-mesh/meltemi/filter/route"
	"github.com/meltemi-mesh/meltemi/filter/telemetry"
	"github.com/meltemi-mesh/meltemi/filter/tracing"
	"github.com/meltemi-mesh/meltemi/filter/upstream"
)

// Module is the pipeline of one process. It implements host.Module.
type Module struct {
	tables     *route.Tables
	discovered *rds.Registry
	shared     *upstream.Shared
	oneways    *oneways

	mu       sync.Mutex
	shards   []*shard
	seed     uint64 // 0: none
	shares   map[sharedKey]*shared
	owns     map[ownKey]*ownState // as counted
	families map[string]*family
	vecs     map[ownKey]*CounterVec
	files    accesslog.Files
	// counted is what listeners have counted, by their protocol and prefix. It only
	// grows, as counters do, with the prefixes that operators use.
	counted   map[metricsKey]*metrics.Totals
	telemetry *telemetry.Registry
	exports   export.Pool
	pushing   *Life  // of what pushes metrics, nil: nothing does
	pushKey   string // where to
	openSpans func(to export.Provider, l export.Life) tracing.Sink
	// collectors are those of filters, by their names. described knows the names of
	// their metrics, and of all others.
	collectors map[string]prometheus.Collector
	described  *prometheus.Registry
	// goroutines of filters.
	goroutines sync.WaitGroup
	panics     atomic.Int64 // of filters, wherever they have run
	// Configurations that were loaded between two publications came together;
	// those of an earlier batch are replaced by those of a later one.
	batch     int
	newBatch  bool
	listeners map[*listener]struct{}
}

// NewModule returns a pipeline without any configuration.
func NewModule() *Module {
	mod := &Module{
		tables: route.NewTables(), discovered: rds.NewRegistry(), shared: upstream.NewShared(), oneways: newOneways(),
		listeners: map[*listener]struct{}{}, shares: map[sharedKey]*shared{}, owns: map[ownKey]*ownState{}, families: map[string]*family{},
		vecs:    map[ownKey]*CounterVec{},
		counted: map[metricsKey]*metrics.Totals{}, telemetry: telemetry.NewRegistry(),
		collectors: map[string]prometheus.Collector{}, described: prometheus.NewRegistry(),
	}
	mod.openSpans = mod.exports.Open
	mod.described.MustRegister(mod.telemetry, listenerMetrics{mod}, &mod.exports)
	return mod
}

// Seed makes the random decisions of the workers that are made from now on the same
// each time, and what is done beside them at once: a test that passes once passes
// always.
func (mod *Module) Seed(seed uint64) {
	mod.seed = seed
	mod.shared.Inline()
}

// Wait returns when no goroutine of a filter runs: some time after the last
// configuration that has one was destroyed.
func (mod *Module) Wait() { mod.goroutines.Wait() }

// Panics returns how many panics of filters there were: in hooks, timers, goroutines,
// and what else runs of them behind the load of their configuration.
func (mod *Module) Panics() int64 { return mod.panics.Load() }

// panicked logs a panic of a filter that no worker counts.
func (mod *Module) panicked(b host.Background, where string, p *guard.Panic) {
	mod.panics.Add(1)
	b.Logf(host.Error, "meltemi: panic %s: %v\n%s", where, p.Value, p.Stack)
}

// NewWorker implements host.Module.
func (mod *Module) NewWorker(w host.Worker) host.Shard {
	mod.mu.Lock()
	defer mod.mu.Unlock()
	seed := mod.seed
	if seed == 0 {
		seed = rand.Uint64()
	}
	s := newShard(mod, w, rand.New(rand.NewPCG(seed, uint64(len(mod.shards)))))
	mod.shards = append(mod.shards, s)
	return s
}

// listener is one accepted configuration, frozen.
type listener struct {
	*config.Proxy
	mod     *Module
	loaded  time.Time
	batch   int
	oneways uint64 // the part of it of all hashes of operations
	// protocols has one entry, or those that sniff chooses from.
	protocols  []*protocol
	metrics    metrics.Set
	chain      []link
	background host.Background
	life       *Life
	shares     map[sharedKey]*shared // that its filters use
	owned      []*own                // metrics of its filters
	panics     atomic.Int64          // of goroutines of its filters, that no worker has counted
	logFiles   []*accesslog.File     // of its access logs
	logRecords []*export.Records     // … that go to collectors
	spans      tracing.Sink          // nil: there is no tracing
	workers    atomic.Int32          // that have not done with it, once the host has forgotten it
	// table is the slot of the key, or, once it has shown that another listener
	// has brought a table for it, own.
	table     atomic.Pointer[route.Slot]
	own       *route.Slot
	key       route.Key
	version   *route.Version
	mutator   codecs.Mutator // of what routes set
	discovery *discovery     // nil unless there is RDS

	// Under mod.mu.
	published bool
	apart     bool        // table is own
	address   string      // of its first connection
	accepted  atomic.Bool // address is set
}

// NewConfig implements host.Module.
func (mod *Module) NewConfig(hc host.Config, raw []byte) (host.FilterConfig, error) {
	l, table, errs := load(raw)
	if len(errs) > 0 {
		return nil, errs[0]
	}
	l.mod, l.loaded = mod, time.Now()
	l.oneways = mod.oneways.scope(l.TableScope, l.StatPrefix)
	if l.RDS != nil {
		l.discovery = &discovery{l: l, background: hc.Background()}
	}
	var err error
	if l.metrics, err = metrics.Define(hc, l.Protocol+"."+l.StatPrefix+".", mod.totals(l)); err != nil {
		return nil, l.refuse("stat_prefix", err)
	}

	mod.mu.Lock()
	defer mod.mu.Unlock()
	if mod.newBatch {
		mod.batch++
		mod.newBatch = false
	}
	l.batch = mod.batch
	l.key = route.Key{Scope: l.TableScope, Name: l.TableName()}
	for o := range mod.listeners {
		if o.batch == l.batch && l.rivals(o) {
			return nil, l.refuse(l.keyField(), errors.New("another listener or filter chain that comes with this one has it, the same route_config.name, and other routes: "+
				"give one of them another stat_prefix, or another table_scope"))
		}
	}
	if err := l.build(hc); err != nil {
		return nil, err
	}
	if !mod.hasVersion(l.metricsKey()) {
		l.metrics.Renew()
	}
	l.version = mod.tables.Add(l.key, table)
	l.own = route.NewSlot(table)
	l.table.Store(mod.tables.Slot(l.key))
	mod.listeners[l] = struct{}{}
	return l, nil
}

// Check tells everything for which a host would be refused a configuration, in
// a program that links the same codecs and filters.
func Check(raw []byte) []*config.Error {
	_, _, errs := load(raw)
	return errs
}

// load makes everything of a configuration that needs no host.
func load(raw []byte) (*listener, *route.Table, []*config.Error) {
	cfg, errs := config.LoadAll(raw)
	if cfg == nil {
		return nil, nil, errs
	}
	l := &listener{Proxy: cfg}
	refuse := func(path string, err error) { errs = append(errs, l.refuse(path, err)) }
	if len(errs) == 0 {
		var path string
		var err error
		if l.protocols, path, err = makeProtocols(cfg); err != nil {
			refuse(path, err)
		} else {
			l.mutator = anyOf(l.protocols)
			l.parseChain(refuse)
		}
	}
	if l.RDS != nil {
		return l, nil, errs
	}
	table, faults := route.Compile(cfg.RouteConfig, l.routeEnv())
	for _, f := range faults {
		refuse("route_config."+f.Path, errors.New(f.Reason))
	}
	return l, table, errs
}

// routeEnv is what tables are judged by.
func (l *listener) routeEnv() route.Env { return route.Env{Mutator: l.mutator, Filters: l} }

func (l *listener) refuse(path string, err error) *config.Error {
	return &config.Error{StatPrefix: l.StatPrefix, Path: path, Reason: err.Error()}
}

// parseChain judges the filters' configurations.
func (l *listener) parseChain(refuse func(string, error)) {
	if n := len(l.Filters); n > maxFilters {
		refuse("meta_protocol_filters", fmt.Errorf("must be at most %d, are %d", maxFilters, n))
		return
	}
	for i, fc := range l.Filters {
		path := fmt.Sprintf("meta_protocol_filters[%d].", i)
		b, ok := lookup(fc.Name)
		if !ok {
			refuse(path+"name", fmt.Errorf("unknown filter %q (built in: %s)", fc.Name, strings.Join(Names(), ", ")))
			continue
		}
		k := link{name: fc.Name, builder: b, disabled: fc.Disabled, router: fc.Name == config.RouterName}
		var err error
		if k.config, err = asked(func() (Config, error) { return b.Parse(fc.Config, l.env()) }); err != nil {
			fields.Each(err, func(e *fields.Error) { refuse(fields.Join(path+"config", e.Path), errors.New(e.Reason)) })
		}
		if fc.Match != nil {
			var faults []*route.Error
			k.match, faults = route.CompileMatch(fc.Match)
			for _, f := range faults {
				refuse(fields.Join(path+"match", f.Path), errors.New(f.Reason))
			}
		}
		l.chain = append(l.chain, k)
	}
	if l.StrictFilterOrder {
		for _, e := range Disorder(l.Proxy) {
			refuse(e.Path, errors.New(e.Reason))
		}
	}
}

// asked is f(), which is a filter's. A panic is an error.
func asked[T any](f func() (T, error)) (v T, err error) {
	defer func() {
		if r := recover(); r != nil {
			p := guard.New(r)
			err = fmt.Errorf("the filter has panicked at %s: %v", p.Site, p.Value)
		}
	}()
	return f()
}

func (l *listener) env() *Env {
	e := &Env{StatPrefix: l.StatPrefix, Direction: l.Direction, l: l}
	for _, p := range l.protocols {
		e.Codecs = append(e.Codecs, p.codec)
	}
	return e
}

// ParseOverride implements route.Filters. What is for a filter that the chain does not
// have is judged all the same, as others may have it that share the table.
func (l *listener) ParseOverride(name string, c *anypb.Any) (any, error) {
	b, ok := lookup(name)
	if !ok {
		return nil, fmt.Errorf("%w %q (built in: %s)", route.ErrUnknownFilter, name, strings.Join(Names(), ", "))
	}
	if name == config.RouterName {
		return nil, errors.New("the router has nothing that routes could configure, and cannot be disabled")
	}
	if l.RDS == nil && !l.has(name) {
		return nil, absentFilter(name)
	}
	if c == nil {
		return nil, nil
	}
	rb, ok := b.(RouteBuilder)
	if !ok {
		return nil, fmt.Errorf("filter %q has nothing that routes could configure; envoy.config.route.v3.FilterConfig can disable it", name)
	}
	return asked(func() (Config, error) { return rb.ParseRoute(c, l.env()) })
}

// has reports whether there is a filter of that name in the chain.
func (l *listener) has(name string) bool {
	return slices.ContainsFunc(l.Filters, func(f config.Filter) bool { return f.Name == name })
}

func absentFilter(name string) error {
	return fmt.Errorf("%w: there is no %q among meta_protocol_filters", route.ErrUnknownFilter, name)
}

// ownFilters judges what the listener itself says of its filters.
type ownFilters struct{ *listener }

// ParseOverride implements route.Filters.
func (o ownFilters) ParseOverride(name string, c *anypb.Any) (any, error) {
	if _, ok := lookup(name); ok && !o.has(name) {
		return nil, absentFilter(name)
	}
	return o.listener.ParseOverride(name, c)
}

// MergeOverrides implements route.Filters.
func (l *listener) MergeOverrides(name string, table, route any) any {
	b, _ := lookup(name)
	if m, is := b.(MergeBuilder); is {
		return m.Merge(table, route)
	}
	return route
}

// build makes the filters of a listener that is accepted.
func (l *listener) build(hc host.Config) error {
	l.background = hc.Background()
	l.life = l.newLife()
	if err := l.openLogs(); err != nil {
		return err
	}
	if l.Tracing != nil {
		l.spans = l.mod.openSpans(l.Spans, l.life)
	}
	for i := range l.chain {
		k := &l.chain[i]
		s := &Scope{Env: *l.env(), l: l, hc: hc, name: k.name}
		f, err := asked(func() (Filter, error) { return k.builder.Build(k.config, s) })
		s.settle()
		if err == nil && f == nil {
			err = errors.New("Build has made nothing")
		}
		if err != nil {
			l.chain = l.chain[:i]
			l.endLives()
			l.mod.disown(l.owned)
			l.closeFilters()
			return l.refuse(fmt.Sprintf("meta_protocol_filters[%d]", i), err)
		}
		k.take(f)
	}
	return nil
}

// closeFilters tells the filters that it is over.
func (l *listener) closeFilters() {
	for i := range l.chain {
		k := &l.chain[i]
		if c, is := k.Filter.(Closer); is {
			if err := guard.Do(c.Close); err != nil {
				l.mod.panicked(l.background, "in the end of filter "+k.name, guard.In(err))
			}
		}
	}
}

// endLives ends what the filters have beside the traffic. They may wait for it in
// closeFilters, which comes behind it.
func (l *listener) endLives() {
	l.life.end()
	mod := l.mod
	for k, v := range l.shares {
		if v.users--; v.users == 0 {
			v.life.end()
			delete(mod.shares, k)
		}
	}
	l.closeLogs()
	l.shares = nil
}

// release is called by each worker that has done with a forgotten listener.
func (l *listener) release() {
	if l.workers.Add(-1) > 0 {
		return
	}
	l.mod.mu.Lock()
	l.endLives()
	l.mod.mu.Unlock()
	l.closeFilters()
}

// byOriginalDst reports whether a cluster goes where its client wanted to go.
func (l *listener) byOriginalDst(cluster string) bool {
	switch l.OriginalDst {
	case config.OriginalDstAlways:
		return true
	case config.OriginalDstNever:
		return false
	default:
		return strings.HasPrefix(cluster, "inbound|")
	}
}

// Published implements host.FilterConfig.
func (l *listener) Published() {
	mod := l.mod
	l.version.Publish()
	if l.discovery != nil {
		l.discovery.begin()
	}
	mod.mu.Lock()
	defer mod.mu.Unlock()
	mod.newBatch = true
	l.published = true
	l.life.begin()
	for _, f := range l.logFiles {
		mod.files.Begin(f, &mod.goroutines)
	}
	for _, v := range l.shares {
		v.life.begin()
	}
	for o := range mod.listeners {
		if o.batch < l.batch && o.rivals(l) {
			for _, s := range mod.shards {
				s.post(posted{call: func(s *shard) { s.supersede(o) }})
			}
		}
	}
	if l.accepted.Load() {
		l.relieve(grace)
	} else {
		l.relieve(warmTime)
	}
}

// relieve has the connections of the versions that l replaces leave. Those that come
// under them within late do so when that is over.
func (l *listener) relieve(late time.Duration) {
	if l.Delivery != config.DeliveryListener {
		return
	}
	// The host says nothing of a listener that drains. That a new version of
	// it has come is the sign.
	for o := range l.mod.listeners {
		if o.batch < l.batch && o.StatPrefix == l.StatPrefix && o.TableScope == l.TableScope {
			for _, s := range l.mod.shards {
				s.post(posted{call: func(s *shard) { s.drain(o, late) }})
			}
		}
	}
}

// Destroy implements host.FilterConfig.
func (l *listener) Destroy() {
	mod := l.mod
	if l.discovery != nil {
		l.discovery.end()
	}
	l.version.Remove()
	mod.mu.Lock()
	delete(mod.listeners, l)
	mod.disown(l.owned)
	shards := slices.Clone(mod.shards)
	mod.mu.Unlock()
	l.workers.Store(int32(len(shards)) + 1)
	for _, s := range shards {
		s.post(posted{call: func(s *shard) { s.forget(l) }})
	}
	l.release() // for the main thread
}

func (s *shard) drain(l *listener, late time.Duration) {
	wl, now := s.config(l), s.w.Now()
	wl.lateUntil = now + late
	for c := wl.conns; c != nil; c = c.next {
		c.drain(now)
	}
}

func (s *shard) forget(l *listener) {
	wl := s.listeners[l]
	if wl == nil {
		l.release()
		return
	}
	delete(s.listeners, l)
	k := wl.metricsKey()
	s.versions[k] = slices.DeleteFunc(s.versions[k], func(o *workerListener) bool { return o == wl })
	if len(s.versions[k]) == 0 {
		delete(s.versions, k)
	}
	wl.gone = true
	s.adoptPools()
	s.dirty = slices.DeleteFunc(s.dirty, func(o *workerListener) bool { return o == wl })
	wl.flushLogs()
	s.bequeath(wl)
	wl.endIfDone()
}
