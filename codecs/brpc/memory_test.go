package brpc

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/brpc/brpctest"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbshape/pbshapetest"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

// traced is a request with all that differs in each.
func traced(i int) brpctest.Request {
	r := brpctest.Request{
		ID: 1 << (i % 63), LogID: int64(i), TraceID: int64(uint64(i) * 0x9e3779b97f4a7c15), SpanID: int64(i) << (i % 50),
		ParentID: 5 * int64(i), RequestID: fmt.Sprint("request ", i), TimeoutMS: int32(3000 - i%5), Attachment: make([]byte, 1+i%300),
		UserFields: [][2]string{{"tenant", "acme"}, {"traceparent", fmt.Sprintf("00-%0*d", 20+i%120, i)}},
	}
	return r
}

// TestShapesAreFound whatever ids, those of traces, times and lengths are.
func TestShapesAreFound(t *testing.T) {
	for name, request := range map[string]func(i int) brpctest.Request{
		"ids":         func(i int) brpctest.Request { return brpctest.Request{ID: 1 << (i % 63), Body: make([]byte, i)} },
		"traces":      traced,
		"of one kind": func(i int) brpctest.Request { return brpctest.Request{ID: 1, LogID: 1 << (i % 63)} },
		"extension fields": func(i int) brpctest.Request {
			return brpctest.Request{ID: uint64(i + 1), ExtFields: [][2]string{{"a", "b"}}, Zeros: true, LogID: int64(i + 1)}
		},
		"stay as they are": func(i int) brpctest.Request {
			return brpctest.Request{ID: 1, Service: "s", UserFields: [][2]string{{"tenant", []string{"a", "b", "c"}[i%3]}}}
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
	varint := func(v uint64) string { return string(binary.AppendUvarint(nil, v)) }
	field := func(n int, s string) string { return string(brpctest.Bytes(nil, n, s)) }
	number := func(n int, v uint64) string { return string(brpctest.Varint(nil, n, v)) }
	names := field(1, "s") + field(2, "m")
	entry := func(k, v string) string { return field(9, field(1, k)+field(2, v)) }
	usual := func(i int) string {
		return field(1, names+number(3, uint64(i))+field(7, fmt.Sprint(i))) + number(4, uint64(i)) + number(5, uint64(i)) + entry("k", fmt.Sprint("v", i))
	}
	inside := names + number(3, 300) + field(7, "299")
	rest := number(4, 300) + number(5, 300) + entry("k", "v300")
	for name, meta := range map[string]string{
		"longer than it says":              "\x0a" + varint(uint64(len(inside)-1)) + inside + rest,
		"shorter than it says":             "\x0a" + varint(uint64(len(inside)+1)) + inside + rest,
		"length of more bytes":             "\x0a" + string([]byte{byte(len(inside)) | 0x80, 0}) + inside + rest,
		"length of too many":               "\x0a" + string([]byte{byte(len(inside)) | 0x80, 0x80, 0x80, 0x80, 0x80, 0}) + inside + rest,
		"id of more bytes":                 field(1, inside) + "\x20\x80\x80\x00" + number(5, 300) + entry("k", "v300"),
		"id of 64 bits":                    field(1, inside) + number(4, 1<<64-1) + number(5, 300) + entry("k", "v300"),
		"id of more than 64 bits":          field(1, inside) + "\x20" + strings.Repeat("\xff", 9) + "\x02" + number(5, 300) + entry("k", "v300"),
		"id that is cut off":               field(1, inside) + "\x20\x80",
		"id twice":                         field(1, inside) + number(4, 7) + rest,
		"log id twice":                     field(1, names+number(3, 1)+number(3, 300)+field(7, "299")) + rest,
		"size of an attachment of 32 bits": field(1, inside) + number(4, 300) + number(5, 1<<40|5) + entry("k", "v300"),
		"entry longer than it says":        field(1, inside) + number(4, 300) + number(5, 300) + "\x4a\x05" + field(1, "k") + field(2, "v300"),
		"entry shorter than it says":       field(1, inside) + number(4, 300) + number(5, 300) + "\x4a\x0a" + field(1, "k") + field(2, "v300"),
		"value that goes on":               field(1, inside) + number(4, 300) + number(5, 300) + "\x4a\x09" + field(1, "k") + "\x12\x7fv300",
		"value of more":                    field(1, inside) + number(4, 300) + number(5, 300) + entry("k", strings.Repeat("v", 2000)),
		"no value":                         field(1, inside) + number(4, 300) + number(5, 300) + entry("k", ""),
		"value of another key":             field(1, inside) + number(4, 300) + number(5, 300) + entry("l", "v300"),
		"key twice":                        field(1, inside) + rest + entry("k", "other"),
		"extension field":                  field(1, names+number(3, 300)+field(7, field(1, "k")+field(2, "v300"))) + rest,
		"extension field that differs":     field(1, names+number(3, 300)+field(7, field(1, "k")+field(2, "v"))) + rest,
		"more behind it":                   field(1, inside) + rest + number(99, 1),
		"less":                             field(1, inside) + number(4, 300) + number(5, 300),
		"stream":                           field(1, inside) + rest + field(8, number(1, 7)),
		"chunk":                            field(1, inside) + rest + field(6, number(2, 7)),
		"request twice":                    field(1, inside) + field(1, inside) + rest,
		"other order":                      rest + field(1, inside),
		"nothing":                          "",
	} {
		t.Run(name, func(t *testing.T) {
			tw := pbshapetest.New(t, newCodec(t))
			for i := range 40 {
				tw.Same(brpctest.Frame("PRPC", []byte(usual(i)), make([]byte, i)))
			}
			frame := brpctest.Frame("PRPC", []byte(meta), make([]byte, 8))
			for range 80 { // also where it is learnt itself
				tw.Same(frame)
				tw.Same(brpctest.Frame("PRPC", []byte(usual(77)), nil))
			}
			require.True(t, tw.Same(brpctest.Frame("PRPC", []byte(usual(78)), nil)))
		})
	}
}

// TestWhatIsNoHoleIsNotLearntAsOne, though others of its shape have one there.
func TestWhatIsNoHoleIsNotLearntAsOne(t *testing.T) {
	other := string(brpctest.Bytes(brpctest.Bytes(nil, 1, "k"), 2, "v"))
	for name, request := range map[string]func(i int) brpctest.Request{
		"empty": func(i int) brpctest.Request {
			return brpctest.Request{ID: 1, UserFields: [][2]string{{"k", strings.Repeat("v", (i+1)%5)}}}
		},
		"extension field": func(i int) brpctest.Request {
			return brpctest.Request{ID: 1, RequestID: []string{other, "a", "b", "c", "d"}[(i+1)%5]}
		},
	} {
		t.Run(name, func(t *testing.T) {
			tw := pbshapetest.New(t, newCodec(t))
			for i := range 300 { // the fifth is the first that is compared with others
				tw.Same(request(i).Bytes())
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
	frames := func(request func(i int) brpctest.Request) func(i int) []byte {
		var all [5000][]byte
		for i := range all {
			all[i] = request(i).Bytes()
		}
		return func(i int) []byte { return all[i%len(all)] }
	}
	return map[string]func(i int) []byte{
		"methods": frames(func(i int) brpctest.Request {
			return brpctest.Request{ID: uint64(i), Service: "org.bench.Echo", Method: fmt.Sprint("m", i), LogID: 4711, Body: make([]byte, 128)}
		}),
		"fields": frames(func(i int) brpctest.Request {
			return brpctest.Request{
				ID: uint64(i), Service: "org.bench.Echo", Method: "echo", LogID: 4711, Body: make([]byte, 128),
				UserFields: [][2]string{{fmt.Sprint("k", i), "v"}},
			}
		}),
	}
}

func BenchmarkDecodeKnown(b *testing.B) {
	frames := map[string]func(i int) []byte{}
	for name, frame := range manyCallers() {
		frames[name] = frame
	}
	one, other := typicalRequest(), brpctest.Request{ID: 7, Method: "Other"}.Bytes()
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
