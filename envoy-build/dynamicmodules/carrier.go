package dynamicmodules

/*
#include "hooks.h"

static bool mt_token(mt_filter* f, mt_buf* out) {
  static const char ns[] = "meltemi", key[] = "token";
  return MT_CALL(network_get_dynamic_metadata_string)(f->envoy, (mt_buf){ns, sizeof ns - 1}, (mt_buf){key, sizeof key - 1}, out);
}
static bool mt_set_state(mt_filter* f, char* key, size_t key_n, char* p, size_t n) {
  return MT_CALL(network_set_filter_state_typed)(f->envoy, (mt_buf){key, key_n}, (mt_buf){p, n});
}
static bool mt_upstream(mt_filter* f, mt_buf* out, uint32_t* port) {
  return MT_CALL(network_filter_get_upstream_host_address)(f->envoy, out, port);
}
static bool mt_has_upstream(mt_filter* f) { return MT_CALL(network_filter_has_upstream_host)(f->envoy); }
static uint64_t mt_flags(mt_filter* f) {
  enum { RESPONSE_FLAGS = 17 };
  uint64_t v = 0;
  if (MT_CALL(network_filter_get_attribute_int)) MT_CALL(network_filter_get_attribute_int)(f->envoy, RESPONSE_FLAGS, &v);
  return v;
}
*/
import "C"

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"
	"unsafe"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

// A carrier is a connection that this process makes to its own loopback
// listener. No payload crosses its socket: it only gives birth to a filter
// chain on a worker, in which our filter stands before tcp_proxy. There it is
// parked until a request needs a cluster; then it is claimed, tcp_proxy
// connects, and bytes are handed to it and taken from it on the worker.

const (
	// wantParked is how many carriers a worker keeps parked.
	wantParked = 2
	// spareTime is how long it keeps those beyond.
	spareTime = 10 * time.Second
	// renewTime is what it takes, at the most, until a loopback listener serves
	// whose configuration has been published.
	renewTime = 500 * time.Millisecond
)

// Typed filter state that tcp_proxy reads.
const (
	stateCluster     = "envoy.tcp_proxy.cluster"
	stateOriginalDst = "envoy.network.transport_socket.original_dst_address"
)

// Response flags (envoy::StreamInfo::CoreResponseFlag), as bits.
const (
	flagOverflow  = 0x80
	flagNoCluster = 1 << 24
)

type carrierState uint8

const (
	parked carrierState = iota
	claimed
	ready
	over
)

// carrier is a carrier on its worker. As an upstream connection that was asked
// for it has no filter until one is parked that it can claim.
type carrier struct {
	w       *worker
	f       *C.mt_filter
	state   carrierState
	ev      host.UpstreamEvents
	target  host.Target
	birth   *birth
	blocked bool
	paused  bool
	ended   bool // our end of stream was sent
	dropped bool // Close was called before there was a filter
}

// carriers are those of one worker.
type carriers struct {
	w       *worker
	parked  []*carrier
	waiting []*carrier // asked for, while none is parked
	sourced []*carrier // asked for with a source: none is parked for those
	ballast []*carrier // ordered by other workers, and of no use but their weight

	mu     sync.Mutex
	posted []func()
}

// connect takes a parked carrier for t, or waits for one. What a server sees as
// the source is settled when a carrier is accepted, so that one with a source is
// dialled for t alone.
func (cs *carriers) connect(t host.Target, ev host.UpstreamEvents) host.Upstream {
	if t.Source.IsValid() {
		c := &carrier{w: cs.w, ev: ev, target: t}
		cs.sourced = append(cs.sourced, c)
		cs.order(t.Source)
		return c
	}
	if n := len(cs.parked); n > 0 {
		c := cs.parked[n-1]
		cs.parked = cs.parked[:n-1]
		c.ev, c.target = ev, t
		c.claim()
		cs.refill()
		return c
	}
	c := &carrier{w: cs.w, ev: ev, target: t}
	cs.waiting = append(cs.waiting, c)
	cs.refill()
	return c
}

// refill asks for as many carriers as are missing.
func (cs *carriers) refill() {
	dialer.want(cs.w.index, wantParked+len(cs.waiting)-len(cs.parked))
}

// order asks for as many carriers with a source as are waited for.
func (cs *carriers) order(source netip.Addr) {
	n := 0
	for _, c := range cs.sourced {
		if c.target.Source == source {
			n++
		}
	}
	dialer.wantFrom(order{cs.w.index, source}, n)
}

