#!/bin/sh
# Builds the client. The library, Boost's headers and the compiler of echo.thrift
# are those of Debian's packages, which are unpacked in a folder that is removed
# again: nothing is installed.
# usage: build.sh OUT
set -eu
out=$1
here=$(cd "$(dirname "$0")" && pwd)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
"$here/../../../../tools/debs.sh" "$tmp/debs" thrift-compiler libthrift-dev rapidjson-dev zlib1g-dev libboost-dev
cd "$tmp/debs"
mkdir gen
usr/bin/thrift --gen cpp:no_skeleton -out gen "$here/../echo.thrift"
lib=$(echo usr/lib/*-linux-gnu)
g++ -std=c++17 -O0 -Wall -Wextra -pthread -isystem usr/include -isystem "usr/include/${lib##*/}" -isystem gen \
	"$here/client.cpp" "$lib/libthriftz.a" "$lib/libthrift.a" "$lib/libz.a" -o client
mkdir -p "$out"
mv client "$out/client"
