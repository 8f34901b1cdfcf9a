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
	"github.com/meltemi-mesh/meltemi/internal/raced"
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
		defines = "H\x01kC\x01Q\x91\x01f\x60\x01x\x04path\x05otherZ"
		ofClass = "H\x01k\x60\x04path\x09forbiddenZ"
	)
	elements := func(n int) string {
		return "X" + "I\x00" + string([]byte{byte(n >> 16), byte(n >> 8), byte(n)}) + strings.Repeat("T", n)
	}
	for name, c := range map[string]struct{ first, then string }{
		"an argument that ends in attachments":  {object + "\x01a" + tail, object + string(rune(len(tail))) + tail},
		"objects of classes that arguments say": {object + "C\x01P\x90\x60" + ofClass, object + "C\x01P\x91\x01a\x60\x01b" + ofClass},
		"classes that arguments define first":   {object + "\x01a" + defines, object + "C\x01P\x90\x60" + defines},
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
	require.Zero(t, raced.AllocsPerRun(t, 100, func() { shared(one, frame) }))
	m.Set("tenant", "mine")
	require.Nil(t, m.Shape())
	require.True(t, shared(one, frame))
	value, _ := m.Get("tenant")
	require.Equal(t, "acme", string(value))
}

// TestShapesAreBounded: clients that never send the same twice neither fill the memory nor
// have it allocated for each request.
func TestShapesAreBounded(t *testing.T) {
	var m codecs.Metadata
	n := 0
	sending := func(d codecs.Decoder) func() {
		return func() {
			n++
			m.Reset()
			body := fmt.Sprintf("\x052.0.2\x01i\x031.0\x08m%07d\x00H\x01k\x08v%07dZ", n%100_000, n)
			_, err := d.Decode(dubbotest.Frame(0xc2, 0, 1, []byte(body)), &m)
			require.NoError(t, err)
		}
	}
	learns := sending(learner(t, new(codecs.Shapes)))
	for range 5000 {
		learns()
	}
	without := raced.AllocsPerRun(t, 10_000, sending(newCodec(t).NewDecoder(codecs.ClientToServer)))
	require.LessOrEqual(t, raced.AllocsPerRun(t, 10_000, learns), without+1)
}

// TestValuesThatChangeAreHoles: what differs in each request, as ids of traces do, does not
// keep the rest from being known; what says which service is called is never passed over.
func TestValuesThatChangeAreHoles(t *testing.T) {
	trace := func(i int) string { return fmt.Sprintf("00-%032d-%016d-01", i, i) }
	request := func(i int, more ...[2]string) []byte {
		all := append([][2]string{{"path", "org.example.Greeter"}, {"traceparent", trace(i)}, {"tenant", "acme"}, {"spanid", fmt.Sprint(i)}}, more...)
		return dubbotest.Request{ID: uint64(i), Argument: "x", Attachments: all}.Bytes()
	}
	d := learner(t, new(codecs.Shapes)).(*decoder)
	var m, want codecs.Metadata
	same := func(frame []byte) {
		t.Helper()
		m.Reset()
		want.Reset()
		_, err := d.Decode(frame, &m)
		require.NoError(t, err)
		_, err = newCodec(t).NewDecoder(codecs.ClientToServer).Decode(frame, &want)
		require.NoError(t, err)
		require.Equal(t, codectest.Describe(&want), codectest.Describe(&m))
	}
	holes := func() (n []int) {
		for _, s := range d.last.Shapes() {
			if s != nil {
				n = append(n, len(s.Holes))
			}
		}
		return n
	}
	for i := range 5 {
		same(request(i))
	}
	require.Equal(t, []int{2, 0, 0, 0}, holes())
	require.Zero(t, raced.AllocsPerRun(t, 100, func() {
		m.Reset()
		_, _ = d.Decode(traced, &m)
		m.Properties()
	}))
	for i := range 200 {
		same(request(i))
	}
	require.Equal(t, []int{2, 0, 0, 0}, holes(), "all of them were known")
	frame := request(500)
	m.Reset()
	_, err := d.Decode(frame, &m)
	require.NoError(t, err)
	m.Detach()
	clear(frame)
	value, _ := m.Get("traceparent")
	require.Equal(t, trace(500), string(value))

	// Values of other kinds, and other attachments, are read as ever.
	for _, other := range []string{"", "ä", strings.Repeat("long", 300)} {
		same(dubbotest.Request{ID: 1, Argument: "x", Attachments: [][2]string{
			{"path", "org.example.Greeter"}, {"traceparent", other}, {"tenant", "acme"}, {"spanid", "1"},
		}}.Bytes())
	}
	for i := range 300 {
		same(dubbotest.Request{ID: 1, Argument: "x", Attachments: [][2]string{
			{"path", fmt.Sprintf("org.example.Greeter%d", i)}, {"traceparent", trace(i)}, {"tenant", "acme"}, {"spanid", "1"},
		}}.Bytes())
		same(dubbotest.Request{ID: 1, Argument: "x", Attachments: [][2]string{
			{"path", "a"}, {"k", trace(i)}, {"k", trace(i + 1)}, {"group", fmt.Sprint(i)}, {"K", trace(i + 2)},
		}}.Bytes())
	}
	for _, s := range d.last.Shapes() {
		require.Nil(t, s.Holes, "paths and groups are no holes")
	}
}

// traced is a request with the id of a trace.
var traced = dubbotest.Request{ID: 1, Argument: "x", Attachments: [][2]string{
	{"path", "org.example.Greeter"}, {"traceparent", "00-" + strings.Repeat("7", 32) + "-0000000000000007-01"}, {"tenant", "acme"}, {"spanid", "99"},
}}.Bytes()
