package thrift

import (
	"encoding/binary"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// writer writes structs of random fields.
type writer struct {
	*rand.Rand
	compact bool
	b       []byte
}

func (w *writer) fields(depth int) {
	for range w.IntN(6) {
		t := w.kind(depth)
		switch {
		case !w.compact:
			w.b = append(w.b, t, 0, 1)
		case w.IntN(4) == 0:
			w.b = binary.AppendUvarint(append(w.b, t), uint64(w.IntN(1<<16)))
		default:
			w.b = append(w.b, 1<<4|t)
		}
		if !w.compact || t > cmpFalse {
			w.value(t, depth)
		}
	}
	w.b = append(w.b, 0)
}

func (w *writer) kind(depth int) uint8 {
	kinds := []uint8{binBool, binByte, binDouble, binI16, binI32, binI64, binUUID, binString, binStruct, binMap, binSet, binList}
	if w.compact {
		kinds = []uint8{cmpTrue, cmpFalse, cmpByte, cmpI16, cmpI32, cmpI64, cmpDouble, cmpUUID, cmpBinary, cmpStruct, cmpMap, cmpSet, cmpList}
	}
	if depth == 5 {
		kinds = kinds[:8]
	}
	return kinds[w.IntN(len(kinds))]
}

func (w *writer) size(n int) {
	if w.compact {
		w.b = binary.AppendUvarint(w.b, uint64(n))
	} else {
		w.b = binary.BigEndian.AppendUint32(w.b, uint32(n))
	}
}

func (w *writer) random(n int) {
	for range n {
		w.b = append(w.b, byte(w.Uint32()))
	}
}

func (w *writer) value(t uint8, depth int) {
	sizes, varint := &binSizes, false
	if w.compact {
		sizes, varint = &cmpSizes, isVarint(t)
	}
	n := w.IntN(20)
	switch {
	case len(w.b) > 1<<12:
		n = w.IntN(2)
	case w.IntN(10) == 0:
		n = 60 + w.IntN(40)
	}
	switch {
	case sizes[t] > 0:
		w.random(int(sizes[t]))
	case varint:
		w.b = binary.AppendUvarint(w.b, w.Uint64()>>w.IntN(64))
	case t == binStruct: // of both
		w.fields(depth + 1)
	case w.compact && t == cmpBinary, !w.compact && t == binString:
		w.size(n)
		w.random(n)
	case w.compact && t == cmpMap, !w.compact && t == binMap:
		k, v := w.kind(depth+1), w.kind(depth+1)
		if w.compact {
			w.size(n)
			if n > 0 {
				w.b = append(w.b, k<<4|v)
			}
		} else {
			w.b = append(w.b, k, v)
			w.size(n)
		}
		for range n {
			w.value(k, depth+1)
			w.value(v, depth+1)
		}
	default:
		e := w.kind(depth + 1)
		switch {
		case !w.compact:
			w.b = append(w.b, e)
			w.size(n)
		case n < 15:
			w.b = append(w.b, byte(n)<<4|e)
		default:
			w.b = append(w.b, 15<<4|e)
			w.size(n)
		}
		for range n {
			w.value(e, depth+1)
		}
	}
}

// TestTheEndOfAStruct: it is found wherever the bytes are cut.
func TestTheEndOfAStruct(t *testing.T) {
	for seed := range uint64(2000) {
		w := writer{Rand: rand.New(rand.NewPCG(seed, 0)), compact: seed%2 == 1}
		w.fields(0)
		n := len(w.b)
		w.random(20)
		whole, cut := skipper{stack: make([]level, maxDepth)}, skipper{stack: make([]level, maxDepth)}
		whole.start(w.compact, 0, maxFrame, maxValues)
		need, err := whole.run(w.b)
		require.NoError(t, err, "seed %d", seed)
		require.Zero(t, need, "seed %d", seed)
		require.Equal(t, n, whole.pos, "seed %d", seed)

		cut.start(w.compact, 0, n, maxValues)
		for have := 0; ; have = min(n, max(need, have+w.IntN(10))) {
			if need, err = cut.run(w.b[:have]); need == 0 || err != nil {
				break
			}
			require.Greater(t, need, have, "seed %d", seed)
			require.LessOrEqual(t, need, n, "seed %d", seed)
		}
		require.NoError(t, err, "seed %d", seed)
		got := skipper{cut.compact, maxFrame, cut.pos, cut.values, cut.depth, whole.stack}
		require.Equal(t, whole, got, "seed %d", seed)
	}
}

// listOf is a list of n elements, the only argument.
func listOf(compact bool, t byte, n int, element string) string {
	head := string(binary.BigEndian.AppendUint32([]byte{binList, 0, 1, t}, uint32(n)))
	if compact {
		head = string(binary.AppendUvarint([]byte{1<<4 | cmpList, 15<<4 | t}, uint64(n)))
	}
	return head + strings.Repeat(element, n) + "\x00"
}

// TestACallHasSoManyValues: more cost their call, or in an unframed one the
// connection, as its end is not known. Answers have as many as they like.
func TestACallHasSoManyValues(t *testing.T) {
	most, more := maxValues-1, maxValues // beside the list itself
	decode := func(t *testing.T, d codecs.Direction, b string) (codecs.Metadata, error) {
		var m codecs.Metadata
		n, err := newCodec(t).NewDecoder(d).Decode([]byte(b), &m)
		if err == nil {
			require.Equal(t, len(b), n)
		}
		return m, err
	}
	for name, message := range map[string]func(kind byte, n int) string{
		"binary": func(k byte, n int) string { return call(k, "x", 1, listOf(false, binString, n, "\x00\x00\x00\x02ab")) },
		"lax": func(k byte, n int) string {
			return callLax(k, "x", 1, listOf(false, binString, n, "\x00\x00\x00\x02ab"))
		},
		"compact":          func(k byte, n int) string { return callCompact(k, "x", 1, listOf(true, cmpBinary, n, "\x02ab")) },
		"structs":          func(k byte, n int) string { return call(k, "x", 1, listOf(false, binStruct, n, "\x00")) },
		"structs, compact": func(k byte, n int) string { return callCompact(k, "x", 1, listOf(true, cmpStruct, n, "\x00")) },
		"fields":           func(k byte, n int) string { return call(k, "x", 1, strings.Repeat("\x02\x00\x01\x01", n+1)+"\x00") },
		"fields, compact":  func(k byte, n int) string { return callCompact(k, "x", 1, strings.Repeat("\x11", n+1)+"\x00") },
		"containers": func(k byte, n int) string {
			return call(k, "x", 1, listOf(false, binMap, n, "\x02\x02\x00\x00\x00\x00"))
		},
		"containers, compact": func(k byte, n int) string {
			return callCompact(k, "x", 1, listOf(true, cmpMap, n, "\x00"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			for transport, in := range map[string]func(string) string{
				"unframed": func(s string) string { return s },
				"framed":   inFrame,
				"header":   func(s string) string { return inHeader(theader, 1, withoutParts, s) },
			} {
				m, err := decode(t, c2s, in(message(typeCall, most)))
				require.NoError(t, err, transport)
				require.Empty(t, m.Malformed, transport)
				m, err = decode(t, c2s, in(message(typeCall, more)))
				if transport == "unframed" {
					require.ErrorContains(t, err, "more than 524288 values")
				} else {
					require.NoError(t, err, transport)
					require.Equal(t, "more than 524288 values", m.Malformed, transport)
				}
				m, err = decode(t, s2c, in(message(typeReply, more)))
				require.NoError(t, err, transport)
				require.Empty(t, m.Malformed, transport)
			}
		})
	}
	for name, b := range map[string]string{
		"numbers":          call(typeCall, "x", 1, listOf(false, binI32, 4_000_000, "\x00\x00\x00\x01")),
		"numbers, compact": callCompact(typeCall, "x", 1, listOf(true, cmpI32, 8_000_000, "\x80\x01")),
	} {
		m, err := decode(t, c2s, inFrame(b))
		require.NoError(t, err, name)
		require.Empty(t, m.Malformed, name)
	}
}

// TestVarintsAreCountedAsOneByOne, however many at a time.
func TestVarintsAreCountedAsOneByOne(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 20_000 {
		b := make([]byte, rnd.IntN(100))
		for i := range b {
			b[i] = byte(rnd.Uint32()) & byte(rnd.Uint32()|0x7f) // every fourth goes on
		}
		left := uint32(rnd.IntN(100))
		want, rest := 0, left
		for ; rest > 0 && want < len(b); want++ {
			if b[want] < 0x80 {
				rest--
			}
		}
		n, got := skipVarints(b, left)
		require.Equal(t, want, n, "%d of %x", left, b)
		require.Equal(t, rest, got)
	}
}

// costly are calls of nearly the largest size, the worst that the protocols allow.
func costly() map[string]string {
	const n = maxFrame - 256
	fill := func(s string) string { return strings.Repeat(s, n/len(s)) + "\x00" }
	binary := func(s string) string { return call(typeCall, "x", 1, s) }
	short := func(s string) string { return callCompact(typeCall, "x", 1, s) }
	return map[string]string{
		"bools":                    binary(fill("\x02\x00\x01\x01")),
		"strings":                  binary(fill("\x0b\x00\x01\x00\x00\x00\x00")),
		"structs":                  binary(fill("\x0c\x00\x01\x00")),
		"structs with a field":     binary(fill("\x0c\x00\x01\x02\x00\x01\x01\x00")),
		"deep structs":             binary(fill(strings.Repeat("\x0c\x00\x01", 60) + strings.Repeat("\x00", 60))),
		"of all kinds":             binary(fill("\x02\x00\x01\x01\x0b\x00\x01\x00\x00\x00\x00\x06\x00\x01\x00\x00\x0c\x00\x01\x00\x0f\x00\x01\x0b\x00\x00\x00\x00")),
		"list of structs":          binary(listOf(false, binStruct, n, "\x00")),
		"list of larger structs":   binary(listOf(false, binStruct, n/5, "\x02\x00\x01\x01\x00")),
		"list of strings":          binary(listOf(false, binString, n/4, "\x00\x00\x00\x00")),
		"list of maps":             binary(listOf(false, binMap, n/6, "\x0c\x0c\x00\x00\x00\x00")),
		"list of lists":            binary(listOf(false, binList, n/9, "\x0b\x00\x00\x00\x01\x00\x00\x00\x00")),
		"c bools":                  short(fill("\x11")),
		"c ints":                   short(fill("\x15\x00")),
		"c structs":                short(fill("\x1c\x00")),
		"c structs with a field":   short(fill("\x1c\x11\x00")),
		"c deep structs":           short(fill(strings.Repeat("\x1c", 60) + strings.Repeat("\x00", 60))),
		"c of all kinds":           short(fill("\x11\x15\x00\x18\x00\x1c\x00\x19\x08\x0c\x01\x00\x16\x80\x01\x1b\x00")),
		"c list of ints":           short(listOf(true, cmpI32, n, "\x00")),
		"c list of strings":        short(listOf(true, cmpBinary, n, "\x00")),
		"c list of structs":        short(listOf(true, cmpStruct, n, "\x00")),
		"c list of larger structs": short(listOf(true, cmpStruct, n/2, "\x11\x00")),
		"c list of maps":           short(listOf(true, cmpMap, n, "\x00")),
		"c list of lists":          short(listOf(true, cmpList, n/2, "\x18\x00")),
		"c list of lists of ints":  short(listOf(true, cmpList, n/2, "\x15\x00")),
		"c lists of 65 ints":       short(listOf(true, cmpList, n/67, "\xf5\x41"+strings.Repeat("\x00", 65))),
		"half a million strings":   binary(listOf(false, binString, 500_000, "\x00\x00\x00\x0caccount-0001")),
	}
}

// BenchmarkCostly has the shortest time, as the machine may have other work.
func BenchmarkCostly(b *testing.B) {
	frames := map[string]string{
		"zlib of literals": inHeader(theader, 1, "\x00\x01\x01", deflated(call(typeCall, "x", 1, "\x0b\x00\x01\x00\xf0\x00\x00"+literals(0xf00000)+"\x00"))),
	}
	for name, s := range costly() {
		frames[name] = inFrame(s)
	}
	for name, s := range frames {
		b.Run(name, func(b *testing.B) {
			dec := newCodec(b).NewDecoder(c2s)
			frame := []byte(s)
			var m codecs.Metadata
			best := time.Hour
			for b.Loop() {
				m.Reset()
				start := time.Now()
				if n, err := dec.Decode(frame, &m); err != nil || n != len(frame) {
					b.Fatal(n, err)
				}
				best = min(best, time.Since(start))
			}
			b.ReportMetric(float64(best.Microseconds())/1e3, "ms/best")
		})
	}
}

// literals are n bytes that the compression makes small, and slow to inflate.
func literals(n int) string {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = "etaoinsh"[r.IntN(8)]
	}
	return string(b)
}

func BenchmarkDecode(b *testing.B) {
	body := "\x0b\x00\x01\x00\x00\x00\x05hello\x08\x00\x02\x00\x00\x00\x07\x0c\x00\x03\x0b\x00\x01\x00\x00\x00\x02hi\x00\x00"
	for name, s := range map[string]string{
		"framed":          inFrame(call(typeCall, "Svc:hello", 5, body)),
		"unframed":        call(typeCall, "Svc:hello", 5, body),
		"framed, compact": inFrame(callCompact(typeCall, "Svc:hello", 5, "\x18\x05hello\x15\x0e\x1c\x18\x02hi\x00\x00")),
		"ttheader": inHeader(kitexHeader, 5, "\x00\x00"+numbers16("3", "web", "6", "shop", "9", "hello", "12", "1000", "22", "1")+
			strings16("RPC_TRANSIT_user", "7", "isn", "Svc", "tenant", "acme"), call(typeCall, "hello", 5, body)),
		"zlib": inHeader(theader, 5, "\x00\x01\x01", deflated(call(typeCall, "Svc:hello", 5, body))),
	} {
		b.Run(name, func(b *testing.B) {
			dec := newCodec(b).NewDecoder(c2s)
			dec.(codecs.Learner).Learn(new(codecs.Shapes))
			frame := []byte(s)
			var m codecs.Metadata
			b.ReportAllocs()
			for b.Loop() {
				m.Reset()
				if n, err := dec.Decode(frame, &m); err != nil || n != len(frame) {
					b.Fatal(n, err)
				}
			}
		})
	}
}
