// Package ratelimitquota is the filter rate_limit_quota: it limits requests as a quota
// service says, and tells it how many there are. No request waits for the service.
package ratelimitquota

import (
	"bytes"
	"context"
	"unicode/utf8"

	quotav3 "github.com/envoyproxy/go-control-plane/envoy/service/rate_limit_quota/v3"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/grpcclient"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// Name is the filter's config name.
const Name = "aeraki.meta_protocol.filters.rate_limit_quota"

// maxValue is where values of properties are cut.
const maxValue = 256

func init() { filter.Register(Name, builder{}) }

// counters are those of a listener.
type counters struct {
	allowed, denied, shadowDenied, overflow, assignments, refused, lost *filter.Counter
}

// Build implements filter.Builder.
func (builder) Build(cfg filter.Config, s *filter.Scope) (filter.Filter, error) {
	q := &quota{config: cfg.(*config)}
	for name, c := range map[string]**filter.Counter{
		"allowed": &q.allowed, "denied": &q.denied, "shadow_denied": &q.shadowDenied, "overflow": &q.overflow,
		"assignment": &q.assignments, "assignment_refused": &q.refused, "stream_failure": &q.lost,
	} {
		var err error
		if *c, err = s.Counter("rate_limit_quota." + name); err != nil {
			return nil, err
		}
	}
	connections := s.Shared("connections", func(*filter.Life) any { return new(grpcclient.Pool) }).(*grpcclient.Pool)
	q.client = s.Shared("client "+q.domain+" "+q.target.Key(), func(l *filter.Life) any {
		c := newClient(q.target, q.domain)
		c.logf = l.Logf
		l.Go(func(ctx context.Context) {
			conn, err := connections.Get(&c.target, l.Dial)
			if err != nil {
				l.Logf(host.Error, "meltemi: rate_limit_quota: %s: %v", &c.target, err)
				return
			}
			defer conn.Release()
			c.run(ctx, conn)
		})
		return c
	}).(*client)
	q.client.join(&q.counters)
	return q, nil
}

// quota is the filter of one configuration.
type quota struct {
	*config
	counters
	client *client
}

// Close implements filter.Closer.
func (q *quota) Close() { q.client.leave(&q.counters) }

// OnRequest implements filter.Filter. Workers have parts of their own.
func (q *quota) OnRequest(*filter.Message) filter.Verdict { return filter.Continue }

// ForWorker implements filter.WorkerFilter.
func (q *quota) ForWorker(*filter.Worker) filter.Filter {
	return &worker{config: q.config, counters: &q.counters, client: q.client, known: map[string]*bucket{}}
}

// worker is the part of one worker.
type worker struct {
	*config
	*counters
	client *client
	known  map[string]*bucket // by key
	key    []byte
}

// OnRequest implements filter.Filter.
func (w *worker) OnRequest(m *filter.Message) filter.Verdict {
	if w.enabled.Share < w.enabled.Of && !w.enabled.Has(m.Rand()) {
		return filter.Continue
	}
	d := w.definition(m)
	if d == nil {
		return filter.Continue
	}
	if w.allows(d, m) {
		m.Count(w.allowed, 1)
		return filter.Continue
	}
	if w.enforced.Share < w.enforced.Of && !w.enforced.Has(m.Rand()) {
		m.Count(w.shadowDenied, 1)
		return filter.Continue
	}
	m.Count(w.denied, 1)
	m.AddFlags(filter.RateLimited)
	m.SetDetails("rate_limited_by_quota")
	return m.ReplyWith(d.reply)
}

// definition is the first that takes the request. One that cannot be told does, so that
// nobody gets around a limit by what is costly to look at.
func (w *worker) definition(m *filter.Message) *definition {
	ds := w.definitions
	if own, is := m.RouteConfig().([]definition); is {
		ds = own
	}
	for i := range ds {
		d := &ds[i]
		if d.match == nil {
			return d
		}
		if holds, err := m.Matches(d.match); holds || err != nil {
			return d
		}
	}
	return nil
}

// allows asks the bucket of a request.
func (w *worker) allows(d *definition, m *filter.Message) bool {
	w.key = d.appendKey(w.key[:0], m.Request())
	b := w.known[string(w.key)]
	if b == nil || b.gone.Load() {
		if b = w.find(d, m); b == nil {
			m.Count(w.overflow, 1)
			return d.unassigned.allows(m.Now())
		}
	}
	return b.allows(m.Now())
}

// find gets a bucket of the client's.
func (w *worker) find(d *definition, m *filter.Message) *bucket {
	if len(w.known) >= 2*w.most {
		clear(w.known) // most of it is forgotten there
	}
	b := w.client.bucket(w.key, &d.settings, w.most, func() *quotav3.BucketId { return d.id(m.Request()) })
	if b != nil {
		w.known[b.key] = b
	}
	return b
}

// appendKey appends the key of a request's bucket.
func (d *definition) appendKey(key []byte, md *codecs.Metadata) []byte {
	for i := range d.parts {
		p := &d.parts[i]
		key = append(key, p.head...)
		if p.property != "" {
			key = appendPart(key, p.of(md))
		}
	}
	return key
}

// of is the value of the part's property, as text, which services want.
func (p *part) of(md *codecs.Metadata) []byte {
	v, _ := md.Get(p.property)
	if v = v[:min(len(v), maxValue)]; !utf8.Valid(v) {
		v = bytes.ToValidUTF8(v, []byte("?"))
	}
	return v
}

// id is that of a request's bucket, for the service.
func (d *definition) id(md *codecs.Metadata) *quotav3.BucketId {
	id := &quotav3.BucketId{Bucket: make(map[string]string, len(d.parts))}
	for i := range d.parts {
		p := &d.parts[i]
		if id.Bucket[p.name] = p.value; p.property != "" {
			id.Bucket[p.name] = string(p.of(md))
		}
	}
	return id
}
