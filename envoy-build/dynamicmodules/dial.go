package dynamicmodules

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

const (
	dialPause    = 20 * time.Millisecond // after a failed attempt, doubled each time
	dialPauseMax = time.Second
	// connectTime is how long the listener's queue may be full.
	connectTime = time.Second
	// bornTime is how long a carrier may take to appear on a worker.
	bornTime = 2 * time.Second
	// maxAstray ordered carriers in a row may appear elsewhere before there are
	// pauses between them: the worker may not be taking any.
	maxAstray = 2048
	// maxUnborn bounds the carriers that were dialled and have not appeared: those
	// that any worker may have, and those that one has ordered.
	maxUnborn = 16

	tlvToken = 0xe1

	// The ports of the addresses that a carrier pretends to have been dialled
	// at. The loopback listener has original_src disabled for the first.
	portPlain  = 1
	portSource = 2
)

// order is what a worker asks for: a carrier whose server sees source.
type order struct {
	worker int
	source netip.Addr
}

// loopback dials the loopback listener, as often as the workers want carriers.
type loopback struct {
	nonce string
	path  atomic.Pointer[string]
	start sync.Once
	kick  chan struct{}
	fresh chan struct{} // another path is served
	// wanted is how many carriers each worker misses.
	wanted [maxWorkers]atomic.Int32
	unborn atomic.Int32
	// stillborn is how many of them in a row Envoy has closed before they appeared.
	stillborn atomic.Int32
	seen      int32 // of them, by the goroutine that dials

	mu     sync.Mutex
	last   uint64
	births map[uint64]*birth
	orders map[order]*ordered
	ways   [maxWorkers]way
}

// ordered counts the carriers of an order.
type ordered struct{ wanted, unborn int }

// way is how ordered carriers find a worker.
type way struct {
	unborn int
	astray int  // in a row
	held   bool // none is dialled for now
}

// birth is the dialing side of one carrier.
type birth struct {
	id   uint64
	conn net.Conn
	from order // without a source: any worker may have it
	born atomic.Bool
	gate sync.Mutex // held while nothing may be read
}

var dialer = newLoopback()

func newLoopback() *loopback {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		panic(err)
	}
	return &loopback{
		nonce: hex.EncodeToString(b), kick: make(chan struct{}, 1), fresh: make(chan struct{}, 1),
		births: map[uint64]*birth{}, orders: map[order]*ordered{},
	}
}

// serve makes path the listener's socket from now on.
func (l *loopback) serve(path string) {
	l.path.Store(&path)
	l.start.Do(func() { go l.run() })
	select {
	case l.fresh <- struct{}{}:
	default:
	}
	l.poke()
}

// expect makes path the listener's socket unless there is one: Envoy may refuse the
// listener, but whoever waits for carriers then learns from the log who holds it.
func (l *loopback) expect(path string) {
	if l.path.Load() == nil {
		l.serve(path)
	}
}

func (l *loopback) poke() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// want sets how many carriers a worker misses.
func (l *loopback) want(worker, n int) {
	l.wanted[worker].Store(int32(max(n, 0)))
	if n > 0 {
		l.poke()
	}
}

// wantFrom sets how many carriers an order misses.
func (l *loopback) wantFrom(o order, n int) {
	l.mu.Lock()
	s := l.orders[o]
	switch {
	case s != nil:
		s.wanted = n
		l.settle(o)
	case n > 0:
		l.orders[o] = &ordered{wanted: n}
	}
	l.mu.Unlock()
	if n > 0 {
		l.poke()
	}
}

// settle forgets an order that is fulfilled. l.mu is held.
func (l *loopback) settle(o order) {
	if s := l.orders[o]; s.wanted == 0 && s.unborn == 0 {
		delete(l.orders, o)
	}
}

// hold has none dialled for a while. l.mu is held.
func (l *loopback) hold(w *way) {
	if w.held {
		return
	}
	w.held = true
	time.AfterFunc(dialPauseMax, func() {
		l.mu.Lock()
		w.held = false
		l.mu.Unlock()
		l.poke()
	})
}

// busy reports whether there are orders.
func (l *loopback) busy() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.orders) > 0
}

