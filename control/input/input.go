package input

import (
	"fmt"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/meltemi-mesh/meltemi/control/fault"
	"github.com/meltemi-mesh/meltemi/control/ir"
	"github.com/meltemi-mesh/meltemi/control/source"
)

// Load reads a service and completes it, and tells where its fields are written.
func Load(text []byte) (*ir.Service, *Places, source.Errors) {
	docs, bad := source.Parse(text)
	if bad != nil {
		return nil, nil, source.Errors{bad}
	}
	if fault := One(docs); fault != nil {
		return nil, nil, source.Errors{fault}
	}
	return New(docs[0])
}

// One says what is wrong with a file that has not one document, as a service's has.
func One(docs []*yaml.Node) *source.Error {
	if len(docs) == 1 {
		return nil
	}
	line := 0
	if len(docs) > 1 {
		line = docs[1].Line
	}
	return source.Errorf(line, "", "want one document, there are %d", len(docs))
}

// New is Load of a document that was parsed.
func New(root *yaml.Node) (*ir.Service, *Places, source.Errors) {
	var d description
	if errs := source.Decode(root, &d); len(errs) > 0 {
		return nil, nil, errs
	}
	r := &reader{places: &Places{root: root}}
	s := r.service(&d)
	faults := append(s.Complete(), r.faults...)
	if errs := append(r.places.Locate(faults), r.errs...); len(errs) > 0 {
		return nil, nil, errs
	}
	return s, r.places, nil
}

// reader makes a service of its description.
type reader struct {
	places *Places
	faults fault.List
	errs   source.Errors // of what cannot even be read
}

func (r *reader) service(d *description) *ir.Service {
	s := &ir.Service{
		Host: d.Host, Name: d.Name, Namespace: d.Namespace,
		Addresses: d.Addresses, Headless: d.Headless,
		Outbound: r.object(d.Outbound, "outbound"), Inbound: r.object(d.Inbound, "inbound"),
		Delivery:            ir.Delivery(d.Delivery),
		InitialFetchTimeout: r.timeout(d.InitialFetchTimeout, "initialFetchTimeout"),
		ProxyMetadata:       d.ProxyMetadata, ProxyVersion: d.ProxyVersion, Golang: ir.Golang{
			ProxyVersion: d.Golang.ProxyVersion, LibraryPath: d.Golang.LibraryPath, Socket: d.Golang.Socket,
			NoConnect: d.Golang.Connect != nil && !*d.Golang.Connect,
		},
		Module: d.Module, Socket: d.Socket, Admin: d.AdminAddress,
	}
	if t := d.Telemetry; t != nil {
		s.Telemetry = ir.Telemetry{
			NoIstioStats: t.IstioStats != nil && !*t.IstioStats,
			Metrics:      r.object(t.Metrics, "telemetry.metrics"),
			Tracing:      r.object(t.Tracing, "telemetry.tracing"),
			AccessLog:    r.list(t.AccessLog, "telemetry.accessLog"),
		}
	}
	protocol, routes := protocols(d.Protocol), r.routes(d.Routes, "routes")
	for i, p := range d.Ports {
		path := fmt.Sprintf("ports[%d]", i)
		port := ir.Port{
			Port: p.Port, TargetPort: p.TargetPort,
			Protocol: protocols(p.Protocol),
			Codec:    r.object(p.Codec, path+".codec"),
			Routes:   r.routes(p.Routes, path+".routes"),
		}
		if port.Protocol == nil && port.Codec == nil && protocol != nil {
			port.Protocol = protocol
			r.places.inherit(path+".protocol", "protocol")
		}
		if port.Routes == nil && routes != nil {
			port.Routes = routes
			r.places.inherit(path+".routes", "routes")
		}
		s.Ports = append(s.Ports, port)
	}
	for _, p := range d.Observed {
		s.Observed = append(s.Observed, ir.ObservedPort{Port: p.Port, TargetPort: p.TargetPort, Filter: ir.StockFilter(p.Filter)})
	}
	if d.LoadBalancer != nil {
		s.LoadBalancer = &ir.LoadBalancer{Simple: d.LoadBalancer.Simple}
		if h := d.LoadBalancer.ConsistentHash; h != nil {
			s.LoadBalancer.ConsistentHash = &ir.ConsistentHash{
				Metadata: h.Metadata, HTTPHeaderName: h.HTTPHeaderName, UseSourceIP: h.UseSourceIP,
				RingHash: (*ir.RingHash)(h.RingHash), Maglev: (*ir.Maglev)(h.Maglev),
			}
		}
	}
	if d.Server != nil {
		s.Server = &ir.Server{Namespace: d.Server.Namespace, Selector: d.Server.Selector, PreserveSource: d.Server.PreserveSource}
	}
	if d.Clients != nil {
		s.Clients = []ir.Workloads{}
	}
	for _, w := range d.Clients {
		s.Clients = append(s.Clients, ir.Workloads{Namespace: w.Namespace, Selector: w.Selector, Name: w.Name})
	}
	for _, g := range d.Gateways {
		s.Gateways = append(s.Gateways, ir.Gateway(g))
	}
	for _, a := range d.Authorization {
		s.Authorization = append(s.Authorization, a.authorization())
	}
	return s
}

