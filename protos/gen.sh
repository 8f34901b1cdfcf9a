#!/usr/bin/env bash
# Lints the .proto files and generates their Go code, or, with "check", says
# whether the committed code is current. The protos that ours import are laid
# out from Go modules: no schema registry is asked.
set -euo pipefail
cd "$(dirname "$0")"
root=$(cd .. && pwd)
deps=$root/build/proto-deps
bin=$root/build/tools
mkdir -p "$bin"
go -C "$root/tools" build -o "$bin/" github.com/bufbuild/buf/cmd/buf google.golang.org/protobuf/cmd/protoc-gen-go
rm -rf "$deps"
go -C "$root/tools" run ./protodeps "$root/protos/aeraki" "$deps"

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
cp -r "$deps/." "$out/"
cp -r aeraki buf.yaml buf.gen.yaml "$out/"
find "$out/aeraki" -name '*.go' -delete
export PATH=$bin:$PATH
(cd "$out" && buf lint && buf generate --path aeraki)

if [ "${1-}" = check ]; then
	status=0
	while IFS= read -r f; do
		cmp -s "$f" "$out/$f" || { echo "protos/$f is not current: run protos/gen.sh" >&2; status=1; }
	done < <({ find aeraki -name '*.pb.go'; cd "$out" && find aeraki -name '*.pb.go'; } | sort -u)
	exit $status
fi
find aeraki -name '*.pb.go' -delete
(cd "$out" && find aeraki -name '*.pb.go' -print0 | tar --null -cf - -T -) | tar -xf -
