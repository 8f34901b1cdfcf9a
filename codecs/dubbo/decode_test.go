package dubbo

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/codectest"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
)

// call is the body of a request without parameters, up to the attachments.
const call = "\x052.0.2\x01i\x031.0\x01m\x00"

// decodeOne decodes a frame that is whole and sound.
func decodeOne(t testing.TB, d codecs.Direction, frame []byte) *codecs.Metadata {
	t.Helper()
	m := new(codecs.Metadata)
	n, err := newCodec(t).NewDecoder(d).Decode(frame, m)
	require.NoError(t, err)
	require.Equal(t, len(frame), n)
	return m
}

func requestOf(t testing.TB, body string) *codecs.Metadata {
	t.Helper()
	return decodeOne(t, codecs.ClientToServer, dubbotest.Frame(0xc2, 0, 7, []byte(body)))
}

func answerOf(t testing.TB, body string) *codecs.Metadata {
	t.Helper()
	return decodeOne(t, codecs.ServerToClient, dubbotest.Frame(0x02, statusOK, 7, []byte(body)))
}

func TestTheConfigurationIsChecked(t *testing.T) {
	f, ok := codecs.Lookup("aeraki.meta_protocol.codec.dubbo")
	require.True(t, ok)
	_, err := f(&anypb.Any{TypeUrl: "type.googleapis.com/aeraki.meta_protocol.codec.DubboCodec"}, codecs.Limits{})
	require.NoError(t, err)
	wrong, err := anypb.New(wrapperspb.String("x"))
	require.NoError(t, err)
	_, err = f(wrong, codecs.Limits{})
	require.ErrorContains(t, err, "google.protobuf.StringValue")
}

func TestKindsOfMessages(t *testing.T) {
	null, readOnly := []byte("N"), []byte("\x01R")
	for _, tc := range []struct {
		name          string
		dir           codecs.Direction
		flags, status byte
		body          []byte
		want          codecs.MessageType
		outcome       codecs.Status
		expectsReply  bool
	}{
		{"call", codecs.ClientToServer, 0xc2, 0, []byte(call), codecs.Request, 0, false},
		{"oneway", codecs.ClientToServer, 0x82, 0, []byte(call), codecs.Oneway, 0, false},
		{"heartbeat of a client", codecs.ClientToServer, 0xe2, 0, null, codecs.Heartbeat, 0, true},
		{"heartbeat of a server", codecs.ServerToClient, 0xe2, 0, null, codecs.Heartbeat, 0, true},
		{"answer to a heartbeat", codecs.ServerToClient, 0x22, 20, null, codecs.Heartbeat, 0, false},
		{"dubbo-go's answer to a heartbeat", codecs.ClientToServer, 0x22, 20, []byte("NN"), codecs.Heartbeat, 0, false},
		{"heartbeat without a body", codecs.ClientToServer, 0xe2, 0, nil, codecs.Heartbeat, 0, true},
		{"read-only event", codecs.ServerToClient, 0xa2, 0, readOnly, codecs.GoAway, 0, false},
		{"read-only event of a client", codecs.ClientToServer, 0xa2, 0, readOnly, codecs.Ignored, 0, false},
		{"writeable event", codecs.ServerToClient, 0xa2, 0, []byte("\x01W"), codecs.Ignored, 0, false},
		{"event without a body", codecs.ServerToClient, 0xa2, 0, nil, codecs.Ignored, 0, false},
		{"exception", codecs.ServerToClient, 0x02, 20, []byte("\x90\x01x"), codecs.Response, codecs.StatusBusinessException, false},
		{"value", codecs.ServerToClient, 0x02, 20, []byte("\x91\x01x"), codecs.Response, codecs.StatusOK, false},
		{"null", codecs.ServerToClient, 0x02, 20, []byte("\x92"), codecs.Response, codecs.StatusOK, false},
		{"exception and attachments", codecs.ServerToClient, 0x02, 20, []byte("\x93\x01xHZ"), codecs.Response, codecs.StatusBusinessException, false},
		{"value and attachments", codecs.ServerToClient, 0x02, 20, []byte("\x94\x01xHZ"), codecs.Response, codecs.StatusOK, false},
		{"null and attachments", codecs.ServerToClient, 0x02, 20, []byte("\x95HZ"), codecs.Response, codecs.StatusOK, false},
		{"kind in five bytes", codecs.ServerToClient, 0x02, 20, []byte("I\x00\x00\x00\x03\x01xHZ"), codecs.Response, codecs.StatusBusinessException, false},
		{"answer in another serialization", codecs.ServerToClient, 0x17, 20, []byte("\x90\x90"), codecs.Response, codecs.StatusOK, false},
		{"error in another serialization", codecs.ServerToClient, 0x17, 40, []byte("?"), codecs.Error, codecs.StatusError, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := decodeOne(t, tc.dir, dubbotest.Frame(tc.flags, tc.status, 1<<63+9, tc.body))
			require.Equal(t, tc.want, m.Type)
			require.Equal(t, tc.outcome, m.Status)
			require.Equal(t, tc.expectsReply, m.ExpectsReply)
			require.Equal(t, uint64(1<<63+9), m.ID)
			require.Empty(t, m.Malformed)
			require.Equal(t, len(tc.body), m.BodySize)
		})
	}
}

