package codecs

import (
	"encoding/binary"
	"math"
	"slices"
	"strings"
	"time"
)

// MessageType is what a message is to the pipeline. The first nine numbers are
// those of the C++ MetaProtocol Proxy.
type MessageType uint8

const (
	// Request wants exactly one answer.
	Request MessageType = iota
	// Response answers a Request.
	Response
	// Oneway is a request that gets no answer.
	Oneway
	// StreamInit opens a stream; routed like a Request.
	StreamInit
	// StreamData belongs to an open stream.
	StreamData
	// StreamCloseOneWay half-closes a stream.
	StreamCloseOneWay
	// StreamCloseTwoWay ends a stream.
	StreamCloseTwoWay
	// Heartbeat is answered, or swallowed, on the connection on which it came: by
	// the proxy, whatever it asks (PING, version). Where answers have no ids that
	// happens in its turn.
	Heartbeat
	// Error is a Response that carries a failure of the protocol, not of the
	// application.
	Error
	// GoAway is sent by a peer that is leaving: it gets no new request from
	// then on (Dubbo's read-only event).
	GoAway
	// Ignored is a well-formed message that asks for nothing.
	Ignored
	// Goodbye is a client's last message (memcached's quit): its connection is
	// closed behind the last answer. If it ExpectsReply the codec's Heartbeater
	// gives that (Redis's QUIT).
	Goodbye
	// Quiet is a Request to which the server answers in some cases only. Answers
	// have no ids then, and the codec's [AnswerDecoder] tells by what comes next
	// that there was none (see [ErrUnanswered]). Where the wire can ask for an
	// answer in all cases, Encode should do so, and the answer be Silent: what
	// comes next may come late, or never.
	Quiet
	// Muted is a Oneway that the server answers all the same. The answer is waited
	// for upstream, so that it is nobody else's, and dropped.
	Muted
	// Push is a server's message that answers no request (that of a subscription).
	// It goes to the client that its connection is leased to (see [Lease]).
	Push
)

var messageTypeNames = [...]string{
	"request", "response", "oneway", "stream_init", "stream_data",
	"stream_close_one_way", "stream_close_two_way", "heartbeat", "error", "go_away", "ignored", "goodbye",
	"quiet", "muted", "push",
}

func (t MessageType) String() string {
	if int(t) < len(messageTypeNames) {
		return messageTypeNames[t]
	}
	return "unknown"
}

// Lease is what a request does with an upstream connection that belongs to its
// client for a while, as the server keeps state by it: a transaction, a command
// that blocks, a subscription. Only looked at where answers come in order.
type Lease uint8

const (
	// NotLeased: any connection will do.
	NotLeased Lease = iota
	// LeaseHeld: the request goes over the client's own connection to its cluster,
	// one is taken if it has none, and it stays the client's behind the answer. If a
	// server gives none, or the connection is lost, the client's connection is
	// closed: what it sends next would be served outside of what it has begun.
	LeaseHeld
	// LeaseEnds: as LeaseHeld, but the connection is given back behind the answer
	// (EXEC; BLPOP outside a transaction). If the client leaves before, it is made
	// clean by a [Resetter], or closed.
	LeaseEnds
)

// Status is a response's outcome as its protocol tells it.
type Status uint8

const (
	// StatusOK is a successful answer.
	StatusOK Status = iota
	// StatusBusinessException is an exception that the application threw: the
	// call worked, its outcome is an error.
	StatusBusinessException
	// StatusError is a failure of the protocol, the server or the proxy.
	StatusError
)

// Property is one attribute of a message. Both slices are views, valid as long
// as the Metadata that they came from, and must not be changed.
type Property struct{ Name, Value []byte }

