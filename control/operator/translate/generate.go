package translate

import (
	"slices"
	"strings"

	"github.com/meltemi-mesh/meltemi/control/fault"
	"github.com/meltemi-mesh/meltemi/control/ir"
	"github.com/meltemi-mesh/meltemi/control/translate/envoyfilter"
)

// origin says of which object's field what a path of the service leads to has come.
type origin struct {
	path string
	Object
	from string
}

// comes remembers where something has come from.
func (t *translation) comes(path string, o Object, from string) {
	t.origins = append(t.origins, origin{path, o, from})
}

// from tells a fault of the service at the field that it comes from: the one of the
// longest path around it.
func (t *translation) from(f fault.Fault) (Object, string) {
	var best origin
	for _, o := range t.origins {
		rest, ok := strings.CutPrefix(f.Path, o.path)
		if ok && (rest == "" || rest[0] == '.' || rest[0] == '[') && len(o.path) >= len(best.path) {
			best = o
		}
	}
	if best.path == "" {
		return t.out.Owner, ""
	}
	rest := strings.TrimPrefix(f.Path, best.path)
	if strings.HasSuffix(best.from, "Mutation") || best.from == "spec.outbound" || best.from == "spec.inbound" ||
		best.Kind == DubboAuthorizationPolicy || strings.HasPrefix(best.from, "spec.authorization") {
		return best.Object, best.from + rest
	}
	return best.Object, best.from
}

// generate makes the EnvoyFilters.
func (t *translation) generate() {
	if len(t.s.Ports) == 0 && len(t.s.Observed) == 0 {
		// Faults have been told. What there was stays, as the ports may be put right.
		return
	}
	servers := false
	for _, p := range t.s.Ports {
		servers = servers || !p.Unresolved
		t.out.Unresolved = t.out.Unresolved || p.Unresolved
	}
	for _, p := range t.s.Observed {
		servers = servers || !p.Unresolved
		t.out.Unresolved = t.out.Unresolved || p.Unresolved
	}
	if len(t.s.Clients) == 0 && (t.s.Server == nil || !servers) && len(t.s.Gateways) == 0 {
		t.out.Complete = !t.failed
		return
	}
	s := t.s
	if len(s.ByTLS()) > 0 {
		// Rather no rule at all than one that lets pass what it denies.
		s.Golang.ProxyVersion = ir.NoProxies
	}
	made := s.Complete()
	if len(made) == 0 && !t.failed {
		t.out.Filters, made = envoyfilter.Generate(&s)
	}
	for _, f := range made {
		if f.Path == "addresses" && len(s.Addresses) == 0 {
			continue // told in the words of the object
		}
		o, path := t.from(f)
		reason := f.Reason
		if path == "" {
			reason = f.Error()
		}
		t.refuse(o, path, "%s", reason)
	}
	if !t.failed {
		t.tables(&s)
	}
	if t.failed {
		t.out.Filters, t.out.VirtualServices, t.out.Tables = nil, nil, nil
		return
	}
	t.out.Complete = true
	for _, f := range t.out.Filters {
		f.Labels[ManagedBy] = Manager
		if f.Annotations == nil {
			f.Annotations = map[string]string{}
		}
		if f.Labels[Component] != "loopback" {
			f.Annotations[Host] = t.Host
		}
	}
	for _, v := range t.out.VirtualServices {
		v.Annotations = map[string]string{Host: t.Host}
	}
	t.out.VirtualServices = slices.Clip(t.out.VirtualServices)
}
