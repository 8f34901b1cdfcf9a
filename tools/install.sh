#!/bin/sh
# Builds the pinned tools that lint.sh, gazelle.sh and crds.sh use into build/tools.
set -eu
cd "$(dirname "$0")/.."
GOBIN=$(pwd)/build/tools
export GOBIN
mkdir -p "$GOBIN"
get() { # get NAME PACKAGE VERSION
	stamp=$GOBIN/.$1-$3
	[ -x "$GOBIN/$1" ] && [ -f "$stamp" ] && return
	echo "building $1 $3"
	(cd / && go install "$2@$3")
	touch "$stamp"
}
get golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint v2.11.4
get gofumpt mvdan.cc/gofumpt v0.9.2
get controller-gen sigs.k8s.io/controller-tools/cmd/controller-gen v0.21.0
get gazelle github.com/bazelbuild/bazel-gazelle/cmd/gazelle v0.47.0
