package command

import (
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"text/tabwriter"

	"github.com/meltemi-mesh/meltemi/control/status"
)

const statusUsageText = `usage: meltemi status [-n NAMESPACE] [-o json] [FLAGS] [HOST]

Prints what the control plane has programmed: of each service its MetaRouter,
the objects that are written for proxies, which proxies have the last routes (by
RDS; of those by ECDS "istioctl proxy-status" tells), and what is wrong. With a
HOST, or what one begins with, such as a service's name, all that is known of it.

The operator is asked through the API server, by kubectl and as whom that knows
you: you may have to be allowed to "get" "services/proxy" in its namespace. With
-address it is asked at its metrics' address, as after a kubectl port-forward.

`

// operator says how it is reached.
type operator struct {
	address, service, kubectl, config, context string
}

// status prints what has become of services.
func (e *env) status(args []string) int {
	fs := flag.NewFlagSet("status", flag.ContinueOnError)
	var a operator
	namespace := fs.String("n", "", "services and routers of a `namespace` only")
	output := fs.String("o", "", "json prints all that is known, in the form of control/status")
	fs.StringVar(&a.address, "address", "", "`HOST:PORT` of the operator's metrics")
	fs.StringVar(&a.service, "operator", "meltemi-system/meltemi-operator:8080", "the operator's Service, `NAMESPACE/NAME:PORT`, with the port of its metrics")
	fs.StringVar(&a.kubectl, "kubectl", "kubectl", "the `program`")
	fs.StringVar(&a.config, "kubeconfig", "", "kubectl's `file`")
	fs.StringVar(&a.context, "context", "", "the `name` of a context of kubectl's")
	hosts, code, ok := e.flags(fs, statusUsageText, args, 0, 1)
	switch {
	case !ok:
		return code
	case *output != "" && *output != "json":
		return e.fail(statusUsage, "-o: want json, is %q", *output)
	}
	query := url.Values{}
	if *namespace != "" {
		query.Set("namespace", *namespace)
	}
	if len(hosts) > 0 {
		query.Set("host", hosts[0])
	}
	path := status.Path
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	text, err := a.get(path)
	var list status.List
	if err == nil {
		err = json.Unmarshal(text, &list)
	}
	switch {
	case err != nil:
		return e.fail(statusFault, "%v", err)
	case *output == "json":
		e.printf("%s", text)
	case len(list.Services) == 0:
		return e.fail(statusFault, "there is no such service")
	case len(hosts) > 0:
		for i := range list.Services {
			e.statusOf(&list.Services[i])
		}
	default:
		e.statuses(list.Services)
	}
	return statusOK
}

// get asks the operator.
func (a *operator) get(path string) ([]byte, error) {
	if a.address != "" {
		return page(http.MethodGet, a.address, path)
	}
	namespace, service, ok := strings.Cut(a.service, "/")
	if !ok || namespace == "" || service == "" {
		return nil, fmt.Errorf("-operator: want NAMESPACE/NAME:PORT, is %q", a.service)
	}
	args := []string{"get", "--raw", "/api/v1/namespaces/" + url.PathEscape(namespace) + "/services/" + url.PathEscape(service) + "/proxy" + path}
	if a.config != "" {
		args = append(args, "--kubeconfig", a.config)
	}
	if a.context != "" {
		args = append(args, "--context", a.context)
	}
	text, err := exec.Command(a.kubectl, args...).Output() //nolint:gosec // the user's own program
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%s: %s", a.kubectl, strings.TrimSpace(string(exit.Stderr)))
	}
	return text, err
}

// statuses are a line of each service, and behind them what is wrong.
func (e *env) statuses(all []status.Service) {
	w := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	line := func(cells ...string) { _, _ = fmt.Fprintln(w, strings.Join(cells, "\t")) }
	line("HOST", "ROUTER", "WRITTEN", "ROUTES", "PROXIES", "STATE")
	for _, s := range all {
		state := "ok"
		switch {
		case len(s.Problems) > 0 || refusedBy(s.Routes) > 0:
			state = "wrong"
		case current(s.Written) < len(s.Written) || waitingFor(s.Routes):
			state = "pending"
		}
		line(s.Host, cmp.Or(s.Router, "-"), of(current(s.Written), len(s.Written)), cmp.Or(s.Delivery, "-"), proxies(s.Routes), state)
	}
	_ = w.Flush() // bufio remembers for Main
	for _, s := range all {
		if len(s.Problems) > 0 || refusedBy(s.Routes) > 0 {
			e.printf("\n%s\n", s.Host)
			e.problems(&s)
		}
	}
}

// statusOf is all that is known of a service.
func (e *env) statusOf(s *status.Service) {
	e.printf("%s\n", s.Host)
	w := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	line := func(cells ...string) { _, _ = fmt.Fprintln(w, "  "+strings.Join(cells, "\t")) }
	line("ports of", cmp.Or(s.Object, "-"))
	line("router", cmp.Or(s.Router, "-"))
	line("routes by", cmp.Or(s.Delivery, "-"))
	for _, o := range s.Written {
		state := ""
		switch {
		case o.Version == "":
			state = ", not there yet"
		case !o.Current:
			state = ", not as it shall be yet"
		}
		version := ""
		if o.Version != "" {
			version = " version " + status.Brief(o.Version)
		}
		line(o.Kind, o.Namespace+"/"+o.Name+version+state)
	}
	for _, r := range s.Routes {
		line("routes", fmt.Sprintf("%s version %s: %s", r.Name, status.Brief(r.Version), r.Counts()))
		for _, u := range r.Unknown {
			line("", "what the proxies of "+u+" say is not known")
		}
	}
	_ = w.Flush()
	e.problems(s)
}

func (e *env) problems(s *status.Service) {
	for _, p := range s.Problems {
		field := ""
		if p.Field != "" {
			field = p.Field + ": "
		}
		e.printf("  %s: %s%s\n", p.Object, field, p.Reason)
	}
	for _, r := range s.Routes {
		for _, f := range r.Refusals {
			e.printf("  %s refuses %s: %s\n", f.Proxy(), r.Name, f.Reason)
		}
		if more := r.Refused - len(r.Refusals); more > 0 {
			e.printf("  and %d more refuse %s\n", more, r.Name)
		}
	}
}

// of is how many of some have something.
func of(n, all int) string {
	if n == all {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%d of %d", n, all)
}

func current(all []status.Object) (n int) {
	for _, o := range all {
		if o.Current {
			n++
		}
	}
	return n
}

func refusedBy(all []status.Routes) (n int) {
	for _, r := range all {
		n += r.Refused
	}
	return n
}

func waitingFor(all []status.Routes) bool {
	for _, r := range all {
		if r.Waiting > 0 || len(r.Unknown) > 0 {
			return true
		}
	}
	return false
}

// proxies have accepted, of all that ask; of several ports each counts.
func proxies(all []status.Routes) string {
	if len(all) == 0 {
		return "-"
	}
	accepted, asking := 0, 0
	for _, r := range all {
		accepted += r.Accepted
		asking += r.Accepted + r.Waiting + r.Refused
	}
	return of(accepted, asking)
}
