package command

import (
	"flag"

	"github.com/meltemi-mesh/meltemi/control/convert"
	"github.com/meltemi-mesh/meltemi/control/source"
)

const convertUsage = `usage: meltemi convert [FLAGS] FILE|-

Prints a file in which the filters of the C++ MetaProtocol Proxy, and Envoy's
dubbo_proxy and thrift_proxy, are Meltemi's. FILE is a configuration for Envoy, in
YAML or JSON, or EnvoyFilters; it is read as "meltemi check" does. All else stays
as it is, but for comments, which go, and the loopback listener, which is added. What
is printed is YAML, and "meltemi check" takes the filters in it.

On the standard error notes tell of what does something else, or is not needed any
more, and the other lines, each with its line and field, of what is not carried over.
If there are such lines nothing is printed, unless -partial is given: then without
that. A route whose matchers cannot be carried over is left out, and filters that
cannot be converted stay.

The status is 0 if all was carried over, else 1.

`

// convert prints the configuration of another proxy as Meltemi's.
func (e *env) convert(args []string) int {
	fs := flag.NewFlagSet("convert", flag.ContinueOnError)
	host := fs.String("host", "modules", "`what` loads the shared object: modules, for dynamic modules, or golang, for the golang filter")
	library := fs.String("library", "", "`path` of the shared object, for the golang filter")
	partial := fs.Bool("partial", false, "print what could be carried over, if not all could")
	files, status, ok := e.flags(fs, convertUsage, args, 1, 1)
	if !ok {
		return status
	}
	switch {
	case *host != "modules" && *host != "golang":
		return e.fail(statusUsage, "-host: want modules or golang")
	case *library != "" && *host != "golang":
		return e.fail(statusUsage, "-library is for -host golang: modules are found by their name")
	}
	file := files[0]
	text, err := e.read(file)
	if err != nil {
		return e.fail(statusFault, "%v", err)
	}
	r, fault := convert.File(file, text, convert.Options{Golang: *host == "golang", Library: *library})
	if fault != nil {
		return e.faults(file, source.Errors{fault})
	}
	for _, c := range r.Converted {
		e.complain("%s: note: converted: %s\n", at(file, c.Line), c.What)
	}
	for _, n := range r.Notes {
		e.complain("%s: note: %v\n", at(file, n.Line), n.Fault)
	}
	if len(r.Lost) == 0 && r.YAML == nil {
		return e.fail(statusFault, "%s has nothing to convert", file)
	}
	if len(r.Lost) == 0 || *partial {
		e.printf("%s", r.YAML)
	}
	if len(r.Lost) > 0 {
		return e.faults(file, r.Lost)
	}
	return statusOK
}
