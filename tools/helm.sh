#!/bin/sh
# Puts Helm at build/helm, built from its module in the version below. What was built stays
# in a folder that all clones share, MELTEMI_CACHE if that is set; another version or
# another Go build anew.
# usage: tools/helm.sh
set -eu
cd "$(dirname "$0")/.."
version=v3.22.0

key=$({ cat tools/helm.sh; go env GOVERSION GOARCH; } | sha256sum | cut -c1-16)
cache=${MELTEMI_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/meltemi}
dir=$cache/helm-$key
mkdir -p build "$cache"

if [ ! -d "$dir" ]; then
	echo "building Helm $version into $dir: some minutes, once" >&2
	tmp=$(mktemp -d "$cache/.helm.XXXXXX")
	trap 'rm -rf "$tmp"' EXIT
	helm=helm.sh/helm/v3
	# As in its own build it tells its version, and judges charts by the Kubernetes of its client.
	source=$(go mod download -json "$helm@$version" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
	client=$(cd "$source" && go list -m -f '{{.Version}}' k8s.io/client-go)
	minor=${client#v0.}
	ldflags="-s -w -X $helm/internal/version.version=$version"
	for p in chartutil lint/rules; do
		ldflags="$ldflags -X $helm/pkg/$p.k8sVersionMajor=1 -X $helm/pkg/$p.k8sVersionMinor=${minor%%.*}"
	done
	CGO_ENABLED=0 GOBIN=$tmp go install -trimpath -ldflags "$ldflags" "$helm/cmd/helm@$version"
	chmod 755 "$tmp"
	# Another clone may have been faster: it has built the same.
	mv -T "$tmp" "$dir" 2>/dev/null || [ -d "$dir" ]
fi
ln -sfnT "$dir/helm" build/helm
