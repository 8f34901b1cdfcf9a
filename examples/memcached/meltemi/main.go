// Command meltemi is the tool of the same name with the codec of memcached.
package main

import (
	"os"

	_ "example.org/memcached/memcached"
	"github.com/meltemi-mesh/meltemi/cmd/meltemi/command"
)

func main() { os.Exit(command.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
