package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/docs"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
	"github.com/meltemi-mesh/meltemi/e2e/internal/rdsserver"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// rdsUpdates is how many there are under load: a thousand in a full run.
func rdsUpdates() int {
	if *matrix == "full" {
		return 1000
	}
	return 200
}

// discovered is a configuration whose routes come from a server: a service of gRPC.
func discovered(protocol, statPrefix, apiType string, service envoytest.M) envoytest.M {
	c := envoytest.Protocol(protocol, statPrefix)
	delete(c, "route_config")
	c["rds"] = envoytest.M{"route_config_name": statPrefix, "config_source": envoytest.M{"api_config_source": envoytest.M{
		"api_type": apiType, "transport_api_version": "V3", "grpc_services": []any{service},
	}}}
	return c
}

// fromCluster is a service that Envoy connects to.
func fromCluster() envoytest.M { return envoytest.M{"envoy_grpc": envoytest.M{"cluster_name": "xds"}} }

func fromAddress(port int) envoytest.M {
	return envoytest.M{"google_grpc": envoytest.M{"target_uri": "127.0.0.1:" + strconv.Itoa(port), "stat_prefix": "xds"}}
}

// TestRoutesAreUpdatedUnderLoad: updates come while real clients call without pause: none of the
// calls fails, and all connections follow.
func TestRoutesAreUpdatedUnderLoad(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		s := rdsserver.Start(t, 0, nil)
		wire := peers.Wire{Transport: "framed", Protocol: "strict"}
		o := v.options()
		o.Clusters = []envoytest.Resource{envoytest.Cluster("xds", envoytest.At(s.Port)...)}
		for _, name := range []string{"a", "b"} {
			dubbo := peers.DubboGo.Provider(t, peers.ProviderOptions{Name: name})
			thrift := peers.ThriftGo.Server(t, name, wire)
			o.Clusters = append(o.Clusters, envoytest.Cluster("dubbo-"+name, envoytest.At(dubbo.Port)...), envoytest.Cluster("thrift-"+name, envoytest.At(thrift.Port)...))
		}
		o.Listeners = []envoytest.Resource{
			envoytest.Loopback(envoytest.Socket()),
			envoytest.Listener("dubbo", envoytest.Proxy(discovered("dubbo", "test", "GRPC", fromCluster()))),
			envoytest.Listener("thrift", envoytest.Proxy(discovered("thrift", "thrift", "DELTA_GRPC", fromAddress(s.Port)))),
		}
		e := envoytest.Start(t, o)
		require.True(t, eventually(patience, func() bool { open, _ := s.Streams(); return open == 2 }))
		s.To("test", "dubbo-a")
		s.To("thrift", "thrift-a")
		clients := map[string]*peers.Consumer{
			"dubbo":  peers.DubboGo.Consumer(t, e.Port("dubbo"), peers.ConsumerOptions{}),
			"thrift": peers.ThriftGo.Client(t, e.Port("thrift"), wire, 0),
		}
		methods := map[string]string{"dubbo": "who", "thrift": "who"}
		sums := map[string]peers.Summary{}
		update := 0
		load := func() {
			running := map[string]*peers.Pending{}
			for protocol, c := range clients {
				running[protocol] = c.Go(peers.Command{Method: methods[protocol], DurationMS: 2000, Concurrency: 8, Summary: true})
			}
			for until := time.Now().Add(1800 * time.Millisecond); time.Now().Before(until); update++ {
				to := []string{"b", "a"}[update%2]
				s.To("test", "dubbo-"+to)
				s.To("thrift", "thrift-"+to)
			}
			for protocol, p := range running {
				sum := p.Summary()
				require.Empty(t, sum.Errors, protocol)
				sums[protocol] = sum
			}
		}
		for update < rdsUpdates() {
			before := update
			load()
			require.Greater(t, update, before)
			for protocol, sum := range sums {
				require.Len(t, sum.Values, 2, "%s: both servers have been called", protocol)
			}
		}
		t.Logf("%d updates of each; in the last round %v", update, sums)
		for range 2 {
			update++
			to := []string{"b", "a"}[update%2]
			s.To("test", "dubbo-"+to)
			s.To("thrift", "thrift-"+to)
			for protocol, c := range clients {
				require.Equal(t, to, c.Call(peers.Command{Method: methods[protocol]}).Value)
			}
		}
		open, ever := s.Streams()
		require.Equal(t, []int{2, 2}, []int{open, ever})
		e.WaitStat(stats+"rds_update_success", envoytest.AtLeast(int64(rdsUpdates())))
		e.WaitStat("meta_protocol.thrift.thrift.rds_update_success", envoytest.AtLeast(int64(rdsUpdates())))
		require.Zero(t, e.Stat(stats+"rds_update_rejected")+e.Stat(stats+"rds_update_failure"))
		checkCounters(t, e)
	})
}

