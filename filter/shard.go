package filter

import (
	"maps"
	"math/rand/v2"
	"time"
	"unique"
	"weak"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/accesslog"
	"github.com/meltemi-mesh/meltemi/filter/breaker"
	"github.com/meltemi-mesh/meltemi/filter/forward"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/host/mailbox"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
	"github.com/meltemi-mesh/meltemi/filter/internal/inbox"
	"github.com/meltemi-mesh/meltemi/filter/internal/timer"
	"github.com/meltemi-mesh/meltemi/filter/metrics"
	"github.com/meltemi-mesh/meltemi/filter/telemetry"
	"github.com/meltemi-mesh/meltemi/filter/tracing"
	"github.com/meltemi-mesh/meltemi/filter/upstream"
)

const (
	// statsTime is how late counters may be.
	statsTime = 20 * time.Millisecond
	// maxFree bounds the free lists: what a burst left behind goes to the
	// garbage collector.
	maxFree = 4096
	// maxOperationKept is how much memory for a method's name a free message keeps.
	maxOperationKept = 1 << 10
)

// shard is the pipeline's state of one worker. Everything in it is used on
// that worker only, but for posted.
type shard struct {
	mod    *Module
	w      host.Worker
	timers *timer.Wheel
	rand   *rand.Rand
	up     *upstream.Manager
	// exchanges is what they have in common.
	exchanges *forward.Env

	listeners map[*listener]*workerListener
	dirty     []*workerListener // have metrics to report

	touched []*connection // have bytes to hand over
	later   []*connection // have bytes to decode
	ending  []*connection // shall be closed

	freeMessages []*Message
	freeMetadata []*codecs.Metadata
	freedChanges []*changes
	freeTakens   []*breaker.Taken
	scratch      []byte          // joins what hosts hand over in pieces
	answer       []byte          // is encoded here before it waits for its turn
	source       source          // of the mutation that is being made
	attempt      Attempt         // that filters are told of
	attemptMut   codecs.Mutation // of the attempt that is about to be sent
	attemptErr   codecs.LocalError
	spare        codecs.Metadata // has the memory for the properties of the next request
	partials     inbox.Budget    // of clients
	shapes       map[unique.Handle[profile]]weak.Pointer[codecs.Shapes]
	held         int         // bytes of answers that wait for clients or their turn
	withheld     int         // bytes of errors that clients have not been told
	review       timer.Timer // of those

	stats  timer.Timer
	estate map[metricsKey]*metrics.Batch // of listeners that have gone, for those that come
	// versions are listeners by their metrics, which versions of one have in common.
	versions map[metricsKey][]*workerListener
	inHost   int           // bytes for clients that take none, in the host's buffers
	stuck    timer.Timer   // looks for those
	armed    time.Duration // when Run has been asked for, 0: not
	warned   warnings
	posted   *mailbox.Mailbox[posted]

	telemetry *telemetry.Worker
	traces    *tracing.Worker
	entry     accesslog.Entry // that is being written
	told      *Message        // that ends, and whose facts the entry has
	second    accesslog.Second
	wall      wall
	logging   []*workerListener // have lines to hand over
	logged    timer.Timer       // hands them over

	freeShadows []*shadow
	shadows     map[string]int // copies on their way, by their cluster
}

// posted is work that another goroutine has for the worker.
type posted struct {
	r    Resumer
	do   func(m *Message) Verdict
	call func(s *shard)
}

func newShard(mod *Module, w host.Worker, rng *rand.Rand) *shard {
	s := &shard{
		mod: mod, w: w, timers: timer.New(w.Now()),
		rand:      rng,
		posted:    mailbox.New[posted](w.Wake),
		listeners: map[*listener]*workerListener{},
		estate:    map[metricsKey]*metrics.Batch{},
		versions:  map[metricsKey][]*workerListener{},
		shapes:    map[unique.Handle[profile]]weak.Pointer[codecs.Shapes]{},
	}
	s.up = upstream.NewManager(w, s.timers, mod.shared, s.rand)
	s.up.Gone = s.dropPool
	s.exchanges = forward.NewEnv(s.timers, w.Now, s.rand)
	s.stats.Fire = s.report
	s.logged.Fire = s.flushLogs
	s.telemetry = mod.telemetry.NewWorker()
	s.traces = tracing.NewWorker(w.Now, s.rand)
	s.partials.Init(stallTime, w.Now, s.timers)
	s.stuck.Fire = s.endStuck
	s.review.Fire = s.tellWaiting
	return s
}

