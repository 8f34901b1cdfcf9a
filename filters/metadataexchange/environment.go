package metadataexchange

import (
	"encoding/json"
	"maps"
	"os"
	"strconv"
	"strings"

	"github.com/meltemi-mesh/meltemi/filter"
)

// podLabels is where Istio's injection has Kubernetes put the labels of a pod.
const podLabels = "/etc/istio/pod/labels"

// environment is what an own workload is completed from.
type environment struct {
	variable func(name string) string
	file     func(path string) ([]byte, error)
}

var process = environment{os.Getenv, os.ReadFile}

// complete gives w what it leaves open, as far as the environment is that of an Istio
// proxy.
func (e environment) complete(w *filter.Workload) {
	for name, to := range map[string]*string{
		"POD_NAME": &w.Name, "POD_NAMESPACE": &w.Namespace, "ISTIO_META_WORKLOAD_NAME": &w.WorkloadName,
		"ISTIO_META_CLUSTER_ID": &w.ClusterID, "ISTIO_META_OWNER": &w.Owner,
	} {
		if *to == "" {
			*to = e.variable(name)
		}
	}
	if len(w.Labels) == 0 {
		w.Labels = e.labels()
	}
	if w.ID == "" && w.Name != "" {
		w.ID = "sidecar~" + e.variable("INSTANCE_IP") + "~" + w.Name + "." + w.Namespace + "~" + w.Namespace + ".svc.cluster.local"
	}
}

// labels are those of the pod. What cannot be read is left out.
func (e environment) labels() map[string]string {
	all := map[string]string{}
	if json.Unmarshal([]byte(e.variable("ISTIO_METAJSON_LABELS")), &all) != nil {
		clear(all)
	}
	b, err := e.file(podLabels)
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
