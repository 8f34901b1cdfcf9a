#!/bin/sh
# Puts Debian 11 with a C compiler at build/bullseye.tar.gz: the stand-in for the image in
# which envoy-build/Dockerfile builds, which has Go besides. What was fetched stays in a
# folder that all clones share, MELTEMI_CACHE if that is set.
# usage: tools/bullseye.sh
set -eu
cd "$(dirname "$0")/.."
debs=$PWD/build/debs/images
tools/debs.sh "$debs" buildah debootstrap busybox-static

key=$({ cat tools/bullseye.sh; dpkg --print-architecture; } | sha256sum | cut -c1-16)
cache=${MELTEMI_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/meltemi}
tar=$cache/bullseye-$key.tar.gz
mkdir -p "$cache"

if [ ! -f "$tar" ]; then
	echo "fetching Debian 11 into $tar: a minute, once" >&2
	tmp=$(mktemp -d "$cache/.bullseye.XXXXXX")
	trap 'rm -rf "$tmp"' EXIT
	DEBOOTSTRAP_DIR=$debs/usr/share/debootstrap "$debs/usr/sbin/debootstrap" --variant=minbase \
		--include=gcc,libc6-dev,make,ca-certificates bullseye "$tmp/root" >"$tmp/log" 2>&1 ||
		{ tail -n 20 "$tmp/log" >&2; exit 1; }
	tar -C "$tmp/root" --exclude=./dev --exclude=./proc --exclude=./sys --exclude=./var/cache --exclude=./var/lib/apt \
		--exclude=./usr/share/doc --exclude=./usr/share/locale --exclude=./usr/share/man -cf - . | gzip -1 >"$tmp/tar"
	mv "$tmp/tar" "$tar"
fi
ln -sfnT "$tar" build/bullseye.tar.gz
