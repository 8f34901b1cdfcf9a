package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"
	"time"

	"github.com/meltemi-mesh/meltemi/control/loopback"
)

// proxy is one proxy with one listener in front of the echo server.
type proxy struct {
	name  string
	addr  string
	admin string
	pids  []int // of all processes on the way
	stop  func()
	gone  bool // it has been stopped, as it failed
}

const envoyYAML = `admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
static_resources:
  listeners:
{{if .Filter}}  - name: bench
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - filters:
{{.Filter}}
{{end}}{{.Loopback}}
  clusters:
  - name: echo
    type: STATIC
    connect_timeout: 1s
    circuit_breakers: {thresholds: [{max_connections: 100000, max_pending_requests: 100000, max_requests: 100000}]}
    load_assignment: {cluster_name: echo, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: {{.Port}}}}}}]}]}
{{if .Collector}}  - name: collector
    type: STATIC
    load_assignment: {cluster_name: collector, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: {{.Collector}}}}}}]}]}
{{end}}`

var filters = map[string]string{
	"tcp_proxy": `      - name: tcp
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: echo}`,
	"dubbo_proxy": `      - name: dubbo
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.dubbo_proxy.v3.DubboProxy
          stat_prefix: d
          multiple_route_config:
            name: r
            route_config:
            - name: r
              interface: org.bench.Echo
              routes:
              - match: {method: {name: {exact: echo}}, headers: [{name: tenant, string_match: {exact: acme}}]}
                route: {cluster: echo}`,
	"thrift_proxy": `      - name: thrift
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.thrift_proxy.v3.ThriftProxy
          stat_prefix: t
          transport: FRAMED
          protocol: BINARY
          payload_passthrough: true
          route_config: {name: r, routes: [{match: {method_name: echo}, route: {cluster: echo}}]}`,
}

// The routes match what Envoy's own filter for the protocol matches, or two
// attributes where there is none.
var matches = map[string]string{
	"dubbo":     `[{name: interface, string_match: {exact: org.bench.Echo}}, {name: method, string_match: {exact: echo}}, {name: tenant, string_match: {exact: acme}}]`,
	"thrift":    `[{name: method, string_match: {exact: echo}}]`,
	"brpc":      `[{name: service, string_match: {exact: org.bench.Echo}}, {name: method, string_match: {exact: echo}}]`,
	"memcached": `[{name: command, string_match: {exact: get}}, {name: prefix, string_match: {exact: "user:"}}]`,
	"trpc":      `[{name: callee, string_match: {exact: trpc.bench.echo.Echo}}, {name: func, string_match: {exact: /trpc.bench.echo.Echo/Echo}}]`,
}

const meltemiYAML = `      - name: meltemi
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.dynamic_modules.v3.DynamicModuleNetworkFilter
          dynamic_module_config: {name: meltemi, do_not_close: true, metrics_namespace: meta_protocol}
          filter_name: meta_protocol_proxy
          terminal_filter: true
          filter_config:
            "@type": type.googleapis.com/google.protobuf.Struct
            value:
              stat_prefix: bench
              protocol: {name: %[1]s, codec: {name: %[4]s}, multiplexing: %[2]t}%[7]s
              route_config:
                name: r
                routes:%[8]s
                - match: {metadata: %[3]s}
                  route: {cluster: echo%[5]s}%[9]s
                %[6]s%[10]s`

// policiesTarget is Meltemi with all that a route and a cluster can want of requests none
// of which fails.
const (
	policiesTarget = "meltemi-policies"
	retries        = `, timeout: 10s, idempotent: true,
                    retry_policy: {retry_on: "connect-failure,refused,overloaded,reset,timeout,server-error", num_retries: 2, per_try_timeout: 5s}`
	ofRoute  = retries + `, hedge_policy: {hedge_percentile: {value: 95}}, hash_policy: [tenant]`
	breakers = `circuit_breakers: {max_requests: 100000, keys: [{names: [method], max_requests: 100000, error_percent: 50}]}`
	outliers = `, outlier_detection: {}`
)

