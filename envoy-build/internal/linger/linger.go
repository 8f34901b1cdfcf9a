// Package linger ends closed clients that read nothing of what is left for them.
package linger

import (
	"math"
	"time"
)

const (
	// lingerTime is how long a closed client may read nothing of what is left, as
	// far as the host can see: the kernel takes more when a third of its buffer is
	// free.
	lingerTime = 30 * time.Second
	// lingerTick is how often that is looked at.
	lingerTick = 5 * time.Second
)

// List is the closed clients of a worker that have not read everything yet. The host
// waits for ever for one that does not read. It is used on that worker only.
type List struct {
	// Now is the worker's clock.
	Now func() time.Duration
	// Post has a function run on the worker, soon. It is called from any goroutine.
	Post func(func())

	places []*Place
	swept  bool // now and then
}

// Client is a client connection, as the host has it.
type Client interface {
	// Unsent returns how many bytes wait to be sent to it, or most if they are not
	// fewer.
	Unsent(most uint32) uint32
	// Cut closes the connection, whatever is left.
	Cut()
}

// Place is a client's place in the list.
type Place struct {
	client   Client
	at       int           // in the list, from 1; 0: not there
	unsent   uint32        // bytes that it was seen to leave unread, at most
	progress time.Duration // when they became fewer
}

// Add puts c, which is closed, into the list, and returns its place. That is p if it has one.
func (l *List) Add(c Client, p *Place) *Place {
	if p != nil && p.at > 0 {
		return p
	}
	p = &Place{client: c, at: len(l.places) + 1, unsent: math.MaxInt32, progress: l.Now()}
	l.places = append(l.places, p)
	if !l.swept {
		l.swept = true
		l.sweepLater()
	}
	return p
}

// Remove takes away the place of a client that has gone, nil if it has none.
func (l *List) Remove(p *Place) {
	if p == nil || p.at == 0 {
		return
	}
	n := len(l.places) - 1
	l.places[p.at-1], l.places[n].at = l.places[n], p.at
	l.places[n] = nil
	l.places = l.places[:n]
	p.at = 0
}

func (l *List) sweepLater() {
	time.AfterFunc(lingerTick, func() { l.Post(l.sweep) })
}

// sweep cuts those that have read nothing for too long.
func (l *List) sweep() {
	for _, p := range l.places {
		if left := p.client.Unsent(p.unsent); left < p.unsent {
			p.unsent, p.progress = left, l.Now()
		} else if l.Now()-p.progress >= lingerTime {
			p.client.Cut()
		}
	}
	if l.swept = len(l.places) > 0; l.swept {
		l.sweepLater()
	} else {
		l.places = nil
	}
}
