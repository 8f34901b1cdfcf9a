package envoyfilter

import (
	"fmt"
	"slices"
	"strings"

	"github.com/meltemi-mesh/meltemi/control/ir"
)

// self is where a port leads.
func (g *generator) self(p *ir.Port) ir.Destination {
	return ir.Destination{Host: g.s.Host, Port: p.Port}
}

// clusterOf is Istio's name of the cluster that clients use.
func clusterOf(d ir.Destination) string {
	return fmt.Sprintf("outbound|%d|%s|%s", d.Port, d.Subset, d.Host)
}

// destinationOf is what Istio's name of a cluster says.
func destinationOf(cluster string) (d ir.Destination, ok bool) {
	parts := strings.Split(cluster, "|")
	if len(parts) != 4 || parts[0] != "outbound" {
		return d, false
	}
	d.Host, d.Subset = parts[3], parts[2]
	_, err := fmt.Sscan(parts[1], &d.Port)
	return d, err == nil
}

func has(o object, keys ...string) bool {
	return slices.ContainsFunc(keys, func(k string) bool { _, given := o[k]; return given })
}

// routes are the routes of a port, for its configuration, and the places to
// which they lead.
func (g *generator) routes(p *ir.Port) (routes []any, to []ir.Destination) {
	if p.Routes == nil {
		self := g.self(p)
		return []any{object{"route": object{"cluster": clusterOf(self)}}}, []ir.Destination{self}
	}
	routes = []any{}
	for _, r := range p.Routes {
		r = exact(r).(object)
		if !has(r, "route", "direct_response", "directResponse") {
			r["route"] = object{}
		}
		ir.Clusters(r, func(part object, key, _ string) {
			name, given := part[key]
			if !given {
				name = ir.Destination{}
			}
			switch v := name.(type) {
			case ir.Destination:
				d := g.self(p)
				d.Subset = v.Subset
				if v.Host != "" {
					d.Host = v.Host
				}
				if v.Port != 0 {
					d.Port = v.Port
				}
				part[key] = clusterOf(d)
				to = append(to, d)
			case string:
				if d, ok := destinationOf(v); ok {
					to = append(to, d)
				}
			}
		})
		routes = append(routes, r)
	}
	return routes, to
}
