// Package host is what lies between the pipeline and the process that runs it:
// a few interfaces, nothing of cgo, nothing of Envoy. A host drives the
// pipeline through [Module], [DownstreamEvents] and [UpstreamEvents], and the
// pipeline asks the host for things through [Worker], [Downstream], [Upstream]
// and [Config].
//
// # Threads
//
// Each connection belongs to one worker. Everything of a worker is called on
// its thread only, never concurrently, and never nested: while the pipeline
// runs, calls on Downstream and Upstream that could make the host call back
// (Write, Close, Connect) are only recorded; the host carries them out, in the
// order in which they were made, after the pipeline has returned. What that
// provokes arrives as further events, before or after the rest of the batch.
// The exception is [Worker.Wake], which any goroutine may call.
package host

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"time"
)

// Module is the pipeline's side: what a host calls at config load.
type Module interface {
	// NewConfig loads one filter configuration. It is called on the host's main
	// thread. An error refuses the configuration; its text names the field.
	NewConfig(c Config, raw []byte) (FilterConfig, error)
	// NewWorker makes the state of one worker. It is called once per worker, on
	// the worker's thread, before anything else happens there.
	NewWorker(w Worker) Shard
}

// Teller is a Module that tells about itself.
type Teller interface {
	// Pages answers the requests of operators, by their paths. Goroutines of the
	// server call it.
	Pages() http.Handler
}

// FilterConfig is one accepted configuration.
type FilterConfig interface {
	// Published is called on the main thread from an event after the load, when
	// the host has accepted everything that came with the configuration. It
	// may never come for a configuration that is dropped again.
	Published()
	// Destroy is called on the main thread when the host forgets the
	// configuration. All its connections have ended.
	Destroy()
}

// Config is the host's side of a configuration that is being loaded.
type Config interface {
	// DefineCounter, DefineGauge and DefineHistogram define metrics. Only
	// during NewConfig. Names are dotted, without the host's own prefix. A gauge is
	// one for all configurations that have it; when the last of them is destroyed it
	// goes, and begins at 0 if another comes.
	DefineCounter(name string) (MetricID, error)
	DefineGauge(name string) (MetricID, error)
	DefineHistogram(name string) (MetricID, error)
	// Background is for goroutines of the pipeline, also after the load.
	Background() Background
}

// Background is the host's side of what belongs to no worker. Any goroutine may use
// it as long as the process lives.
type Background interface {
	// DialCluster connects to one host of a cluster, as the cluster says: with its
	// load balancing, limits and TLS. That there is no such cluster, or no host, may
	// show only by the connection's end.
	DialCluster(ctx context.Context, cluster string) (net.Conn, error)
	// Logf logs with the host's logger.
	Logf(level Level, format string, args ...any)
}

// MetricID names a metric within its Config.
type MetricID uint32

// Level of a log line.
type Level uint8

// Levels, by severity; 0 is none.
const (
	Debug Level = iota + 1
	Info
	Warn
	Error
)

// Shard is the pipeline's state of one worker.
type Shard interface {
	// Accept takes a new client connection under cfg. The returned events
	// receive everything of that connection.
	Accept(cfg FilterConfig, d Downstream) DownstreamEvents
	// Run does what is due: timers, work posted by other goroutines. The host
	// calls it on the worker soon after Wake, and at the latest when the delay
	// given to SetTimer is over.
	Run()
	// EndHook is called by the host at the end of every outermost event of this
	// worker, or of several that came together, before the batch is carried out:
	// the pipeline hands over the bytes it has gathered.
	EndHook()
}

// DownstreamEvents receive what happens on one client connection.
type DownstreamEvents interface {
	// Data hands over bytes that arrived: buf[0], buf[1], … in order, total
	// bytes together. It returns how many of them were consumed; the rest is
	// handed over again, with more behind it, at the next call. end says that
	// the client will send no more. The views are valid during the call only,
	// and must not be written to.
	Data(buf [][]byte, total int, end bool) (consumed int)
	// WriteBlocked tells that the host's write buffer went above its high
	// watermark (true) or back below the low one (false). It can come at any
	// time while a batch is carried out.
	WriteBlocked(blocked bool)
	// Closed is the last event: the connection is gone. remote tells whether
	// the client closed it.
	Closed(remote bool)
	// Aborted is called by the host after a panic in one of the other methods:
	// free what the connection held. The host then closes it.
	Aborted()
}

