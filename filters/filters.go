// Package filters links the filters that are built in: their names are what configurations
// may use in the shared object for Envoy, and what the tool knows.
package filters

import (
	_ "github.com/meltemi-mesh/meltemi/filters/adaptiveconcurrency"
	_ "github.com/meltemi-mesh/meltemi/filters/connectionlimit"
	_ "github.com/meltemi-mesh/meltemi/filters/consumer"
	_ "github.com/meltemi-mesh/meltemi/filters/extauthz"
	_ "github.com/meltemi-mesh/meltemi/filters/fault"
	_ "github.com/meltemi-mesh/meltemi/filters/istiostats"
	_ "github.com/meltemi-mesh/meltemi/filters/localratelimit"
	_ "github.com/meltemi-mesh/meltemi/filters/lua"
	_ "github.com/meltemi-mesh/meltemi/filters/metadataexchange"
	_ "github.com/meltemi-mesh/meltemi/filters/ratelimit"
	_ "github.com/meltemi-mesh/meltemi/filters/ratelimitquota"
	_ "github.com/meltemi-mesh/meltemi/filters/rbac"
	_ "github.com/meltemi-mesh/meltemi/filters/router"
	_ "github.com/meltemi-mesh/meltemi/filters/setmetadata"
)