// caller is a client that makes one call after the other.
type caller struct {
	*scripted.Client
	t  *testing.T
	id uint64
}

func (c *caller) call() string {
	c.t.Helper()
	c.id++
	c.Ask(c.id, dubbotest.Request{})
	f := c.Read()
	require.Equal(c.t, c.id, f.ID)
	return f.Text()
}

// TestAnRDSServerComesAndGoes: requests wait for it at first, and go on by the last
// routes that were good, whatever it says, and when it is gone.
func TestAnRDSServerComesAndGoes(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		for what, apiType := range map[string]string{"state of the world": "GRPC", "delta": "DELTA_GRPC"} {
			t.Run(what, func(t *testing.T) {
				a, b := scripted.Serve(t, scripted.Answer("a")), scripted.Serve(t, scripted.Answer("b"))
				port := rdsserver.Port(t)
				e := v.start(t, discovered("dubbo", "test", apiType, fromCluster()),
					envoytest.Cluster("a", envoytest.At(a.Port)...), envoytest.Cluster("b", envoytest.At(b.Port)...), envoytest.Cluster("xds", envoytest.At(port)...))
				c := &caller{Client: scripted.Dial(t, e.Port("dubbo")), t: t}
				c.Ask(0, dubbotest.Request{})
				e.WaitStat(stats+"request_active", envoytest.Exactly(1))
				s := rdsserver.Start(t, port, nil)
				stream := func() {
					t.Helper()
					require.True(t, eventually(patience, func() bool { open, _ := s.Streams(); return open == 1 }))
				}
				stream()
				s.To("test", "a")
				require.Equal(t, "a", c.Read().Text())
				s.To("test", "b")
				require.Equal(t, "b", c.call())

				require.Contains(t, s.Say("test", &clusterv3.Cluster{Name: "test"}), "resources[0]: want type.googleapis.com/envoy.config.route.v3.RouteConfiguration or")
				require.Contains(t, s.SayAny("test", &anypb.Any{TypeUrl: "type.googleapis.com/envoy.config.route.v3.RouteConfiguration", Value: []byte("\xffgarbage")}), "resources[0]: the bytes are no serialized")
				require.Equal(t, "b", c.call())
				held := "2"

				s.Kill()
				before := e.Stat(stats + "rds_update_failure")
				require.Equal(t, "b", c.call())
				e.WaitStat(stats+"rds_update_failure", envoytest.AtLeast(before+1))
				require.Equal(t, 1, strings.Count(e.Log(), `going on with version "2"`))

				s = rdsserver.Start(t, port, nil) // with nothing
				stream()
				require.Equal(t, held, s.Held())
				require.Equal(t, "b", c.call())
				s.Kill()
				s = rdsserver.Start(t, port, nil).From(99)
				stream()
				s.To("test", "a")
				require.Equal(t, "a", c.call())
				require.Contains(t, e.Log(), `meltemi: rds: routes "test", version "100", from cluster xds`)
				require.EqualValues(t, 2, e.Stat(stats+"rds_update_rejected"))
				checkCounters(t, e)
			})
		}
	})
}

