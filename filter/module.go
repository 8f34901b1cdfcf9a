package filter

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/config"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/route"
	"github.com/meltemi-mesh/meltemi/filter/upstream"
)

// Module is the pipeline of one process. It implements host.Module.
type Module struct {
	tables *route.Tables
	shared *upstream.Shared

	mu     sync.Mutex
	shards []*shard
	// Configurations that were loaded between two publications came together;
	// those of an earlier batch are replaced by those of a later one.
	batch     int
	newBatch  bool
	listeners map[*listener]struct{}
}

// NewModule returns a pipeline without any configuration.
func NewModule() *Module {
	return &Module{
		tables: route.NewTables(), shared: upstream.NewShared(),
		listeners: map[*listener]struct{}{},
	}
}

// NewWorker implements host.Module.
func (mod *Module) NewWorker(w host.Worker) host.Shard {
	s := newShard(mod, w)
	mod.mu.Lock()
	defer mod.mu.Unlock()
	mod.shards = append(mod.shards, s)
	return s
}

// listener is one accepted configuration, frozen.
type listener struct {
	*config.Proxy
	mod   *Module
	batch int
	// protocols has one entry, or those that sniff chooses from.
	protocols []*protocol
	metrics   metrics
	chain     []link
	// respFilters and endFilters count the links that have such hooks.
	respFilters, endFilters int
	keepsRequest            bool // properties are wanted after the request hooks
	table                   *route.Slot
	version                 *route.Version
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
	cfg, err := config.Load(raw)
	if err != nil {
		return nil, err
	}
	refuse := func(path string, err error) (host.FilterConfig, error) {
		return nil, &config.Error{StatPrefix: cfg.StatPrefix, Path: path, Reason: err.Error()}
	}
	l := &listener{Proxy: cfg, mod: mod}
	var path string
	if l.protocols, path, err = makeProtocols(cfg); err != nil {
		return refuse(path, err)
	}
	if err := l.makeChain(); err != nil {
		return nil, err
	}
	table, err := route.Compile(cfg.RouteConfig)
	var bad *route.Error
	if errors.As(err, &bad) {
		return refuse("route_config."+bad.Path, bad.Err)
	}
	if path, err := l.checkMutations(); err != nil {
		return refuse(path, err)
	}
	if l.metrics, err = defineMetrics(hc, cfg.Protocol+"."+cfg.StatPrefix+"."); err != nil {
		return refuse("stat_prefix", err)
	}

	mod.mu.Lock()
	defer mod.mu.Unlock()
	if mod.newBatch {
		mod.batch++
		mod.newBatch = false
	}
	l.batch = mod.batch
	key := route.Key{Scope: cfg.TableScope, Name: cfg.RouteConfig.GetName()}
	l.version = mod.tables.Add(key, table)
	l.table = mod.tables.Slot(key)
	mod.listeners[l] = struct{}{}
	return l, nil
}

func (l *listener) makeChain() error {
	for i, fc := range l.Filters {
		refuse := func(field string, err error) error {
			return &config.Error{
				StatPrefix: l.StatPrefix,
				Path:       fmt.Sprintf("meta_protocol_filters[%d].%s", i, field), Reason: err.Error(),
			}
		}
		newFilter, ok := lookup(fc.Name)
		if !ok {
			return refuse("name", fmt.Errorf("unknown filter %q (built in: %s)", fc.Name, strings.Join(Names(), ", ")))
		}
		ctx := FactoryContext{StatPrefix: l.StatPrefix}
		for _, p := range l.protocols {
			ctx.Codecs = append(ctx.Codecs, p.codec)
		}
		f, err := newFilter(fc.Config, ctx)
		if err != nil {
			return refuse("config", err)
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
	return nil
}

// checkMutations refuses mutations that cannot be made.
func (l *listener) checkMutations() (path string, err error) {
	for i, r := range l.RouteConfig.GetRoutes() {
		for _, part := range []struct {
			field string
			dir   codecs.Direction
			n     int
			at    func(int) (string, string)
		}{
			{"request_mutation", codecs.ClientToServer, len(r.GetRequestMutation()), func(j int) (string, string) {
				kv := r.GetRequestMutation()[j]
				return kv.GetKey(), kv.GetValue()
			}},
			{"response_mutation", codecs.ServerToClient, len(r.GetResponseMutation()), func(j int) (string, string) {
				kv := r.GetResponseMutation()[j]
				return kv.GetKey(), kv.GetValue()
			}},
		} {
			for j := range part.n {
				path := fmt.Sprintf("route_config.routes[%d].%s[%d]", i, part.field, j)
				k, v := part.at(j)
				if err := l.checkMutation(part.dir, k, v); err != nil {
					return path, err
				}
			}
		}
	}
	return "", nil
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
	mod.mu.Lock()
	defer mod.mu.Unlock()
	mod.newBatch = true
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
	l.version.Remove()
	mod.mu.Lock()
	defer mod.mu.Unlock()
	delete(mod.listeners, l)
	for _, s := range mod.shards {
		s.post(posted{call: func(s *shard) { s.forget(l) }})
	}
}

func (s *shard) drain(l *listener) {
	if cs := s.configs[l]; cs != nil {
		for c := cs.conns; c != nil; c = c.next {
			c.drain()
		}
	}
}

func (s *shard) forget(l *listener) {
	if cs := s.configs[l]; cs != nil && cs.conns == nil {
		delete(s.configs, l)
		cs.gone = true
		for i, o := range s.dirty {
			if o == cs {
				s.dirty = append(s.dirty[:i], s.dirty[i+1:]...)
				break
			}
		}
	}
}