// Metadata is what the pipeline knows of one message. It is reused: nothing in
// it may be kept after the hook that was handed it, unless Detach was called.
type Metadata struct {
	// Type of the message.
	Type MessageType
	// Status of a Response or Error.
	Status Status
	// ExpectsReply is set on heartbeats that want an answer, and where oneways
	// may be hidden (see [Traits]) on requests that surely do. Other requests
	// always want one, oneways never; there it is not looked at.
	ExpectsReply bool
	// Code is the protocol's own of the outcome of a Response or Error; 0 where it has
	// none. The codecs' pages say which it is.
	Code int32
	// ID correlates a response with its request; 0 where there is none.
	ID uint64
	// FixedID says that Encode cannot change the id of a request: it has an
	// upstream connection to itself until it is answered, whatever the
	// configuration says, and the answer is what comes on it.
	FixedID bool
	// StreamID is the client's number of the stream that a frame belongs to;
	// only looked at in frames of streams (see [Streamer]).
	StreamID uint64
	// GoesAway is set on an answer whose sender says with it that it leaves: its
	// connection gets no new request, as after a GoAway (Kitex's crrst).
	GoesAway bool
	// NotProcessed is set on an Error that says that the server has not looked at
	// the request, as it leaves (bRPC's ELOGOFF): the request may go elsewhere,
	// and the client must not take the proxy for the one that leaves. Its Failure is
	// Refused.
	NotProcessed bool
	// MayClose is set on an Error behind which servers end the connection, without having
	// said so (Kitex, of a request that it could not read): one that a request has to
	// itself gets no other for some milliseconds. Of the host it says nothing.
	MayClose bool
	// Failure says of an Error whether the request may be tried again, and whether
	// the host has failed; NoFailure of everything else.
	Failure FailureClass
	// Retried is set on requests with the protocol's own mark that they are another
	// attempt already (Kitex's RetryReq): they are not tried once more.
	Retried bool
	// Silent is set on an answer that its client does not get: the request was
	// quiet, and this is what it did not want to hear (memcached's miss, when the
	// command says q).
	Silent bool
	// Lease says what a request of a protocol without ids does with a connection of
	// its client's own; see [Lease].
	Lease Lease
	// Variant tells which of its protocol's incompatible wire forms a message
	// has (Thrift: the transport and protocol), the codec's own numbers; 0
	// where there is one form. Requests of different variants never share an
	// upstream connection.
	Variant uint8
	// HeaderSize and BodySize in bytes; their sum is the frame's length.
	HeaderSize, BodySize int
	// Malformed says what is wrong with a message whose frame is sound but
	// whose content cannot be read; "" otherwise. A request of that kind is
	// answered with BadRequest, an answer is passed on as it is.
	Malformed string
	// Raw is the whole frame, a view of the reader's memory; nil when detached.
	Raw []byte
	// Scratch is the codec's own, for offsets and flags that Encode,
	// EncodeError or EncodeHeartbeat want to know. It survives Detach.
	Scratch [8]uint32
	// ReplyInfo is the codec's own too: what EncodeError needs and does not fit
	// into Scratch. Decode appends to ReplyInfo[:0]; it must not be a view.
	ReplyInfo []byte

	loader          Loader
	service, method []byte
	props           []Property
	own             []byte // backs what does not live in Raw

	frame *Shape     // that Raw has, whatever has become of props
	shape *Shape     // whose props are; nil: they are m's own
	mine  []Property // those beside the shape's, of other names; else unused
}

// Loader fills in properties that were left out until somebody asks.
type Loader interface {
	// Load puts the properties of m, whose Raw is valid.
	Load(m *Metadata)
}

// Defer lets l put the properties when they are asked for first. A decoder
// does so where that is costly and seldom wanted. In a message that shares a [Shape] l
// sets what the shape does not have, and has to outlive the message.
func (m *Metadata) Defer(l Loader) { m.loader = l }

func (m *Metadata) load() {
	if m.loader != nil {
		m.fetch()
	}
}

func (m *Metadata) fetch() {
	l, set := m.loader, len(m.mine)
	m.loader = nil
	l.Load(m)
	if m.shape != nil && set > 0 { // what was left out comes before what was set since
		slices.Reverse(m.mine[:set])
		slices.Reverse(m.mine[set:])
		slices.Reverse(m.mine)
	}
}

// What an emptied Metadata keeps of its memory: thousands may be in use at once,
// and few messages need more.
const (
	keepProps = 64
	keepBytes = 4 << 10
)

// Reset empties m for the next message and keeps its memory, but what backed
// large properties.
func (m *Metadata) Reset() {
	m.forget()
	info, props, own := m.ReplyInfo[:0], m.props, m.own[:0]
	if cap(info) > keepBytes {
		info = nil
	}
	if cap(own) > keepBytes {
		own = nil
	}
	*m = Metadata{} // in place: a value with those would be copied
	m.ReplyInfo, m.props, m.own = info, props, own
}

// Borrow gives m, which is empty, the memory for properties that spare has. The
// pipeline does so before it has m decoded, and returns it when the properties are
// no longer needed: what waits for its answer then does not hold it.
func (m *Metadata) Borrow(spare *Metadata) {
	if cap(m.props) < cap(spare.props) {
		m.props, spare.props = spare.props, nil
	}
}

