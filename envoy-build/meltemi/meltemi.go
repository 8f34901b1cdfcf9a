// Package meltemi links Meltemi's pipeline, with its built-in filters, into the
// shared object that imports it.
package meltemi

import (
	"github.com/meltemi-mesh/meltemi/envoy-build/dynamicmodules"
	"github.com/meltemi-mesh/meltemi/filter"

	// The built-in filters.
	_ "github.com/meltemi-mesh/meltemi/filters/adaptiveconcurrency"
	_ "github.com/meltemi-mesh/meltemi/filters/connectionlimit"
	_ "github.com/meltemi-mesh/meltemi/filters/extauthz"
	_ "github.com/meltemi-mesh/meltemi/filters/fault"
	_ "github.com/meltemi-mesh/meltemi/filters/localratelimit"
	_ "github.com/meltemi-mesh/meltemi/filters/metadataexchange"
	_ "github.com/meltemi-mesh/meltemi/filters/ratelimit"
	_ "github.com/meltemi-mesh/meltemi/filters/ratelimitquota"
	_ "github.com/meltemi-mesh/meltemi/filters/rbac"
	_ "github.com/meltemi-mesh/meltemi/filters/router"
	_ "github.com/meltemi-mesh/meltemi/filters/setmetadata"
)

func init() { dynamicmodules.Serve(filter.NewModule()) }
