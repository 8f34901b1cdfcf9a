package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// authority is a mesh's, that signs certificates.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	a.cert, a.key = a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "mesh"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	return a
}

func (a *authority) sign(c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.t, err)
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, parentKey := a.cert, a.key
	if parent == nil {
		parent, parentKey = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), parentKey)
	require.NoError(a.t, err)
	signed, err := x509.ParseCertificate(der)
	require.NoError(a.t, err)
	return signed, key
}

// issue is a certificate as Envoy's configuration has it.
func (a *authority) issue(c x509.Certificate) envoytest.M {
	a.t.Helper()
	c.KeyUsage, c.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	cert, key := a.sign(&c)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(a.t, err)
	return envoytest.M{"certificate_chain": inPEM("CERTIFICATE", cert.Raw), "private_key": inPEM("PRIVATE KEY", secret)}
}

func inPEM(kind string, der []byte) envoytest.M {
	return envoytest.M{"inline_string": string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))}
}

// context is a side's of TLS, with a certificate unless that is nil. The clients' has
// more fields, as the servers' has.
func (a *authority) context(side string, cert envoytest.M, more envoytest.M) envoytest.M {
	common := envoytest.M{"validation_context": envoytest.M{"trusted_ca": inPEM("CERTIFICATE", a.cert.Raw)}}
	if cert != nil {
		common["tls_certificates"] = []any{cert}
	}
	more["@type"] = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3." + side + "TlsContext"
	more["common_tls_context"] = common
	return envoytest.M{"name": "envoy.transport_sockets.tls", "typed_config": more}
}

// secured is an Envoy with a listener "in", which terminates TLS, and for each client's
// name one that plain clients connect to: it calls "in" with the client's certificate.
func secured(t *testing.T, v variant, a *authority, config envoytest.M, clients map[string]envoytest.M, clusters ...envoytest.Resource) *envoytest.Envoy {
	t.Helper()
	in := envoytest.Listener("in", envoytest.Proxy(config)).With(envoytest.M{"listener_filters": []any{envoytest.M{
		"name":         "envoy.filters.listener.tls_inspector",
		"typed_config": envoytest.M{"@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"},
	}}})
	server := a.issue(x509.Certificate{DNSNames: []string{"in.example.com"}})
	in["filter_chains"].([]any)[0].(envoytest.M)["transport_socket"] = a.context("Downstream", server, envoytest.M{})
	o := v.options()
	o.Listeners = []envoytest.Resource{envoytest.Loopback(envoytest.Socket()), in}
	o.Clusters = clusters
	for name, cert := range clients {
		o.Listeners = append(o.Listeners, envoytest.Listener(name, envoytest.TCPProxy("as-"+name)))
		o.Clusters = append(o.Clusters, envoytest.Cluster("as-"+name).With(envoytest.M{
			"transport_socket": a.context("Upstream", cert, envoytest.M{"sni": "in.example.com"}),
		}))
	}
	e := envoytest.Start(t, o)
	for name := range clients {
		e.SetEndpoints("as-"+name, envoytest.At(e.Port("in"))...)
	}
	return e
}

// guarded puts filters with these rules before the router.
func guarded(config envoytest.M, rules ...envoytest.M) envoytest.M {
	var filters []any
	for _, r := range rules {
		filters = append(filters, envoytest.M{"name": "aeraki.meta_protocol.filters.rbac", "config": envoytest.M{
			"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.rbac.v1alpha.RBAC", "rules": r,
		}})
	}
	config["meta_protocol_filters"] = append(filters, envoytest.M{"name": "aeraki.meta_protocol.filters.router"})
	return config
}

func policies(action string, ps envoytest.M) envoytest.M {
	return envoytest.M{"action": action, "policies": ps}
}

// may is a policy: who may call what ends so.
func may(call string, permission, principal envoytest.M) envoytest.M {
	path := envoytest.M{"url_path": envoytest.M{"path": envoytest.M{"suffix": call}}}
	return envoytest.M{
		"permissions": []any{envoytest.M{"and_rules": envoytest.M{"rules": []any{path, permission}}}},
		"principals":  []any{principal},
	}
}

var anything = envoytest.M{"any": true}

func principal(kind, name string) envoytest.M {
	return envoytest.M{"authenticated": envoytest.M{"principal_name": envoytest.M{kind: name}}}
}

func spiffe(account string) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/shop/sa/" + account}
}

