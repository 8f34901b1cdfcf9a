#!/bin/sh
# Writes the BUILD.bazel files of the library's module; "check" only tells
# whether they are current.
set -eu
cd "$(dirname "$0")/.."
tools/install.sh
case ${1-} in
check) exec build/tools/gazelle update -mode=diff -index=true . ;;
*) exec build/tools/gazelle update -index=true . ;;
esac
