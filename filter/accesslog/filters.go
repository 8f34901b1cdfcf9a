package accesslog

import (
	"fmt"
	"slices"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/meltemi-mesh/meltemi/filter/facts"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/route"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// condition decides whether an entry is logged.
type condition func(e *Entry) bool

type compiler struct {
	fields.Faults
	reads bool // properties
}

func (c *compiler) filter(f *accesslogv3.AccessLogFilter, path string) condition {
	switch s := f.GetFilterSpecifier().(type) {
	case *accesslogv3.AccessLogFilter_StatusCodeFilter:
		return c.comparison(s.StatusCodeFilter.GetComparison(), path+".status_code_filter.comparison", func(e *Entry) int64 { return int64(e.ResponseCode()) })
	case *accesslogv3.AccessLogFilter_DurationFilter:
		return c.comparison(s.DurationFilter.GetComparison(), path+".duration_filter.comparison", func(e *Entry) int64 { return int64((e.End - e.Start) / time.Millisecond) })
	case *accesslogv3.AccessLogFilter_NotHealthCheckFilter:
		return func(e *Entry) bool { return e.Kind != facts.Heartbeat }
	case *accesslogv3.AccessLogFilter_RuntimeFilter:
		return c.share(s.RuntimeFilter, path+".runtime_filter")
	case *accesslogv3.AccessLogFilter_AndFilter:
		fs := c.filters(s.AndFilter.GetFilters(), path+".and_filter.filters")
		return func(e *Entry) bool {
			for _, f := range fs {
				if !f(e) {
					return false
				}
			}
			return true
		}
	case *accesslogv3.AccessLogFilter_OrFilter:
		fs := c.filters(s.OrFilter.GetFilters(), path+".or_filter.filters")
		return func(e *Entry) bool {
			for _, f := range fs {
				if f(e) {
					return true
				}
			}
			return false
		}
	case *accesslogv3.AccessLogFilter_HeaderFilter:
		return c.header(s.HeaderFilter.GetHeader(), path+".header_filter.header")
	case *accesslogv3.AccessLogFilter_ResponseFlagFilter:
		return c.flags(s.ResponseFlagFilter, path+".response_flag_filter")
	case *accesslogv3.AccessLogFilter_LogTypeFilter:
		types, exclude := s.LogTypeFilter.GetTypes(), s.LogTypeFilter.GetExclude()
		return func(e *Entry) bool { return slices.Contains(types, e.logType()) != exclude }
	case nil:
		c.Add(path, "required: one of its filters")
	default:
		for name := range fields.Others(f.ProtoReflect()) {
			c.Add(path+"."+string(name), "not supported")
		}
	}
	return nil
}

func (c *compiler) filters(all []*accesslogv3.AccessLogFilter, path string) (fs []condition) {
	if len(all) < 2 {
		c.Add(path, "want two or more, has %d", len(all))
	}
	for i, f := range all {
		fs = append(fs, c.filter(f, fmt.Sprintf("%s[%d]", path, i)))
	}
	return fs
}

// comparison compares a number with the value's default: there is no runtime.
func (c *compiler) comparison(m *accesslogv3.ComparisonFilter, path string, of func(e *Entry) int64) condition {
	if m == nil {
		c.Add(path, "required")
		return nil
	}
	v := int64(m.GetValue().GetDefaultValue())
	switch m.GetOp() {
	case accesslogv3.ComparisonFilter_EQ:
		return func(e *Entry) bool { return of(e) == v }
	case accesslogv3.ComparisonFilter_GE:
		return func(e *Entry) bool { return of(e) >= v }
	case accesslogv3.ComparisonFilter_LE:
		return func(e *Entry) bool { return of(e) <= v }
	case accesslogv3.ComparisonFilter_NE:
		return func(e *Entry) bool { return of(e) != v }
	default:
		c.Add(path+".op", "unknown value %d", m.GetOp())
		return nil
	}
}

// share logs a share of all entries. Envoy's runtime is not there: percent_sampled counts,
// and randomness is always the process's own.
func (c *compiler) share(f *accesslogv3.RuntimeFilter, path string) condition {
	of, known := fields.Denominator(f.GetPercentSampled().GetDenominator())
	if !known {
		c.Add(path+".percent_sampled.denominator", "unknown value %d", f.GetPercentSampled().GetDenominator())
		return nil
	}
	share := uint64(f.GetPercentSampled().GetNumerator())
	return func(e *Entry) bool { return e.Rand[0]%of < share }
}

func (c *compiler) header(h *routev3.HeaderMatcher, path string) condition {
	m, faults := route.CompileMatch(&routev1alpha.RouteMatch{Metadata: []*routev3.HeaderMatcher{h}})
	for _, f := range faults {
		c.Add(fields.Join(path, trimIndex(f.Path)), "%s", f.Reason)
	}
	c.reads = true
	return func(e *Entry) bool {
		holds, err := m.Matches(e.Request, route.Origin{}, nil, &e.spent)
		return holds || err != nil
	}
}

// trimIndex drops what CompileMatch has put before the matcher's own field.
func trimIndex(path string) string {
	const before = "metadata[0]"
	if path = path[min(len(before), len(path)):]; path != "" {
		return path[1:]
	}
	return ""
}

func (c *compiler) flags(f *accesslogv3.ResponseFlagFilter, path string) condition {
	var any facts.Flags
	for i, name := range f.GetFlags() {
		flag := facts.ByName(name)
		if flag == 0 && !envoys[name] {
			c.Add(fmt.Sprintf("%s.flags[%d]", path, i), "unknown flag %.40q", name)
		}
		any |= flag
	}
	if len(f.GetFlags()) == 0 {
		return func(e *Entry) bool { return e.Flags != 0 }
	}
	return func(e *Entry) bool { return e.Flags&any != 0 }
}

// envoys are flags of Envoy's that no message here has.
var envoys = map[string]bool{
	"LH": true, "LR": true, "UR": true, "IH": true, "UMSDR": true, "RFCF": true, "NFCF": true, "DT": true,
	"OM": true, "DF": true, "DO": true, "DR": true, "UDO": true,
}
