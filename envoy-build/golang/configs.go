package golang

import (
	"crypto/sha256"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

const (
	// publishTime is how long a configuration may wait for its first connection, which
	// proves that Envoy has accepted its listener. Then it is taken for accepted: nothing
	// tells, and Envoy refuses a listener rarely for what is not its filters'. What is
	// loaded meanwhile has come together with it.
	publishTime = 50 * time.Millisecond
	// retireTime is how long a configuration stays that has been replaced and has no
	// connection. It is as long as listeners drain if nothing else is said.
	retireTime = 10 * time.Minute
	// retireTick is how often that is looked at.
	retireTick = time.Minute
	// maxRetired is how many are remembered that have been retired, so that a connection
	// that comes under one all the same is served: Envoy may have refused what replaced it.
	maxRetired = 256
)

// configs are the configurations of the process. Envoy says when one is loaded, and never
// that one is not needed any more. So each has the listener whose version it is, by its
// stat_prefix and the like, and goes some time after a later one has taken its place.
type configs struct {
	h *Host

	// loading is held while the pipeline is told of configurations, which takes time; mu
	// is not then.
	loading sync.Mutex

	mu      sync.Mutex
	last    uint64
	byID    map[uint64]*configuration
	newest  map[string]*configuration // accepted ones, by their listener
	retired []*configuration          // in the order in which they were
	timer   *time.Timer
	closed  bool
}

// configuration is what Envoy knows by one number: one or several filter chains with the
// same plugin_config.
type configuration struct {
	id       uint64
	sum      [sha256.Size]byte
	raw      []byte
	listener string // "": unknown
	metrics  []*metric
	proxy    host.FilterConfig // nil: refused, or retired
	refused  bool
	instead  *configuration // answers clients with errors; nil: they are closed

	published bool
	conns     int
	left      time.Time // the last of them, or the load
}

// Load loads a serialized google.protobuf.Any, the plugin_config of a filter. Envoy takes
// no refusal. A configuration that is refused is logged with the field's path, and
// counted; the one before it goes on, or clients get errors of their protocol, or are
// closed. It returns the number by which connections refer to it, never 0.
func (h *Host) Load(plugin []byte) (id uint64) {
	h.begin()
	c := &h.configs
	c.loading.Lock()
	defer c.loading.Unlock()
	raw, err := unwrap(plugin)
	sum := sha256.Sum256(raw)
	l := listenerOf(raw)
	c.mu.Lock()
	if n := c.newest[l]; n != nil && n.sum == sum && n.proxy != nil && err == nil {
		c.mu.Unlock()
		return n.id
	}
	c.last++
	id = c.last
	c.mu.Unlock()
	cfg := &configuration{id: id, sum: sum, raw: raw, listener: l}
	if err == nil {
		h.panics.Guard("loading a configuration", func() { err = h.load(cfg) })
	}
	if cfg.refused = cfg.proxy == nil; cfg.refused {
		h.metrics.process[configsRefused].Add(1)
		h.log(host.Error, "meltemi: %s refused: %v", PluginName, err)
		cfg.instead = h.apologist(cfg)
	}
	c.add(cfg)
	time.AfterFunc(publishTime, func() { c.publish(cfg) })
	return id
}

// load has the pipeline load cfg.
func (h *Host) load(cfg *configuration) (err error) {
	l := &loading{h: h}
	cfg.proxy, err = h.module.NewConfig(l, cfg.raw)
	if cfg.metrics = l.metrics; err != nil {
		cfg.proxy, cfg.metrics = nil, nil
		h.metrics.release(l.metrics)
	}
	return err
}

// apologist is a configuration of the refused one's protocol that has no routes: each
// request is answered by the protocol's error for that. nil if there is none.
func (h *Host) apologist(refused *configuration) *configuration {
	raw := withoutRoutes(refused.raw, refused.id)
	if raw == nil {
		return nil
	}
	a := &configuration{id: refused.id, raw: raw, refused: true}
	if !h.panics.Guard("loading a configuration without routes", func() {
		if h.load(a) == nil {
			a.proxy.Published()
		}
	}) || a.proxy == nil {
		return nil
	}
	a.published = true
	return a
}

func (c *configs) add(cfg *configuration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byID == nil {
		c.byID, c.newest = map[uint64]*configuration{}, map[string]*configuration{}
	}
	cfg.left = time.Now()
	c.byID[cfg.id] = cfg
	if cfg.proxy != nil && cfg.listener != "" {
		c.newest[cfg.listener] = cfg
	}
	if c.timer == nil && !c.closed {
		c.timer = time.AfterFunc(retireTick, c.retire)
	}
}

// use returns the configuration that serves a connection which has come under id, nil if
// none does. [configs.left] is to be called for it.
func (c *configs) use(id uint64) *configuration {
	c.mu.Lock()
	cfg := c.byID[id]
	if cfg != nil && cfg.refused {
		if n := c.newest[cfg.listener]; n != nil { // the one before, or one that has come since
			cfg = n
		} else {
			cfg = cfg.instead
		}
	}
	if cfg == nil {
		c.mu.Unlock()
		return nil
	}
	cfg.conns++
	gone, fresh := cfg.proxy == nil, !cfg.published
	c.mu.Unlock()
	switch {
	case gone:
		if !c.revive(cfg) {
			c.left(cfg)
			return nil
		}
	case fresh:
		// Not here: the pipeline may hold locks for it that Envoy's thread is not to wait
		// for.
		go c.publish(cfg)
	}
	return cfg
}

// left is called when a connection has ended that use has returned cfg for.
func (c *configs) left(cfg *configuration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	cfg.conns--
	cfg.left = time.Now()
}

// publish tells the pipeline that cfg is in use.
func (c *configs) publish(cfg *configuration) {
	defer c.h.barrier("publishing a configuration")
	c.loading.Lock()
	defer c.loading.Unlock()
	c.mu.Lock()
	due := !c.closed && !cfg.published && cfg.proxy != nil
	cfg.published = cfg.published || due
	c.mu.Unlock()
	if due {
		cfg.proxy.Published()
	}
}

// retire drops what has been replaced and is not used any more.
func (c *configs) retire() {
	defer c.h.barrier("dropping a configuration")
	c.loading.Lock()
	defer c.loading.Unlock()
	now := time.Now()
	var gone []host.FilterConfig
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	for _, cfg := range c.byID {
		n := c.newest[cfg.listener]
		if n == nil || n == cfg || !n.published || n.id < cfg.id || cfg.conns > 0 || now.Sub(cfg.left) < retireTime || slices.Contains(c.retired, cfg) {
			continue
		}
		if cfg.instead != nil {
			if cfg.instead.conns > 0 {
				continue
			}
			gone = append(gone, cfg.instead.proxy)
			c.h.metrics.release(cfg.instead.metrics)
			cfg.instead = nil
		}
		if cfg.proxy != nil {
			gone = append(gone, cfg.proxy)
			c.h.metrics.release(cfg.metrics)
			cfg.proxy, cfg.metrics, cfg.published = nil, nil, false
		}
		c.retired = append(c.retired, cfg)
	}
	for len(c.retired) > maxRetired {
		delete(c.byID, c.retired[0].id)
		c.retired = slices.Delete(c.retired, 0, 1)
	}
	c.timer.Reset(retireTick)
	c.mu.Unlock()
	for _, p := range gone {
		c.h.panics.Guard("dropping a configuration", p.Destroy)
	}
}

// revive loads a configuration again under which a connection has come although it was
// retired: what replaced it was refused by Envoy.
func (c *configs) revive(cfg *configuration) bool {
	c.loading.Lock()
	defer c.loading.Unlock()
	c.mu.Lock()
	there := cfg.proxy != nil // by another connection
	c.mu.Unlock()
	if there {
		return true
	}
	again := &configuration{raw: cfg.raw}
	var err error
	if !c.h.panics.Guard("loading a configuration", func() { err = c.h.load(again) }) || err != nil {
		c.h.log(host.Error, "meltemi: %s refused: %v", PluginName, err)
		return false
	}
	c.mu.Lock()
	cfg.proxy, cfg.metrics, cfg.published = again.proxy, again.metrics, true
	c.newest[cfg.listener] = cfg
	c.retired = slices.DeleteFunc(c.retired, func(o *configuration) bool { return o == cfg })
	c.mu.Unlock()
	cfg.proxy.Published()
	return true
}

// close forgets everything, for tests.
func (c *configs) close() {
	c.loading.Lock()
	defer c.loading.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.timer != nil {
		c.timer.Stop()
	}
	for _, cfg := range c.byID {
		for _, o := range []*configuration{cfg, cfg.instead} {
			if o != nil && o.proxy != nil {
				o.proxy.Destroy()
			}
		}
	}
	c.byID, c.newest = nil, nil
}

// loading implements host.Config during a load.
type loading struct {
	h       *Host
	metrics []*metric
}

func (l *loading) define(name string, kind prometheus.ValueType, histogram bool) (host.MetricID, error) {
	m, err := l.h.metrics.define(name, kind, histogram)
	if err != nil {
		return 0, err
	}
	l.metrics = append(l.metrics, m)
	return host.MetricID(len(l.metrics) - 1), nil
}

func (l *loading) DefineCounter(name string) (host.MetricID, error) {
	return l.define(name, prometheus.CounterValue, false)
}

func (l *loading) DefineGauge(name string) (host.MetricID, error) {
	return l.define(name, prometheus.GaugeValue, false)
}

func (l *loading) DefineHistogram(name string) (host.MetricID, error) {
	return l.define(name, prometheus.UntypedValue, true)
}

func (l *loading) Background() host.Background { return background{l.h} }
