package thrift

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/codectest"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

// learner returns a decoder of requests that remembers.
func learner(t testing.TB, s *codecs.Shapes) *decoder {
	d := newCodec(t).NewDecoder(c2s).(*decoder)
	d.Learn(s)
	return d
}

// described is what a decoder makes of a frame.
func described(t testing.TB, d codecs.Decoder, frame []byte) (text string, m *codecs.Metadata) {
	t.Helper()
	m = new(codecs.Metadata)
	n, err := d.Decode(frame, m)
	require.NoError(t, err)
	require.Len(t, frame, n)
	return fmt.Sprint(codectest.Describe(m), m.Scratch, string(m.ReplyInfo)), m
}

// traced16 is a header of Kitex's with the id of a trace, and another one.
func traced16(i int, more ...string) string {
	return "\x00\x00" + numbers16("2", fmt.Sprintf("log-%08d", i), "6", "shop") +
		strings16(append([]string{"tenant", "acme", "traceparent", strings.Repeat("0", i%7) + fmt.Sprint(i)}, more...)...)
}

// calls are one call in all transports and protocols: with an id, a method, an argument and a
// tenant.
var calls = map[string]func(id int, method, argument, tenant string) []byte{}

func init() {
	protocols := map[string]func(id int, method, argument string) string{
		"binary": func(id int, method, argument string) string {
			return call(typeCall, method, uint32(id), "\x0b\x00\x01\x00\x00\x00"+string(rune(len(argument)))+argument+"\x00")
		},
		"binary, lax": func(id int, method, argument string) string {
			return callLax(typeCall, method, uint32(id), "\x0b\x00\x01\x00\x00\x00"+string(rune(len(argument)))+argument+"\x00")
		},
		"compact": func(id int, method, argument string) string {
			return callCompact(typeCall, method, uint64(id), "\x18"+string(rune(len(argument)))+argument+"\x00")
		},
	}
	transports := map[string]func(id int, message, tenant string) string{
		"unframed": func(_ int, message, _ string) string { return message },
		"framed":   func(_ int, message, _ string) string { return inFrame(message) },
		"header": func(id int, message, tenant string) string {
			return inHeader(theader, uint32(id), "\x00\x00\x01\x01\x06tenant"+string(rune(len(tenant)))+tenant, message)
		},
		"ttheader": func(id int, message, tenant string) string {
			return inHeader(kitexHeader, uint32(id), "\x00\x00"+strings16("tenant", tenant), message)
		},
		"ttheader, framed": func(id int, message, tenant string) string {
			return inHeader(kitexHeader, uint32(id), "\x00\x00"+strings16("tenant", tenant), inFrame(message))
		},
	}
	for transport, of := range transports {
		for protocol, message := range protocols {
			calls[transport+", "+protocol] = func(id int, method, argument, tenant string) []byte {
				return []byte(of(id, message(id, method, argument), tenant))
			}
		}
	}
}

// TestShapesAreFound: a call with other arguments and another id shares the shape of the one
// before, on its connection and on others, and no memory is needed for it.
func TestShapesAreFound(t *testing.T) {
	for name, frame := range calls {
		t.Run(name, func(t *testing.T) {
			shapes := new(codecs.Shapes)
			shared := func(d *decoder, frame []byte) bool {
				t.Helper()
				want, _ := described(t, newCodec(t).NewDecoder(c2s), frame)
				got, m := described(t, d, frame)
				require.Equal(t, want, got)
				return m.Shape() != nil
			}
			one := learner(t, shapes)
			require.False(t, shared(one, frame(1, "Svc:a", "x", "acme")))
			require.True(t, shared(one, frame(1<<20, "Svc:a", strings.Repeat("yz", 60), "acme")))
			require.False(t, shared(one, frame(3, "b", "x", "acme")))
			hasHeader := strings.Contains(name, "header")
			require.Equal(t, !hasHeader, shared(one, frame(4, "Svc:a", "x", "other")))
			for range 2 { // on another connection, in turn
				two := learner(t, shapes)
				for _, tenant := range []string{"acme", "other"} {
					require.True(t, shared(two, frame(5, "Svc:a", "z", tenant)))
				}
				require.True(t, shared(two, frame(6, "b", "z", "acme")))
			}
			var m codecs.Metadata
			b := frame(7, "b", "x", "acme")
			require.Zero(t, raced.AllocsPerRun(t, 100, func() {
				m.Reset()
				_, _ = one.Decode(b, &m)
			}))
			require.NotNil(t, m.Shape())
		})
	}
}

