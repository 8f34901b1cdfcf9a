package metadataexchange

import (
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	metadataexchangev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/metadata_exchange/v1alpha"
)

const (
	// maxLabels are the additional ones.
	maxLabels = 100
	// maxID and maxMetadata are what an id and what is sent of a workload may have, in
	// bytes on the wire.
	maxID, maxMetadata = 1 << 10, 8 << 10
)

// settings are a frozen MetadataExchange. What is the environment's to say is not known
// yet.
type settings struct {
	direction corev3.TrafficDirection
	own       filter.Workload
	labels    map[string]bool // that are sent and learnt
}

// usualLabels are sent and learnt in any case, as by Istio's proxies.
var usualLabels = []string{"app", "version", "service.istio.io/canonical-name", "service.istio.io/canonical-revision"}

func parse(config *anypb.Any, env *filter.Env) (filter.Config, error) {
	m := new(metadataexchangev1alpha.MetadataExchange)
	if config != nil {
		if err := fields.Unpack(config, m); err != nil {
			return nil, err
		}
	}
	var faults fields.Faults
	w := m.GetWorkload()
	s := &settings{
		direction: env.Direction,
		own: filter.Workload{
			ID: m.GetNodeId(), Name: w.GetName(), Namespace: w.GetNamespace(), WorkloadName: w.GetWorkloadName(),
			ClusterID: w.GetClusterId(), Owner: w.GetOwner(), Labels: w.GetLabels(),
		},
		labels: map[string]bool{},
	}
	if n := len(s.own.ID); n > maxID {
		faults.Add("node_id", "must have at most %d bytes, has %d", maxID, n)
	}
	if n := len(m.GetAdditionalLabels()); n > maxLabels {
		faults.Add("additional_labels", "at most %d, has %d", maxLabels, n)
	}
	for i, l := range m.GetAdditionalLabels() {
		if l == "" {
			faults.Add(fmt.Sprintf("additional_labels[%d]", i), "required")
		}
		s.labels[l] = true
	}
	for _, l := range usualLabels {
		s.labels[l] = true
	}
	if !settable(env.Codecs) {
		faults.Add("", "no codec of the listener can set and remove attributes")
	}
	return s, faults.Err()
}

func settable(cs []codecs.Codec) bool {
	for _, c := range cs {
		if _, is := c.(codecs.Remover); is {
			return true
		}
	}
	return len(cs) == 0
}