// TestWhatIsKnownOfAClient: each method wants another thing of its caller.
func TestWhatIsKnownOfAClient(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		a := newAuthority(t)
		one := scripted.Serve(t, scripted.Answer("one"))
		e := secured(t, v, a, guarded(envoytest.Dubbo("test", envoytest.Route("one", nil)), policies("ALLOW", envoytest.M{
			"uri":     may("/uri", anything, principal("exact", spiffe("web").String())),
			"uri2":    may("/second", anything, principal("suffix", "/sa/second")),
			"dns":     may("/dns", anything, principal("exact", "web.example.com")),
			"subject": may("/subject", anything, principal("contains", "CN=web")),
			"mutual":  may("/mutual", anything, envoytest.M{"authenticated": envoytest.M{}}),
			"sni":     may("/sni", envoytest.M{"requested_server_name": envoytest.M{"exact": "in.example.com"}}, anything),
			"address": may("/address", envoytest.M{"destination_ip": envoytest.M{"address_prefix": "127.0.0.1", "prefix_len": 32}},
				envoytest.M{"and_ids": envoytest.M{"ids": []any{
					envoytest.M{"direct_remote_ip": envoytest.M{"address_prefix": "127.0.0.0", "prefix_len": 8}},
					envoytest.M{"remote_ip": envoytest.M{"address_prefix": "127.0.0.0", "prefix_len": 8}},
				}}}),
		})), map[string]envoytest.M{
			"web": a.issue(x509.Certificate{
				URIs: []*url.URL{spiffe("web"), spiffe("second")}, DNSNames: []string{"web.example.com"}, Subject: pkix.Name{CommonName: "web"},
			}),
			"subject":  a.issue(x509.Certificate{Subject: pkix.Name{CommonName: "web"}}),
			"nameless": a.issue(x509.Certificate{IPAddresses: []net.IP{net.IPv4(10, 0, 0, 1)}}),
			"nobody":   nil,
		}, envoytest.Cluster("one", envoytest.At(one.Port)...))
		always := map[string]bool{"sni": true, "address": true}
		for client, known := range map[string]map[string]bool{
			"web":     {"uri": true, "second": true, "dns": true, "subject": true, "mutual": true},
			"subject": {"subject": true, "mutual": true},
			// Envoy 1.38 tells only what is in a certificate.
			"nameless": {"mutual": v.version != "1.38.3"},
			"nobody":   {},
		} {
			c := scripted.Dial(t, e.Port(client))
			for _, method := range []string{"uri", "second", "dns", "subject", "mutual", "sni", "address"} {
				c.Ask(1, dubbotest.Request{Method: method})
				want := "RBAC: access denied"
				if known[method] || always[method] {
					want = "one"
				}
				require.Equal(t, want, c.Read().Text(), "%s calls %s", client, method)
			}
		}
		e.WaitStat(stats+"rbac.allowed", envoytest.AtLeast(15))
		require.Equal(t, e.Stat(stats+"rbac.denied"), e.Stat(stats+"local_response_business_exception"))
		checkCounters(t, e)
	})
}

// TestRealClientsAreGuarded: what one client may call, but for a method, another may not
// call at all.
func TestRealClientsAreGuarded(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		for protocol, denied := range map[string]peers.Command{
			"dubbo": {Method: "sayHello", Args: []any{"x"}}, "trpc": trpcCall("SayHello", "x"),
			"brpc": brpcCall("SayHello", "x"), "thrift": thriftCall("echo", "x"),
		} {
			t.Run(protocol, func(t *testing.T) {
				a, r := newAuthority(t), refusers[protocol]
				config := guarded(envoytest.Protocol(protocol, "test", envoytest.Route("one", nil)),
					policies("DENY", envoytest.M{"no-" + denied.Method: may("/"+denied.Method, anything, anything)}),
					policies("ALLOW", envoytest.M{"web": envoytest.M{
						"permissions": []any{anything}, "principals": []any{principal("exact", spiffe("web").String())},
					}}))
				e := secured(t, v, a, config, map[string]envoytest.M{
					"web":   a.issue(x509.Certificate{URIs: []*url.URL{spiffe("web")}}),
					"other": a.issue(x509.Certificate{URIs: []*url.URL{spiffe("other")}}),
				}, envoytest.Cluster("one", envoytest.At(r.good(t))...))
				web, other := r.client(t, e.Port("web")), r.client(t, e.Port("other"))
				require.Equal(t, "s1", web.Call(r.who).Value)
				for c, cmd := range map[*peers.Consumer]peers.Command{web: denied, other: r.who} {
					answer := c.Call(cmd)
					require.Contains(t, answer.Error, "RBAC: access denied", "%s", answer.ErrorType)
				}
				require.Equal(t, "s1", web.Call(r.who).Value, "its connection goes on")
				e.WaitStat("meta_protocol."+protocol+".test.rbac.denied", envoytest.AtLeast(2))
			})
		}
	})
}
