// Command envoy-build is libmeltemi.so, built with -buildmode=c-shared. To add
// a codec or filter of your own, copy this file and import it too.
package main

import (
	_ "github.com/meltemi-mesh/meltemi/codecs/brpc"
	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	_ "github.com/meltemi-mesh/meltemi/codecs/thrift"
	_ "github.com/meltemi-mesh/meltemi/codecs/trpc"
	_ "github.com/meltemi-mesh/meltemi/envoy-build/meltemi"
)

func main() {}
