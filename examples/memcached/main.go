// Command memcached is a shared object of one's own: Meltemi with a codec of
// memcached's text protocol.
package main

import (
	_ "example.org/memcached/memcached"
	_ "github.com/meltemi-mesh/meltemi/envoy-build/meltemi"
)

func main() {}
