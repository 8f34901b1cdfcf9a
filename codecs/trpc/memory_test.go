package trpc

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbshape/pbshapetest"
	"github.com/meltemi-mesh/meltemi/codecs/trpc/trpctest"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

// traced is a request with all that differs in each.
func traced(i int) trpctest.Request {
	return trpctest.Request{
		ID: 1 << (i % 32), BareID: i%3 == 0, TimeoutMS: uint32(1 + i%5000), MessageType: 1, ContentType: 2, Attachment: make([]byte, 1+i%300),
		TransInfo: [][2]string{{"tenant", "acme"}, {"traceparent", fmt.Sprintf("00-%0*d", 20+i%120, i)}, {"func", fmt.Sprint(i)}},
	}
}

// TestShapesAreFound whatever ids, those of traces, times and lengths are.
func TestShapesAreFound(t *testing.T) {
	for name, request := range map[string]func(i int) trpctest.Request{
		"ids":    func(i int) trpctest.Request { return trpctest.Request{ID: 1 << (i % 32), Body: make([]byte, i)} },
		"traces": traced,
		"oneway": func(i int) trpctest.Request { return trpctest.Request{ID: uint32(i + 1), Oneway: true} },
		"times":  func(i int) trpctest.Request { return trpctest.Request{ID: 1, TimeoutMS: 1 << (i % 32)} },
		"stay as they are": func(i int) trpctest.Request {
			return trpctest.Request{ID: 1, TransInfo: [][2]string{{"tenant", []string{"a", "b", "c"}[i%3]}}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			tw := pbshapetest.New(t, newCodec(t))
			for i := range 300 {
				shared := tw.Same(request(i).Bytes())
				require.True(t, shared || i < 30, i)
				if i%7 == 0 {
					tw.Connect()
				}
			}
			// It needs no memory, even if somebody asks for what differs.
			var m codecs.Metadata
			frame := request(299).Bytes()
			require.Zero(t, raced.AllocsPerRun(t, 100, func() {
				m.Reset()
				_, _ = tw.Learner().Decode(frame, &m)
				m.Properties()
			}))
		})
	}
}

// TestWhatLooksLikeAShape and is none is read as ever: lengths that are not those of what
// is in them, values that end elsewhere, fields that are there twice.
func TestWhatLooksLikeAShape(t *testing.T) {
	field := func(n int, s string) string { return string(trpctest.Bytes(nil, n, s)) }
	number := func(n int, v uint64) string { return string(trpctest.Varint(nil, n, v)) }
	const body = 100
	names := field(5, "a") + field(6, "b") + field(7, "/c/d")
	entry := func(k, v string) string { return field(9, field(1, k)+field(2, v)) }
	usual := func(i int) string {
		return number(3, uint64(i)) + number(4, uint64(1000+i)) + names + entry("k", fmt.Sprint("v", i)) + number(12, uint64(i))
	}
	before, behind := number(3, 300)+number(4, 300), number(12, 5)
	for name, header := range map[string]string{
		"id of more bytes":           "\x18\x80\x80\x00" + number(4, 300) + names + entry("k", "v300") + behind,
		"id of 64 bits":              number(3, 1<<63|7) + number(4, 300) + names + entry("k", "v300") + behind,
		"id of more than 64 bits":    "\x18" + strings.Repeat("\xff", 9) + "\x02" + number(4, 300) + names + entry("k", "v300") + behind,
		"id that is cut off":         "\x18\x80",
		"id of 0":                    number(3, 0) + number(4, 300) + names + entry("k", "v300") + behind,
		"id twice":                   number(3, 7) + before + names + entry("k", "v300") + behind,
		"no timeout":                 number(3, 300) + number(4, 0) + names + entry("k", "v300") + behind,
		"no timeout of 32 bits":      number(3, 300) + number(4, 1<<32) + names + entry("k", "v300") + behind,
		"timeout of 64 bits":         number(3, 300) + number(4, 1<<40|5) + names + entry("k", "v300") + behind,
		"timeout twice":              number(3, 300) + number(4, 5) + number(4, 300) + names + entry("k", "v300") + behind,
		"attachment of all":          before + names + entry("k", "v300") + number(12, body),
		"attachment of more":         before + names + entry("k", "v300") + number(12, body+1),
		"attachment of 64 bits":      before + names + entry("k", "v300") + number(12, 1<<40|5),
		"attachment twice":           before + names + entry("k", "v300") + number(12, body+1) + behind,
		"entry longer than it says":  before + names + "\x4a\x05" + field(1, "k") + field(2, "v300") + behind,
		"entry shorter than it says": before + names + "\x4a\x0a" + field(1, "k") + field(2, "v300") + behind,
		"entry's length of 6 bytes":  before + names + "\x4a\x89\x80\x80\x80\x80\x00" + field(1, "k") + field(2, "v300") + behind,
		"value's length of 6 bytes":  before + names + field(9, field(1, "k")+"\x12\x84\x80\x80\x80\x80\x00v300") + behind,
		"value's length of 2 bytes":  before + names + field(9, field(1, "k")+"\x12\x84\x00v300") + behind,
		"value that goes on":         before + names + "\x4a\x09" + field(1, "k") + "\x12\x7fv300" + behind,
		"value of more":              before + names + entry("k", strings.Repeat("v", 2000)) + behind,
		"no value":                   before + names + entry("k", "") + behind,
		"value of another key":       before + names + entry("l", "v300") + behind,
		"key twice":                  before + names + entry("k", "v300") + entry("k", "other") + behind,
		"key that is not UTF-8":      before + names + entry("\xff", "v300") + behind,
		"more behind it":             before + names + entry("k", "v300") + behind + number(99, 1),
		"less":                       before + names + entry("k", "v300"),
		"oneway":                     number(2, 1) + before + names + entry("k", "v300") + behind,
		"other order":                names + entry("k", "v300") + behind + before,
		"nothing":                    "",
	} {
		t.Run(name, func(t *testing.T) {
			tw := pbshapetest.New(t, newCodec(t))
			same := func(header string) bool {
				bare := tw.Same(trpctest.Frame(0, []byte(header), make([]byte, body)))
				return tw.Same(trpctest.Frame(7, []byte(header), make([]byte, body))) && bare
			}
			for i := range 40 {
				same(usual(i))
			}
			for range 80 { // also where it is learnt itself
				same(header)
				same(usual(77))
			}
			require.True(t, same(usual(78)))
		})
	}
}

