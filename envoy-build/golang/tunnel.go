package golang

import (
	"errors"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meltemi-mesh/meltemi/envoy-build/internal/loopback"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

const (
	// settleTime is for how long a tunnel must have lived to count as connected. Envoy
	// closes one at once whose cluster it does not know, that has no host, whose host
	// refuses, and says nothing of one that is connected.
	settleTime = 2 * time.Millisecond
	// answerTime is how long a CONNECT may take. It is longer than Envoy takes to connect.
	answerTime = 30 * time.Second
	// queueTime is how long a CONNECT goes unanswered until it may be one that Envoy has wait
	// for another connection, as a circuit breaker allows no more on its thread. Envoy says UO
	// only where too many wait.
	queueTime = time.Second
	// lingerTime is for how long a CONNECT stays behind its end of stream while nothing
	// moves: the server is not told of that end.
	lingerTime = time.Second
	// openPause is between attempts to open tunnels that fail as there is no listener,
	// doubled each time.
	openPause    = 20 * time.Millisecond
	openPauseMax = time.Second
	// readBytes is how much is read at once.
	readBytes = 64 << 10
	// maxReads is how often one tunnel is read before others are.
	maxReads = 4
	// maxWrites is how many buffers are written at once: so many that unix.Writev needs no
	// memory.
	maxWrites = 8
	// assumedHosts is how many hosts a cluster is taken to have of which nothing is known:
	// as many tunnels are kept as pools may have, over which Envoy's load balancer spreads
	// what it likes.
	assumedHosts = 8
)

// tunnels are the upstream connections of a worker.
type tunnels struct {
	w       *worker
	slots   []*tunnel // by the number that the poller knows them by
	free    []int
	busy    []*tunnel // have something to be carried out
	over    []*tunnel // have ended, which is to be told
	waiting []*tunnel // for the listener
	pause   time.Duration
	opening bool // it is tried later
	said    bool // that there is no listener
	missing missing
	read    []byte
	views   [1][]byte
	writes  [maxWrites][]byte
}

// tunnel is a connection to the loopback listener, whose stock filters take its bytes to
// a cluster and back. It implements host.Upstream.
type tunnel struct {
	w          *worker
	target     host.Target
	ev         host.UpstreamEvents
	state      state
	fd         int
	slot       int
	generation uint32
	interest   uint32 // what the poller waits for
	watched    bool

	busy    bool // in the list
	out     []*host.Buffer
	sent    int // of the first of them
	wrote   bool
	blocked bool
	heard   bool   // the server has sent something
	reply   []byte // of the listener, as far as it has come
	paused  int
	ending  bool // its end of stream is to be sent, behind out …
	ended   bool // … and was
	cut     bool // it is to be closed
	hung    bool // the other side has gone while it was not read
	reason  host.CloseReason
	settle  *time.Timer
	waited  time.Duration // for an answer to CONNECT
	moved   bool          // bytes have come, since it was looked whether it may go
}

type state uint8

const (
	waiting state = iota // for the listener
	opened               // connected to it
	ready                // to the server, as far as that can be known
	over
)

// Connect implements host.Worker.
func (w *worker) Connect(t host.Target, ev host.UpstreamEvents) host.Upstream {
	u := &tunnel{w: w, target: t, ev: ev, fd: -1, slot: -1}
	u.touch()
	return u
}

// ClusterHosts implements host.Worker. Nothing tells, but for where tunnels have led.
func (w *worker) ClusterHosts(cluster string) (h host.Hosts, known, ok bool) {
	if w.missing.has(cluster, w.now) {
		return h, false, true
	}
	n, assumed := w.h.hosts.count(cluster)
	return host.Hosts{Total: n, Healthy: n, Preferred: n, Assumed: assumed}, true, true
}

// seen notes that a tunnel to a cluster has led to a host.
func (w *worker) seen(cluster, host string) { w.h.hosts.saw(cluster, host) }

func (t *tunnel) touch() {
	if !t.busy && t.state != over {
		t.busy = true
		ts := &t.w.tunnels
		ts.busy = append(ts.busy, t)
	}
}

// carryOutTunnels does what was recorded.
func (ts *tunnels) carryOutTunnels() {
	for i := 0; i < len(ts.busy); i++ {
		t := ts.busy[i]
		t.busy = false
		t.carryOut()
	}
	clear(ts.busy)
	ts.busy = ts.busy[:0]
}

func (t *tunnel) carryOut() {
	switch {
	case t.state == over:
		t.drop()
	case t.cut:
		t.end(host.Local)
	case t.state == waiting:
		t.w.await(t)
	default:
		t.flush()
	}
}

// await opens t, now or when there is a listener.
func (ts *tunnels) await(t *tunnel) {
	for _, o := range ts.waiting {
		if o == t {
			return
		}
	}
	ts.waiting = append(ts.waiting, t)
	if !ts.opening {
		ts.openAll()
	}
}

// openAll opens what waits, until it does not go on.
func (ts *tunnels) openAll() {
	ts.opening = false
	for len(ts.waiting) > 0 {
		t := ts.waiting[0]
		if t.state == waiting {
			if err := t.open(); err != nil {
				ts.openLater(err)
				return
			}
			ts.pause, ts.said = 0, false
		}
		ts.waiting[0] = nil
		ts.waiting = ts.waiting[1:]
	}
	ts.waiting = nil
}

func (ts *tunnels) openLater(err error) {
	h := ts.w.h
	if ts.pause = min(2*ts.pause, openPauseMax); ts.pause == 0 {
		ts.pause = openPause
	}
	if ts.pause == openPauseMax && !ts.said {
		ts.said = true
		h.unlinked.Logf(h.log, host.Warn, "meltemi: loopback listener %s: %v", h.settings.Path, err)
	}
	ts.opening = true
	w := ts.w
	time.AfterFunc(ts.pause, func() { w.Post(ts.openAll) })
}

func (t *tunnel) open() error {
	fd, err := loopback.Open(t.w.h.settings.Path)
	if err != nil {
		return err
	}
	b := t.w.h.settings.greeting(t.target)
	if n, err := unix.Write(fd, b); err != nil || n < len(b) { // a new socket has room for it
		unix.Close(fd) //nolint:errcheck // it is of no use
		return errors.Join(err, errors.New("it takes no bytes"))
	}
	t.fd, t.state = fd, opened
	t.w.place(t)
	t.want(unix.EPOLLIN)
	w, after, do := t.w, settleTime, t.settled
	if w.h.settings.Connect {
		after, do = queueTime, t.unanswered
	}
	t.settle = time.AfterFunc(after, func() { w.Post(do) })
	return nil
}

// settled takes the tunnel for connected, as nothing says so.
func (t *tunnel) settled() {
	if !t.w.h.settings.Connect {
		t.connected("")
	}
}

// unanswered tells of a CONNECT that waits, and gives it up at last: what listens does not know it.
func (t *tunnel) unanswered() {
	if t.state != opened {
		return
	}
	if t.waited += queueTime; t.waited < answerTime {
		if q, ok := t.ev.(host.Queued); ok {
			t.w.guard(t, q.Queued)
		}
		t.settle.Reset(queueTime)
	} else {
		t.w.h.unlinked.Logf(t.w.h.log, host.Warn, "meltemi: loopback listener %s: no answer to CONNECT", t.w.h.settings.Path)
		t.end(host.ConnectFailed)
	}
}

func (t *tunnel) connected(host string) {
	if t.state == opened && !t.cut {
		t.settle.Stop()
		t.state = ready
		t.w.guard(t, func() { t.ev.Ready(host) })
	}
}

// answered takes what the loopback listener says to CONNECT, and returns what is behind.
func (t *tunnel) answered(b []byte) []byte {
	n := len(t.reply)
	t.reply = append(t.reply, b...)
	r, size, err := parseReply(t.reply)
	switch {
	case err != nil:
		t.w.h.unlinked.Logf(t.w.h.log, host.Warn, "meltemi: loopback listener %s: %v", t.w.h.settings.Path, err)
		t.end(host.ConnectFailed)
	case size == 0:
	case r.failed:
		if r.why == host.NoCluster {
			t.w.missing.add(t.target.Cluster, t.w.now)
		}
		t.end(r.why)
	default:
		t.reply = nil
		t.w.seen(t.target.Cluster, r.host)
		t.connected(r.host)
		return b[size-n:]
	}
	return nil
}

func (ts *tunnels) place(t *tunnel) {
	if n := len(ts.free); n > 0 {
		t.slot = ts.free[n-1]
		ts.free = ts.free[:n-1]
		t.generation = ts.slots[t.slot].generation + 1
		ts.slots[t.slot] = t
		return
	}
	t.slot = len(ts.slots)
	ts.slots = append(ts.slots, t)
}

// want has the poller wait for what is in interest; for nothing, it does not look at all.
func (t *tunnel) want(interest uint32) {
	if t.interest == interest && t.watched == (interest != 0) {
		return
	}
	t.interest = interest
	op := unix.EPOLL_CTL_MOD
	switch {
	case interest == 0:
		op = unix.EPOLL_CTL_DEL
	case !t.watched:
		op = unix.EPOLL_CTL_ADD
	}
	t.watched = interest != 0
	t.watch(op)
}

func (t *tunnel) watch(op int) {
	if err := t.w.poller.watch(op, t); err != nil {
		t.w.h.log(host.Error, "meltemi: epoll_ctl: %v", err)
		t.end(host.Reset)
	}
}

// look is what the poller is to wait for.
func (t *tunnel) look() {
	interest := uint32(0)
	if t.paused == 0 {
		interest |= unix.EPOLLIN
	}
	if t.blocked && !t.hung {
		interest |= unix.EPOLLOUT
	}
	t.want(interest)
}

// happened is told what the poller has seen.
func (ts *tunnels) happened(e unix.EpollEvent) {
	t := ts.slots[e.Fd]
	if t.generation != uint32(e.Pad) || t.state == over || t.fd < 0 {
		return
	}
	ends := e.Events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0
	if ends || e.Events&unix.EPOLLIN != 0 {
		switch {
		case t.paused == 0:
			t.receive(ends)
		case e.Events&(unix.EPOLLHUP|unix.EPOLLERR) != 0: // what it has sent is read later
			t.hung, t.blocked = true, false
			t.look()
		}
	}
	if e.Events&unix.EPOLLOUT != 0 && t.state != over {
		t.flush()
	}
}

// receive hands over what has come, of which the end may be told no more.
func (t *tunnel) receive(ends bool) {
	ts := &t.w.tunnels
	if ts.read == nil {
		ts.read = make([]byte, readBytes)
	}
	for range maxReads {
		n, err := unix.Read(t.fd, ts.read)
		switch {
		case errors.Is(err, syscall.EAGAIN):
			return
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil || n == 0:
			t.end(t.lost(err))
			return
		}
		b := ts.read[:n]
		if t.state == opened && t.w.h.settings.Connect {
			b = t.answered(b)
		}
		t.settled()
		if len(b) > 0 && t.state == ready {
			t.heard, t.moved = true, true
			ts.views[0] = b
			t.w.guard(t, func() { t.ev.Data(ts.views[:], len(b)) })
		}
		if n < readBytes && !ends || t.state == over || t.cut || t.paused > 0 {
			return
		}
	}
	t.watch(unix.EPOLL_CTL_MOD) // there may be more, of which it has told
}

// lost tells why a tunnel has ended. One over which nothing has gone may never have been
// connected, unless that was told. Of what was written nobody can tell how much has reached the server.
func (t *tunnel) lost(err error) host.CloseReason {
	switch {
	case t.ended || t.ending:
		return host.Local
	case t.state == opened:
		return host.ConnectFailed
	case !t.heard && !t.wrote && !t.w.h.settings.Connect:
		return host.ConnectFailed
	case err != nil:
		return host.Reset
	default:
		return host.Remote
	}
}

// flush writes what there is to write.
func (t *tunnel) flush() {
	for len(t.out) > 0 {
		n, err := t.writeOut()
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EAGAIN):
			t.setBlocked(true)
			return
		case err != nil:
			// What has come is read first, and tells of the end.
			t.drop()
			t.setBlocked(false)
			return
		}
		t.wrote = t.wrote || n > 0
		t.written(n)
	}
	if t.ending && !t.ended {
		t.ended = true
		// Envoy's HTTP/1 takes an end of stream for the loss of the connection, and cuts
		// off what is still under way in both directions.
		if t.w.h.settings.Connect {
			t.lingers()
		} else {
			unix.Shutdown(t.fd, unix.SHUT_WR) //nolint:errcheck // one that is broken ends by itself
		}
	}
	t.setBlocked(false)
}

