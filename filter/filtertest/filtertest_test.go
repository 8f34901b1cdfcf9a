package filtertest_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// curfew is a filter that lets nothing pass.
type curfew struct{}

func (curfew) OnRequest(m *filter.Message) filter.Verdict {
	return m.Reply(codecs.Denied, "closed until morning")
}

func init() {
	filter.Register("example.curfew", filter.Factory(func(*anypb.Any, *filter.Env) (filter.Filter, error) {
		return curfew{}, nil
	}))
}

// How the author of a filter tests it.
func Example() {
	t := &recorder{} // in a test: its *testing.T
	h := filtertest.New(t)
	backend := h.Cluster("backend", "10.0.0.7:20880")
	cfg := h.MustLoad(`{
		"stat_prefix": "shop",
		"protocol": {"name": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}},
		"meta_protocol_filters": [{"name": "example.curfew"}, {"name": "aeraki.meta_protocol.filters.router"}],
		"route_config": {"name": "r", "routes": [{"route": {"cluster": "backend"}}]}}`)

	client := h.Dial(cfg)
	client.Send(dubbotest.Request{ID: 7}.Bytes())
	answers, _ := dubbotest.Parse(client.Take())
	fmt.Println(answers[0].ID, answers[0].Text())
	fmt.Println(len(backend.Servers()), "connections to the backend")

	h.Advance(time.Second) // metrics are reported with a delay
	fmt.Println(cfg.Counter("dubbo.shop.local_response_business_exception"))
	t.finish()
	// Output:
	// 7 closed until morning
	// 0 connections to the backend
	// 1
}

// recorder stands in for a test of which it is known that it fails.
type recorder struct {
	testing.TB
	said    []string
	cleanup []func()
}

func (r *recorder) Helper()                      {}
func (r *recorder) Cleanup(f func())             { r.cleanup = append(r.cleanup, f) }
func (r *recorder) Log(...any)                   {}
func (r *recorder) Failed() bool                 { return len(r.said) > 0 }
func (r *recorder) Error(args ...any)            { r.said = append(r.said, fmt.Sprint(args...)) }
func (r *recorder) Errorf(f string, args ...any) { r.said = append(r.said, fmt.Sprintf(f, args...)) }
func (r *recorder) Fatalf(f string, args ...any) { r.Errorf(f, args...); panic(r) }
func (r *recorder) finish() {
	for _, f := range r.cleanup {
		f()
	}
}

// module is a pipeline that does what a test says with each connection.
type module struct {
	w      host.Worker
	d      host.Downstream
	up     host.Upstream
	data   func(b [][]byte, total int) int
	answer func(b []byte)
	// accepted is called with each connection, if it is set.
	accepted func()
}

func (m *module) NewConfig(host.Config, []byte) (host.FilterConfig, error) { return m, nil }
func (m *module) NewWorker(w host.Worker) host.Shard                       { m.w = w; return m }
func (m *module) Published()                                               {}
func (m *module) Destroy()                                                 {}
func (m *module) Run()                                                     {}
func (m *module) EndHook()                                                 {}
func (m *module) Accept(_ host.FilterConfig, d host.Downstream) host.DownstreamEvents {
	m.d = d
	if m.accepted != nil {
		m.accepted()
	}
	return client{m}
}

type client struct{ m *module }

func (c client) Data(b [][]byte, total int, _ bool) int { return c.m.data(b, total) }
func (client) WriteBlocked(bool)                        {}
func (client) Closed(bool)                              {}
func (client) Aborted()                                 {}

type server struct{ m *module }

func (server) Ready(string)             {}
func (s server) Data(b [][]byte, _ int) { s.m.answer(b[0]) }
func (server) WriteBlocked(bool)        {}
func (server) Closed(host.CloseReason)  {}
func (server) Aborted()                 {}

