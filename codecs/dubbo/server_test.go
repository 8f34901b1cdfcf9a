package dubbo

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/codectest"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
)

// str is a string as Hessian's writers have it.
func str(s string) string {
	if len(s) < 32 {
		return string(rune(len(s))) + s
	}
	return string([]byte{0x30 | byte(len(s)>>8), byte(len(s))}) + s
}

// TestRulesSeeWhatServersGoBy: README.md says what that is.
func TestRulesSeeWhatServersGoBy(t *testing.T) {
	const order, inventory = "shop.Order", "shop.Inventory"
	body := func(service, version string) string {
		return str("2.0.2") + str(service) + str(version) + str("m") + str("")
	}
	att := func(kv ...string) string {
		s := "H"
		for i, v := range kv {
			if i%2 == 0 {
				v = str(v)
			}
			s += v
		}
		return s + "Z"
	}
	for _, tc := range []struct{ name, body, want string }{
		{"no attachments", body(order, "1"), `op=shop.Order/m interface="shop.Order" method="m" path="shop.Order" version="1"`},
		{
			"a nested call of Java 2.6.5 to 2.7.0 brings the outer one's interface along",
			body(inventory, "1") + att("path", str(inventory), "interface", str(order)),
			`op=shop.Inventory/m interface="shop.Inventory" method="m" path="shop.Inventory" version="1"`,
		},
		{
			"Java from 2.7.8 on writes the interface, and calls the path",
			body(order, "1") + att("interface", str(order), "path", str("orders")),
			`op=orders/m interface="orders" method="m" path="orders" version="1"`,
		},
		{
			"the attachments' path and version",
			body(order, "1") + att("path", str(inventory), "version", str("2")),
			`op=shop.Inventory/m interface="shop.Inventory" method="m" path="shop.Inventory" version="2"`,
		},
		{
			"a version that is null is none",
			body(order, "1") + att("version", "N", "group", "N", "interface", "N"),
			`op=shop.Order/m interface="shop.Order" method="m" path="shop.Order" version="" dubbo="2.0.2" serialization="2" group=""`,
		},
		{
			"the last of two",
			body(order, "1") + att("group", str("a"), "path", str(order), "k", str("x"), "group", str("b"), "path", str(inventory), "k", str("y")),
			`op=shop.Inventory/m interface="shop.Inventory" method="m" path="shop.Inventory" version="1" dubbo="2.0.2" serialization="2" group="b" k="y"`,
		},
		{
			"an object in place of a text",
			body(order, "1") + att("k", str("x"), "k", "HZ", "l", "HZ", "l", str("x"), "n", str("x"), "n", "N"),
			`op=shop.Order/m interface="shop.Order" method="m" path="shop.Order" version="1" dubbo="2.0.2" serialization="2" k="" l="x" n=""`,
		},
		{
			"another case is another key",
			body(order, "1") + att("Path", str(inventory), "INTERFACE", str(inventory), "Version", str("2"), "Group", str("g"), "Dubbo", "\x91", "Tenant", str("a"), "tenant", str("b")),
			`op=shop.Order/m interface="shop.Order" method="m" path="shop.Order" version="1" dubbo="2.0.2" serialization="2" Tenant="a" tenant="b"`,
		},
		{
			"older clients in Go begin a path with a slash",
			body("/"+order, "1") + att("path", str("/"+order), "interface", str(order)),
			`op=shop.Order/m interface="shop.Order" method="m" path="shop.Order" version="1"`,
		},
		{
			"a context path, or a group in the path",
			body("g/"+order, "1") + att("path", str("g/"+order)),
			`op=shop.Order/m interface="shop.Order" method="m" path="g/shop.Order" version="1" dubbo="2.0.2" serialization="2" group="g"`,
		},
		{
			"a context path and a group",
			body("ctx/"+order, "1") + att("group", str("g")),
			`op=shop.Order/m interface="shop.Order" method="m" path="ctx/shop.Order" version="1" dubbo="2.0.2" serialization="2" group="g"`,
		},
		{
			"in other encodings", // chunks, a medium string, one with a length of two bytes
			body(order, "1") + att("path", "R\x00\x04shopS\x00\x06.Other", "version", "\x30\x012", "group", "S\x00\x01g"),
			`op=shop.Other/m interface="shop.Other" method="m" path="shop.Other" version="2" dubbo="2.0.2" serialization="2" group="g"`,
		},
		{
			"numbers have their text",
			body(order, "1") + att("timeout", "\xd4\x0b\xb8", "long", "Y\x00\x00\x00\x01", "flag", "T", "rate", "D\x3f\xf8\x00\x00\x00\x00\x00\x00", "day", "K\x00\x00\x00\x01", "bytes", "\x21x"),
			`op=shop.Order/m interface="shop.Order" method="m" path="shop.Order" version="1" dubbo="2.0.2" serialization="2" timeout="3000" long="1" flag="true" rate="1.5"`,
		},
		{
			"dubbo-go takes the first of a list",
			body(order, "1") + att("k", "\x72\x07[string\x01a\x01b", "l", "V\x90\x91\x01c", "none", "\x70\x90", "numbers", "\x79\x91"),
			`op=shop.Order/m interface="shop.Order" method="m" path="shop.Order" version="1" dubbo="2.0.2" serialization="2" k="a" l="c"`,
		},
		{
			"keys that are no strings",
			body(order, "1") + "H\x91\x01xN\x01yT\x01z\x79\x04path\x01w" + str("k") + "\x01vZ",
			`op=shop.Order/m interface="shop.Order" method="m" path="shop.Order" version="1" dubbo="2.0.2" serialization="2" k="v"`,
		},
		{
			"a type that is none takes no argument",
			str("2.0.2") + str(order) + str("1") + str("m") + str("xI") + "\x91" + att("path", str(inventory)) + att("path", str(order)),
			`op=shop.Inventory/m interface="shop.Inventory" method="m" path="shop.Inventory" version="1"`,
		},
		{
			"a map with a type, and one with the number of a type",
			body(order, "1") + "M\x11java.util.HashMap" + str("o") + "M\x90Z" + str("path") + str(inventory) + "Z",
			`op=shop.Inventory/m interface="shop.Inventory" method="m" path="shop.Inventory" version="1"`,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := requestOf(t, tc.body)
			require.Empty(t, m.Malformed)
			_, got, _ := strings.Cut(codectest.Describe(m), "+"+fmt.Sprint(len(tc.body))+" ")
			if !strings.Contains(tc.want, "dubbo=") {
				tc.want += ` dubbo="2.0.2" serialization="2"`
			}
			require.Equal(t, tc.want, got)
		})
	}
}

