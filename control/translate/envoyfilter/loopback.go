package envoyfilter

import (
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/meltemi-mesh/meltemi/control/ir"
	"github.com/meltemi-mesh/meltemi/control/loopback"
)

// loopbacks are the loopback listeners, once per proxy: one EnvoyFilter per
// namespace and kind of proxies, of the same name and content whichever service
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
		f := g.add("loopback", suffixed("meltemi-loopback", kind(g.s)), ns, nil)
		f.meshWide = g.s.RootNamespace != ""
		// In any context: istiod then adds it where it builds a sidecar's outbound
		// listeners and a gateway's, once for each proxy.
		g.patch(f, networking.EnvoyFilter_LISTENER, networking.EnvoyFilter_Patch_ADD,
			&networking.EnvoyFilter_EnvoyConfigObjectMatch{Context: networking.EnvoyFilter_ANY}, g.loopback())
	}
}

// kind names the proxies that have the shared object, where they are told by
// other signs than the usual ones: services that use others in one namespace are
// not to replace each other's loopback listener.
func kind(s *ir.Service) string {
	if s.ProxyVersion == ir.DefaultProxyVersion && maps.Equal(s.ProxyMetadata, ir.DefaultProxyMetadata()) {
		return ""
	}
	var signs strings.Builder
	for _, k := range slices.Sorted(maps.Keys(s.ProxyMetadata)) {
		fmt.Fprintf(&signs, "%q=%q\n", k, s.ProxyMetadata[k])
	}
	fmt.Fprintf(&signs, "%q", s.ProxyVersion)
	return fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(signs.String())))
}

// tproxyMark is the mark by which Istio's TPROXY rules know the proxy's own packets.
const tproxyMark = 1337

// loopback is the listener itself. It has sources for server.preserveSource, and tells of
// workloads for Istio's metrics, whatever the service wants: it is the same for all.
func (g *generator) loopback() object {
	l := loopback.Listener{Module: g.s.Module, Socket: g.s.Socket, Sources: true, Mark: tproxyMark, Workloads: true}
	if g.s.Admin != ir.NoAdmin {
		l.Admin = g.s.Admin
	}
	return l.Config()
}
