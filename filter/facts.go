package filter

import (
	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/facts"
)

// Facts are what is known of a message beyond its metadata. They are complete in
// [EndFilter].OnEnd.
type Facts = facts.Facts

// Flags say what was out of the ordinary with a message; [facts.Flags] lists them.
type Flags = facts.Flags

// Flags that filters set.
const (
	DelayInjected         = facts.DelayInjected
	FaultInjected         = facts.FaultInjected
	RateLimited           = facts.RateLimited
	Unauthorized          = facts.Unauthorized
	UpstreamOverflow      = facts.UpstreamOverflow
	RateLimitServiceError = facts.RateLimitServiceError
)

// Facts returns what is known by now.
func (m *Message) Facts() (f Facts) {
	m.gather(&f)
	return f
}

// Ended is Facts for [EndFilter].OnEnd, without a copy: it is valid during the call, and
// not to be changed.
func (m *Message) Ended() *Facts {
	f := &m.sh.entry.Facts
	if m.sh.told != m {
		m.gather(f)
		m.sh.told = m
	}
	f.Flags = m.flags // all else is settled
	return f
}

// gather has f be what is known by now.
func (m *Message) gather(f *Facts) {
	*f = Facts{}
	f.Protocol, f.Cluster, f.Consumer = m.cfg.Protocol, m.cluster, m.consumer.Name()
	f.RequestBytes, f.ResponseBytes = m.req.HeaderSize+m.req.BodySize, m.answerBytes
	f.Flags, f.Start, f.Answered, f.End, f.Attempts = m.flags, m.start, m.answeredAt, m.endedAt, m.exchange.Attempts()
	f.SentBytes, f.UpstreamSentBytes, f.UpstreamReceivedBytes = m.sentBytes, m.writtenBytes, int64(m.answerBytes)+m.streamedBytes
	f.ReceivedBytes = m.receivedBytes + int64(f.RequestBytes)
	switch {
	case m.stream != nil:
		f.Kind = facts.Stream
	case m.oneway:
		f.Kind = facts.Oneway
	}
	if m.trace != nil {
		f.Trace = m.trace.Trace
	}
	if m.route != nil {
		f.Route = m.route.Name
	}
	if f.Attempts > 0 {
		f.Host, f.Sent = m.exchange.Host()
		f.Hosts = m.exchange.Hosts()
		f.Server = m.exchange.Server()
	}
	switch {
	case m.replied:
		f.Replied, f.Local, f.Status, f.Code = true, m.local, codecs.StatusError, m.local.Code
	case m.answeredAt > 0:
		f.Status, f.Code = m.status, m.code
	}
}

// flagOf is the flag of a local reply.
var flagOf = [...]Flags{
	codecs.RouteNotFound:     facts.NoRouteFound,
	codecs.ClusterNotFound:   facts.NoClusterFound,
	codecs.NoHealthyUpstream: facts.NoHealthyUpstream,
	codecs.BadResponse:       facts.UpstreamProtocolError,
	codecs.Unspecified:       0,
	codecs.OverLimit:         facts.UpstreamOverflow,
	codecs.BadRequest:        facts.DownstreamProtocolError,
	codecs.Timeout:           facts.UpstreamRequestTimeout,
	codecs.ConnectFailure:    facts.UpstreamConnectionFailure,
	codecs.UpstreamReset:     facts.UpstreamConnectionTermination,
	codecs.Denied:            facts.Unauthorized,
}
