package rds

import (
	"cmp"
	"slices"
	"time"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/admin/v1alpha"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// failure is why nothing was taken, the zero value if something was.
type failure struct {
	at      time.Time
	why     string
	version string // of what was refused, "" if nothing came
}

// Dump tells of all subscriptions, in the order of their names and servers. It may be
// called by any goroutine.
func (r *Registry) Dump() ([]*adminv1alpha.RoutesConfigDump_DynamicRouteConfig, error) {
	r.mu.Lock()
	subs := make([]*subscription, 0, len(r.subs))
	for _, s := range r.subs {
		subs = append(subs, s)
	}
	r.mu.Unlock()
	slices.SortFunc(subs, func(a, b *subscription) int {
		return cmp.Or(cmp.Compare(a.cfg.Name, b.cfg.Name), cmp.Compare(a.cfg.Server(), b.cfg.Server()), cmp.Compare(a.cfg.Key, b.cfg.Key))
	})
	dump := make([]*adminv1alpha.RoutesConfigDump_DynamicRouteConfig, len(subs))
	for i, s := range subs {
		d, rc := s.dump()
		var err error
		if d.RouteConfig, err = anypb.New(rc); err != nil {
			return nil, err
		}
		dump[i] = d
	}
	return dump, nil
}

func (s *subscription) dump() (*adminv1alpha.RoutesConfigDump_DynamicRouteConfig, *routev1alpha.RouteConfiguration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := &adminv1alpha.RoutesConfigDump_DynamicRouteConfig{VersionInfo: s.version, ClientStatus: s.status(), Server: s.cfg.Server()}
	if f := s.failure; f.why != "" {
		d.ErrorState = &adminv3.UpdateFailureState{LastUpdateAttempt: timestamppb.New(f.at), Details: f.why, VersionInfo: f.version}
	}
	if s.held == nil {
		return d, &routev1alpha.RouteConfiguration{Name: s.cfg.Name}
	}
	d.LastUpdated = timestamppb.New(s.updated)
	return d, s.held
}

// status has no word for a table that stays in use though its server has it no more:
// that is what the last answer said.
func (s *subscription) status() adminv3.ClientResourceStatus {
	switch {
	case s.lost:
		return adminv3.ClientResourceStatus_RECEIVED_ERROR
	case !s.said:
		return adminv3.ClientResourceStatus_REQUESTED
	case s.last == Refused:
		return adminv3.ClientResourceStatus_NACKED
	case s.last == Empty:
		return adminv3.ClientResourceStatus_DOES_NOT_EXIST
	}
	return adminv3.ClientResourceStatus_ACKED
}