// ofCluster are the policies of the cluster.
func ofCluster(policies string) string { return "clusters: [{name: echo, " + policies + "}]" }

// chain is of the filters, and ends with the router.
func chain(filters string) string {
	return `
              meta_protocol_filters:` + filters + `
              - name: aeraki.meta_protocol.filters.router`
}

var errNotInstalled = errors.New("not installed")

// start starts a target in front of the protocol's server at port.
func start(target string, pr *protocol, port, workers int, dir string) (*proxy, error) {
	switch target {
	case "direct":
		return &proxy{name: target, addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), stop: func() {}}, nil
	case "haproxy":
		return startHAProxy(port, workers, dir)
	}
	carriers, filter, so := "", filters[target], *soPath
	collector, stopCollector := 0, func() {}
	name, before := strings.CutSuffix(target, beforeSuffix)
	name, golang := strings.CutSuffix(name, golangSuffix)
	if before {
		so = *beforePath
	}
	var listener loopback.Listener
	if strings.HasPrefix(target, "meltemi") {
		so = filepath.Join(filepath.Dir(so), pr.so, filepath.Base(so))
		var route, cluster, guards, others, mutation, besides, admin string
		switch name {
		case policiesTarget:
			route, cluster = ofRoute, ofCluster(breakers+outliers)
		case guardsTarget:
			guards, others, mutation = chain(guardingFilters()), otherRoutes(), guardedMutation
		case telemetryTarget:
			guards = observed("")
		case everythingTarget:
			route, cluster, guards, others, mutation = retries, ofCluster(breakers), observed(limit+accessControl()), otherRoutes(), guardedMutation
		case moreTarget:
			route, cluster, guards, others, mutation = ofRoute, ofCluster(breakers+outliers), observed(guardingFilters()), otherRoutes(), guardedMutation
		}
		if name == telemetryTarget || name == everythingTarget || name == moreTarget {
			besides, admin = telemetry(filepath.Join(dir, target+".access.log")), "127.0.0.1:0"
			var err error
			if collector, stopCollector, err = collect(); err != nil {
				return nil, err
			}
		}
		filter = fmt.Sprintf(meltemiYAML, pr.name, name == "meltemi-shared", matches[pr.name], cmp.Or(pr.codec, "aeraki.meta_protocol.codec."+pr.name), route, cluster,
			guards, others, mutation, besides)
		if _, err := os.Stat(so); err != nil {
			return nil, fmt.Errorf("%w: %s", errNotInstalled, so)
		}
		listener = loopback.Listener{
			Module: "meltemi", Socket: fmt.Sprintf("@%s-bench-%d", target, os.Getpid()), Admin: admin,
			Tunnels: golang, Connect: golang && *connect,
		}
		b, err := json.Marshal(listener.Config()) // which is YAML, too
		if err != nil {
			return nil, err
		}
		carriers = "  - " + string(b)
	}
	if filter == "" {
		return nil, fmt.Errorf("unknown target %q", target)
	}
	var b strings.Builder
	own := filter // Envoy's
	if golang {
		own = ""
	}
	err := template.Must(template.New("").Parse(envoyYAML)).Execute(&b, map[string]any{
		"Filter": own, "Loopback": carriers, "Port": port, "Collector": collector,
	})
	if err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, target+".yaml")
	adminFile := filepath.Join(dir, target+".admin")
	os.Remove(adminFile) //nolint:errcheck // it need not be there
	if err := os.WriteFile(conf, []byte(b.String()), 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, target+".log"))
	if err != nil {
		return nil, err
	}
	modules, err := filepath.Abs(filepath.Dir(so))
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(*envoyPath, "-c", conf, "--concurrency", strconv.Itoa(workers),
		"--disable-hot-restart", "--admin-address-path", adminFile, "-l", "warning")
	cmd.Env = append(os.Environ(), "ENVOY_DYNAMIC_MODULES_SEARCH_PATH="+modules)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &proxy{name: target, pids: []int{cmd.Process.Pid}, stop: func() {
		cmd.Process.Kill() //nolint:errcheck // it may have ended
		cmd.Wait()         //nolint:errcheck // killed
		log.Close()
		stopCollector()
	}}
	err = p.findPorts(adminFile, golang)
	if err == nil && golang {
		settings := map[string]any{"path": listener.Socket, "connect": listener.Connect, "admin_address": listener.Admin}
		err = p.serveGolang(filter, so, settings, workers, dir)
	}
	if err != nil {
		p.stop()
		out, _ := os.ReadFile(log.Name())
		return nil, fmt.Errorf("%s: %w\n%s", target, err, out)
	}
	return p, nil
}