func (a *authorization) authorization() ir.Authorization {
	to := ir.Authorization{Name: a.Name, Action: ir.Action(a.Action), DryRun: a.DryRun}
	for _, r := range a.Rules {
		var rule ir.AuthorizationRule
		for _, f := range r.From {
			rule.From = append(rule.From, ir.Source(f.Source))
		}
		for _, t := range r.To {
			rule.To = append(rule.To, ir.Operation(t.Operation))
		}
		for _, w := range r.When {
			rule.When = append(rule.When, ir.Condition(w))
		}
		to.Rules = append(to.Rules, rule)
	}
	return to
}

func (r *reader) timeout(s, path string) time.Duration {
	if s == "" {
		return 0
	}
	d, err := time.ParseDuration(s)
	if err != nil || d == 0 {
		r.faults.Add(path, ir.WantTimeout)
	}
	return d
}

// protocols are the names of codecs that are written with commas between them.
func protocols(s string) (names []string) {
	if s == "" {
		return nil
	}
	for name := range strings.SplitSeq(s, ",") {
		names = append(names, strings.TrimSpace(name))
	}
	return names
}

// value reads what is not described further.
func (r *reader) value(n *yaml.Node, path string) any {
	v, fault := source.Value(n, path)
	if fault != nil {
		r.errs = append(r.errs, fault)
	}
	return v
}

// object is nil if there is no node.
func (r *reader) object(n *yaml.Node, path string) ir.Object {
	if n == nil {
		return nil
	}
	v := r.value(n, path)
	o, ok := v.(ir.Object)
	switch {
	case ok:
		return o
	case v != nil:
		r.faults.Add(path, "want an object")
	}
	return ir.Object{} // it is there
}

// list is nil if there is no node.
func (r *reader) list(n *yaml.Node, path string) []any {
	if n == nil {
		return nil
	}
	v := r.value(n, path)
	list, ok := v.([]any)
	if !ok && v != nil {
		r.faults.Add(path, "want a list")
	}
	return list
}

// routes is nil if there is no node.
func (r *reader) routes(n *yaml.Node, path string) []ir.Object {
	if n == nil {
		return nil
	}
	routes := []ir.Object{} // it is there
	for i, e := range r.list(n, path) {
		at := fmt.Sprintf("%s[%d]", path, i)
		route, ok := e.(ir.Object)
		if !ok {
			r.faults.Add(at, "want an object")
			continue
		}
		if action, given := route["route"]; given {
			if _, ok := action.(ir.Object); !ok {
				r.faults.Add(at+".route", "want an object")
			}
		}
		ir.Clusters(route, func(part ir.Object, key, field string) {
			r.destination(part, key, at+"."+field)
		})
		routes = append(routes, route)
	}
	return routes
}

// destination replaces host, subset and port by the Destination that they are.
func (r *reader) destination(part ir.Object, key, path string) {
	if _, named := part[key]; named {
		for _, k := range []string{"subset", "host", "port"} {
			if _, too := part[k]; too {
				r.faults.Add(path+"."+k, "there is %s too", key)
			}
		}
		return
	}
	var d ir.Destination
	var given bool
	take := func(k, want string, fits func(v any) bool) {
		if v, ok := part[k]; ok {
			given = true
			delete(part, k)
			if !fits(v) {
				r.faults.Add(path+"."+k, "%s", want)
			}
		}
	}
	take("host", ir.WantHost, func(v any) bool { d.Host, _ = v.(string); return d.Host != "" })
	take("subset", ir.WantSubset, func(v any) bool { d.Subset, _ = v.(string); return d.Subset != "" })
	take("port", ir.WantPort, func(v any) bool { n, _ := v.(int64); d.Port = int(n); return n != 0 })
	if given {
		part[key] = d
	}
}