// post hands work over from another goroutine.
func (s *shard) post(p posted) { s.posted.Post(p) }

// Accept implements host.Shard.
func (s *shard) Accept(cfg host.FilterConfig, d host.Downstream) host.DownstreamEvents {
	wl := s.config(cfg.(*listener))
	wl.took(d)
	c := &connection{
		sh: s, cfg: wl, d: d,
		lastUse: s.w.Now(),
	}
	c.leaveAt = inbox.Small
	c.partial.Init(c, &c.in, &s.partials, wl.Limits.MaxPartialBytes)
	if n := d.BufferLimit(); n > 0 {
		c.leaveAt = min(c.leaveAt, n)
	}
	if len(wl.protocols) == 1 && wl.Passthrough == "" {
		c.speaks(wl.protocols[0])
	}
	c.timer.Fire = c.onTimer
	c.lines.Client = c
	wl.add(c)
	c.connect()
	if wl.IdleTimeout > 0 {
		c.arm(c.lastUse + wl.IdleTimeout)
	}
	if c.lastUse < wl.lateUntil {
		c.drain(wl.lateUntil)
	}
	return c
}

func (s *shard) config(l *listener) *workerListener {
	wl := s.listeners[l]
	if wl == nil {
		wl = &workerListener{listener: l, sh: s, pools: map[poolKey]*upstream.Pool{}}
		s.listeners[l] = wl
		k := wl.metricsKey()
		if b := s.estate[k]; b != nil {
			delete(s.estate, k)
			wl.inherit(b)
		}
		s.versions[k] = append(s.versions[k], wl)
		for _, o := range s.versions[k] {
			if o.mute() {
				o.handOver()
			}
		}
		wl.parts()
		wl.takeLogs()
	}
	return wl
}

// Run implements host.Shard.
func (s *shard) Run() {
	s.armed = 0
	s.posted.Run(func(p posted) {
		if p.call != nil {
			p.call(s)
		} else {
			p.r.run(p.do)
		}
	})
	s.timers.Advance(s.w.Now())
}

// barrier is deferred where the work of several connections is done in one
// event: a panic ends c, the client's connection that it happened on.
func (s *shard) barrier(c *connection) {
	r := recover()
	if r == nil {
		return
	}
	s.logPanic("", "", guard.New(r))
	if c != nil && !c.closed {
		c.Aborted()
		c.d.Close(false)
	}
}

// EndHook implements host.Shard.
func (s *shard) EndHook() {
	// Under load the hooks themselves fire what is due, a little before the
	// host's timer would: waking a goroutine for it costs more.
	now := s.w.Now()
	if at, ok := s.timers.Next(); ok && at <= now {
		s.timers.Advance(now)
	}
	for len(s.later) > 0 {
		s.takeUp(pop(&s.later))
	}
	s.up.Flush()
	// Each is taken off first: should one of them panic, the others follow at the
	// next event.
	for len(s.touched) > 0 {
		pop(&s.touched).flush()
	}
	for len(s.ending) > 0 {
		pop(&s.ending).closeBehind()
	}
	if cap(s.scratch) > 1<<20 {
		s.scratch = nil
	}
	if cap(s.answer) > 1<<20 {
		s.answer = nil
	}
	if at, ok := s.timers.Next(); ok && (s.armed <= now || at < s.armed) {
		s.armed = max(at, now+1)
		s.w.SetTimer(max(0, at-now))
	}
}

