package filter_test

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// bareHost is a host that allocates nothing: one worker, one client, one
// upstream connection.
type bareHost struct {
	now   time.Duration
	free  []*host.Buffer
	up    host.UpstreamEvents
	sent  []byte // to the server
	got   []byte // by the client
	shard host.Shard
	down  host.DownstreamEvents

	request [][]byte
}

func (h *bareHost) DefineCounter(string) (host.MetricID, error)   { return 0, nil }
func (h *bareHost) DefineGauge(string) (host.MetricID, error)     { return 0, nil }
func (h *bareHost) DefineHistogram(string) (host.MetricID, error) { return 0, nil }
func (h *bareHost) Logf(host.Level, string, ...any)               {}
func (h *bareHost) Now() time.Duration                            { return h.now }
func (h *bareHost) SetTimer(time.Duration)                        {}
func (h *bareHost) Wake()                                         {}
func (h *bareHost) ClusterHosts(string) (host.Hosts, bool, bool) {
	return host.Hosts{Total: 1, Healthy: 1, Preferred: 1}, true, true
}

func (h *bareHost) Connect(_ host.Target, ev host.UpstreamEvents) host.Upstream {
	if h.up == nil { // a replacement of the first one never comes up
		h.up = ev
	}
	return bareUpstream{h}
}

func (h *bareHost) Buffer(n int) *host.Buffer {
	if l := len(h.free); l > 0 {
		b := h.free[l-1]
		h.free = h.free[:l-1]
		return b
	}
	return &host.Buffer{B: make([]byte, 0, max(n, 4096)), Host: h}
}

func (h *bareHost) Recycle(b *host.Buffer) {
	b.B = b.B[:0]
	h.free = append(h.free, b)
}

type bareUpstream struct{ h *bareHost }

func (bareUpstream) ReadDisable(bool) {}

func (u bareUpstream) Write(b *host.Buffer) { u.h.sent = append(u.h.sent[:0], b.B...); u.h.Recycle(b) }
func (u bareUpstream) Close(bool)           {}

type bareDownstream struct{ h *bareHost }

func (d bareDownstream) Write(b *host.Buffer) {
	d.h.got = append(d.h.got[:0], b.B...)
	d.h.Recycle(b)
}
func (d bareDownstream) Close(bool)                     {}
func (d bareDownstream) ReadDisable(bool)               {}
func (d bareDownstream) BufferLimit() int               { return 1 << 20 }
func (d bareDownstream) ID() uint64                     { return 1 }
func (d bareDownstream) LocalAddress() string           { return "" }
func (d bareDownstream) RemoteAddress() string          { return "" }
func (d bareDownstream) Count(host.MetricID, int64)     {}
func (d bareDownstream) Add(host.MetricID, int64)       {}
func (d bareDownstream) Record(host.MetricID, []uint64) {}

const byAttributes = `{"name": "r", "routes": [
  {"match": {"metadata": [{"name": "interface", "string_match": {"exact": "org.example.Greeter"}},
    {"name": "method", "string_match": {"exact": "sayHello"}}, {"name": "tenant", "string_match": {"exact": "acme"}}]},
   "route": {"cluster": "v1"}}]}`

// newRoundTrip returns a function that sends one request and its answer through
// the whole pipeline.
func newRoundTrip(t testing.TB) (roundTrip func(), h *bareHost) {
	h = &bareHost{now: time.Hour}
	m := filter.NewModule()
	cfg, err := m.NewConfig(h, []byte(listener(byAttributes, "")))
	require.NoError(t, err)
	h.shard = m.NewWorker(h)
	h.down = h.shard.Accept(cfg, bareDownstream{h})
	req := dubbotest.Request{ID: 77, Argument: string(make([]byte, 128)), Attachments: [][2]string{
		{"path", "org.example.Greeter"}, {"interface", "org.example.Greeter"}, {"version", "1.0.0"}, {"tenant", "acme"}, {"timeout", "3000"},
	}}.Bytes()
	resp := dubbotest.Response(0, string(make([]byte, 128)), [2]string{"k", "v"})
	in, out := [][]byte{req}, [][]byte{resp}
	h.request = in
	h.down.Data(in, len(req), false)
	h.shard.EndHook()
	h.up.Ready("h1")
	h.shard.EndHook()
	answer := func() {
		binary.BigEndian.PutUint64(resp[4:], binary.BigEndian.Uint64(h.sent[4:]))
		h.up.Data(out, len(resp))
		h.shard.EndHook()
		if id := binary.BigEndian.Uint64(h.got[4:]); id != 77 {
			t.Fatalf("the answer has the id %d", id)
		}
	}
	answer()
	return func() {
		h.now += 20 * time.Microsecond
		if n := h.down.Data(in, len(req), false); n != len(req) {
			t.Fatalf("%d of %d bytes consumed", n, len(req))
		}
		h.shard.EndHook()
		answer()
	}, h
}

func TestARequestAllocatesNothing(t *testing.T) {
	roundTrip, _ := newRoundTrip(t)
	for range 5000 { // free lists and slots fill up
		roundTrip()
	}
	require.Zero(t, testing.AllocsPerRun(5000, roundTrip))
}

func BenchmarkPipeline(b *testing.B) {
	roundTrip, _ := newRoundTrip(b)
	b.ReportAllocs()
	for b.Loop() {
		roundTrip()
	}
}
