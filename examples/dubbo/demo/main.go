// Command demo runs examples/dubbo with real peers: four dubbo-go providers, a
// stock Envoy with envoy.yaml, a dubbo-go consumer. It prints what each rule
// promises and who answered, and what the metrics tell of the calls, and fails unless
// that is the same.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// patience bounds every wait.
const patience = time.Minute

func main() {
	config := flag.String("config", "envoy.yaml", "Envoy's configuration")
	flag.Parse()
	d := &demo{keep: os.Getenv("KEEP") != "", config: *config}
	err := d.run()
	if err != nil || !d.keep {
		d.stop()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

type demo struct {
	keep     bool
	config   string
	root     string // of the repository
	logs     string
	children []*exec.Cmd
}

func (d *demo) run() error {
	var err error
	if d.root, err = filepath.Abs("../.."); err != nil {
		return err
	}
	d.logs = filepath.Join(d.root, "build", "demo")
	if err := os.MkdirAll(d.logs, 0o755); err != nil {
		return err
	}
	fmt.Println("building the dubbo-go peers (the first time takes a minute)")
	peers := filepath.Join(d.root, "build", "peers", "dubbogo")
	build := exec.Command("go", "build", "-trimpath", "-o", peers+"/", "./provider", "./consumer")
	build.Dir = filepath.Join(d.root, "e2e", "peers", "dubbogo")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}

	// The ports of envoy.yaml become those that the kernel chooses.
	replace := []string{
		"port_value: 9901", "port_value: 0", "port_value: 20880", "port_value: 0", "127.0.0.1:15880", "127.0.0.1:0",
		`"@meltemi"`, fmt.Sprintf(`"@meltemi-demo-%d"`, os.Getpid()),
	}
	for i, name := range []string{"v1-a", "v1-b", "v2-a", "v2-b"} {
		port, err := d.provider(filepath.Join(peers, "provider"), name)
		if err != nil {
			return err
		}
		replace = append(replace, fmt.Sprintf("port_value: %d", 20881+i), fmt.Sprintf("port_value: %d", port))
	}
	config, err := os.ReadFile(d.config)
	if err != nil {
		return err
	}
	admin, port, err := d.envoy(strings.NewReplacer(replace...).Replace(string(config)))
	if err != nil {
		return err
	}
	fmt.Printf("Envoy serves Dubbo at 127.0.0.1:%s, admin at http://%s\n\n", port, admin)

	consumer := filepath.Join(peers, "consumer")
	ok, err := d.rules(consumer, "127.0.0.1:"+port)
	if err != nil {
		return err
	}
	calls := 0
	for _, r := range rules {
		calls += r.command["count"].(int)
	}
	if err := counters(admin, calls); err != nil {
		return err
	}
	metrics, err := d.scrapeAddress()
	if err != nil {
		return err
	}
	if err := told(metrics, calls); err != nil {
		return err
	}
	if !ok {
		return errors.New("what was seen is not what the configuration says")
	}
	fmt.Println("what was seen is what the configuration says")
	if d.keep {
		prometheus, err := d.prometheus(metrics, admin)
		if err != nil {
			return err
		}
		pids := make([]string, len(d.children))
		for i, c := range d.children {
			pids[i] = strconv.Itoa(c.Process.Pid)
		}
		fmt.Printf(`
left running, with logs in build/demo/:
  call again  echo '{"id":1,"method":"who","attachments":{"tenant":"acme"},"count":100,"summary":true}' | build/peers/dubbogo/consumer -addr 127.0.0.1:%s
  look        curl -s 'http://%s/stats?filter=meta_protocol'
  scrape      http://%s/metrics and, for Envoy's own, http://%s/stats/prometheus
  Prometheus  prometheus --config.file=%s --enable-feature=exemplar-storage
  end         kill %s
`, port, admin, metrics, admin, prometheus, strings.Join(pids, " "))
	}
	return nil
}

// prometheus writes the configuration of examples/observability, with the addresses that
// the kernel chose.
func (d *demo) prometheus(metrics, admin string) (file string, err error) {
	from := filepath.Join(d.root, "examples", "observability")
	config, err := os.ReadFile(filepath.Join(from, "prometheus.yml"))
	if err != nil {
		return "", err
	}
	own := strings.NewReplacer("127.0.0.1:15880", metrics, "127.0.0.1:9901", admin,
		"rules.yml", filepath.Join(from, "rules.yml"), "alerts.yml", filepath.Join(from, "alerts.yml")).Replace(string(config))
	return "build/demo/prometheus.yml", os.WriteFile(filepath.Join(d.logs, "prometheus.yml"), []byte(own), 0o600)
}

// start runs a child with its log in build/demo.
func (d *demo) start(name string, stdout io.Writer, env []string, argv ...string) (*exec.Cmd, error) {
	log, err := os.Create(filepath.Join(d.logs, name+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = log
	cmd.Stdout = log
	if stdout != nil {
		cmd.Stdout = stdout
	}
	// Neither a Ctrl-C that ends us nor our end reaches what is kept.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	d.children = append(d.children, cmd)
	return cmd, nil
}

func (d *demo) stop() {
	for _, c := range d.children {
		c.Process.Kill()
		c.Wait()
	}
}

// provider starts an instance and returns its port.
func (d *demo) provider(bin, name string) (port int, err error) {
	ready, err := os.Create(filepath.Join(d.logs, name+".ready"))
	if err != nil {
		return 0, err
	}
	defer ready.Close()
	if _, err := d.start(name, ready, nil, bin, "-name", name); err != nil {
		return 0, err
	}
	err = await("provider "+name, func() bool {
		var line struct{ Port int }
		b, err := os.ReadFile(ready.Name())
		if err == nil && json.Unmarshal(b, &line) == nil {
			port = line.Port
		}
		return port != 0
	})
	return port, err
}

// envoy starts Envoy and returns the address of its admin interface and the
// port of the Dubbo listener.
func (d *demo) envoy(config string) (admin, port string, err error) {
	bin := os.Getenv("ENVOY_BIN")
	if bin == "" {
		version := os.Getenv("ENVOY_VERSION")
		if version == "" {
			version = "1.40.0"
		}
		bin = filepath.Join(d.root, "build", "envoy-"+version, "envoy")
	}
	file := filepath.Join(d.logs, "envoy.yaml")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		return "", "", err
	}
	address := filepath.Join(d.logs, "admin")
	if err := os.RemoveAll(address); err != nil {
		return "", "", err
	}
	env := []string{"ENVOY_DYNAMIC_MODULES_SEARCH_PATH=" + filepath.Join(d.root, "build")}
	cmd, err := d.start("envoy", nil, env, bin, "-c", file, "--concurrency", "2", "--disable-hot-restart", "--admin-address-path", address)
	if err != nil {
		return "", "", err
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	err = await("Envoy", func() bool {
		select {
		case err := <-exited:
			exited <- err
			return true
		default:
		}
		b, err := os.ReadFile(address)
		if admin = string(b); err != nil || admin == "" {
			return false
		}
		_, err = get("http://" + admin + "/ready")
		return err == nil
	})
	select {
	case err := <-exited:
		return "", "", fmt.Errorf("envoy ended, see build/demo/envoy.log: %w", err)
	default:
	}
	if err != nil {
		return "", "", err
	}
	list, err := get("http://" + admin + "/listeners")
	if err != nil {
		return "", "", err
	}
	for line := range strings.Lines(list) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "dubbo::127.0.0.1:"); ok {
			return admin, rest, nil
		}
	}
	return "", "", fmt.Errorf("no listener dubbo among %q", list)
}

func get(url string) (string, error) {
	r, err := http.Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = errors.New(r.Status)
	}
	return string(b), err
}

