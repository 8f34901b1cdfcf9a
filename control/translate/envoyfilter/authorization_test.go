package envoyfilter

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	hosts "github.com/meltemi-mesh/meltemi/filter/host"
)

// TestWhoMayCallWhat: what comes of policies lets pass and refuses what Istio would, were
// they for HTTP.
func TestWhoMayCallWhat(t *testing.T) {
	s := load(t, "host: a.b.svc.cluster.local\nclients: []\n"+ports+oneForm+`server: {selector: {a: b}}
authorization:
- rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/web], notIpBlocks: [10.9.0.0/16]}}, {source: {namespaces: [ops, "test-*"]}}]
    to: [{operation: {methods: ["get*", list], notMethods: ["*Secret"]}}, {operation: {paths: [/org.example.Greeter/sayHello]}}]
- rules: [{to: [{operation: {paths: ["/org.example.Health/*"]}}]}]
- rules: [{from: [{source: {principals: ["*"]}}], to: [{operation: {methods: ["*"]}}], when: [{key: "request.headers[tenant]", values: [acme]}]}]
- action: DENY
  rules: [{from: [{source: {notNamespaces: [ops]}}], to: [{operation: {methods: [listAll]}}]}]
- action: AUDIT
  rules: [{}]
`)
	g := &generator{s: s}
	cfg := g.config(&s.Ports[0], "inbound", "t", []any{object{"route": object{"cluster": "up"}}})
	g.authorize(cfg)
	require.Equal(t, 3, g.ahead)
	raw, err := json.Marshal(cfg)
	require.NoError(t, err)
	h := filtertest.New(t)
	h.Cluster("up", "10.0.0.3:20880").Serve = func(s *filtertest.Server, b []byte) int {
		requests, rest := dubbotest.Parse(b)
		for _, r := range requests {
			s.Send(dubbotest.Response(r.ID, "served"))
		}
		return len(b) - len(rest)
	}
	loaded := h.MustLoad(string(raw))
	for _, tt := range []struct {
		principal       string // after "spiffe://", "" of plain TCP
		service, method string
		tenant          string
		served          bool
	}{
		{"cluster.local/ns/shop/sa/web", "Greeter", "sayHello", "", true},
		{"cluster.local/ns/shop/sa/web", "Greeter", "getBook", "", true},
		{"cluster.local/ns/shop/sa/web", "Greeter", "list", "", true},
		{"cluster.local/ns/shop/sa/web", "Greeter", "listAll", "", false},
		{"cluster.local/ns/shop/sa/web", "Greeter", "getSecret", "", false},
		{"cluster.local/ns/shop/sa/web", "Greeter", "target", "", false},
		{"cluster.local/ns/shop/sa/web2", "Greeter", "list", "", false},
		{"cluster.local/ns/ops/sa/x", "Greeter", "list", "", true},
		{"cluster.local/ns/test-1/sa/x", "Greeter", "list", "", true},
		{"cluster.local/ns/test/sa/x", "Greeter", "list", "", false},
		{"cluster.local/ns/x/sa/ops", "Greeter", "list", "", false},
		{"", "Greeter", "list", "", false},
		{"", "Health", "check", "", true},
		{"", "HealthToo", "check", "", false},
		{"cluster.local/ns/x/sa/y", "Greeter", "delete", "acme", true},
		{"cluster.local/ns/x/sa/y", "Greeter", "listAll", "acme", false},
		{"cluster.local/ns/ops/sa/y", "Greeter", "listAll", "acme", true},
		{"", "Greeter", "delete", "acme", false},
	} {
		c := h.Dial(loaded)
		if tt.principal != "" {
			c = h.DialTLS(loaded, hosts.TLS{Mutual: true, URISANs: []string{"spiffe://" + tt.principal}})
		}
		r := dubbotest.Request{ID: 1, Interface: "org.example." + tt.service, Method: tt.method}
		if tt.tenant != "" {
			r.Attachments = [][2]string{{"tenant", tt.tenant}}
		}
		c.Send(r.Bytes())
		answers, _ := dubbotest.Parse(c.Take())
		require.Len(t, answers, 1)
		want := "RBAC: access denied"
		if tt.served {
			want = "served"
		}
		require.Equal(t, want, answers[0].Text(), "%+v", tt)
	}
}
