package envoyfilter

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/meltemi-mesh/meltemi/control/ir"
)

// PodPatch is a patch of a Deployment (kubectl patch --patch-file) that gives
// its pods what the EnvoyFilters of a service ask of a proxy: metadata that
// says it has the shared object, statistics that Istio does not drop, and metrics
// that the pod's agent gathers. The service may be nil: then all is the default.
func PodPatch(s *ir.Service) ([]byte, error) {
	if s == nil {
		s = new(ir.Service)
		_ = s.Complete() // for the defaults; what it lacks does not matter here
	}
	metadata := map[string]string{}
	for k, v := range s.ProxyMetadata {
		metadata["ISTIO_META_"+k] = v
	}
	if s.Golang.ProxyVersion != ir.NoProxies {
		process, err := json.Marshal(golang{}.process(s))
		if err != nil {
			return nil, err
		}
		// Istio's templates of pods put quotes around it, and nothing else.
		metadata[processEnv] = strings.ReplaceAll(string(process), `"`, `\"`)
	}
	config, err := encode(object{
		"proxyMetadata":     metadata,
		"proxyStatsMatcher": object{"inclusionPrefixes": []string{namespace}},
	})
	if err != nil {
		return nil, err
	}
	annotations := object{"proxy.istio.io/config": string(config)}
	if port, ok := s.AdminPort(); ok {
		annotations["prometheus.istio.io/scrape-targets"] = fmt.Sprintf("%d:/metrics", port)
	}
	return encode(object{"spec": object{"template": object{"metadata": object{"annotations": annotations}}}})
}
