package carrier

import "github.com/meltemi-mesh/meltemi/filter/host"

// Filter is the filter of one carrier, before its tcp_proxy, as the host has it.
// What it is told to do is recorded, and done when the event that is running has
// ended, but for what says otherwise. What it is asked it answers at once, as long
// as it is alive.
type Filter interface {
	// Token is what has come with the connection, nil when there is none. It is
	// valid for as long as the event.
	Token() []byte
	// Generation is the number of the listener's configuration: later ones have
	// higher numbers.
	Generation() uint32
	// Closed reports whether the connection has ended: nothing can be done with
	// it, and it has been told or is about to be.
	Closed() bool

	// SetState sets filter state, at once.
	SetState(key, value string)
	// State is a copy of filter state, "" if there is none, or it is not known.
	State(key string) string
	// Principals are the first URIs of the certificates that we and the server have
	// presented, "" where there is none, or it is not known.
	Principals() (ours, theirs string)
	// Continue lets tcp_proxy begin. wanted is the host that it shall connect to, see
	// host.Target; "" is any.
	Continue(wanted string)
	// Send has tcp_proxy send b to the server. b is the filter's from then on.
	Send(b *host.Buffer)
	// End has tcp_proxy send an end of stream.
	End()
	// Close closes the connection, with nothing sent any more.
	Close()

	// Connected tells the filter that the server is connected: from now on, when
	// it sees that the server does not take bytes, it calls Carrier.Blocked, once
	// until Unblocked is called.
	Connected()
	Unblocked()
	// Pause writes to the dialing side as much as its socket does not hold, so
	// that tcp_proxy does not read the server, and goes on so until Resume, which
	// holds at once.
	Pause()
	Resume()

	// Upstream is the server's address, "" if unknown.
	Upstream() string
	// HasUpstream reports whether tcp_proxy has chosen a host.
	HasUpstream() bool
	// Flags are Envoy's response flags, 0 where it does not tell them.
	Flags() uint64
}

// Worker is the worker to which carriers belong, as the host has it.
type Worker interface {
	Index() int
	// Post has f run on the worker, soon. Any goroutine may call it.
	Post(f func())
	// Guard runs what may panic, and reports whether it did not.
	Guard(doing string, f func()) bool
	// ClusterHosts is that of host.Worker.
	ClusterHosts(cluster string) (h host.Hosts, known, ok bool)
}
