#!/bin/sh
# Formatting, linters, generated files, and the rules of the house that grep
# can check.
set -eu
cd "$(dirname "$0")/.."
tools/install.sh
bin=$(pwd)/build/tools
status=0
fail() { echo "lint: $*" >&2; status=1; }

unformatted=$(git grep -L '^// Code generated .* DO NOT EDIT\.$' -- '*.go' | xargs "$bin/gofumpt" -l)
[ -z "$unformatted" ] || fail "not formatted by gofumpt: $unformatted"

for mod in $(git ls-files '*go.mod'); do
	dir=$(dirname "$mod")
	(
		cd "$dir"
		[ -n "$(git ls-files '*.go')" ] || exit 0 # it pins a tool
		[ ! -f env.sh ] || . ./env.sh
		go vet ./... || exit 1
		# Two tests that depend on Istio and Kubernetes: their linting takes many minutes.
		[ "$dir" = e2e/istio/controlplane ] || "$bin/golangci-lint" run --allow-parallel-runners ./...
	) || fail "go vet or golangci-lint in $dir"
done

tools/crds.sh check || fail "CRDs and deep copies"
protos/gen.sh check || fail "protos: generated code"
tools/gazelle.sh check || fail "BUILD.bazel files"

# Dependencies point downwards, those of tests too.
above() { # FOLDER PATTERN
	bad=$(go list -test -deps -f '{{if not .ForTest}}{{.ImportPath}}{{end}}' "./$1/..." | grep -E "^github.com/meltemi-mesh/meltemi/($2)(/|\$)" | sort -u || true)
	[ -z "$bad" ] || fail "what is above $1/ is imported there:" $bad
}
above codecs 'filter|filters|control|envoy-build|cmd'
above filter 'control|envoy-build|cmd'
above filters 'control|envoy-build|cmd'
above control 'envoy-build|cmd'
above envoy-build/internal 'control|envoy-build/dynamicmodules|cmd'

# Filters stand on the pipeline, which knows none of them. Tests do, and filtertest brings
# the router.
bad=$(go list ./filter/... | grep -v '/filter/filtertest$' | xargs go list -deps | grep '^github.com/meltemi-mesh/meltemi/filters/' | sort -u || true)
[ -z "$bad" ] || fail "the pipeline imports filters:" $bad

# No cgo under those, nor in what the binding to Envoy adapts: plain `go test` tests it.
bad=$(git ls-files 'codecs/*.go' 'filter/*.go' 'filters/*.go' 'control/*.go' 'envoy-build/internal/*.go' | xargs grep -lE '^import "C"' || true)
[ -z "$bad" ] || fail "cgo where there is to be none: $bad"

# The module lives in somebody else's process.
bad=$(git ls-files 'codecs/*.go' 'filter/*.go' 'filters/*.go' 'envoy-build/*.go' | grep -v '_test\.go$' | xargs grep -nE 'signal\.Notify|os\.Exit|log\.Fatal' || true)
[ -z "$bad" ] || fail "not in a host's process: $bad"

[ $status -ne 0 ] || echo "lint: clean"
exit $status
