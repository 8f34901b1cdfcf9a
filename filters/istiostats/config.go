package istiostats

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	istiostatsv1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/istio_stats/v1alpha"
)

// maxService is what the name of a service may have, in bytes: as a host name.
const maxService = 253

// settings are a frozen IstioStats. What is the environment's to say is not known yet.
type settings struct {
	inbound bool // the reporter is the destination
	own     filter.Workload
	service string // of inbound requests, "" if the configuration does not say
}

func parse(config *anypb.Any, env *filter.Env) (filter.Config, error) {
	m := new(istiostatsv1alpha.IstioStats)
	if config != nil {
		if err := fields.Unpack(config, m); err != nil {
			return nil, err
		}
	}
	w := m.GetWorkload()
	s := &settings{
		inbound: env.Direction == corev3.TrafficDirection_INBOUND,
		service: m.GetDestinationService(),
		own: filter.Workload{
			Name: w.GetName(), Namespace: w.GetNamespace(), WorkloadName: w.GetWorkloadName(),
			ClusterID: w.GetClusterId(), Owner: w.GetOwner(), Labels: w.GetLabels(),
		},
	}
	var faults fields.Faults
	if n := len(s.service); n > maxService {
		faults.Add("destination_service", "must have at most %d bytes, has %d", maxService, n)
	}
	return s, faults.Err()
}
