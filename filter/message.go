package filter

import (
	"context"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/breaker"
	"github.com/meltemi-mesh/meltemi/filter/consistent"
	"github.com/meltemi-mesh/meltemi/filter/forward"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
	"github.com/meltemi-mesh/meltemi/filter/internal/timer"
	"github.com/meltemi-mesh/meltemi/filter/metrics"
	"github.com/meltemi-mesh/meltemi/filter/route"
	"github.com/meltemi-mesh/meltemi/filter/telemetry"
	"github.com/meltemi-mesh/meltemi/filter/tracing"
)

type phase uint8

const (
	inRequest  phase = iota // request filters run
	inUpstream              // on its way to a cluster and back
	inResponse              // response filters run
	answered                // waits for its turn on an ordered connection
)

// Message is one request, from its arrival to its end. Filters get it in their
// hooks and must not keep it; to come back to it later they take a [Resumer].
type Message struct {
	sh       *shard
	gen      uint64 // counts the hooks that this Message has been through, in all its uses
	exchange forward.Exchange

	// Memory that is used again.
	req       codecs.Metadata
	changes   *changes // nil: none
	states    []any
	values    []keyed
	frame     []byte // backs req.Raw, and resp.Raw, when held
	kept      []byte // the request's frame, while an answer to it passes filters that may repeat it
	operation []byte // what it calls, where that must be known when the request has gone
	delay     timer.Timer

	use
}

// use is what a Message knows of the one request that it is now.
type use struct {
	cfg   *workerListener
	conn  *connection // may be closed
	proto *protocol
	start time.Duration

	answeredAt    time.Duration
	endedAt       time.Duration
	answerBytes   int
	receivedBytes int64 // beyond the request itself
	sentBytes     int64
	writtenBytes  int64         // to the server of the last attempt
	streamedBytes int64         // from it, beyond the answer
	status        codecs.Status // of the answer
	code          int32
	failure       codecs.FailureClass
	details       string
	counted       *telemetry.Operation // by what it calls; nil: it is not
	trace         *tracing.Live        // nil: the listener has no tracing

	resp                *codecs.Metadata
	ownResp             *codecs.Metadata // resp when it is held
	route               *route.Route
	source, destination *Workload     // as far as a filter has told
	target              *route.Target // of the route, where it was sent; nil: a filter has chosen
	picked              *route.Target // of the route, before it is sent; nil: none yet
	forShare, forWeight uint64        // by which its route and target are chosen; see drawn
	consumer            *Consumer     // nil: not known
	noRoute             error         // why it is nil although one might match
	spent               route.Spent   // by conditions of the hook that runs now
	hash                uint64
	hashing             *consistent.Policy // what hash is for; nil: nothing
	cluster             string
	host                string // that the next attempt is to go to, "" any
	strict              bool   // and to no other
	flags               Flags
	local               codecs.LocalError
	reply               []byte // waits for its turn
	clientID            uint64
	number              uint64 // among the requests of its connection
	method              []byte // its last part: that of operation, or of a shape
	op                  uint64 // its hash
	preceded            uint64 // by so many answers to its client
	stream              *stream
	shadows             *shadow        // whose answers are compared with its own
	taken               *breaker.Taken // of circuit breakers; nil: nothing

	pos     int
	weight  int    // bytes that it counts for while it stands
	seen    int    // filters whose OnRequest was called, but for those that are
	skipped uint64 // a bit each
	delayed struct {
		gen  uint64
		then func(m *Message) Verdict
	}
	phase   phase
	oneway  bool
	aside   bool // a oneway in disguise, most likely: not in the list of its connection
	left    bool // its client has gone: not in that list either
	sent    bool // to a server, and cannot be sent again
	held    bool
	unsure  bool // whether there will be an answer
	paused  bool
	stands  bool // among the pauses of its listener
	awaits  bool // routes
	routed  bool
	replied bool
	forward bool

	succeeds   bool // as a filter has answered, which the hook that runs now has said
	made       bool // resp is that answer
	repeatable bool
	repeats    bool // which the hook that runs now has said

	next, prev *Message // in the connection's list, in the order of arrival
}

// Request returns the request's metadata. After the request hooks Raw is nil,
// and the properties are there only if the chain has a filter with further hooks that is
// no [ForgetfulFilter].
func (m *Message) Request() *codecs.Metadata { return &m.req }

// Response returns the answer's metadata, nil while there is none.
func (m *Message) Response() *codecs.Metadata { return m.resp }

// MutateRequest returns the changes that will be made to the request when it
// goes out. The router adds those of the route, which come behind them.
func (m *Message) MutateRequest() *codecs.Mutation { return &m.change().request }

// MutateResponse returns the changes that will be made to the answer when it
// goes out. Those of the route are in it when the response filters run.
func (m *Message) MutateResponse() *codecs.Mutation { return &m.change().response }

// changes are what changes in a message when it goes out, and in its answer. Most have
// none.
type changes struct{ request, response codecs.Mutation }

func (m *Message) change() *changes {
	if m.changes == nil {
		m.changes = m.sh.newChanges()
	}
	return m.changes
}

