package istio

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/control/status"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// TestStatusTellsWhatProxiesSay: in the router's status, and by `meltemi status`, whichever
// replica the proxies are connected to.
func TestStatusTellsWhatProxiesSay(t *testing.T) {
	s := openServed(t)
	s.byRDS("v1")
	s.acknowledged("v1")
	name := fmt.Sprintf("%s_%d", s.host(), port)
	picky := []*proxy{s.ask(t, 0, s.pods[0]).wants(name), s.ask(t, 1, s.pods[1]).wants(name)}
	for _, p := range picky {
		p.next("")
	}
	s.byRDS("v2")
	picky[0].next("")
	picky[1].next("resources[0]: I do not like it")
	s.conditions("greeter", "Accepted=True Programmed=True Acknowledged=False")
	message, err := s.Kubectl("", "get", "metarouter", "greeter", "-n", s.Name, "-o", `jsonpath={.status.conditions[?(@.type=="Acknowledged")].message}`)
	require.NoError(t, err)
	identity := "spiffe://cluster.local/ns/" + s.ns.Name + "/sa/default"
	require.Contains(t, message, "refused by 1")
	require.Contains(t, message, "picky ("+identity+"): resources[0]: I do not like it")

	s.Apply(router("younger", s.host(), "  routes: [{route: [{"+s.to("v1")+"}]}]\n"))
	s.conditions("younger", "Accepted=False Programmed=False")
	tell := func(args ...string) string {
		args = append([]string{"status", "-operator", s.ns.Name + "/meltemi-operator:8080", "-n", s.Name}, args...)
		out, err := s.Tool(filepath.Join(peers.Root(), "build", "meltemi"), args...)
		require.NoError(t, err)
		return out
	}
	get := func() *status.Service {
		var list status.List
		require.NoError(t, json.Unmarshal([]byte(tell("-o", "json", "greeter")), &list))
		require.Len(t, list.Services, 1)
		return &list.Services[0]
	}
	// Any replica answers.
	s.Eventually("the refusal, in each replica", func() bool {
		for range 4 {
			if r := get().Routes; len(r) != 1 || r[0].Refused != 1 || r[0].Waiting != 0 || len(r[0].Unknown) > 0 {
				return false
			}
		}
		return true
	})
	got := get()
	require.Equal(t, s.host(), got.Host)
	require.Equal(t, "Service "+s.Name+"/greeter", got.Object)
	require.Equal(t, s.Name+"/greeter", got.Router)
	require.Equal(t, "RDS", got.Delivery)
	require.Len(t, got.Written, 2)
	for _, o := range got.Written {
		require.True(t, o.Current, o)
	}
	require.Equal(t, []status.Problem{{Object: "MetaRouter " + s.Name + "/younger", Field: "spec.hosts[0]", Reason: s.Name + "/greeter is older and has the same host"}}, got.Problems)
	routes := got.Routes[0]
	require.Equal(t, name, routes.Name)
	require.GreaterOrEqual(t, routes.Accepted, 4, "sidecars of the client and both servers, and who is picky no more")
	require.Equal(t, []status.Refusal{{Node: "picky", Identity: identity, Reason: "resources[0]: I do not like it"}}, routes.Refusals)
	text := tell()
	for _, want := range []string{s.host() + "  " + s.Name + "/greeter  2        RDS     ", "  wrong\n", "picky (" + identity + ") refuses " + name} {
		require.Contains(t, text, want)
	}
	require.Equal(t, 2, strings.Count(tell("greeter"), "EnvoyFilter"))
	_, err = s.Tool(filepath.Join(peers.Root(), "build", "meltemi"), "status", "-operator", "nowhere/x:1")
	require.ErrorAs(t, err, new(*exec.ExitError))
	require.ErrorContains(t, err, "meltemi: kubectl: ")

	s.Delete("metarouter", "younger")
	s.byRDS("v1")
	for _, p := range picky {
		p.next("")
	}
	s.acknowledged("v1")
	s.metaRouter("  routes: [{route: [{" + s.to("v1") + "}]}]\n") // by ECDS nobody acknowledges
}
