package istio

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/mesh"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// operatorNamespace is where the guide installs the operator.
const operatorNamespace = "meltemi-system"

// madeByOperator finds what an operator has written.
const madeByOperator = "app.kubernetes.io/managed-by=meltemi-operator"

// cluster is one in which nothing of Meltemi is, but for what a test installs.
type cluster struct {
	t     *testing.T
	image mesh.Image // of the operator's container
}

func openCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, image: mesh.Image{Root: t.TempDir(), Entrypoint: []string{"/meltemi-operator"}}}
	b, err := os.ReadFile(filepath.Join(peers.Root(), "build", "meltemi-operator"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(c.image.Root, "meltemi-operator"), b, 0o755))
	require.NoError(t, world.Apply("", "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+operatorNamespace+"}\n"))
	c.clear()
	t.Cleanup(c.clear)
	return c
}

// clear removes what Helm, an operator, and kubectl before them have left.
func (c *cluster) clear() {
	c.helm("uninstall", "meltemi", "meltemi-crds", "--ignore-not-found")
	c.kubectl("delete", "envoyfilters,virtualservices", "-A", "-l", madeByOperator)
	c.kubectl("delete", "leases,secrets", "--all", "-n", operatorNamespace)
	c.kubectl("delete", "--ignore-not-found", "-f", mesh.CRDs(peers.Root()))
}

func chart(name string) string { return filepath.Join(peers.Root(), "charts", name) }

// helm runs Helm for the operator's namespace; it must succeed.
func (c *cluster) helm(args ...string) string {
	c.t.Helper()
	out, err := world.Helm(append(args, "-n", operatorNamespace)...)
	require.NoError(c.t, err)
	return out
}

func (c *cluster) kubectl(args ...string) string {
	c.t.Helper()
	out, err := world.Kubectl("", args...)
	require.NoError(c.t, err)
	return out
}

// install installs both charts, that of the operator with further arguments.
func (c *cluster) install(args ...string) {
	c.t.Helper()
	c.helm("install", "meltemi-crds", chart("meltemi-crds"))
	c.helm(append([]string{"install", "meltemi", chart("meltemi")}, args...)...)
}

// operator is what Helm has installed. It does not run yet.
func (c *cluster) operator() *mesh.Deployment {
	c.t.Helper()
	return world.Deployment(c.t, operatorNamespace, "meltemi-operator", c.image)
}

