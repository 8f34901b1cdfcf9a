package golang

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/host/hosttest"
	_ "github.com/meltemi-mesh/meltemi/filters/router"
	proxyv1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/v1alpha"
)

// dubbo is a listener whose requests go to cluster.
func dubbo(cluster string) string {
	return `{"stat_prefix": "orders", "protocol": {"name": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}},
		"route_config": {"name": "r", "routes": [{"route": {"cluster": "` + cluster + `"}}]}}`
}

// answers are the frames that a client has got.
func (e *envoy) answers(p *peer, n int) []dubbotest.Parsed {
	e.t.Helper()
	var frames []dubbotest.Parsed
	e.Until("answers", func() bool {
		frames, _ = dubbotest.Parse(p.Received())
		return len(frames) == n
	})
	return frames
}

// TestACall goes through the pipeline, over a tunnel, and back.
func TestACall(t *testing.T) {
	for name, connect := range map[string]bool{"tcp_proxy": false, "connect": true} {
		t.Run(name, func(t *testing.T) {
			e := newEnvoy(t, filter.NewModule(), connect)
			require.NoError(t, e.Load(dubbo(hosttest.Cluster)))
			p := e.dial(PluginName)
			p.Send(dubbotest.Request{ID: 7}.Bytes())
			e.Until("the server has it", func() bool {
				for _, s := range e.Servers() {
					if frames, _ := dubbotest.Parse(s.Received()); len(frames) == 1 {
						s.Send(dubbotest.Response(frames[0].ID, "done"))
						return true
					}
				}
				return false
			})
			a := e.answers(p, 1)[0]
			require.EqualValues(t, 7, a.ID)
			require.Equal(t, "done", a.Text())
			p.Close()
			e.Until("Envoy's filter is given back", func() bool { e.mu.Lock(); defer e.mu.Unlock(); return e.released == 1 })
		})
	}
}

// TestAServerThatCannotBeReached: the client is told before its deadline.
func TestAServerThatCannotBeReached(t *testing.T) {
	for name, connect := range map[string]bool{"tcp_proxy": false, "connect": true} {
		t.Run(name, func(t *testing.T) {
			e := newEnvoy(t, filter.NewModule(), connect)
			require.NoError(t, e.Load(dubbo(hosttest.Refused)))
			p := e.dial(PluginName)
			p.Send(dubbotest.Request{ID: 7}.Bytes())
			a := e.answers(p, 1)[0]
			require.EqualValues(t, 7, a.ID)
			if connect { // tcp_proxy does not say that there is none, only that there is none any more
				require.Equal(t, "upstream connect failure in cluster "+hosttest.Refused, a.Text())
			}
		})
	}
}

// TestARefusedConfiguration: Envoy takes it all the same. The one before goes on; without
// one each request is answered by an error of its protocol.
func TestARefusedConfiguration(t *testing.T) {
	bad := strings.Replace(dubbo(hosttest.Cluster), `"routes"`, `"typo": 1, "routes"`, 1)
	e := newEnvoy(t, filter.NewModule(), true)
	require.NoError(t, e.Load(bad))
	require.Contains(t, e.log.all(), "route_config.typo")
	require.NotNil(t, e.h.configs.byID[1].instead)
	p := e.dial(PluginName)
	p.Send(dubbotest.Request{ID: 7}.Bytes())
	a := e.answers(p, 1)[0]
	require.EqualValues(t, 7, a.ID)
	require.NotEmpty(t, a.Text())

	require.NoError(t, e.Load(dubbo(hosttest.Cluster)))
	require.NoError(t, e.Load(bad))
	p = e.dial(PluginName)
	p.Send(dubbotest.Request{ID: 8}.Bytes())
	e.Until("the one before has the server asked", func() bool {
		for _, s := range e.Servers() {
			if len(s.Received()) > 0 {
				return true
			}
		}
		return false
	})
	require.EqualValues(t, 2, e.h.metrics.process[configsRefused].Load())

	// Of what is nothing at all nobody knows the protocol.
	require.NoError(t, e.Load("{"))
	q := e.dial(PluginName)
	e.Until("it is closed", q.Ended)
	r := e.dial("another")
	e.Until("it is closed", r.Ended)
	require.Contains(t, e.log.all(), `plugin_name "another" is unknown`)
}

