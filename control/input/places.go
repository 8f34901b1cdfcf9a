package input

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/meltemi-mesh/meltemi/control/fault"
	"github.com/meltemi-mesh/meltemi/control/source"
)

// Places knows where the fields of a service are written.
type Places struct {
	root *yaml.Node
	// inherited are the fields of ports that are the service's, and where those
	// are.
	inherited []inheritance
}

// inheritance is the path of a field, and the one at which it is written.
type inheritance struct{ path, from string }

func (p *Places) inherit(path, from string) {
	p.inherited = append(p.inherited, inheritance{path, from})
}

// Locate tells faults with their lines, in the order of these, and each once
// though several ports may have it of the service. What is not written has the
// line of the deepest part around it that is.
func (p *Places) Locate(faults fault.List) (errs source.Errors) {
	seen := map[source.Error]bool{}
	for _, f := range faults {
		f.Path = p.written(f.Path)
		e := source.Error{Line: source.Line(p.root, f.Path), Fault: f}
		if !seen[e] {
			errs = append(errs, &e)
		}
		seen[e] = true
	}
	slices.SortStableFunc(errs, func(a, b *source.Error) int { return a.Line - b.Line })
	return errs
}

// written is the path at which the field at a path is written.
func (p *Places) written(path string) string {
	for _, i := range p.inherited {
		if rest, ok := strings.CutPrefix(path, i.path); ok && (rest == "" || rest[0] == '.' || rest[0] == '[') {
			return i.from + rest
		}
	}
	return path
}
