package filter

import "github.com/meltemi-mesh/meltemi/filter/route"

// Workload is what a proxy tells of the workload that it stands before, as Istio's
// proxies tell each other. It is immutable.
type Workload struct {
	// ID of the proxy.
	ID string
	// Name of the instance, such as that of a pod, and its namespace.
	Name, Namespace string
	// WorkloadName is what it is an instance of, such as a deployment, and Owner that
	// as Kubernetes writes it.
	WorkloadName, Owner string
	// ClusterID is the cluster that it runs in.
	ClusterID string
	// Labels of the instance.
	Labels map[string]string
}

// The labels by which Istio knows services.
const (
	labelService  = "service.istio.io/canonical-name"
	labelRevision = "service.istio.io/canonical-revision"
)

// Field returns what Istio's proxies know by a name: name, namespace, workload, cluster,
// service, revision, app, version. It is "" of a nil Workload.
func (w *Workload) Field(name string) string {
	if w == nil {
		return ""
	}
	switch name {
	case "name":
		return w.Name
	case "namespace":
		return w.Namespace
	case "workload":
		return w.WorkloadName
	case "cluster":
		return w.ClusterID
	case "service":
		return w.Labels[labelService]
	case "revision":
		return w.Labels[labelRevision]
	case "app", "version":
		return w.Labels[name]
	}
	return ""
}

// Source is the workload that the request comes from, as far as a filter has told; nil
// if none has. What it says the other side says of itself.
func (m *Message) Source() *Workload { return m.source }

// SetSource tells of the workload that the request comes from. Routes that ask for its
// labels are looked up again. Only in OnRequest.
func (m *Message) SetSource(w *Workload) {
	m.source = w
	m.ClearRoute()
}

// Destination is the workload that serves the request, as far as a filter has told; nil
// if none has. It may be known when the answer comes only.
func (m *Message) Destination() *Workload { return m.destination }

// SetDestination tells of the workload that serves the request.
func (m *Message) SetDestination(w *Workload) { m.destination = w }

// origin is where the request comes from, as its routes see it.
func (m *Message) origin() route.Origin {
	o := route.Origin{Direction: m.cfg.Direction}
	if m.source != nil {
		o.Labels = m.source.Labels
	}
	return o
}
