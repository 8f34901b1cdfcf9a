package parley

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/codectest"
)

const (
	c2s = codecs.ClientToServer
	s2c = codecs.ServerToClient
)

func suite() codectest.Suite {
	s := codectest.Suite{
		New: func(l codecs.Limits) (codecs.Codec, error) { return New(nil, l) },
		Frames: []codectest.Frame{
			frame(c2s, "CALL id=7 len=5 method=Greeter.hello tenant=acme\nworld"),
			frame(c2s, "CALL id=4294967295 len=0 method=A.b tenant= x=y=z\n"),
			frame(c2s, "TELL id=0 len=0  method=A.b \n"),
			frame(s2c, "DONE id=7 len=2 zone=south\nhi"),
			frame(s2c, "FAIL id=7 len=0\n"),
			frame(s2c, "NOPE id=7 len=2 code=no-route\nno"),
			frame(c2s, "PING id=8 len=0\n"),
			frame(s2c, "PONG id=8 len=0\n"),
		},
		Mutations: []codectest.Mutation{
			{Direction: c2s, Key: "tenant", Value: "other"},
			{Direction: c2s, Key: "canary", Value: ""},
			{Direction: s2c, Key: "by", Value: "meltemi"},
		},
		Refused: []codectest.Mutation{
			{Key: ""},
			{Key: "id", Value: "7"},
			{Key: "len", Value: "7"},
			{Key: "method", Value: "A.b"},
			{Key: "Key", Value: "v"},
			{Key: "k=y", Value: "v"},
			{Key: "key", Value: "a b"},
			{Key: "key", Value: "a\n"},
		},
		Hostile: []codectest.Frame{
			frame(c2s, "CALL id=7 len=0 method=A.b"+strings.Repeat(" a=", 300)+"\n"),
			frame(c2s, "CALL id=7 len=1048576 method=A.b\n"+strings.Repeat(" a=", 1<<20/3)+"\n"),
		},
	}
	for b := range noFrames {
		s.Invalid = append(s.Invalid, codectest.Invalid{Name: b, Direction: c2s, Bytes: []byte(b)})
	}
	for b := range malformed {
		s.Malformed = append(s.Malformed, frame(c2s, b))
	}
	return s
}

func frame(d codecs.Direction, b string) codectest.Frame {
	return codectest.Frame{Name: b[:min(len(b), 40)], Direction: d, Bytes: []byte(b)}
}

func TestConformance(t *testing.T) { codectest.Run(t, suite()) }

func FuzzDecode(f *testing.F) { codectest.FuzzDecode(f, suite()) }

func FuzzEncode(f *testing.F) { codectest.FuzzEncode(f, suite()) }

func decode(t *testing.T, frame string) (m codecs.Metadata, n int, err error) {
	t.Helper()
	c, err := New(nil, codecs.Limits{})
	require.NoError(t, err)
	n, err = c.NewDecoder(codecs.ClientToServer).Decode([]byte(frame), &m)
	return m, n, err
}

// noFrames end a connection, with that in the log, unless they are only too large.
var noFrames = map[string]string{
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
	"CALL id=7 len=4294967295\n": "a frame of 4294967320 bytes is larger than the limit of 1048601",
	"CALL id=7 len=1048577\n":    "a frame of 1048599 bytes is larger than the limit of 1048598",
	"CALL id=7 len=0 " + strings.Repeat("x", maxHead): "the head is too long",
}

func TestWhatIsNoFrame(t *testing.T) {
	for frame, want := range noFrames {
		_, _, err := decode(t, frame)
		require.ErrorContains(t, err, want, frame)
	}
}

// TestAFrameThatIsTooLarge costs its call, and no other of the connection.
func TestAFrameThatIsTooLarge(t *testing.T) {
	c, err := New(nil, codecs.Limits{})
	require.NoError(t, err)
	for head, want := range map[string]codecs.MessageType{
		"CALL id=7 len=1048577 method=A.b\n": codecs.Request,
		"TELL id=7 len=1048577 method=A.b\n": codecs.Oneway,
		"DONE id=7 len=1048577\n":            codecs.Response,
		"NOPE id=7 len=1048577\n":            codecs.Error,
	} {
		var m codecs.Metadata
		_, err := c.NewDecoder(c2s).Decode([]byte(head), &m)
		var e *codecs.TooLarge
		require.ErrorAs(t, err, &e, head)
		require.Equal(t, len(head)+maxBody+1, e.Size)
		require.Equal(t, len(head)+maxBody, e.Limit)
		require.Equal(t, want, m.Type)
		require.EqualValues(t, 7, m.ID)
		require.Nil(t, m.Raw)
		require.Empty(t, m.Properties())
	}
}

// malformed frames are answered with that.
var malformed = map[string]string{
	"CALL id=7 len=0\n":                         "no method",
	"TELL id=7 len=0 tenant=acme\n":             "no method",
	"CALL id=7 len=0 Method=A.b\n":              `"Method=A.b" is no attribute`,
	"CALL id=7 len=0 method=A.b =x\n":           `"=x" is no attribute`,
	"CALL id=7 len=0 method=A.b len=9\n":        `"len=9" is no attribute`,
	"CALL id=7 len=0 method=A.b id=8\n":         `"id=8" is no attribute`,
	"CALL id=7 len=0 method=A.b method=B.c\n":   `there are two attributes "method"`,
	"DONE id=7 len=0 tenant=acme tenant=evil\n": `there are two attributes "tenant"`,
}

func TestWhatIsMalformed(t *testing.T) {
	for frame, want := range malformed {
		m, _, err := decode(t, frame)
		require.NoError(t, err, frame)
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
	require.Equal(t, "there is no room for a longer id", m.Malformed)
}