// TestFaultsOfAPipelineAreFound: what a pipeline must not do fails its test.
func TestFaultsOfAPipelineAreFound(t *testing.T) {
	for want, fault := range map[string]func(m *module) func([][]byte, int) int{
		"1 buffers were not given back": func(m *module) func([][]byte, int) int {
			return func(_ [][]byte, total int) int { m.w.Buffer(10); return total }
		},
		"a buffer was given back twice": func(m *module) func([][]byte, int) int {
			return func(_ [][]byte, total int) int { b := m.w.Buffer(10); b.Free(); b.Free(); return total }
		},
		"Data consumed 6 of 5 bytes": func(*module) func([][]byte, int) int {
			return func(_ [][]byte, total int) int { return total + 1 }
		},
		"ReadDisable(false) without a ReadDisable(true)": func(m *module) func([][]byte, int) int {
			return func(_ [][]byte, total int) int { m.d.ReadDisable(false); return total }
		},
		"TLS was asked for before the first Data": func(m *module) func([][]byte, int) int {
			m.accepted = func() { m.d.TLS() }
			return func(_ [][]byte, total int) int { return total }
		},
	} {
		t.Run(want, func(t *testing.T) {
			r := &recorder{}
			m := &module{}
			m.data = fault(m)
			h := filtertest.NewWith(r, m, 1)
			cfg := h.MustLoad("{}")
			h.Dial(cfg).Send([]byte("hello"))
			r.finish()
			require.Contains(t, strings.Join(r.said, "\n"), want)
		})
	}
}

func TestMemoryOfAHookIsPoisonedAfterIt(t *testing.T) {
	m := &module{}
	var kept []byte
	m.data = func(b [][]byte, total int) int { kept = b[0]; return total }
	h := filtertest.NewWith(t, m, 1)
	h.Dial(h.MustLoad("{}")).Send([]byte("hello"))
	require.NotContains(t, string(kept), "hello")
}

// TestWhatIsKnownOfTLS: as of Envoy, it is told as long as there is the connection.
func TestWhatIsKnownOfTLS(t *testing.T) {
	m := &module{data: func(_ [][]byte, total int) int { return total }}
	h := filtertest.NewWith(t, m, 1)
	cfg := h.MustLoad("{}")
	h.Dial(cfg).Send([]byte("hello"))
	require.Nil(t, m.d.TLS())
	of := host.TLS{ServerName: "greeter", Mutual: true, URISANs: []string{"spiffe://a/ns/b/sa/c"}}
	late := h.DialTLS(cfg, of)
	late.Send([]byte("hello"))
	late.Close()
	require.Nil(t, m.d.TLS(), "nobody had asked")
	early := h.DialTLS(cfg, of)
	early.Send([]byte("hello"))
	require.Equal(t, &of, m.d.TLS())
	early.Close()
	require.Equal(t, &of, m.d.TLS())
	require.Equal(t, "10.0.0.2:1027", m.d.DirectRemoteAddress())
	h.DialBehind(cfg, "10.0.0.9", "192.0.2.1")
	require.Equal(t, "10.0.0.9:1024", m.d.DirectRemoteAddress())
	require.Equal(t, "192.0.2.1:1028", m.d.RemoteAddress())
}

func TestAServerThatIsNotReadKeepsItsBytes(t *testing.T) {
	m := &module{}
	h := filtertest.NewWith(t, m, 1)
	c := h.Cluster("c", "h")
	m.data = func(_ [][]byte, total int) int {
		m.up = m.w.Connect(host.Target{Cluster: "c"}, server{m})
		return total
	}
	var got string
	m.answer = func(b []byte) { got += string(b) }
	m.data(nil, 0)
	h.Settle()
	s := c.Servers()[0]
	cl := h.Dial(h.MustLoad("{}"))
	m.data = func(_ [][]byte, total int) int { m.up.ReadDisable(true); return total }
	cl.Send([]byte("x"))
	s.Send([]byte("one"))
	h.Settle()
	require.Empty(t, got)
	require.Equal(t, 3, s.Unread())
	m.data = func(_ [][]byte, total int) int { m.up.ReadDisable(false); return total }
	cl.Send([]byte("x"))
	require.Equal(t, "one", got)
}
