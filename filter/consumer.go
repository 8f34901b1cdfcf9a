package filter

import (
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/filter/route"
)

// ConsumerProperty is the property that has the consumer's name, for the rules of routes,
// limits and logs. It is no client's to say once a filter has called SetConsumer.
const ConsumerProperty = "consumer"

// Consumer is somebody who calls, as filters for authentication know them, and what is
// configured for their requests. It is immutable.
type Consumer struct {
	name      string
	overrides []route.Override
}

// Name returns the consumer's name, "" of a nil Consumer.
func (c *Consumer) Name() string {
	if c == nil {
		return ""
	}
	return c.name
}

// Consumer makes a consumer, for [Message.SetConsumer], with what is said of filters of
// the chain for its requests, as typed_per_filter_config of routes says it. The error's
// paths begin with that name. Only in Parse and ParseRoute.
func (e *Env) Consumer(name string, configs map[string]*anypb.Any) (*Consumer, error) {
	var filters route.Filters
	if e.l != nil {
		filters = ownFilters{e.l}
	}
	all, errs := route.CompileOverrides(configs, filters)
	return &Consumer{name, all}, joined(errs)
}

// SetConsumer tells who calls, nil: nobody who is known. What is configured for a consumer
// counts for filters behind the one that tells, before what routes and tables say, or
// merged with it as [MergeBuilder] does. Its name becomes the property "consumer", which
// is nobody else's, and the route is looked up again. Only in OnRequest.
func (m *Message) SetConsumer(c *Consumer) {
	if m.phase != inRequest {
		return
	}
	if m.consumer = c; c == nil {
		m.req.Remove(ConsumerProperty)
	} else {
		m.req.Set(ConsumerProperty, c.name)
	}
	m.ClearRoute()
}

// Consumer returns who calls, as far as a filter has told; nil if none has.
func (m *Message) Consumer() *Consumer { return m.consumer }

// merge is what a consumer and a route say of one filter.
type merge struct{ route, consumer *route.Override }

// maxMerged bounds what a worker remembers of them. Each update of the routes brings
// others.
const maxMerged = 1024

// ofConsumer is what the message's consumer says of a filter of which its route says o.
func (m *Message) ofConsumer(k *link, o *route.Override) *route.Override {
	own := route.Find(m.consumer.overrides, k.name)
	if own == nil {
		return o
	}
	builder, merges := k.builder.(MergeBuilder)
	if !merges || o == nil || o.Config == nil || own.Config == nil {
		return own
	}
	wl, key := m.cfg, merge{o, own}
	all := wl.merged[key]
	if all == nil {
		if len(wl.merged) >= maxMerged {
			clear(wl.merged)
		}
		if wl.merged == nil {
			wl.merged = map[merge]*route.Override{}
		}
		all = &route.Override{Filter: k.name, Config: builder.Merge(o.Config, own.Config), Disabled: own.Disabled}
		wl.merged[key] = all
	}
	return all
}
