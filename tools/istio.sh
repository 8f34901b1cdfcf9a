#!/bin/sh
# Puts a control plane at build/istio: kube-apiserver, etcd, kubectl, istiod
# (pilot-discovery) and pilot-agent, built from the modules that are pinned in
# e2e/istio/controlplane, with Istio's CRDs and its template of a bootstrap.
# What was built stays in a folder that all clones share, MELTEMI_CACHE if that
# is set; other pins or another Go build anew.
# What makes network namespaces is seen to as well.
# usage: tools/istio.sh
set -eu
cd "$(dirname "$0")/.."
root=$(pwd)
pins=e2e/istio/controlplane

die() { echo "istio.sh: $*" >&2; exit 1; }
command -v go >/dev/null || die "Go is missing: install Go 1.26 or newer"

tools/need.sh ip=iproute2 iptables=iptables || echo "istio.sh: without them the tests are skipped" >&2

key=$({ cat "$pins/go.mod" "$pins/go.sum" "$pins/env.sh" tools/istio.sh; cd "$pins"; go env GOVERSION GOARCH; } | sha256sum | cut -c1-16)
cache=${MELTEMI_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/meltemi}
dir=$cache/istio-$key
mkdir -p build "$cache"

if [ ! -d "$dir" ]; then
	echo "building the control plane into $dir: some minutes, once" >&2
	tmp=$(mktemp -d "$cache/.istio.XXXXXX")
	trap 'rm -rf "$tmp"' EXIT
	cd "$pins"
	. ./env.sh
	go mod download istio.io/istio
	istio=$(go list -m -f '{{.Dir}}' istio.io/istio)
	kubernetes=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
	minor=${kubernetes#v1.}
	# Versions as in the projects' own builds: a proxy tells istiod its
	# version, and the API server tells its own.
	k8s=k8s.io/component-base/version
	ldflags="-s -w -X $k8s.gitVersion=$kubernetes -X $k8s.gitMajor=1 -X $k8s.gitMinor=${minor%%.*} -X $k8s.gitTreeState=clean"
	ldflags="$ldflags -X istio.io/istio/pkg/version.buildVersion=$(cat "$istio/VERSION").0"
	go build -ldflags "$ldflags" -o "$tmp/" k8s.io/kubernetes/cmd/kube-apiserver k8s.io/kubernetes/cmd/kubectl \
		istio.io/istio/pilot/cmd/pilot-discovery istio.io/istio/pilot/cmd/pilot-agent
	go build -ldflags "$ldflags" -o "$tmp/etcd" go.etcd.io/etcd/server/v3
	cp "$istio/manifests/charts/base/files/crd-all.gen.yaml" "$tmp/crds.yaml"
	cp "$istio/tools/packaging/common/envoy_bootstrap.json" "$tmp/bootstrap.json"
	chmod 644 "$tmp/crds.yaml" "$tmp/bootstrap.json"
	chmod 755 "$tmp"
	cd "$root"
	# Another clone may have been faster: it has built the same.
	mv -T "$tmp" "$dir" 2>/dev/null || [ -d "$dir" ]
fi
ln -sfnT "$dir" build/istio
