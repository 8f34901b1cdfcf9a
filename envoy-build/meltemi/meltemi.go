// Package meltemi links Meltemi's pipeline, with its built-in filters, into the
// shared object that imports it.
package meltemi

import (
	"github.com/meltemi-mesh/meltemi/envoy-build/dynamicmodules"
	"github.com/meltemi-mesh/meltemi/envoy-build/golang/exports"
	"github.com/meltemi-mesh/meltemi/filter"
	_ "github.com/meltemi-mesh/meltemi/filters"
)

func init() {
	m := filter.NewModule() // Envoy uses one of the two
	dynamicmodules.Serve(m)
	exports.Serve(m)
}
