// Command custom-so is a shared object of one's own: Meltemi with two filters
// that it does not bring along. Build it like libmeltemi.so:
//
//	go build -buildmode=c-shared -o libmeltemi.so ./examples/custom-so
//
// With -tags 'grpcnotrace netgo osusergo' -ldflags '-s -w' it is half as large, and
// needs no library that Envoy does not.
package main

import (
	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	_ "github.com/meltemi-mesh/meltemi/envoy-build/meltemi"
	_ "github.com/meltemi-mesh/meltemi/examples/filters/tenant"
	_ "github.com/meltemi-mesh/meltemi/examples/filters/zone"
)

func main() {}
