// Package rds makes the route configurations that clients and gateways of a service are
// served by RDS, in Meltemi's own type and in Envoy's.
package rds

import (
	"encoding/json"
	"fmt"

	"github.com/meltemi-mesh/meltemi/control/ir"
	"github.com/meltemi-mesh/meltemi/control/translate/envoyfilter"
	"github.com/meltemi-mesh/meltemi/filter/config"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// Tables makes those of a service for which envoyfilter.Generate has found no fault: one
// of each port, as it would be within the filters' configurations.
func Tables(s *ir.Service) ([]*routev1alpha.RouteConfiguration, error) {
	var tables []*routev1alpha.RouteConfiguration
	for i := range s.Ports {
		raw, err := json.Marshal(envoyfilter.Outbound(s, &s.Ports[i]))
		if err != nil {
			return nil, fmt.Errorf("ports[%d]: %w", i, err)
		}
		m, err := config.Parse(raw)
		if err != nil {
			return nil, fmt.Errorf("ports[%d]: %w", i, err)
		}
		tables = append(tables, m.GetRouteConfig())
	}
	return tables, nil
}
