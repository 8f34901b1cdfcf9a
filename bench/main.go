// Command bench measures Meltemi beside a direct connection, Envoy's tcp_proxy,
// dubbo_proxy and thrift_proxy and HAProxy, side by side in one run: the CPU
// time of the proxy per request, throughput, latency, connections and memory.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"
)

var (
	envoyPath  = flag.String("envoy", "../build/envoy-1.40.0/envoy", "Envoy's binary")
	soPath     = flag.String("so", "../build/libmeltemi.so", "Meltemi's shared object")
	beforePath = flag.String("before", "", "another libmeltemi.so, of the commit before, to be measured beside; empty: none")
	onHost     = flag.String("host", "", "contrib: each target that is Meltemi is measured also by Envoy's golang filter, which is imitated; needs g++")
	connect    = flag.Bool("connect", true, "that host's loopback listener takes CONNECT, else it is tcp_proxy")
	workers    = flag.Int("workers", 1, "workers of each proxy")
	lives      = flag.Int("lives", 10, "how often the proxies are started anew")
	runs       = flag.Int("runs", 15, "interleaved runs of each scenario in each of their lives")
	duration   = flag.Duration("duration", 100*time.Millisecond, "what is measured of each run")
	onlyProto  = flag.String("protocols", "", "protocols to run, comma-separated; empty: all")
	only       = flag.String("targets", "", "targets to run, comma-separated; empty: all of the protocol")
	scenarioRE = flag.String("scenarios", "", "scenarios to run, by name, comma-separated; empty: all")
	reportOnly = flag.Bool("report-only", false, "do not fail when a goal is missed")
	jsonPath   = flag.String("json", "", "file to write the results to")
	idleConns  = flag.Int("idle", 5000, "idle connections whose memory is measured")
)

// beforeSuffix tells what runs the shared object of the commit before.
const beforeSuffix = "-before"

type scenario struct {
	name               string
	conns, outstanding int
	open               bool
	// targets that are compared; nil: the protocol's.
	targets []string
	// goals are of the CPU per request, p99 of that latency.
	goals, p99 []goal
}

func main() {
	flag.Parse()
	if *onHost != "" && *onHost != "contrib" {
		fmt.Fprintf(os.Stderr, "bench: unknown -host %q: want contrib\n", *onHost)
		os.Exit(2)
	}
	missed, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	if len(missed) > 0 {
		fmt.Println("\nmissed: " + strings.Join(missed, "; "))
		if !*reportOnly {
			os.Exit(1)
		}
	}
}

func run() (missed []string, err error) {
	dir, err := os.MkdirTemp("", "meltemi-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	var rows []row
	for _, pr := range protocols {
		if !chosen(*onlyProto, pr.name) {
			continue
		}
		rs, ms, err := runProtocol(pr, dir)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", pr.name, err)
		}
		rows, missed = append(rows, rs...), append(missed, ms...)
	}
	if *jsonPath != "" {
		b, err := json.MarshalIndent(rows, "", "  ")
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(*jsonPath, b, 0o600); err != nil {
			return nil, err
		}
	}
	return missed, nil
}

// chosen reports whether a comma-separated list has name, or is empty.
func chosen(list, name string) bool {
	return list == "" || slices.Contains(strings.Split(list, ","), name)
}

func runProtocol(pr *protocol, dir string) (rows []row, missed []string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	go serve(l, pr)
	port := l.Addr().(*net.TCPAddr).Port

	fmt.Printf("\n# %s\n", pr.name)
	var compared []*comparison
	for _, sc := range pr.scenarios {
		if chosen(*scenarioRE, sc.name) {
			compared = append(compared, newComparison(pr, sc))
		}
	}
	saturation := 0.0
	for life := range *lives {
		ms, err := live(pr, compared, port, dir, life == 0, &saturation)
		if err != nil {
			return nil, nil, err
		}
		missed = append(missed, ms...)
	}
	for _, c := range compared {
		rs, ms := c.report()
		rows, missed = append(rows, rs...), append(missed, ms...)
	}
	return rows, missed, nil
}

// live starts all targets, has them compared, and stops them. Processes of the same object
// differ, too.
func live(pr *protocol, compared []*comparison, port int, dir string, first bool, saturation *float64) (missed []string, err error) {
	var proxies []*proxy
	for _, t := range targets(compared) {
		p, err := start(t, pr, port, *workers, dir)
		if errors.Is(err, errNotInstalled) {
			if first {
				fmt.Printf("%s left out: %v\n", t, err)
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		defer p.stop()
		proxies = append(proxies, p)
	}
	// While the processes are new: what load leaves behind would be reused.
	if first && pr.rival != "" && *idleConns > 0 {
		missed = idle(proxies, pr.rival)
	}
	for _, c := range compared {
		proxies = slices.DeleteFunc(proxies, func(p *proxy) bool { return p.gone })
		if len(proxies) == 0 {
			break
		}
		if c.open && *saturation == 0 {
			reference := max(0, slices.IndexFunc(proxies, func(p *proxy) bool { return p.name == "tcp_proxy" })) // or the first of those that were chosen
			if *saturation, err = saturate(proxies[reference], pr, c.conns); err != nil {
				return nil, err
			}
		}
		if err := c.measure(proxies, 0.6**saturation); err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return missed, nil
}

// targets are those of all that is compared.
func targets(compared []*comparison) (some []string) {
	for _, c := range compared {
		for _, s := range c.series {
			if !slices.Contains(some, s.target) {
				some = append(some, s.target)
			}
		}
	}
	return some
}

// idle measures what an idle client connection costs.
func idle(ps []*proxy, rival string) (missed []string) {
	cost := map[string]float64{}
	fmt.Printf("\nmemory of %d idle connections\n\n| target | KiB each |\n|---|---|\n", *idleConns)
	for _, p := range ps {
		if len(p.pids) == 0 {
			continue
		}
		before := p.memory()
		var conns []net.Conn
		for range *idleConns {
			c, err := net.Dial("tcp", p.addr)
			if err != nil {
				fmt.Println("idle:", err)
				break
			}
			conns = append(conns, c)
		}
		if len(conns) == 0 {
			continue
		}
		// Accepting lags behind the kernel.
		least := int64(0)
		for range 20 {
			time.Sleep(100 * time.Millisecond)
			least = max(least, p.memory())
		}
		cost[p.name] = float64(least-before) / 1024 / float64(len(conns))
		fmt.Printf("| %s | %.1f |\n", p.name, cost[p.name])
		for _, c := range conns {
			c.Close()
		}
	}
	if m, d := cost["meltemi"], cost[rival]; m > 0 && d > 0 {
		line := fmt.Sprintf("idle: %.2f of %s's memory, goal 1.00", m/d, rival)
		fmt.Println(line)
		if m/d > 1 {
			missed = append(missed, line)
		}
	}
	return missed
}