// TestListenersShareARDSStream, also the versions of one, and when the last has gone so
// has the stream. Nor does a listener's update leave a request without routes, and the
// loopback listener's ends no more than the stream.
func TestListenersShareAnRDSStream(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		a, b := scripted.Serve(t, scripted.Answer("a")), scripted.Serve(t, scripted.Answer("b"))
		s := rdsserver.Start(t, 0, nil)
		o := v.options()
		o.Clusters = []envoytest.Resource{
			envoytest.Cluster("a", envoytest.At(a.Port)...), envoytest.Cluster("b", envoytest.At(b.Port)...), envoytest.Cluster("xds", envoytest.At(s.Port)...),
		}
		loopback := envoytest.Loopback(envoytest.Socket())
		port := peers.RestartPort(t)
		listener := func(name, timeout string) envoytest.Resource {
			c := discovered("dubbo", name, "GRPC", fromCluster())
			c["rds"].(envoytest.M)["route_config_name"] = "test"
			c["request_timeout"] = timeout
			l := envoytest.Listener(name, envoytest.Proxy(c))
			if name == "test" {
				l = l.On(port)
			}
			return l
		}
		o.Listeners = []envoytest.Resource{loopback, listener("test", "5s"), listener("other", "5s")}
		e := envoytest.Start(t, o)
		require.True(t, eventually(patience, func() bool { open, _ := s.Streams(); return open == 1 }))
		s.To("test", "a")
		one, two := &caller{Client: scripted.Dial(t, port), t: t}, &caller{Client: scripted.Dial(t, e.Port("other")), t: t}
		require.Equal(t, "a", one.call())
		require.Equal(t, "a", two.call())
		for _, timeout := range []string{"6s", "7s"} {
			require.True(t, e.SetListeners(loopback, listener("test", timeout), listener("other", "5s")))
			s.To("test", "b")
			require.Equal(t, "b", two.call())
			s.To("test", "a")
			require.Equal(t, "a", (&caller{Client: scripted.Dial(t, port), t: t}).call())
		}
		require.Equal(t, "a", two.call())
		_, ever := s.Streams()
		require.Equal(t, 1, ever)

		loopback["stat_prefix"] = "second"
		require.True(t, e.SetListeners(loopback, listener("test", "7s"), listener("other", "5s")))
		require.True(t, eventually(patience, func() bool { open, ever := s.Streams(); return open == 1 && ever == 2 }), "with the drain time of the one before")
		s.To("test", "b")
		require.Equal(t, "b", two.call())
		two.Close()
		if v.golang {
			// Of its functions (dso.h, NetworkFilterDsoImpl) none tells that a configuration is not
			// needed any more.
			return
		}
		require.True(t, e.SetListeners(loopback))
		require.True(t, eventually(patience, func() bool { open, _ := s.Streams(); return open == 0 }))
	})
}

// TestRDSThroughEnvoysTLS: the server wants a certificate of its client, and Envoy has
// one.
func TestRDSThroughEnvoysTLS(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		dir := t.TempDir()
		secure, roots := certificate(t, dir)
		secure.ClientAuth, secure.ClientCAs = tls.RequireAndVerifyClientCert, roots
		s := rdsserver.Start(t, 0, secure)
		a := scripted.Serve(t, scripted.Answer("a"))
		file := func(name string) envoytest.M { return envoytest.M{"filename": filepath.Join(dir, name)} }
		xds := envoytest.Cluster("xds", envoytest.At(s.Port)...).With(envoytest.M{"transport_socket": envoytest.M{
			"name": "envoy.transport_sockets.tls",
			"typed_config": envoytest.M{
				"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
				"common_tls_context": envoytest.M{
					"alpn_protocols":     []any{"h2"},
					"tls_certificates":   []any{envoytest.M{"certificate_chain": file("cert.pem"), "private_key": file("key.pem")}},
					"validation_context": envoytest.M{"trusted_ca": file("cert.pem")},
				},
			},
		}})
		e := v.start(t, discovered("dubbo", "test", "GRPC", fromCluster()), envoytest.Cluster("a", envoytest.At(a.Port)...), xds)
		require.True(t, eventually(patience, func() bool { open, _ := s.Streams(); return open == 1 }), e.Log())
		s.To("test", "a")
		require.Equal(t, "a", (&caller{Client: scripted.Dial(t, e.Port("dubbo")), t: t}).call())
		require.Positive(t, e.Stat("cluster.xds.ssl.handshake"))
	})
}