// writeOut writes the first of out together.
func (t *tunnel) writeOut() (n int, err error) {
	if len(t.out) == 1 {
		return unix.Write(t.fd, t.out[0].B[t.sent:])
	}
	views := t.w.writes[:min(len(t.out), maxWrites)]
	for i := range views {
		views[i] = t.out[i].B
	}
	views[0] = views[0][t.sent:]
	n, err = unix.Writev(t.fd, views)
	clear(views)
	return n, err
}

// written takes the first n bytes from out.
func (t *tunnel) written(n int) {
	n += t.sent
	done := 0
	for _, b := range t.out {
		if n < len(b.B) {
			break
		}
		n -= len(b.B)
		b.Free()
		done++
	}
	t.sent = n
	left := copy(t.out, t.out[done:])
	clear(t.out[left:])
	t.out = t.out[:left]
}

// lingers has the tunnel closed when nothing moves any more.
func (t *tunnel) lingers() {
	w := t.w
	t.moved = false
	t.settle = time.AfterFunc(lingerTime, func() { w.Post(t.lingered) })
}

func (t *tunnel) lingered() {
	if t.state == over {
		return
	}
	if queue, err := unix.IoctlGetInt(t.fd, unix.SIOCOUTQ); t.moved || t.paused > 0 || err == nil && queue > 0 {
		t.lingers()
		return
	}
	t.end(host.Local)
}