// TestANumberBeforeTheTypes, as of dubbox 2.8, dubbo-js and node-zookeeper-dubbo.
func TestANumberBeforeTheTypes(t *testing.T) {
	for _, number := range []string{"\x8f", "\xc7\xff", "\xd3\xff\xff", "I\xff\xff\xff\xff", "\x91", "\x90", "\xc8\x01", "I\x00\x00\x00\x01"} {
		body := str("2.8.4") + str("shop.Order") + str("1") + str("place") + number + str("Ljava/lang/String;") + str("x") +
			"H" + str("path") + str("shop.Order") + str("version") + str("1") + str("tenant") + str("acme") + "Z"
		m := requestOf(t, body)
		require.Empty(t, m.Malformed, "%x", number)
		require.Equal(t, "shop.Order/place", string(m.AppendOperation(nil)))
		v, _ := m.Get("tenant")
		require.Equal(t, "acme", string(v))

		mut := mutation("tenant", "other")
		out, err := newCodec(t).Encode(nil, m, mut)
		require.NoError(t, err)
		sameButFor(t, m, decodeOne(t, codecs.ClientToServer, out), mut)
	}
	// A map among the arguments, and its class among the attachments.
	body := str("2.8.4") + str("i") + str("1") + str("m") + "\x8f" + str("Ljava/util/Map;LP;") + "H" + str("path") + str("no") + "Z" +
		"C\x01P\x90\x60H" + str("group") + str("g") + str("o") + "\x60Z"
	m := requestOf(t, body)
	require.Empty(t, m.Malformed)
	_, got, _ := strings.Cut(codectest.Describe(m), " op=")
	require.Equal(t, `i/m interface="i" method="m" path="i" version="1" dubbo="2.8.4" serialization="2" group="g"`, got)
	mut := mutation("k", "v")
	out, err := newCodec(t).Encode(nil, m, mut)
	require.NoError(t, err)
	sameButFor(t, m, decodeOne(t, codecs.ClientToServer, out), mut)
}

