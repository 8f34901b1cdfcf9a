package tracing

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/facts"
)

// Ending is what a span tells of a request that has ended.
type Ending struct {
	*facts.Facts
	// System is what OpenTelemetry calls the protocol.
	System string
	// Code is the name of the protocol's own code of the outcome, "" if it has none.
	Code string
	// Failure is what the answer says.
	Failure codecs.FailureClass
	// Time of the end.
	Time time.Time
}

// End gives the request's spans to sink.
func (l *Live) End(e *Ending, sink Sink) {
	if !l.Recorded() {
		return
	}
	s := &Span{
		Trace: l.Trace, Parent: l.parent, Shared: l.shared, State: l.state, Name: l.name, Kind: l.c.Kind,
		Start: e.wall(e.Start), End: e.Time,
	}
	inner := l.upstream != l.Span && e.Attempts > 0
	if inner {
		s.Kind = Server
	}
	l.finish(s, e)
	s.Events = l.tell(e)
	sink.Offer(s)
	if !inner {
		return
	}
	c := &Span{
		Trace: l.Trace, Parent: l.Span, State: l.state, Name: l.name, Kind: Client,
		Start: e.wall(e.Start), End: e.Time,
	}
	c.Span = l.upstream
	if e.Sent > 0 {
		c.Start = e.wall(e.Sent)
	}
	if e.Answered > 0 {
		c.End = e.wall(e.Answered)
	}
	l.finish(c, e)
	sink.Offer(c)
}

// wall is a moment of the worker's on the wall clock, never behind the end.
func (e *Ending) wall(at time.Duration) time.Time { return e.Time.Add(-max(0, e.End-at)) }

// finish completes a span, whose kind is known.
func (l *Live) finish(s *Span, e *Ending) {
	all := make([]attribute.KeyValue, 0, 18+len(l.c.constant)+len(l.tags))
	text := func(key, value string) {
		if value != "" {
			all = append(all, attribute.String(key, value))
		}
	}
	address := func(key, value string) {
		if ap, err := netip.ParseAddrPort(value); err == nil {
			all = append(all, attribute.String(key+".address", ap.Addr().String()), attribute.Int(key+".port", int(ap.Port())))
		} else {
			text(key+".address", value)
		}
	}
	text("rpc.system.name", e.System)
	text("rpc.method", l.name)
	text("rpc.status_code", e.Code)
	var why string
	if why, s.Failed = failure(e, s.Kind); s.Failed {
		text("error.type", why)
		s.Description = l.c.text([]byte(e.Local.Message))
	}
	server, peer := e.Host, e.Host
	if s.Kind == Server {
		server, peer = l.local, l.remote
	}
	address("server", server)
	address("network.peer", peer)
	text("component", "proxy")
	text("upstream_cluster", e.Cluster)
	text("upstream_cluster.name", e.Cluster)
	text("response_flags", e.Flags.String())
	text("peer.address", withoutPort(l.remote))
	text("guid:x-request-id", l.requestID)
	text("guid:x-client-trace-id", l.clientTraceID)
	text("request_size", strconv.FormatInt(e.ReceivedBytes, 10))
	text("response_size", strconv.FormatInt(e.SentBytes, 10))
	if e.Kind != facts.Request {
		text("meltemi.message_type", e.Kind.String())
	}
	for _, more := range [...][]attribute.KeyValue{l.c.constant, l.tags} {
		for _, kv := range more { // the later wins
			if i := slices.IndexFunc(all, func(o attribute.KeyValue) bool { return o.Key == kv.Key }); i >= 0 {
				all[i] = kv
			} else {
				all = append(all, kv)
			}
		}
	}
	s.Attributes = all
}

func withoutPort(address string) string {
	if ap, err := netip.ParseAddrPort(address); err == nil {
		return ap.Addr().String()
	}
	return address
}

// tell returns the events, in their order.
func (l *Live) tell(e *Ending) []Event {
	if l.c.verbose {
		for _, n := range [...]struct {
			at   time.Duration
			name string
		}{{e.Sent, "first_upstream_tx_byte_sent"}, {e.Answered, "first_upstream_rx_byte_received"}, {e.End, "last_downstream_tx_byte_sent"}} {
			if n.at > 0 {
				l.events = append(l.events, note{n.at, Event{Name: n.name}})
			}
		}
		slices.SortStableFunc(l.events, func(a, b note) int { return int(a.at - b.at) })
	}
	if len(l.events) == 0 {
		return nil
	}
	all := make([]Event, len(l.events))
	for i, n := range l.events {
		all[i] = n.Event
		all[i].Time = e.wall(n.at)
	}
	return all
}

// failure is whether a request has failed in the eyes of a span of that kind, and what
// OpenTelemetry calls the type of the error: a client sees all that is no success, a
// server what is its own fault.
func failure(e *Ending, k Kind) (why string, failed bool) {
	switch {
	case e.Replied:
		return strings.ReplaceAll(e.Local.Type.String(), " ", "_"), k == Client || !theirs(e)
	case e.Answered == 0:
		return "client_disconnected", k == Client && e.Flags&facts.DownstreamConnectionTermination != 0
	case e.Status == codecs.StatusBusinessException:
		return "exception", k == Client
	case e.Status == codecs.StatusError:
		if why = e.Code; why == "" {
			why = "error"
		}
		return why, k == Client || e.Failure != codecs.NoFailure
	default:
		return "", false
	}
}

// theirs reports whether a local reply is for what the client should not have asked for.
func theirs(e *Ending) bool {
	switch e.Local.Type {
	case codecs.BadRequest, codecs.Denied:
		return true
	case codecs.OverLimit:
		return e.Flags&facts.RateLimited != 0
	default:
		return false
	}
}