// TestTheChartsAreSound: what they make of values is what the API server knows, and values
// that mean nothing are refused.
func TestTheChartsAreSound(t *testing.T) {
	c := openCluster(t)
	c.helm("lint", "--strict", chart("meltemi"), chart("meltemi-crds"))
	template := func(args ...string) string {
		t.Helper()
		return c.helm(append([]string{"template", "meltemi", chart("meltemi")}, args...)...)
	}
	for name, tc := range map[string]struct {
		values    []string
		want, not []string // regular expressions
	}{
		"nothing": {nil, []string{
			`replicas: 2\n`, `image: "meltemi-operator:0\.1\.0"`, `kind: PodDisruptionBudget`, `kind: NetworkPolicy`, `prometheus\.io/scrape: "true"`,
			`topologyKey: kubernetes\.io/hostname`, `readOnlyRootFilesystem: true`, `capabilities: {drop: \[ALL\]}`, `runAsUser: 65532`,
		}, []string{`rds`, `15010`, `ServiceMonitor`, `DestinationRule`, `volumes:`}},
		"one alone":     {[]string{"replicas=1"}, []string{`replicas: 1\n`}, []string{`PodDisruptionBudget`}},
		"little":        {[]string{"networkPolicy.enabled=false", "metrics.annotations=false", "podDisruptionBudget.enabled=false", "runAsUser=null", "topologySpreadConstraints=null", "resources=null"}, nil, []string{`NetworkPolicy`, `prometheus\.io`, `PodDisruptionBudget`, `runAsUser`, `topologySpread`, `resources:\n  +limits`}},
		"another Istio": {[]string{"istio.rootNamespace=mesh", "istio.clusterDomain=example.test"}, []string{`-root-namespace=mesh\n`, `-cluster-domain=example\.test\n`, `namespace: mesh\n`}, []string{`istio-system`}},
		"an image":      {[]string{"image.repository=example/op", "image.digest=sha256:" + strings.Repeat("a", 64), "image.pullSecrets[0].name=registry"}, []string{`image: "example/op@sha256:a{64}"`, `imagePullSecrets:\n +- name: registry`}, nil},
		"rds": {[]string{"rds.enabled=true", "rds.trustDomain=td"}, []string{
			`- -rds-address=:15010\n`, `-rds-trust-domain=td\n`, `-rds-roots=/etc/meltemi/certificates/root-cert\.pem`, `sidecar\.istio\.io/inject: "true"`, `OUTPUT_CERTS: /etc/meltemi/certificates`,
			`name: grpc-rds, port: 15010`, `host: meltemi-operator\.meltemi-system\.svc\.cluster\.local`, `mode: ISTIO_MUTUAL`, `emptyDir: {medium: Memory}`, `port: 15012`,
		}, nil},
		"rds, with a secret":    {[]string{"rds.enabled=true", "rds.certificates=secret", "rds.secretName=s"}, []string{`secretName: s}`, `certificates/tls\.crt`, `ISTIO_MUTUAL`}, []string{`OUTPUT_CERTS`, `emptyDir`, `15012`}},
		"rds, without TLS":      {[]string{"rds.enabled=true", "rds.certificates=none"}, []string{`- -rds-insecure\n`, `port: 15010`}, []string{`DestinationRule`, `volumes:`}},
		"where pods may be":     {[]string{"affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].key=x", "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].operator=Exists", "nodeSelector.a=b", "tolerations[0].operator=Exists", "priorityClassName=high", "podLabels.team=x", "podAnnotations.note=y"}, []string{`nodeAffinity:`, `nodeSelector:\n +a: b`, `tolerations:\n +- operator: Exists`, `priorityClassName: high`, `team: x`, `note: "?y`}, nil},
		"who may scrape":        {[]string{"networkPolicy.metricsFrom[0].podSelector.matchLabels.a=b", "networkPolicy.apiServerPorts={443,16443}", "podDisruptionBudget.maxUnavailable=50%"}, []string{`from:\n +- podSelector:`, `port: 16443`, `maxUnavailable: 50%`}, []string{`port: 6443`}},
		"constraints of others": {[]string{"topologySpreadConstraints[0].maxSkew=2", "topologySpreadConstraints[0].topologyKey=zone", "topologySpreadConstraints[0].whenUnsatisfiable=DoNotSchedule", "topologySpreadConstraints[0].labelSelector.matchLabels.a=b"}, []string{`labelSelector:\n +matchLabels:\n +a: b\n`, `maxSkew: 2`}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var args []string
			for _, v := range tc.values {
				args = append(args, "--set", v)
			}
			text := template(args...)
			for _, re := range tc.want {
				require.Regexp(t, re, text)
			}
			for _, re := range tc.not {
				require.NotRegexp(t, re, text)
			}
			require.NoError(t, world.Apply("", "apiVersion: v1\nkind: Namespace\nmetadata: {name: mesh}\n"))
			_, err := world.Kubectl(text, "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-")
			require.NoError(t, err, text)
		})
	}
	// The Prometheus Operator's schema is not here.
	monitor := template("--set", "metrics.serviceMonitor.enabled=true,metrics.serviceMonitor.interval=15s,metrics.serviceMonitor.labels.release=p", "--show-only", "templates/servicemonitor.yaml")
	require.Regexp(t, `(?s)apiVersion: monitoring\.coreos\.com/v1\nkind: ServiceMonitor\n.*release: p\n.*endpoints:\n  - port: http-metrics\n    interval: 15s\n$`, monitor)

	for value, want := range map[string]string{
		"replicaz=3":                              "replicaz",
		"image.repo=x":                            "repo",
		"replicas=-1":                             "replicas",
		"logLevel=loud":                           "logLevel",
		"workers=0":                               "workers",
		"rds.certificates=vault":                  "certificates",
		"rds.certificates=secret":                 "secretName",
		"rds.secretName=s":                        "secretName",
		"image.digest=sha256:1":                   "digest",
		"image.pullPolicy=Sometimes":              "pullPolicy",
		"runAsUser=0":                             "runAsUser",
		"metrics.serviceMonitor.interval=often":   "interval",
		"networkPolicy.apiServerPorts={0}":        "apiServerPorts",
		"podDisruptionBudget.maxUnavailable=0":    "maxUnavailable",
		"terminationGracePeriodSeconds=5":         "terminationGracePeriodSeconds",
		"istio.rootNamespace=Istio":               "rootNamespace",
		"resources.request.cpu=1":                 "request",
		"metrics.serviceMonitor.labels.release=1": "release",
		// What would be read as other YAML than it stands for, and what the chart itself says.
		"istio.clusterDomain=a: b":                       "clusterDomain",
		"rds.trustDomain= #td":                           "trustDomain",
		"image.repository=a b":                           "repository",
		"rds.secretName=a: b":                            "secretName",
		"priorityClassName=a: b":                         "priorityClassName",
		`podLabels.app\.kubernetes\.io/name=x`:           "app.kubernetes.io/name",
		`podLabels.sidecar\.istio\.io/inject=x`:          "sidecar.istio.io/inject",
		`podAnnotations.proxy\.istio\.io/config=x`:       "proxy.istio.io/config",
		`podAnnotations.prometheus\.io/port=x`:           "prometheus.io/port",
		`metrics.serviceMonitor.labels.helm\.sh/chart=x`: "helm.sh/chart",
	} {
		_, err := world.Helm("template", "meltemi", chart("meltemi"), "--set", value)
		require.ErrorContains(t, err, "values don't meet the specifications of the schema", value)
		require.ErrorContains(t, err, want, value)
	}
	_, err := world.Helm("template", "meltemi-crds", chart("meltemi-crds"), "--set", "a=b")
	require.ErrorContains(t, err, "schema")

	// What kubectl has applied becomes Helm's.
	c.kubectl("apply", "--server-side", "-f", mesh.CRDs(peers.Root()))
	_, err = world.Helm("install", "meltemi-crds", chart("meltemi-crds"), "-n", operatorNamespace)
	require.ErrorContains(t, err, "invalid ownership metadata")
	c.helm("install", "meltemi-crds", chart("meltemi-crds"), "--take-ownership")
}

