package command

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/control/status"
)

// services are some in all states.
const services = `{"services": [
	{"host": "carts.shop.svc.cluster.local", "object": "Service shop/carts", "delivery": "ECDS",
	 "written": [{"kind": "EnvoyFilter", "namespace": "istio-system", "name": "meltemi-outbound-carts.shop-20880", "version": "0123456789abcdef", "current": true}]},
	{"host": "orders.shop.svc.cluster.local", "object": "Service shop/orders", "router": "shop/orders", "delivery": "RDS",
	 "written": [
		{"kind": "EnvoyFilter", "namespace": "istio-system", "name": "meltemi-outbound-orders.shop-20880", "version": "123456789abcdef0", "current": true},
		{"kind": "EnvoyFilter", "namespace": "shop", "name": "meltemi-inbound-orders.shop-20880", "version": "23456789abcdef01", "current": false},
		{"kind": "VirtualService", "namespace": "edge", "name": "meltemi-edge", "current": false}],
	 "routes": [{"name": "orders.shop.svc.cluster.local_20880", "version": "3456789abcdef012", "accepted": 12, "waiting": 1, "refused": 3,
		"refusals": [{"node": "web-1", "identity": "spiffe://cluster.local/ns/web/sa/web", "reason": "resources[0].routes[1].match: no"}, {"node": "web-2", "reason": "the same"}],
		"unknown": ["10.0.0.7:15010"]}],
	 "problems": [
		{"object": "DestinationRule shop/orders", "field": "spec.trafficPolicy.loadBalancer", "reason": "httpCookie is ignored"},
		{"object": "MetaRouter shop/other", "reason": "does not count"}]},
	{"host": "users.shop.svc.cluster.local", "object": "Service shop/users", "router": "shop/users", "delivery": "RDS",
	 "routes": [{"name": "users.shop.svc.cluster.local_20880", "version": "456789abcdef0123", "accepted": 2, "waiting": 2, "refused": 0}]}
]}`

// TestStatus is asked for in either way, with what there is to be said.
func TestStatus(t *testing.T) {
	var list status.List
	d := json.NewDecoder(strings.NewReader(services))
	d.DisallowUnknownFields()
	require.NoError(t, d.Decode(&list))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.String() {
		case "/status", "/status?host=orders&namespace=shop", "/status?namespace=shop":
			_, _ = w.Write([]byte(services))
		default:
			_, _ = w.Write([]byte(`{"services":[]}`))
		}
	}))
	defer srv.Close()
	kubectl := filepath.Join(t.TempDir(), "kubectl")
	require.NoError(t, os.WriteFile(kubectl, []byte("#!/bin/sh\n[ \"$1 $2\" = 'get --raw' ] || exit 2\necho \"$@\" >&2\nexit 1\n"), 0o700)) //nolint:gosec // a program
	cases := map[string]string{
		"all":     "-address ADDRESS",
		"host":    "-address ADDRESS -n shop orders",
		"JSON":    "-address ADDRESS -n shop -o json",
		"nobody":  "-address ADDRESS nobody",
		"refused": "-kubectl KUBECTL -context prod -kubeconfig /x -n shop a.b",
	}
	for name, args := range cases {
		t.Run(name, func(t *testing.T) {
			args := strings.NewReplacer("ADDRESS", srv.Listener.Addr().String(), "KUBECTL", kubectl).Replace(args)
			var stdout, stderr bytes.Buffer
			code := Main(append([]string{"status"}, strings.Fields(args)...), strings.NewReader(""), &stdout, &stderr)
			golden(t, "status/"+name, strings.ReplaceAll(outcome(code, &stdout, &stderr), kubectl, "KUBECTL"))
		})
	}
	files, err := filepath.Glob("testdata/status/*")
	require.NoError(t, err)
	require.Len(t, files, len(cases))
}
