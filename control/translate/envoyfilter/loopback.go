package envoyfilter

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/meltemi-mesh/meltemi/control/ir"
	"github.com/meltemi-mesh/meltemi/control/loopback"
	"github.com/meltemi-mesh/meltemi/filter/config"
)

// loopbacks are the loopback listeners, once per proxy: one EnvoyFilter per
// namespace, form of the filter and kind of proxies, of the same name and content whichever service
// brings it, and for the proxies of that namespace only, even if it is Istio's
// root namespace; or one there for those of the whole mesh.
func (g *generator) loopbacks() {
	namespaces := map[string]bool{}
	for _, c := range g.s.Clients {
		namespaces[c.Namespace] = true
	}
	if g.s.Server != nil {
		namespaces[g.s.Server.Namespace] = true
	}
	for _, w := range g.s.Gateways {
		namespaces[w.Namespace] = true
	}
	if g.s.RootNamespace != "" {
		namespaces = map[string]bool{g.s.RootNamespace: true}
	}
	for _, ns := range slices.Sorted(maps.Keys(namespaces)) {
		for g.form = range g.forms() {
			f := g.add("loopback", suffixed("meltemi-loopback", g.form.kind(g.s)), ns, nil)
			f.meshWide = g.s.RootNamespace != ""
			// In any context: istiod then adds it where it builds a sidecar's outbound
			// listeners and a gateway's, once for each proxy.
			g.patch(f, networking.EnvoyFilter_LISTENER, networking.EnvoyFilter_Patch_ADD,
				&networking.EnvoyFilter_EnvoyConfigObjectMatch{Context: networking.EnvoyFilter_ANY}, g.form.loopback(g.s))
		}
	}
}

// signs names the proxies that have the shared object, where they are told by
// other signs than the usual ones: services that use others in one namespace are
// not to replace each other's loopback listener.
func signs(s *ir.Service, version, usual string) string {
	if version == usual && maps.Equal(s.ProxyMetadata, ir.DefaultProxyMetadata()) {
		return ""
	}
	var signs strings.Builder
	for _, k := range slices.Sorted(maps.Keys(s.ProxyMetadata)) {
		fmt.Fprintf(&signs, "%q=%q\n", k, s.ProxyMetadata[k])
	}
	fmt.Fprintf(&signs, "%q", version)
	return fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(signs.String())))
}

// sources has the listener have sources for server.preserveSource, whatever the service
// wants: it is the same for all.
func sources(l loopback.Listener) loopback.Listener {
	l.Sources, l.Mark = true, tproxyMark
	return l
}

// tproxyMark is the mark by which Istio's TPROXY rules know the proxy's own packets.
const tproxyMark = 1337

// pushed is where the process's metrics are pushed to by OTLP, nil for nowhere.
func pushed(s *ir.Service) object {
	otlp, ok := s.Telemetry.Metrics["otlp"].(object)
	if !ok {
		return nil
	}
	return exact(otlp).(object)
}

// metrics judges where they are pushed to, as the process will.
func (g *generator) metrics() {
	m := g.s.Telemetry.Metrics
	if m == nil {
		return
	}
	raw, err := json.Marshal(object{"path": g.s.Socket, "metrics": m})
	if err == nil {
		_, err = config.LoadCarrier(raw)
	}
	var fault *config.Error
	switch {
	case errors.As(err, &fault):
		g.refuse("telemetry."+cmp.Or(fault.Path, "metrics"), "%s", fault.Reason)
	case err != nil:
		g.refuse("telemetry.metrics", "%v", err)
	}
}