// Return is the counterpart of Borrow for an m without properties. What spare does
// not need m keeps, unless it is large.
func (m *Metadata) Return(spare *Metadata) {
	if cap(m.props) > 0 {
		m.giveBack(spare)
	}
}

func (m *Metadata) giveBack(spare *Metadata) {
	switch n := cap(m.props); {
	case n > 16*keepProps:
		m.props = nil
	case n > cap(spare.props):
		m.props, spare.props = nil, m.props
	case n > keepProps:
		m.props = nil
	}
}

// Put adds a property. Names are looked up without regard to ASCII case; name
// and value are kept as views. A codec puts attributes of the protocol itself
// before those that the message brings along.
func (m *Metadata) Put(name, value []byte) {
	m.unshare()
	m.props = append(m.props, Property{name, value})
}

// Set sets the property name to a copy of value: it takes the place of the first
// property of that name and the others are gone, or it is added. It is what filters
// use; the message on the wire does not change (see [Mutation] for that).
func (m *Metadata) Set(name, value string) {
	m.loadBefore(name)
	n := len(m.own)
	m.own = append(append(m.own, name...), value...)
	m.place(n, name)
}

// SetBytes is Set for a value in bytes.
func (m *Metadata) SetBytes(name string, value []byte) {
	m.loadBefore(name)
	n := len(m.own)
	m.own = append(append(m.own, name...), value...)
	m.place(n, name)
}

// loadBefore puts the properties that were left out if one of them may be called name,
// which is about to be set: what is set last counts.
func (m *Metadata) loadBefore(name string) {
	if m.loader != nil && (m.shape == nil || equalFold(name, RequestID)) {
		m.fetch()
	}
}

// place makes a property of what own has from n on, its name and its value.
func (m *Metadata) place(n int, name string) {
	behind := n + len(name)
	p := Property{m.own[n:behind:behind], m.own[behind:len(m.own):len(m.own)]}
	props := &m.props
	if m.shape != nil {
		if find(m.props, name) < 0 {
			props = &m.mine
		} else {
			m.leave()
		}
	}
	first := find(*props, name)
	if first < 0 {
		*props = append(*props, p)
		return
	}
	(*props)[first] = p
	others := slices.DeleteFunc((*props)[first+1:], func(old Property) bool { return EqualFold(old.Name, name) })
	*props = (*props)[:first+1+len(others)]
}

// Remove takes away the properties called name, compared without regard to ASCII case,
// and reports whether there were any. The message on the wire does not change.
func (m *Metadata) Remove(name string) bool {
	return m.drop(func(n []byte) bool { return EqualFold(n, name) })
}

// Drop takes away the properties whose names begin with prefix, compared without regard
// to ASCII case, and reports whether there were any: of names that a filter gives to what
// it knows, none is to be the client's. The message on the wire does not change.
func (m *Metadata) Drop(prefix string) bool {
	return m.drop(func(n []byte) bool { return len(n) >= len(prefix) && EqualFold(n[:len(prefix)], prefix) })
}

func (m *Metadata) drop(which func(name []byte) bool) bool {
	m.load()
	props := &m.props
	if m.shape != nil {
		if slices.ContainsFunc(m.props, func(p Property) bool { return which(p.Name) }) {
			m.leave()
		} else {
			props = &m.mine
		}
	}
	before := len(*props)
	*props = slices.DeleteFunc(*props, func(p Property) bool { return which(p.Name) })
	return len(*props) < before
}

// Get returns the value of the first property called name, compared without
// regard to ASCII case.
func (m *Metadata) Get(name string) (value []byte, ok bool) {
	if m.shape != nil {
		switch i := find(m.props, name); {
		case i >= 0 && m.shape.varies&(1<<i) == 0:
			return m.props[i].Value, true
		case i >= 0:
			m.leave()
		default:
			return m.beside(name)
		}
	}
	m.load()
	if i := find(m.props, name); i >= 0 {
		return m.props[i].Value, true
	}
	return nil, false
}

// beside is Get of what the shape does not have.
func (m *Metadata) beside(name string) (value []byte, ok bool) {
	i := find(m.mine, name)
	if i < 0 && m.loader != nil {
		m.fetch()
		if m.shape == nil {
			return m.Get(name)
		}
		i = find(m.mine, name)
	}
	if i < 0 {
		return nil, false
	}
	return m.mine[i].Value, true
}

