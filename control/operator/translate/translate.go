// Package translate makes of the objects that say what becomes of a host the services of
// package ir. It asks nobody: what it is given is all there is, and the order in which it
// is given means nothing.
package translate

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"regexp"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	istio "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meltemi-mesh/meltemi/control/fault"
	"github.com/meltemi-mesh/meltemi/control/ir"
	dubbo "github.com/meltemi-mesh/meltemi/control/operator/api/dubbo/v1alpha1"
	api "github.com/meltemi-mesh/meltemi/control/operator/api/metaprotocol/v1alpha1"
	"github.com/meltemi-mesh/meltemi/control/translate/envoyfilter"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// Mesh is what holds for all hosts.
type Mesh struct {
	// RootNamespace is Istio's.
	RootNamespace string
	// Domain of the cluster, such as cluster.local.
	Domain string
	// AccessLog is the file of the proxies' log, "" for none, and AccessLogJSON its form.
	AccessLog     string
	AccessLogJSON bool
	// Tracing is MetaProtocolProxy's, nil for none.
	Tracing ir.Object
	// Locality and ZoneAware are what Istio's clusters know of localities where nothing
	// else says it, nil for nothing. Ejects: they have outlier detection.
	Locality  *networking.LocalityLoadBalancerSetting
	ZoneAware *networking.ZoneAwareLoadBalancerSetting
	Ejects    bool
	// RDS is where proxies find the operator's routes; nil: it serves none.
	RDS *ir.Destination
}

// Input are the objects that say what becomes of a host.
type Input struct {
	Mesh Mesh
	// Host is its full name.
	Host string
	// Service of the host, or nil, and the numbers of its named target ports, by their
	// names.
	Service     *corev1.Service
	TargetPorts map[string][]int32
	// Entries that have the host.
	Entries []*istio.ServiceEntry
	// Routers for the host.
	Routers []*api.MetaRouter
	// Rules for the host, or for all hosts of a domain that it is in.
	Rules []*istio.DestinationRule
	// Protocols that ports of the host may name.
	Protocols []*api.ApplicationProtocol
	// Policies of the host's namespace and of the root namespace.
	Policies []*dubbo.DubboAuthorizationPolicy
	// Gateways that the routers name, by namespace/name.
	Gateways map[string]*Gateway
	// Sharers are other hosts that may lead to a port of the same workloads, and those that
	// do so with these. Of them there are Host, Service, TargetPorts, Entries and Routers.
	Sharers []*Input
	// Rivals are other hosts with routers that name one of these. Of them there are Host,
	// Service, Entries and Routers.
	Rivals []*Input
}

// Gateway is one with what else is to be known of it.
type Gateway struct {
	*istio.Gateway
	// Services whose selectors have all that the gateway's has.
	Services []*corev1.Service
	// VirtualServices that are bound to it.
	VirtualServices []*istio.VirtualService
	// Beside are other gateways whose pods may be the same.
	Beside []*istio.Gateway
}

// Object says which object something is of.
type Object struct{ Kind, Namespace, Name string }

func (o Object) String() string {
	if o.Namespace == "" {
		return o.Kind + " " + o.Name
	}
	return o.Kind + " " + o.Namespace + "/" + o.Name
}

// Fault is what is wrong with a field of an object.
type Fault struct {
	Object
	fault.Fault
	// Conflicted: an older object says something of the same.
	Conflicted bool
}

// Kinds of objects.
const (
	MetaRouter               = "MetaRouter"
	ApplicationProtocol      = "ApplicationProtocol"
	DubboAuthorizationPolicy = "DubboAuthorizationPolicy"
	Service                  = "Service"
	ServiceEntry             = "ServiceEntry"
	DestinationRule          = "DestinationRule"
)

