package filter_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	_ "github.com/meltemi-mesh/meltemi/codecs/thrift"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

// thriftForms are what is before a message: behind the length of the frame, and with the
// id 0.
var thriftForms = map[string]string{
	"framed": "",
	"ttheader": "\x10\x00\x00\x00\x00\x00\x00\x00\x00\x0e\x00\x00" + "\x10\x00\x01\x00\x09\x00\x04echo" +
		"\x01\x00\x02\x00\x06tenant\x00\x04acme\x00\x08trace-id\x00\x0e00000000000000",
}

// thriftFrame is echo(1: string) of the binary protocol, or its answer.
func thriftFrame(form string, kind byte, field byte) []byte {
	b := append(make([]byte, 4), thriftForms[form]...)
	b = append(b, "\x80\x01\x00"...)
	b = append(b, kind)
	b = append(b, "\x00\x00\x00\x04echo\x00\x00\x00\x07\x0b\x00"...)
	b = append(b, field, 0, 0, 0, 128)
	b = append(append(b, strings.Repeat("x", 128)...), 0)
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

// newThriftRoundTrip is newRoundTrip for requests of a transport of Thrift: so many events
// with so many each, and then as many with their answers.
func newThriftRoundTrip(t testing.TB, form string, shared bool, events, n int) (roundTrip func()) {
	h := &bareHost{now: time.Hour}
	m := filter.NewModule()
	cfg, err := m.NewConfig(h, fmt.Appendf(nil, `{"stat_prefix": "t",
		"protocol": {"name": "thrift", "codec": {"name": "aeraki.meta_protocol.codec.thrift"}, "multiplexing": %v},
		"route_config": {"name": "r", "routes": [{"match": {"metadata": [{"name": "method", "exact_match": "echo"}]}, "route": {"cluster": "v1"}}]}}`, shared))
	require.NoError(t, err)
	h.shard = m.NewWorker(h)
	h.down = h.shard.Accept(cfg, bareDownstream{h})
	one, answer := thriftFrame(form, 1, 1), thriftFrame(form, 2, 0)
	at := 4 + len(thriftForms[form]) + 12
	number := func(frame []byte, id []byte) {
		copy(frame[at:at+4], id)
		if form != "framed" {
			copy(frame[8:12], id)
		}
	}
	reqs, sent := make([][][]byte, events), make([][]byte, events)
	for i := range reqs { // answers to one id would come in their order
		req := bytes.Repeat(one, n)
		for k := range n {
			number(req[k*len(one):], binary.BigEndian.AppendUint32(nil, uint32(i*n+k+1)))
		}
		reqs[i] = [][]byte{req}
	}
	resp := bytes.Repeat(answer, n)
	out := [][]byte{resp}
	up := func() {
		for i, req := range reqs {
			if c := h.down.Data(req, len(req[0]), false); c != len(req[0]) {
				t.Fatalf("%d of %d bytes consumed", c, len(req[0]))
			}
			h.shard.EndHook()
			sent[i] = append(sent[i][:0], h.sent...)
		}
	}
	down := func() {
		for i := range reqs {
			for k := range n {
				number(resp[k*len(answer):], sent[i][k*len(one)+at:])
			}
			h.up.Data(out, len(resp))
			h.shard.EndHook()
			if id := binary.BigEndian.Uint32(h.got[len(h.got)-len(answer)+at:]); id != uint32((i+1)*n) {
				t.Fatalf("the last answer has the id %d", id)
			}
		}
	}
	h.down.Data(reqs[0], len(reqs[0][0]), false)
	h.shard.EndHook()
	h.up.Ready("h1")
	h.shard.EndHook()
	sent[0] = append(sent[0], h.sent...)
	first := reqs
	reqs = reqs[:1]
	down()
	reqs = first
	return func() {
		h.now += 20 * time.Microsecond
		up()
		down()
	}
}

// TestAServerThatCouldNotReadARequest may end the connection behind its answer, as Kitex
// does without a word: what comes next takes another. Servers that do not keep theirs.
func TestAServerThatCouldNotReadARequest(t *testing.T) {
	exception := func(kind byte) []byte {
		b := []byte("\x00\x00\x00\x00\x80\x01\x00\x03\x00\x00\x00\x04echo\x00\x00\x00\x07\x0b\x00\x01\x00\x00\x00\x01x\x08\x00\x02\x00\x00\x00")
		b = append(b, kind, 0)
		binary.BigEndian.PutUint32(b, uint32(len(b)-4))
		return b
	}
	for kind := range byte(12) {
		h := filtertest.New(t)
		up := h.Cluster("v1", "h1")
		c := h.Dial(h.MustLoad(`{"stat_prefix": "t", "protocol": {"name": "thrift", "codec": {"name": "aeraki.meta_protocol.codec.thrift"}},
			"route_config": {"name": "r", "routes": [{"route": {"cluster": "v1"}}]}}`))
		c.Send(thriftFrame("framed", 1, 1))
		first := up.Servers()[0]
		answer := func(s *filtertest.Server, frame []byte) { // under the id that the request has there
			copy(frame[16:20], s.Take()[16:20])
			s.Send(frame)
			h.Settle()
		}
		answer(first, exception(kind))
		require.Equal(t, exception(kind), c.Take())
		doubted := kind >= 1 && kind <= 4 || kind >= 7 && kind <= 10
		c.Send(thriftFrame("framed", 1, 1))
		last := up.Servers()[len(up.Servers())-1]
		require.Equal(t, doubted, last != first, "type %d", kind)
		answer(last, thriftFrame("framed", 2, 0))
		require.Equal(t, thriftFrame("framed", 2, 0), c.Take())

		h.Advance(30 * time.Millisecond)
		c.Send(thriftFrame("framed", 1, 1), thriftFrame("framed", 1, 1))
		if doubted {
			require.Len(t, up.Servers(), 2, "both serve")
			require.NotEmpty(t, first.Take())
		}
		require.False(t, first.Ended())
		require.Zero(t, h.Panics())
	}
}

// TestALateAnswerToWhatMayBeAOneway proves that it is none: its client waits, and gets its
// error, also if the answer is too large. So do others from then on.
func TestALateAnswerToWhatMayBeAOneway(t *testing.T) {
	const limit = 1024
	message := func(kind byte, method string, id uint32, size int) []byte {
		b := binary.BigEndian.AppendUint32([]byte("\x00\x00\x00\x00\x80\x01\x00"+string(kind)), uint32(len(method)))
		b = append(binary.BigEndian.AppendUint32(append(b, method...), id), 11, 0, kind&1) // a string
		b = append(append(binary.BigEndian.AppendUint32(b, uint32(size)), strings.Repeat("x", size)...), 0)
		binary.BigEndian.PutUint32(b, uint32(len(b)-4))
		return b
	}
	// frames are what b has, each as its kind, its method and its id.
	frames := func(b []byte) (list []string) {
		for len(b) > 0 {
			n, m := 4+binary.BigEndian.Uint32(b), 12+binary.BigEndian.Uint32(b[8:])
			list = append(list, fmt.Sprintf("%d %s %d", b[7], b[12:m], binary.BigEndian.Uint32(b[m:])))
			b = b[n:]
		}
		return list
	}
	for name, size := range map[string]int{"as it should be": 10, "too large": 2 * limit} {
		t.Run(name, func(t *testing.T) {
			h := filtertest.New(t)
			up := h.Cluster("v1", "h1")
			cfg := h.MustLoad(fmt.Sprintf(`{"stat_prefix": "t", "limits": {"max_frame_bytes": %d}, "request_timeout": "1s",
				"protocol": {"name": "thrift", "codec": {"name": "aeraki.meta_protocol.codec.thrift"}, "multiplexing": true},
				"route_config": {"name": "r", "routes": [{"route": {"cluster": "v1"}}]}}`, limit))
			c := h.Dial(cfg)
			c.Send(message(1, "slow", 5, 10))
			s := up.Servers()[0]
			asked := s.Take()
			c.Send(message(1, "fast", 6, 10))
			s.Send(message(2, "fast", binary.BigEndian.Uint32(s.Take()[16:]), 10))
			h.Settle()
			require.Equal(t, []string{"2 fast 6"}, frames(c.Take()))
			h.Advance(late)
			require.Empty(t, frames(c.Take()), "it may be a oneway")
			s.Send(message(2, "slow", binary.BigEndian.Uint32(asked[16:]), size))
			h.Advance(600 * time.Millisecond)
			require.Equal(t, []string{"3 slow 5"}, frames(c.Take()))

			o := h.Dial(cfg)
			o.Send(message(1, "slow", 7, 10), message(1, "fast", 8, 10))
			all := s.Take()
			s.Send(message(2, "fast", binary.BigEndian.Uint32(all[len(asked)+16:]), 10))
			h.Settle()
			require.Equal(t, []string{"2 fast 8"}, frames(o.Take()))
			h.Advance(late)
			require.Equal(t, []string{"3 slow 7"}, frames(o.Take()))
			require.Zero(t, h.Panics())
		})
	}
}

func BenchmarkPipelineThrift(b *testing.B) {
	for _, c := range []struct {
		name, form string
		shared     bool
		events, n  int
	}{
		{"exclusive", "framed", false, 1, 1},
		{"shared", "framed", true, 1, 1},
		{"16 of 16 shared", "framed", true, 16, 16},
		{"ttheader", "ttheader", true, 1, 1},
	} {
		b.Run(c.name, func(b *testing.B) {
			roundTrip := newThriftRoundTrip(b, c.form, c.shared, c.events, c.n)
			b.ReportAllocs()
			for b.Loop() {
				roundTrip()
			}
		})
	}
}