func TestFormsOfConfigurations(t *testing.T) {
	text := dubbo("c")
	s := &structpb.Struct{}
	require.NoError(t, s.UnmarshalJSON([]byte(text)))
	for name, m := range map[string]proto.Message{
		"StringValue": wrapperspb.String(text), "BytesValue": wrapperspb.Bytes([]byte(text)), "Struct": s,
		"message": &proxyv1alpha.MetaProtocolProxy{
			StatPrefix: "orders", Protocol: &proxyv1alpha.ApplicationProtocol{Name: "dubbo", Codec: &proxyv1alpha.Codec{Name: "aeraki.meta_protocol.codec.dubbo"}},
		},
	} {
		a, err := anypb.New(m)
		require.NoError(t, err)
		b, err := proto.Marshal(a)
		require.NoError(t, err)
		raw, err := unwrap(b)
		require.NoError(t, err, name)
		require.Equal(t, "\"orders\"\n\n", listenerOf(raw), name)
		bare := string(withoutRoutes(raw, 3))
		require.Contains(t, bare, "refused.3", name)
		require.Contains(t, bare, "aeraki.meta_protocol.codec.dubbo", name)
		require.Empty(t, filter.Check([]byte(bare)), name)
	}
	for _, bad := range []proto.Message{wrapperspb.Int32(1), &structpb.ListValue{}} {
		a, err := anypb.New(bad)
		require.NoError(t, err)
		b, err := proto.Marshal(a)
		require.NoError(t, err)
		_, err = unwrap(b)
		require.ErrorContains(t, err, "plugin_config: ")
	}
	_, err := unwrap([]byte("\xff"))
	require.ErrorContains(t, err, "plugin_config: ")
}

// TestAConfigurationThatIsTheSame is one, however often its listener is updated.
func TestAConfigurationThatIsTheSame(t *testing.T) {
	e := newEnvoy(t, filter.NewModule(), true)
	for range 3 {
		require.NoError(t, e.Load(dubbo("a")))
		require.EqualValues(t, 1, e.id)
	}
	publish := func() { e.h.configs.publish(e.h.configs.byID[e.id]) } // others come later, and not with it
	publish()
	require.NoError(t, e.Load(dubbo("b")))
	require.EqualValues(t, 2, e.id)
	publish()
	require.NoError(t, e.Load(dubbo("a"))) // back again: the newest
	require.EqualValues(t, 3, e.id)
	require.Zero(t, e.h.metrics.process[configsRefused].Load())
	require.Len(t, e.h.configs.byID, 3)
}

// TestReplacedConfigurationsAreDropped when they have not been used for long, and come
// back if they are.
func TestReplacedConfigurationsAreDropped(t *testing.T) {
	e := newEnvoy(t, filter.NewModule(), true)
	require.NoError(t, e.Load(dubbo("a")))
	c := &e.h.configs
	old := c.byID[1]
	long := func() {
		c.mu.Lock()
		for _, cfg := range c.byID {
			cfg.left = cfg.left.Add(-retireTime)
		}
		c.mu.Unlock()
		c.retire()
	}
	p := e.dial(PluginName)
	e.Until("it is there", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return old.conns == 1 })
	c.publish(old)
	require.NoError(t, e.Load(dubbo("b")))
	long()
	require.NotNil(t, old.proxy, "its successor is not in use yet")
	c.publish(c.byID[2])
	long()
	require.NotNil(t, old.proxy, "it has a connection")
	p.Close()
	e.Until("it has none", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return old.conns == 0 })
	long()
	require.Nil(t, old.proxy)
	long()
	require.Len(t, c.retired, 1)

	e.id = 1 // Envoy has refused the other
	p = e.dial(PluginName)
	p.Send(dubbotest.Heartbeat(5))
	e.answers(p, 1)
	require.NotNil(t, old.proxy)
	require.Empty(t, c.retired)
}

