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
<<<<<<< HEAD
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
=======
	// goals are of the CPU per request, p99 of that latency.
	goals, p99 []goal
>>>>>>> main
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
	var compared []*comparison
	for _, sc := range pr.scenarios {
		if chosen(*scenarioRE, sc.name) {
			compared = append(compared, newComparison(pr, sc))
		}
	}
<<<<<<< HEAD
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
=======
	saturation := 0.0
	for life := range *lives {
		ms, err := live(pr, compared, port, dir, life == 0, &saturation)
		if err != nil {
			return nil, nil, err
>>>>>>> main
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
	for _, t := range targets(pr, compared) {
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

<<<<<<< HEAD
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
=======
// targets are those of all that is compared, and those of the commit before.
func targets(pr *protocol, compared []*comparison) (some []string) {
	for _, c := range compared {
		for _, s := range c.series {
			if !slices.Contains(some, s.target) {
				some = append(some, s.target)
			}
>>>>>>> main
		}
	}
	return some
}

<<<<<<< HEAD
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

=======
>>>>>>> main
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
