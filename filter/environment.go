package filter

import (
	"encoding/json"
	"maps"
	"os"
	"strconv"
	"strings"
)

// podLabels is where Istio's injection has Kubernetes put the labels of a pod.
const podLabels = "/etc/istio/pod/labels"

// Environment is what the own workload is completed from, as a module does not learn
// Envoy's node: what Istio's agent has the node from.
type Environment struct {
	// Variable returns an environment variable, "" if it is not set.
	Variable func(name string) string
	// File returns what is in a file.
	File func(path string) ([]byte, error)
}

// ProcessEnvironment is that of the process.
var ProcessEnvironment = Environment{os.Getenv, os.ReadFile}

// Complete gives w what it leaves open, as far as the environment is that of an Istio
// proxy. Only while a filter is built: it may read a file.
func (e Environment) Complete(w *Workload) {
	for name, to := range map[string]*string{
		"POD_NAME": &w.Name, "POD_NAMESPACE": &w.Namespace, "ISTIO_META_WORKLOAD_NAME": &w.WorkloadName,
		"ISTIO_META_CLUSTER_ID": &w.ClusterID, "ISTIO_META_OWNER": &w.Owner,
	} {
		if *to == "" {
			*to = e.Variable(name)
		}
	}
	if len(w.Labels) == 0 {
		w.Labels = e.labels()
	}
	if w.ID == "" && w.Name != "" {
		w.ID = "sidecar~" + e.Variable("INSTANCE_IP") + "~" + w.Name + "." + w.Namespace + "~" + w.Namespace + ".svc.cluster.local"
	}
}

// labels are those of the pod. What cannot be read is left out.
func (e Environment) labels() map[string]string {
	all := map[string]string{}
	if json.Unmarshal([]byte(e.Variable("ISTIO_METAJSON_LABELS")), &all) != nil {
		clear(all)
	}
	b, err := e.File(podLabels)
	if err != nil {
		return all
	}
	of := map[string]string{}
	for line := range strings.Lines(string(b)) {
		key, quoted, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if value, err := strconv.Unquote(quoted); err == nil {
			of[key] = value
		}
	}
	maps.Copy(all, of)
	return all
}
