package controller

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	networking "istio.io/api/networking/v1alpha3"
	istio "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	api "github.com/meltemi-mesh/meltemi/control/operator/api/metaprotocol/v1alpha1"
)

var scale = flag.Int("scale", 0, "`services` that TestScale has; 0: it is skipped. It needs build/meltemi-operator")

// shopOf is what a user has of a service: ten routes to two versions, three endpoints.
func shopOf(i int) []client.Object {
	ns, name := fmt.Sprintf("team-%d", i%50), fmt.Sprintf("orders-%d", i)
	meta := metav1.ObjectMeta{Namespace: ns, Name: name, Labels: map[string]string{"app": name, "team": ns}}
	app := map[string]string{"app": name}
	subset := func(v string) *networking.Subset {
		return &networking.Subset{Name: v, Labels: map[string]string{"version": v}}
	}
	routes := make([]api.MetaRoute, 10)
	for r := range routes {
		method, tenant := fmt.Sprintf("placeOrder%d", r), fmt.Sprintf("tenant-%d", r)
		routes[r] = api.MetaRoute{
			Name: fmt.Sprintf("route-%d", r),
			Match: &api.MetaRouteMatch{Attributes: map[string]api.StringMatch{
				"interface": {Prefix: new("org.example.orders.")}, "method": {Exact: &method}, "tenant": {Exact: &tenant},
			}},
			Route: []api.MetaRouteDestination{
				{Destination: api.Destination{Host: api.Host(name), Subset: "v1"}, Weight: 90},
				{Destination: api.Destination{Host: api.Host(name), Subset: "v2"}, Weight: 10},
			},
		}
	}
	endpoint := func(n int) discovery.Endpoint {
		return discovery.Endpoint{Addresses: []string{fmt.Sprintf("10.%d.%d.%d", n, i/250, 1+i%250)}}
	}
	return []client.Object{
		&corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{Selector: app, ClusterIP: fmt.Sprintf("10.96.%d.%d", 1+i/250, 1+i%250), Ports: []corev1.ServicePort{{Name: "tcp-metaprotocol-dubbo", Port: 20880}}}},
		&istio.DestinationRule{ObjectMeta: meta, Spec: networking.DestinationRule{Host: name, Subsets: []*networking.Subset{subset("v1"), subset("v2")}}},
		&discovery.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: ns, Name: name, Labels: map[string]string{discovery.LabelServiceName: name}},
			AddressType: discovery.AddressTypeIPv4, Endpoints: []discovery.Endpoint{endpoint(1), endpoint(2), endpoint(3)},
			Ports: []discovery.EndpointPort{{Name: new("tcp-metaprotocol-dubbo"), Port: new(int32(20880))}},
		},
		&api.MetaRouter{ObjectMeta: meta, Spec: api.MetaRouterSpec{Hosts: []api.Host{api.Host(name)}, Routes: routes}},
	}
}

