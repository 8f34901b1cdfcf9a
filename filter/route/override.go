package route

import (
	"cmp"
	"errors"
	"maps"
	"slices"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/filter/fields"
)

// Override is what a route, or its table, says of a filter.
type Override struct {
	Filter string // its name
	// Config is what Filters has made of the configuration, nil if there is none.
	Config any
	// Disabled says that the filter does not see the route's messages.
	Disabled bool
}

// Filters judges what tables say of filters.
type Filters interface {
	// ParseOverride judges a configuration for the filter of that name; nil is none.
	// The error, of which [fields.Each] tells, is an ErrUnknownFilter for a filter that
	// is not there.
	ParseOverride(filter string, config *anypb.Any) (any, error)
	// MergeOverrides makes one configuration of a table's and a route's.
	MergeOverrides(filter string, table, route any) any
}

// ErrUnknownFilter is what the errors of unknown filters are.
var ErrUnknownFilter = errors.New("unknown filter")

// overrides judges what is at path. All is in the order of the filters' names.
func (c *compiler) overrides(configs map[string]*anypb.Any, path string) (all []Override) {
	for _, name := range slices.Sorted(maps.Keys(configs)) {
		at := path + "typed_per_filter_config[" + name + "]"
		config := configs[name]
		o := Override{Filter: name}
		optional := false
		if fc := new(routev3.FilterConfig); config.MessageIs(fc) {
			if err := config.UnmarshalTo(fc); err != nil {
				c.refuse(at, "%s", fields.CleanError(err))
				continue
			}
			config, o.Disabled, optional = fc.GetConfig(), fc.GetDisabled(), fc.GetIsOptional()
			at += ".config"
		}
		if c.env.Filters != nil {
			var err error
			if o.Config, err = c.env.Filters.ParseOverride(name, config); err != nil {
				if optional && errors.Is(err, ErrUnknownFilter) {
					continue
				}
				fields.Each(err, func(e *fields.Error) { c.refuse(fields.Join(at, e.Path), "%s", e.Reason) })
			}
		}
		all = append(all, o)
	}
	return all
}

// inheritOverrides adds to those of a route the ones of its table.
func (c *compiler) inheritOverrides(own, table []Override) []Override {
	if len(own) == 0 {
		return table
	}
	n := len(own)
	for _, o := range table {
		if i, has := slices.BinarySearchFunc(own[:n], o.Filter, byFilter); !has {
			own = append(own, o)
		} else if own[i].Config != nil && o.Config != nil {
			own[i].Config = c.env.Filters.MergeOverrides(o.Filter, o.Config, own[i].Config)
		}
	}
	slices.SortFunc(own, func(a, b Override) int { return cmp.Compare(a.Filter, b.Filter) })
	return own
}

func byFilter(o Override, name string) int { return cmp.Compare(o.Filter, name) }

// CompileOverrides judges what somebody beside a table says of filters, for Find.
func CompileOverrides(configs map[string]*anypb.Any, filters Filters) ([]Override, []*Error) {
	c := &compiler{env: Env{Filters: filters}}
	all := c.overrides(configs, "")
	return all, c.errs
}

// Find returns what is said of a filter, nil if nothing is. It must not be changed.
func Find(all []Override, filter string) *Override {
	for i := range all {
		if all[i].Filter == filter {
			return &all[i]
		}
	}
	return nil
}

// Override returns what is said of a filter for the route's messages that go to one of
// its targets, nil: whose is not known; nil if nothing is. It must not be changed.
func (r *Route) Override(filter string, to *Target) *Override {
	if to != nil && to.overrides != nil {
		return Find(to.overrides, filter)
	}
	return Find(r.overrides, filter)
}

// Differs reports whether what is said of filters depends on the target.
func (r *Route) Differs() bool { return r.differs }

// notes notes of which filters something is said.
func (t *Table) notes(all []Override) {
	for _, o := range all {
		if !slices.Contains(t.overridden, o.Filter) {
			t.overridden = append(t.overridden, o.Filter)
		}
	}
}

// Overrides reports whether the table, or one of its routes, says something of a filter.
func (t *Table) Overrides(filter string) bool {
	return len(t.overridden) > 0 && slices.Contains(t.overridden, filter)
}
