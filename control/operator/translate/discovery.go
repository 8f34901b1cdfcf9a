package translate

import (
	"slices"

	api "github.com/meltemi-mesh/meltemi/control/operator/api/metaprotocol/v1alpha1"
	"github.com/meltemi-mesh/meltemi/control/translate/rds"

	"github.com/meltemi-mesh/meltemi/control/ir"
)

// ByRDS tells whether the routes of a router come by RDS.
func ByRDS(r *api.MetaRouter) bool { return r != nil && r.Spec.RouteDelivery == api.RDS }

// discovery has routes come by RDS, if the router wants it.
func (t *translation) discovery() {
	if !ByRDS(t.out.Router) {
		return
	}
	if t.Mesh.RDS == nil {
		t.refuse(t.routerObject(), "spec.routeDelivery", "RDS: the operator serves no routes, see its -rds-address")
		return
	}
	t.s.RDS = t.Mesh.RDS
}

// tables are what is served of a service that is complete and without a fault, and to
// whom: to those who get the filters that ask.
func (t *translation) tables(s *ir.Service) {
	if s.RDS == nil {
		return
	}
	var err error
	if t.out.Tables, err = rds.Tables(s); err != nil {
		t.refuse(t.routerObject(), "spec", "%v", err)
		return
	}
	readers := []string{}
	for _, w := range s.Clients {
		if w.MeshWide {
			return
		}
		readers = append(readers, w.Namespace)
	}
	for _, g := range s.Gateways {
		readers = append(readers, g.Namespace)
	}
	slices.Sort(readers)
	t.out.Readers = slices.Compact(readers)
}
