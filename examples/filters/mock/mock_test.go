package mock_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	_ "github.com/meltemi-mesh/meltemi/codecs/trpc"
	"github.com/meltemi-mesh/meltemi/codecs/trpc/trpctest"
	_ "github.com/meltemi-mesh/meltemi/examples/filters/mock"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

func listener(codec, value string) string {
	return fmt.Sprintf(`{
  "stat_prefix": "t", "protocol": {"name": "p", "codec": {"name": "aeraki.meta_protocol.codec.%s"}},
  "meta_protocol_filters": [
    {"name": "example.filters.mock", "config": {"@type": "type.googleapis.com/google.protobuf.Struct", "value": {%s}}},
    {"name": "aeraki.meta_protocol.filters.router"}],
  "route_config": {"routes": [{"route": {"cluster": "greeter"}}]}}`, codec, value)
}

func TestMethodsReturnWhatTheConfigurationSays(t *testing.T) {
	h := filtertest.New(t)
	greeter := h.Cluster("greeter", "10.0.0.3:20880")
	c := h.Dial(h.MustLoad(listener("dubbo", `"texts": {"sayHello": "hello"}, "payloads": {"count": "kA=="}`)))
	c.Send(dubbotest.Request{ID: 1}.Bytes(), dubbotest.Request{ID: 2, Method: "count"}.Bytes())
	answers, _ := dubbotest.Parse(c.Take())
	require.Len(t, answers, 2)
	require.Equal(t, dubbotest.Response(1, "hello", [2]string{"mocked", "yes"})[16:], answers[0].Body)
	require.Equal(t, "\x94\x90H\x06mocked\x03yesZ", string(answers[1].Body))
	require.Empty(t, greeter.Servers())

	c.Send(dubbotest.Request{ID: 3, Method: "other"}.Bytes())
	require.Len(t, greeter.Servers(), 1)
}

func TestTheSameInTRPC(t *testing.T) {
	h := filtertest.New(t)
	h.Cluster("greeter", "10.0.0.3:20880")
	c := h.Dial(h.MustLoad(listener("trpc", `"payloads": {"SayHello": "CgVoZWxsbw=="}`)))
	c.Send(trpctest.Request{ID: 1, Func: "/test.Greeter/SayHello"}.Bytes())
	answers, _ := trpctest.Parse(c.Take(), false)
	require.Len(t, answers, 1)
	require.Equal(t, "\x0a\x05hello", string(answers[0].Payload))
	require.Equal(t, map[string]string{"mocked": "yes"}, answers[0].TransInfo)
}

func TestWhatNoCodecCanGiveIsRefused(t *testing.T) {
	for value, want := range map[string]string{
		`"payloads": {"count": "BW9mZg=="}`: "meta_protocol_filters[0].config.payloads.count: the new payload: hessian: value is cut off",
		`"text": {}`:                        `unknown field "text"`,
	} {
		faults := filter.Check([]byte(listener("dubbo", value)))
		require.Len(t, faults, 1)
		require.ErrorContains(t, faults[0], want)
	}
	faults := filter.Check([]byte(listener("trpc", `"texts": {"SayHello": "hello"}`)))
	require.Len(t, faults, 1)
	require.ErrorContains(t, faults[0], "texts.SayHello: tRPC has no values of its own")
}
