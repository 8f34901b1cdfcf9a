package tracing

import (
	"math/rand/v2"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
	"unsafe"

	"go.opentelemetry.io/otel/attribute"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/facts"
)

// maxNotes are the attributes, and the events, that filters and attempts may add to a
// span. Further ones are left out.
const maxNotes = 64

// maxState is what W3C wants of a tracestate to be kept, in bytes. A longer one is told to
// the next hop, but not of the span: cut it would say something else.
const maxState = 512

// Worker has what the spans of a worker have in common.
type Worker struct {
	now      func() time.Duration
	rand     *rand.Rand
	prefixed map[string]*[keys]string
	free     []*Live
}

// maxFree bounds what is kept for the next requests.
const maxFree = 4096

// NewWorker returns that of a worker with that clock.
func NewWorker(now func() time.Duration, rng *rand.Rand) *Worker {
	return &Worker{now: now, rand: rng, prefixed: map[string]*[keys]string{}}
}

// The attributes that go from hop to hop.
const (
	keyRequestID = iota
	keyClientTraceID
	keyForceTrace
	keyTraceparent
	keyTracestate
	keyB3
	keyB3TraceID
	keyB3SpanID
	keyB3ParentSpanID
	keyB3Sampled
	keyB3Flags
	keys
)

var names = [keys]string{
	codecs.RequestID, "x-client-trace-id", "x-envoy-force-trace", "traceparent", "tracestate", "b3",
	"x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags",
}

// Live is a request on its way, as far as its trace goes. All of its methods but Begin and
// those of a [Worker] may be called of nil, and of one that is not sampled: they do
// nothing then. What is valid ends with the request.
type Live struct {
	w *Worker
	// What is written to the request.
	id        requestID
	w3c       [w3cLength]byte
	b3        [32 + 1 + 16 + 1 + 1 + 1 + 16]byte
	ids       [32 + 16 + 16]byte // of B3's several attributes
	liveState                    // of the one request that it is now
}

type liveState struct {
	facts.Trace
	c        *Config
	parent   [8]byte
	upstream [8]byte // the span that the server is told of
	shared   bool
	*recording
}

// recording is what is kept of a request that is sampled.
type recording struct {
	name, state              string
	requestID, clientTraceID string
	remote, local            string // addresses of the client's connection
	tags                     []attribute.KeyValue
	read                     bool // the configuration's tags
	events                   []note
}

// note is an event on the worker's clock.
type note struct {
	at time.Duration
	Event
}

// Carrier is how a request carries what goes from hop to hop.
type Carrier struct {
	// Carries says that it does, Prefix what stands before the names.
	Carries bool
	Prefix  string
	// Removes says that the codec can remove attributes.
	Removes bool
	// Own is what it says in places of its codec's own, which HasOwn says it has.
	Own    codecs.Trace
	HasOwn bool
}

// asked is what a request says, in views of it.
type asked struct {
	values [keys][]byte
	// odd are those, a bit each, that it says under a name that is not quite the one under
	// which they are written.
	odd uint16
}

// find gathers what md says, and reports whether that is anything.
func (w *Worker) find(a *asked, md *codecs.Metadata, written *[keys]string) (some bool) {
	prefix := len(written[0]) - len(names[0])
	for _, p := range md.Properties() {
		name := p.Name
		if prefix > 0 && len(name) > prefix && codecs.EqualFold(name[:prefix], written[0][:prefix]) {
			name = name[prefix:]
		}
		switch len(name) {
		case 2, 10, 11, 12, 17, 19:
		default:
			continue
		}
		for k := range names {
			if len(name) != len(names[k]) || !codecs.EqualFold(name, names[k]) {
				continue
			}
			exact := string(p.Name) == written[k]
			if !exact {
				a.odd |= 1 << k
			}
			if exact || a.values[k] == nil {
				a.values[k] = p.Value
			}
			some = true
		}
	}
	return some
}

// names returns under which names the attributes are written.
func (w *Worker) names(prefix string) *[keys]string {
	if prefix == "" {
		return &names
	}
	n := w.prefixed[prefix]
	if n == nil {
		n = new([keys]string)
		for k := range names {
			n[k] = prefix + names[k]
		}
		w.prefixed[prefix] = n
	}
	return n
}

