// Package config turns the bytes that a host hands to the meta_protocol_proxy
// filter into a validated, frozen [Proxy]. It is strict: what is unknown,
// impossible, or not built yet is refused with the field's path.
package config

import (
	"fmt"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/filter/accesslog"
	"github.com/meltemi-mesh/meltemi/filter/export"
	"github.com/meltemi-mesh/meltemi/filter/tracing"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// Proxy is one listener's configuration with all defaults applied.
type Proxy struct {
	StatPrefix string
	// Protocol is the name of the protocol, the first part of the stats' names.
	Protocol string
	// Codecs has one entry, or several of which the first bytes of a connection
	// choose.
	Codecs  []Extension
	Filters []Filter // at least the router
	// StrictFilterOrder: filters that contradict their phases are refused.
	StrictFilterOrder bool
	// RouteConfig is as it came: package route validates it. nil when there is RDS.
	RouteConfig *routev1alpha.RouteConfiguration
	RDS         *RDS // nil when there is RouteConfig
	TableScope  string
	// RequestTimeout is positive. IdleTimeout is 0 when there is none.
	RequestTimeout, IdleTimeout time.Duration
	Delivery                    Delivery
	Direction                   corev3.TrafficDirection
	ConnectionMode              ConnectionMode
	ModeField                   string // that says so, "" for Auto
	OriginalDst                 OriginalDst
	Upstream                    Upstream
	Limits                      Limits
	AccessLogs                  *accesslog.Logs // nil if there are none
	Tracing                     *tracing.Config // nil if there is none
	Spans                       export.Provider // where those of Tracing go
	// Passthrough is the cluster for connections that no codec recognises, "" if
	// they are closed.
	Passthrough string
}

// TableName is the name of the route table.
func (p *Proxy) TableName() string {
	if p.RDS != nil {
		return p.RDS.Name
	}
	return p.RouteConfig.GetName()
}

// SameRoutes reports whether p and o have the same routes, or the same source of
// them.
func (p *Proxy) SameRoutes(o *Proxy) bool {
	if p.RDS != nil && o.RDS != nil {
		return p.RDS.Key == o.RDS.Key
	}
	return p.RDS == nil && o.RDS == nil && proto.Equal(p.RouteConfig, o.RouteConfig)
}

// Extension is a codec or filter by its registered name.
type Extension struct {
	Name   string
	Config *anypb.Any // may be nil
}

// Filter is one filter of the chain.
type Filter struct {
	Extension
	Match    *routev1alpha.RouteMatch // as it came; nil: all messages
	Disabled bool
}

// Delivery is how new versions of a configuration come.
type Delivery uint8

// The ways of delivery; see the proto.
const (
	DeliveryListener Delivery = iota
	DeliveryECDS
)

// ConnectionMode is how requests share upstream connections.
type ConnectionMode uint8

// The modes; Auto follows the codec.
const (
	Auto ConnectionMode = iota
	Shared
	Exclusive
)

// OriginalDst tells which clusters go where the client wanted to go.
type OriginalDst uint8

// The choices; see the proto.
const (
	OriginalDstAuto OriginalDst = iota
	OriginalDstAlways
	OriginalDstNever
)

// Upstream bounds the connections of a worker to a cluster; see the proto's
// UpstreamOptions.
type Upstream struct {
	MinConnections, MaxConnections, MaxExclusiveConnections int
	MaxConnectionAge, IdleTimeout, ConnectBackoffMax        time.Duration
	TargetInFlight, MaxPendingRequests, MaxPendingBytes     int
	MaxRequests                                             int
	OriginalSrc                                             bool
}

// Limits bound what one client can cost; see the proto's Limits.
type Limits struct {
	MaxFrameBytes       int // 0: the codec's default
	MaxRequestsInFlight int
	MaxWriteBufferBytes int
	MaxUnreadBytes      int // of all clients of a worker
	MaxPartialBytes     int // of all clients of a worker
	PartialFrameTimeout time.Duration
	MaxStreams          int
	StreamIdleTimeout   time.Duration
}

// Error says which field of which listener is refused, and why.
type Error struct {
	// StatPrefix of the configuration, "" when it could not be read.
	StatPrefix string
	// Path of the field, such as "route_config.routes[2].match".
	Path   string
	Reason string
}

func (e *Error) Error() string {
	var s string
	if e.StatPrefix != "" {
		s = fmt.Sprintf("stat_prefix %q: ", e.StatPrefix)
	}
	if e.Path != "" {
		s += e.Path + ": "
	}
	return s + e.Reason
}

// Load parses, validates and freezes one configuration. A returned error is an
// *Error, the first of those that LoadAll returns.
func Load(raw []byte) (*Proxy, error) {
	p, errs := LoadAll(raw)
	if len(errs) > 0 {
		return nil, errs[0]
	}
	return p, nil
}

// LoadAll is Load for people: it goes on after an error as long as what follows
// can still be judged. What it returns beside errors is what could be read, nil
// if nothing could.
func LoadAll(raw []byte) (*Proxy, []*Error) {
	m, errs := parse(raw)
	if len(errs) > 0 {
		return nil, errs
	}
	p, errs := freeze(m)
	for _, e := range errs {
		e.StatPrefix = m.GetStatPrefix()
	}
	return p, errs
}
