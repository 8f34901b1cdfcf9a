package thrift

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/codectest"
)

func newCodec(t testing.TB) codecs.Codec {
	t.Helper()
	c, err := New(nil, codecs.Limits{})
	require.NoError(t, err)
	return c
}

// refused are bytes that end a connection, with what is said of them.
var refused = []struct {
	name string
	dir  codecs.Direction
	b    string
	want string
}{
	{name: "http", b: "GET / HTTP/1.1\r\n", want: "neither a transport nor a protocol"},
	{name: "tls", b: "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", want: "neither"},
	{name: "dubbo", b: "\xda\xbb\xc2\x00\x00\x00\x00\x00", want: "neither"},
	{name: "json", b: inFrame(`[1,"hello",1,0,{}]`), want: "neither"},
	{name: "answer of a client", b: inFrame(call(2, "x", 1, "\x00")), want: "a client sent an answer"},
	{name: "type", b: inFrame(call(5, "x", 1, "\x00")), want: "unknown message type"},
	{name: "version", b: "\x80\x02\x00\x01", want: "neither"},
	{name: "name", b: inFrame("\x80\x01\x00\x01\x7f\xff\xff\xff1234"), want: "too long"},
	{name: "short frame", b: inFrame("\x80\x01\x00\x01\x00\x00\x00\x09"), want: "ends in its head"},
	{name: "deep", b: call(1, "x", 1, strings.Repeat("\x0c\x00\x01", 100)), want: "nested too deeply"},
	{name: "string", b: call(1, "x", 1, "\x0b\x00\x01\xff\xff\xff\xff"), want: "impossible size"},
	{name: "list", b: call(1, "x", 1, "\x0f\x00\x01\x0c\x7f\xff\xff\xff"), want: "impossible size"},
	{name: "map", b: call(1, "x", 1, "\x0d\x00\x01\x0b\x0b\x7f\xff\xff\xff"), want: "impossible size"},
	{name: "field", b: call(1, "x", 1, "\x07\x00\x01"), want: "unknown type of a field"},
	{name: "element", b: call(1, "x", 1, "\x0f\x00\x01\x07\x00\x00\x00\x01"), want: "unknown type of a field"},
	{name: "large list", b: call(1, "x", 1, "\x0f\x00\x01\x0a\x00\xf0\x00\x00"), want: "larger than the limit"},
	{name: "header", b: inFrame("\x0f\xff\x00\x00\x00\x00\x00\x01\x00\xff\x00\x00\x00\x00"), want: "header ends too early"},
	{name: "ttheader protocol", b: inFrame("\x10\x00\x00\x00\x00\x00\x00\x01\x00\x01\x04\x00\x00\x00"), want: "another protocol"},
	{name: "ttheader transforms", b: inFrame("\x10\x00\x00\x00\x00\x00\x00\x01\x00\x01\x00\x01\x00\x00"), want: "transforms"},
}

func TestBytesThatAreNoThrift(t *testing.T) {
	for _, tc := range refused {
		t.Run(tc.name, func(t *testing.T) {
			var m codecs.Metadata
			_, err := newCodec(t).NewDecoder(tc.dir).Decode([]byte(tc.b), &m)
			require.ErrorContains(t, err, tc.want)
		})
	}
}

func TestTheTransportOfAConnectionStays(t *testing.T) {
	dec := newCodec(t).NewDecoder(codecs.ClientToServer)
	var m codecs.Metadata
	_, err := dec.Decode([]byte(call(1, "x", 1, "\x00")), &m)
	require.NoError(t, err)
	_, err = dec.Decode([]byte(inFrame(call(1, "x", 1, "\x00"))), &m)
	require.ErrorContains(t, err, "framed message on a connection of unframed ones")
}

func TestAHeaderCannotPoseAsTheMethod(t *testing.T) {
	b := inHeader(theader, 1, "\x00\x00\x01\x02\x06Method\x05other\x03key\x01v", call(typeCall, "svc:real", 1, "\x00"))
	var m codecs.Metadata
	_, err := newCodec(t).NewDecoder(codecs.ClientToServer).Decode([]byte(b), &m)
	require.NoError(t, err)
	require.Equal(t, `request id=1 variant=7 status=0 reply=false size=58+1 op=svc/real method="real" service="svc" transport="header" protocol="binary" key="v"`, codectest.Describe(&m))
}

