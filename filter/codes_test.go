package filter_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/brpc/brpctest"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	_ "github.com/meltemi-mesh/meltemi/codecs/thrift"
	_ "github.com/meltemi-mesh/meltemi/codecs/trpc"
	"github.com/meltemi-mesh/meltemi/codecs/trpc/trpctest"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

// protocols are those that are built in, with a request of each and codes that it has.
var protocols = []struct {
	name      string
	request   []byte
	over      int32 // of what is over a limit
	code, bad int32
	refused   string
}{
	{"dubbo", dubbotest.Request{ID: 7}.Bytes(), 100, 99, 256, "must be between 1 and 255, and not 20, which is a success, is 256"},
	{"trpc", trpctest.Request{ID: 7}.Bytes(), 23, 141, 1000, "must be between 1 and 999, the codes of the framework, is 1000"},
	{"brpc", brpctest.Request{ID: 7}.Bytes(), 2004, 1011, 0, ""},
	{"thrift", []byte("\x00\x00\x00\x10\x80\x01\x00\x01\x00\x00\x00\x03add\x00\x00\x00\x07\x00"), 6, 16, 0, ""},
}

func answersItself(codec, direct string) string {
	return fmt.Sprintf(`{"stat_prefix": "t", "protocol": {"name": "p", %s}, "route_config": {"routes": [{"direct_response": %s}]}}`, codec, direct)
}

func oneCodec(name string) string {
	return fmt.Sprintf(`"codec": {"name": "aeraki.meta_protocol.codec.%s"}`, name)
}

// codeOf is the code of the one answer that a client has got, as its codec reads it.
func codeOf(t *testing.T, protocol string, answer []byte) int32 {
	t.Helper()
	newCodec, ok := codecs.Lookup("aeraki.meta_protocol.codec." + protocol)
	require.True(t, ok)
	c, err := newCodec(nil, codecs.Limits{})
	require.NoError(t, err)
	require.NotEmpty(t, answer)
	var m codecs.Metadata
	n, err := c.NewDecoder(codecs.ServerToClient).Decode(answer, &m)
	require.NoError(t, err)
	require.Len(t, answer, n)
	require.NotEqual(t, codecs.StatusOK, m.Status)
	require.EqualValues(t, 7, m.ID)
	return m.Code
}

// TestCodesOfDirectResponses are the protocol's usual one, or a configured one.
func TestCodesOfDirectResponses(t *testing.T) {
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			h := filtertest.New(t)
			for direct, want := range map[string]int32{
				`{"status": "OVER_LIMIT"}`: p.over, fmt.Sprintf(`{"status": "OVER_LIMIT", "code": %d}`, p.code): p.code,
			} {
				c := h.Dial(h.MustLoad(answersItself(oneCodec(p.name), direct)))
				c.Send(p.request)
				require.Equal(t, want, codeOf(t, p.name, c.Take()))
			}
			if p.refused != "" {
				_, err := h.LoadUnpublished(answersItself(oneCodec(p.name), fmt.Sprintf(`{"code": %d}`, p.bad)))
				require.ErrorContains(t, err, "route_config.routes[0].direct_response.code: codec aeraki.meta_protocol.codec."+p.name+": "+p.refused)
			}
		})
	}
}

// TestACodeForSeveralProtocols has to be one of each.
func TestACodeForSeveralProtocols(t *testing.T) {
	h := filtertest.New(t)
	several := `"codecs": [{"name": "aeraki.meta_protocol.codec.brpc"}, {"name": "aeraki.meta_protocol.codec.dubbo"}%s]`
	cfg := h.MustLoad(answersItself(fmt.Sprintf(several, ""), `{"code": 99}`))
	for _, p := range protocols {
		if p.name == "dubbo" || p.name == "brpc" {
			c := h.Dial(cfg)
			c.Send(p.request)
			require.EqualValues(t, 99, codeOf(t, p.name, c.Take()))
		}
	}
	for direct, want := range map[string]string{
		`{"code": 2004}`: "codec aeraki.meta_protocol.codec.dubbo: must be between 1 and 255",
		`{"code": 99}`:   "codec toy.byid: the codec has one code for each status, and no others",
	} {
		_, err := h.LoadUnpublished(answersItself(fmt.Sprintf(several, `, {"name": "toy.byid"}`), direct))
		require.ErrorContains(t, err, "direct_response.code: "+want)
	}
}