// Output is what becomes of a host.
type Output struct {
	// Governed: it has a port whose name says that it is Meltemi's.
	Governed bool
	// Owner is the object that has the ports.
	Owner     Object
	OwnerMeta *metav1.ObjectMeta
	// Router is the one that counts, nil if there is none.
	Router *api.MetaRouter
	// Filters are what proxies need. With a fault that is not Partial they are not all.
	Filters []*envoyfilter.Filter
	// VirtualServices have gateways open their ports.
	VirtualServices []*istio.VirtualService
	// Tables are what is served by RDS, to the proxies of these namespaces; nil: of all.
	Tables  []*routev1alpha.RouteConfiguration
	Readers []string
	// Faults of all objects. Those of ports cost these ports, those of anything else
	// all.
	Faults []Fault
	// Complete: what there is of Filters is all that there shall be, but for what servers
	// have of before if Unresolved.
	Complete bool
	// Unresolved: the number of a target port is not known, and so neither is what servers
	// shall have of that port, nor which of what they have is its.
	Unresolved bool
}

// Translate says what becomes of a host.
func Translate(in *Input) *Output {
	t := &translation{Input: in, out: &Output{}, protocols: map[int]string{}}
	t.choose()
	t.ports()
	if !t.out.Governed {
		t.out.Complete = true
		return t.out
	}
	t.server()
	t.clients()
	t.routes()
	t.policies()
	t.share()
	t.gateways()
	t.discovery()
	t.generate()
	return t.out
}

type translation struct {
	*Input
	out *Output
	s   ir.Service
	// protocols are those that the names of the ports say, by their numbers.
	protocols map[int]string
	visible   []string // namespaces to which the service is exported; nil: all
	// origins are the fields of objects behind those of s.
	origins []origin
	failed  bool
}

// refuse tells of a fault for which nothing can be made of the host.
func (t *translation) refuse(o Object, path, format string, args ...any) {
	t.failed = true
	t.tell(o, path, format, args...)
}

func (t *translation) tell(o Object, path, format string, args ...any) {
	t.note(Fault{Object: o, Fault: fault.Fault{Path: path, Reason: fmt.Sprintf(format, args...)}})
}

func (t *translation) note(f Fault) {
	if !slices.Contains(t.out.Faults, f) {
		t.out.Faults = append(t.out.Faults, f)
	}
}

// older orders objects by what decides between them.
func older[T metav1.Object](a, b T) int {
	return cmp.Or(
		a.GetCreationTimestamp().Compare(b.GetCreationTimestamp().Time),
		strings.Compare(a.GetNamespace(), b.GetNamespace()),
		strings.Compare(a.GetName(), b.GetName()),
	)
}

func sorted[T metav1.Object](objects []T) []T {
	objects = slices.Clone(objects)
	slices.SortFunc(objects, older[T])
	return objects
}

// Oldest is the object that counts of several that say something of the same; nil if
// there is none.
func Oldest[T metav1.Object](objects []T) (o T) {
	if len(objects) == 0 {
		return o
	}
	return slices.MinFunc(objects, older[T])
}

func (t *translation) choose() { t.out.Router = Oldest(t.Routers) }

func of(kind string, o metav1.Object) Object { return Object{kind, o.GetNamespace(), o.GetName()} }

// routerObject is the router that counts.
func (t *translation) routerObject() Object { return of(MetaRouter, t.out.Router) }

// Name is what the names of what is made for a host are made of. Two hosts never have
// the same: who could make such a one would have what is another's.
func Name(host, domain string) string {
	short, kubernetes := strings.CutSuffix(host, ".svc."+domain)
	// Those of services have one dot.
	if len(short) <= 63 && (kubernetes || strings.Count(host, ".") != 1) && !hashed.MatchString(short) {
		return short
	}
	return cut(short, ".", host)
}

// cut is how a name begins, and behind sep a digest of what it is the name of: 63 bytes at
// most.
func cut(name, sep, of string) string {
	sum := sha256.Sum256([]byte(of))
	return fmt.Sprintf("%s%s%x", strings.TrimRight(name[:min(len(name), 46)], "-."), sep, sum[:8])
}

// hashed is the end of a name that is not all of its host's, or looks as if.
var hashed = regexp.MustCompile(`\.[0-9a-f]{16}$`)

// FullName is the host that is meant by a name in an object of a namespace, or the hosts:
// all by "*".
func FullName(host, namespace, domain string) string {
	if host == "*" || strings.Contains(host, ".") {
		return host
	}
	return host + "." + namespace + ".svc." + domain
}
