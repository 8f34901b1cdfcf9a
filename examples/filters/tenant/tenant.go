// Package tenant is an example of a synchronous filter: it turns away requests
// that name no tenant, and tells the server that it has looked.
//
//	meta_protocol_filters:
//	- name: example.filters.tenant
//	- name: aeraki.meta_protocol.filters.router
package tenant

import (
	"errors"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
)

// Name is the filter's config name.
const Name = "example.filters.tenant"

func init() { filter.Register(Name, filter.Factory(newTenant)) }

type tenant struct{}

func newTenant(config *anypb.Any, _ *filter.Env) (filter.Filter, error) {
	if config != nil {
		return nil, errors.New("has no options")
	}
	return tenant{}, nil
}

// OnRequest implements filter.Filter.
func (tenant) OnRequest(m *filter.Message) filter.Verdict {
	name, ok := m.Request().Get("tenant")
	if !ok || len(name) == 0 {
		return m.Reply(codecs.Denied, "the request names no tenant")
	}
	m.MutateRequest().Set("tenant-checked", "yes")
	return filter.Continue
}