// Downstream is a client connection as its host shows it.
type Downstream interface {
	// Write records that b shall be sent. b belongs to the host from then on.
	// Writing to a connection that is gone does nothing.
	Write(b *Buffer)
	// Close records that the connection shall be closed, after what was written
	// before has been flushed when flush is true. Closed follows.
	Close(flush bool)
	// ReadDisable(true) stops the reading; each needs one ReadDisable(false).
	ReadDisable(disable bool)
	// BufferLimit is how many bytes the host reads that Data has not consumed; then
	// it stops until Data consumes some. 0 is no limit. It does not change.
	BufferLimit() int
	// ID is unique among the connections of the process.
	ID() uint64
	// LocalAddress and RemoteAddress are "ip:port" or a pipe's name, "" when
	// unknown.
	LocalAddress() string
	RemoteAddress() string
	// DirectRemoteAddress is that of the connection itself, where RemoteAddress may
	// be what a proxy before the host has told (the PROXY protocol).
	DirectRemoteAddress() string
	// TLS is what the host knows of the client's TLS, nil if there is none. It is
	// complete from the first Data on, and not to be asked for before. It does not
	// change, and stays known when the connection is gone if it was asked for before.
	TLS() *TLS
	// Count adds delta, which is positive, to a counter of the connection's
	// configuration.
	Count(id MetricID, delta int64)
	// Add adds delta to a gauge of the connection's configuration.
	Add(id MetricID, delta int64)
	// Record adds values, at least one, to a histogram of the connection's
	// configuration. They stay the caller's.
	Record(id MetricID, values []uint64)
}

// FilterState is a Downstream of a host whose other filters leave with a connection what
// they have found out about it.
type FilterState interface {
	Downstream
	// FilterState is a copy of what is there under a key, serialized; "" if there is
	// nothing, or the connection is gone. What filters before ours have to say is
	// there at the first Data.
	FilterState(key string) string
}

// TLS is what a host knows of a client's TLS that it has terminated. It is not to be
// changed.
type TLS struct {
	// ServerName is the name that the client asked for (SNI), "" if it did not, or if
	// the host has not looked: Envoy does with the listener filter tls_inspector.
	ServerName string
	// Mutual tells that the client has presented a certificate. What such a one is
	// worth is for the host's configuration to say: Envoy refuses those that its
	// validation context does not trust, unless that accepts untrusted ones.
	Mutual bool
	// URISANs and DNSSANs are the alternative names in the client's certificate, in
	// their order.
	URISANs, DNSSANs []string
	// Subject of the client's certificate, as in RFC 2253.
	Subject string
	// Fingerprint is the SHA-256 of the client's certificate, in hex, and Version that of
	// TLS, such as TLSv1.3. Envoy tells of them and of its own certificate from 1.39 on.
	Fingerprint, Version string
	// OwnURISAN and OwnDNSSAN are the first of each in the certificate that the host has
	// presented, and OwnSubject is its subject; "" if there is none, or the host does not
	// tell.
	OwnURISAN, OwnDNSSAN, OwnSubject string
}

// Principal is the one name of the client: the first URI in its certificate, else the
// first DNS name, else the subject. "" if it has presented none, or t is nil.
func (t *TLS) Principal() string {
	switch {
	case t == nil:
		return ""
	case len(t.URISANs) > 0:
		return t.URISANs[0]
	case len(t.DNSSANs) > 0:
		return t.DNSSANs[0]
	}
	return t.Subject
}

// Worker is the host's side of one worker.
type Worker interface {
	// Now is a monotonic time since an arbitrary point. It is read once per
	// event.
	Now() time.Duration
	// SetTimer asks for Run to be called at about now+delay; a later call
	// replaces an earlier one. delay < 0 cancels.
	SetTimer(delay time.Duration)
	// Wake asks for Run to be called soon, from any goroutine. A host may reach a worker
	// by its connections alone: then one that has none is reached with the next.
	Wake()
	// Buffer returns an empty buffer with room for at least n bytes.
	Buffer(n int) *Buffer
	// Connect asks for a connection to one host of a cluster. Its events come
	// to ev, never before Connect returned. The host may have to wait for
	// means to connect; then nothing happens until it can, or Close is called.
	Connect(t Target, ev UpstreamEvents) Upstream
	// ClusterHosts tells how many hosts the cluster has. known is false when no
	// such cluster exists. ok is false when it cannot be told now.
	ClusterHosts(cluster string) (h Hosts, known, ok bool)
	// ClusterMembers tells the hosts of a cluster themselves, as far as the worker
	// has heard of them, nil where they cannot be told. What it returns is another
	// pointer whenever something has changed. For such a cluster Target.Host counts.
	ClusterMembers(cluster string) *Members
	// Logf logs with the host's logger.
	Logf(level Level, format string, args ...any)
}

// Hosts counts the hosts of a cluster.
type Hosts struct {
	// Total and Healthy hosts of all priorities.
	Total, Healthy int
	// Preferred is how many healthy hosts the first priority has that has any:
	// among them the load balancer chooses.
	Preferred int
	// Assumed: nothing tells how many there are yet, and these are taken for it. What comes
	// behind them is no change of the cluster's.
	Assumed bool
}

// Members are the hosts of a cluster, in the cluster's order. They are not changed.
type Members struct {
	// Hosts of all priorities, each address once.
	Hosts []Member
}

