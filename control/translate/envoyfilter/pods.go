package envoyfilter

import "github.com/meltemi-mesh/meltemi/control/ir"

// PodPatch is a patch of a Deployment (kubectl patch --patch-file) that gives
// its pods what the EnvoyFilters of a service ask of a proxy: metadata that
// says it has the shared object, and statistics that Istio does not drop. The
// service may be nil: then the metadata is the default.
func PodPatch(s *ir.Service) ([]byte, error) {
	proxyMetadata := ir.DefaultProxyMetadata()
	if s != nil {
		proxyMetadata = s.ProxyMetadata
	}
	metadata := map[string]string{}
	for k, v := range proxyMetadata {
		metadata["ISTIO_META_"+k] = v
	}
	config, err := encode(object{
		"proxyMetadata":     metadata,
		"proxyStatsMatcher": object{"inclusionPrefixes": []string{namespace}},
	})
	if err != nil {
		return nil, err
	}
	return encode(object{"spec": object{"template": object{"metadata": object{"annotations": object{
		"proxy.istio.io/config": string(config),
	}}}}})
}
