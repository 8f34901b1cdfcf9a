// Package loopback dials this process's own loopback listener. Each connection is
// the dialing side of a carrier (package carrier): no payload crosses it, but
// without it there would be none.
//
// The listener's socket may be one to which any process can connect, and whose name
// any process can take. So the dialer tells its secret only to itself, and takes for
// a carrier only what brings it back.
package loopback

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meltemi-mesh/meltemi/envoy-build/internal/process"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// MaxWorkers is how many workers there may be.
const MaxWorkers = 1024

const (
	dialPause    = 20 * time.Millisecond // after a failed attempt, doubled each time
	dialPauseMax = time.Second
	// bornTime is how long a carrier may take to appear on a worker.
	bornTime = 2 * time.Second
	// maxUnborn bounds the carriers that were dialled and have not appeared: those
	// that any worker may have, and those that one has ordered.
	maxUnborn = 16

	// nowhere is for a carrier that has not appeared on a worker.
	nowhere = -1
)

// Dialer dials the loopback listener, as often as the workers want carriers. Which
// worker gets one the listener's balancer decides: the one that has the fewest.
// Those that appear elsewhere are for the worker there; those of an order are
// dialled again, and should be kept where they are meanwhile, so that sooner or later
// the worker that has ordered is the one with the fewest.
//
// Any goroutine may use a Dialer.
type Dialer struct {
	connect func(path string) (net.Conn, error)
	log     process.Log
	panics  *process.Panics
	nonce   nonce

	path  atomic.Pointer[string]
	start sync.Once
	kick  chan struct{}
	fresh chan struct{} // another path is served
	done  chan struct{} // closed by Close

	// wanted is how many carriers each worker misses.
	wanted [MaxWorkers]atomic.Int32
	unborn atomic.Int32
	// stillborn is how many of them in a row the host has closed before they
	// appeared.
	stillborn atomic.Int32
	seen      int32 // of them, by the goroutine that dials

	mu    sync.Mutex
	last  uint64
	conns map[uint64]*Conn
	// tunnels are the clusters of those that have not appeared.
	tunnels map[uint64]string
	orders  orders

	// What other processes can cause as often as they like.
	strangers, squatters, stillbirths process.Sometimes
}

// New returns a dialer without a listener yet. It connects by connect, which is
// [Connect] but for tests, and must not return a connection to another process.
func New(connect func(path string) (net.Conn, error), log process.Log, panics *process.Panics) *Dialer {
	return &Dialer{
		connect: connect, log: log, panics: panics,
		nonce: newNonce(),
		kick:  make(chan struct{}, 1), fresh: make(chan struct{}, 1), done: make(chan struct{}),
		conns: map[uint64]*Conn{}, tunnels: map[uint64]string{},
		orders: orders{open: map[Order]*ordered{}},
	}
}

// Close ends the dialing, and leaves what was dialled. It is called once.
func (d *Dialer) Close() { close(d.done) }

// Serve makes path the listener's socket from now on.
func (d *Dialer) Serve(path string) {
	d.path.Store(&path)
	select {
	case d.fresh <- struct{}{}:
	default:
	}
	d.start.Do(func() { go d.run() })
	d.poke()
}

// Expect makes path the listener's socket unless there is one: the host may refuse
// the listener, but whoever waits for carriers then learns from the log who holds
// it.
func (d *Dialer) Expect(path string) {
	if d.path.Load() == nil {
		d.Serve(path)
	}
}

// Want sets how many carriers a worker misses.
func (d *Dialer) Want(worker, n int) {
	d.wanted[worker].Store(int32(max(n, 0)))
	if n > 0 {
		d.poke()
	}
}

// Order sets how many carriers an order misses.
func (d *Dialer) Order(o Order, n int) {
	d.mu.Lock()
	d.orders.want(o, n)
	d.mu.Unlock()
	if n > 0 {
		d.poke()
	}
}

// Ordered reports whether there are orders that are not fulfilled.
func (d *Dialer) Ordered() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.orders.open) > 0
}

// Arrived returns the dialing side of a carrier that has appeared on a worker by its
// token, nil for a stranger, who has none. A token is good once.
func (d *Dialer) Arrived(token []byte, worker int) *Conn {
	if c := d.find(token); c != nil && d.settle(c, worker) {
		return c
	}
	d.strangers.Logf(d.log, host.Warn, "meltemi: a connection to the loopback listener without this process's token was closed")
	return nil
}

