// Command custom-protocol is a shared object of one's own: Meltemi with the
// codec of a private protocol beside those that it brings along.
package main

import (
	_ "github.com/meltemi-mesh/meltemi/codecs/brpc"
	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	_ "github.com/meltemi-mesh/meltemi/codecs/thrift"
	_ "github.com/meltemi-mesh/meltemi/codecs/trpc"
	_ "github.com/meltemi-mesh/meltemi/envoy-build/meltemi"
	_ "github.com/meltemi-mesh/meltemi/examples/custom-protocol/parley"
)

func main() {}
