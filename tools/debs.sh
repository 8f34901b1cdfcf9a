#!/bin/sh
# Unpacks packages of Debian into a folder, with what they depend on that is not
# installed, unless they are there. Nothing is installed.
# usage: tools/debs.sh OUT PACKAGE...
set -eu
out=$1
shift
[ "$(cat "$out/.packages" 2>/dev/null || true)" != "$*" ] || exit 0
command -v apt-get >/dev/null || { echo "apt-get is missing: $* come from Debian's packages" >&2; exit 127; }
if [ "${CI:-}" = true ] && [ "$(id -u)" = 0 ]; then
	apt-get -qq update
fi
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
wanted=$({
	printf '%s\n' "$@" # also where they are installed
	apt-get -qq --simulate --no-install-recommends install "$@" | sed -n 's/^Inst \([^ ]*\) .*/\1/p'
} | sort -u)
cd "$tmp"
# shellcheck disable=SC2086 # lists of packages
apt-get -qq -o APT::Sandbox::User=root download $wanted
for deb in *.deb; do
	dpkg -x "$deb" root
done
rm -rf "$out"
mkdir -p "$(dirname "$out")"
mv root "$out"
echo "$*" >"$out/.packages"
