package ir

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Clusters calls each for the parts of a route that name a cluster: its mirrors, and
// its action, the weighted clusters of that, or those that a request may name. The
// name, or a Destination, is in part under key; path is that of part within the route.
func Clusters(route Object, each func(part Object, key, path string)) {
	action, ok := route["route"].(Object)
	if !ok {
		return
	}
	for _, k := range []string{"request_mirror_policies", "requestMirrorPolicies"} {
		mirrors, _ := action[k].([]any)
		for i, m := range mirrors {
			// One that names none leads nowhere: the filter's loader says so.
			if m, ok := m.(Object); ok && slices.ContainsFunc([]string{"cluster", "host", "subset", "port"}, func(k string) bool { _, is := m[k]; return is }) {
				each(m, "cluster", fmt.Sprintf("route.%s[%d]", k, i))
			}
		}
	}
	for _, k := range []string{"weighted_clusters", "weightedClusters"} {
		wc, ok := action[k].(Object)
		if !ok {
			continue
		}
		clusters, _ := wc["clusters"].([]any)
		for i, c := range clusters {
			if c, ok := c.(Object); ok {
				each(c, "name", fmt.Sprintf("route.%s.clusters[%d]", k, i))
			}
		}
		return // what is wrong with the rest the filter's loader says
	}
	for _, k := range []string{"cluster_from_metadata", "clusterFromMetadata"} {
		from, ok := action[k].(Object)
		if !ok {
			continue
		}
		for _, k2 := range []string{"allowed_clusters", "allowedClusters"} {
			allowed, _ := from[k2].([]any)
			for i := range allowed {
				name(allowed, i, each, fmt.Sprintf("route.%s.%s[%d]", k, k2, i))
			}
		}
		return
	}
	each(action, "cluster", "route")
}

// name calls each for a name in a list, as if it stood in a part of its own; a
// Destination does.
func name(list []any, i int, each func(part Object, key, path string), path string) {
	part, ok := list[i].(Object)
	if s, is := list[i].(string); is {
		part, ok = Object{"name": s}, true
	}
	if !ok {
		return
	}
	each(part, "name", path)
	if s, is := part["name"].(string); is {
		list[i] = s
	}
}

// What the parts of a Destination have to be.
const (
	WantHost   = "want the full name of one service, such as greeter.demo" + clusterDomain
	WantSubset = "want the name of a subset"
	WantPort   = "want a port between 1 and 65535"
)

// Seconds is a duration as protobuf's JSON has it: with nine digits behind the point at
// most, which those of a float64 can exceed.
func Seconds(d time.Duration) string {
	s := fmt.Sprintf("%d.%09d", d/time.Second, d%time.Second)
	return strings.TrimRight(strings.TrimRight(s, "0"), ".") + "s"
}