func TestEveryOtherStatusIsAnError(t *testing.T) {
	for status := range 256 {
		if status == statusOK {
			continue
		}
		m := decodeOne(t, codecs.ServerToClient, dubbotest.ErrorResponse(1, byte(status), "text"))
		require.Equal(t, codecs.Error, m.Type, status)
		require.Equal(t, codecs.StatusError, m.Status, status)
	}
}

func TestHeartbeatsAreAnsweredInKind(t *testing.T) {
	for _, tc := range []struct{ name, in, want string }{
		{"Hessian", "\xe2\x00N", "\x22\x14N"},
		{"Hessian, with more than a null", "\xe2\x00\x05hello", "\x22\x14N"},
		{"Hessian, empty", "\xe2\x00", "\x22\x14N"},
		{"the null of another serialization", "\xf7\x00\x00\x00\x00\x01\xaf", "\x37\x14\x00\x00\x00\x01\xaf"},
		{"more than a null in another serialization", "\xf7\x00" + strings.Repeat("x", maxNull+1), "\x37\x14N"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCodec(t)
			m := decodeOne(t, codecs.ClientToServer, dubbotest.Frame(tc.in[0], tc.in[1], 1<<64-1, []byte(tc.in[2:])))
			b, err := c.(codecs.Heartbeater).EncodeHeartbeat([]byte("before"), m)
			require.NoError(t, err)
			require.Equal(t, "before"+string(dubbotest.Frame(tc.want[0], tc.want[1], 1<<64-1, []byte(tc.want[2:]))), string(b))
			m = decodeOne(t, codecs.ServerToClient, b[len("before"):])
			require.Equal(t, codecs.Heartbeat, m.Type)
			require.False(t, m.ExpectsReply)
		})
	}
}

func TestOtherSerializationsAreNotRead(t *testing.T) {
	for id := range 32 {
		if id == hessian2 {
			continue
		}
		m := decodeOne(t, codecs.ClientToServer, dubbotest.Frame(0xc0|byte(id), 0, 1, []byte(call+"H\x01k\x01vZ")))
		require.Equal(t, codecs.Request, m.Type)
		require.Len(t, m.Properties(), 1)
		v, _ := m.Get("serialization")
		require.Equal(t, fmt.Sprint(id), string(v))
		require.Empty(t, m.AppendOperation(nil))
	}
}

// typePattern is by what servers find the types, in Java as in Go
// (ReflectUtils.DESC_PATTERN, hessian2.DescRegex).
var typePattern = regexp.MustCompile(`[VZBCDFIJS]|L[_$a-zA-Z][_$a-zA-Z0-9]*(?:/[_$a-zA-Z][_$a-zA-Z0-9]*)*;|` +
	`\[+(?:[VZBCDFIJS]|L[_$a-zA-Z][_$a-zA-Z0-9]*(?:/[_$a-zA-Z][_$a-zA-Z0-9]*)*;)`)

// TestTypesAreCountedAsServersDo, or an argument passes for the attachments.
func TestTypesAreCountedAsServersDo(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 100_000 {
		desc := make([]byte, rng.IntN(12))
		for i := range desc {
			desc[i] = "LL/;[IVax1$."[rng.IntN(12)]
		}
		require.Len(t, typePattern.FindAll(desc, -1), countTypes(desc), "%s", desc)
	}
}

