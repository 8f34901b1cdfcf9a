package istio

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/mesh"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// seeing starts a pod with a server that tells which IP address it sees.
func (s *shop) seeing(spec mesh.PodSpec) (pod *mesh.Pod, seen chan string) {
	s.t.Helper()
	pod = s.Pods(spec)[0]
	seen = make(chan string, 100)
	l, err := pod.Listen(fmt.Sprintf("%s:%d", pod.IP, targetPort))
	require.NoError(s.t, err)
	scripted.ServeOn(s.t, l, func(c *scripted.Conn, req dubbotest.Parsed) {
		select {
		case seen <- c.RemoteAddr().(*net.TCPAddr).IP.String():
		default: // of calls that are repeated until they get elsewhere nobody asks
		}
		scripted.Answer("here")(c, req)
	})
	s.endpoints(pod)
	return pod, seen
}

// TestServersSeeTheirClients: under TPROXY a server sees its clients' addresses,
// as it does without Meltemi, if it is asked for.
func TestServersSeeTheirClients(t *testing.T) {
	s := openShop(t)
	other := s.Pods(mesh.PodSpec{Name: "other", Role: mesh.Sidecar})[0]
	spec := server("v1")
	spec.TPROXY = true
	pod, seen := s.seeing(spec)
	ask := func(from *mesh.Pod, id uint64) (as string) {
		t.Helper()
		c := s.dial(from, fmt.Sprintf("%s:%d", s.vip, port))
		c.Ask(id, hello)
		require.Equal(t, "here", c.Read().Text())
		return <-seen
	}
	require.Equal(t, s.client.IP, ask(s.client, 1), "plain Istio")
	s.steer(s.description(""))
	s.Eventually("our filter", func() bool { return serving(pod, "meltemi-inbound") })
	s.Eventually("the proxy's address", func() bool { return ask(s.client, 2) == "127.0.0.6" })
	s.steer(strings.NewReplacer(
		"server: {", "server: {preserveSource: true, ",
		"inbound: {", "inbound: {protocol: {connection_mode: EXCLUSIVE}, ",
	).Replace(s.description("")))
	s.Eventually("the client's address", func() bool { return ask(s.client, 3) == s.client.IP })
	time.Sleep(maxAge + time.Second) // by then nothing goes over connections made before: that is promised
	requests := func() (n int64) {
		for _, v := range pod.Stats(fmt.Sprintf("^meta_protocol.*inbound.%d.*[.]request$", targetPort)) {
			n += v
		}
		return n
	}
	before := requests()
	for id := range uint64(10) {
		require.Equal(t, s.client.IP, ask(s.client, id))
		require.Equal(t, other.IP, ask(other, id))
	}
	s.Eventually("all requests counted by Meltemi", func() bool { return requests() >= before+20 })

	// Under REDIRECT that cannot be, and is left alone.
	_, redirected := s.seeing(server("v2"))
	s.Eventually("a call that gets there", func() bool {
		c := s.dial(s.client, fmt.Sprintf("%s:%d", s.vip, port))
		c.Ask(1, hello)
		require.Equal(t, "here", c.Read().Text())
		return len(redirected) > 0
	})
	require.Equal(t, "127.0.0.6", <-redirected)
}

// TestServersSeeTheProxy: under REDIRECT a server sees 127.0.0.6, as it does
// without Meltemi, and is found at the address that the client's proxy chose.
func TestServersSeeTheProxy(t *testing.T) {
	s := openShop(t)
	pod, seen := s.seeing(server("v1"))
	c := s.dial(s.client, fmt.Sprintf("%s:%d", s.vip, port))
	c.Ask(1, hello)
	require.Equal(t, "here", c.Read().Text())
	require.Equal(t, "127.0.0.6", <-seen, "plain Istio")
	s.route("")
	pod.WaitConfig("ecds_filters", "meltemi-inbound")
	for id := range uint64(10) {
		c := s.dial(s.client, fmt.Sprintf("%s:%d", s.vip, port))
		c.Ask(id, hello)
		require.Equal(t, "here", c.Read().Text())
		require.Equal(t, "127.0.0.6", <-seen)
	}
}

// podConfig is what `meltemi envoyfilter -pods` has pods say of their proxies, but
// for the metadata, and what their agents gather.
func podConfig(t *testing.T) (config map[string]any, scrapeTarget string) {
	t.Helper()
	out, err := exec.Command(filepath.Join(peers.Root(), "build", "meltemi"), "envoyfilter", "-pods").Output()
	require.NoError(t, err)
	var patch struct {
		Spec struct {
			Template struct {
				Metadata struct{ Annotations map[string]string }
			}
		}
	}
	require.NoError(t, yaml.Unmarshal(out, &patch))
	annotations := patch.Spec.Template.Metadata.Annotations
	require.NoError(t, yaml.Unmarshal([]byte(annotations["proxy.istio.io/config"]), &config))
	require.Contains(t, config, "proxyStatsMatcher")
	delete(config, "proxyMetadata") // pods here have it as variables
	require.Len(t, annotations, 2)
	return config, annotations["prometheus.istio.io/scrape-targets"]
}

