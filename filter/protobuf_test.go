package filter_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	_ "github.com/meltemi-mesh/meltemi/codecs/brpc"
	"github.com/meltemi-mesh/meltemi/codecs/brpc/brpctest"
	_ "github.com/meltemi-mesh/meltemi/codecs/trpc"
	"github.com/meltemi-mesh/meltemi/codecs/trpc/trpctest"
	"github.com/meltemi-mesh/meltemi/filter"
)

// wire is a protocol whose headers are protobuf, with what a benchmark has to know of it.
type wire struct {
	name, service string
	// request makes one of an id. One that is traced has other ids and times in it.
	request  func(id uint64, traced bool) []byte
	response func(id uint64) []byte
	// next returns the length of the frame at the start of b, and its header.
	next func(b []byte) (n int, header []byte)
	id   int // the field of the header
}

var wires = []wire{
	{
		name: "brpc", service: "org.bench.Echo", id: 4,
		request: func(id uint64, traced bool) []byte {
			r := brpctest.Request{ID: id, Service: "org.bench.Echo", Method: "echo", LogID: 4711, Body: make([]byte, 32)}
			if traced {
				r.LogID, r.TraceID, r.SpanID = int64(id*7919), int64(id*0x9e3779b97f4a7c15), int64(id<<20|5)
			}
			return r.Bytes()
		},
		response: func(id uint64) []byte { return brpctest.Response{ID: id, Body: make([]byte, 32)}.Bytes() },
		next: func(b []byte) (int, []byte) {
			return 12 + int(binary.BigEndian.Uint32(b[4:])), b[12 : 12+binary.BigEndian.Uint32(b[8:])]
		},
	},
	{
		name: "trpc", service: "trpc.bench.echo.Echo", id: 3,
		request: func(id uint64, traced bool) []byte {
			r := trpctest.Request{
				ID: uint32(id), Caller: "trpc.bench.client.Echo", Callee: "trpc.bench.echo.Echo",
				Func: "/trpc.bench.echo.Echo/Echo", Body: make([]byte, 32),
			}
			if traced {
				r.TimeoutMS = 2000 + uint32(id%700)
				r.TransInfo = [][2]string{{"tenant", "acme"}, {"traceparent", fmt.Sprintf("00-%032x-%016x-01", id*7919, id)}}
			}
			return r.Bytes()
		},
		response: func(id uint64) []byte { return trpctest.Response{ID: uint32(id), Body: make([]byte, 32)}.Bytes() },
		next: func(b []byte) (int, []byte) {
			return int(binary.BigEndian.Uint32(b[4:])), b[16 : 16+binary.BigEndian.Uint16(b[8:])]
		},
	},
}

// number returns a varint field of a header.
func (w *wire) number(header []byte, field int) (v uint64) {
	for len(header) > 0 {
		tag, n := binary.Uvarint(header)
		x, k := binary.Uvarint(header[n:])
		header = header[n+k:]
		if tag&7 == 2 {
			header = header[x:]
		} else if int(tag>>3) == field {
			v = x
		}
	}
	return v
}

// newRoundTrip returns a function that sends some requests in one event, and all of their
// answers in another.
func (w *wire) newRoundTrip(t testing.TB, outstanding int, traced bool) (roundTrip func()) {
	const events = 64
	h := &bareHost{now: time.Hour}
	m := filter.NewModule()
	cfg, err := m.NewConfig(h, fmt.Appendf(nil, `{"stat_prefix": "t", "protocol": {"name": "p", "codec": {"name": "aeraki.meta_protocol.codec.%s"}},
		"route_config": {"name": "r", "routes": [{"match": {"metadata": [{"name": "method", "exact_match": "none"}]}, "route": {"cluster": "v2"}},
			{"match": {"metadata": [{"name": "%s", "exact_match": "%s"}]}, "route": {"cluster": "v1"}}]}}`,
		w.name, map[string]string{"brpc": "service", "trpc": "callee"}[w.name], w.service))
	require.NoError(t, err)
	h.shard = m.NewWorker(h)
	h.down = h.shard.Accept(cfg, bareDownstream{h})
	var requests [events][][]byte
	for i := range requests {
		var b []byte
		for k := range outstanding {
			b = append(b, w.request(uint64(1+i*outstanding+k), traced)...)
		}
		requests[i] = [][]byte{b}
	}
	// By the lengths of their ids, which have nine bytes at most.
	var responses [10][]byte
	for n := range responses[1:] {
		responses[n+1] = w.response(1 << (7 * n))
	}
	answers, turn := make([]byte, 0, 8192), 0
	out := [][]byte{nil}
	send := func() {
		in := requests[turn%events]
		if n := h.down.Data(in, len(in[0]), false); n != len(in[0]) {
			t.Fatalf("%d of %d bytes consumed", n, len(in[0]))
		}
		h.shard.EndHook()
	}
	answer := func() {
		answers = answers[:0]
		for b := h.sent; len(b) > 0; {
			n, header := w.next(b)
			id := w.number(header, w.id)
			var text [binary.MaxVarintLen64]byte
			size := binary.PutUvarint(text[:], id)
			from := len(answers)
			answers = append(answers, responses[size]...)
			_, header = w.next(answers[from:])
			copy(header[bytes.IndexByte(header, byte(w.id<<3))+1:], text[:size])
			b = b[n:]
		}
		out[0] = answers
		h.up.Data(out, len(answers))
		h.shard.EndHook()
		want, got := uint64(1+turn%events*outstanding), h.got
		for range outstanding {
			if len(got) == 0 {
				t.Fatal("not all are answered")
			}
			n, header := w.next(got)
			if id := w.number(header, w.id); id != want {
				t.Fatalf("the answer has the id %d, not %d", id, want)
			}
			want++
			got = got[n:]
		}
	}
	send()
	h.up.Ready("h1")
	h.shard.EndHook()
	answer()
	return func() {
		h.now += 20 * time.Microsecond
		turn++
		send()
		answer()
	}
}

// BenchmarkPipelineProtobuf is of requests and their answers, one or sixteen in an event.
func BenchmarkPipelineProtobuf(b *testing.B) {
	for _, w := range wires {
		for _, outstanding := range []int{1, 16} {
			for _, traced := range []bool{false, true} {
				b.Run(fmt.Sprintf("%s/%d/traced=%t", w.name, outstanding, traced), func(b *testing.B) {
					roundTrip := w.newRoundTrip(b, outstanding, traced)
					b.ReportAllocs()
					for b.Loop() {
						roundTrip()
					}
					b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*outstanding), "ns/req")
				})
			}
		}
	}
}
