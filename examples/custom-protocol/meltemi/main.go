// Command meltemi is the tool of the same name with the tutorial's codec.
package main

import (
	"os"

	"github.com/meltemi-mesh/meltemi/cmd/meltemi/command"
	_ "github.com/meltemi-mesh/meltemi/examples/custom-protocol/parley"
)

func main() { os.Exit(command.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
