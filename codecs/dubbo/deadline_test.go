package dubbo

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
)

const (
	timeoutKey = "\x07timeout"
	leftKey    = "\x03_TO"
	lowerKey   = "\x03_to"
)

func timeoutOf(t testing.TB, m *codecs.Metadata) time.Duration {
	t.Helper()
	return newCodec(t).(codecs.Deadliner).Timeout(m)
}

func TestWhatARequestSaysOfItsTimeout(t *testing.T) {
	const none, over = 0, -time.Millisecond
	for _, tc := range []struct {
		name, attachments string
		want              time.Duration
	}{
		{"no attachments", "", none},
		{"a null for attachments", "N", none},
		{"others", "H\x01k\x0510000Z", none},
		{"Dubbo Java's string", "H" + timeoutKey + "\x043000Z", 3 * time.Second},
		{"an int", "H" + timeoutKey + "\xd4\x0b\xb8Z", 3 * time.Second},
		{"a long", "H" + timeoutKey + "Y\x00\x00\x0b\xb8Z", 3 * time.Second},
		{"a list of strings", "H" + timeoutKey + "\x71\x07[string\x043000Z", 3 * time.Second},
		{"the largest", "H" + timeoutKey + "\x0a2147483647Z", 2147483647 * time.Millisecond},
		{"of two the later", "H" + timeoutKey + "\x013" + timeoutKey + "\x014Z", 4 * time.Millisecond},
		{"of two the later, which is none", "H" + timeoutKey + "\x013" + timeoutKey + "\x79\x91Z", none},
		{"dubbo-go's when it tries again", "H" + timeoutKey + "\x010Z", none},
		{"no number", "H" + timeoutKey + "\x03abcZ", none},
		{"a fraction", "H" + timeoutKey + "\x031.5Z", none},
		{"a double", "H" + timeoutKey + "\x5cZ", none},
		{"less than nothing", "H" + timeoutKey + "\x02-1Z", none},
		{"too much", "H" + timeoutKey + "\x0a2147483648Z", none},
		{"far too much", "H" + timeoutKey + "\x14" + strings.Repeat("9", 20) + "Z", none},
		{"a long that is too much", "H" + timeoutKey + "L\x00\x00\x00\x01\x00\x00\x00\x00Z", none},
		{"a map", "H" + timeoutKey + "HZZ", none},
		{"null", "H" + timeoutKey + "NZ", none},
		{"another case", "H\x07Timeout\x043000Z", none},
		{"keys that are no strings", "H\x91\x92\x79\x91\x01v" + timeoutKey + "\x015Z", 5 * time.Millisecond},
		{"what is left", "H" + leftKey + "\xc9\xf4Z", 500 * time.Millisecond},
		{"what is left, in lower case", "H" + lowerKey + "\xc9\xf4Z", 500 * time.Millisecond},
		{"what is left, as a string", "H" + leftKey + "\x03500Z", 500 * time.Millisecond},
		{"what is left is less", "H" + timeoutKey + "\x043000" + leftKey + "\xc9\xf4Z", 500 * time.Millisecond},
		{"what is left is more", "H" + leftKey + "\xc9\xf4" + timeoutKey + "\x0230Z", 30 * time.Millisecond},
		{"both cases", "H" + leftKey + "\xc9\xf4" + lowerKey + "\x99Z", 9 * time.Millisecond},
		{"nothing is left", "H" + timeoutKey + "\x043000" + leftKey + "\x90Z", over},
		{"less than nothing is left", "H" + leftKey + "\x80Z", over},
		{"nothing is left, as a string", "H" + leftKey + "\x010Z", over},
		{"nothing is left, in lower case", "H" + leftKey + "\x99" + lowerKey + "\x90Z", over},
		{"of two the later, of what is left", "H" + leftKey + "\x90" + leftKey + "\x99Z", 9 * time.Millisecond},
		{"what is left is no number", "H" + leftKey + "\x03abc" + timeoutKey + "\x015Z", 5 * time.Millisecond},
		{"what is left is null", "H" + leftKey + "NZ", none},
		{"what is left is too much", "H" + leftKey + "L\x00\x00\x00\x01\x00\x00\x00\x00Z", none},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, flags := range []byte{0xc2, 0x82} {
				m := decodeOne(t, codecs.ClientToServer, dubbotest.Frame(flags, 0, 7, []byte(call+tc.attachments)))
				require.Empty(t, m.Malformed)
				require.Equal(t, tc.want, timeoutOf(t, m))
			}
		})
	}
	t.Run("behind objects of a class among the arguments", func(t *testing.T) {
		body := "\x052.0.2\x01i\x00\x01m\x01IC\x01P\x91\x01f\x60NH\x01o\x60N" + timeoutKey + "\x015Z"
		require.Equal(t, 5*time.Millisecond, timeoutOf(t, requestOf(t, body)))
	})
	for name, m := range map[string]*codecs.Metadata{
		"another serialization": decodeOne(t, codecs.ClientToServer, dubbotest.Frame(0xd7, 0, 1, []byte(timeoutKey+"\x015"))),
		"unreadable":            decodeOne(t, codecs.ClientToServer, dubbotest.Frame(0xc2, 0, 1, []byte(call+"H"+timeoutKey+"\x015@"))),
		"a heartbeat":           decodeOne(t, codecs.ClientToServer, dubbotest.Heartbeat(1)),
		"an answer":             decodeOne(t, codecs.ServerToClient, dubbotest.Response(1, "x", [2]string{"timeout", "5"})),
	} {
		t.Run(name, func(t *testing.T) { require.Zero(t, timeoutOf(t, m)) })
	}
}

