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
	_ "github.com/meltemi-mesh/meltemi/filters/adaptiveconcurrency"
	_ "github.com/meltemi-mesh/meltemi/filters/connectionlimit"
	_ "github.com/meltemi-mesh/meltemi/filters/extauthz"
	_ "github.com/meltemi-mesh/meltemi/filters/fault"
	_ "github.com/meltemi-mesh/meltemi/filters/localratelimit"
	_ "github.com/meltemi-mesh/meltemi/filters/metadataexchange"
	_ "github.com/meltemi-mesh/meltemi/filters/ratelimit"
	_ "github.com/meltemi-mesh/meltemi/filters/ratelimitquota"
	_ "github.com/meltemi-mesh/meltemi/filters/rbac"
	_ "github.com/meltemi-mesh/meltemi/filters/setmetadata"
)

func main() { os.Exit(command.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
