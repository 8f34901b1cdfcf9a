package parley

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
)

func decode(t *testing.T, frame string) (m codecs.Metadata, n int, err error) {
	t.Helper()
	c, err := New(nil, codecs.Limits{})
	require.NoError(t, err)
	n, err = c.NewDecoder(codecs.ClientToServer).Decode([]byte(frame), &m)
	return m, n, err
}

func TestWhatIsNoFrame(t *testing.T) {
	for frame, want := range map[string]string{
		"GET / HTTP/1.1\r\n":         "unknown verb",
		"CALL 7\n":                   "want id and len",
		"CALL\n":                     "want id and len",
		"CALLid=7 len=0\n":           "want id and len",
		"CALL id= len=0\n":           "want id and len",
		"CALL id=07 len=0\n":         "want id and len",
		"CALL id=-7 len=0\n":         "want id and len",
		"CALL id=7  len=0\n":         "want id and len",
		"CALL id=7 len=\n":           "want id and len",
		"CALL id=7 len=1e3\n":        "want id and len",
		"CALL id=7 method=A.b\n":     "want id and len",
		"CALL id=4294967296 len=0\n": "want id and len",
		"CALL id=7 len=4294967295\n": "a frame of 4294967320 bytes is too large",
		"CALL id=7 len=1048577\n":    "too large",
		"CALL id=7 len=0 " + strings.Repeat("x", maxHead): "the head is too long",
	} {
		_, _, err := decode(t, frame)
		var pe *codecs.ProtocolError
		require.ErrorAs(t, err, &pe, frame)
		require.Contains(t, pe.Reason, want, frame)
	}
}

func TestWhatIsMalformed(t *testing.T) {
	for frame, want := range map[string]string{
		"CALL id=7 len=0\n":                          "no method",
		"TELL id=7 len=0 tenant=acme\n":              "no method",
		"CALL id=7 len=0 Method=A.b\n":               `"Method=A.b" is no attribute`,
		"CALL id=7 len=0 method=A.b x\n":             "",
		"CALL id=7 len=0 method=A.b =x\n":            `"=x" is no attribute`,
		"CALL id=7 len=0 method=A.b len=9\n":         `"len=9" is no attribute`,
		"CALL id=7 len=0 method=A.b id=8\n":          `"id=8" is no attribute`,
		"CALL id=7 len=0 method=A.b method=B.c\n":    `there are two attributes "method"`,
		"CALL id=7 len=0 method=A.b tenant= x=y=z\n": "",
		"DONE id=7 len=0 tenant=acme tenant=evil\n":  `there are two attributes "tenant"`,
	} {
		m, n, err := decode(t, frame)
		require.NoError(t, err, frame)
		require.Equal(t, len(frame), n)
		require.Equal(t, want, m.Malformed, frame)
	}
}

// TestALongerIDLeavesAHeadThatServersTake: a client must not be able to have
// Meltemi send what ends a connection that others share. The servers may be
// other Meltemis.
func TestALongerIDLeavesAHeadThatServersTake(t *testing.T) {
	c, err := New(nil, codecs.Limits{})
	require.NoError(t, err)
	head := "CALL id=7 len=0 method=A.b pad="
	pad := strings.Repeat("x", maxHead-len(head)-len("\n")-len("4294967295")+len("7"))
	m, _, err := decode(t, head+pad+"\n")
	require.NoError(t, err)
	require.Empty(t, m.Malformed)
	m.ID = 1<<32 - 1
	b, err := c.Encode(nil, &m, nil)
	require.NoError(t, err)
	require.Len(t, b, maxHead)
	again, _, err := decode(t, string(b))
	require.NoError(t, err)
	require.Empty(t, again.Malformed)

	var mut codecs.Mutation
	mut.Set("pad", pad)
	_, err = c.Encode(nil, &m, &mut)
	require.NoError(t, err)
	mut.Set("pad", pad+"x")
	_, err = c.Encode(nil, &m, &mut)
	require.ErrorIs(t, err, codecs.ErrNoMutation)
	m, _, err = decode(t, head+pad+"x\n")
	require.NoError(t, err)
	require.Equal(t, "the head has no room for a longer id", m.Malformed)
}

func TestWhatCannotBeSet(t *testing.T) {
	c, err := New(nil, codecs.Limits{})
	require.NoError(t, err)
	check := c.(codecs.Mutator).CheckMutation
	require.NoError(t, check(codecs.ClientToServer, "tenant", "acme"))
	for _, kv := range [][2]string{{"", ""}, {"id", "7"}, {"len", "7"}, {"method", "A.b"}, {"Key", "v"}, {"k=y", "v"}, {"key", "a b"}, {"key", "a\n"}} {
		require.Error(t, check(codecs.ClientToServer, kv[0], kv[1]), kv)
		// Mutations of filters have not been checked.
		m, _, err := decode(t, "CALL id=7 len=0 method=A.b\n")
		require.NoError(t, err)
		var mut codecs.Mutation
		mut.Set(kv[0], kv[1])
		_, err = c.Encode(nil, &m, &mut)
		require.ErrorIs(t, err, codecs.ErrNoMutation)
	}
}