// find returns where the first property called name is, -1 if there is none.
func find(props []Property, name string) int {
	for i := range props {
		if p := &props[i]; len(p.Name) == len(name) && (string(p.Name) == name || EqualFold(p.Name, name)) {
			return i
		}
	}
	return -1
}

// Properties returns all properties in the order in which they were put. A
// name can occur more than once when a message has it in several cases, or when
// its protocol keeps repeats. The slice is a view.
func (m *Metadata) Properties() []Property {
	m.load()
	if m.shape != nil && (m.shape.varies != 0 || len(m.mine) > 0) {
		m.leave()
	}
	return m.props
}

// SetOperation names the operation: service and method, either may be empty.
// Both are views. What is found by a [Shape] holds for its own operation, so m no longer
// shares one.
func (m *Metadata) SetOperation(service, method []byte) {
	m.unshare()
	m.service, m.method = service, method
}

// Service returns the service of the operation, a view.
func (m *Metadata) Service() []byte { return m.service }

// Method returns the method of the operation, a view.
func (m *Metadata) Method() []byte { return m.method }

// AppendOperation appends the operation name, "service/method", or whichever
// of the two there is.
func (m *Metadata) AppendOperation(dst []byte) []byte {
	return appendOperation(dst, m.service, m.method)
}

// AppendOperationUpTo is AppendOperation with so many bytes at most of either: what a
// request calls may fill its frame.
func (m *Metadata) AppendOperationUpTo(dst []byte, most int) []byte {
	return appendOperation(dst, m.service[:min(len(m.service), most)], m.method[:min(len(m.method), most)])
}

func appendOperation(dst, service, method []byte) []byte {
	dst = append(dst, service...)
	if len(service) > 0 && len(method) > 0 {
		dst = append(dst, '/')
	}
	return append(dst, method...)
}

// Detach copies the properties into memory of m's own, so that they outlive
// the frame, and forgets Raw.
func (m *Metadata) Detach() {
	if m.shape != nil && m.shape.varies == 0 {
		m.Raw = nil
		return
	}
	m.Properties()
	if len(m.props) > keepProps {
		m.pack()
		return
	}
	if cap(m.props) > keepProps {
		m.props = append(make([]Property, 0, len(m.props)), m.props...)
	}
	need := len(m.service) + len(m.method)
	for i := range m.props {
		need += len(m.props[i].Name) + len(m.props[i].Value)
	}
	// Views into the old own must stay readable while they are copied.
	own := m.own
	if cap(own)-len(own) < need {
		own = make([]byte, 0, max(len(own)+need, cap(m.own))) // for both the next time
	}
	keep := func(b []byte) []byte {
		n := len(own)
		own = append(own, b...)
		return own[n:len(own):len(own)]
	}
	for i := range m.props {
		p := &m.props[i]
		p.Name, p.Value = keep(p.Name), keep(p.Value)
	}
	m.service, m.method = keep(m.service), keep(m.method)
	m.own = own
	m.Raw = nil
}

// pack is Detach for many properties, which may be short: a Property is much
// larger than what it shows. They are written one behind the other, as lengths and
// bytes, and taken apart again when somebody asks for them.
func (m *Metadata) pack() {
	need := len(m.service) + len(m.method)
	for i := range m.props {
		need += len(m.props[i].Name) + len(m.props[i].Value) + 2*packedLen
	}
	own := make([]byte, 0, need)
	for i := range m.props {
		p := &m.props[i]
		own = binary.LittleEndian.AppendUint32(own, uint32(len(p.Name)))
		own = binary.LittleEndian.AppendUint32(own, uint32(len(p.Value)))
		own = append(append(own, p.Name...), p.Value...)
	}
	n := len(own)
	own = append(append(own, m.service...), m.method...)
	k := n + len(m.service)
	m.service, m.method = own[n:k:k], own[k:len(own):len(own)]
	m.props, m.own, m.Raw, m.loader = nil, own, nil, packed(n)
}

// packedLen is what the length of a name or value takes.
const packedLen = 4

// packed loads the properties that pack has written into the first bytes of own.
type packed int

