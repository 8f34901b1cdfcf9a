// Package filter is Meltemi's pipeline: it takes the bytes of client
// connections from a host, decodes them into messages, runs each through a
// chain of filters, sends it to a cluster and brings the answer back. It knows
// the host only through package host.
//
// A filter is registered by its config name from an init function:
//
//	func init() { filter.Register("example.filters.deny", filter.Factory(newDeny)) }
//
// Its [Builder] judges configurations apart from making filters of them. What a
// filter shares between configurations, counts, and does beside the traffic it has
// of its [Scope]; what is a worker's own it makes by [WorkerFilter]. Per message its
// hooks run on the worker to which the client's connection belongs, one at a time.
// filters/README.md tells the whole contract.
package filter

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// Filter is one configured filter of a chain. It is shared by all workers, and what
// belongs to one of them is made by [WorkerFilter], what belongs to a message is kept
// by [Message.SetState].
type Filter interface {
	// OnRequest sees every request and oneway message, and the frame that opens a
	// stream, on its way to a cluster, in the order of the chain. It returns
	// Continue, Pause, or what [Message.Reply], [Message.Delay] or [Message.Forward]
	// returned.
	OnRequest(m *Message) Verdict
}

// ResponseFilter is a Filter that also sees the answers to messages that its OnRequest
// has seen, in the reverse order of the chain: those of servers, not local replies. m.Request still has the
// request's properties, m.Response the answer's. It returns Continue, Pause,
// or what [Message.Reply] returned: that reply takes the place of the answer.
type ResponseFilter interface {
	Filter
	OnResponse(m *Message) Verdict
}

// LocalReplyFilter is a Filter that also sees the replies that Meltemi itself gives to
// messages that its OnRequest has seen, and the ends that it makes of open streams, in
// the reverse order of the chain. It may change e, which belongs to the message. Oneways
// and clients that have left get no reply.
type LocalReplyFilter interface {
	Filter
	OnLocalReply(m *Message, e *codecs.LocalError)
}

// StreamFilter is a Filter that also sees the frames of streams behind those that open
// them: the client's in the order of the chain, the server's in its reverse. f and
// what it refers to end with the hook, and f must not be changed. Frames that come while
// a filter holds the opening one are seen when all filters have seen that. It returns
// Continue, or what [Message.Reply] returned: then the frame is not passed on, and the
// stream ends on both sides.
type StreamFilter interface {
	Filter
	OnStreamFrame(m *Message, d codecs.Direction, f *codecs.Metadata) Verdict
}

// EndFilter is a Filter that hears of the end of each message that its
// OnRequest has seen: answered, failed, or left by its client, also while
// paused. m must not be used after it.
type EndFilter interface {
	Filter
	OnEnd(m *Message)
}

// AsideFilter is a Filter that also hears of requests which its OnRequest has seen when
// they are set aside: their client has gone on, as clients do behind a oneway that looks
// like a call. They may still be answered, and end like others, but nobody waits for that.
// OnAside decides nothing.
type AsideFilter interface {
	Filter
	OnAside(m *Message)
}

// ForgetfulFilter is a Filter whose hooks behind OnRequest do not look at the request's
// properties. For other filters with such hooks they are kept until the message ends,
// which costs time and memory for each request.
type ForgetfulFilter interface {
	Filter
	ForgetsRequest()
}

// ConnectionFilter is a Filter that hears of the client connections themselves.
type ConnectionFilter interface {
	Filter
	// OnConnect sees a connection before its first bytes. What it returns is the
	// filter's own for this connection: [Message.ConnectionState] and OnDisconnect
	// have it.
	OnConnect(c *Connection) any
	// OnDisconnect is called when the connection has ended, behind OnEnd of its
	// messages but those that are delivered all the same. It is not called where
	// OnConnect has panicked.
	OnDisconnect(c *Connection, state any)
}

// WorkerFilter is a Filter of which each worker has a part of its own.
type WorkerFilter interface {
	Filter
	// ForWorker makes a worker's part, on that worker, before its first connection: a
	// worker without any has none. Hooks are then those of the part, and only what it
	// implements counts. It is closed, if it is a [Closer], when the worker is done
	// with the configuration.
	ForWorker(w *Worker) Filter
}

// Closer is a Filter that wants to hear of its end: the configuration has been
// dropped, and no hook of it runs any more, or will. All parts of workers are closed,
// and the contexts of its lives' goroutines are done, for which it may wait. It may come
// on any thread.
type Closer interface {
	Filter
	Close()
}

// Verdict is a filter's decision.
type Verdict uint8

const (
	// Continue with the next filter.
	Continue Verdict = iota
	// Pause the message until a [Resumer] of it is called, or, of a request, the listener's
	// request_timeout has passed since its start. Its frame is kept.
	Pause
	stopped // by Reply or Forward
)

// Config is a filter's configuration, judged and frozen. Its type is the filter's own.
type Config any

// Builder makes filters of their configurations.
type Builder interface {
	// Parse judges a configuration, which is nil when there is none. It does nothing
	// else: it is called to check configurations, and for some that the host then
	// refuses. An error should be a *[fields.Error], which has the path of the field
	// within config; several are joined by errors.Join.
	Parse(config *anypb.Any, env *Env) (Config, error)
	// Build makes a filter of what Parse has returned, once for each configuration
	// that is loaded, on the host's main thread. The filter lives until [Closer].
	Build(c Config, scope *Scope) (Filter, error)
}

// RouteBuilder is a Builder whose filters can be configured by routes and tables:
// typed_per_filter_config.
type RouteBuilder interface {
	Builder
	// ParseRoute is Parse for what [Message.RouteConfig] returns.
	ParseRoute(config *anypb.Any, env *Env) (Config, error)
}

// MergeBuilder is a RouteBuilder with whose configurations of a route that of its table
// counts, too. Others have the more specific one alone.
type MergeBuilder interface {
	RouteBuilder
	// Merge makes one of both, once for each route, and changes neither.
	Merge(table, route Config) Config
}

// Factory is a Builder for filters that have no life of their own: it makes one of its
// configuration at once, also if that is only to be checked.
type Factory func(config *anypb.Any, env *Env) (Filter, error)

// Parse implements Builder.
func (f Factory) Parse(config *anypb.Any, env *Env) (Config, error) { return f(config, env) }

// Build implements Builder.
func (f Factory) Build(c Config, _ *Scope) (Filter, error) { return c.(Filter), nil }

// Env is what a Builder may want to know of the listener.
type Env struct {
	// StatPrefix of the listener's configuration.
	StatPrefix string
	// Direction is the listener's traffic_direction.
	Direction corev3.TrafficDirection
	// Codecs of the listener: one, or those that the first bytes of each
	// connection choose from.
	Codecs []codecs.Codec

	l *listener // nil: of a test
}

var registry = struct {
	sync.RWMutex
	m map[string]Builder
}{m: map[string]Builder{}}

// Register makes a filter known under its config name. It panics when the name
// is taken.
func Register(name string, b Builder) {
	registry.Lock()
	defer registry.Unlock()
	if _, dup := registry.m[name]; dup || name == "" || b == nil {
		panic(fmt.Sprintf("filter: cannot register %q", name))
	}
	registry.m[name] = b
}

func lookup(name string) (Builder, bool) {
	registry.RLock()
	defer registry.RUnlock()
	b, ok := registry.m[name]
	return b, ok
}

// Names lists the registered filters in order.
func Names() []string {
	registry.RLock()
	defer registry.RUnlock()
	return slices.Sorted(maps.Keys(registry.m))
}
