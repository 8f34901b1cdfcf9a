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
)

// thriftForms are what is before a message: behind the length of the frame, and with the
// id 0.
var thriftForms = map[string]string{
	"framed": "",
	"ttheader": "\x10\x00\x00\x00\x00\x00\x00\x00\x00\x0e\x00\x00" +"\x10\x00\x01\x00\x09\x00\x04echo" +
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

// newThriftRoundTrip is newRoundTrip for so many requests at once, of a transport of Thrift.
func newThriftRoundTrip(t testing.TB, form string, shared bool, n int) (roundTrip func()) {
	h := &bareHost{now: time.Hour}
	m := filter.NewModule()
	cfg, err := m.NewConfig(h, fmt.Appendf(nil, `{"stat_prefix": "t",
		"protocol": {"name": "thrift", "codec": {"name": "aeraki.meta_protocol.codec.thrift"}, "multiplexing": %v},
		"route_config": {"name": "r", "routes": [{"match": {"metadata": [{"name": "method", "exact_match": "echo"}]}, "route": {"cluster": "v1"}}]}}`, shared))
	require.NoError(t, err)
	h.shard = m.NewWorker(h)
	h.down = h.shard.Accept(cfg, bareDownstream{h})
	one, answer := thriftFrame(form, 1, 1), thriftFrame(form, 2, 0)
	req, resp := bytes.Repeat(one, n), bytes.Repeat(answer, n)
	at, ids := 4+len(thriftForms[form])+12, 0
	if form == "ttheader" {
		ids = 8
	}
	for i := range n { // of one id answers come in their order
		binary.BigEndian.PutUint32(req[i*len(one)+at:], uint32(i+1))
		if ids > 0 {
			binary.BigEndian.PutUint32(req[i*len(one)+ids:], uint32(i+1))
		}
	}
	in, out := [][]byte{req}, [][]byte{resp}
	h.down.Data(in, len(req), false)
	h.shard.EndHook()
	h.up.Ready("h1")
	h.shard.EndHook()
	serve := func() {
		for i := range n {
			from, to := h.sent[i*len(one):], resp[i*len(answer):]
			copy(to[at:at+4], from[at:])
			if ids > 0 {
				copy(to[ids:ids+4], from[ids:])
			}
		}
		h.up.Data(out, len(resp))
		h.shard.EndHook()
		if id := binary.BigEndian.Uint32(h.got[len(h.got)-len(answer)+at:]); id != uint32(n) {
			t.Fatalf("the last answer has the id %d", id)
		}
	}
	serve()
	return func() {
		h.now += 20 * time.Microsecond
		if c := h.down.Data(in, len(req), false); c != len(req) {
			t.Fatalf("%d of %d bytes consumed", c, len(req))
		}
		h.shard.EndHook()
		serve()
	}
}

func BenchmarkPipelineThrift(b *testing.B) {
	for _, c := range []struct {
		name, form string
		shared     bool
		n          int
	}{
		{"exclusive", "framed", false, 1},
		{"shared", "framed", true, 1},
		{"16 shared", "framed", true, 16},
		{"ttheader", "ttheader", true, 1},
	} {
		b.Run(c.name, func(b *testing.B) {
			roundTrip := newThriftRoundTrip(b, c.form, c.shared, c.n)
			b.ReportAllocs()
			for b.Loop() {
				roundTrip()
			}
		})
	}
}
