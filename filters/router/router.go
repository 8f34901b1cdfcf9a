// Package router is the last filter of a chain: it sends a request to the
// cluster of the first route that matches.
package router

import (
	"fmt"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
)

// Name is the filter's config name.
const Name = "aeraki.meta_protocol.filters.router"

const configType = "aeraki.meta_protocol_proxy.filters.router.v1alpha.Router"

func init() { filter.Register(Name, filter.Factory(newRouter)) }

type router struct{}

func newRouter(config *anypb.Any, _ *filter.Env) (filter.Filter, error) {
	if config != nil && config.MessageName() != configType {
		return nil, fmt.Errorf("config.type_url: want %s, got %s", configType, config.MessageName())
	}
	return router{}, nil
}

// maxOperation is how much of a service or a method that it has called a client is told,
// in bytes.
const maxOperation = 1 << 10

// OnRequest implements filter.Filter.
func (router) OnRequest(m *filter.Message) filter.Verdict {
	r := m.Route()
	if r == nil {
		what := "the request" // if its codec cannot read what it calls
		if op := m.Request().AppendOperationUpTo(nil, maxOperation); len(op) > 0 {
			what = string(op)
		}
		text := "no route matches " + what
		if err := m.Unroutable(); err != nil {
			text = "no route for " + what + ": " + err.Error()
		}
		return m.Reply(codecs.RouteNotFound, text)
	}
	return m.Follow(r)
}