// cameFrom takes a carrier that was dialled with a source.
func (cs *carriers) cameFrom(f *C.mt_filter, born *birth) bool {
	if born.from.worker != cs.w.index { // another is dialled
		c := &carrier{w: cs.w, f: f, birth: born}
		cs.w.add(c, f)
		cs.ballast = append(cs.ballast, c)
		cs.trimLater()
		return true
	}
	for _, c := range cs.sourced {
		if c.target.Source == born.from.source {
			cs.unsource(c)
			c.f, c.birth = f, born
			cs.w.add(c, f)
			c.claim()
			return true
		}
	}
	return false // it is not wanted any more
}

func (cs *carriers) unsource(c *carrier) {
	if i := slices.Index(cs.sourced, c); i >= 0 {
		cs.sourced = slices.Delete(cs.sourced, i, i+1)
		cs.order(c.target.Source)
	}
}

// arrived takes a carrier that was born on this worker. Strangers are turned
// away.
func (cs *carriers) arrived(f *C.mt_filter) bool {
	var b C.mt_buf
	var born *birth
	if bool(C.mt_token(f, &b)) {
		born = dialer.born(unsafe.Slice((*byte)(unsafe.Pointer(b.ptr)), int(b.length)), cs.w.index)
	}
	if born == nil {
		strangers.logf(host.Warn, "meltemi: a connection to the loopback listener without this process's token was closed")
		return false
	}
	if born.from.source.IsValid() {
		return cs.cameFrom(f, born)
	}
	c := &carrier{w: cs.w, f: f, birth: born}
	for len(cs.waiting) > 0 {
		o := cs.waiting[0]
		cs.waiting = cs.waiting[1:]
		if o.dropped {
			continue
		}
		o.f, o.birth = f, born
		cs.w.add(o, f)
		o.claim()
		cs.refill()
		return true
	}
	cs.w.add(c, f)
	cs.parked = append(cs.parked, c)
	if len(cs.parked) > wantParked {
		cs.trimLater()
	}
	cs.refill()
	return true
}

func (cs *carriers) trimLater() {
	time.AfterFunc(spareTime, func() { cs.post(cs.trim) })
}

// trim closes a carrier if there are more than wanted, and no order needs their
// weight. It is the worker that does, as Envoy does not look at a parked carrier's
// dialing side.
func (cs *carriers) trim() {
	list := &cs.parked
	if len(cs.ballast) > 0 {
		list = &cs.ballast
	} else if len(cs.parked) <= wantParked {
		return
	}
	if dialer.busy() {
		cs.trimLater()
		return
	}
	c := (*list)[0]
	*list = slices.Delete(*list, 0, 1)
	c.discard()
}

// discard closes a carrier that has been taken off its list.
func (c *carrier) discard() {
	c.state = over
	c.w.op(c.f, C.MT_CLOSE, closeNoFlush)
}

// renewCarriers has the workers replace the carriers that they parked before a
// configuration of the loopback listener came. Their listener drains: one that is
// claimed late would be closed with its requests when Envoy's drain time is over.
// Those in use are not told. They have an age, less than the drain time.
func renewCarriers(config C.uint32_t) {
	time.AfterFunc(renewTime, func() {
		for i := range workers {
			if w := workers[i].Load(); w != nil {
				w.carriers.post(func() { w.carriers.renew(config) })
			}
		}
	})
}

func (cs *carriers) renew(config C.uint32_t) {
	cs.parked = slices.DeleteFunc(cs.parked, func(c *carrier) bool {
		if c.f.config.id >= config {
			return false
		}
		c.discard()
		return true
	})
	cs.refill()
}

func (cs *carriers) anyParked() *C.mt_filter {
	for _, c := range cs.parked {
		if !bool(c.f.closed) {
			return c.f
		}
	}
	return nil
}

// post has f run on the worker. Any goroutine.
func (cs *carriers) post(f func()) {
	cs.mu.Lock()
	cs.posted = append(cs.posted, f)
	cs.mu.Unlock()
	cs.w.wake.wake()
}

func (cs *carriers) run() {
	cs.mu.Lock()
	posted := cs.posted
	cs.posted = nil
	cs.mu.Unlock()
	for _, f := range posted {
		guarded("doing what was posted to a worker", f)
	}
}

func setState(f *C.mt_filter, key, value string) {
	C.mt_set_state(f, (*C.char)(unsafe.Pointer(unsafe.StringData(key))), C.size_t(len(key)),
		(*C.char)(unsafe.Pointer(unsafe.StringData(value))), C.size_t(len(value)))
}

// claim lets tcp_proxy connect.
func (c *carrier) claim() {
	c.state = claimed
	setState(c.f, stateCluster, c.target.Cluster)
	if c.target.OriginalDst != "" {
		setState(c.f, stateOriginalDst, c.target.OriginalDst)
	}
	c.w.op(c.f, C.MT_CONTINUE, 0)
}