// ofRequest are the changes of the request, nil if there are none.
func (m *Message) ofRequest() *codecs.Mutation {
	if m.changes == nil {
		return nil
	}
	return &m.changes.request
}

// ofResponse are those of the answer.
func (m *Message) ofResponse() *codecs.Mutation {
	if m.changes == nil {
		return nil
	}
	return &m.changes.response
}

// Oneway reports whether nobody waits for an answer.
func (m *Message) Oneway() bool { return m.oneway }

// Route returns the first route that matches the request, nil if none does. It
// is looked up at the first call, in the table that is valid then, and stays
// the same for this message.
func (m *Message) Route() *route.Route {
	if !m.routed {
		m.routed, m.noRoute = true, nil
		if t := m.cfg.table.Load().Load(); t == nil {
			m.noRoute = errNoTable
		} else {
			if m.route, m.noRoute = t.Find(&m.req, m.origin(), (*shares)(m)); m.noRoute != nil {
				m.cfg.count(metrics.RequestUnroutable, 1)
				m.sh.warn(m.cfg, "client %s: no route: %v", m.ClientAddress(), m.noRoute)
			}
		}
	}
	return m.route
}

// drawn returns one of the message's random numbers, which is drawn when it is asked for
// first: however often the route is looked up, what it says to the filters is said by the
// same numbers as where the request goes.
func (m *Message) drawn(n *uint64) uint64 {
	for *n == 0 {
		*n = m.Rand()
	}
	return *n
}

// shares is a message as what has the random number for the shares of routes.
type shares Message

func (s *shares) Uint64() uint64 { return (*Message)(s).drawn(&s.forShare) }

// pick picks the target of a route.
func (m *Message) pick(r *route.Route) (*route.Target, error) {
	return r.Pick(m.drawn(&m.forWeight), &m.req)
}

// ClearRoute has the route looked up again when it is asked for the next time: what a
// filter has changed in the request counts then. The random numbers by which shares and
// weights choose stay the same. Only in OnRequest.
func (m *Message) ClearRoute() {
	if m.phase == inRequest {
		m.route, m.noRoute, m.routed, m.picked = nil, nil, false, nil
	}
}

// RouteConfig is what the request's consumer, the cluster that its route's weights have
// chosen, the route, or the table has for the filter that runs now, the first of them
// that has something: what its ParseRoute has returned; nil if none has.
func (m *Message) RouteConfig() Config {
	if m.pos >= len(m.cfg.chain) {
		return nil
	}
	if o := m.override(&m.cfg.chain[m.pos]); o != nil {
		return o.Config
	}
	return nil
}

// Matches reports whether the request fulfils a condition. The error says why that
// cannot be told: the request would have cost too much to look at. What a hook may ask, and
// the filter's match with it, is bounded together, as the rules of a table are.
func (m *Message) Matches(c *route.Match) (bool, error) {
	told := m.spent.All()
	holds, err := c.Matches(&m.req, m.origin(), m.sh.rand, &m.spent)
	if err != nil && !told {
		m.cfg.count(metrics.RequestUnroutable, 1)
		m.sh.warn(m.cfg, "client %s: a condition of filter %s: %v", m.ClientAddress(), m.cfg.chain[min(m.pos, len(m.cfg.chain)-1)].name, err)
	}
	return holds, err
}

// Unroutable is why Route returned nil although a route might match: the rules
// would have cost too much, or there are none yet. nil if that is not so.
func (m *Message) Unroutable() error {
	if !m.routed {
		return nil
	}
	return m.noRoute
}

// Rand returns a random number, for decisions that shall hit a share of the
// messages.
func (m *Message) Rand() uint64 { return m.sh.rand.Uint64() }

// Now is the worker's time, monotonic since an arbitrary point.
func (m *Message) Now() time.Duration { return m.sh.w.Now() }

// Start is when the request was decoded, on the clock of Now.
func (m *Message) Start() time.Duration { return m.start }

// ClientAddress is the client's address, "" when unknown or gone.
func (m *Message) ClientAddress() string {
	if m.conn.closed {
		return ""
	}
	return m.conn.d.RemoteAddress()
}

// LocalError returns the local reply that ended the message, nil if none did.
func (m *Message) LocalError() *codecs.LocalError {
	if !m.replied {
		return nil
	}
	return &m.local
}

// State returns what the filter that runs now has kept with the message, nil
// if nothing.
func (m *Message) State() any {
	if m.pos >= len(m.states) {
		return nil
	}
	return m.states[m.pos]
}

// SetState keeps v with the message for the filter that runs now.
func (m *Message) SetState(v any) {
	for len(m.states) <= m.pos {
		m.states = append(m.states, nil)
	}
	m.states[m.pos] = v
}

// Value returns what a filter has kept with the message under a key, nil if nothing. Keys
// are compared with ==; a filter's own are of a type of its own.
func (m *Message) Value(key any) any {
	for i := range m.values {
		if m.values[i].key == key {
			return m.values[i].value
		}
	}
	return nil
}

// SetValue keeps v with the message for all filters.
func (m *Message) SetValue(key, v any) {
	for i := range m.values {
		if m.values[i].key == key {
			m.values[i].value = v
			return
		}
	}
	m.values = append(m.values, keyed{key, v})
}

