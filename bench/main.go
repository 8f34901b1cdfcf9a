// Command bench measures Meltemi beside a direct connection, Envoy's tcp_proxy,
// dubbo_proxy and thrift_proxy and HAProxy, side by side in one run: the CPU
// time of the proxy per request, throughput, latency, connections and memory.
package main

import (
	"cmp"
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
	runs       = flag.Int("runs", 7, "interleaved runs of each scenario")
	duration   = flag.Duration("duration", 2*time.Second, "what is measured of each run")
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
	ours               string // the target that has goals; "": meltemi
	// targets that are compared; nil: the protocol's.
	targets []string
	// goals are ratios of CPU per request (of p99 in an open loop) to another
	// target's.
	goals map[string]float64
	// goalsByGolang are the same by the golang filter.
	goalsByGolang map[string]float64
}

// row is the median of a target's runs of a scenario.
type row struct {
	Protocol, Scenario, Target string
	Workers                    int
	CPU                        float64 // µs per request
	Rate                       float64
	P50, P99                   float64 // µs
	Upstreams                  int
}

func main() {
	flag.Parse()
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
	var proxies []*proxy
	targets := pr.targets[:len(pr.targets):len(pr.targets)]
	for _, sc := range pr.scenarios {
		for _, t := range sc.targets {
			if chosen(*scenarioRE, sc.name) && !slices.Contains(targets, t) {
				targets = append(targets, t)
			}
		}
	}
	switch *onHost {
	case "":
	case "contrib":
		for _, t := range targets {
			if strings.HasPrefix(t, "meltemi") {
				targets = append(targets, t+golangSuffix)
			}
		}
	default:
		return nil, nil, fmt.Errorf("unknown -host %q: want contrib", *onHost)
	}
	if *beforePath != "" {
		for _, t := range targets {
			if strings.HasPrefix(t, "meltemi") {
				targets = append(targets, t+beforeSuffix)
			}
		}
	}
	for _, t := range targets {
		if !chosen(*only, t) {
			continue
		}
		p, err := start(t, pr, port, *workers, dir)
		if errors.Is(err, errNotInstalled) {
			fmt.Printf("%s left out: %v\n", t, err)
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		defer p.stop()
		proxies = append(proxies, p)
	}
	// While the processes are new: what load leaves behind would be reused.
	if pr.rival != "" && *idleConns > 0 {
		missed = idle(proxies, pr.rival)
	}
	saturation := 0.0
	for _, sc := range pr.scenarios {
		if !chosen(*scenarioRE, sc.name) {
			continue
		}
		rate := 0.0
		if sc.open {
			reference := max(0, indexOf(proxies, "tcp_proxy")) // or the first of those that were chosen
			if saturation == 0 {
				r, err := closedLoop(proxies[reference].addr, pr, sc.conns, 1, time.Second, *duration)
				if err != nil {
					return nil, nil, err
				}
				saturation = r.rate()
			}
			rate = 0.6 * saturation
			fmt.Printf("\nopen loop at %.0f requests/s\n", rate)
		}
		rs, err := compare(compared(proxies, pr, sc), pr, sc, rate)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", sc.name, err)
		}
		for _, r := range rs {
			if sc.name == "16x1" && r.Target == "tcp_proxy" {
				saturation = r.Rate
			}
		}
		rows = append(rows, rs...)
		missed = append(missed, report(pr, sc, rs)...)
	}
	return rows, missed, nil
}

func indexOf(ps []*proxy, name string) int {
	return slices.IndexFunc(ps, func(p *proxy) bool { return p.name == name })
}

// compared are the proxies of a scenario.
func compared(ps []*proxy, pr *protocol, sc scenario) (some []*proxy) {
	targets := pr.targets
	if sc.targets != nil {
		targets = sc.targets
	}
	for _, p := range ps {
		if slices.Contains(targets, strings.TrimSuffix(strings.TrimSuffix(p.name, beforeSuffix), golangSuffix)) {
			some = append(some, p)
		}
	}
	return some
}

