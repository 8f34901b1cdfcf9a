package dubbo

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/codectest"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/codecs/hessian"
)

// learner returns a decoder of requests that remembers.
func learner(t testing.TB, s *codecs.Shapes) codecs.Decoder {
	d := newCodec(t).NewDecoder(codecs.ClientToServer)
	d.(codecs.Learner).Learn(s)
	return d
}

func decoded(t testing.TB, d codecs.Decoder, body string) (text string, m *codecs.Metadata) {
	m = new(codecs.Metadata)
	frame := dubbotest.Frame(0xc2, 0, 1, []byte(body))
	n, err := d.Decode(frame, m)
	require.NoError(t, err)
	require.Len(t, frame, n)
	return fmt.Sprint(codectest.Describe(m), m.Scratch), m
}

// TestWhatArgumentsSayIsNotRemembered: requests that begin and end with the same bytes, and
// differ in their arguments alone, are not what the ones before them were.
func TestWhatArgumentsSayIsNotRemembered(t *testing.T) {
	const (
		object  = "\x052.0.2\x01i\x031.0\x01m\x12Ljava/lang/Object;"
		counted = "\x052.8.4\x01i\x031.0\x01m\x91\x12Ljava/lang/Object;"
		tail    = "H\x01k\x01v\x06tenant\x04acmeZ"
		counts  = "H\x01k\x20\x01v\x20Z" // binary values, which are skipped
		ofClass = "H\x01k\x60\x04path\x09forbiddenZ"
	)
	elements := func(n int) string {
		return "X" + "I\x00" + string([]byte{byte(n >> 16), byte(n >> 8), byte(n)}) + strings.Repeat("T", n)
	}
	for name, c := range map[string]struct{ first, then string }{
		"an argument that ends in attachments":  {object + "\x01a" + tail, object + string(rune(len(tail))) + tail},
		"objects of classes that arguments say": {object + "C\x01P\x90\x60" + ofClass, object + "C\x01P\x91\x01a\x60\x01b" + ofClass},
		"a map among counted arguments":         {counted + "\x01a" + tail, counted + "H\x01a\x01bZ" + tail},
		"values up to the bound": {
			object + elements(1000) + counts,
			object + elements(hessian.MaxValues-2) + counts,
		},
		"arguments that end early": {object + "\x01a" + tail, object + "\x02a" + tail},
	} {
		t.Run(name, func(t *testing.T) {
			shapes := new(codecs.Shapes)
			for range 2 {
				d := learner(t, shapes)
				for range 3 {
					for _, body := range []string{c.first, c.then} {
						want, _ := decoded(t, newCodec(t).NewDecoder(codecs.ClientToServer), body)
						got, _ := decoded(t, d, body)
						require.Equal(t, want, got)
					}
				}
			}
		})
	}
}

// TestShapesAreFound: a request with other arguments and another id shares the shape of the
// one before, on its connection and on others, and no memory is needed for it.
func TestShapesAreFound(t *testing.T) {
	request := func(method, argument, tenant string) []byte {
		return dubbotest.Request{ID: 7, Method: method, Argument: argument, Attachments: [][2]string{{"tenant", tenant}}}.Bytes()
	}
	shapes := new(codecs.Shapes)
	var m codecs.Metadata
	shared := func(d codecs.Decoder, frame []byte) bool {
		m.Reset()
		_, err := d.Decode(frame, &m)
		require.NoError(t, err)
		return m.Shape() != nil
	}
	one := learner(t, shapes)
	require.False(t, shared(one, request("a", "x", "acme")))
	require.True(t, shared(one, request("a", strings.Repeat("yz", 1000), "acme")))
	require.False(t, shared(one, request("b", "x", "acme")))
	require.False(t, shared(one, request("a", "x", "other")))
	for range 2 { // on another connection, in turn
		two := learner(t, shapes)
		for _, tenant := range []string{"acme", "other"} {
			require.True(t, shared(two, request("a", "z", tenant)))
			value, _ := m.Get("tenant")
			require.Equal(t, tenant, string(value))
		}
		require.True(t, shared(two, request("b", "z", "acme")))
		require.Equal(t, "b", string(m.Method()))
	}
	frame := request("a", "x", "acme")
	require.Zero(t, testing.AllocsPerRun(100, func() { shared(one, frame) }))
	m.Set("tenant", "mine")
	require.Nil(t, m.Shape())
	require.True(t, shared(one, frame))
	value, _ := m.Get("tenant")
	require.Equal(t, "acme", string(value))
}

// TestShapesAreBounded: clients that never send the same twice neither fill the memory nor
// have it allocated for each request.
func TestShapesAreBounded(t *testing.T) {
	shapes := new(codecs.Shapes)
	d := learner(t, shapes)
	var m codecs.Metadata
	n := 0
	send := func() {
		n++
		m.Reset()
		body := fmt.Sprintf("\x052.0.2\x01i\x031.0\x08m%07d\x00H\x01k\x08v%07dZ", n%100_000, n)
		_, err := d.Decode(dubbotest.Frame(0xc2, 0, 1, []byte(body)), &m)
		require.NoError(t, err)
	}
	without := testing.AllocsPerRun(1000, func() {
		_ = dubbotest.Frame(0xc2, 0, 1, fmt.Appendf(nil, "\x052.0.2\x01i\x031.0\x08m%07d\x00H\x01k\x08v%07dZ", n%100_000, n))
	})
	for range 5000 {
		send()
	}
	require.Less(t, testing.AllocsPerRun(10_000, send), without+4)
}