// Load implements Loader.
func (n packed) Load(m *Metadata) {
	count := 0
	for b := m.own[:n]; len(b) > 0; count++ {
		b = b[2*packedLen+int(binary.LittleEndian.Uint32(b))+int(binary.LittleEndian.Uint32(b[packedLen:])):]
	}
	m.props = make([]Property, 0, count)
	for b := m.own[:n]; len(b) > 0; {
		name, value := int(binary.LittleEndian.Uint32(b)), int(binary.LittleEndian.Uint32(b[packedLen:]))
		b = b[2*packedLen:]
		m.props = append(m.props, Property{b[:name:name], b[name : name+value : name+value]})
		b = b[name+value:]
	}
}

// Release forgets all views, as the frame is about to go. Scalars, Scratch and
// ReplyInfo stay.
func (m *Metadata) Release() {
	m.forget()
	m.loader = nil
	if m.own = m.own[:0]; cap(m.own) > keepBytes {
		m.own = nil
	}
	m.service, m.method, m.Raw, m.frame = nil, nil, nil, nil
}

// Outline returns a copy of m in memory of its own that has what outlives a frame:
// scalars, Scratch and ReplyInfo.
func (m *Metadata) Outline() *Metadata {
	c := new(Metadata)
	c.SetOutline(m)
	return c
}

// SetOutline makes m, which is empty, what Outline returns of o, in m's memory.
func (m *Metadata) SetOutline(o *Metadata) {
	info, props, own := m.ReplyInfo[:0], m.props, m.own
	info = append(info, o.ReplyInfo...)
	*m = *o
	m.ReplyInfo, m.props, m.own, m.shape, m.frame, m.mine = info, props, own, nil, nil, nil
	m.loader, m.service, m.method, m.Raw = nil, nil, nil, nil
}

// EqualFold reports whether b equals s without regard to ASCII case.
func EqualFold(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i := range b {
		if x, y := b[i], s[i]; x != y && !equalLetters(x, y) {
			return false
		}
	}
	return true
}

// equalFold is EqualFold of two strings.
func equalFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if x, y := a[i], b[i]; x != y && !equalLetters(x, y) {
			return false
		}
	}
	return true
}

// equalLetters reports whether two different bytes are one letter.
func equalLetters(x, y byte) bool { return x|0x20 == y|0x20 && x|0x20 >= 'a' && x|0x20 <= 'z' }

// Mutation is what shall change in a message when it goes out: keys that are removed,
// and keys that are set or overwritten, in the codec's own place for attributes (Dubbo
// attachments, Thrift headers, …), and the payload. What is set stays if a key like it is
// removed, too.
type Mutation struct {
	// Timeout is what a request shall say of how long its client will wait, in the
	// protocol's own place and unit (see Millis), instead of what it says; 0 leaves
	// that as it is. It wins over an entry for the same place, and over its removal. A
	// request that has no place for it goes out without, which is no error, as do all
	// other messages.
	Timeout time.Duration
	// Retry is the number of the attempt that a request shall be marked as, from 1
	// for the first retry on, whatever is set or removed; 0 is none. Where the protocol
	// has no mark, it is not.
	Retry int
	// Trace is where a request shall say that it stands in a trace, if its codec is a
	// [TraceCarrier], whatever is set or removed; without an ID it says what it did.
	Trace Trace

	kv       []KeyValue
	removed  []string
	required []string // keys of which none of that may be left out
	payload  Payload  // in memory of its own
	replaces bool     // the message's
}

// KeyValue is one entry of a Mutation.
type KeyValue struct{ Key, Value string }

// Set sets key to value; the last value of a key wins. Keys are case-sensitive:
// they go onto the wire.
func (mu *Mutation) Set(key, value string) {
	for i := range mu.kv {
		if mu.kv[i].Key == key {
			mu.kv[i].Value = value
			return
		}
	}
	mu.kv = append(mu.kv, KeyValue{key, value})
}

// Remove removes key, whatever the case of its ASCII letters: as rules do not
// tell case apart, none must see it any more. What was set before of that name is
// not set, what is set later is. Codecs need to be a [Remover].
func (mu *Mutation) Remove(key string) {
	mu.kv = slices.DeleteFunc(mu.kv, func(kv KeyValue) bool { return equalFold(kv.Key, key) })
	if !slices.ContainsFunc(mu.removed, func(r string) bool { return equalFold(r, key) }) {
		mu.removed = append(mu.removed, key)
	}
}

// Require says that what is set and removed of key, whatever the case of its ASCII letters,
// may not be left out, as whoever gets the message relies on it: one that cannot carry it
// does not go out, and is answered with an error.
func (mu *Mutation) Require(key string) {
	if !mu.requires(key) {
		mu.required = append(mu.required, key)
	}
}

