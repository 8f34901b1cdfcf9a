package envoyfilter

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/meltemi-mesh/meltemi/control/fault"
	"github.com/meltemi-mesh/meltemi/control/ir"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/config"
)

// config makes a MetaProtocolProxy of what is generated and what the service has
// under side.
func (g *generator) config(p *ir.Port, side, statPrefix string, routes []any) object {
	extra := g.own(side)
	g.ahead = 0
	cfg := exact(extra).(object)
	g.observe(cfg, extra)
	if side == "outbound" {
		g.balance(cfg)
	}
	g.merge(cfg, object{
		"stat_prefix":  statPrefix,
		"protocol":     g.protocol(p),
		"route_config": object{"name": fmt.Sprintf("%s_%d", g.s.Host, p.Port), "routes": routes},
		"delivery":     string(g.s.Delivery),
		// As istiod says of the listeners.
		"traffic_direction": strings.ToUpper(side),
	}, side)
	return cfg
}

// Outbound is the configuration of the filter of clients that call a port, with its routes
// in it wherever they come from. The service is complete and without a fault.
func Outbound(s *ir.Service, p *ir.Port) ir.Object {
	g := &generator{s: s}
	routes, _ := g.routes(p)
	return g.config(p, "outbound", clusterOf(g.self(p)), routes)
}

// discover has routes come from a server, if the service wants it, instead of being in a
// configuration, with which they have been checked.
func (g *generator) discover(cfg object) {
	if g.s.RDS == nil {
		return
	}
	name := cfg["route_config"].(object)["name"]
	delete(cfg, "route_config")
	cfg["rds"] = object{
		"route_config_name": name,
		"type_url":          config.ProxyRoutes,
		"config_source": object{
			"resource_api_version": "V3",
			"api_config_source": object{
				"api_type": "DELTA_GRPC", "transport_api_version": "V3", "set_node_on_first_message_only": true,
				"grpc_services": []any{object{"envoy_grpc": object{"cluster_name": clusterOf(*g.s.RDS)}}},
			},
		},
	}
}

// own are the fields that the service has for a side alone.
func (g *generator) own(side string) object {
	if side == "inbound" {
		return g.s.Inbound
	}
	return g.s.Outbound
}

// exact is a copy in which whole numbers that a Struct, whose numbers are of 64
// bits with a fraction, would round are strings, which protobuf's JSON reads as
// well.
func exact(v any) any {
	switch v := v.(type) {
	case object:
		c := make(object, len(v))
		for k, e := range v {
			c[k] = exact(e)
		}
		return c
	case []any:
		c := make([]any, len(v))
		for i, e := range v {
			c[i] = exact(e)
		}
		return c
	case int64:
		if v >= 1<<53 || v <= -1<<53 {
			return strconv.FormatInt(v, 10)
		}
	case uint64:
		if v >= 1<<53 {
			return strconv.FormatUint(v, 10)
		}
	}
	return v
}

// merge adds the fields of from to those of m, which may not have them.
func (g *generator) merge(m, from object, path string) {
	for _, k := range slices.Sorted(maps.Keys(from)) {
		v, at := from[k], fault.Join(path, k)
		old, given := m[k]
		if !given {
			m[k] = v
			continue
		}
		mo, ok := old.(object)
		fo, ok2 := v.(object)
		if ok && ok2 {
			g.merge(mo, fo, at)
		} else {
			g.refuse(at, "is generated")
		}
	}
}

// protocol is the field of that name.
func (g *generator) protocol(p *ir.Port) object {
	if p.Codec != nil {
		codec := exact(p.Codec).(object)
		name, _ := codec["name"].(string)
		return object{"name": name[strings.LastIndexByte(name, '.')+1:], "codec": codec}
	}
	var codecs []any
	var names []string
	for _, name := range p.Protocol {
		names = append(names, name[strings.LastIndexByte(name, '.')+1:])
		if !strings.Contains(name, ".") {
			name = codecPrefix + name
		}
		codecs = append(codecs, object{"name": name})
	}
	if len(codecs) == 1 {
		return object{"name": names[0], "codec": codecs[0]}
	}
	return object{"name": strings.Join(names, "-"), "codecs": codecs}
}

// check has the filter's own loader look at a configuration, unless making it
// had more faults than those before, and tells its faults at the fields of the
// service that they come from.
func (g *generator) check(before int, cfg object, p *ir.Port, path, side string) {
	if len(g.faults) > before {
		return
	}
	raw, err := json.Marshal(cfg)
	if err != nil {
		g.refuse(path, "%v", err)
		return
	}
	for _, e := range filter.Check(raw) {
		g.refuse(g.origin(e.Path, p, path, side), "%s", e.Reason)
	}
}

// origin is the field of the service behind a field of a configuration.
func (g *generator) origin(field string, p *ir.Port, path, side string) string {
	if rest, ok := strings.CutPrefix(field, "route_config.routes"); ok && side != "inbound" {
		return path + ".routes" + rest
	}
	if field = g.originOfFilter(field); field == "" {
		if side == "inbound" {
			return "authorization"
		}
		return "telemetry"
	}
	for of, at := range g.observed(g.own(side)) {
		if rest, ok := strings.CutPrefix(field, of); ok && (rest == "" || rest[0] == '.' || rest[0] == '[') {
			return at + rest
		}
	}
	rest, ok := strings.CutPrefix(field, "protocol.codec")
	switch {
	case !ok && field != "protocol.name":
		return side + "." + field
	case ok && p.Codec != nil:
		return path + ".codec" + rest
	default:
		return path + ".protocol"
	}
}

// preserveSource has the workload see its clients' addresses.
func (g *generator) preserveSource(cfg object, p *ir.Port) {
	protocol, _ := cfg["protocol"].(object)
	if mode, _ := protocol["connection_mode"].(string); mode != "EXCLUSIVE" {
		g.refuse("server.preserveSource", "needs connections of which each serves one client (inbound: {protocol: {connection_mode: EXCLUSIVE}}), "+
			"and those to port %d are shared: the workload sees the proxy's address, as it does in Istio under REDIRECT", p.TargetPort)
		return
	}
	upstream(cfg)["original_src"] = true
}

// upstream is the part of a configuration of that name.
func upstream(cfg object) object {
	u, ok := cfg["upstream"].(object)
	if !ok {
		u = object{}
		cfg["upstream"] = u
	}
	return u
}

// hostPorts are the different services and ports of destinations, sorted.
func hostPorts(to []ir.Destination) []ir.Destination {
	var hps []ir.Destination
	for _, d := range to {
		hps = append(hps, ir.Destination{Host: d.Host, Port: d.Port})
	}
	slices.SortFunc(hps, func(a, b ir.Destination) int {
		return cmp.Or(strings.Compare(a.Host, b.Host), a.Port-b.Port)
	})
	return slices.Compact(hps)
}
