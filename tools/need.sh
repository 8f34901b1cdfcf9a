#!/bin/sh
# Sees to it that programs are there. In CI, as root of a Debian, it installs
# what is missing; elsewhere it says how to, and fails.
# usage: tools/need.sh 'PROGRAM=PACKAGE PACKAGE ...' ...
set -eu
packages=
for pair; do
	command -v "${pair%%=*}" >/dev/null || packages="$packages ${pair#*=}"
done
[ -n "$packages" ] || exit 0
if [ "${CI:-}" = true ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	apt-get -qq update
	# shellcheck disable=SC2086 # a list of packages
	DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends -y $packages >&2
else
	echo "missing:$packages (Debian: apt-get install$packages)" >&2
	exit 1
fi
