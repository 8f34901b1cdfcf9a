package envoyfilter

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/meltemi-mesh/meltemi/control/source"
)

// destination is where a route leads in Istio's words.
type destination struct {
	host, subset string
	port         int
}

// cluster is Istio's name of the cluster that clients use.
func (d destination) cluster() string {
	return fmt.Sprintf("outbound|%d|%s|%s", d.port, d.subset, d.host)
}

// routes are the routes of a port, for its configuration, and the places to
// which they lead.
func (f *faults) routes(p *Port, path string) (routes []any, to []destination) {
	n := p.Routes
	if n == nil {
		n, path = f.s.Routes, "routes"
	} else {
		path += ".routes"
	}
	self := destination{f.s.Host, "", p.Port}
	if n == nil {
		return []any{object{"route": object{"cluster": self.cluster()}}}, []destination{self}
	}
	list := f.list(n, path)
	for i, r := range list {
		at := fmt.Sprintf("%s[%d]", path, i)
		route, ok := r.(object)
		if !ok {
			f.refuse(at, "want an object")
			continue
		}
		action, given := route["route"]
		if !given {
			action = object{}
			route["route"] = action
		}
		a, ok := action.(object)
		if !ok {
			f.refuse(at+".route", "want an object")
			continue
		}
		to = append(to, f.action(a, self, at+".route")...)
	}
	return list, to
}

// action turns the destinations of a route's action into clusters.
func (f *faults) action(a object, self destination, path string) (to []destination) {
	for _, k := range []string{"weighted_clusters", "weightedClusters"} {
		wc, ok := a[k].(object)
		if !ok {
			continue
		}
		clusters, _ := wc["clusters"].([]any)
		for i, c := range clusters {
			if c, ok := c.(object); ok {
				to = f.destination(c, "name", self, fmt.Sprintf("%s.%s.clusters[%d]", path, k, i), to)
			}
		}
		return to // what is wrong with the rest the filter's loader says
	}
	return f.destination(a, "cluster", self, path, to)
}

// destination replaces subset, host and port in m by the cluster under key.
func (f *faults) destination(m object, key string, self destination, path string, to []destination) []destination {
	if name, given := m[key]; given {
		for _, k := range []string{"subset", "host", "port"} {
			if _, too := m[k]; too {
				f.refuse(path+"."+k, "there is %s too", key)
			}
		}
		// Istio's own name, given in full.
		if s, ok := name.(string); ok {
			if parts := strings.Split(s, "|"); len(parts) == 4 && parts[0] == "outbound" {
				d := destination{host: parts[3], subset: parts[2]}
				if _, err := fmt.Sscan(parts[1], &d.port); err == nil {
					return append(to, d)
				}
			}
		}
		return to
	}
	d := self
	if v, given := m["host"]; given {
		h, ok := v.(string)
		if !ok || !dnsName.MatchString(h) || !strings.Contains(h, ".") {
			f.refuse(path+".host", "want the full name of one service, such as greeter.demo%s", clusterDomain)
		}
		d.host = h
	}
	if v, given := m["subset"]; given {
		subset, ok := v.(string)
		switch {
		case !ok || subset == "" || strings.Contains(subset, "|"):
			f.refuse(path+".subset", "want the name of a subset")
		case f.s.Headless && d.host == f.s.Host:
			f.refuse(path+".subset", "a headless service has none: its clients have chosen the endpoint. Name the host of one with an address")
		}
		d.subset = subset
	}
	if v, given := m["port"]; given {
		n, ok := v.(int64)
		if !ok || n < 1 || n > 65535 {
			f.refuse(path+".port", "want a port between 1 and 65535")
		}
		d.port = int(n)
	}
	for _, k := range []string{"subset", "host", "port"} {
		delete(m, k)
	}
	m[key] = d.cluster()
	return append(to, d)
}

// value reads a node of the input, a second one each time.
func (f *faults) value(n *yaml.Node, path string) any {
	v, fault := source.Value(n, path)
	if fault != nil {
		f.errs = append(f.errs, fault)
	}
	return v
}

func (f *faults) list(n *yaml.Node, path string) []any {
	v := f.value(n, path)
	l, ok := v.([]any)
	if !ok && v != nil {
		f.refuse(path, "want a list")
	}
	return l
}

func (f *faults) object(n *yaml.Node, path string) object {
	if n == nil {
		return object{}
	}
	v := f.value(n, path)
	o, ok := v.(object)
	switch {
	case ok:
		return o
	case v != nil:
		f.refuse(path, "want an object")
	}
	return object{} // others write into it
}