// mark is told that bytes of the dialing side, of which there is one now and
// then, wait in the read buffer. It returns how many of them to drain.
func (c *carrier) mark(total int, end bool) int {
	if end { // the dialing side has gone
		c.w.op(c.f, C.MT_CLOSE, closeNoFlush)
		return total
	}
	switch c.state {
	case parked:
		return 0 // the mark waits for tcp_proxy, which stops reading until it is connected
	case claimed:
		c.state = ready
		c.f.ready = true
		c.ev.Ready(c.host())
	case ready:
		if c.blocked {
			c.blocked, c.f.blocked = false, false
			c.ev.WriteBlocked(false)
		}
	}
	return total
}

func (c *carrier) host() string {
	var b C.mt_buf
	var port C.uint32_t
	if !bool(C.mt_upstream(c.f, &b, &port)) || b.length == 0 {
		return ""
	}
	return net.JoinHostPort(C.GoStringN(b.ptr, C.int(b.length)), strconv.Itoa(int(port)))
}

func (c *carrier) answer(bufs [][]byte, total int, end bool) {
	if c.state == over {
		return
	}
	if total > 0 {
		c.ev.Data(bufs, total)
	}
	if end && c.state != over {
		// The server sends no more. No event of its own tells that.
		c.finish(host.Remote)
		c.w.op(c.f, C.MT_CLOSE, closeNoFlush)
	}
}

// writeBlocked notes that the server does not take bytes. The mark that the
// dialing side sends now is read when it does again.
func (c *carrier) writeBlocked() {
	if c.state == ready && !c.blocked {
		c.blocked = true
		c.birth.mark()
		c.ev.WriteBlocked(true)
	}
}

func (c *carrier) finish(r host.CloseReason) {
	if c.state != over {
		c.leave()
		c.tellClosed(r)
	}
}

func (c *carrier) tellClosed(r host.CloseReason) {
	if !guarded("ending a carrier", func() { c.ev.Closed(r) }) {
		guarded("giving up a carrier", c.ev.Failed)
		c.w.countPanics()
	}
}

func (c *carrier) leave() {
	c.state = over
	if c.paused {
		c.paused = false
		c.birth.resume()
	}
}

func (c *carrier) closed(_, alive bool) {
	if c.state == over {
		return
	}
	cs := &c.w.carriers
	if c.state == parked {
		for _, list := range []*[]*carrier{&cs.parked, &cs.ballast} {
			if i := slices.Index(*list, c); i >= 0 {
				*list = slices.Delete(*list, i, i+1)
			}
		}
		c.state = over
		cs.refill()
		return
	}
	c.finish(c.reason(alive))
}

// reason tells why a carrier has ended: Envoy closes it locally in every case.
func (c *carrier) reason(alive bool) host.CloseReason {
	switch {
	case c.ended || c.dropped:
		return host.Local
	case c.state == ready:
		return host.Reset
	case !alive:
		return host.Draining
	case bool(C.mt_has_upstream(c.f)):
		return host.ConnectFailed
	}
	flags := uint64(C.mt_flags(c.f))
	h, known, ok := c.w.ClusterHosts(c.target.Cluster)
	switch {
	case flags&flagOverflow != 0:
		return host.Overflow
	case flags&flagNoCluster != 0 || ok && !known:
		return host.NoCluster
	case flags == 0 && ok && h.Healthy > 0: // before 1.39 nothing else tells
		return host.Overflow
	case ok && h.Total > 0 && flags == 0 && c.target.OriginalDst != "":
		return host.ConnectFailed
	default:
		return host.NoHost
	}
}

func (c *carrier) failed() {
	if c.state == claimed || c.state == ready {
		c.leave()
		c.ev.Failed()
	}
}

// Write implements host.Upstream.
func (c *carrier) Write(b *host.Buffer) {
	p, n := c.w.take(b)
	if c.state == ready {
		c.w.record(c.f, C.MT_SEND_UP, 0, p, n)
	}
}

// ReadDisable implements host.Upstream.
func (c *carrier) ReadDisable(disable bool) {
	if c.state != ready || c.paused == disable {
		return
	}
	c.paused, c.f.paused = disable, C.bool(disable)
	if disable {
		c.birth.pause()
		c.w.op(c.f, C.MT_PAUSE, 0)
	} else {
		c.birth.resume()
	}
}

// Close implements host.Upstream.
func (c *carrier) Close(graceful bool) {
	switch {
	case c.f == nil: // still waiting for a carrier
		if !c.dropped {
			c.dropped, c.state = true, over
			c.w.carriers.unsource(c)
			c.w.carriers.post(func() { c.tellClosed(host.Local) })
		}
	case c.state == over:
	case graceful && c.state == ready:
		if !c.ended {
			c.ended = true
			c.w.record(c.f, C.MT_SEND_UP, 1, nil, 0)
		}
	default:
		c.ended = true
		c.w.op(c.f, C.MT_CLOSE, closeNoFlush)
	}
}