// TestGaugesGoWithTheLastConfigurationThatHasThem, counters do not.
func TestGaugesGoWithTheLastConfigurationThatHasThem(t *testing.T) {
	e := newEnvoy(t, filter.NewModule(), true)
	require.NoError(t, e.Load(dubbo("a")))
	require.NoError(t, e.Load(strings.Replace(dubbo("a"), "{", `{"request_timeout": "7s", `, 1)))
	c, ms := &e.h.configs, &e.h.metrics
	gauge, counter := ms.byName["dubbo.orders.request_active"], ms.byName["dubbo.orders.request"]
	gauge.add(2)
	counter.add(2)
	require.NoError(t, e.Load(dubbo("b"))) // is refused, and stands for errors
	require.Nil(t, c.byID[3].proxy)
	ms.release(c.byID[1].metrics)
	ms.release(c.byID[2].metrics)
	require.EqualValues(t, 2, gauge.value.Load())
	ms.release(c.byID[3].instead.metrics)
	require.Zero(t, gauge.value.Load())
	require.EqualValues(t, 2, counter.value.Load())
}

// TestEnvoysThreadDoesNotWait: what comes while somebody else is at work is done by that
// one, in its order.
func TestEnvoysThreadDoesNotWait(t *testing.T) {
	m := &echo{}
	e := newEnvoy(t, m, true)
	require.NoError(t, e.Load("{}"))
	p := e.dial(PluginName)
	p.Send([]byte("a"))
	e.Until("it is there", func() bool { return len(p.Received()) == 1 })
	w := p.c.w
	w.lock.Lock()
	w.begin()
	p.Send([]byte("b"))
	p.Send([]byte("c"))
	q := e.dial(PluginName)
	q.Send([]byte("x"))
	through := make(chan struct{})
	q.Close()
	e.post(func() { close(through) })
	<-through // Envoy's thread has gone on
	require.Equal(t, "a", string(p.Received()))
	w.leave()
	e.Until("it is done", func() bool { return string(p.Received()) == "abc" })
	e.Until("the other one has come and gone", func() bool { q.mu.Lock(); defer q.mu.Unlock(); return q.released })
	p.mu.Lock()
	defer p.mu.Unlock()
	require.Equal(t, 2, p.writes, "what was done together goes together")
}

// TestAClientThatIsNotReadIsNotHeldForEver: Envoy reads it all the same.
func TestAClientThatIsNotReadIsNotHeldForEver(t *testing.T) {
	m := &echo{deaf: true}
	e := newEnvoy(t, m, true)
	require.NoError(t, e.Load("{}"))
	p := e.dial(PluginName)
	piece := make([]byte, 1<<20)
	for range maxHeld/len(piece) + 2 {
		p.Send(piece)
	}
	e.Until("it is closed", p.Ended)
	require.EqualValues(t, 1, e.h.metrics.process[clientsOverrun].Load())
}

// TestClientsThatAreNotReadHaveOneBound: of all that wait, that of the one goes of which
// most does.
func TestClientsThatAreNotReadHaveOneBound(t *testing.T) {
	m := &echo{deaf: true}
	e := newEnvoy(t, m, true)
	require.NoError(t, e.Load("{}"))
	const n = 5
	piece := make([]byte, 1<<20)
	var ps []*peer
	for i := range n {
		p := e.dial(PluginName)
		ps = append(ps, p)
		for range 9 - i {
			p.Send(piece)
		}
	}
	// The last one's third piece is one too many.
	e.Until("one is closed, and the others are held", func() bool {
		if !ps[0].accepted.Load() {
			return false
		}
		w := ps[0].c.w
		w.lock.Lock()
		defer w.lock.Unlock()
		return ps[0].c.gone && w.holding.size == (8+7+6+5)<<20 && len(w.holding.clients) == n-1
	})
	require.True(t, ps[0].Ended())
	for _, p := range ps[1:] {
		require.False(t, p.Ended())
	}
	require.EqualValues(t, 1, e.h.metrics.process[clientsOverrun].Load())
}