// pop takes the last one off l.
func pop(l *[]*connection) *connection {
	n := len(*l) - 1
	c := (*l)[n]
	(*l)[n] = nil
	*l = (*l)[:n]
	if n == 0 && cap(*l) > maxFree {
		*l = nil
	}
	return c
}

func (s *shard) takeUp(c *connection) {
	defer s.barrier(c)
	c.takeUp()
}

func (s *shard) newMessage(c *connection) *Message {
	var m *Message
	if n := len(s.freeMessages); n > 0 {
		m = s.freeMessages[n-1]
		s.freeMessages = s.freeMessages[:n-1]
	} else {
		m = &Message{sh: s}
		m.exchange.Init((*caller)(m), s.exchanges)
		m.delay.Fire = m.delayOver
	}
	m.conn, m.cfg, m.proto, m.start = c, c.cfg, c.proto, s.w.Now()
	m.req.Borrow(&s.spare)
	return m
}

func (s *shard) freeMessage(m *Message) {
	m.gen++
	s.timers.Stop(&m.delay)
	m.req.Reset()
	m.req.Return(&s.spare)
	if m.ownResp != nil {
		s.freeResponse(m.ownResp)
	}
	if m.changes != nil {
		s.freeChanges(m.changes)
		m.changes = nil
	}
	clear(m.states)
	m.states = m.states[:0]
	clear(m.values)
	m.values = m.values[:0]
	m.exchange.Reset()
	m.dropFrame()
	if cap(m.operation) > maxOperationKept {
		m.operation = nil
	}
	if m.trace != nil {
		s.traces.Free(m.trace)
	}
	m.use = use{}
	if len(s.freeMessages) < maxFree {
		s.freeMessages = append(s.freeMessages, m)
	}
}

// freeResponse takes back what newMetadata has returned.
func (s *shard) freeResponse(md *codecs.Metadata) {
	md.Reset()
	md.Return(&s.spare)
	if len(s.freeMetadata) < maxFree {
		s.freeMetadata = append(s.freeMetadata, md)
	}
}

func (s *shard) newMetadata() *codecs.Metadata {
	n := len(s.freeMetadata)
	if n == 0 {
		return new(codecs.Metadata)
	}
	md := s.freeMetadata[n-1]
	s.freeMetadata = s.freeMetadata[:n-1]
	return md
}

func (s *shard) newChanges() *changes {
	n := len(s.freedChanges)
	if n == 0 {
		return new(changes)
	}
	c := s.freedChanges[n-1]
	s.freedChanges = s.freedChanges[:n-1]
	return c
}

func (s *shard) freeChanges(c *changes) {
	c.request.Reset()
	c.response.Reset()
	if len(s.freedChanges) < maxFree {
		s.freedChanges = append(s.freedChanges, c)
	}
}

func (s *shard) startStats() {
	if !s.stats.Running() {
		s.timers.Start(&s.stats, s.w.Now()+statsTime)
	}
}

// report hands the gathered metrics to the host.
func (s *shard) report() {
	for i := 0; i < len(s.dirty); i++ { // it may grow
		if wl := s.dirty[i]; wl.mute() {
			wl.handOver()
		}
	}
	left := s.dirty[:0]
	for _, wl := range s.dirty {
		if wl.listed = !wl.report(); wl.listed {
			left = append(left, wl)
		}
	}
	clear(s.dirty[len(left):])
	s.dirty = left
}

// dropPool forgets a pool that has been given up.
func (s *shard) dropPool(p *upstream.Pool) {
	for _, wl := range s.listeners {
		gone := func(_ poolKey, o *upstream.Pool) bool { return o == p }
		maps.DeleteFunc(wl.pools, gone)
		maps.DeleteFunc(wl.shadows.pools, gone)
		if wl.last.pool == p {
			wl.last.pool = nil
		}
	}
}

// adoptPools has live configurations hear of the pools that one observed which is
// gone.
func (s *shard) adoptPools() {
	for _, wl := range s.listeners {
		for _, p := range wl.pools {
			p.Observe(wl)
		}
	}
}
