package ratelimitquota

import (
	"sync/atomic"
	"time"

	quotav3 "github.com/envoyproxy/go-control-plane/envoy/service/rate_limit_quota/v3"
)

// settings are what a configuration says of a bucket.
type settings struct {
	// key is the same for the same settings.
	key string
	// interval of reports.
	interval time.Duration
	// unassigned holds until there is an assignment.
	unassigned *rule
	// expires says that an assignment that has expired is followed by something, for
	// grace: by expired, or by itself if that is nil.
	expires bool
	grace   time.Duration
	expired *rule
}

// bucket is the requests of one id. Workers count them, the client changes the rest.
type bucket struct {
	id      *quotav3.BucketId
	key     string
	rule    atomic.Pointer[rule]
	gone    atomic.Bool // forgotten: requests are another bucket's
	allowed atomic.Uint64
	denied  atomic.Uint64

	// Of the client.
	settings *settings
	state    state
	until    time.Time // when the state ends, zero: by itself never
	reported time.Time // when the service was told last
	due      time.Time // when it is told next
	used     time.Time // when there was a request
}

type state uint8

const (
	unassigned state = iota
	active
	expired
)

// allows decides on a request, and counts it.
func (b *bucket) allows(now time.Duration) bool {
	if b.rule.Load().allows(now) {
		b.allowed.Add(1)
		return true
	}
	b.denied.Add(1)
	return false
}

// assign follows the service.
func (b *bucket) assign(r *rule, ttl time.Duration, endless bool, now time.Time) {
	if b.state != active || !b.rule.Load().same(r.strategy) {
		b.rule.Store(r)
		b.due = now
	}
	b.state, b.until = active, time.Time{}
	if !endless {
		b.until = now.Add(ttl)
	}
}

// pass ends states that are over. It reports whether the bucket is forgotten.
func (b *bucket) pass(now time.Time) (forgotten bool) {
	for !b.until.IsZero() && !b.until.After(now) {
		if b.state != active || !b.settings.expires {
			return true
		}
		b.state, b.until = expired, b.until.Add(b.settings.grace)
		if b.settings.expired != nil {
			b.rule.Store(b.settings.expired.fresh())
		}
	}
	return now.Sub(b.used) > idleTime && now.Sub(b.used)-idleTime > b.rule.Load().memory()
}

// configure has the bucket follow s from now on.
func (b *bucket) configure(s *settings) {
	if b.settings.key == s.key {
		return
	}
	b.settings = s
	switch {
	case b.state == unassigned:
		b.rule.Store(s.unassigned.fresh())
	case b.state == expired && s.expired != nil:
		b.rule.Store(s.expired.fresh())
	}
}