func await(what string, done func() bool) error {
	for deadline := time.Now().Add(patience); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is not ready after %v; see build/demo", what, patience)
		}
	}
	return nil
}

// rule is what a route of envoy.yaml promises about a kind of call.
type rule struct {
	name, expected string
	command        map[string]any
	// share of the answers, in percent, that each version gives; nil: all calls
	// fail.
	share map[string]float64
	// tolerance of a share, in points.
	tolerance float64
}

var rules = []rule{
	{"interface Audit", "v1", map[string]any{"interface": "org.meltemi.test.Audit", "method": "who", "count": 500}, map[string]float64{"v1": 100}, 0},
	{"method sayHelloAsync", "v2", map[string]any{"method": "sayHelloAsync", "args": []string{"demo"}, "count": 500}, map[string]float64{"v2": 100}, 0},
	{"attachment tenant: acme", "v2", map[string]any{"method": "who", "attachments": map[string]string{"tenant": "acme"}, "count": 500}, map[string]float64{"v2": 100}, 0},
	{"the rest", "v1 90 %, v2 10 %", map[string]any{"method": "who", "count": 5000}, map[string]float64{"v1": 90, "v2": 10}, 2.5},
	{"unknown method", "an error", map[string]any{"method": "noSuchMethod", "args": []string{"demo"}, "count": 100}, nil, 0},
}