func (mu *Mutation) requires(key string) bool {
	return slices.ContainsFunc(mu.required, func(r string) bool { return equalFold(r, key) })
}

// Assign makes mu set, remove, require and replace what o does, and its Trace that of o, in
// mu's memory.
func (mu *Mutation) Assign(o *Mutation) {
	mu.kv = append(mu.kv[:0], o.kv...)
	mu.removed = append(mu.removed[:0], o.removed...)
	mu.required = append(mu.required[:0], o.required...)
	mu.Trace = o.Trace
	if o.replaces {
		mu.SetPayload(o.payload)
	} else {
		mu.DropPayload()
	}
}

// Own gives mu values of its own, which outlive those that were set.
func (mu *Mutation) Own() {
	for i := range mu.kv {
		mu.kv[i].Value = strings.Clone(mu.kv[i].Value)
	}
}

// Entries returns the entries that are set, in the order in which their keys were
// first set. A nil Mutation has none.
func (mu *Mutation) Entries() []KeyValue {
	if mu == nil {
		return nil
	}
	return mu.kv
}

// Removed returns the keys that are removed. A nil Mutation has none.
func (mu *Mutation) Removed() []string {
	if mu == nil {
		return nil
	}
	return mu.removed
}

// Find returns the number of the entry that sets key, -1 if none does.
func (mu *Mutation) Find(key []byte) int {
	for i, kv := range mu.Entries() {
		if kv.Key == string(key) {
			return i
		}
	}
	return -1
}

// Removes reports whether key is removed. It may be set all the same: see Find.
func (mu *Mutation) Removes(key []byte) bool {
	for _, removed := range mu.Removed() {
		if EqualFold(key, removed) {
			return true
		}
	}
	return false
}

// Millis returns Timeout as protocols write it, 0 if there is none: in whole
// milliseconds, without what is beyond, as a server must not take longer than its
// client waits; but what is left is at least 1. A nil Mutation has none.
func (mu *Mutation) Millis() int32 {
	if mu == nil || mu.Timeout <= 0 {
		return 0
	}
	return int32(min(max(mu.Timeout.Milliseconds(), 1), math.MaxInt32))
}

// Marks reports whether there is a Timeout or a Retry. A nil Mutation has none.
func (mu *Mutation) Marks() bool { return mu != nil && (mu.Timeout > 0 || mu.Retry > 0) }

// Empty reports whether nothing shall change, as if there were no Mutation.
func (mu *Mutation) Empty() bool {
	return !mu.ChangesAttributes() && !mu.changesFields() && !mu.Replaces()
}

// changesFields reports whether something changes that the protocol has a place for.
func (mu *Mutation) changesFields() bool { return mu.Marks() || mu != nil && mu.Trace.ID != 0 }

// ChangesAttributes reports whether keys are set or removed. A nil Mutation has none.
func (mu *Mutation) ChangesAttributes() bool {
	return mu != nil && (len(mu.kv) > 0 || len(mu.removed) > 0)
}

// WithoutOptional returns a Mutation that changes what mu changes but for the keys that
// are set or removed and not required, nil if that is nothing. It is for a message that
// cannot carry them all.
func (mu *Mutation) WithoutOptional() *Mutation {
	if mu == nil || len(mu.required) == 0 && !mu.changesFields() && !mu.Replaces() {
		return nil
	}
	o := &Mutation{Timeout: mu.Timeout, Retry: mu.Retry, Trace: mu.Trace, payload: mu.payload, replaces: mu.replaces}
	for _, kv := range mu.kv {
		if mu.requires(kv.Key) {
			o.kv = append(o.kv, kv)
		}
	}
	for _, key := range mu.removed {
		if mu.requires(key) {
			o.removed = append(o.removed, key)
		}
	}
	if o.Empty() {
		return nil
	}
	return o
}

// Reset empties mu and keeps its memory, unless it is large.
func (mu *Mutation) Reset() {
	clear(mu.kv)
	if mu.kv = mu.kv[:0]; cap(mu.kv) > keepProps {
		mu.kv = nil
	}
	clear(mu.removed)
	if mu.removed = mu.removed[:0]; cap(mu.removed) > keepProps {
		mu.removed = nil
	}
	clear(mu.required)
	if mu.required = mu.required[:0]; cap(mu.required) > keepProps {
		mu.required = nil
	}
	mu.Timeout, mu.Retry, mu.Trace = 0, 0, Trace{}
	mu.DropPayload()
}
