#!/bin/sh
# Formatting, vet and the rules of the house that grep can check.
set -eu
cd "$(dirname "$0")/.."
status=0
fail() { echo "lint: $*" >&2; status=1; }

unformatted=$(git ls-files '*.go' | grep -v '\.pb\.go$' | xargs gofmt -s -l)
[ -z "$unformatted" ] || fail "not formatted: $unformatted"

for mod in $(git ls-files '*go.mod'); do
	(cd "$(dirname "$mod")" && go vet ./...) || fail "go vet in $(dirname "$mod")"
done

# Dependencies point downwards: no cgo and no Envoy ABI under codecs/ and filter/.
bad=$(git ls-files 'codecs/*.go' 'filter/*.go' | xargs grep -lE '^import "C"|meltemi/envoy-build' || true)
[ -z "$bad" ] || fail "cgo or an Envoy ABI in the host-independent part: $bad"

# The module lives in somebody else's process.
bad=$(git ls-files 'codecs/*.go' 'filter/*.go' 'envoy-build/*.go' | grep -v '_test\.go$' | xargs grep -nE 'signal\.Notify|os\.Exit|log\.Fatal' || true)
[ -z "$bad" ] || fail "not in a host's process: $bad"

exit $status
