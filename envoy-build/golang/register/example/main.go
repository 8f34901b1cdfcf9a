// Command example is a shared object for Envoy's golang network filter that links Envoy's
// own package: Meltemi, and beside it room for other plugins, registered as that package
// says.
package main

import (
	"github.com/envoyproxy/envoy/contrib/golang/filters/network/source/go/pkg/network"

	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	"github.com/meltemi-mesh/meltemi/envoy-build/golang/register"
	"github.com/meltemi-mesh/meltemi/filter"
	_ "github.com/meltemi-mesh/meltemi/filters"
)

// Without other plugins configurations are loaded, and refused, with their listener.
func init() { network.RegisterNetworkFilterConfigParser(register.Serve(filter.NewModule())) }

func main() {}
