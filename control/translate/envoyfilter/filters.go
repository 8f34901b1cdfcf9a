package envoyfilter

import (
	"fmt"
	"strconv"
	"strings"
)

const (
	routerName  = "aeraki.meta_protocol.filters.router"
	filtersName = "meta_protocol_filters"
)

// prepend puts filters before those of a configuration, and counts them in g.ahead.
func (g *generator) prepend(cfg object, filters []any) {
	if len(filters) == 0 {
		return
	}
	rest, given := cfg[filtersName].([]any)
	if _, wrong := cfg[filtersName]; wrong && !given {
		return // the filter's loader says so
	}
	if len(rest) == 0 {
		rest = []any{object{"name": routerName}}
	}
	cfg[filtersName] = append(filters, rest...)
	g.ahead += len(filters)
}

// originOfFilter is the field of the service's own filters behind one of all that there
// are, "" if it is of those that prepend has put there.
func (g *generator) originOfFilter(field string) string {
	rest, ok := strings.CutPrefix(field, filtersName+"[")
	if !ok {
		return field
	}
	number, rest, _ := strings.Cut(rest, "]")
	n, _ := strconv.Atoi(number)
	if n < g.ahead {
		return ""
	}
	return fmt.Sprintf("%s[%d]%s", filtersName, n-g.ahead, rest)
}