// TestScale is the program with as many services as are told: what it takes of memory,
// also at its peak, and how long changes take. It prints.
func TestScale(t *testing.T) {
	if *scale == 0 {
		t.Skip("without -scale")
	}
	scheme, err := Scheme()
	require.NoError(t, err)
	a := newAPIServer()
	for i := range *scale {
		for _, o := range shopOf(i) {
			a.put(t, scheme, o)
		}
	}
	server := httptest.NewServer(a)
	defer server.Close()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(file, []byte(`{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: "`+server.URL+`"}}], contexts: [{name: c, context: {cluster: c}}]}`), 0o600))
	const program = "../../../build/meltemi-operator"
	written := func() int { a.mu.Lock(); defer a.mu.Unlock(); return len(a.writes) }
	start := time.Now()
	p := startProgram(t, program, "-kubeconfig", file)
	for written() < 3**scale+2 {
		time.Sleep(100 * time.Millisecond)
	}
	t.Logf("everything is written after %v", time.Since(start))
	p.report(t, "the first start")
	p.stop(t)

	start = time.Now()
	p = startProgram(t, program, "-kubeconfig", file)
	defer p.stop(t)
	for p.reconciled(t) < *scale {
		time.Sleep(time.Second)
	}
	t.Logf("everything is known after %v", time.Since(start))
	p.report(t, "another start")

	c := a.user(t)
	var took []time.Duration
	first, done, allocated := written(), p.reconciled(t), p.metric(t, "go_memstats_alloc_bytes_total")
	for i := range 50 {
		router := &api.MetaRouter{}
		key := client.ObjectKey{Namespace: fmt.Sprintf("team-%d", i%50), Name: fmt.Sprintf("orders-%d", i)}
		require.NoError(t, c.Get(t.Context(), key, router))
		router.Spec.Routes[3].Route[0].Weight, router.Spec.Routes[3].Route[1].Weight = 50, 50
		before := written()
		start := time.Now()
		require.NoError(t, c.Update(t.Context(), router))
		for written() < before+2 { // the user's own is one
			time.Sleep(time.Millisecond)
		}
		took = append(took, time.Since(start))
	}
	for written() < first+150 { // the user's, a filter, a status
		time.Sleep(time.Millisecond)
	}
	a.mu.Lock()
	size := 0
	for _, w := range a.writes[first:] {
		if strings.Contains(w.path, "envoyfilters") {
			size += w.bytes
		}
	}
	a.mu.Unlock()
	t.Logf("a change, of %d services: %.1f reconciles, %.1f writes, %d B of filters, %.0f B allocated", *scale,
		float64(p.reconciled(t)-done)/50, float64(written()-first)/50-1, size/50, (p.metric(t, "go_memstats_alloc_bytes_total")-allocated)/50)
	slices.Sort(took)
	t.Logf("a change: %v in the middle of %d, %v at most", took[len(took)/2], len(took), took[len(took)-1])
	p.report(t, "these changes")
}

// running is the operator's program.
type running struct {
	cmd  *exec.Cmd
	at   string
	done chan struct{}
}

func startProgram(t *testing.T, name string, args ...string) *running {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	at := l.Addr().String()
	require.NoError(t, l.Close())
	p := &running{at: at, done: make(chan struct{})}
	p.cmd = exec.Command(name, append(args, "-health-address", "0", "-metrics-address", at)...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := p.cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	go func() {
		defer close(p.done)
		for s := bufio.NewScanner(out); s.Scan(); {
			if strings.Contains(s.Text(), `"ERROR"`) {
				fmt.Println(s.Text())
			}
		}
	}()
	for {
		if c, err := net.Dial("tcp", at); err == nil {
			c.Close()
			return p
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (p *running) stop(t *testing.T) {
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	<-p.done
	_ = p.cmd.Wait()
}

func (p *running) metrics(t *testing.T) string {
	t.Helper()
	q, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+p.at+"/metrics", nil)
	require.NoError(t, err)
	a, err := http.DefaultClient.Do(q)
	require.NoError(t, err)
	defer a.Body.Close()
	b, err := io.ReadAll(a.Body)
	require.NoError(t, err)
	return string(b)
}

// reconciled is how many requests have been done.
func (p *running) reconciled(t *testing.T) (n int) {
	t.Helper()
	if m := regexp.MustCompile(`reconcile_total{controller="hosts",result="success"} (\d+)`).FindStringSubmatch(p.metrics(t)); m != nil {
		n, _ = strconv.Atoi(m[1])
	}
	return n
}

// metric is the value of one without labels.
func (p *running) metric(t *testing.T, name string) (v float64) {
	t.Helper()
	if m := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindStringSubmatch(p.metrics(t)); m != nil {
		v, _ = strconv.ParseFloat(m[1], 64)
	}
	return v
}

func (p *running) report(t *testing.T, after string) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	require.NoError(t, err)
	t.Logf("after %s: %s, %s", after,
		regexp.MustCompile(`Vm(HWM|RSS):\s+\d+ kB|RssAnon:\s+\d+ kB`).FindAllString(string(status), -1),
		regexp.MustCompile(`go_memstats_(heap_inuse|heap_alloc|stack_inuse|next_gc)_bytes [\d.e+]+|reconcile_total\{controller="hosts",.* [1-9].*|(?m:^process_cpu_seconds_total .*)`).FindAllString(p.metrics(t), -1))
}
