package ir

import "fmt"

// Clusters calls each for the parts of a route that name a cluster: its action,
// or the weighted clusters of that. The name, or a Destination, is in part under
// key; path is that of part within the route.
func Clusters(route Object, each func(part Object, key, path string)) {
	action, ok := route["route"].(Object)
	if !ok {
		return
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
	each(action, "cluster", "route")
}

// What the parts of a Destination have to be.
const (
	WantHost   = "want the full name of one service, such as greeter.demo" + clusterDomain
	WantSubset = "want the name of a subset"
	WantPort   = "want a port between 1 and 65535"
)
