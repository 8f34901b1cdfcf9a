package filter

import (
	"maps"
	"time"
	"unique"
	"weak"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/accesslog"
	"github.com/meltemi-mesh/meltemi/filter/metrics"
	"github.com/meltemi-mesh/meltemi/filter/route"
	"github.com/meltemi-mesh/meltemi/filter/upstream"
)

// workerListener is a listener's configuration on one worker.
type workerListener struct {
	*listener
	sh         *shard
	superseded time.Duration // when a newer version was published, 0: not
	lateUntil  time.Duration // connections that come before then leave then
	pools      map[poolKey]*upstream.Pool
	last       struct { // that was found in pools, where no address tells: the next is often the same
		key  poolKey
		pool *upstream.Pool
	}
	conns    *connection
	awaiting awaiting
	pauses   pauses
	merged   map[merge]*route.Override
	shapes   map[*protocol]*codecs.Shapes // what decoders remember

	detoured [len(detours)]time.Duration // when the debug log was told

	// Its own chain, with the parts that filters have made for the worker.
	chain   []link
	workers []workerPart
	hooks

	stats  metrics.Batch
	owns   ownBatch
	listed bool // in the shard's dirty
	gone   bool // the host has forgotten it; late answers may still come
	ended  bool // no hook runs any more
	left   int  // messages whose clients have left it, and that are delivered all the same

	logs     []*accesslog.Buffer // of the files of its access logs
	logsWait bool                // in the shard's logging

	shadows shadows
}

func (wl *workerListener) add(c *connection) {
	if c.next = wl.conns; c.next != nil {
		c.next.prev = c
	}
	wl.conns = c
	if wl.discovery != nil {
		wl.discovery.report(wl)
	}
	if wl.dirty() { // metrics that had nobody to report them
		wl.sh.startStats()
	}
}

func (wl *workerListener) remove(c *connection) {
	if wl.conns == c && c.next == nil {
		wl.endEra()
		wl.flushLogs()
		wl.report() // the last one that can
	}
	if c.prev == nil {
		wl.conns = c.next
	} else {
		c.prev.next = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	}
	c.next, c.prev = nil, nil
	wl.endIfDone()
}

// shapesOf is what decoders of a protocol remember, on this worker: those of all listeners
// that have it in one way.
func (wl *workerListener) shapesOf(p *protocol) *codecs.Shapes {
	s := wl.shapes[p]
	if s != nil {
		return s
	}
	all := wl.sh.shapes
	if s = all[p.profile].Value(); s == nil {
		maps.DeleteFunc(all, func(_ unique.Handle[profile], s weak.Pointer[codecs.Shapes]) bool { return s.Value() == nil })
		s = new(codecs.Shapes)
		all[p.profile] = weak.Make(s)
	}
	if wl.shapes == nil {
		wl.shapes = map[*protocol]*codecs.Shapes{}
	}
	wl.shapes[p] = s
	return s
}

func (wl *workerListener) count(c metrics.Counter, n int64) {
	if !wl.stats.Dirty() { // else mark has nothing to do
		wl.mark()
	}
	wl.stats.Count(c, n)
}

func (wl *workerListener) gauge(g metrics.Gauge, n int64) {
	if !wl.stats.Dirty() {
		wl.mark()
	}
	wl.stats.Gauge(g, n)
}

func (wl *workerListener) countResponse(resp *codecs.Metadata) {
	wl.count(metrics.Response, 1)
	switch resp.Status {
	case codecs.StatusOK:
		wl.count(metrics.ResponseSuccess, 1)
	case codecs.StatusBusinessException:
		wl.count(metrics.ResponseBusinessException, 1)
	default:
		wl.count(metrics.ResponseError, 1)
	}
}

func (wl *workerListener) record(ms uint64) {
	wl.mark()
	if wl.stats.Record(ms) {
		wl.report()
	}
}

// mark is called before something is counted.
func (wl *workerListener) mark() {
	if wl.dirty() || wl.gone {
		return
	}
	if !wl.listed {
		wl.listed = true
		wl.sh.dirty = append(wl.sh.dirty, wl)
	}
	wl.sh.startStats()
}

// metricsKey is what versions of a listener have in common that have the same metrics.
type metricsKey struct{ protocol, prefix string }

func (l *listener) metricsKey() metricsKey { return metricsKey{l.Protocol, l.StatPrefix} }

// bequeath hands over what is gathered for a listener that has gone, and so will not be
// told by any connection of it: a gauge would be wrong for ever.
func (s *shard) bequeath(wl *workerListener) {
	wl.owns.bequeath(wl.owned)
	if !wl.stats.Dirty() || wl.handOver() {
		return
	}
	k := wl.metricsKey()
	if s.estate[k] == nil {
		s.estate[k] = &metrics.Batch{}
	}
	s.estate[k].Inherit(&wl.stats)
}

// heir is who tells what wl has gathered: versions of a listener have their metrics in
// common, and one may never have a connection again, whether the host forgets it or not.
func (s *shard) heir(wl *workerListener) *workerListener {
	h := wl
	for _, o := range s.versions[wl.metricsKey()] {
		if o.tellsBefore(h) {
			h = o
		}
	}
	return h
}

// tellsBefore reports whether wl tells metrics sooner than o: at once, or by the
// connections that come.
func (wl *workerListener) tellsBefore(o *workerListener) bool {
	switch {
	case wl.gone != o.gone:
		return o.gone
	case (wl.conns != nil) != (o.conns != nil):
		return wl.conns != nil
	default:
		return wl.batch > o.batch
	}
}

// mute reports whether there is something to tell, and no connection to tell it by.
func (wl *workerListener) mute() bool { return wl.conns == nil && wl.stats.Dirty() }

// handOver gives what wl has gathered to its heir, and reports whether there is one.
func (wl *workerListener) handOver() bool {
	o := wl.sh.heir(wl)
	if o == wl {
		return false
	}
	o.inherit(&wl.stats)
	return true
}

func (wl *workerListener) inherit(b *metrics.Batch) {
	wl.mark()
	wl.stats.Inherit(b)
}

// report hands the metrics over by one of the connections, false when there
// is none. Metrics of a configuration without connections wait for the next.
func (wl *workerListener) report() bool {
	switch {
	case !wl.dirty() && len(wl.owned) == 0 && wl.panics.Load() == 0:
		return true
	case wl.conns == nil:
		return false
	}
	if wl.panics.Load() > 0 {
		wl.stats.Count(metrics.FilterPanic, wl.panics.Swap(0))
	}
	wl.stats.Report(&wl.metrics, wl.conns.d)
	wl.owns.report(wl.owned, wl.conns.d)
	return true
}

func (wl *workerListener) dirty() bool { return wl.stats.Dirty() || wl.owns.dirty }

// endIfDone ends the worker's parts of filters when none of their hooks runs any more.
func (wl *workerListener) endIfDone() {
	if wl.gone && wl.conns == nil && wl.left == 0 && !wl.ended {
		wl.ended = true
		wl.closeParts()
		wl.flushLogs()
		wl.owns.settle(wl.owned)
		wl.sh.bequeath(wl)
		wl.release()
	}
}