// findPorts waits until an Envoy is ready. The listener may be another's.
func (p *proxy) findPorts(adminFile string, another bool) error {
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		b, err := os.ReadFile(adminFile)
		if err != nil || len(b) == 0 {
			continue
		}
		p.admin = string(b)
		if body, err := p.get("/ready"); err != nil || !strings.HasPrefix(body, "LIVE") {
			continue
		}
		if another {
			return nil
		}
		body, err := p.get("/listeners?format=json")
		if err != nil {
			continue
		}
		var ls struct {
			Statuses []struct {
				Name    string `json:"name"`
				Address struct {
					Socket struct {
						Port int `json:"port_value"`
					} `json:"socket_address"`
				} `json:"local_address"`
			} `json:"listener_statuses"`
		}
		if err := json.Unmarshal([]byte(body), &ls); err != nil {
			return err
		}
		for _, l := range ls.Statuses {
			if l.Name == "bench" {
				p.addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(l.Address.Socket.Port))
				return nil
			}
		}
	}
	return errors.New("did not get ready")
}

func (p *proxy) get(path string) (string, error) {
	r, err := http.Get("http://" + p.admin + path)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return string(b), err
}

// upstreams returns how many connections the proxy has to the server.
func (p *proxy) upstreams() int {
	if p.admin == "" {
		return 0
	}
	body, err := p.get("/stats?filter=cluster.echo.upstream_cx_active")
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(body[strings.LastIndexByte(body, ':')+1:]))
	return n
}

// cpu returns the CPU time that the processes have used, all their threads, to the nanosecond:
// of their clocks. What /proc says of a thread that runs is as old as the last tick.
func (p *proxy) cpu() (sum time.Duration) {
	for _, pid := range p.pids {
		sum += cpuOf(int32(^pid<<3 | 2)) // clock_getcpuclockid(3)
	}
	return sum
}

// memory returns the resident memory in bytes.
func (p *proxy) memory() (sum int64) {
	for _, pid := range p.pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue
		}
		for _, line := range strings.Split(string(b), "\n") {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "Rss:" {
				n, _ := strconv.ParseInt(f[1], 10, 64)
				sum += n << 10
			}
		}
	}
	return sum
}

func startHAProxy(port, workers int, dir string) (*proxy, error) {
	bin, err := exec.LookPath("haproxy")
	if err != nil {
		return nil, fmt.Errorf("%w: haproxy", errNotInstalled)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	// HAProxy takes over the listening socket, so no port can be lost.
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	l.Close()
	conf := filepath.Join(dir, "haproxy.cfg")
	text := fmt.Sprintf("global\n nbthread %d\n maxconn 6000\ndefaults\n mode tcp\n timeout connect 1s\n timeout client 1h\n timeout server 1h\nlisten bench\n bind fd@3\n server echo 127.0.0.1:%d\n", workers, port)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command(bin, "-db", "-f", conf)
	cmd.ExtraFiles = []*os.File{f}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	f.Close()
	return &proxy{name: "haproxy", addr: addr, pids: []int{cmd.Process.Pid}, stop: func() {
		cmd.Process.Kill() //nolint:errcheck // it may have ended
		cmd.Wait()         //nolint:errcheck // killed
	}}, nil
}
