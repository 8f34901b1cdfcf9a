package golang

import (
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

// batch is how many tunnels are looked at under one lock.
const batch = 128

// poller waits for a worker's tunnels, and for whoever calls the worker. It is one
// goroutine, and one thread, however many tunnels there are.
type poller struct {
	w    *worker
	epfd int
	wake int // an eventfd
	done chan struct{}
	stop atomic.Bool

	poking sync.RWMutex
	closed bool
}

// wakeSlot is the slot of the eventfd.
const wakeSlot = -1

func newPoller(w *worker) *poller {
	p := &poller{w: w, done: make(chan struct{})}
	var err error
	if p.epfd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		panic(err) // without descriptors there is nothing to be done
	}
	if p.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		panic(err)
	}
	if err := unix.EpollCtl(p.epfd, unix.EPOLL_CTL_ADD, p.wake, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: wakeSlot}); err != nil {
		panic(err)
	}
	go p.run()
	return p
}

// poke has the poller look after its worker. Any goroutine may call it.
func (p *poller) poke() {
	p.poking.RLock()
	defer p.poking.RUnlock()
	if p.closed { // the descriptor may be another's
		return
	}
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	unix.Write(p.wake, one[:]) //nolint:errcheck // it can only be full, which will do
}

func (p *poller) run() {
	defer close(p.done)
	events := make([]unix.EpollEvent, batch)
	for {
		n, err := unix.EpollWait(p.epfd, events, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			p.w.h.log(host.Error, "meltemi: epoll_wait: %v", err)
			return
		}
		if p.stop.Load() {
			return
		}
		p.seen(events[:max(n, 0)])
	}
}

// seen has events carried out, here or by whoever is at work: to wait for that one would
// cost both more than its work, as Go would have another thread go on with this.
func (p *poller) seen(events []unix.EpollEvent) {
	w := p.w
	free := w.enter()
	for _, e := range events {
		switch {
		case e.Fd == wakeSlot:
			var count [8]byte
			unix.Read(p.wake, count[:]) //nolint:errcheck // it is empty then
			if !free {
				w.put(item{kind: nothing})
			}
		case free:
			w.happened(e)
		default:
			w.put(item{kind: polled, event: e})
		}
	}
	if free {
		w.leave()
	}
}

// watch has the poller tell of events on a socket from now on, of others no more: once,
// when they come or are there already, as others may carry them out while it waits again.
func (p *poller) watch(op int, t *tunnel) error {
	return unix.EpollCtl(p.epfd, op, t.fd, &unix.EpollEvent{Events: t.interest | unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(t.slot), Pad: int32(t.generation)})
}

func (p *poller) close() {
	p.stop.Store(true)
	p.poke()
	<-p.done
	p.w.lock.Lock()
	p.w.closeTunnels()
	p.w.lock.Unlock()
	p.poking.Lock()
	defer p.poking.Unlock()
	p.closed = true
	unix.Close(p.epfd) //nolint:errcheck // nothing is written
	unix.Close(p.wake) //nolint:errcheck // the same
}
