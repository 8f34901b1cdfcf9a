// Package upstream gets requests to clusters and answers back: pools of
// connections, request ids, queues and deadlines. It belongs to one worker and
// knows neither clients nor filters; a request is a [Call] with its [Owner].
package upstream

import (
	"math/rand/v2"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/internal/inbox"
	"github.com/meltemi-mesh/meltemi/filter/internal/timer"
)

// Manager holds the pools of one worker.
type Manager struct {
	w      host.Worker
	timers *timer.Wheel
	shared *Shared
	rand   *rand.Rand

	// Gone is called for each pool that has been given up, as nothing used it.
	Gone func(p *Pool)

	pools   map[Key]*Pool
	ids     map[idsKey]*ids
	touched []*conn // have bytes to hand over

	partials, mirrored inbox.Budget // of answers, and of answers to copies

	resp    codecs.Metadata
	scratch []byte
}

// NewManager makes the upstream side of a worker.
func NewManager(w host.Worker, timers *timer.Wheel, shared *Shared, rng *rand.Rand) *Manager {
	m := &Manager{
		w: w, timers: timers, shared: shared, rand: rng, Gone: func(*Pool) {},
		pools: map[Key]*Pool{}, ids: map[idsKey]*ids{},
	}
	m.partials.Init(stallTime, w.Now, timers)
	m.mirrored.Init(stallTime, w.Now, timers)
	return m
}

func (m *Manager) now() time.Duration { return m.w.Now() }

// Pool returns the pool of a key, and makes it when there is none. codec,
// opts and obs are those of the configuration that asks; the newest counts.
func (m *Manager) Pool(k Key, codec codecs.Codec, opts *Options, obs Observer) *Pool {
	p := m.pools[k]
	if p == nil {
		p = newPool(m, k, codec, opts)
		m.pools[k] = p
	}
	p.Observe(obs)
	return p
}

// idsKey says which pools share request ids: those whose largest is the same, and not with
// those of copies.
type idsKey struct {
	max    uint64
	mirror bool
}

// idsOf returns the request ids of a pool. Few are its own, so that no other cluster's
// requests use them up.
func (m *Manager) idsOf(k idsKey) *ids {
	t := m.ids[k]
	if t == nil {
		t = &ids{}
		if t.init(k.max); !t.scarce() {
			m.ids[k] = t
		}
	}
	return t
}

// Flush hands over the bytes that were gathered since the last Flush: one
// write for each connection.
func (m *Manager) Flush() {
	for i := 0; i < len(m.touched); i++ {
		m.touched[i].flush()
		m.touched[i] = nil
	}
	m.touched = m.touched[:0]
}

func (m *Manager) touch(cn *conn) { m.touched = append(m.touched, cn) }

// trimScratch gives memory back that a very large frame needed.
func (m *Manager) trimScratch() {
	if cap(m.scratch) > 1<<20 {
		m.scratch = nil
	}
}