// compare runs a scenario on every target in turn, again and again, and takes
// the medians.
func compare(ps []*proxy, pr *protocol, sc scenario, rate float64) ([]row, error) {
	type series struct{ cpu, rate, p50, p99 []float64 }
	all := make([]series, len(ps))
	ups := make([]int, len(ps))
	out := make([]bool, len(ps))
	for range *runs {
		for i, p := range ps {
			if out[i] {
				continue
			}
			var cpu time.Duration
			onMeasure = func(begin bool) {
				if begin {
					cpu = -p.cpu()
					return
				}
				cpu += p.cpu()
				ups[i] = p.upstreams()
			}
			var r *result
			var err error
			if sc.open {
				r, err = openLoop(p.addr, pr, sc.conns, rate, 500*time.Millisecond, *duration)
			} else {
				r, err = closedLoop(p.addr, pr, sc.conns, sc.outstanding, 300*time.Millisecond, *duration)
			}
			if err != nil && !strings.HasPrefix(p.name, "meltemi") {
				// dubbo_proxy loses connections when it cannot keep up. What it still has to do
				// would take the processors from those behind it; no scenario comes behind this
				// one.
				fmt.Printf("%s left out: %v\n", p.name, err)
				p.stop()
				out[i] = true
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", p.name, err)
			}
			s := &all[i]
			s.cpu = append(s.cpu, float64(cpu.Nanoseconds())/1000/float64(r.Requests))
			s.rate = append(s.rate, r.rate())
			s.p50 = append(s.p50, float64(r.P50.Nanoseconds())/1000)
			s.p99 = append(s.p99, float64(r.P99.Nanoseconds())/1000)
		}
	}
	var rows []row
	for i, p := range ps {
		if s := all[i]; !out[i] {
			rows = append(rows, row{pr.name, sc.name, p.name, *workers, median(s.cpu), median(s.rate), median(s.p50), median(s.p99), ups[i]})
		}
	}
	return rows, nil
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

func report(pr *protocol, sc scenario, rows []row) (missed []string) {
	fmt.Printf("\n%s %s (%d workers, median of %d)\n\n", pr.name, sc.name, *workers, *runs)
	fmt.Println("| target | CPU µs/req | req/s | p50 µs | p99 µs | upstream |")
	fmt.Println("|---|---|---|---|---|---|")
	for _, r := range rows {
		fmt.Printf("| %s | %.2f | %.0f | %.0f | %.0f | %d |\n", r.Target, r.CPU, r.Rate, r.P50, r.P99, r.Upstreams)
	}
	for _, r := range rows {
		i := indexOfRow(rows, r.Target+beforeSuffix)
		if i < 0 {
			continue
		}
		what, ratio := "CPU", r.CPU/rows[i].CPU
		if sc.open {
			what, ratio = "p99", r.P99/rows[i].P99
		}
		fmt.Printf("%s %s: %s of %s %.3f of the commit before\n", pr.name, sc.name, what, r.Target, ratio)
	}
	ours := cmp.Or(sc.ours, "meltemi")
	return append(held(pr, sc, rows, ours, sc.goals), held(pr, sc, rows, ours+golangSuffix, sc.goalsByGolang)...)
}

// held tells which goals a target misses.
func held(pr *protocol, sc scenario, rows []row, target string, goals map[string]float64) (missed []string) {
	i := indexOfRow(rows, target)
	if i < 0 {
		return nil
	}
	ours := rows[i]
	for _, r := range rows {
		goal, ok := goals[r.Target]
		if !ok {
			continue
		}
		what, ratio := "CPU", ours.CPU/r.CPU
		if sc.open {
			what, ratio = "p99", ours.P99/r.P99
		}
		line := fmt.Sprintf("%s %s: %s of %s %.2f of %s's, goal %.2f", pr.name, sc.name, what, target, ratio, r.Target, goal)
		fmt.Println(line)
		if ratio > goal {
			missed = append(missed, line)
		}
	}
	return missed
}

func indexOfRow(rows []row, target string) int {
	return slices.IndexFunc(rows, func(r row) bool { return r.Target == target })
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
		line := fmt.Sprintf("idle: %.2f of %s's memory, goal 1.20", m/d, rival)
		fmt.Println(line)
		if m/d > 1.2 {
			missed = append(missed, line)
		}
	}
	return missed
}
