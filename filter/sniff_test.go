package filter_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

// ids are the second words of the lines that a server has got.
func ids(s *filtertest.Server) (ids []string) {
	for _, l := range strings.Split(strings.TrimSpace(string(s.Take())), "\n") {
		ids = append(ids, strings.Split(l, " ")[1])
	}
	return ids
}

func TestTheFirstBytesChooseTheCodec(t *testing.T) {
	h := filtertest.New(t)
	up := h.Cluster("up", "h1")
	cfg := h.MustLoad(toyConfig(`"codecs": [{"name": "toy.byid"}, {"name": "toy.inorder"}]`, ""))
	byID, inOrder, stranger := h.Dial(cfg), h.Dial(cfg), h.Dial(cfg)
	for _, b := range []byte("req 9 m a\n") {
		byID.Send([]byte{b})
	}
	require.Len(t, up.Servers(), 1)
	s := up.Servers()[0]
	id := ids(s)[0]
	s.Send([]byte("res " + id + " m x\n"))
	h.Settle()
	require.Equal(t, "res 9 m a=2;x\n", string(byID.Take()))

	inOrder.Send([]byte("i"))
	require.False(t, inOrder.Closed())
	inOrder.Send([]byte("nit 1 m x\n"))
	require.Len(t, up.Servers(), 2, "codecs do not share connections")

	stranger.Send([]byte("GET / HTTP/1.1\r\n\r\n"))
	require.True(t, stranger.Closed())
	require.Empty(t, stranger.Received())
	require.Contains(t, strings.Join(h.Log(), "\n"), "no codec recognises the protocol that starts with")
}

func TestAutoIsAllThatRecogniseThemselves(t *testing.T) {
	h := filtertest.New(t)
	up := h.Cluster("up", "h1")
	cfg := h.MustLoad(toyConfig(`"codec": {"name": "aeraki.meta_protocol.codec.auto"}`, ""))
	c := h.Dial(cfg)
	c.Send([]byte("req 9 m a\n"))
	require.Len(t, up.Servers(), 1)
}

func TestCodecsThatCannotBeSeveral(t *testing.T) {
	h := filtertest.New(t)
	for config, want := range map[string]string{
		`"codecs": [{"name": "toy.byid"}, {"name": "x"}]`:                 `protocol.codecs[1].name: unknown codec "x"`,
		`"codecs": [{"name": "toy.byid"}, {}]`:                            `protocol.codecs[1].name: required`,
		`"codec": {"name": "toy.byid"}, "codecs": [{"name": "toy.byid"}]`: `protocol.codec: there are protocol.codecs too`,
		`"codecs": [{"name": "aeraki.meta_protocol.codec.dubbo", "config": {"@type": "type.googleapis.com/aeraki.meta_protocol.codec.ThriftCodec"}}]`: `protocol.codec.config`,
	} {
		_, err := h.Load(toyConfig(config, ""))
		require.ErrorContains(t, err, want)
	}
}

// TestOneOfSeveralCodecsHasToMakeAMutation, and the first one tells why none can.
func TestOneOfSeveralCodecsHasToMakeAMutation(t *testing.T) {
	h := filtertest.New(t)
	const dubbo = "aeraki.meta_protocol.codec.dubbo"
	for _, tc := range []struct {
		codecs []string
		key    string
		want   string // "" if the configuration is accepted
	}{
		{[]string{"toy.mute"}, "zone", "request_mutation[0]: codec toy.mute cannot change messages"},
		{[]string{"toy.mute", dubbo}, "path", "request_mutation[0]: codec toy.mute cannot change messages"},
		{[]string{dubbo, "toy.mute"}, "path", `request_mutation[0].key: "path" belongs to the call itself and cannot be changed`},
		{[]string{"toy.mute", dubbo}, "zone", ""},
		{[]string{dubbo, "toy.byid"}, "path", ""},
	} {
		var list []string
		for _, name := range tc.codecs {
			list = append(list, `{"name": "`+name+`"}`)
		}
		_, err := h.Load(`{"stat_prefix": "t", "protocol": {"name": "p", "codecs": [` + strings.Join(list, ", ") + `]},
			"route_config": {"routes": [{"route": {"cluster": "c"}, "request_mutation": [{"key": "` + tc.key + `", "value": "a"}]}]}}`)
		if tc.want == "" {
			require.NoError(t, err)
		} else {
			require.EqualError(t, err, `stat_prefix "t": route_config.routes[0].`+tc.want)
		}
	}
}
