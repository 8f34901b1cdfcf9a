package command

import (
	"flag"
	"fmt"

	"github.com/meltemi-mesh/meltemi/control/check"
	_ "github.com/meltemi-mesh/meltemi/filters" // as in every shared object
)

const checkUsage = `usage: meltemi check FILE|-

Validates every configuration of Meltemi in a file, with the loader of the
filter itself and the codecs and filters that are linked, see "meltemi codecs".
The file is YAML or JSON: an Envoy bootstrap or a part of one, EnvoyFilters, a
MetaProtocolProxy by itself, or what "meltemi envoyfilter" is given.

What is for Envoy is read as Envoy reads it: as YAML if the file's name ends in
.yaml or .yml, as a serialized bootstrap or the text of one if in .pb or .pb_text,
else as JSON, and - by what it begins with. EnvoyFilters are read
as kubectl and istiod do. The two differ in what is a boolean or a number, in
merge keys and more; the first line says which it was.

Of the rest of a file for Envoy each field is checked, and not what Envoy makes of them:
addresses, names that come twice, filter chains that match the same, the path of the
shared object.

Each fault is printed with its line and field, and notes tell of what is ignored
without a word, or missing from the loopback listener. The status is 0 if there are configurations and no faults, else 1.

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
	r := check.File(file, text)
	if r.Kind != "" {
		e.printf("%s: %s\n", file, r.Kind)
	}
	for _, f := range r.Found {
		e.printf("%s: %s\n", at(file, f.Line), f.What)
	}
	for _, n := range r.Notes {
		e.printf("%s: note: %v\n", at(file, n.Line), n.Fault)
	}
	switch {
	case len(r.Faults) > 0:
		return e.faults(file, r.Faults)
	case len(r.Found) == 0:
		return e.fail(statusFault, "%s configures nothing of Meltemi", file)
	}
	return statusOK
}

// at is a line of a file, or the file if there is none.
func at(file string, line int) string {
	if line == 0 {
		return file
	}
	return fmt.Sprintf("%s:%d", file, line)
}
