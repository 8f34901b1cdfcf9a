package upstream

import (
	"net/netip"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/breaker"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
	"github.com/meltemi-mesh/meltemi/filter/outlier"
)

// Mode is how the calls of a pool use its connections, and find their answers.
type Mode uint8

const (
	// ByID: each call has an id that the pool gives.
	ByID Mode = iota
	// InOrder: answers come in the order of the calls on a connection, and a
	// client's calls reach servers in their order (see [Line]).
	InOrder
	// Leased: as InOrder, but a connection is a client's own, for as long as the
	// client holds it (see codecs.Lease).
	Leased
	// OneByOne: a connection has one call at a time, which keeps its id.
	OneByOne
	// Streams: each call is a stream. It has a connection of its own, keeps its
	// ids, and goes on after the first answer until Call.EndStream.
	Streams
)

// Options are the limits of a pool. All counts are per worker and cluster.
type Options struct {
	// Mode is how calls use connections.
	Mode Mode
	// Shared lets many requests share a connection; otherwise a connection
	// serves one request at a time.
	Shared bool
	// Linger is how long a connection whose calls have all ended is kept without
	// a sign that its server still takes what was written.
	Linger time.Duration
	// MinConnections is kept while the pool is in use.
	MinConnections int
	// MaxConnections is the most that are open for requests when shared.
	MaxConnections int
	// MaxExclusive is the same when connections are exclusive, those included that
	// are about to be closed.
	MaxExclusive int
	// MaxRequests may wait, be on their way to the cluster, or have been given up
	// while their answers are awaited all the same; more are refused.
	MaxRequests int
	// MaxAge after which a connection gets no new request and, once idle, is
	// closed.
	MaxAge time.Duration
	// IdleTimeout after the last request closes all connections.
	IdleTimeout time.Duration
	// TargetInFlight requests on each shared connection make the pool grow.
	TargetInFlight int
	// MaxPending requests, and MaxPendingBytes of them, may wait for a
	// connection before clients are no longer read; twice as much is refused.
	MaxPending      int
	MaxPendingBytes int
	// MaxPartialBytes of unfinished frames of all the worker's servers may be kept
	// before this pool's servers have to wait with theirs. One always fits.
	MaxPartialBytes int
	// BackoffMax bounds the pause between failed attempts to connect.
	BackoffMax time.Duration
}

// Key says which calls share a pool.
type Key struct {
	// Scope separates listeners, so that counters and limits are theirs.
	Scope string
	// Cluster, OriginalDst and Source: see host.Target.
	Cluster     string
	OriginalDst string
	Source      netip.Addr
	// Variant of the codec's wire form.
	Variant uint8
	// Mode is that of the options.
	Mode Mode
	// Mirror is set for copies of requests. Their pool has nothing in common with
	// others to the cluster: what becomes of copies is no sign of anything.
	Mirror bool
	// Profile is what else must be equal for two versions of a listener to go on
	// with the same connections.
	Profile any
}

// Observer hears what happens on a pool's connections beyond the fate of
// single calls.
type Observer interface {
	// Stray: an answer came that no request waits for, or a frame of no stream.
	Stray(md *codecs.Metadata)
	// DecodingError: a server sent bytes that are no message, or one that is too
	// large. closes tells whether that costs the connection.
	DecodingError(cluster, host string, err error, closes bool)
	// Closes: a connection is closed for what its server does.
	Closes(cluster, host, reason string)
	// Starves: a server is not read for now, as too much is kept of unfinished
	// frames.
	Starves()
	// Panicked: there was a panic over a message to or of a server, p, or one that
	// the host has logged, nil.
	Panicked(p *guard.Panic)
	// Event: a heartbeat or event of a server was handled.
	Event()
	// Detoured: a call has gone to a host that is not its hash's, or not the one that it
	// names; or to "no host", if it may go to no other.
	Detoured(cluster, host string, d Detour)
	// Unserved: a server sent a request of its own, which is not supported.
	Unserved()
	// ConnectFailed: an attempt to connect failed, or a server did not answer the
	// preface as the codec wants it.
	ConnectFailed(cluster string, r host.CloseReason, why string)
	// Breaks: a circuit breaker lets a call not wait, or a connection not be made.
	Breaks(cluster string, l breaker.Limit)
	// Ejects: a host is ejected, or would be were there not as many as may be, for
	// what it did over the pool's connections.
	Ejects(cluster, host string, e outlier.Ejection)
	// Probes: an ejected host gets a call that tells whether it can be used again.
	Probes(cluster, host string)
	// Ejected: so many hosts more are ejected, of those of which the pool tells; each
	// is told of by one pool.
	Ejected(n int)
	// Readmits: an ejected host is used again, or has left the cluster.
	Readmits(cluster, host string)
}

// Owner is what a Call is made for: an attempt to serve a request.
type Owner interface {
	// Hold is called when the request has to wait: its frame must outlive the
	// event in which it came.
	Hold()
	// Request returns the request's metadata, of which the scalar fields, Scratch
	// and ReplyInfo are valid until the call has ended.
	Request() *codecs.Metadata
	// Encode appends the request to dst, with id in place of its own. It changes
	// nothing: it may be called again, for another call. A *Refusal says that it had
	// better not go to the call's host.
	Encode(dst []byte, id uint64) ([]byte, error)
	// Sent ends a call whose owner awaits no answer: it has been handed over, or,
	// if it was quiet, it has turned out that there is none.
	Sent()
	// Answered ends a call. resp and its frame are valid during Answered only.
	Answered(resp *codecs.Metadata)
	// Failed ends a call without an answer, or an open stream.
	Failed(f *Failure)
	// Streamed hands over a frame of a stream. It and its metadata are valid
	// during Streamed only. The deadline ends with Call.Opened or the call.
	Streamed(m *codecs.Metadata)
	// Blocked tells whether the server of a stream has stopped taking bytes.
	Blocked(blocked bool)
}

// Refusal is the error of an Owner that does not want a call sent to its host.
type Refusal struct {
	// Type is that of the call's failure, of which Reason is told.
	Type   codecs.ErrorType
	Reason string
}

func (r *Refusal) Error() string { return r.Reason }

// Failure is why a call has ended without an answer.
type Failure struct {
	Type codecs.ErrorType
	// Reason is shown to the client.
	Reason string
	// Written says that the request has been handed to a connection, so that a
	// server may have seen it, NotProcessed that the server has said it has not.
	Written, NotProcessed bool
	// Answer is one that came and cannot be passed on, nil if none did. It has no
	// frame, and is valid during Failed only.
	Answer *codecs.Metadata
	// Panic is that of Encode, nil if there was none.
	Panic *guard.Panic
}