func TestArgumentsArePassedByTheirTypes(t *testing.T) {
	for desc, n := range map[string]int{
		"": 0, "I": 1, "V": 1, "ILjava/lang/String;J": 3, "[I": 1, "[[Ljava/lang/String;Z": 2,
		"Ljava/lang/String;[Ljava/lang/String;[Ljava/lang/Object;": 3, // $invoke
		"[Ljava/util/Date": 1, // dubbo-go forgets the end
	} {
		require.Equal(t, n, countTypes([]byte(desc)), desc)
		require.Len(t, typePattern.FindAllString(desc, -1), n, desc)
		body := fmt.Sprintf("\x052.0.2\x01i\x00\x01m\x30%c%s%s", len(desc), desc, strings.Repeat("N", n)) + "H\x01k\x01vZ"
		m := requestOf(t, body)
		require.Empty(t, m.Malformed, desc)
		v, _ := m.Get("k")
		require.Equal(t, "v", string(v), desc)
	}
}

// hidden are bodies of requests that are refused: what servers take for an
// attachment is a property.
var hidden = map[string]string{
	"a class definition before a value":    call + "H\x04pathC\x01P\x90\x09forbiddenZ",
	"a class definition before a key":      call + "HC\x01P\x90\x04path\x09forbiddenZ",
	"a key in overlong UTF-8":              call + "H\x04p\xc1\xa1th\x09forbiddenZ",
	"a value in overlong UTF-8":            call + "H\x04path\x09forbidde\xc1\xaeZ",
	"a reference to a map among arguments": "\x052.0.2\x01i\x00\x01m\x0fLjava/util/Map;H\x04path\x09forbiddenZQ\x90",
	"an object":                            call + "C\x01P\x91\x04path\x60\x09forbidden",
	"a list":                               call + "\x7a\x04path\x09forbidden",
	"a number":                             call + "\x91",
	"a map that keeps equal keys":          call + "M\x19java.util.IdentityHashMap\x04path\x09forbidden\x04path\x01iZ",
	"a map that tells no case apart":       call + "M\x30\x35org.apache.commons.collections.map.CaseInsensitiveMap\x04PATH\x09forbidden\x04path\x01iZ",
	"a map of a type by its number":        "\x052.0.2\x01i\x00\x01m\x0fLjava/util/Map;M\x19java.util.IdentityHashMapZM\x90\x04path\x09forbidden\x04path\x01iZ",
	"a map within a stream":                "\x052.0.2\x01i\x00\x01m\x15Ljava/io/InputStream;\x34\x11H\x04path\x09forbiddenZH\x04path\x01iZ",
	"a map without an end":                 call + "H\x04path\x09forbidden",
	"too many":                             call + "H" + strings.Repeat("\x01k\x01v", maxAttachments) + "\x04path\x09forbiddenZ",
	"a path that is a number":              "\x052.0.2\x91\x00\x01m\x00N",
	"no body":                              "",
	"a path that is null":                  call + "H\x04pathNZ",
	"a number for a path":                  call + "H\x04path\x91Z",
	"a list for a path":                    call + "H\x04path\x71\x07[string\x09forbiddenZ",
	"a number for a version":               call + "H\x07version\x91Z",
	"a double for a version":               call + "H\x07version\\Z",
	"a boolean for a group":                call + "H\x05groupTZ",
	"a reference for a group":              call + "H\x05groupQ\x90Z",
	"bytes for an interface":               call + "H\x09interface\x21iZ",
	"an interface for a path":              call + "H\x09interface\x09forbiddenZ",
	"a path with a version":                call + "H\x04path\x0di:2.0:\x00\x00\x00\x00\x00\x00\x00Z",
	"a service that is null":               "\x052.0.2N\x031.0\x01m\x00HZ",
	"a method that is null":                "\x052.0.2\x01i\x031.0N\x00HZ",
	"a method that is a number":            "\x052.0.2\x01i\x031.0\x91\x00HZ",
	"a version that is a number":           "\x052.0.2\x01i\x91\x01m\x00HZ",
	"a Dubbo version that is a number":     "\x92\x01i\x031.0\x01m\x00HZ",
	"types that are null":                  "\x052.0.2\x01i\x031.0\x01mNHZ",
	"types that are a long":                "\x052.0.2\x01i\x031.0\x01m\xe0\x00HZ",
	"a number in place of types":           "\x052.0.2\x01i\x031.0\x01m\x8fHZ",
	"no types behind a number":             "\x052.0.2\x01i\x031.0\x01m\x8fNHZ",
	"a map among counted arguments":        "\x052.8.4\x01i\x031.0\x01m\x91\x0fLjava/util/Map;H\x04path\x09forbiddenZHZ",
	"a path behind counted arguments":      "\x052.8.4\x01i\x031.0\x01m\x90\x00H\x04path\x09forbiddenZ",
	"a version behind counted arguments":   "\x052.8.4\x01i\x031.0\x01m\x90\x00H\x07version\x09forbiddenZ",
	"a group behind counted arguments":     "\x052.8.4\x01i\x031.0\x01m\x90\x00H\x05group\x09forbiddenZ",
	"nesting":                              "\x052.0.2\x01i\x00\x01m\x0fLjava/util/Map;" + strings.Repeat("\x79", 65) + "N",
}