// TestCountersAreAtPrometheus: where a mesh's Prometheus looks, of client and
// server, whose pods ask for no other statistics. The agent's page has Envoy's
// statistics, and our metrics, which Envoy does not have.
func TestCountersAreAtPrometheus(t *testing.T) {
	config, target := podConfig(t)
	s := openShopTo(t, mesh.PodSpec{ProxyConfig: config, ScrapeTarget: target})
	spec := server("v1")
	spec.ProxyConfig, spec.ScrapeTarget = config, target
	s.servers["v1"] = s.Pods(spec)[0]
	s.serve("v1", peers.DubboGo)
	s.endpoints(s.servers["v1"])
	s.steer(s.description(""))
	s.client.WaitConfig("ecds_filters", "meltemi-outbound")
	s.servers["v1"].WaitConfig("ecds_filters", "meltemi-inbound")
	s.Eventually("our filters", func() bool { return settled(s.client) && serving(s.servers["v1"], "meltemi-inbound") })
	answers(t, s.consumer(peers.DubboGo, peers.ConsumerOptions{}), 100, "v1")
	for name, p := range map[string]*mesh.Pod{
		fmt.Sprintf("outbound_%d__greeter_%s_svc_cluster_local", port, strings.ReplaceAll(s.Name, "-", "_")): s.client,
		fmt.Sprintf("inbound_%d__", targetPort): s.servers["v1"],
	} {
		for _, url := range []string{"http://%s:15090/stats/prometheus", "http://%s:15020/stats/prometheus"} {
			s.Eventually(name+" at "+url, func() bool {
				text, err := p.Get(fmt.Sprintf(url, p.IP))
				require.NoError(t, err)
				return strings.Contains(text, "envoy_meta_protocol_dubbo_"+name+"_response_success{} 100\n")
			})
		}
	}
	for cluster, p := range map[string]*mesh.Pod{s.cluster(""): s.client, fmt.Sprintf("inbound|%d||", targetPort): s.servers["v1"]} {
		text, err := p.Get(fmt.Sprintf("http://%s:15020/stats/prometheus", p.IP))
		require.NoError(t, err)
		families := map[string]bool{}
		for _, line := range strings.Split(text, "\n") {
			if name, ok := strings.CutPrefix(line, "# TYPE "); ok {
				name, _, _ = strings.Cut(name, " ")
				require.False(t, families[name], "%s is there twice", name)
				families[name] = true
			}
		}
		for _, name := range []string{
			"meltemi_requests_total", "meltemi_request_duration_seconds", "meltemi_listener_response_success_total",
			"meltemi_go_goroutines", "meltemi_build_info", "envoy_cluster_upstream_cx_total", "istio_agent_go_goroutines",
		} {
			require.Contains(t, families, name)
		}
		parser := expfmt.NewTextParser(model.UTF8Validation)
		all, err := parser.TextToMetricFamilies(strings.NewReader(text))
		require.NoError(t, err)
		calls := map[string]float64{}
		for _, m := range all["meltemi_requests_total"].GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			calls[labels["method"]+" "+labels["outcome"]+" "+labels["cluster"]] += m.GetCounter().GetValue()
		}
		require.InDelta(t, 100, calls["who ok "+cluster], 0, calls)
	}
}

// TestAStrangerCannotUseTheLoopbackSocket: another process of the pod reaches
// no cluster by it.
func TestAStrangerCannotUseTheLoopbackSocket(t *testing.T) {
	s := openShop(t, "v1")
	s.route("")
	c := s.consumer(peers.DubboGo, peers.ConsumerOptions{})
	answers(t, c, 10, "v1")
	for name, tlvs := range map[string]map[byte]string{
		"without a token":      nil,
		"with a guessed token": {0xE1: "00000000000000000000000000000000:1"},
		"naming a cluster":     {0xE0: s.cluster(""), 0xE1: "secret"},
	} {
		t.Run(name, func(t *testing.T) {
			nc, err := s.client.DialUnix("@meltemi")
			require.NoError(t, err)
			defer nc.Close()
			_, err = nc.Write(append(prologue(tlvs), dubbotest.Request{ID: 1}.Bytes()...))
			require.NoError(t, err)
			require.NoError(t, nc.SetReadDeadline(time.Now().Add(10*time.Second)))
			n, err := nc.Read(make([]byte, 1))
			require.Error(t, err)
			require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
			require.Zero(t, n)
		})
	}
	require.Contains(t, s.client.Log(), "without this process's token")
	answers(t, c, 10, "v1")
}

// prologue is a PROXY header of version 2 with TLVs.
func prologue(tlvs map[byte]string) []byte {
	body := []byte{127, 0, 0, 1, 127, 0, 0, 1, 0, 1, 0, 1}
	for k, v := range tlvs {
		body = append(body, k)
		body = binary.BigEndian.AppendUint16(body, uint16(len(v)))
		body = append(body, v...)
	}
	b := append([]byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11"), 0, 0)
	binary.BigEndian.PutUint16(b[14:], uint16(len(body)))
	return append(b, body...)
}