// TestATimeoutIsWritten: as a string, and as the int of what is left where the client
// has that counted down.
func TestATimeoutIsWritten(t *testing.T) {
	const object = "C\x01P\x91\x01f\x60N"
	for _, tc := range []struct{ name, before, want string }{
		{"no attachments", "", "H" + timeoutKey + "\x041234Z"},
		{"a null for attachments", "N", "H" + timeoutKey + "\x041234Z"},
		{"others", "H\x01k\x01vZ", "H\x01k\x01v" + timeoutKey + "\x041234Z"},
		{"in its place", "H" + timeoutKey + "\x043000\x01k\x01vZ", "H" + timeoutKey + "\x041234\x01k\x01vZ"},
		{"an int becomes a string", "H" + timeoutKey + "\xd4\x0b\xb8Z", "H" + timeoutKey + "\x041234Z"},
		{"twice", "H" + timeoutKey + "\x013" + timeoutKey + "\x014Z", "H" + timeoutKey + "\x041234" + timeoutKey + "\x041234Z"},
		{"an object stays", "H" + timeoutKey + object + "Z", "H" + timeoutKey + object + timeoutKey + "\x041234Z"},
		{"what is left", "H" + timeoutKey + "\x043000" + leftKey + "\xc9\xf4Z", "H" + timeoutKey + "\x041234" + leftKey + "\xcc\xd2Z"},
		{"what is left, in lower case", "H" + lowerKey + "\xc9\xf4Z", "H" + lowerKey + "\xcc\xd2" + timeoutKey + "\x041234Z"},
		{"what is left, as a string", "H" + leftKey + "\x03500Z", "H" + leftKey + "\xcc\xd2" + timeoutKey + "\x041234Z"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := requestOf(t, call+tc.before)
			m.ID = 99
			out, err := newCodec(t).Encode(nil, m, &codecs.Mutation{Timeout: 1234567 * time.Microsecond, Retry: 1})
			require.NoError(t, err)
			require.Equal(t, dubbotest.Frame(0xc2, 0, 99, []byte(call+tc.want)), out)
			require.Equal(t, 1234*time.Millisecond, timeoutOf(t, decodeOne(t, codecs.ClientToServer, out)))
		})
	}
}

