// Package filter is Meltemi's pipeline: it takes the bytes of client
// connections from a host, decodes them into messages, runs each through a
// chain of filters, sends it to a cluster and brings the answer back. It knows
// the host only through package host.
//
// A filter is registered by its config name from an init function:
//
//	func init() { filter.Register("example.filters.deny", newDeny) }
//
// Its config is parsed once, at load. Per message its hooks run on the worker
// to which the client's connection belongs, one at a time.
package filter

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// Filter is one configured filter of a chain. It is shared by all workers and
// must not change once made; what belongs to a message is kept in
// [Message.SetState].
type Filter interface {
	// OnRequest sees every request and oneway message on its way to a cluster,
	// in the order of the chain. It returns Continue, Pause, or what
	// [Message.Reply] or [Message.Forward] returned.
	OnRequest(m *Message) Verdict
}

// ResponseFilter is a Filter that also sees answers, in the reverse order of
// the chain: those of servers, not local replies. m.Request still has the
// request's properties, m.Response the answer's. It returns Continue, Pause,
// or what [Message.Reply] returned: that reply takes the place of the answer.
type ResponseFilter interface {
	Filter
	OnResponse(m *Message) Verdict
}

// EndFilter is a Filter that hears of the end of each message that its
// OnRequest has seen: answered, failed, or left by its client, also while
// paused. m must not be used after it.
type EndFilter interface {
	Filter
	OnEnd(m *Message)
}

// Verdict is a filter's decision.
type Verdict uint8

const (
	// Continue with the next filter.
	Continue Verdict = iota
	// Pause the message until a [Resumer] of it is called. Its frame is kept.
	Pause
	stopped // by Reply or Forward
)

// Factory makes a filter from its config, at load. config is nil when there is
// none. It is called once per configuration; an error refuses the
// configuration and should name the field.
type Factory func(config *anypb.Any, ctx FactoryContext) (Filter, error)

// FactoryContext is what a Factory may want to know of its listener.
type FactoryContext struct {
	// StatPrefix of the listener's configuration.
	StatPrefix string
	// Codecs of the listener: one, or those that the first bytes of each
	// connection choose from.
	Codecs []codecs.Codec
}

var registry = struct {
	sync.RWMutex
	m map[string]Factory
}{m: map[string]Factory{}}

// Register makes a filter known under its config name. It panics when the name
// is taken.
func Register(name string, f Factory) {
	registry.Lock()
	defer registry.Unlock()
	if _, dup := registry.m[name]; dup || name == "" || f == nil {
		panic(fmt.Sprintf("filter: cannot register %q", name))
	}
	registry.m[name] = f
}

func lookup(name string) (Factory, bool) {
	registry.RLock()
	defer registry.RUnlock()
	f, ok := registry.m[name]
	return f, ok
}

// Names lists the registered filters in order.
func Names() []string {
	registry.RLock()
	defer registry.RUnlock()
	return slices.Sorted(maps.Keys(registry.m))
}
