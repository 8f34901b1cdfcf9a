package main

import "strings"

// everythingTarget is Meltemi with all of it: policies, guards and telemetry.
const everythingTarget = "meltemi-everything"

// everythingFilters are guardingFilters with those of Istio's metrics.
func everythingFilters() string {
	return "\n              traffic_direction: INBOUND" +
		strings.Replace(guardingFilters(), "meta_protocol_filters:", "meta_protocol_filters:\n              - name: aeraki.meta_protocol.filters.istio_stats", 1)
}

// everything are its scenarios: it may cost as much as forwarding blindly does.
var everything = []scenario{
	{
		name: "everything", conns: 16, outstanding: 1,
		targets: []string{"tcp_proxy", "meltemi", everythingTarget}, goals: []goal{{everythingTarget, "tcp_proxy", 1.00}},
	},
	{
		name: "everything-200x1", conns: 200, outstanding: 1,
		targets: []string{"tcp_proxy", "meltemi", everythingTarget}, goals: []goal{{everythingTarget, "tcp_proxy", 1.00}},
	},
}