// open returns an order that misses carriers and may be dialled for now: one at a
// time while they go astray.
func (l *loopback) open() (o order, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for o, s := range l.orders {
		w := &l.ways[o.worker]
		most := maxUnborn
		if w.held {
			most = 0
		} else if w.astray > 0 {
			most = 1
		}
		if s.unborn < s.wanted && w.unborn < most {
			return o, true
		}
	}
	return order{}, false
}

func (l *loopback) missing() int {
	n := 0
	for i := range l.wanted {
		n += int(l.wanted[i].Load())
	}
	return n
}

// run dials while carriers are missing. Which worker gets one the listener's
// balancer decides: the one that has the fewest. Those that appear elsewhere are
// parked there; those of an order stay there as ballast and are dialled again, so
// that sooner or later the worker that has ordered is the one with the fewest.
func (l *loopback) run() {
	pause := dialPause
	for range l.kick {
		dialled := false
		guarded("dialling a loopback connection", func() { dialled = l.dialAll() })
		if dialled {
			pause = dialPause
			continue
		}
		if l.rest(pause) {
			pause = min(2*pause, dialPauseMax)
		} else {
			pause = dialPause
		}
		l.poke()
	}
}

// rest waits, and reports whether the listener is still the same.
func (l *loopback) rest(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-l.fresh:
		return false
	}
}

// dialAll dials what is missing, and reports whether that went well.
func (l *loopback) dialAll() bool {
	before := l.seen
	if l.seen = l.stillborn.Load(); l.seen > before {
		if before < maxUnborn && l.seen >= maxUnborn {
			stillbirths.logf(host.Warn, "meltemi: loopback listener %s closes its connections before the filter carrier has them", *l.path.Load())
		}
		// The next would fare no better, whoever wants it.
		l.rest(min(dialPause<<min(l.seen/maxUnborn, 10), dialPauseMax))
	}
	n := min(l.missing(), maxUnborn) - int(l.unborn.Load())
	for range n {
		if !l.dialOne(order{}) {
			return false
		}
	}
	for o, ok := l.open(); ok; o, ok = l.open() {
		if !l.dialOne(o) {
			return false
		}
	}
	return true
}

func (l *loopback) dialOne(o order) bool {
	err := l.dial(o)
	if err != nil {
		logf(host.Debug, "meltemi: loopback listener %s: %v", *l.path.Load(), err)
	}
	return err == nil
}

func (l *loopback) dial(o order) error {
	path := *l.path.Load()
	c, err := connect(path)
	if err != nil {
		return err
	}
	if err := checkPeer(c); err != nil {
		c.Close()
		squatters.logf(host.Warn, "meltemi: loopback listener %s: %v", path, err)
		return err
	}
	l.mu.Lock()
	l.last++
	b := &birth{id: l.last, conn: c, from: o}
	l.births[b.id] = b
	if s := l.orders[o]; s != nil {
		s.unborn++
		l.ways[o.worker].unborn++
	} else if o.source.IsValid() { // not wanted any more
		l.mu.Unlock()
		b.born.Store(true)
		l.forget(b)
		c.Close()
		return nil
	} else {
		l.unborn.Add(1)
	}
	l.mu.Unlock()
	time.AfterFunc(bornTime, func() {
		if b.leaveWomb(l, nowhere) { // it never appeared: another process has taken it
			c.Close()
		}
	})
	if _, err := c.Write(append(prologue(l.nonce, b.id, o.source), '\n')); err != nil {
		c.Close()
		b.leaveWomb(l, nowhere)
		l.forget(b)
		return err
	}
	go guarded("holding a loopback connection", func() { b.hold(l) })
	return nil
}

