package tenant_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	_ "github.com/meltemi-mesh/meltemi/examples/filters/tenant"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

const listener = `{
  "stat_prefix": "t", "protocol": {"name": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}},
  "meta_protocol_filters": [{"name": "example.filters.tenant"}, {"name": "aeraki.meta_protocol.filters.router"}],
  "route_config": {"routes": [{"route": {"cluster": "greeter"}}]}}`

func TestRequestsWithoutATenantAreTurnedAway(t *testing.T) {
	h := filtertest.New(t)
	greeter := h.Cluster("greeter", "10.0.0.3:20880")
	c := h.Dial(h.MustLoad(listener))

	c.Send(dubbotest.Request{ID: 1}.Bytes())
	answers, _ := dubbotest.Parse(c.Take())
	require.Len(t, answers, 1)
	require.EqualValues(t, 40, answers[0].Status)
	require.Equal(t, "the request names no tenant", answers[0].Text())

	c.Send(dubbotest.Request{ID: 2, Attachments: [][2]string{{"tenant", "acme"}}}.Bytes())
	requests, _ := dubbotest.Parse(greeter.Servers()[0].Take())
	require.Len(t, requests, 1)
	require.Contains(t, string(requests[0].Body), "tenant-checked")
}