// Member is one host of a cluster.
type Member struct {
	// Address is "ip:port".
	Address string
	// HashKey is what stands for the address in consistent hashing, "" if nothing
	// does.
	HashKey string
	// Weight is its share of the traffic, relative to the others'. At least 1.
	Weight uint32
	// Priority: hosts of 0 are used before those of 1, and so on.
	Priority uint32
	// Healthy hosts can be connected to.
	Healthy bool
	// Region, Zone and SubZone are its locality, as far as it is known.
	Region, Zone, SubZone string
}

// Target says where an upstream connection shall go.
type Target struct {
	// Cluster by name.
	Cluster string
	// Host is the address of the cluster's member that is wanted, "" for any. It
	// counts where the members are told, and as long as the host is healthy;
	// otherwise the connection leads to any.
	Host string
	// OriginalDst is the "ip:port" for clusters that go where the client
	// wanted to go; "" otherwise.
	OriginalDst string
	// Source is the address that the server shall see, the zero value for that
	// of the host.
	Source netip.Addr
}

// UpstreamEvents receive what happens on one upstream connection.
type UpstreamEvents interface {
	// Ready: the connection is up; host is its address, "" if unknown. Writes
	// are allowed from now on.
	Ready(host string)
	// Data hands over bytes that arrived; all of them are consumed. The views
	// are valid during the call only, and must not be written to.
	Data(buf [][]byte, total int)
	// WriteBlocked(true): the server does not take more bytes for now; what is
	// written piles up in memory. WriteBlocked(false): it does again.
	WriteBlocked(blocked bool)
	// Closed is the last event, after the server's end of stream, a loss, a
	// failed attempt, or Close.
	Closed(r CloseReason)
	// Aborted is called by the host after a panic in one of the other methods:
	// free what the connection held. The host then closes it.
	Aborted()
}

// Queued is implemented by UpstreamEvents that want to know what only some hosts can tell.
type Queued interface {
	// Queued: an attempt to connect has been under way for so long that it may be waiting for
	// another connection to the cluster to end, as a circuit breaker allows no more. It goes
	// on, and may be told of again.
	Queued()
}

// Upstream is one upstream connection: asked for, connecting, or open.
type Upstream interface {
	// Write records that b shall be sent; only after Ready. b belongs to the
	// host from then on.
	Write(b *Buffer)
	// ReadDisable(true) stops the reading of the server's bytes, so that it
	// cannot send more than buffers hold; what has been read before still
	// comes. Only after Ready; each needs one ReadDisable(false).
	ReadDisable(disable bool)
	// Close records that the connection shall be closed: at once, or, with
	// graceful, by an end of stream after which the server may still answer.
	// Closed follows, also for a connection that was never ready.
	Close(graceful bool)
}

// Describer is an Upstream of a host that knows more of servers than their addresses.
type Describer interface {
	Upstream
	// Server tells of the server, once it has sent something. What is not known, or
	// not any more, is "".
	Server() Server
}

// Server is what a host knows of the server that an upstream connection leads to.
type Server struct {
	// Workload is its endpoint's metadata "workload" of the namespace "istio":
	// "workload;namespace;canonical name;canonical revision;cluster".
	Workload string
	// Services is its cluster's metadata "services" of the namespace "istio": a list
	// of objects with "host", "name" and "namespace", in JSON.
	Services string
	// Principal is the first URI in the server's certificate, OwnPrincipal that in
	// what the host has presented to it.
	Principal, OwnPrincipal string
}

// CloseReason is why an upstream connection ended.
type CloseReason uint8

const (
	// Local: Close was called.
	Local CloseReason = iota
	// Remote: the server ended it.
	Remote
	// Reset: it was lost after it had been ready.
	Reset
	// ConnectFailed: no connection could be made (refused, timed out). A host may learn
	// that behind Ready; then nothing of what was written has left it.
	ConnectFailed
	// NoHost: the cluster has no host to connect to.
	NoHost
	// NoCluster: there is no such cluster.
	NoCluster
	// Overflow: a circuit breaker of the cluster does not allow another one.
	Overflow
	// Draining: the host ends it because of its own configuration or shutdown.
	Draining
)

var closeReasons = [...]string{
	"closed", "closed by the server", "reset", "connect failure",
	"no healthy upstream", "unknown cluster", "circuit breaker open", "draining",
}

func (r CloseReason) String() string {
	if int(r) < len(closeReasons) {
		return closeReasons[r]
	}
	return "unknown"
}

// Buffer is a stretch of memory that goes from the pipeline to the host. The
// pipeline appends to B, also beyond its capacity, and hands the Buffer over
// by a Write; a Buffer that was never handed over is given back by Free.
type Buffer struct {
	B []byte
	// Host is for the host: where the buffer goes back to.
	Host Recycler
}

// Recycler takes a buffer back.
type Recycler interface{ Recycle(b *Buffer) }

// Free gives back a buffer that was not handed over.
func (b *Buffer) Free() {
	if b.Host != nil {
		b.Host.Recycle(b)
	}
}
