package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/docs"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// runDemo runs what `make demo` does, with some configuration. Its logs are in one folder:
// two at once would read each other's.
func runDemo(t *testing.T, config string, env ...string) (printed string, err error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "envoy.yaml")
	require.NoError(t, os.WriteFile(file, []byte(config), 0o600))
	cmd := exec.Command("go", "run", "./demo", "-config", file)
	cmd.Dir = filepath.Join(peers.Root(), "examples", "dubbo")
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestTheDemoFailsWhenARuleDoesNotHold: each of its rules, broken in the
// configuration.
func TestTheDemoFailsWhenARuleDoesNotHold(t *testing.T) {
	good := source(t, "examples/dubbo/envoy.yaml")
	broken := strings.NewReplacer(
		"string_match: {exact: org.meltemi.test.Audit}", "string_match: {exact: org.meltemi.test.Odd}",
		"string_match: {exact: sayHelloAsync}", "string_match: {exact: sayHelloSoon}",
		"string_match: {exact: acme}", "string_match: {exact: acne}",
		"weight: 90", "weight: 80", "weight: 10", "weight: 20",
	).Replace(good)
	require.NotEqual(t, good, broken)
	out, err := runDemo(t, broken)
	require.Error(t, err, out)
	require.Contains(t, out, "what was seen is not what the configuration says")
	for _, rule := range []string{"interface Audit", "method sayHelloAsync", "attachment tenant: acme", "the rest"} {
		require.Regexp(t, "(?m)^"+regexp.QuoteMeta(rule)+" .*WRONG: ", out)
	}
}

// TestTheDemoIsKept: KEEP=1 leaves it running, and what it prints calls it again,
// looks at it, and ends it.
func TestTheDemoIsKept(t *testing.T) {
	out, err := runDemo(t, source(t, "examples/dubbo/envoy.yaml"), "KEEP=1")
	require.NoError(t, err, out)
	command := func(name string) string {
		m := regexp.MustCompile(`(?m)^  ` + name + ` +(.*)$`).FindStringSubmatch(out)
		require.NotNil(t, m, out)
		return m[1]
	}
	var pids []int
	for _, word := range strings.Fields(command("end"))[1:] {
		pid, err := strconv.Atoi(word)
		require.NoError(t, err)
		pids = append(pids, pid)
		t.Cleanup(func() { syscall.Kill(pid, syscall.SIGKILL) })
	}
	require.Len(t, pids, 5, "four providers and Envoy")
	run := func(command string) string {
		cmd := exec.Command("sh", "-c", command)
		cmd.Dir = peers.Root()
		out, err := cmd.Output()
		require.NoError(t, err, command)
		return string(out)
	}
	scraped := strings.Fields(command("scrape"))
	require.Contains(t, run("curl -s "+scraped[0]), `meltemi_requests_total{cluster="v2",method="sayHelloAsync",outcome="ok",protocol="dubbo",route="new-method",service="org.meltemi.test.Greeter"} 500`)
	require.Contains(t, run("curl -s "+scraped[len(scraped)-1]), "envoy_cluster_upstream_cx_active")
	config := strings.TrimPrefix(strings.Fields(command("Prometheus"))[1], "--config.file=")
	checked, err := peers.Promtool.Run(t, "check", "config", filepath.Join(peers.Root(), config))
	require.NoError(t, err, checked)
	require.Contains(t, checked, "rules found")
	scrapes := source(t, config)
	for _, at := range []string{scraped[0], scraped[len(scraped)-1]} {
		address := strings.Split(strings.TrimPrefix(at, "http://"), "/")[0]
		require.Contains(t, scrapes, `["`+address+`"]`)
	}
	shown := false
	for _, b := range docs.Blocks(source(t, "examples/dubbo/README.md")) {
		if b.Kind == "text" {
			require.Regexp(t, b.Sample(), out)
			shown = true
		}
	}
	require.True(t, shown)
	again := run(command("call again"))
	require.Contains(t, again, `"calls":100`)
	require.Contains(t, again, `v2-`)
	require.NotContains(t, again, `v1-`)
	require.Contains(t, run(command("look")), "meta_protocol.dubbo.demo.request: ")
	run(command("end"))
	for _, pid := range pids {
		require.Eventually(t, func() bool {
			// Of a process that nobody has waited for, too, this is empty.
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			return len(b) == 0
		}, patience, tick)
	}
}
