// Package fault has the one form in which the control plane says what is wrong
// with what it is given.
package fault

import (
	"fmt"
	"strings"
)

// Fault is what is wrong with a field. Where that field is written is for those
// to add who know: a line of a file, the condition of an object.
type Fault struct {
	// Path of the field, such as "ports[1].targetPort"; "": no field's.
	Path string
	// Reason in words, in one line as a rule.
	Reason string
}

func (f Fault) Error() string {
	if f.Path == "" {
		return f.Reason
	}
	return f.Path + ": " + f.Reason
}

// List is what is wrong, in the order of its finding. An empty one is no error.
type List []Fault

func (l List) Error() string {
	lines := make([]string, len(l))
	for i, f := range l {
		lines[i] = f.Error()
	}
	return strings.Join(lines, "\n")
}

// Add appends a fault.
func (l *List) Add(path, format string, args ...any) {
	*l = append(*l, Fault{path, fmt.Sprintf(format, args...)})
}

// Join appends a field's name to a path.
func Join(path, field string) string {
	if strings.ContainsAny(field, ".[]\"") || field == "" {
		return fmt.Sprintf("%s[%q]", path, field)
	}
	if path == "" {
		return field
	}
	return path + "." + field
}
