#!/bin/sh
# Generates the code of echo.thrift, committed, with the generator of the module's
# own version of Kitex.
set -eu
cd "$(dirname "$0")"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
version=$(go list -m -f '{{.Version}}' github.com/cloudwego/kitex)
# A module of its own, as the generator has dependencies that the peers have not.
printf 'module generator\ngo 1.26\nrequire github.com/cloudwego/kitex %s\n' "$version" >"$tmp/go.mod"
printf 'package generator\nimport _ "github.com/cloudwego/kitex/tool/cmd/kitex"\n' >"$tmp/generator.go"
(cd "$tmp" && go build -mod=mod -o kitex github.com/cloudwego/kitex/tool/cmd/kitex)
rm -rf gen
cp go.mod "$tmp/go.mod.kept"
# The generator looks for the module's dependencies and would change go.mod.
"$tmp/kitex" -module github.com/meltemi-mesh/meltemi/e2e/peers/kitex -no-dependency-check \
	-gen-path gen -thrift template=slim echo.thrift
cp "$tmp/go.mod.kept" go.mod
rm -f gen/api/k-consts.go # for other generated packages, of which there are none
../../../tools/install.sh
../../../build/tools/gofumpt -w gen
