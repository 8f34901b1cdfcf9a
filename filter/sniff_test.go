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
