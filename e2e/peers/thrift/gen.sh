#!/bin/sh
# Generates the Go, Python and Node code of echo.thrift, committed. Needs the Thrift
# compiler 0.17 (Debian: apt-get install thrift-compiler).
set -eu
cd "$(dirname "$0")"
case $(thrift --version) in
*" 0.17."*) ;;
*) echo "gen.sh: not version 0.17: $(thrift --version)" >&2; exit 1 ;;
esac
rm -rf echo python/echo node/echo
thrift --out . --gen go:skip_remote,package_prefix=github.com/meltemi-mesh/meltemi/e2e/peers/thrift/ echo.thrift
thrift --out python --gen py echo.thrift
mkdir node/echo
thrift --out node/echo --gen js:node echo.thrift
rm -f python/__init__.py python/echo/*-remote
../../../tools/install.sh
../../../build/tools/gofumpt -w echo
