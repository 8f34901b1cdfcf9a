package translate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	istio "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meltemi-mesh/meltemi/control/fault"
	"github.com/meltemi-mesh/meltemi/control/ir"
	api "github.com/meltemi-mesh/meltemi/control/operator/api/metaprotocol/v1alpha1"
)

// server are the workloads behind the host.
func (t *translation) server() {
	if _, selector := t.Workloads(); len(selector) > 0 {
		t.s.Server = &ir.Server{Selector: selector}
	}
}

// Workloads are those behind a host: pods of a namespace, by their labels; none without any.
func (in *Input) Workloads() (namespace string, selector map[string]string) {
	if in.Service != nil {
		return in.Service.Namespace, in.Service.Spec.Selector
	}
	for _, e := range in.entries() {
		if selector = EntrySelector(e); len(selector) > 0 {
			return e.Namespace, selector
		}
	}
	return "", nil
}

// EntrySelector are the labels of an entry's pods.
func EntrySelector(e *istio.ServiceEntry) map[string]string {
	if labels := e.Spec.WorkloadSelector.GetLabels(); len(labels) > 0 {
		return labels
	}
	a := e.Annotations[workloadSelector]
	if a == "" {
		return nil
	}
	k, v, pair := strings.Cut(a, ":")
	if !pair {
		k, v = "app", a
	}
	return map[string]string{strings.TrimSpace(k): strings.TrimSpace(v)}
}

// entries are those of the host that are one service: of another namespace it is another.
func (in *Input) entries() []*istio.ServiceEntry {
	all := sorted(in.Entries)
	return slices.DeleteFunc(slices.Clone(all), func(e *istio.ServiceEntry) bool { return e.Namespace != all[0].Namespace })
}

// targets are the ports of workloads that the governed ports of a host lead to, as far as
// they are known; unknown: there are others.
func (in *Input) targets() (numbers []int, unknown bool) {
	if in.Service != nil {
		for _, p := range in.Service.Spec.Ports {
			if _, governed := Protocol(p.Name); !governed {
				continue
			}
			if p.TargetPort.StrVal == "" {
				numbers = append(numbers, int(cmp.Or(p.TargetPort.IntVal, p.Port)))
				continue
			}
			for _, n := range in.TargetPorts[p.Name] {
				numbers = append(numbers, int(n))
			}
			unknown = unknown || len(in.TargetPorts[p.Name]) == 0
		}
		return numbers, unknown
	}
	seen := map[uint32]bool{}
	for _, e := range in.entries() {
		for _, p := range e.Spec.Ports {
			if _, governed := Protocol(p.Name); governed && !seen[p.Number] {
				numbers = append(numbers, int(cmp.Or(p.TargetPort, p.Number)))
			}
			seen[p.Number] = true
		}
	}
	return numbers, false
}

// Alike tells whether two selectors are taken to select the same pods: they have a label in
// common, and none with two values. Others may do so, too, but labels have different names
// from chart to chart, and then most services of a namespace would have to be told so.
func Alike(a, b map[string]string) bool {
	if !ir.Agree(a, b) {
		return false
	}
	for k := range a {
		if _, common := b[k]; common {
			return true
		}
	}
	return false
}

// Share tells whether two hosts may lead to a port of the same workloads.
func Share(a, b *Input) bool { return newSharer(a).shares(newSharer(b)) }

// sharer is a host, as far as it counts for who comes first where workloads are shared.
type sharer struct {
	*Input
	namespace string
	selector  map[string]string
	numbers   []int
	unknown   bool

	router *api.MetaRouter
	owner  metav1.Object
	says   bool // the router has something that servers' proxies see to
}

func newSharer(in *Input) *sharer {
	s := &sharer{Input: in, router: Oldest(in.Routers)}
	s.namespace, s.selector = in.Workloads()
	s.numbers, s.unknown = in.targets()
	if in.Service != nil {
		s.owner = in.Service
	} else if entries := in.entries(); len(entries) > 0 {
		s.owner = entries[0]
	}
	return s
}

// leads tells whether the host leads to a port of its workloads, or may: what its servers
// have of a port whose number is not known has stayed.
func (s *sharer) leads(port int) bool { return s.unknown || slices.Contains(s.numbers, port) }

func (s *sharer) alike(o *sharer) bool {
	return s.namespace == o.namespace && Alike(s.selector, o.selector)
}

func (s *sharer) shares(o *sharer) bool {
	return s.alike(o) && (slices.ContainsFunc(s.numbers, o.leads) || slices.ContainsFunc(o.numbers, s.leads))
}

// before orders sharers: those first whose routers have something for servers, as their
// proxies have one filter at a port, and it must not be one that lets in whoever calls.
func (s *sharer) before(o *sharer) int {
	order := cmp.Or(one(o.says)-one(s.says), one(o.router != nil)-one(s.router != nil))
	if order == 0 && s.router != nil {
		order = older(s.router, o.router)
	}
	return cmp.Or(order, s.owner.GetCreationTimestamp().Compare(o.owner.GetCreationTimestamp().Time), strings.Compare(s.Host, o.Host))
}

// share has the filters of servers come one behind the other where several hosts lead to a
// port of the same workloads. Their proxies have the first one's, and whose router wants
// something of them as well is told.
func (t *translation) share() {
	if t.s.Server == nil || len(t.Sharers) == 0 {
		return
	}
	var all []*sharer
	for _, in := range append([]*Input{t.Input}, t.Sharers...) {
		if s := newSharer(in); len(s.selector) > 0 {
			s.says = s.router != nil && t.Mesh.governs(s.router, s.namespace) && ForServers(&s.router.Spec)
			all = append(all, s)
		}
	}
	slices.SortFunc(all, (*sharer).before)
	for i := range t.s.Ports {
		if p := &t.s.Ports[i]; !p.Unresolved {
			p.Behind = t.behind(all, p.TargetPort)
		}
	}
}

// behind is how many come before this host at a port. Who shares with one does not with all
// that share with it: each is behind the last of those that it shares with.
func (t *translation) behind(all []*sharer, port int) int {
	var ahead []*sharer
	places := map[*sharer]int{}
	for _, s := range all {
		if !s.leads(port) {
			continue
		}
		var first *sharer
		for _, o := range ahead {
			if o.alike(s) {
				if first == nil && slices.Contains(o.numbers, port) {
					first = o
				}
				places[s] = max(places[s], places[o]+1)
			}
		}
		if s.Input != t.Input {
			ahead = append(ahead, s)
			continue
		}
		if first != nil && s.says {
			for _, field := range forServers(&s.router.Spec) {
				t.note(Fault{Object: t.routerObject(), Conflicted: true, Fault: fault.Fault{
					Path: "spec." + field, Reason: fmt.Sprintf("%s/%s is older and has port %d of these workloads, for %s", first.router.Namespace, first.router.Name, port, first.Host),
				}})
			}
		}
		return places[s]
	}
	return 0
}