// TestWhatIsHeldKeepsItsOrder in pieces of all sizes, however it is taken.
func TestWhatIsHeldKeepsItsOrder(t *testing.T) {
	c := &Client{w: &worker{}}
	rnd := rand.New(rand.NewPCG(1, 2))
	var sent, got []byte
	for range 1000 {
		b := make([]byte, rnd.IntN(3000))
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		skip := rnd.IntN(len(b) + 1)
		c.hold([][]byte{b[:len(b)/3], b[len(b)/3:]}, skip)
		sent = append(sent, b[skip:]...)
		n := rnd.IntN(c.held.size + 1)
		got = append(got, bytes.Join(c.held.chunks, nil)[:n]...)
		c.release(n)
		require.Equal(t, c.held.size, c.w.holding.size)
	}
	got = append(got, bytes.Join(c.held.chunks, nil)...)
	c.release(c.held.size)
	require.True(t, bytes.Equal(sent, got))
	require.Empty(t, c.w.holding.clients)
}

// TestALoopbackListenerThatComesLater is waited for.
func TestALoopbackListenerThatComesLater(t *testing.T) {
	e := newEnvoy(t, filter.NewModule(), true)
	path := e.h.settings.Path
	e.h.settings.Path += ".later"
	require.NoError(t, e.Load(dubbo(hosttest.Cluster)))
	p := e.dial(PluginName)
	p.Send(dubbotest.Request{ID: 7}.Bytes())
	e.Until("it is there", p.accepted.Load)
	e.Until("it waits", func() bool {
		w := p.c.w
		w.lock.Lock()
		defer w.lock.Unlock()
		return w.opening
	})
	w := p.c.w
	w.lock.Lock()
	e.h.settings.Path = path
	w.lock.Unlock()
	e.Until("a server", func() bool { return len(e.Servers()) > 0 })
	require.Empty(t, p.Received())
}

// TestWhatClientsHaveNotRead is found out by their sockets.
func TestWhatClientsHaveNotRead(t *testing.T) {
	m := &echo{}
	e := newEnvoy(t, m, true)
	require.NoError(t, e.Load("{}"))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer client.Close()
	server, err := l.Accept()
	require.NoError(t, err)
	defer server.Close()
	// Envoy's buffer, which has no bounds.
	var mu sync.Mutex
	var buffer bytes.Buffer
	more := make(chan struct{}, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range more {
			mu.Lock()
			b := append([]byte(nil), buffer.Bytes()...)
			buffer.Reset()
			mu.Unlock()
			if _, err := server.Write(b); err != nil {
				return
			}
		}
	}()
	p := e.dialWith(PluginName, func(p *peer) {
		p.remote = client.LocalAddr().String()
		p.written = func(b []byte) {
			mu.Lock()
			buffer.Write(b)
			mu.Unlock()
			select {
			case more <- struct{}{}:
			default:
			}
		}
	})
	total := 0
	e.Until("it is known not to read", func() bool {
		if total < 64<<20 {
			p.Send(make([]byte, 1<<20))
			total += 1 << 20
		}
		return m.blocked.Load()
	})
	e.Until("all of it is with Envoy", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.bytes == total
	})
	_, err = io.CopyN(io.Discard, client, int64(total))
	require.NoError(t, err)
	e.Until("it is known to read again", func() bool { return !m.blocked.Load() })
	close(more)
	server.Close()
	<-done
}

// TestMetricsAsEnvoyPrintsThem are on our own page.
func TestMetricsAsEnvoyPrintsThem(t *testing.T) {
	e := newEnvoy(t, filter.NewModule(), true)
	require.NoError(t, e.Load(dubbo("c")))
	e.h.metrics.byName["dubbo.orders.request"].add(3)
	e.h.metrics.byName["dubbo.orders.request_time_ms"].record([]uint64{7})
	w := httptest.NewRecorder()
	e.h.pages().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	require.Equal(t, 200, w.Code, w.Body.String())
	for _, want := range []string{
		"\nenvoy_meta_protocol_dubbo_orders_request 3\n", "\nenvoy_meta_protocol_dubbo_orders_request_time_ms_count 1\n",
		"\nenvoy_meta_protocol_config_refused 0\n", "\nmeltemi_build_info{",
	} {
		require.Contains(t, w.Body.String(), want)
	}
	w = httptest.NewRecorder()
	e.h.pages().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/routes", nil))
	require.Equal(t, 200, w.Code)
}

