package config

import (
	"errors"
	"fmt"
	"math"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meltemi-mesh/meltemi/filter/accesslog"
	"github.com/meltemi-mesh/meltemi/filter/export"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/tracing"
	proxyv1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/v1alpha"
)

// RouterName is the filter that ends each chain.
const RouterName = "aeraki.meta_protocol.filters.router"

// checker gathers faults.
type checker struct{ errs []*Error }

func (c *checker) refuse(path, format string, args ...any) {
	c.errs = append(c.errs, &Error{Path: path, Reason: fmt.Sprintf(format, args...)})
}

func (c *checker) duration(d *durationpb.Duration, path string, least, def time.Duration) time.Duration {
	v, err := fields.Duration(d, least, def)
	if err != nil {
		c.refuse(path, "%v", err)
	}
	return v
}

func (c *checker) number(n *wrapperspb.UInt32Value, path string, least, most, def int) int {
	v, err := fields.Number(n, least, most, def)
	if err != nil {
		c.refuse(path, "%v", err)
	}
	return v
}

// freeze validates m and applies the defaults.
func freeze(m *proxyv1alpha.MetaProtocolProxy) (*Proxy, []*Error) {
	c := &checker{}
	p := &Proxy{StatPrefix: m.GetStatPrefix(), TableScope: m.GetTableScope(), StrictFilterOrder: m.GetStrictFilterOrder()}
	if p.StatPrefix == "" {
		c.refuse("stat_prefix", "required")
	}
	if p.TableScope == "" {
		p.TableScope = p.StatPrefix
	}
	c.protocol(m, p)
	c.filters(m, p)
	switch rs := m.GetRouteSpecifier().(type) {
	case *proxyv1alpha.MetaProtocolProxy_RouteConfig:
		p.RouteConfig = rs.RouteConfig
	case *proxyv1alpha.MetaProtocolProxy_Rds:
		p.RDS = c.rds(rs.Rds)
	default:
		c.refuse("route_config", "required")
	}
	logs, err := accesslog.Parse(m.GetAccessLog(), m.GetAccessLogOptions())
	fields.Each(err, func(e *fields.Error) { c.refuse(e.Path, "%s", e.Reason) })
	p.AccessLogs = logs
	p.IdleTimeout = c.duration(m.GetIdleTimeout(), "idle_timeout", time.Millisecond, 0)
	p.RequestTimeout = c.duration(m.GetRequestTimeout(), "request_timeout", time.Millisecond, 15*time.Second)
	switch m.GetDelivery() {
	case proxyv1alpha.MetaProtocolProxy_LISTENER:
		p.Delivery = DeliveryListener
	case proxyv1alpha.MetaProtocolProxy_ECDS:
		p.Delivery = DeliveryECDS
	default:
		c.refuse("delivery", "unknown value %d", m.GetDelivery())
	}
	p.Direction = m.GetTrafficDirection()
	if p.Direction < corev3.TrafficDirection_UNSPECIFIED || p.Direction > corev3.TrafficDirection_OUTBOUND {
		c.refuse("traffic_direction", "unknown value %d", p.Direction)
	}
	if p.Direction == corev3.TrafficDirection_UNSPECIFIED {
		for i, r := range p.RouteConfig.GetRoutes() {
			if r.GetMatch().GetDirection() != corev3.TrafficDirection_UNSPECIFIED {
				c.refuse(fmt.Sprintf("route_config.routes[%d].match.direction", i), "matches nothing without a traffic_direction")
			}
		}
	}
	c.tracing(m.GetTracing(), p)
	c.upstream(m.GetUpstream(), p)
	c.limits(m.GetLimits(), p)
	if pt := m.GetPassthrough(); pt != nil {
		if p.Passthrough = pt.GetCluster(); p.Passthrough == "" {
			c.refuse("passthrough.cluster", "required")
		}
	}
	return p, c.errs
}

func (c *checker) protocol(m *proxyv1alpha.MetaProtocolProxy, p *Proxy) {
	ap := m.GetProtocol()
	p.Protocol = ap.GetName()
	if p.Protocol == "" {
		p.Protocol = m.GetApplicationProtocol()
	}
	if p.Protocol == "" {
		c.refuse("protocol.name", "required")
	}
	c.codecs(m, p)
	if ap.GetMultiplexing() {
		p.ConnectionMode, p.ModeField = Shared, "protocol.multiplexing"
	}
	const field = "protocol.connection_mode"
	switch ap.GetConnectionMode() {
	case proxyv1alpha.ApplicationProtocol_AUTO:
	case proxyv1alpha.ApplicationProtocol_SHARED:
		p.ConnectionMode, p.ModeField = Shared, field
	case proxyv1alpha.ApplicationProtocol_EXCLUSIVE:
		p.ConnectionMode, p.ModeField = Exclusive, field
	default:
		c.refuse(field, "unknown value %d", ap.GetConnectionMode())
	}
}

func (c *checker) codecs(m *proxyv1alpha.MetaProtocolProxy, p *Proxy) {
	ap := m.GetProtocol()
	if several := ap.GetCodecs(); len(several) > 0 {
		if ap.GetCodec() != nil {
			c.refuse("protocol.codec", "there are protocol.codecs too")
		}
		for i, codec := range several {
			if codec.GetName() == "" {
				c.refuse(fmt.Sprintf("protocol.codecs[%d].name", i), "required")
			}
			p.Codecs = append(p.Codecs, Extension{codec.GetName(), codec.GetConfig()})
		}
		return
	}
	codec := ap.GetCodec()
	if codec.GetName() == "" {
		codec = m.GetCodec()
	}
	switch {
	case codec.GetName() != "":
	case ap.GetCodec() != nil:
		c.refuse("protocol.codec.name", "required")
	default:
		c.refuse("protocol.codec", "required")
	}
	p.Codecs = []Extension{{codec.GetName(), codec.GetConfig()}}
}

