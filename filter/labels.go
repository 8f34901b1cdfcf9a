package filter

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// Label is a name and a value by which metrics of one name are told apart, such as
// {"descriptor", "login"}. The name is of small letters, digits and underscores. The
// value is any text of the configuration, never of the traffic: metrics stay.
type Label [2]string

// labelName is what may be a label's name.
var labelName = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)

// filterLabels are what each metric of a filter has; le and quantile are Prometheus's own.
var (
	filterLabels   = []string{"protocol", "listener", "filter"}
	reservedLabels = append([]string{"le", "quantile"}, filterLabels...)
)

// naming is what a metric is called.
type naming struct {
	stat   string   // in the host's statistics, behind the protocol and prefix
	family string   // for Prometheus, behind "meltemi_filter_"
	labels []string // names, sorted
	values []string
}

func named(name string, labels []Label) (n naming, err error) {
	labels = slices.Clone(labels)
	slices.SortFunc(labels, func(a, b Label) int { return strings.Compare(a[0], b[0]) })
	var values, none []string // in the place of "{label}"
	behind := ""
	for i, l := range labels {
		switch {
		case !labelName.MatchString(l[0]):
			return n, fmt.Errorf("the metric %s has a label %q: want small letters, digits and underscores, and a letter first", name, l[0])
		case slices.Contains(reservedLabels, l[0]):
			return n, fmt.Errorf("the metric %s has a label %s, which is not for filters", name, l[0])
		case i > 0 && l[0] == labels[i-1][0]:
			return n, fmt.Errorf("the metric %s has the label %s twice", name, l[0])
		}
		place := "{" + l[0] + "}"
		values, none = append(values, place, l[1]), append(none, place, "")
		if !strings.Contains(name, place) {
			behind += "." + l[0] + "." + safe(l[1])
		}
		n.labels, n.values = append(n.labels, l[0]), append(n.values, strings.ToValidUTF8(l[1], "\uFFFD"))
	}
	n.stat = strings.NewReplacer(values...).Replace(name) + behind
	bare := strings.NewReplacer(none...).Replace(name)
	n.family = strings.Join(strings.FieldsFunc(bare, func(c rune) bool { return c != '_' && !plain(c) }), "_")
	if n.family == "" || strings.ContainsAny(bare, "{}") {
		return n, fmt.Errorf("the name %q of a metric is none, or has a place for a label that it has not", name)
	}
	return n, nil
}

// safe is a value as a part of a name in the host's statistics.
func safe(value string) string {
	if value == "" {
		return "_"
	}
	return strings.Map(func(c rune) rune {
		if plain(c) || c == '-' {
			return c
		}
		return '_'
	}, value)
}

func plain(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// family is all metrics of one name, of whatever filters and listeners.
type family struct {
	name   string
	kind   kind
	labels []string
	filter string // that was the first to have it
	desc   *prometheus.Desc
}

// family returns the one that a filter's metric belongs to. What would make a page that
// Prometheus refuses, or cannot add up, is refused. A family is never forgotten: its
// filter is linked for good.
func (mod *Module) family(n naming, k kind, filter string) (*family, error) {
	name := "meltemi_filter_" + n.family
	var more []string // names that are taken, too
	switch k {
	case counter, vector:
		name = strings.TrimSuffix(name, "_total")
		more = []string{"_total"}
	case histogram:
		more = []string{"_bucket", "_count", "_sum"}
	}
	for _, suffix := range append([]string{""}, more...) {
		switch f := mod.families[name+suffix]; {
		case f == nil:
		case f.name != name || f.kind != k:
			return nil, fmt.Errorf("the metric %s is a %s here, and %s is a %s of filter %s: they cannot be told apart", name, k, f.name, f.kind, f.filter)
		case !slices.Equal(f.labels, n.labels):
			return nil, fmt.Errorf("the metric %s has the labels %q here, and %q in filter %s: they have to be the same", name, n.labels, f.labels, f.filter)
		default:
			return f, nil
		}
	}
	shown := name
	if k == counter || k == vector {
		shown += "_total"
	}
	f := &family{
		name: name, kind: k, labels: n.labels, filter: filter,
		desc: prometheus.NewDesc(shown, "What the page of the filter says of it.", append(slices.Clone(filterLabels), n.labels...), nil),
	}
	for _, suffix := range append([]string{""}, more...) {
		mod.families[name+suffix] = f
	}
	return f, nil
}