func TestWhatStandsForNoAttachments(t *testing.T) {
	for name, rest := range map[string]string{"nothing": "", "null": "N", "an empty string": "\x00", "an empty map": "HZ", "a map with a type": "M\x01tZ"} {
		m := requestOf(t, call+rest)
		require.Empty(t, m.Malformed, name)
		require.Len(t, m.Properties(), propSerialization+1, name)
	}
}

// TestOwnPropertiesHaveNoDoubles: rules are blind to case, and look at every
// property of a name.
func TestOwnPropertiesHaveNoDoubles(t *testing.T) {
	m := requestOf(t, call+"H\x09Interface\x01x\x06METHOD\x01x\x04PATH\x01x\x07vERSION\x01x\x05Dubbo\x01x\x0dSerialization\x01x"+
		"\x07version\x031.1\x07version\x031.2\x05Group\x01g\x05group\x01hZ")
	require.Empty(t, m.Malformed)
	_, got, _ := strings.Cut(codectest.Describe(m), " op=i/m ")
	require.Equal(t, `interface="i" method="m" path="i" version="1.2" dubbo="2.0.2" serialization="2" group="h"`, got)
}

func TestAnswersHaveTheirAttachmentsAsProperties(t *testing.T) {
	for _, before := range []string{"\x93\x01e", "\x94\x7a\x91C\x01P\x91\x01f\x60N", "\x95"} {
		m := answerOf(t, before+"H\x01k\x01v\x01n\x91\x06method\x01wZ")
		require.Len(t, m.Properties(), 3)
		for name, want := range map[string]string{"k": "v", "n": "1", "method": "w"} {
			v, _ := m.Get(name)
			require.Equal(t, want, string(v))
		}
	}
	for name, body := range map[string]string{
		"unreadable value": "\x94@H\x01k\x01vZ", "no map": "\x95\x91", "nothing": "\x95", "kind without": "\x91\x01xH\x01k\x01vZ",
	} {
		require.Empty(t, answerOf(t, body).Properties(), name)
	}
	require.NotEmpty(t, answerOf(t, "").Malformed)
	require.NotEmpty(t, answerOf(t, "\x96").Malformed)
	require.NotEmpty(t, answerOf(t, "\x01x").Malformed)
}

// TestARequestHasSoManyValues: of more than are looked at it is not known where
// the attachments begin.
func TestARequestHasSoManyValues(t *testing.T) {
	of := func(n int) *codecs.Metadata {
		args := "\x10Ljava/util/List;" + string(binary.BigEndian.AppendUint32([]byte("XI"), uint32(n))) + strings.Repeat("\x02ab", n)
		return requestOf(t, call[:len(call)-1]+args+"H\x06tenant\x04acmeZ")
	}
	m := of(500_000)
	require.Empty(t, m.Malformed)
	tenant, _ := m.Get("tenant")
	require.Equal(t, "acme", string(tenant))
	require.Equal(t, "hessian: more than 524288 values", of(1<<19).Malformed)
}