// TestWhatIsNotRemembered: frames that begin or end alike are not what the ones before were.
func TestWhatIsNotRemembered(t *testing.T) {
	short := "\x0b\x00\x01\x00\x00\x00\x01x\x00"
	kitex := func(head, message string) string { return inHeader(kitexHeader, 5, head, message) }
	parts := "\x00\x00" + strings16("tenant", "acme", "isn", "Svc")
	for name, c := range map[string]struct{ first, then string }{
		"arguments that end early":     {inFrame(call(typeCall, "m", 5, short)), inFrame(call(typeCall, "m", 5, short[:7]+"\x00"))},
		"bytes behind the arguments":   {inFrame(call(typeCall, "m", 5, short)), inFrame(call(typeCall, "m", 5, short+"\x00"))},
		"a longer name":                {inFrame(call(typeCall, "m", 5, short)), inFrame(call(typeCall, "mm", 5, short))},
		"a oneway":                     {inFrame(call(typeCall, "m", 5, short)), inFrame(call(typeOneway, "m", 5, short))},
		"a oneway, compact":            {inFrame(callCompact(typeCall, "m", 5, "\x00")), inFrame(callCompact(typeOneway, "m", 500, "\x00"))},
		"another protocol":             {inFrame(call(typeCall, "m", 5, short)), inFrame(callLax(typeCall, "m", 5, short))},
		"the frame within":             {kitex(parts, call(typeCall, "m", 5, short)), kitex(parts, inFrame(call(typeCall, "m", 5, short)))},
		"another service":              {kitex(parts, call(typeCall, "m", 5, short)), kitex("\x00\x00"+strings16("tenant", "acme", "isn", "Bad"), call(typeCall, "m", 5, short))},
		"more behind":                  {kitex(parts, call(typeCall, "m", 5, short)), kitex(parts+strings16("tenant", "evil"), call(typeCall, "m", 5, short))},
		"a mark behind the padding":    {kitex(parts, call(typeCall, "m", 5, short)), kitex(parts+strings.Repeat("\x00", 5)+strings16(keyRetried, "1"), call(typeCall, "m", 5, short))},
		"a retry":                      {kitex("\x00\x00"+strings16(keyRetried, ""), call(typeCall, "m", 5, short)), kitex("\x00\x00"+strings16(keyRetried, "1"), call(typeCall, "m", 5, short))},
		"a retry, and then none":       {kitex("\x00\x00"+strings16(keyRetried, "1"), call(typeCall, "m", 5, short)), kitex("\x00\x00"+strings16(keyRetried, "2"), call(typeCall, "m", 5, short))},
		"a client that shares":         {kitex(parts, call(typeCall, "m", 5, short)), kitex(parts, call(typeCall, "m", 5, short))[:7] + "\x01" + kitex(parts, call(typeCall, "m", 5, short))[8:]},
		"another protocol of a header": {inHeader(theader, 5, "\x00\x00"+"\x01\x01\x01k\x01v", call(typeCall, "m", 5, short)), inHeader(theader, 5, "\x02\x00"+"\x01\x01\x01k\x01v", call(typeCall, "m", 5, short))},
		"much padding":                 {kitex(parts, call(typeCall, "m", 5, short)), kitex(parts+strings.Repeat("\x00", 100), call(typeCall, "m", 5, short))},
		"a part of an unknown kind":    {kitex(parts, call(typeCall, "m", 5, short)), kitex(parts+"\x7f", call(typeCall, "m", 5, short))},
	} {
		t.Run(name, func(t *testing.T) {
			for _, frames := range [][]string{{c.first, c.then}, {c.then, c.first}} {
				shapes := new(codecs.Shapes)
				one := learner(t, shapes)
				for range 140 { // more than two lessons
					for _, frame := range frames {
						want, _ := described(t, newCodec(t).NewDecoder(c2s), []byte(frame))
						for _, d := range []*decoder{one, learner(t, shapes)} {
							got, _ := described(t, d, []byte(frame))
							require.Equal(t, want, got)
						}
					}
				}
			}
		})
	}
}

// TestShapesAreBounded: clients that never send the same twice neither fill the memory nor
// have it allocated for each call.
func TestShapesAreBounded(t *testing.T) {
	var m codecs.Metadata
	n := 0
	sending := func(d codecs.Decoder) func() {
		return func() {
			n++
			m.Reset()
			frame := inHeader(kitexHeader, 5, "\x00\x00"+strings16("k", fmt.Sprintf("%08d", n)), call(typeCall, fmt.Sprintf("m%07d", n%100_000), 5, "\x00"))
			_, err := d.Decode([]byte(frame), &m)
			require.NoError(t, err)
		}
	}
	learns := sending(learner(t, new(codecs.Shapes)))
	for range 5000 {
		learns()
	}
	without := raced.AllocsPerRun(t, 5000, sending(newCodec(t).NewDecoder(c2s)))
	require.LessOrEqual(t, raced.AllocsPerRun(t, 5000, learns), without+1)
}