type keyed struct{ key, value any }

// Reply ends the message with a local reply in the client's protocol. The
// filter returns what it returns. A oneway message ends without a word.
func (m *Message) Reply(t codecs.ErrorType, text string) Verdict {
	if int(t) < len(flagOf) {
		m.flags |= flagOf[t]
	}
	return m.ReplyWith(codecs.LocalError{Type: t, Message: text})
}

// ReplyWith is Reply without the flag that its type usually has: the filter adds its
// own by AddFlags.
func (m *Message) ReplyWith(e codecs.LocalError) Verdict {
	m.local, m.replied = e, true
	return stopped
}

// SetDetails says for logs why the message is answered as it is: words joined by _,
// such as request_rate_limited. They outlive the message.
func (m *Message) SetDetails(details string) { m.details = details }

// AddFlags adds to the flags of [Facts].
func (m *Message) AddFlags(f Flags) { m.flags |= f }

// Delay pauses the message for d, give or take a few milliseconds, and then runs then,
// which may be nil, and goes on as its verdict says. A [Resumer] of the same hook may
// have it go on before: what comes first counts, so this is also the timeout of what
// the filter waits for. A request is delayed until the listener's request_timeout has
// passed since its start at most. The filter returns what it returns.
func (m *Message) Delay(d time.Duration, then func(m *Message) Verdict) Verdict {
	m.delayed.gen, m.delayed.then = m.gen, then
	now := m.sh.w.Now()
	if m.phase == inRequest {
		d = min(d, m.start+m.cfg.RequestTimeout-now)
	}
	m.sh.timers.Start(&m.delay, now+d)
	return Pause
}

func (m *Message) delayOver() {
	Resumer{m.sh, m, m.delayed.gen}.run(m.delayed.then)
}

// Go pauses the message and runs f on a goroutine of its own, where it may block. What f
// returns, which may be nil, then runs on the worker, and the message goes on as its
// verdict says; if it has ended by then, nothing does. ctx is done when the configuration
// ends. A panic of f ends the message as one of the hook would. The filter returns what
// Go returns.
func (m *Message) Go(f func(ctx context.Context) (then func(m *Message) Verdict)) Verdict {
	r, l, name := m.Resumer(), m.cfg.life, m.cfg.chain[m.pos].name
	l.Go(func(ctx context.Context) {
		var then func(m *Message) Verdict
		defer func() {
			if p := recover(); p != nil {
				l.panicked("in filter "+name, p)
				then = func(m *Message) Verdict { return m.Reply(codecs.Unspecified, guard.Text) }
			}
			r.Do(then)
		}()
		then = f(ctx)
	})
	return Pause
}

// Forward sends the request to a cluster and ends the chain. The filter
// returns what it returns.
func (m *Message) Forward(cluster string) Verdict {
	m.cluster, m.forward = cluster, true
	if m.route != nil && m.route.Hash != nil {
		m.hashed()
	}
	return stopped
}

// SetHost has the next attempt go to the host at addr, "ip:port", of its cluster: the
// first one if it is called in OnRequest, or the retry behind the attempt of whose end
// OnAttemptEnd tells. It comes before hash policies and load balancing; what retries
// then avoid does not count. Named can be hosts that other requests might get: of a
// cluster with our load balancer all that are healthy, and of others those to which a
// connection of the worker leads. If it is none of these, cannot be reached, or the
// order of the client's requests leads elsewhere, strict has the attempt fail with
// [codecs.NoHealthyUpstream], which is not retried; else it goes to any host. Both
// count as request_host_unavailable.
func (m *Message) SetHost(addr string, strict bool) { m.host, m.strict = addr, strict }

// Resumer returns a handle with which this message can be resumed, once, from
// any goroutine, when the hook that runs now has paused it.
func (m *Message) Resumer() Resumer { return Resumer{m.sh, m, m.gen} }

// Resumer resumes the pause of one hook. Calling it twice, or after the message
// has ended, or when its hook did not pause, does nothing.
type Resumer struct {
	sh  *shard
	m   *Message
	gen uint64
}

// Continue resumes the message behind the filter that paused it.
func (r Resumer) Continue() { r.sh.post(posted{r: r}) }

// Do runs f on the message's worker, if the message is still paused, and goes
// on as its verdict says.
func (r Resumer) Do(f func(m *Message) Verdict) { r.sh.post(posted{r: r, do: f}) }

func (r Resumer) run(do func(m *Message) Verdict) {
	m := r.m
	if m.gen != r.gen || !m.paused {
		return
	}
	m.paused = false
	m.sh.timers.Stop(&m.delay)
	m.gen++
	m.spent = 0
	defer m.sh.barrier(m.conn)
	m.leaves()
	v := Continue
	if do != nil {
		v = m.guard(func() Verdict { return do(m) })
	}
	if m.phase == inResponse {
		if m.after(v) {
			m.pos--
			m.runResponse()
		}
		return
	}
	m.conn.unhalt(func() {
		if m.after(v) {
			m.pos++
			m.runRequest()
		}
	})
}