// objects are all of the API server's that can be listed, but for events, what istiod puts
// into each namespace, and what the API server and istiod keep for themselves.
func (c *cluster) objects() []string {
	c.t.Helper()
	var kinds []string
	for _, k := range strings.Fields(c.kubectl("api-resources", "--verbs=list", "-o", "name")) {
		if !strings.HasPrefix(k, "events") && k != "componentstatuses" {
			kinds = append(kinds, k)
		}
	}
	out := c.kubectl("get", strings.Join(kinds, ","), "-A", "-o", `go-template={{range .items}}{{.kind}} {{.metadata.namespace}} {{.metadata.name}}{{"\n"}}{{end}}`)
	all := strings.Split(strings.TrimSpace(out), "\n")
	return slices.DeleteFunc(all, func(o string) bool {
		return strings.HasSuffix(o, " istio-ca-root-cert") || strings.HasPrefix(o, "APIService ") || strings.HasPrefix(o, "IPAddress ") || strings.HasPrefix(o, "Lease kube-") || strings.HasPrefix(o, "Lease istio-")
	})
}

// TestHelmInstallsAndRemoves: upgrades, of the schemas too, what is refused, the way back,
// and that what is removed is gone, but for what the guide says.
func TestHelmInstallsAndRemoves(t *testing.T) {
	c := openCluster(t)
	before := c.objects()
	c.install("--set", "replicas=1")
	op := c.operator()
	op.Start()

	n := world.Namespace(t)
	host := "greeter." + n.Name + ".svc.cluster.local"
	t.Cleanup(func() { n.Kubectl("", "delete", "metarouters", "--all", "-n", n.Name, "--ignore-not-found") })
	n.Apply(strings.ReplaceAll(greeterService, "tcp-dubbo", "tcp-metaprotocol-dubbo"))
	n.Apply(router("greeter", host, "  routes: [{route: [{destination: {host: greeter, subset: v1}}]}]\n"))
	conditions(n, "greeter", "Accepted=True Programmed=True")

	deployed := func(path string) string {
		return c.kubectl("get", "deployment", "meltemi-operator", "-n", operatorNamespace, "-o", "jsonpath={.spec."+path+"}")
	}
	t.Run("upgrade", func(t *testing.T) {
		args := deployed("template.spec.containers[0].args")
		c.helm("upgrade", "meltemi", chart("meltemi"), "--reset-then-reuse-values", "--set", "logLevel=debug")
		require.Equal(t, strings.ReplaceAll(args, "-log-level=info", "-log-level=debug"), deployed("template.spec.containers[0].args"))
		require.Equal(t, "1", deployed("replicas"), "what was said stays")
		op.Stop()
		op.Start()
		n.Apply(router("greeter", host, "  routes: [{route: [{destination: {host: greeter, subset: v2}}]}]\n"))
		n.Eventually("the new route", func() bool {
			return strings.Contains(c.kubectl("get", "envoyfilters", "-A", "-l", madeByOperator, "-o", "yaml"), "|v2|")
		})
		require.Contains(t, op.Log(), `"level":"DEBUG"`)
	})
	t.Run("an upgrade that is refused", func(t *testing.T) {
		_, err := world.Helm("upgrade", "meltemi", chart("meltemi"), "-n", operatorNamespace, "--set", "logLevel=loud")
		require.ErrorContains(t, err, "logLevel")
		require.Contains(t, deployed("template.spec.containers[0].args"), "debug")
		require.Contains(t, c.helm("status", "meltemi"), "STATUS: deployed\nREVISION: 2\n")
	})
	t.Run("rollback", func(t *testing.T) {
		c.helm("rollback", "meltemi", "1")
		require.Contains(t, deployed("template.spec.containers[0].args"), "-log-level=info")
		op.Stop()
		op.Start()
		require.NotContains(t, op.Log(), `"level":"DEBUG"`)
	})
	t.Run("schemas", func(t *testing.T) {
		newer := filepath.Join(t.TempDir(), "meltemi-crds")
		require.NoError(t, os.CopyFS(newer, os.DirFS(chart("meltemi-crds"))))
		file := filepath.Join(newer, "templates", "metaprotocol.aeraki.io_metarouters.yaml")
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		const of = "          spec:\n"
		require.Equal(t, 1, strings.Count(string(b), of))
		at := strings.Index(string(b), of) + len(of)
		at += strings.Index(string(b)[at:], "            properties:\n") + len("            properties:\n")
		require.NoError(t, os.WriteFile(file, slices.Insert(b, at, []byte("              later: {type: string}\n")...), 0o600))
		later := func() error {
			return n.TryApply(router("greeter", host, "  later: yes please\n  routes: [{route: [{destination: {host: greeter, subset: v2}}]}]\n"))
		}
		require.ErrorContains(t, later(), `unknown field "spec.later"`)
		c.helm("upgrade", "meltemi-crds", newer)
		n.Eventually("the newer schema", func() bool { return later() == nil })
		c.helm("rollback", "meltemi-crds")
		n.Eventually("the older schema", func() bool { return later() != nil })
		conditions(n, "greeter", "Accepted=True Programmed=True")
	})
	t.Run("uninstall", func(t *testing.T) {
		op.Stop()
		made := strings.Fields(c.kubectl("get", "envoyfilters", "-A", "-l", madeByOperator, "-o", "name"))
		require.Len(t, made, 4)
		c.helm("uninstall", "meltemi")
		c.helm("uninstall", "meltemi-crds")
		// Proxies go on with what there is, and with that the operator goes on when it comes back.
		require.Equal(t, made, strings.Fields(c.kubectl("get", "envoyfilters", "-A", "-l", madeByOperator, "-o", "name")))
		var left []string
		for _, o := range c.objects() {
			if !slices.Contains(before, o) && !strings.Contains(o, " "+n.Name) {
				left = append(left, o)
			}
		}
		require.ElementsMatch(t, []string{
			"CustomResourceDefinition <no value> applicationprotocols.metaprotocol.aeraki.io",
			"CustomResourceDefinition <no value> dubboauthorizationpolicies.dubbo.aeraki.io",
			"CustomResourceDefinition <no value> metarouters.metaprotocol.aeraki.io",
			"EnvoyFilter istio-system meltemi-loopback", "EnvoyFilter istio-system meltemi-loopback-golang",
			"EnvoyFilter istio-system meltemi-outbound-greeter." + n.Name + "-20880",
			"Lease meltemi-system meltemi-operator",
		}, left)
		certificate := c.certificate()
		c.install("--set", "rds.enabled=true,rds.certificates=secret,rds.secretName=certificate")
		op.Start()
		conn, err := op.Dial(op.Address("grpc-rds"))
		require.NoError(t, err)
		defer conn.Close()
		client := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}) //nolint:gosec // the certificate is compared
		require.NoError(t, client.Handshake())
		require.Equal(t, certificate, client.ConnectionState().PeerCertificates[0].Raw)
		n.Delete("service", "greeter")
		n.Eventually("nothing that was made", func() bool {
			return c.kubectl("get", "envoyfilters", "-A", "-l", madeByOperator, "-o", "name") == ""
		})
		op.Stop()
	})
}

