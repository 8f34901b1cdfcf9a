package filter_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/filter"
)

// forgetful is a filter that does not look at requests when they have been sent.
type forgetful struct{ *testFilter }

func (forgetful) ForgetsRequest() {}

func init() {
	filter.Register("forgetful", filter.Factory(func(*anypb.Any, *filter.Env) (filter.Filter, error) { return forgetful{current}, nil }))
}

// TestRequestsAreKeptForThoseThatLookAtThem and for no others.
func TestRequestsAreKeptForThoseThatLookAtThem(t *testing.T) {
	for name, kept := range map[string]bool{"test": true, "forgetful": false} {
		ended := 0
		current = &testFilter{onEnd: func(m *filter.Message) {
			ended++
			_, there := m.Request().Get("tenant")
			require.Equal(t, kept, there, name)
		}}
		e, _ := routedEnv(t, `{"routes": [{"route": {"cluster": "v1"}}]}`, `, "meta_protocol_filters": [{"name": "`+name+`"}, {"name": "aeraki.meta_protocol.filters.router"}]`)
		e.c.Send(req(1, acme))
		require.Equal(t, "h1", one(t, e.c).Text())
		require.Equal(t, 1, ended)
	}
}

// TestSourcesBelongToOneMessage, and routes are looked up by what is known then.
func TestSourcesBelongToOneMessage(t *testing.T) {
	web := &filter.Workload{Name: "web-1", Labels: map[string]string{"app": "web"}}
	current = &testFilter{onRequest: func(m *filter.Message) filter.Verdict {
		require.Nil(t, m.Source())
		require.Nil(t, m.Destination())
		m.Route()
		if _, there := m.Request().Get("tenant"); there {
			m.SetSource(web)
			m.SetDestination(web)
			require.Same(t, web, m.Source())
		}
		return filter.Continue
	}}
	e, _ := routedEnv(t, `{"routes": [{"match": {"source_labels": {"app": "web"}}, "route": {"cluster": "v2"}}, {"route": {"cluster": "v1"}}]}`,
		`, "meta_protocol_filters": [{"name": "test"}, {"name": "aeraki.meta_protocol.filters.router"}]`)
	for range 3 {
		e.c.Send(req(1, acme))
		require.Equal(t, "h2", one(t, e.c).Text())
		e.c.Send(req(2))
		require.Equal(t, "h1", one(t, e.c).Text())
	}
}
