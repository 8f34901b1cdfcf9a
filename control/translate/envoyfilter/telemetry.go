package envoyfilter

import networking "istio.io/api/networking/v1alpha3"

const (
	statsName = "aeraki.meta_protocol.filters.istio_stats"
	statsType = "type.googleapis.com/aeraki.meta_protocol_proxy.filters.istio_stats.v1alpha.IstioStats"
	// stockStats is Istio's own filter, which counts connections.
	stockStats = "istio.stats"
)

// count has calls counted as Istio's standard metrics: before all other filters, so that
// what these refuse is counted, too.
func (g *generator) count(cfg object, side string) {
	if g.s.Telemetry.NoIstioStats {
		return
	}
	filters, _ := cfg[filtersName].([]any)
	for _, f := range filters {
		if f, is := f.(object); is && f["name"] == statsName {
			return // with a configuration of its own
		}
	}
	config := object{"@type": statsType}
	if side == "inbound" {
		config["destination_service"] = g.s.Host
	}
	g.prepend(cfg, []any{object{"name": statsName, "config": config}})
}

// observed are fields of MetaProtocolProxy that the service's telemetry has, by where they
// stand in that, but for those that a side has of its own.
func (g *generator) observed(own object) map[string]string {
	t, of := &g.s.Telemetry, map[string]string{}
	if t.Tracing != nil && own["tracing"] == nil {
		of["tracing"] = "telemetry.tracing"
	}
	if t.AccessLog != nil && own["access_log"] == nil && own["accessLog"] == nil {
		of["access_log"] = "telemetry.accessLog"
	}
	return of
}

// observe has calls traced and logged.
func (g *generator) observe(cfg, own object) {
	t := &g.s.Telemetry
	for field := range g.observed(own) {
		if field == "tracing" {
			cfg[field] = exact(t.Tracing)
		} else {
			cfg[field] = exact(t.AccessLog)
		}
	}
}

// uncount takes Istio's own filter out of the chains: what it would count is known as
// calls, and to Kiali it would be another edge, to nobody.
func (g *generator) uncount(patch func(op networking.EnvoyFilter_Patch_Operation, l *networking.EnvoyFilter_ListenerMatch, chain, filter string, value object), listeners []*networking.EnvoyFilter_ListenerMatch) {
	if g.s.Telemetry.NoIstioStats {
		return
	}
	for _, l := range listeners {
		patch(networking.EnvoyFilter_Patch_REMOVE, l, "", stockStats, nil)
	}
}
