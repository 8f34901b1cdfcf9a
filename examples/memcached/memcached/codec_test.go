package memcached

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meltemi-mesh/meltemi/codecs"
)

func decode(t *testing.T, c codecs.Codec, b string) *codecs.Metadata {
	t.Helper()
	m := new(codecs.Metadata)
	n, err := c.NewDecoder(c2s).Decode([]byte(b), m)
	require.NoError(t, err, "%q", b)
	require.Equal(t, len(b), n, "%q", b)
	return m
}

func newCodec(t *testing.T, delimiter string) codecs.Codec {
	t.Helper()
	var config *anypb.Any
	if delimiter != "" {
		var err error
		config, err = anypb.New(wrapperspb.String(delimiter))
		require.NoError(t, err)
	}
	c, err := New(config, codecs.Limits{})
	require.NoError(t, err)
	return c
}

func TestThePrefixOfKeys(t *testing.T) {
	for _, tc := range []struct{ delimiter, request, want string }{
		{"", "get user:1\r\n", "user:"},
		{"", "get user:1 user:2\r\n", "user:"},
		{"", "gat 10 user:1\r\n", "user:"},
		{"", "set a:b:c 0 0 1\r\nx\r\n", "a:"},
		{"", "delete plain\r\n", ""},
		{"", "get a b\r\n", ""},
		{"", "mg dXNlcjox b\r\n", "user:"},
		{"", "ms user:1 1 q\r\nx\r\n", "user:"},
		{"", "incr :1 1\r\n", ":"},
		{"", "stats\r\n", ""},
		{"/", "get a:b/c\r\n", "a:b/"},
		{"::", "get a:b::c\r\n", "a:b::"},
	} {
		m := decode(t, newCodec(t, tc.delimiter), tc.request)
		prefix, ok := m.Get("prefix")
		require.True(t, ok, tc.request)
		require.Equal(t, tc.want, string(prefix), tc.request)
		command, _ := m.Get("command")
		require.Equal(t, strings.Fields(tc.request)[0], string(command))
		require.Empty(t, m.Malformed)
	}
}

func TestOptionsThatAreNone(t *testing.T) {
	for _, delimiter := range []string{"", " ", "a b", "\r"} {
		config, err := anypb.New(wrapperspb.String(delimiter))
		require.NoError(t, err)
		_, err = New(config, codecs.Limits{})
		require.ErrorContains(t, err, "cannot be in a key")
	}
	config, err := anypb.New(durationpb.New(0))
	require.NoError(t, err)
	_, err = New(config, codecs.Limits{})
	require.ErrorContains(t, err, "want a google.protobuf.StringValue")
}

func TestWhatIsRefused(t *testing.T) {
	c := newCodec(t, "")
	for b, want := range refused {
		m := decode(t, c, b)
		require.NotEmpty(t, m.Malformed, "%q", b)
		if m.Type == codecs.Oneway {
			require.Contains(t, b, "noreply")
			continue
		}
		require.Equal(t, codecs.Request, m.Type, "%q", b)
		out, err := c.EncodeError(nil, m, &codecs.LocalError{Type: codecs.BadRequest, Message: "malformed request"})
		require.NoError(t, err)
		require.Equal(t, want+"\r\n", string(out))
	}
}

func TestWhatIsTooLargeIsAnsweredAsByMemcached(t *testing.T) {
	c := newCodec(t, "")
	for _, line := range []string{"set k 0 0 99000000\r\n", "ms k 99000000 q\r\n"} {
		var m codecs.Metadata
		_, err := c.NewDecoder(c2s).Decode([]byte(line), &m)
		var large *codecs.TooLarge
		require.ErrorAs(t, err, &large)
		require.Equal(t, len(line)+99000000+2, large.Size)
		out, err := c.EncodeError(nil, &m, &codecs.LocalError{Type: codecs.BadRequest, Message: large.Error()})
		require.NoError(t, err)
		require.Equal(t, "SERVER_ERROR object too large for cache\r\n", string(out))
	}
}

func TestErrorsAreOneLine(t *testing.T) {
	c := newCodec(t, "")
	m := decode(t, c, "get a\r\n")
	for text, want := range map[string]string{
		"no route matches get": "SERVER_ERROR no route matches get\r\n",
		"two\r\nlines\x00":     "SERVER_ERROR two  lines \r\n",
		"":                     "SERVER_ERROR timeout\r\n",
	} {
		out, err := c.EncodeError(nil, m, &codecs.LocalError{Type: codecs.Timeout, Message: text})
		require.NoError(t, err)
		require.Equal(t, want, string(out))
	}
}

func TestTheFlagQIsBlankedOut(t *testing.T) {
	c := newCodec(t, "")
	for request, want := range map[string]string{
		"mg a v q\r\n":           "mg a v  \r\n",
		"mg a qfoo v\r\n":        "mg a      v\r\n",
		"ms q 2 q T0\r\nqq\r\n":  "ms q 2   T0\r\nqq\r\n",
		"  md q q\n":             "  md q  \n",
		"mg a v\r\n":             "mg a v\r\n",
		"get q\r\n":              "get q\r\n",
		"ma a MI q Oq1 D2\r\n":   "ma a MI   Oq1 D2\r\n",
		"ms a 1 q q\r\nx\r\n":    "ms a 1 q q\r\nx\r\n", // it is refused
		"ms a 1 Oq k q\r\nx\r\n": "ms a 1 Oq k  \r\nx\r\n",
	} {
		m := decode(t, c, request)
		out, err := c.Encode(nil, m, nil)
		require.NoError(t, err)
		require.Equal(t, want, string(out))
	}
}

// TestWhatAQuietClientDoesNotHear is what memcached does not send it; of the newest
// that is so for a number that ma makes, too.
func TestWhatAQuietClientDoesNotHear(t *testing.T) {
	c := newCodec(t, "")
	for request, silent := range map[string]string{
		"mg a v q\r\n":      "EN",
		"ms a 1 q\r\nx\r\n": "HD",
		"md a q\r\n":        "HD",
		"ma a v q\r\n":      "HD VA",
	} {
		for _, requests := range []string{request, strings.Replace(request, " q", "", 1)} {
			req := decode(t, c, requests)
			req.Release()
			for _, status := range []string{"HD", "EN", "VA", "NF", "NS", "EX", "SERVER_ERROR"} {
				answer := status + "\r\n"
				if status == "VA" {
					answer = "VA 1\r\nx\r\n"
				}
				var m codecs.Metadata
				n, err := c.NewDecoder(s2c).(codecs.AnswerDecoder).DecodeAnswer([]byte(answer), &m, req)
				if err != nil {
					continue // it is no answer to that
				}
				require.Equal(t, len(answer), n)
				require.Equal(t, requests == request && strings.Contains(silent, status), m.Silent, "%q %q", requests, answer)
			}
		}
	}
}