// TestRepeatedKeysAmongMany: as many attachments as there may be.
func TestRepeatedKeysAmongMany(t *testing.T) {
	for _, n := range []int{31, 32, 33, maxAttachments / 2} {
		var b strings.Builder
		b.WriteString(call + "H\x05group\x01g")
		for round := range 2 {
			for i := range n {
				fmt.Fprintf(&b, "%s%s", str(fmt.Sprint("key", i)), str(fmt.Sprint(round, "-", i)))
				if round*n+i == maxAttachments-2 {
					break
				}
			}
		}
		m := requestOf(t, b.String()+"Z")
		require.Empty(t, m.Malformed)
		require.Len(t, m.Properties(), propSerialization+2+n)
		for i := range n - 1 {
			v, _ := m.Get(fmt.Sprint("key", i))
			require.Equal(t, fmt.Sprint(1, "-", i), string(v))
		}
	}
}

// TestFramesAboveTheLimit cost themselves: what they are their headers tell.
func TestFramesAboveTheLimit(t *testing.T) {
	const limit = 100
	c, err := New(nil, codecs.Limits{MaxFrameBytes: limit})
	require.NoError(t, err)
	for _, tc := range []struct {
		name          string
		dir           codecs.Direction
		flags, status byte
		want          codecs.MessageType
		outcome       codecs.Status
	}{
		{"request", codecs.ClientToServer, 0xc2, 0, codecs.Request, 0},
		{"request in another serialization", codecs.ClientToServer, 0xd7, 0, codecs.Request, 0},
		{"oneway", codecs.ClientToServer, 0x82, 0, codecs.Oneway, 0},
		{"answer", codecs.ServerToClient, 0x02, 20, codecs.Response, 0},
		{"error", codecs.ServerToClient, 0x02, 70, codecs.Error, codecs.StatusError},
		{"heartbeat", codecs.ClientToServer, 0xe2, 0, codecs.Ignored, 0},
		{"heartbeat of a server", codecs.ServerToClient, 0xe2, 0, codecs.Ignored, 0},
		{"answer to a heartbeat", codecs.ServerToClient, 0x22, 20, codecs.Ignored, 0},
		{"read-only event", codecs.ServerToClient, 0xa2, 0, codecs.Ignored, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, size := range []int{limit, limit + 1, headerSize + 1<<32 - 1} {
				head := dubbotest.Frame(tc.flags, tc.status, 1<<63+9, nil)
				head[12], head[13], head[14], head[15] = byte((size-headerSize)>>24), byte((size-headerSize)>>16), byte((size-headerSize)>>8), byte(size-headerSize)
				dec := c.NewDecoder(tc.dir)
				var m codecs.Metadata
				n, err := dec.Decode(head[:headerSize-1], &m)
				require.NoError(t, err)
				require.Equal(t, headerSize, n)
				n, err = dec.Decode(head, &m)
				if size <= limit {
					require.NoError(t, err)
					require.Equal(t, size, n)
					continue
				}
				tooLarge := &codecs.TooLarge{Size: size, Limit: limit}
				require.Equal(t, tooLarge, err)
				require.Equal(t, tc.want, m.Type)
				require.Equal(t, tc.outcome, m.Status)
				require.Equal(t, uint64(1<<63+9), m.ID)
				require.Nil(t, m.Raw)
				require.Empty(t, m.Properties())
				if tc.want != codecs.Request {
					continue
				}
				b, err := c.EncodeError(nil, &m, &codecs.LocalError{Type: codecs.BadRequest, Message: err.Error()})
				require.NoError(t, err)
				require.Equal(t, dubbotest.ErrorResponse(m.ID, 40, tooLarge.Error()), b)
			}
		})
	}
}

// TestTheEventThatSaysGoodbye is what a Java server sends when it is stopped.
func TestTheEventThatSaysGoodbye(t *testing.T) {
	b, err := newCodec(t).(codecs.Leaver).EncodeGoAway([]byte("before"), 0)
	require.NoError(t, err)
	require.Equal(t, "before"+string(dubbotest.ReadOnly(0)), string(b))
	for name, tc := range map[string]struct {
		flags byte
		body  string
		want  codecs.MessageType
	}{
		"Hessian":                  {0xa2, "\x01R", codecs.GoAway},
		"Fastjson2":                {0xb7, "\x00\x00\x00\x02\x4aR", codecs.GoAway},
		"Fastjson2, another event": {0xb7, "\x00\x00\x00\x02\x4aW", codecs.Ignored},
		"Hessian's in Fastjson2":   {0xb7, "\x01R", codecs.Ignored},
		"another serialization":    {0xa8, "\x01R", codecs.Ignored},
	} {
		require.Equal(t, tc.want, decodeOne(t, codecs.ServerToClient, dubbotest.Frame(tc.flags, 0, 3, []byte(tc.body))).Type, name)
	}
}