// TestTheControlPlanesGuide does what docs/control-plane.md tells its reader to do, and sees
// what it promises.
func TestTheControlPlanesGuide(t *testing.T) {
	c := openCluster(t)
	n := world.Namespace(t)
	n.Apply(`
apiVersion: v1
kind: Service
metadata: {name: orders}
spec: {selector: {app: orders}, ports: [{name: tcp-dubbo, port: 20880}]}
`)
	r := newReader(t, n, "shop", "docs/control-plane.md", nil)
	op := c.operator()
	steps := r.follow(func(section string, step int) {
		switch {
		case section == "Install" && step == 1:
			op.Start()
		case section == "A service" && step == 1:
			n.Eventually("the service's filters", func() bool {
				return strings.Count(c.kubectl("get", "envoyfilters", "-A", "-l", madeByOperator, "-o", "name"), "orders."+n.Name) == 2
			})
		case section == "Upgrade":
			op.Stop()
			op.Start()
			require.Equal(t, step == 1, strings.Contains(op.Log(), `"level":"DEBUG"`))
		case section == "Uninstall" && step == 1:
			op.Stop()
			c.kubectl("get", "metarouter", "orders", "-n", n.Name)
		}
	})
	require.Equal(t, map[string]int{"Install": 2, "A service": 2, "Upgrade": 2, "Uninstall": 2}, steps)
	require.NotContains(t, strings.Join(c.objects(), "\n"), "meltemi-operator")
}