func TestATimeoutWinsOverAnEntry(t *testing.T) {
	for _, before := range []string{"", "H" + timeoutKey + "\x043000Z"} {
		m := requestOf(t, call+before)
		mut := mutation("timeout", "500", "k", "v")
		mut.Timeout = time.Microsecond
		out, err := newCodec(t).Encode(nil, m, mut)
		require.NoError(t, err)
		after := decodeOne(t, codecs.ClientToServer, out)
		content, err := contentOf(after)
		require.NoError(t, err)
		require.Equal(t, map[string]any{"timeout": "1", "k": "v"}, content.attachments)
	}
}

// TestARequestWithoutRoomForATimeout goes out as it is, but for its id.
func TestARequestWithoutRoomForATimeout(t *testing.T) {
	full := call + "H" + strings.Repeat("\x91N", maxAttachments) + "Z"
	small, err := New(nil, codecs.Limits{MaxFrameBytes: headerSize + len(call)})
	require.NoError(t, err)
	for _, tc := range []struct {
		name  string
		codec codecs.Codec
		frame []byte
	}{
		{"attachments", newCodec(t), dubbotest.Frame(0xc2, 0, 1, []byte(full))},
		{"bytes", small, dubbotest.Frame(0xc2, 0, 1, []byte(call))},
		{"another serialization", newCodec(t), dubbotest.Frame(0xd7, 0, 1, []byte("?"))},
		{"unreadable", newCodec(t), dubbotest.Frame(0xc2, 0, 1, []byte("@"))},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := decodeOne(t, codecs.ClientToServer, tc.frame)
			m.ID = 99
			out, err := tc.codec.Encode([]byte("before"), m, &codecs.Mutation{Timeout: time.Second})
			require.NoError(t, err)
			require.Equal(t, "before"+string(tc.frame[:11])+"\x63"+string(tc.frame[12:]), string(out))
			if tc.name == "attachments" {
				mut := mutation("k", "v")
				_, err = tc.codec.Encode(nil, m, mut)
				require.ErrorIs(t, err, codecs.ErrNoMutation)
			}
		})
	}
}

// TestTimeoutsOfRealClients: what they say is read, and what is written in its place a
// decoder that is not ours finds there, and nothing else that is new.
func TestTimeoutsOfRealClients(t *testing.T) {
	calls, told := 0, 0
	for _, file := range captures(t) {
		if direction(file) != codecs.ClientToServer {
			continue
		}
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		c := newCodec(t)
		dec := c.NewDecoder(codecs.ClientToServer)
		for len(b) > 0 {
			var m codecs.Metadata
			n, err := dec.Decode(b, &m)
			require.NoError(t, err)
			b = b[n:]
			if !saysTimeout(&m) {
				continue
			}
			calls++
			before, err := contentOf(&m)
			require.NoError(t, err)
			said, _ := before.attachments["timeout"].(string)
			if said != "" {
				told++
				require.Equal(t, said, fmt.Sprint(timeoutOf(t, &m).Milliseconds()), file)
			}
			out, err := c.Encode(nil, &m, &codecs.Mutation{Timeout: 1234 * time.Millisecond})
			require.NoError(t, err)
			sameButFor(t, &m, decodeOne(t, codecs.ClientToServer, out), mutation("timeout", "1234"))
		}
	}
	require.Greater(t, calls, 50)
	require.Greater(t, told, 50)
}

// TestFailures: of the statuses, those after which another attempt may help.
func TestFailures(t *testing.T) {
	want := map[byte]codecs.FailureClass{
		31: codecs.HostFailure, 50: codecs.HostFailure, 70: codecs.HostFailure, 80: codecs.HostFailure, 100: codecs.Overloaded,
	}
	for status := range 256 {
		m := decodeOne(t, codecs.ServerToClient, dubbotest.ErrorResponse(1, byte(status), "no"))
		if status == statusOK {
			m = decodeOne(t, codecs.ServerToClient, dubbotest.Frame(2, 20, 1, []byte("\x90\x01e")))
			require.Equal(t, codecs.StatusBusinessException, m.Status)
		}
		require.EqualValues(t, status, m.Code)
		require.Equal(t, want[byte(status)], m.Failure, status)
	}
}
