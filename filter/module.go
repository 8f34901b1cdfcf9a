package filter

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/config"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/metrics"
	"github.com/meltemi-mesh/meltemi/filter/rds"
	"github.com/meltemi-mesh/meltemi/filter/route"
	"github.com/meltemi-mesh/meltemi/filter/upstream"
)

// Module is the pipeline of one process. It implements host.Module.
type Module struct {
	tables     *route.Tables
	discovered *rds.Registry
	shared     *upstream.Shared
	oneways    *oneways

	mu     sync.Mutex
	shards []*shard
	seed   uint64 // 0: none
	// Configurations that were loaded between two publications came together;
	// those of an earlier batch are replaced by those of a later one.
	batch     int
	newBatch  bool
	listeners map[*listener]struct{}
}

// NewModule returns a pipeline without any configuration.
func NewModule() *Module {
	return &Module{
		tables: route.NewTables(), discovered: rds.NewRegistry(), shared: upstream.NewShared(), oneways: newOneways(),
		listeners: map[*listener]struct{}{},
	}
}

// Seed makes the random decisions of the workers that are made from now on the same
// each time, and what is done beside them at once: a test that passes once passes
// always.
func (mod *Module) Seed(seed uint64) {
	mod.seed = seed
	mod.shared.Inline()
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
	batch   int
	oneways uint64 // the part of it of all hashes of operations
	// protocols has one entry, or those that sniff chooses from.
	protocols []*protocol
	metrics   metrics.Set
	chain     []link
	// respFilters and endFilters count the links that have such hooks.
	respFilters, endFilters int
	keepsRequest            bool // properties are wanted after the request hooks
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

// link is one filter of a chain with the hooks that it has.
type link struct {
	Filter
	name string
	resp ResponseFilter
	end  EndFilter
}

// NewConfig implements host.Module.
func (mod *Module) NewConfig(hc host.Config, raw []byte) (host.FilterConfig, error) {
	l, table, errs := load(raw)
	if len(errs) > 0 {
		return nil, errs[0]
	}
	l.mod = mod
	l.oneways = mod.oneways.scope(l.TableScope, l.StatPrefix)
	if l.RDS != nil {
		l.discovery = &discovery{l: l, background: hc.Background()}
	}
	var err error
	if l.metrics, err = metrics.Define(hc, l.Protocol+"."+l.StatPrefix+"."); err != nil {
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
			l.makeChain(refuse)
			l.mutator = anyOf(l.protocols)
		}
	}
	if l.RDS != nil {
		return l, nil, errs
	}
	table, faults := route.Compile(cfg.RouteConfig, l.mutator)
	for _, f := range faults {
		refuse("route_config."+f.Path, errors.New(f.Reason))
	}
	return l, table, errs
}

func (l *listener) refuse(path string, err error) *config.Error {
	return &config.Error{StatPrefix: l.StatPrefix, Path: path, Reason: err.Error()}
}

func (l *listener) makeChain(refuse func(string, error)) {
	for i, fc := range l.Filters {
		path := fmt.Sprintf("meta_protocol_filters[%d].", i)
		newFilter, ok := lookup(fc.Name)
		if !ok {
			refuse(path+"name", fmt.Errorf("unknown filter %q (built in: %s)", fc.Name, strings.Join(Names(), ", ")))
			continue
		}
		ctx := FactoryContext{StatPrefix: l.StatPrefix}
		for _, p := range l.protocols {
			ctx.Codecs = append(ctx.Codecs, p.codec)
		}
		f, err := newFilter(fc.Config, ctx)
		if err != nil {
			refuse(path+"config", err)
			continue
		}
		k := link{Filter: f, name: fc.Name}
		if k.resp, ok = f.(ResponseFilter); ok {
			l.respFilters++
		}
		if k.end, ok = f.(EndFilter); ok {
			l.endFilters++
		}
		l.chain = append(l.chain, k)
	}
	l.keepsRequest = l.respFilters+l.endFilters > 0
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
	for o := range mod.listeners {
		if o.batch < l.batch && o.rivals(l) {
			for _, s := range mod.shards {
				s.post(posted{call: func(s *shard) { s.supersede(o) }})
			}
		}
	}
	if l.Delivery != config.DeliveryListener {
		return
	}
	// The host says nothing of a listener that drains. That a new version of
	// it has come is the sign.
	for o := range mod.listeners {
		if o.batch < l.batch && o.StatPrefix == l.StatPrefix && o.TableScope == l.TableScope {
			for _, s := range mod.shards {
				s.post(posted{call: func(s *shard) { s.drain(o) }})
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
	defer mod.mu.Unlock()
	delete(mod.listeners, l)
	for _, s := range mod.shards {
		s.post(posted{call: func(s *shard) { s.forget(l) }})
	}
}

func (s *shard) drain(l *listener) {
	if wl := s.listeners[l]; wl != nil {
		for c := wl.conns; c != nil; c = c.next {
			c.drain()
		}
	}
}

func (s *shard) forget(l *listener) {
	if wl := s.listeners[l]; wl != nil && wl.conns == nil {
		delete(s.listeners, l)
		wl.gone = true
		s.adoptPools()
		s.dirty = slices.DeleteFunc(s.dirty, func(o *workerListener) bool { return o == wl })
		s.bequeath(wl)
	}
}