// TestWhatIsNoHoleIsNotLearntAsOne, though others of its shape have one there.
func TestWhatIsNoHoleIsNotLearntAsOne(t *testing.T) {
	for name, request := range map[string]func(i int) trpctest.Request{
		"empty": func(i int) trpctest.Request {
			return trpctest.Request{ID: 1, TransInfo: [][2]string{{"k", strings.Repeat("v", (i+1)%5)}}}
		},
		"no timeout": func(i int) trpctest.Request {
			return trpctest.Request{ID: 1, TimeoutMS: []uint32{1 << 31, 1, 2, 3, 4}[(i+1)%5]}
		},
	} {
		t.Run(name, func(t *testing.T) {
			tw := pbshapetest.New(t, newCodec(t))
			for i := range 300 { // the fifth is the first that is compared with others
				frame := request(i).Bytes()
				if at := bytes.Index(frame, []byte("\x80\x80\x80\x80\x08")); at > 0 {
					frame[at+4] = 0
				}
				tw.Same(frame)
			}
		})
	}
}

// TestShapesOfMutants: what fits a shape or does not, by chance.
func TestShapesOfMutants(t *testing.T) {
	pbshapetest.Mutants(t, newCodec(t), func(i int) []byte { return traced(i).Bytes() })
}

// TestShapesAreBounded: clients that never send the same twice neither fill the memory nor
// have it allocated for each request.
func TestShapesAreBounded(t *testing.T) {
	for name, frame := range manyCallers() {
		t.Run(name, func(t *testing.T) { pbshapetest.Bounded(t, newCodec(t), frame) })
	}
}

// manyCallers are requests of 5,000 callers that differ in what is called, or in a field
// that is none of the learnt.
func manyCallers() map[string]func(i int) []byte {
	frames := func(request func(i int) trpctest.Request) func(i int) []byte {
		var all [5000][]byte
		for i := range all {
			all[i] = request(i).Bytes()
		}
		return func(i int) []byte { return all[i%len(all)] }
	}
	return map[string]func(i int) []byte{
		"methods": frames(func(i int) trpctest.Request {
			return trpctest.Request{ID: uint32(i), Func: fmt.Sprint("/trpc.bench.echo.Echo/m", i), Body: make([]byte, 128)}
		}),
		"fields": frames(func(i int) trpctest.Request {
			return trpctest.Request{ID: uint32(i), Body: make([]byte, 128), TransInfo: [][2]string{{fmt.Sprint("k", i), "v"}}}
		}),
	}
}

func BenchmarkDecodeKnown(b *testing.B) {
	frames := map[string]func(i int) []byte{}
	for name, frame := range manyCallers() {
		frames[name] = frame
	}
	one, other := typicalRequest(), trpctest.Request{ID: 7, Func: "/a/Other"}.Bytes()
	frames["one"] = func(int) []byte { return one }
	frames["two in turn"] = func(i int) []byte {
		if i%2 == 0 {
			return one
		}
		return other
	}
	for name, frame := range frames {
		for _, learns := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/%t", name, learns), func(b *testing.B) {
				d := newCodec(b).NewDecoder(codecs.ClientToServer)
				if learns {
					d = pbshapetest.New(b, newCodec(b)).Learner()
				}
				b.ReportAllocs()
				var m codecs.Metadata
				for i := range b.N {
					m.Reset()
					_, _ = d.Decode(frame(i), &m)
				}
			})
		}
	}
}

func FuzzShapes(f *testing.F) {
	pbshapetest.Fuzz(f, newCodec(f), func(i int) []byte { return traced(i).Bytes() })
}
