package command

import (
	"flag"
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/meltemi-mesh/meltemi/control/input"
	"github.com/meltemi-mesh/meltemi/control/ir"
	"github.com/meltemi-mesh/meltemi/control/source"
	"github.com/meltemi-mesh/meltemi/control/translate/envoyfilter"
)

const envoyfilterUsage = `usage: meltemi envoyfilter [FLAGS] [FILE|-]

Prints the EnvoyFilters that put Meltemi in front of a service in Istio, for
kubectl apply -f -. FILE describes the service in YAML, see docs/istio.md; the
flags do so where everything goes to the service itself. With -pods prints the
patch that the Deployments of the pods need instead, for kubectl patch
--patch-file.

`

// many is a flag that may be given several times.
type many []string

func (m *many) String() string     { return strings.Join(*m, " ") }
func (m *many) Set(s string) error { *m = append(*m, s); return nil }

// serviceFlags describe a service without a file.
type serviceFlags struct {
	host, namespace, protocol, server, clients, delivery string
	headless                                             bool
	addresses, ports, gateways                           many
}

func (f *serviceFlags) register(fs *flag.FlagSet) {
	fs.StringVar(&f.host, "host", "", "full `name` of the service in Istio")
	fs.StringVar(&f.namespace, "namespace", "", "its `namespace`, if the name does not have it")
	fs.StringVar(&f.protocol, "protocol", "", "`name` of the codec")
	fs.Var(&f.ports, "port", "`port[:targetPort]` of the service; may be repeated")
	fs.Var(&f.addresses, "address", "`address` at which clients find it; may be repeated")
	fs.BoolVar(&f.headless, "headless", false, "clients connect to the endpoints themselves")
	fs.StringVar(&f.server, "server", "", "`labels` of the workload behind it, such as app=greeter,tier=back")
	fs.StringVar(&f.clients, "clients", "", "`labels` of the workloads that call it; default: all of the namespace")
	fs.Var(&f.gateways, "gateway", "`namespace/labels:port[:servicePort]` of a gateway, whose port leads to this service alone; may be repeated")
	fs.StringVar(&f.delivery, "delivery", "", "ECDS (default) or LISTENER")
}

// service is what the flags describe, in the form of a file.
func (f *serviceFlags) service() (map[string]any, error) {
	s := map[string]any{}
	for k, v := range map[string]string{"host": f.host, "namespace": f.namespace, "protocol": f.protocol, "delivery": f.delivery} {
		if v != "" {
			s[k] = v
		}
	}
	if f.headless {
		s["headless"] = true
	}
	if len(f.addresses) > 0 {
		s["addresses"] = []string(f.addresses)
	}
	var ports, gateways []any
	for _, p := range f.ports {
		m := map[string]any{}
		if err := numbers(m, "-port", p, "port", "targetPort"); err != nil {
			return nil, err
		}
		ports = append(ports, m)
	}
	s["ports"] = ports
	for _, g := range f.gateways {
		ns, rest, _ := strings.Cut(g, "/")
		labels, rest, _ := strings.Cut(rest, ":")
		selector, err := selector("-gateway", labels)
		if err != nil {
			return nil, err
		}
		m := map[string]any{"namespace": ns, "selector": selector, "sniHosts": []any{}}
		if err := numbers(m, "-gateway", rest, "port", "servicePort"); err != nil {
			return nil, err
		}
		gateways = append(gateways, m)
	}
	if gateways != nil {
		s["gateways"] = gateways
	}
	if f.server != "" {
		selector, err := selector("-server", f.server)
		if err != nil {
			return nil, err
		}
		s["server"] = map[string]any{"selector": selector}
	}
	if f.clients != "" {
		selector, err := selector("-clients", f.clients)
		if err != nil {
			return nil, err
		}
		s["clients"] = []any{map[string]any{"selector": selector}}
	}
	return s, nil
}

// numbers splits a:b.
func numbers(m map[string]any, name, s string, keys ...string) error {
	parts := strings.Split(s, ":")
	if len(parts) > len(keys) {
		return fmt.Errorf("%s: %q: want %s", name, s, strings.Join(keys, ":"))
	}
	for i, p := range parts {
		n, err := strconv.Atoi(p)
		if err != nil {
			return fmt.Errorf("%s: %q is no port", name, p)
		}
		m[keys[i]] = n
	}
	return nil
}

// selector reads a=b,c=d.
func selector(name, s string) (map[string]any, error) {
	m := map[string]any{}
	for kv := range strings.SplitSeq(s, ",") {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return nil, fmt.Errorf("%s: %q is no label, such as app=greeter", name, kv)
		}
		m[k] = v
	}
	return m, nil
}

func (e *env) envoyfilter(args []string) int {
	fs := flag.NewFlagSet("envoyfilter", flag.ContinueOnError)
	var f serviceFlags
	f.register(fs)
	pods := fs.Bool("pods", false, "print the patch for the pods")
	files, status, ok := e.flags(fs, envoyfilterUsage, args, 0, 1)
	if !ok {
		return status
	}
	var described []string
	fs.Visit(func(f *flag.Flag) {
		if f.Name != "pods" {
			described = append(described, "-"+f.Name)
		}
	})
	if len(files) == 1 && len(described) > 0 {
		return e.fail(statusUsage, "%s: there is a file too", strings.Join(described, ", "))
	}
	var text []byte
	var err error
	file := "flags"
	switch {
	case len(files) == 1:
		file = files[0]
		text, err = e.read(file)
	case len(described) > 0:
		var s map[string]any
		if s, err = f.service(); err != nil {
			return e.fail(statusUsage, "%v", err)
		}
		text, err = yaml.Marshal(s)
	case !*pods:
		return e.fail(statusUsage, "envoyfilter wants a file, or flags that describe a service")
	}
	if err != nil {
		return e.fail(statusFault, "%v", err)
	}
	var service *ir.Service
	var filters []*envoyfilter.Filter
	if text != nil {
		var errs source.Errors
		if service, filters, errs = generated(text); len(errs) > 0 {
			return e.faults(file, errs)
		}
	}
	var out []byte
	if *pods {
		out, err = envoyfilter.PodPatch(service)
	} else {
		out, err = envoyfilter.YAML(filters)
	}
	if err != nil {
		return e.fail(statusFault, "%v", err)
	}
	e.printf("%s", out)
	return statusOK
}

// generated are the EnvoyFilters of a service's description.
func generated(text []byte) (*ir.Service, []*envoyfilter.Filter, source.Errors) {
	service, places, errs := input.Load(text)
	if len(errs) > 0 {
		return nil, nil, errs
	}
	filters, faults := envoyfilter.Generate(service)
	return service, filters, places.Locate(faults)
}

// faults complains of each fault in a file.
func (e *env) faults(file string, errs source.Errors) int {
	_ = e.stdout.Flush() // Main reports it
	for _, fault := range errs {
		line := fault.Line
		if file == "flags" {
			line = 0
		}
		e.complain("%s: %v\n", at(file, line), fault.Fault)
	}
	return statusFault
}