// TestRepeatedHeaders: rules see what servers see, before a mutation and behind it.
// Apache's and Kitex's take the last of a name over all parts. Kitex's keep numbers
// apart from names, and go by the numbers; its token is a name.
func TestRepeatedHeaders(t *testing.T) {
	const (
		tenants = "\x01\x03\x06tenant\x01a\x06Tenant\x01b\x06tenant\x01c"
		tenant  = "\x01\x01\x06tenant\x01d"
		token   = "RPC_TRANSIT_gdpr-token"
	)
	env := func(s string) string { return "\x10\x00\x01\x00\x0a\x00" + string(rune(len(s))) + s }
	acl := func(s string) string { return "\x11\x00" + string(rune(len(s))) + s }
	for _, tc := range []struct {
		name, magic, parts, want string
		key, mutated             string // what there is with key set to new
		malformed                string
	}{
		{name: "of a part", magic: theader, parts: tenants, want: `tenant="c" Tenant="b"`, key: "tenant", mutated: `Tenant="b" tenant="new"`},
		{name: "of two parts", magic: theader, parts: tenants + tenant, want: `tenant="d" Tenant="b"`, key: "tenant", mutated: `Tenant="b" tenant="new"`},
		{name: "behind the padding", magic: theader, parts: tenant + "\x00" + tenants, want: `tenant="d"`, key: "tenant", mutated: `tenant="new"`},
		{name: "behind a part that is not known", magic: theader, parts: tenant + "\x02" + tenants[1:], want: `tenant="d"`},
		{name: "of a part of Kitex", magic: kitexHeader, parts: strings16("tenant", "a", "tenant", "b"), want: `tenant="b"`, key: "tenant", mutated: `tenant="new"`},
		{
			name: "of two parts of Kitex, and padding", magic: kitexHeader,
			parts: strings16("tenant", "a") + "\x00\x00" + strings16("Tenant", "b", "tenant", "c"),
			want:  `tenant="c" Tenant="b"`, key: "tenant", mutated: `Tenant="b" tenant="new"`,
		},
		{name: "of numbers", magic: kitexHeader, parts: env("a") + env("b"), want: `env="b"`, key: "env", mutated: `env="new"`},
		{name: "of a number, then a name", magic: kitexHeader, parts: env("a") + strings16("env", "b"), want: `env="a"`, key: "env", mutated: `env="new"`},
		{name: "of a name, then a number", magic: kitexHeader, parts: strings16("env", "b") + env("a"), want: `env="a"`, key: "env", mutated: `env="new"`},
		{
			name: "of a name, a number and a name", magic: kitexHeader,
			parts: strings16("env", "a") + env("a") + strings16("env", "b"), want: `env="a"`, key: "env", mutated: `env="new"`,
		},
		{name: "of names that are numbers'", magic: kitexHeader, parts: strings16("env", "a", "env", "b"), want: `env="b"`, key: "env", mutated: `env="new"`},
		{name: "a token", magic: kitexHeader, parts: acl("a"), want: token + `="a"`, key: token, mutated: token + `="new"`},
		{name: "a name that is the token's", magic: kitexHeader, parts: strings16(token, "a", token, "b"), want: token + `="b"`, key: token, mutated: token + `="new"`},
		{name: "a token, then its name", magic: kitexHeader, parts: acl("a") + strings16(token, "b"), malformed: errToken},
		{name: "a name, then the token", magic: kitexHeader, parts: strings16(token, "b") + acl("a"), malformed: errToken},
		{name: "two tokens", magic: kitexHeader, parts: acl("a") + acl("b"), malformed: errToken},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCodec(t)
			decode := func(b []byte) (*codecs.Metadata, string) {
				m := new(codecs.Metadata)
				n, err := c.NewDecoder(c2s).Decode(b, m)
				require.NoError(t, err)
				require.Equal(t, len(b), n)
				_, properties, _ := strings.Cut(codectest.Describe(m), `protocol="binary"`)
				return m, strings.TrimSpace(properties)
			}
			m, got := decode([]byte(inHeader(tc.magic, 1, "\x00\x00"+tc.parts, call(typeCall, "hello", 1, "\x00"))))
			require.Equal(t, tc.malformed, m.Malformed)
			if tc.malformed != "" {
				return
			}
			require.Equal(t, tc.want, got)
			for key, want := range map[string]string{tc.key: tc.mutated, "other": tc.want + ` other="new"`} {
				var mut codecs.Mutation
				mut.Set(key, "new")
				b, err := c.Encode(nil, m, &mut)
				if tc.key == "" {
					require.ErrorIs(t, err, codecs.ErrNoMutation)
					continue
				}
				require.NoError(t, err)
				after, got := decode(b)
				require.Empty(t, after.Malformed)
				require.Equal(t, want, got)
			}
			if tc.key == "" {
				return
			}
			// Removed, nothing of that name is left, in whichever part and case.
			var mut codecs.Mutation
			mut.Remove(strings.ToUpper(tc.key))
			b, err := c.Encode(nil, m, &mut)
			require.NoError(t, err)
			after, got := decode(b)
			require.Empty(t, after.Malformed)
			require.Empty(t, got)
			mut.Set(tc.key, "new")
			b, err = c.Encode(nil, m, &mut)
			require.NoError(t, err)
			_, got = decode(b)
			require.Equal(t, tc.key+`="new"`, got)
		})
	}
}

// TestManyPiecesCostWhatTheWholeCosts: an unframed message is not read from its
// start again for each piece.
