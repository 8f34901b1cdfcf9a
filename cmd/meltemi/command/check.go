package command

import (
	"flag"

	"github.com/meltemi-mesh/meltemi/control/check"
)

const checkUsage = `usage: meltemi check FILE|-

Validates every configuration of Meltemi in a file, with the loader of the
filter itself and the codecs and filters that are linked, see "meltemi codecs".
The file is YAML or JSON: an Envoy bootstrap or a part of one, EnvoyFilters, a
MetaProtocolProxy by itself, or what "meltemi envoyfilter" is given.

Each fault is printed with its line and field. The status is 0 if there are
configurations and no faults, else 1.

`

// check validates what a file configures.
func (e *env) check(args []string) int {
	fs := flag.NewFlagSet("check", flag.ContinueOnError)
	files, status, ok := e.flags(fs, checkUsage, args, 1, 1)
	if !ok {
		return status
	}
	file := files[0]
	text, err := e.read(file)
	if err != nil {
		return e.fail(statusFault, "%v", err)
	}
	found, errs := check.File(text)
	for _, f := range found {
		e.printf("%s:%d: %s\n", file, f.Line, f.What)
	}
	switch {
	case len(errs) > 0:
		return e.faults(file, errs)
	case len(found) == 0:
		return e.fail(statusFault, "%s configures nothing of Meltemi", file)
	}
	return statusOK
}