type summary struct {
	ID             int
	Calls          int
	Values, Errors map[string]int
	LatencyUS      map[string]int `json:"latency_us"`
}

// rules makes the calls, prints the table and tells whether all is as promised.
func (d *demo) rules(consumer, addr string) (ok bool, err error) {
	cmd := exec.Command(consumer, "-addr", addr)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return false, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return false, err
	}
	log, err := os.Create(filepath.Join(d.logs, "consumer.log"))
	if err != nil {
		return false, err
	}
	defer log.Close()
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		return false, err
	}
	defer cmd.Wait()
	defer stdin.Close()
	commands, answers := json.NewEncoder(stdin), json.NewDecoder(stdout)

	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "RULE\tEXPECTED\tCALLS\tANSWERED BY\tP50\tP99\t")
	ok = true
	for i, r := range rules {
		r.command["id"], r.command["concurrency"], r.command["summary"] = i, 16, true
		if err := commands.Encode(r.command); err != nil {
			return false, err
		}
		var s summary
		if err := answers.Decode(&s); err != nil {
			return false, fmt.Errorf("the consumer ended: %w; see build/demo/consumer.log", err)
		}
		verdict := "ok"
		if why := r.check(s); why != "" {
			ok, verdict = false, "WRONG: "+why
		}
		ms := func(p string) string { return fmt.Sprintf("%.2f ms", float64(s.LatencyUS[p])/1000) }
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\t%s\n", r.name, r.expected, s.Calls, answeredBy(s), ms("p50"), ms("p99"), verdict)
	}
	w.Flush()
	fmt.Println()
	return ok, nil
}

// instance is the name in an answer such as "v1-a" or "v1-a: hello demo".
func instance(value string) string {
	name, _, _ := strings.Cut(value, ":")
	return name
}

func answeredBy(s summary) string {
	by := map[string]int{}
	for v, n := range s.Values {
		by[instance(v)] += n
	}
	var parts []string
	for name, n := range by {
		parts = append(parts, fmt.Sprintf("%s %d", name, n))
	}
	slices.Sort(parts)
	for text, n := range s.Errors {
		parts = append(parts, fmt.Sprintf("%d × error %q", n, text))
	}
	return strings.Join(parts, ", ")
}

// check says what is wrong, or "".
func (r rule) check(s summary) string {
	if r.share == nil {
		if len(s.Values) > 0 {
			return "calls were answered"
		}
		for text := range s.Errors {
			if !strings.Contains(text, "route") {
				return fmt.Sprintf("the error is not about routes: %q", text)
			}
		}
		return ""
	}
	if len(s.Errors) > 0 {
		return "calls failed"
	}
	versions, instances := map[string]int{}, map[string]bool{}
	for v, n := range s.Values {
		name := instance(v)
		version, _, _ := strings.Cut(name, "-")
		versions[version] += n
		instances[name] = true
	}
	if want := 2 * len(r.share); len(instances) != want {
		return fmt.Sprintf("%d of %d instances answered", len(instances), want)
	}
	for version, want := range r.share {
		got := 100 * float64(versions[version]) / float64(s.Calls)
		if got < want-r.tolerance || got > want+r.tolerance {
			return fmt.Sprintf("%s has %.1f %%", version, got)
		}
	}
	return ""
}

// counters prints what Envoy has counted, once that is all of the calls:
// workers report what they count a moment later.
func counters(admin string, calls int) error {
	const names = "/stats?usedonly&filter=^meta_protocol[.]dubbo[.]demo[.](request|response|local_response_business_exception)$"
	want := fmt.Sprintf("request: %d", calls)
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		stats, err := get("http://" + admin + names)
		if err != nil {
			return err
		}
		counted := strings.Contains(stats, want+"\n") || strings.HasSuffix(strings.TrimSpace(stats), want)
		if !counted && time.Now().Before(end) {
			continue
		}
		fmt.Print("Envoy has counted\n  ", strings.ReplaceAll(strings.TrimSpace(stats), "\n", "\n  "), "\n\n")
		if !counted {
			return fmt.Errorf("want %s", want)
		}
		return nil
	}
}