// Begin decides about the request md, which has just come, and has mut tell the next hop.
// Values in mut are l's.
func (w *Worker) Begin(c *Config, md *codecs.Metadata, carrier Carrier, mut *codecs.Mutation) *Live {
	var l *Live
	if n := len(w.free); n > 0 {
		l = w.free[n-1]
		w.free = w.free[:n-1]
	} else {
		l = &Live{w: w}
	}
	l.c = c
	written := w.names(carrier.Prefix)
	var a asked
	var from origin
	if w.find(&a, md, written) || carrier.HasOwn {
		from = c.Formats.read(&a, carrier.Own)
	}
	id := a.values[keyRequestID]
	made := len(id) == 0
	said, known := untraced, true
	var n uint64
	if made {
		n = l.id.generate(w.rand)
	} else if n, known = number(id); known {
		copy(l.id[:], id)
		said = l.id.reason()
	} else {
		n = w.rand.Uint64() % shares
	}
	r := untraced
	switch {
	case from.says && (made || !known): // there is nothing else by which hops could agree
		r = c.decide(said, n, &a, &from.sampled, w.rand)
	case known: // what is no UUID Envoy does not trace
		r = c.decide(said, n, &a, nil, w.rand)
	}
	l.Sampled = r != untraced
	l.place(&from)
	if known && (made || r != said) {
		l.id.pack(r)
		// The rest of the chain, and logs, see what the server will.
		id = l.id[:]
		if made && md.Shape() != nil {
			md.Defer(l)
		} else {
			l.Load(md)
		}
		if carrier.Carries {
			set(mut, carrier.Removes && a.odd&(1<<keyRequestID) != 0, keyRequestID, written, l.id[:])
		}
	}
	if l.Sampled {
		l.record(md, &a, &from, id)
	}
	if carrier.Carries {
		l.write(&a, &from, &carrier, written, mut)
	}
	return l
}

// Load implements codecs.Loader: it sets the request's id.
func (l *Live) Load(md *codecs.Metadata) { md.SetBytes(codecs.RequestID, l.id[:]) }

// Free takes l back, as the request has ended.
func (w *Worker) Free(l *Live) {
	l.liveState = liveState{}
	if len(w.free) < maxFree {
		w.free = append(w.free, l)
	}
}

// origin is where a request stands, and where that was read.
type origin struct {
	context
	format format
}

type format uint8

const (
	nowhere format = iota
	w3c
	b3
	own
)

// read reads where the request stands. What cannot be read is nothing.
func (f *Formats) read(a *asked, mine codecs.Trace) (o origin) {
	readW3C := func() bool {
		b := a.values[keyTraceparent]
		if b == nil {
			return false
		}
		c, ok := parseW3C(b)
		if ok {
			o = origin{c, w3c}
		}
		return ok
	}
	if (!f.B3 && readW3C()) || a.readB3(&o) || (f.B3 && readW3C()) {
		return o
	}
	if mine.ID != 0 && mine.Span != 0 {
		says := o // B3 may say no more than whether it is sampled
		o = origin{format: own}
		o.sampled, o.says = says.sampled, says.says
		put64(o.trace[8:], mine.ID)
		put64(o.span[:], mine.Span)
		put64(o.parent[:], mine.Parent)
	}
	return o
}

// readB3 reports whether B3 says where the request stands. If it says no more than
// whether it is sampled that is in o all the same.
func (a *asked) readB3(o *origin) bool {
	if b := a.values[keyB3]; b != nil {
		if c, ok := parseB3(b); ok {
			o.context = c
			if c.placed() {
				o.format = b3
			}
			return c.placed()
		}
	}
	var c context
	v := &a.values
	switch {
	case string(v[keyB3Flags]) == "1":
		c.sampled, c.says, c.debug = true, true, true
	case v[keyB3Sampled] != nil:
		c.state(v[keyB3Sampled])
	}
	if v[keyB3TraceID] != nil && c.id(v[keyB3TraceID]) && unhex(c.span[:], v[keyB3SpanID]) {
		unhex(c.parent[:], v[keyB3ParentSpanID])
		o.context, o.format = c, b3
		return true
	}
	if c.says {
		o.context = context{sampled: c.sampled, says: true, debug: c.debug}
	}
	return false
}

// place says where the request's own span stands.
func (l *Live) place(from *origin) {
	f := &l.c.Formats
	if from.format == nowhere {
		if f.TraceID128 {
			put64(l.ID[:8], l.w.random())
		}
		put64(l.ID[8:], l.w.random())
	} else {
		l.ID, l.parent = from.trace, from.span
	}
	if f.SharedSpan && l.c.Kind == Server && from.format == b3 {
		l.Span, l.parent, l.shared = from.span, from.parent, true
	} else {
		put64(l.Span[:], l.w.random())
	}
	l.upstream = l.Span
	if l.Sampled && l.c.SpawnUpstream {
		put64(l.upstream[:], l.w.random())
	}
}

// random is a number that is not 0.
func (w *Worker) random() uint64 {
	for {
		if v := w.rand.Uint64(); v != 0 {
			return v
		}
	}
}

func (l *Live) record(md *codecs.Metadata, a *asked, from *origin, id []byte) {
	r := &recording{name: l.c.text(md.AppendOperationUpTo(nil, l.c.maxLength)), requestID: l.c.text(id), clientTraceID: l.c.text(a.values[keyClientTraceID])}
	if r.name == "" {
		r.name = "_OTHER"
	}
	if state := a.values[keyTracestate]; from.format == w3c && len(state) <= maxState && utf8.Valid(state) {
		r.state = string(state)
	}
	l.recording = r
}