// certificate makes a Secret of that name with one of the operator's identity, which is
// returned.
func (c *cluster) certificate() []byte {
	t := c.t
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	id, err := url.Parse("spiffe://cluster.local/ns/" + operatorNamespace + "/sa/meltemi-operator")
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, URIs: []*url.URL{id},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	private, err := x509.MarshalECPrivateKey(key)
	require.NoError(t, err)
	cert := base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	require.NoError(t, world.Apply(operatorNamespace, fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: certificate}
type: kubernetes.io/tls
data: {tls.crt: %[1]s, ca.crt: %[1]s, tls.key: %[2]s}
`, cert, base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private})))))
	return der
}

// right is one thing that a role lets do.
type right struct{ namespace, group, resource, name, verb string }

func (r right) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s %s/%s %s %s", r.verb, r.group, r.resource, r.name, r.namespace))
}

// covers tells whether a request needs the right.
func (r right) covers(q mesh.Request) bool {
	resource := q.Object.Resource
	if q.Object.Subresource != "" {
		resource += "/" + q.Object.Subresource
	}
	return q.Verb == r.verb && q.Object.APIGroup == r.group && resource == r.resource &&
		(r.namespace == "" || r.namespace == q.Object.Namespace) && (r.name == "" || r.name == q.Object.Name)
}

// rights are those of the operator.
func (c *cluster) rights() (all []right) {
	c.t.Helper()
	var roles struct {
		Items []struct {
			Metadata struct{ Namespace string }
			Rules    []struct{ APIGroups, Resources, ResourceNames, Verbs []string }
		}
	}
	out := c.kubectl("get", "clusterroles,roles", "-A", "-l", "app.kubernetes.io/part-of=meltemi", "-o", "json")
	require.NoError(c.t, json.Unmarshal([]byte(out), &roles))
	require.Len(c.t, roles.Items, 3)
	for _, role := range roles.Items {
		for _, rule := range role.Rules {
			if rule.ResourceNames == nil {
				rule.ResourceNames = []string{""}
			}
			for _, g := range rule.APIGroups {
				for _, r := range rule.Resources {
					for _, name := range rule.ResourceNames {
						for _, v := range rule.Verbs {
							all = append(all, right{role.Metadata.Namespace, g, r, name, v})
						}
					}
				}
			}
		}
	}
	return all
}

// TestHelmGivesTheLeastRights: the operator does all that it does with what the chart lets it
// do; it asks for nothing else, and needs all of it.
func TestHelmGivesTheLeastRights(t *testing.T) {
	c := openCluster(t)
	asked, err := world.Requests(operatorNamespace, "meltemi-operator")
	require.NoError(t, err)
	earlier := len(asked)
	c.install()
	op := c.operator()
	op.Start()

	n := world.Namespace(t)
	t.Cleanup(func() {
		n.Kubectl("", "delete", "metarouters,dubboauthorizationpolicies", "--all", "-n", n.Name, "--ignore-not-found")
		n.Kubectl("", "delete", "applicationprotocols", "--all", "--ignore-not-found")
	})
	host := "greeter." + n.Name + ".svc.cluster.local"
	n.Apply(strings.ReplaceAll(greeterService, "tcp-dubbo", "tcp-metaprotocol-dubbo"))
	n.Apply(`
apiVersion: v1
kind: Service
metadata: {name: public}
spec: {selector: {istio: public}, ports: [{name: tcp-a, port: 20880}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: public}
spec:
  selector: {istio: public}
  servers: [{port: {number: 20880, name: tcp-metaprotocol-dubbo, protocol: TCP}, hosts: ["*"]}]
---
apiVersion: metaprotocol.aeraki.io/v1alpha1
kind: ApplicationProtocol
metadata: {name: own}
spec: {protocol: own, codec: aeraki.meta_protocol.codec.dubbo}
---
apiVersion: dubbo.aeraki.io/v1alpha1
kind: DubboAuthorizationPolicy
metadata: {name: all}
spec: {action: ALLOW, rules: [{to: [{operation: {methods: [sayHello]}}]}]}
`)
	n.Apply(router("greeter", host, "  gateways: [public]\n  routes: [{route: [{destination: {host: greeter, subset: v1}}]}]\n"))
	conditions(n, "greeter", "Accepted=True Programmed=True")
	made := func(kinds string) string {
		out, err := n.Kubectl("", "get", kinds, "-n", n.Name, "-l", madeByOperator, "-o", "name")
		require.NoError(t, err)
		return strings.TrimSpace(out)
	}
	service := made("virtualservices")
	filter := "envoyfilter.networking.istio.io/meltemi-inbound-greeter." + n.Name + "-20881"
	require.Contains(t, made("envoyfilters"), filter)

	// What is written anew, what hands add beside what is written, and what goes.
	n.Apply(router("greeter", host, "  gateways: [public]\n  routes: [{route: [{destination: {host: greeter, subset: v2}}]}]\n"))
	conditions(n, "greeter", "Accepted=True Programmed=True")
	for object, patch := range map[string]string{filter: `{"spec":{"workloadSelector":{"labels":{"a":"b"}}}}`, service: `{"spec":{"exportTo":["."]}}`} {
		spec := func() string {
			out, err := n.Kubectl("", "get", object, "-n", n.Name, "-o", "jsonpath={.spec}")
			require.NoError(t, err)
			return out
		}
		before := spec()
		_, err := n.Kubectl("", "patch", object, "-n", n.Name, "--type=merge", "-p", patch)
		require.NoError(t, err)
		n.Eventually("the spec as it was", func() bool { return spec() == before })
	}
	n.Delete("service", "greeter")
	n.Eventually("nothing that was made", func() bool { return made("envoyfilters,virtualservices") == "" })
	op.Stop()
	// Where the API server cannot stream lists, objects are listed.
	c.image.Env = append(c.image.Env, "KUBE_FEATURE_WatchListClient=false")
	op = c.operator()
	op.Start()

	// An apply of what is not there is a patch, for which the API server wants both rights.
	hidden := map[right]bool{
		{"", "networking.istio.io", "envoyfilters", "", "create"}:    true,
		{"", "networking.istio.io", "virtualservices", "", "create"}: true,
	}
	var unused []right
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("rights without use:", unused)
		}
	})
	for _, r := range c.rights() {
		if !hidden[r] {
			unused = append(unused, r)
		}
	}
	n.Eventually("use of all rights", func() bool {
		asked, err = world.Requests(operatorNamespace, "meltemi-operator")
		require.NoError(t, err)
		asked = asked[earlier:]
		unused = slices.DeleteFunc(unused, func(r right) bool { return slices.ContainsFunc(asked, r.covers) })
		return len(unused) == 0
	})
	op.Stop()
	for _, q := range asked {
		require.True(t, q.Allowed(), "%s %s: %v", q.Verb, q.URI, q.Notes)
	}

	const who = "--as=system:serviceaccount:" + operatorNamespace + ":meltemi-operator"
	apply := func(kind string) error {
		_, err := world.Kubectl("apiVersion: networking.istio.io/v1alpha3\nkind: "+kind+"\nmetadata: {name: x, namespace: default}\n", "apply", who, "--server-side", "--dry-run=server", "-f", "-")
		return err
	}
	for _, kind := range []string{"EnvoyFilter", "VirtualService"} {
		if err := apply(kind); err != nil {
			require.NotContains(t, err.Error(), "forbidden")
		}
	}
	istio := []string{"serviceentries", "workloadentries", "workloadgroups", "destinationrules", "gateways", "sidecars", "proxyconfigs"}
	var questions []string
	ask := func(verb, group, resource, subresource string) {
		for _, ns := range []string{operatorNamespace, mesh.RootNamespace, n.Name} {
			questions = append(questions, fmt.Sprintf(`
apiVersion: authorization.k8s.io/v1
kind: SubjectAccessReview
spec:
  user: system:serviceaccount:%s:meltemi-operator
  groups: [system:serviceaccounts, system:serviceaccounts:%[1]s, system:authenticated]
  resourceAttributes: {verb: %s, group: %q, resource: %s, subresource: %q, namespace: %s}
`, operatorNamespace, verb, group, resource, subresource, ns))
		}
	}
	for _, verb := range []string{"get", "list", "watch", "create", "update", "patch", "delete"} {
		ask(verb, "", "secrets", "")
		ask(verb, "", "configmaps", "")
		ask(verb, "", "pods", "")
		ask(verb, "rbac.authorization.k8s.io", "rolebindings", "")
		ask(verb, "security.istio.io", "authorizationpolicies", "")
		if verb != "get" && verb != "list" && verb != "watch" {
			for _, r := range istio {
				ask(verb, "networking.istio.io", r, "")
			}
			ask(verb, "", "services", "")
			ask(verb, "metaprotocol.aeraki.io", "metarouters", "")
			ask(verb, "dubbo.aeraki.io", "dubboauthorizationpolicies", "")
		}
	}
	ask("create", "", "serviceaccounts", "token")
	ask("create", "", "pods", "exec")
	ask("impersonate", "", "serviceaccounts", "")
	ask("escalate", "rbac.authorization.k8s.io", "clusterroles", "")
	out, err := world.Kubectl(strings.Join(questions, "---"), "create", "-f", "-", "-o", `jsonpath={.status.allowed}{.items[*].status.allowed} {.spec.resourceAttributes}{"\n"}`)
	require.NoError(t, err)
	require.Equal(t, len(questions), strings.Count(out, "false"), out)
	require.NotContains(t, out, "true")

	// Without the right to create, an apply is refused.
	_, err = world.Kubectl("", "patch", "clusterrole", "meltemi-operator", "--type=json", "-p",
		`[{"op": "test", "path": "/rules/3/verbs/2", "value": "create"}, {"op": "remove", "path": "/rules/3/verbs/2"}]`)
	require.NoError(t, err)
	n.Eventually("a refused apply", func() bool {
		a, b := apply("EnvoyFilter"), apply("VirtualService")
		return a != nil && b != nil && strings.Contains(a.Error(), `cannot create resource "envoyfilters"`) && strings.Contains(b.Error(), `cannot create resource "virtualservices"`)
	})
}