// TestValuesThatChangeAreHoles: what differs in each call, as ids of traces do, does not keep
// the rest from being known; what says which service is called is never passed over.
func TestValuesThatChangeAreHoles(t *testing.T) {
	for name, head := range map[string]struct {
		magic string
		info  func(i int) string
	}{
		"ttheader": {kitexHeader, func(i int) string { return traced16(i) }},
		"header": {theader, func(i int) string {
			id, log := strings.Repeat("0", i%7)+fmt.Sprint(i), fmt.Sprint(i)
			return "\x00\x00\x01\x03\x03log" + string(rune(len(log))) + log + "\x06tenant\x04acme\x05trace" + string(rune(len(id))) + id
		}},
	} {
		t.Run(name, func(t *testing.T) {
			d := learner(t, new(codecs.Shapes))
			same := func(i int, info string) {
				t.Helper()
				b := []byte(inHeader(head.magic, uint32(i), info, call(typeCall, "m", uint32(i), "\x00")))
				want, _ := described(t, newCodec(t).NewDecoder(c2s), b)
				got, _ := described(t, d, b)
				require.Equal(t, want, got)
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
				same(i, head.info(i))
			}
			require.Equal(t, []int{2, 0, 0, 0}, holes())
			for i := range 200 {
				same(i, head.info(i))
			}
			require.Equal(t, []int{2, 0, 0, 0}, holes(), "all of them were known")
			var m codecs.Metadata
			frame := []byte(inHeader(head.magic, 500, head.info(500), call(typeCall, "m", 500, "\x00")))
			require.Zero(t, raced.AllocsPerRun(t, 100, func() {
				m.Reset()
				_, _ = d.Decode(frame, &m)
			}))
			want := codectest.Describe(&m)
			m.Detach()
			clear(frame)
			require.Equal(t, want, codectest.Describe(&m), "what is in holes is the message's own")
		})
	}
}

// rotated is a header in one of the orders of a map of Kitex's, with the id of a trace.
func rotated(i int) string {
	kv := []string{"2", fmt.Sprintf("log-%08d", i), "3", "web", "6", "shop", "9", "hello", "12", "1000", "22", "1"}
	names := []string{"tenant", "acme", "user", "7", "zone", "a"}
	k, n := i%6*2, i/6%3*2
	return "\x00\x00" + strings16(slices.Concat(names[n:], names[:n])...) + numbers16(slices.Concat(kv[k:], kv[:k])...)
}

// TestEachOrderHasItsShapes: those that a small map of Kitex's has.
func TestEachOrderHasItsShapes(t *testing.T) {
	orders := map[uint32]bool{}
	d, two := learner(t, new(codecs.Shapes)), learner(t, new(codecs.Shapes))
	for i := range 1000 {
		frame := []byte(inHeader(kitexHeader, 5, rotated(i), call(typeCall, "m", 5, "\x00")))
		orders[orderOf(&infoReader{b: frame, at: headerFixed + 2, kitex: true})] = true
		want, _ := described(t, newCodec(t).NewDecoder(c2s), frame)
		got, _ := described(t, d, frame)
		require.Equal(t, want, got)
		if i%18 > 1 {
			continue
		}
		got, m := described(t, two, frame)
		require.Equal(t, want, got)
		clear(frame)
		tenant, _ := m.Get("tenant")
		require.Equal(t, i > 4*18+1, string(tenant) == "acme", "request %d, whose tenant is that of a shape", i)
	}
	require.Len(t, orders, 18)
}

// TestWhatRulesTheCallIsNoHole: services and marks of retries are compared.
func TestWhatRulesTheCallIsNoHole(t *testing.T) {
	for name, info := range map[string]func(v string) string{
		"service":            func(v string) string { return strings16("isn", v) },
		"registered service": func(v string) string { return numbers16("6", v) },
		"retry":              func(v string) string { return strings16(keyRetried, v) },
	} {
		t.Run(name, func(t *testing.T) {
			d := learner(t, new(codecs.Shapes))
			for i := range 300 {
				frame := []byte(inHeader(kitexHeader, 5, "\x00\x00"+info(fmt.Sprintf("%03d", i))+strings16("k", fmt.Sprint(i)), call(typeCall, "m", 5, "\x00")))
				want, _ := described(t, newCodec(t).NewDecoder(c2s), frame)
				got, _ := described(t, d, frame)
				require.Equal(t, want, got)
			}
			for _, s := range d.last.Shapes() {
				require.Nil(t, s.Holes)
			}
		})
	}
}

// BenchmarkDecodeOfMany is of 5,000 callers, none of whom is remembered for long.
func BenchmarkDecodeOfMany(b *testing.B) {
	for name, frame := range map[string]func(i int) string{
		"framed": func(i int) string { return inFrame(call(typeCall, fmt.Sprintf("Svc:m%d", i), 5, "\x00")) },
		"ttheader": func(i int) string {
			return inHeader(kitexHeader, 5, "\x00\x00"+numbers16("3", "web", "6", "shop", "9", "hello")+
				strings16("tenant", fmt.Sprint(i)), call(typeCall, "hello", 5, "\x00"))
		},
		"ttheader in any order": func(i int) string { // as Go's maps have it, which Kitex writes
			return inHeader(kitexHeader, 5, rotated(i), call(typeCall, "hello", 5, "\x00"))
		},
	} {
		frames := make([][]byte, 5000)
		for i := range frames {
			frames[i] = []byte(frame(i))
		}
		for _, learns := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/%t", name, learns), func(b *testing.B) {
				d := newCodec(b).NewDecoder(c2s)
				if learns {
					d = learner(b, new(codecs.Shapes))
				}
				var m codecs.Metadata
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					m.Reset()
					if _, err := d.Decode(frames[i%len(frames)], &m); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