func (c *checker) filters(m *proxyv1alpha.MetaProtocolProxy, p *Proxy) {
	fs := m.GetMetaProtocolFilters()
	for i, f := range fs {
		if f.GetName() == "" {
			c.refuse(fmt.Sprintf("meta_protocol_filters[%d].name", i), "required")
		}
		if f.GetName() == RouterName {
			if i != len(fs)-1 {
				c.refuse(fmt.Sprintf("meta_protocol_filters[%d]", i+1), "comes after the router, which ends the chain")
			}
			if f.GetDisabled() {
				c.refuse(fmt.Sprintf("meta_protocol_filters[%d].disabled", i), "the router cannot be disabled")
			}
		}
		p.Filters = append(p.Filters, Filter{Extension{f.GetName(), f.GetConfig()}, f.GetMatch(), f.GetDisabled()})
	}
	if len(fs) == 0 {
		p.Filters = []Filter{{Extension: Extension{Name: RouterName}}}
	}
}

func (c *checker) tracing(t *proxyv1alpha.Tracing, p *Proxy) {
	if t == nil {
		return
	}
	const path = "tracing"
	how, err := tracing.Parse(t, path)
	to, err2 := export.ParseProvider(t.GetProvider(), path+".provider")
	fields.Each(errors.Join(err, err2), func(e *fields.Error) { c.refuse(e.Path, "%s", e.Reason) })
	how.Formats = tracing.Formats{B3: to.B3, W3C: to.W3C, TraceID128: to.TraceID128, SharedSpan: to.SharedSpan}
	if p.Direction == corev3.TrafficDirection_OUTBOUND {
		how.Kind = tracing.Client
	}
	p.Tracing, p.Spans = how, to
}

func (c *checker) upstream(u *proxyv1alpha.UpstreamOptions, p *Proxy) {
	const most = 1 << 20
	o := &p.Upstream
	o.MaxConnections = c.number(u.GetMaxConnections(), "upstream.max_connections", 1, 1024, 8)
	o.MinConnections = c.number(u.GetMinConnections(), "upstream.min_connections", 1, o.MaxConnections, 1)
	o.MaxExclusiveConnections = c.number(u.GetMaxExclusiveConnections(), "upstream.max_exclusive_connections", 1, 65536, 1024)
	o.TargetInFlight = c.number(u.GetTargetInFlight(), "upstream.target_in_flight", 1, 65536, 256)
	o.MaxPendingRequests = c.number(u.GetMaxPendingRequests(), "upstream.max_pending_requests", 1, most, 1024)
	o.MaxPendingBytes = c.number(u.GetMaxPendingBytes(), "upstream.max_pending_bytes", 1, math.MaxInt32, 16<<20)
	o.MaxRequests = c.number(u.GetMaxRequests(), "upstream.max_requests", 1, most, 65536)
	o.MaxConnectionAge = c.duration(u.GetMaxConnectionAge(), "upstream.max_connection_age", 100*time.Millisecond, 30*time.Second)
	o.IdleTimeout = c.duration(u.GetIdleTimeout(), "upstream.idle_timeout", 100*time.Millisecond, time.Minute)
	o.ConnectBackoffMax = c.duration(u.GetConnectBackoffMax(), "upstream.connect_backoff_max", 25*time.Millisecond, time.Second)
	switch u.GetOriginalDst() {
	case proxyv1alpha.UpstreamOptions_AUTO:
		p.OriginalDst = OriginalDstAuto
	case proxyv1alpha.UpstreamOptions_ALWAYS:
		p.OriginalDst = OriginalDstAlways
	case proxyv1alpha.UpstreamOptions_NEVER:
		p.OriginalDst = OriginalDstNever
	default:
		c.refuse("upstream.original_dst", "unknown value %d", u.GetOriginalDst())
	}
	o.OriginalSrc = u.GetOriginalSrc()
	if o.OriginalSrc && p.ConnectionMode != Exclusive {
		c.refuse("upstream.original_src", "needs protocol.connection_mode EXCLUSIVE, as a shared connection has one source and many clients")
	}
}

func (c *checker) limits(l *proxyv1alpha.Limits, p *Proxy) {
	o := &p.Limits
	o.MaxFrameBytes = c.number(l.GetMaxFrameBytes(), "limits.max_frame_bytes", 16, 1<<30, 0)
	o.MaxRequestsInFlight = c.number(l.GetMaxRequestsInFlight(), "limits.max_requests_in_flight", 1, 1<<20, 4096)
	o.MaxWriteBufferBytes = c.number(l.GetMaxWriteBufferBytes(), "limits.max_write_buffer_bytes", 0, math.MaxInt32, 16<<20)
	o.MaxUnreadBytes = c.number(l.GetMaxUnreadBytes(), "limits.max_unread_bytes", 0, math.MaxInt32, 128<<20)
	o.MaxPartialBytes = c.number(l.GetMaxPartialBytes(), "limits.max_partial_bytes", 0, math.MaxInt32, 64<<20)
	o.PartialFrameTimeout = c.duration(l.GetPartialFrameTimeout(), "limits.partial_frame_timeout", time.Millisecond, 30*time.Second)
	o.MaxStreams = c.number(l.GetMaxStreams(), "limits.max_streams", 0, 1<<16, 1024)
	o.StreamIdleTimeout = c.duration(l.GetStreamIdleTimeout(), "limits.stream_idle_timeout", time.Millisecond, 5*time.Minute)
}