// write has the request say where the next hop stands.
func (l *Live) write(a *asked, from *origin, carrier *Carrier, written *[keys]string, mut *codecs.Mutation) {
	f := &l.c.Formats
	v := &a.values
	put := func(k int, b []byte) { set(mut, carrier.Removes && a.odd&(1<<k) != 0, k, written, b) }
	if f.W3C || v[keyTraceparent] != nil {
		writeW3C(&l.w3c, &l.ID, &l.upstream, l.Sampled)
		put(keyTraceparent, l.w3c[:])
	}
	if v[keyTracestate] != nil && from.format != w3c && carrier.Removes {
		remove(mut, a.odd&(1<<keyTracestate) != 0, keyTracestate, written)
	}
	parent := l.parent
	if l.upstream != l.Span {
		parent = l.Span
	}
	if v[keyB3] != nil {
		put(keyB3, l.appendB3(parent, from.debug))
	}
	if f.B3 || v[keyB3TraceID] != nil || v[keyB3Sampled] != nil {
		b := facts.AppendHex(l.ids[:0], b3ID(&l.ID))
		id := len(b)
		b = facts.AppendHex(facts.AppendHex(b, l.upstream[:]), parent[:])
		put(keyB3TraceID, b[:id])
		put(keyB3SpanID, b[id:id+16])
		switch {
		case parent != [8]byte{}:
			put(keyB3ParentSpanID, b[id+16:])
		case v[keyB3ParentSpanID] != nil && carrier.Removes: // of another trace, or none at all
			remove(mut, a.odd&(1<<keyB3ParentSpanID) != 0, keyB3ParentSpanID, written)
		}
		put(keyB3Sampled, sampledText[btoi(l.Sampled)])
	}
	if carrier.HasOwn && l.Sampled {
		// Only then: servers trace what has an id.
		mut.Trace = codecs.Trace{ID: get64(l.ID[8:]), Span: get64(l.upstream[:]), Parent: get64(parent[:])}
	}
}

func (l *Live) appendB3(parent [8]byte, debug bool) []byte {
	b := append(facts.AppendHex(l.b3[:0], b3ID(&l.ID)), '-')
	b = append(facts.AppendHex(b, l.upstream[:]), '-')
	switch {
	case !l.Sampled:
		b = append(b, '0')
	case debug:
		b = append(b, 'd')
	default:
		b = append(b, '1')
	}
	if parent != [8]byte{} {
		b = facts.AppendHex(append(b, '-'), parent[:])
	}
	return b
}

var sampledText = [...][]byte{[]byte("0"), []byte("1")}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// set has mut set an attribute to a value that lives as long as the request; odd says that
// the request has it under a name that would stay beside it.
func set(mut *codecs.Mutation, odd bool, k int, written *[keys]string, value []byte) {
	if odd {
		remove(mut, odd, k, written)
	}
	mut.Set(written[k], unsafe.String(unsafe.SliceData(value), len(value)))
}

func remove(mut *codecs.Mutation, odd bool, k int, written *[keys]string) {
	mut.Remove(written[k])
	if odd && written[k] != names[k] {
		mut.Remove(names[k])
	}
}

// text is what a peer has chosen, as attributes may have it.
func (c *Config) text(b []byte) string {
	return strings.ToValidUTF8(string(b[:min(len(b), c.maxLength)]), "\uFFFD")
}

// Recorded reports whether the request is sampled: what is added to its span is told.
func (l *Live) Recorded() bool { return l != nil && l.recording != nil }

// Between notes the addresses of the client's connection.
func (l *Live) Between(remote, local string) {
	if l.Recorded() {
		l.remote, l.local = remote, local
	}
}

// SetTag gives the span an attribute, in place of one of that name.
func (l *Live) SetTag(key, value string) {
	if !l.Recorded() || key == "" {
		return
	}
	kv := attribute.String(key, l.c.text([]byte(value)))
	if i := slices.IndexFunc(l.tags, func(o attribute.KeyValue) bool { return o.Key == kv.Key }); i >= 0 {
		l.tags[i] = kv
	} else if len(l.tags) < maxNotes {
		l.tags = append(l.tags, kv)
	}
}

// AddEvent adds an event to the span, which happens now.
func (l *Live) AddEvent(name string, attributes ...attribute.KeyValue) {
	if l.Recorded() && len(l.events) < maxNotes {
		l.events = append(l.events, note{l.w.now(), Event{Name: name, Attributes: attributes}})
	}
}

// Read notes what the configuration's tags want of the request, whose properties are
// there. Only the first time counts.
func (l *Live) Read(md *codecs.Metadata) {
	if !l.Recorded() || l.read {
		return
	}
	l.read = true
	for _, t := range l.c.tags {
		v, has := md.Get(t.property)
		switch {
		case has:
			l.tags = append(l.tags, t.key.String(l.c.text(v)))
		case t.without != "":
			l.tags = append(l.tags, t.key.String(t.without))
		}
	}
}
