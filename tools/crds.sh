#!/bin/sh
# Writes what is made of the Go types of the operator's objects: their CRDs, in
# charts/meltemi-crds, and their deep copies; "check" only tells whether they are current.
set -eu
cd "$(dirname "$0")/.."
tools/install.sh
gen=$(pwd)/build/tools/controller-gen
charts=$(pwd)/charts/meltemi-crds/templates
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd control/operator
"$gen" crd:allowDangerousTypes=true paths=./api/... output:crd:dir="$tmp"
case ${1-} in
check)
	"$gen" object paths=./api/metaprotocol/... output:object:dir="$tmp/metaprotocol"
	"$gen" object paths=./api/dubbo/... output:object:dir="$tmp/dubbo"
	cmp "$tmp/metaprotocol/zz_generated.deepcopy.go" api/metaprotocol/v1alpha1/zz_generated.deepcopy.go
	cmp "$tmp/dubbo/zz_generated.deepcopy.go" api/dubbo/v1alpha1/zz_generated.deepcopy.go
	rm -rf "$tmp/metaprotocol" "$tmp/dubbo"
	exec diff -r "$tmp" "$charts"
	;;
*)
	"$gen" object paths=./api/...
	rm -rf "$charts"
	mkdir -p "$charts"
	cp "$tmp"/*.yaml "$charts/"
	;;
esac
