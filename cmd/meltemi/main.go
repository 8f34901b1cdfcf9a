// Command meltemi decodes captured bytes with the codecs of libmeltemi.so, and
// makes and checks its configuration. To get it with codecs and filters of your
// own, copy this file and import them too.
package main

import (
	"os"

	"github.com/meltemi-mesh/meltemi/cmd/meltemi/command"
	_ "github.com/meltemi-mesh/meltemi/codecs/brpc"
	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	_ "github.com/meltemi-mesh/meltemi/codecs/thrift"
	_ "github.com/meltemi-mesh/meltemi/codecs/trpc"
)

func main() { os.Exit(command.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