func (t *tunnel) setBlocked(blocked bool) {
	if t.blocked == blocked {
		return
	}
	t.blocked = blocked
	t.look()
	if t.state == ready {
		t.w.guard(t, func() { t.ev.WriteBlocked(blocked) })
	}
}

// end closes the socket, of which the pipeline is told soon.
func (t *tunnel) end(r host.CloseReason) {
	if t.state == over {
		return
	}
	t.state, t.reason = over, r
	t.drop()
	if t.settle != nil {
		t.settle.Stop()
	}
	ts := &t.w.tunnels
	if t.fd >= 0 {
		unix.Close(t.fd) //nolint:errcheck // the poller forgets it, and what is unsent is lost
		t.fd = -1
		ts.free = append(ts.free, t.slot)
	}
	ts.over = append(ts.over, t)
}

// endTunnels tells of those that have ended, and reports whether there were any.
func (ts *tunnels) endTunnels() bool {
	if len(ts.over) == 0 {
		return false
	}
	for i := 0; i < len(ts.over); i++ {
		t := ts.over[i]
		if !ts.w.guard(nil, func() { t.ev.Closed(t.reason) }) {
			ts.w.guard(nil, t.ev.Aborted)
		}
	}
	clear(ts.over)
	ts.over = ts.over[:0]
	return true
}

func (t *tunnel) drop() {
	for _, b := range t.out {
		b.Free()
	}
	t.out, t.sent = nil, 0
}

// fail implements failer.
func (t *tunnel) fail() {
	t.w.guard(nil, t.ev.Aborted)
	t.Close(false)
}

// Write implements host.Upstream.
func (t *tunnel) Write(b *host.Buffer) {
	if t.state != ready || t.ending || t.cut {
		b.Free()
		return
	}
	t.out = append(t.out, b)
	if !t.blocked {
		t.touch()
	}
}

// ReadDisable implements host.Upstream.
func (t *tunnel) ReadDisable(disable bool) {
	switch {
	case t.state != ready:
	case disable:
		t.paused++
		t.look()
	default:
		if t.paused--; t.paused == 0 {
			t.look()
		}
	}
}

// Close implements host.Upstream.
func (t *tunnel) Close(graceful bool) {
	if graceful && t.state == ready {
		t.ending = true
	} else {
		t.cut = true
	}
	t.touch()
}

// closeTunnels is the end of the worker, in tests.
func (ts *tunnels) closeTunnels() {
	for _, t := range ts.slots {
		t.end(host.Local)
	}
	ts.endTunnels()
}
