package envoyfilter

import (
	"iter"

	"github.com/meltemi-mesh/meltemi/control/ir"
	"github.com/meltemi-mesh/meltemi/control/loopback"
)

// form is what proxies have of the filter, by their version of Istio. No proxy has two.
type form interface {
	// version is a regular expression.
	version(s *ir.Service) string
	// kind tells the loopback listeners of one namespace apart.
	kind(s *ir.Service) string
	// loopback is the listener from which upstream connections come.
	loopback(s *ir.Service) object
	// filter is the filter with a configuration, in its typed form.
	filter(s *ir.Service, cfg object) object
	// balances tells whether a cluster's load balancer can be ours.
	balances() bool
}

// forms are those that the service wants, in turn.
func (g *generator) forms() iter.Seq[form] {
	return func(yield func(form) bool) {
		for _, f := range []form{modules{}, golang{}} {
			if f.version(g.s) != ir.NoProxies && !yield(f) {
				return
			}
		}
	}
}

// modules are Envoy's dynamic modules.
type modules struct{}

const moduleType = network + "dynamic_modules.v3.DynamicModuleNetworkFilter"

func (modules) version(s *ir.Service) string { return s.ProxyVersion }

func (modules) kind(s *ir.Service) string { return signs(s, s.ProxyVersion, ir.DefaultProxyVersion) }

// loopback tells of workloads for Istio's metrics.
func (modules) loopback(s *ir.Service) object {
	l := loopback.Listener{Module: s.Module, Socket: s.Socket, Workloads: true, Push: pushed(s)}
	if s.Admin != ir.NoAdmin {
		l.Admin = s.Admin
	}
	return sources(l).Config()
}

func (modules) filter(s *ir.Service, cfg object) object {
	return object{
		"@type":                 moduleType,
		"dynamic_module_config": object{"name": s.Module, "do_not_close": true, "metrics_namespace": namespace},
		"filter_name":           pluginName,
		"terminal_filter":       true,
		"filter_config":         object{"@type": structType, "value": cfg},
	}
}

func (modules) balances() bool { return true }

// golang is Envoy's golang filter, whose loopback listener is of Envoy's own filters.
type golang struct{}

const golangType = network + "golang.v3alpha.Config"

func (golang) version(s *ir.Service) string { return s.Golang.ProxyVersion }

func (golang) kind(s *ir.Service) string {
	return suffixed("golang", signs(s, s.Golang.ProxyVersion, ir.DefaultGolangVersion))
}

func (golang) loopback(s *ir.Service) object {
	return sources(loopback.Listener{Socket: s.Golang.Socket, Tunnels: true, Connect: !s.Golang.NoConnect}).Config()
}

func (golang) filter(s *ir.Service, cfg object) object {
	return object{
		"@type":              golangType,
		"library_id":         s.Module,
		"library_path":       s.Golang.LibraryPath,
		"plugin_name":        pluginName,
		"is_terminal_filter": true,
		"plugin_config":      object{"@type": structType, "value": cfg},
	}
}

// processEnv is the variable that tells the process what under dynamic modules the
// configuration of the carrier filter does.
const processEnv = "MELTEMI_PROCESS"

// process is what the variable says.
func (golang) process(s *ir.Service) object {
	o := object{"path": s.Golang.Socket}
	if s.Admin != ir.NoAdmin {
		o["admin_address"] = s.Admin
	}
	if otlp := pushed(s); otlp != nil {
		o["metrics"] = object{"otlp": otlp}
	}
	if s.Golang.NoConnect {
		o["connect"] = false
	}
	return o
}

func (golang) balances() bool { return false }