func TestSettings(t *testing.T) {
	s, err := SettingsOf("")
	require.NoError(t, err)
	require.Equal(t, "@meltemi", s.Path)
	require.True(t, s.Connect)
	s, err = SettingsOf(`{"path": "/run/m", "connect": false, "admin_address": "127.0.0.1:0"}`)
	require.NoError(t, err)
	require.Equal(t, "/run/m", s.Path)
	require.False(t, s.Connect)
	require.Equal(t, "127.0.0.1:0", s.Admin)
	s, err = SettingsOf(`{"admin_address": "unix:/run/a"}`)
	require.NoError(t, err)
	require.Equal(t, "@meltemi", s.Path)
	for value, want := range map[string]string{
		"{": "unexpected end", `{"connect": 1}`: "connect: want true or false", `{"admin_address": "x"}`: "admin_address: want", `{"oops": 1}`: "oops", "null": "want an object",
	} {
		s, err := SettingsOf(value)
		require.ErrorContains(t, err, want)
		require.Equal(t, defaults, s, "it goes on with the default")
	}
}

func TestRepliesToConnect(t *testing.T) {
	ok := "HTTP/1.1 200 OK\r\nX-Meltemi-Host: 10.0.0.3:1\r\nserver: envoy\r\n\r\n"
	for i := range len(ok) {
		_, n, err := parseReply([]byte(ok[:i]))
		require.NoError(t, err)
		require.Zero(t, n)
	}
	r, n, err := parseReply([]byte(ok + "bytes"))
	require.NoError(t, err)
	require.Equal(t, len(ok), n)
	require.Equal(t, reply{host: "10.0.0.3:1"}, r)
	for flags, want := range map[string]host.CloseReason{
		"NC": host.NoCluster, "NR": host.NoCluster, "UH": host.NoHost, "UO": host.Overflow, "UF": host.ConnectFailed, "URX,UF": host.ConnectFailed, "": host.ConnectFailed,
	} {
		r, n, err := parseReply([]byte("HTTP/1.1 503 Service Unavailable\r\nx-meltemi-host: -\r\nx-meltemi-flags: " + flags + "\r\n\r\n"))
		require.NoError(t, err)
		require.Positive(t, n)
		require.True(t, r.failed)
		require.Equal(t, want, r.why, flags)
		require.Empty(t, r.host)
	}
	for _, bad := range []string{"SSH-2.0", "HTTP/1.0 200 OK", strings.Repeat("x", maxReply+1), ok[:9] + strings.Repeat("x", maxReply)} {
		_, _, err := parseReply([]byte(bad))
		require.Error(t, err)
	}
}

func TestHostsThatAreSeen(t *testing.T) {
	var hs hosts
	counts := func(want int, assumed bool, cluster string) {
		t.Helper()
		n, a := hs.count(cluster)
		require.Equal(t, want, n)
		require.Equal(t, assumed, a)
	}
	counts(assumedHosts, true, "c")
	hs.saw("c", "")
	for i := range sampledHosts {
		counts(assumedHosts, true, "c")
		hs.saw("c", []string{"a", "b"}[i%2])
	}
	counts(2, false, "c")
	hs.clusters["c"].seen["a"] = time.Now().Add(-2 * hostTime)
	hs.saw("c", "b")
	counts(1, false, "c")
	counts(assumedHosts, true, "d")
}

// TestAnUnknownClusterIsKnownForOne: requests need not wait for the next attempt to connect.
func TestAnUnknownClusterIsKnownForOne(t *testing.T) {
	e := newEnvoy(t, filter.NewModule(), true)
	require.NoError(t, e.Load(dubbo(unknown)))
	p := e.dial(PluginName)
	p.Send(dubbotest.Request{ID: 7}.Bytes())
	e.Until("it is told", func() bool { return strings.Contains(string(p.Received()), "unknown cluster "+unknown) })
	w := p.c.w
	w.lock.Lock()
	defer w.lock.Unlock()
	w.now = w.missing.until[unknown] - 1
	_, known, ok := w.ClusterHosts(unknown)
	require.True(t, ok)
	require.False(t, known)
	_, known, _ = w.ClusterHosts(hosttest.Cluster)
	require.True(t, known)
	w.now++
	_, known, _ = w.ClusterHosts(unknown)
	require.True(t, known, "it may have come")
	w.missing.add("another", w.now)
	require.Len(t, w.missing.until, 1)
}