// TestTheGuidesRDS: the configurations of docs/traffic.md, but for ports and paths.
func TestTheGuidesRDS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	secure, roots := certificate(t, dir)
	require.NoError(t, os.Link(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "ca.pem")))
	secure.ClientAuth, secure.ClientCAs = tls.RequireAndVerifyClientCert, roots
	s := rdsserver.Start(t, 0, secure)
	var parts []envoytest.M
	for _, b := range docs.Blocks(source(t, "docs/traffic.md")) {
		if b.Section == "RDS" && b.Kind == "yaml" {
			text := strings.NewReplacer("/etc/xds", dir, "/etc/meltemi", dir, "15010", strconv.Itoa(s.Port)).Replace(b.Text)
			var part envoytest.M
			require.NoError(t, yaml.Unmarshal([]byte(text), &part))
			parts = append(parts, part)
			if part["resources"] != nil {
				require.NoError(t, os.WriteFile(filepath.Join(dir, "routes.yaml"), []byte(text), 0o600))
			}
		}
	}
	require.Len(t, parts, 4)
	once(t, func(t *testing.T, v variant) {
		v1, v2 := scripted.Serve(t, scripted.Answer("v1")), scripted.Serve(t, scripted.Answer("v2"))
		parts[1]["@type"] = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
		o := v.options()
		o.Clusters = []envoytest.Resource{envoytest.Cluster("v1", envoytest.At(v1.Port)...), envoytest.Cluster("v2", envoytest.At(v2.Port)...), parts[1]}
		parts[2]["stat_prefix"] = "from-file"
		o.Listeners = []envoytest.Resource{
			envoytest.Loopback(envoytest.Socket()),
			envoytest.Listener("server", envoytest.Proxy(parts[0])), envoytest.Listener("file", envoytest.Proxy(parts[2])),
		}
		e := envoytest.Start(t, o)
		call := func(listener, tenant string) string {
			c := scripted.Dial(t, e.Port(listener))
			c.Ask(1, dubbotest.Request{Attachments: [][2]string{{"tenant", tenant}}})
			return c.Read().Text()
		}
		require.Equal(t, "v2", call("file", "acme"))
		require.Equal(t, "v1", call("file", "other"))
		require.True(t, eventually(patience, func() bool { open, _ := s.Streams(); return open == 1 }))
		s.To("greeter", "v2")
		require.Equal(t, "v2", call("server", "other"))
	})
}

// certificate is one of this machine's, for server and client, in files too.
func certificate(t *testing.T, dir string) (*tls.Config, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
	require.NoError(t, os.WriteFile(filepath.Join(dir, "cert.pem"), certPEM, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "key.pem"), keyPEM, 0o600))
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(certPEM)
	return &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2"}}, roots
}

// TestRoutesFromAFile, and none at first.
func TestRoutesFromAFile(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		a, b := scripted.Serve(t, scripted.Answer("a")), scripted.Serve(t, scripted.Answer("b"))
		path := filepath.Join(t.TempDir(), "routes.yaml")
		write := func(cluster string) {
			require.NoError(t, os.WriteFile(path+".new", []byte(`
resources:
- "@type": type.googleapis.com/aeraki.meta_protocol_proxy.config.route.v1alpha.RouteConfiguration
  name: test
  routes: [{route: {cluster: `+cluster+`}}]
`), 0o600))
			require.NoError(t, os.Rename(path+".new", path))
		}
		c := envoytest.Dubbo("test")
		delete(c, "route_config")
		c["rds"] = envoytest.M{"route_config_name": "test", "config_source": envoytest.M{
			"path_config_source": envoytest.M{"path": path}, "initial_fetch_timeout": "1s",
		}}
		e := v.start(t, c, envoytest.Cluster("a", envoytest.At(a.Port)...), envoytest.Cluster("b", envoytest.At(b.Port)...))
		client := &caller{Client: scripted.Dial(t, e.Port("dubbo")), t: t}
		require.Contains(t, client.call(), "there are no routes yet")
		for _, to := range []string{"a", "b"} {
			write(to)
			require.True(t, eventually(patience, func() bool { return client.call() == to }))
		}
		checkCounters(t, e)
	})
}