// connect waits for its turn where others connect as well: a connection that does
// not block fails as long as the listener's queue is full, which they can see to.
func connect(path string) (*net.UnixConn, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close() // FileConn has its own
	timeout := syscall.NsecToTimeval(int64(connectTime))
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_SNDTIMEO, &timeout); err != nil {
		return nil, os.NewSyscallError("setsockopt", err)
	}
	for {
		err = syscall.Connect(fd, &syscall.SockaddrUnix{Name: path})
		if err == nil {
			break
		}
		if !errors.Is(err, syscall.EINTR) {
			return nil, os.NewSyscallError("connect", err)
		}
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

// checkPeer makes sure that the listener is this very process, before it is
// told the secret. listen sets these credentials, also in a new process that
// has inherited the socket.
func checkPeer(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *syscall.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if cerr != nil {
		return cerr
	}
	if int(cred.Pid) != os.Getpid() {
		return fmt.Errorf("the socket belongs to process %d, not to this one (%d)", cred.Pid, os.Getpid())
	}
	return nil
}

// prologue is a PROXY protocol header of version 2 whose one TLV is the token
// (the PROXY protocol, section 2.2). The addresses mean nothing, but for a source
// that the server shall see.
func prologue(nonce string, id uint64, source netip.Addr) []byte {
	token := nonce + ":" + strconv.FormatUint(id, 16)
	destination, port := netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(portSource)
	family := byte(0x11) // TCP over IPv4
	switch {
	case !source.IsValid():
		source, port = destination, portPlain
	case source.Is6():
		destination, family = netip.IPv6Loopback(), 0x21
	}
	addresses := append(source.AsSlice(), destination.AsSlice()...)
	addresses = binary.BigEndian.AppendUint16(addresses, port)
	addresses = binary.BigEndian.AppendUint16(addresses, port)
	b := append([]byte(nil), "\r\n\r\n\x00\r\nQUIT\n\x21"...)
	b = append(b, family)
	b = binary.BigEndian.AppendUint16(b, uint16(len(addresses)+3+len(token)))
	b = append(b, addresses...)
	b = append(b, tlvToken)
	b = binary.BigEndian.AppendUint16(b, uint16(len(token)))
	return append(b, token...)
}

// born finds the dialing side of a carrier that has appeared on a worker by its
// token, nil for a stranger. A token is good once.
func (l *loopback) born(token []byte, worker int) *birth {
	n := len(l.nonce)
	if len(token) <= n || string(token[:n]) != l.nonce || token[n] != ':' {
		return nil
	}
	id, err := strconv.ParseUint(string(token[n+1:]), 16, 64)
	if err != nil {
		return nil
	}
	l.mu.Lock()
	b := l.births[id]
	l.mu.Unlock()
	if b == nil || !b.leaveWomb(l, worker) {
		return nil
	}
	return b
}

// nowhere is for a carrier that has not appeared on a worker.
const nowhere = -1

// leaveWomb reports whether b was still awaited, and settles the order that it was
// dialled for, as it has appeared on a worker or nowhere.
func (b *birth) leaveWomb(l *loopback, worker int) bool {
	if b.born.Swap(true) {
		return false
	}
	if b.from.source.IsValid() {
		l.mu.Lock()
		s, w := l.orders[b.from], &l.ways[b.from.worker]
		s.unborn--
		w.unborn--
		switch worker {
		case nowhere: // Envoy has closed it, and may do so with the next
			l.hold(w)
		case b.from.worker:
			w.astray = 0
			s.wanted = max(0, s.wanted-1) // until the worker says it
		default:
			if w.astray++; w.astray > maxAstray {
				l.hold(w)
			}
		}
		l.settle(b.from)
		l.mu.Unlock()
	} else {
		l.unborn.Add(-1)
		if worker == nowhere {
			l.stillborn.Add(1)
		} else {
			l.stillborn.Store(0)
		}
	}
	l.poke()
	return true
}

func (l *loopback) forget(b *birth) {
	l.mu.Lock()
	delete(l.births, b.id)
	l.mu.Unlock()
}

// hold keeps the dialing side open as long as Envoy does. What comes are bytes
// that kept tcp_proxy from reading.
func (b *birth) hold(l *loopback) {
	buf := make([]byte, 1)
	for {
		b.gate.Lock()
		b.gate.Unlock() //nolint:staticcheck // waits while the gate is closed
		if _, err := b.conn.Read(buf); err != nil {
			break
		}
		if len(buf) == 1 {
			buf = make([]byte, 32<<10)
		}
	}
	b.conn.Close()
	b.leaveWomb(l, nowhere)
	l.forget(b)
}

// pause has the dialing side read no more than it is reading just now.
func (b *birth) pause() { b.gate.Lock() }

// resume ends a pause.
func (b *birth) resume() { b.gate.Unlock() }

// mark sends the byte that is read as soon as the carrier's server takes
// bytes again. The socket has room for it, and no deadline is missed if not.
func (b *birth) mark() {
	go func() { b.conn.Write([]byte{'\n'}) }() //nolint:errcheck // a broken one ends by itself
}