func (d *Dialer) find(token []byte) *Conn {
	id, ok := d.nonce.id(token)
	if !ok {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.conns[id]
}

func (d *Dialer) poke() {
	select {
	case d.kick <- struct{}{}:
	default:
	}
}

func (d *Dialer) missing() int {
	n := 0
	for i := range d.wanted {
		n += int(d.wanted[i].Load())
	}
	return n
}

// run dials while carriers are missing.
func (d *Dialer) run() {
	pause := dialPause
	for {
		select {
		case <-d.kick:
		case <-d.done:
			return
		}
		dialled := false
		d.panics.Guard("dialling a loopback connection", func() { dialled = d.dialAll() })
		if dialled {
			pause = dialPause
			continue
		}
		if d.rest(pause) {
			pause = min(2*pause, dialPauseMax)
		} else {
			pause = dialPause
		}
		d.poke()
	}
}

// rest waits, and reports whether the listener is still the same.
func (d *Dialer) rest(t time.Duration) bool {
	select {
	case <-time.After(t):
		return true
	case <-d.fresh:
		return false
	case <-d.done:
		return true
	}
}

// dialAll dials what is missing, and reports whether that went well.
func (d *Dialer) dialAll() bool {
	select {
	case <-d.fresh: // it is the one that is dialled now
	default:
	}
	before := d.seen
	if d.seen = d.stillborn.Load(); d.seen > before {
		if before < maxUnborn && d.seen >= maxUnborn {
			d.stillbirths.Logf(d.log, host.Warn, "meltemi: loopback listener %s closes its connections before the filter carrier has them", *d.path.Load())
		}
		// The next would fare no better, whoever wants it.
		d.rest(min(dialPause<<min(d.seen/maxUnborn, 10), dialPauseMax))
	}
	n := min(d.missing(), maxUnborn) - int(d.unborn.Load())
	for range n {
		if !d.dialOne(Order{}) {
			return false
		}
	}
	for o, ok := d.nextOrder(); ok; o, ok = d.nextOrder() {
		if !d.dialOne(o) {
			return false
		}
	}
	return true
}

func (d *Dialer) nextOrder() (Order, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.orders.next()
}

func (d *Dialer) dialOne(o Order) bool {
	path := *d.path.Load()
	err := d.dial(path, o)
	if errors.Is(err, errSquatted) {
		d.squatters.Logf(d.log, host.Warn, "meltemi: loopback listener %s: %v", path, err)
	}
	if err != nil {
		d.log(host.Debug, "meltemi: loopback listener %s: %v", path, err)
	}
	return err == nil
}

func (d *Dialer) dial(path string, o Order) error {
	conn, err := d.connect(path)
	if err != nil {
		return err
	}
	c := d.await(conn, o)
	if c == nil { // not wanted any more
		conn.Close()
		return nil
	}
	time.AfterFunc(bornTime, func() {
		if d.settle(c, nowhere) { // it never appeared: another process has taken it
			conn.Close()
		}
	})
	if _, err := conn.Write(append(prologue(d.nonce.token(c.id), o.Source), mark)); err != nil {
		conn.Close()
		d.settle(c, nowhere)
		d.forget(c)
		return err
	}
	go d.panics.Guard("holding a loopback connection", func() { c.hold(d) })
	return nil
}

// await makes the dialing side of a carrier that is awaited from now on, nil if
// the order for it has been withdrawn.
func (d *Dialer) await(conn net.Conn, o Order) *Conn {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !o.Source.IsValid() {
		d.unborn.Add(1)
	} else if !d.orders.dialled(o) {
		return nil
	}
	d.last++
	c := &Conn{id: d.last, conn: conn, from: o}
	d.conns[c.id] = c
	return c
}

// settle reports whether c was still awaited: now it has appeared on a worker, or
// nowhere.
func (d *Dialer) settle(c *Conn, worker int) bool {
	if c.born.Swap(true) {
		return false
	}
	switch {
	case c.from.Source.IsValid():
		d.mu.Lock()
		if d.orders.settle(c.from, worker) {
			d.hold(&d.orders.ways[c.from.Worker])
		}
		d.mu.Unlock()
	case worker == nowhere:
		d.unborn.Add(-1)
		d.stillborn.Add(1)
	default:
		d.unborn.Add(-1)
		d.stillborn.Store(0)
	}
	d.poke()
	return true
}

// hold has none dialled for the orders of w's worker for a while. d.mu is held.
func (d *Dialer) hold(w *way) {
	if w.held {
		return
	}
	w.held = true
	time.AfterFunc(holdTime, func() {
		d.mu.Lock()
		w.held = false
		d.mu.Unlock()
		d.poke()
	})
}

func (d *Dialer) forget(c *Conn) {
	d.mu.Lock()
	delete(d.conns, c.id)
	d.mu.Unlock()
}
