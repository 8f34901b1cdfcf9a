// Package envoytest runs a real Envoy whose listeners, clusters and endpoints
// are files that a test rewrites.
package envoytest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// patience bounds every wait: far longer than anything takes on a busy machine.
const patience = 30 * time.Second

// parentShutdown is how long the one before lives on in a hot restart.
const parentShutdown = 6 * time.Second

// Options say which Envoy to run with what.
type Options struct {
	// Bin is the path of the binary.
	Bin string
	// Concurrency is the number of workers.
	Concurrency int
	// Modules is the folder in which Envoy looks for dynamic modules.
	Modules string
	// Listeners and Clusters to begin with.
	Listeners, Clusters []Resource
	// Binary has the listeners' file in protobuf, made from its JSON form, which
	// names its resources' types by @type.
	Binary func(json []byte) []byte
	// Extensions that listeners ask for by Discovered.
	Extensions []M
	// Env is added to the environment.
	Env []string
	// Args are added to the command line.
	Args []string
	// Drain is how long listeners that are replaced have; 0 is 2 s.
	Drain time.Duration
	// Golang has Meltemi served by Envoy's golang network filter.
	Golang Golang
	// Tunnels are Meltemi's connections to servers then.
	Tunnels Tunnels
	// Sanitized has the imitated host of that filter run under the address sanitizer.
	Sanitized bool
	// Replaces is the Envoy that this one takes over from by a hot restart.
	Replaces *Envoy
	// HotRestart lets another one take over.
	HotRestart bool
	// MayPanic lets the log speak of panics that were caught.
	MayPanic bool
}

// Envoy is a running Envoy.
type Envoy struct {
	t       testing.TB
	dir     string
	cmd     *exec.Cmd
	admin   string
	exited  chan struct{}
	exit    error
	log     *os.File
	version int
	stopped bool
	// replaced: its successor ends it.
	replaced bool
	baseID   string
	epoch    int

	mayPanic bool
	golang   *golang // nil: dynamic modules
}

// Start runs an Envoy until the end of the test, at which it must still live,
// must not have logged a panic, and must leave in an orderly way.
func Start(t testing.TB, o Options) *Envoy {
	t.Helper()
	e := &Envoy{t: t, dir: t.TempDir(), exited: make(chan struct{}), mayPanic: o.MayPanic}
	var err error
	// Envoy watches its folder, and would log of each of its lines.
	require.NoError(t, os.Mkdir(e.path("log"), 0o755))
	e.log, err = os.OpenFile(e.path("log/envoy.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	require.NoError(t, err)
	if o.Drain == 0 {
		o.Drain = 2 * time.Second
	}
	if o.Golang != NotGolang {
		o.Listeners, o.Env = e.serveGolang(o)
	}
	e.write("lds.json", o.Listeners)
	e.write("cds.json", o.Clusters)
	lds := "lds.json"
	if o.Binary != nil {
		lds = "lds.pb"
		b, err := os.ReadFile(e.path("lds.json"))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(e.path(lds), o.Binary(b), 0o644))
	}
	for _, x := range o.Extensions {
		e.write(extensionFile(x["name"].(string)), []Resource{e.golang.extensionForm(x)})
	}
	bootstrap, err := json.Marshal(map[string]any{
		"node":  map[string]any{"id": "test", "cluster": "test"},
		"admin": map[string]any{"address": socketAddress("127.0.0.1", 0)},
		"dynamic_resources": map[string]any{
			"lds_config": e.file(lds),
			"cds_config": e.file("cds.json"),
		},
	})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(e.path("bootstrap.json"), bootstrap, 0o644))

	restart := []string{"--disable-hot-restart"}
	switch {
	case o.Replaces != nil:
		e.baseID, e.epoch = o.Replaces.baseID, o.Replaces.epoch+1
		o.Replaces.stopped, o.Replaces.replaced = true, true
		restart = []string{"--base-id", e.baseID, "--restart-epoch", strconv.Itoa(e.epoch)}
	case o.HotRestart:
		restart = []string{"--use-dynamic-base-id", "--base-id-path", e.path("base-id")}
	}
	e.cmd = exec.Command(o.Bin, append(append(restart,
		"-c", e.path("bootstrap.json"), "--concurrency", strconv.Itoa(max(o.Concurrency, 1)),
		"--admin-address-path", e.path("admin"), "--drain-time-s", strconv.Itoa(int(o.Drain.Seconds())), "--parent-shutdown-time-s", strconv.Itoa(int(parentShutdown.Seconds())),
	), o.Args...)...)
	if !slices.Contains(o.Args, "-l") { // Envoy takes it once
		e.cmd.Args = append(e.cmd.Args, "-l", "info")
	}
	e.cmd.Env = append(append(os.Environ(), "ENVOY_DYNAMIC_MODULES_SEARCH_PATH="+o.Modules), o.Env...)
	e.cmd.Stdout, e.cmd.Stderr = e.log, e.log
	// A test binary that is killed takes its Envoys along.
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func() {
		// The death signal is tied to the thread that started the child.
		runtime.LockOSThread()
		err := e.cmd.Start()
		started <- err
		if err == nil {
			e.exit = e.cmd.Wait()
		}
		close(e.exited)
	}()
	require.NoError(t, <-started)
	t.Cleanup(e.finish)

	e.until("the admin address", func() bool {
		b, err := os.ReadFile(e.path("admin"))
		e.admin = string(b)
		return err == nil && strings.Contains(e.admin, ":")
	})
	e.until("readiness", func() bool {
		r, err := admin.Get("http://" + e.admin + "/ready")
		if err != nil {
			return false
		}
		defer r.Body.Close()
		return r.StatusCode == http.StatusOK
	})
	if o.HotRestart && o.Replaces == nil {
		b, err := os.ReadFile(e.path("base-id"))
		require.NoError(t, err)
		e.baseID = strings.TrimSpace(string(b))
	}
	return e
}

// until waits for something that Envoy will do.
func (e *Envoy) until(what string, done func() bool) {
	e.t.Helper()
	deadline := time.Now().Add(patience)
	for !done() {
		select {
		case <-e.exited:
			e.t.Fatalf("Envoy ended (%v) while the test waited for %s", e.exit, what)
		case <-e.golang.exited():
			e.t.Fatalf("Meltemi's host ended (%v) while the test waited for %s", e.golang.host.Err(), what)
		default:
		}
		if time.Now().After(deadline) {
			e.t.Fatalf("no %s after %v", what, patience)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// finish proves that Envoy lives and leaves without a crash.
func (e *Envoy) finish() {
	e.t.Helper()
	if !e.stopped {
		select {
		case <-e.exited:
			e.t.Errorf("Envoy died: %v", e.exit)
		case <-e.golang.exited():
			e.t.Errorf("Meltemi's host died: %v", e.golang.host.Err())
		default:
			e.Terminate()
			e.WaitExit()
		}
	}
	e.log.Close()
	log := e.Log()
	for _, bad := range []string{"panic", "[critical]", "assert failure", "Caught Segmentation", "fatal error:"} {
		if i := strings.Index(log, bad); i >= 0 && (bad != "panic" || !e.mayPanic) {
			e.t.Errorf("Envoy logged %q:\n%s", bad, log[i:min(len(log), i+4000)])
		}
	}
	if e.t.Failed() {
		e.t.Logf("end of Envoy's log:\n%s", log[max(0, len(log)-8000):])
	}
}

// Kill ends Envoy as a crash would; the test then does not ask that it lives.
func (e *Envoy) Kill() {
	e.stopped = true
	if h := e.golang.imitated(); h != nil {
		h.Kill()
		<-h.Exited()
	}
	e.cmd.Process.Kill()
	<-e.exited
}

// Terminate asks Envoy to end. The test then does not ask that it lives on.
func (e *Envoy) Terminate() {
	e.stopped = true
	if h := e.golang.imitated(); h != nil {
		h.Signal(syscall.SIGTERM)
		return // Envoy is ended behind it, as it is a part of it
	}
	e.cmd.Process.Signal(syscall.SIGTERM)
}

// WaitExit waits until Envoy has ended, in an orderly way.
func (e *Envoy) WaitExit() {
	e.t.Helper()
	e.stopped = true
	if h := e.golang.imitated(); h != nil {
		select {
		case <-h.Exited():
			if err := h.Err(); err != nil {
				e.t.Errorf("Meltemi's host did not end in an orderly way: %v", err)
			}
		case <-time.After(patience):
			h.Kill()
			e.t.Errorf("Meltemi's host still runs %v after its end was due", patience)
		}
		if !e.replaced {
			e.cmd.Process.Signal(syscall.SIGTERM)
		}
	}
	select {
	case <-e.exited:
		if e.exit != nil {
			e.t.Errorf("Envoy did not end in an orderly way: %v", e.exit)
		}
	case <-time.After(patience):
		e.cmd.Process.Kill()
		<-e.exited
		e.t.Errorf("Envoy still runs %v after its end was due", patience)
	}
}

// Log is everything that Envoy has logged so far.
func (e *Envoy) Log() string {
	b, err := os.ReadFile(e.path("log/envoy.log"))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Exited is closed when the process that has Meltemi in it has ended.
func (e *Envoy) Exited() <-chan struct{} {
	if e.golang.imitated() != nil {
		return e.golang.exited()
	}
	return e.exited
}

// Pid of the process that has Meltemi in it.
func (e *Envoy) Pid() int {
	if h := e.golang.imitated(); h != nil {
		return h.Pid()
	}
	return e.cmd.Process.Pid
}

// RSS is the resident memory in bytes.
func (e *Envoy) RSS() int64 {
	e.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", e.Pid()))
	require.NoError(e.t, err)
	pages, err := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	require.NoError(e.t, err)
	return pages * int64(os.Getpagesize())
}

// Kept is how many bytes of RSS Envoy's own allocator keeps though nothing is in them. It
// gives them back where the bootstrap has a memory_allocator_manager.
func (e *Envoy) Kept() int64 {
	e.t.Helper()
	var memory struct {
		Free int64 `json:"pageheap_free,string"`
	}
	require.NoError(e.t, json.Unmarshal([]byte(e.Admin("/memory")), &memory))
	return memory.Free
}

// admin asks Envoys, also one that hangs.
var admin = http.Client{Timeout: patience}

// Admin asks the admin interface.
func (e *Envoy) Admin(path string) string {
	e.t.Helper()
	r, err := admin.Get("http://" + e.admin + path)
	require.NoError(e.t, err)
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	require.NoError(e.t, err)
	require.Equal(e.t, http.StatusOK, r.StatusCode, "%s: %s", path, b)
	return string(b)
}

// Prometheus is the page with Meltemi's metrics: the admin interface's, or its own by the golang filter.
func (e *Envoy) Prometheus() string {
	e.t.Helper()
	if e.golang != nil {
		return e.golang.page(e.t)
	}
	return e.Admin("/stats/prometheus")
}

// AdminAddress is where the admin interface listens.
func (e *Envoy) AdminAddress() string { return e.admin }

// Port is the port that a listener got.
func (e *Envoy) Port(listener string) int {
	e.t.Helper()
	if port := e.golang.port(e.t, listener); port != 0 {
		return port
	}
	port := 0
	e.until("listener "+listener, func() bool {
		var all struct {
			Statuses []struct {
				Name    string `json:"name"`
				Address struct {
					Socket struct {
						Port int `json:"port_value"`
					} `json:"socket_address"`
				} `json:"local_address"`
			} `json:"listener_statuses"`
		}
		require.NoError(e.t, json.Unmarshal([]byte(e.Admin("/listeners?format=json")), &all))
		for _, s := range all.Statuses {
			if s.Name == listener {
				port = s.Address.Socket.Port
			}
		}
		return port != 0
	})
	return port
}

// Dial connects to a listener until the end of the test.
func (e *Envoy) Dial(listener string) *net.TCPConn {
	e.t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", e.Port(listener)))
	require.NoError(e.t, err)
	e.t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// Stats are the counters and gauges whose names match a regular expression.
func (e *Envoy) Stats(pattern string) map[string]int64 {
	e.t.Helper()
	if e.golang != nil && strings.HasPrefix(pattern, "^meta_protocol") {
		return e.golang.stats(e.t, pattern)
	}
	stats := map[string]int64{}
	for line := range strings.Lines(e.Admin("/stats?filter=" + pattern)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if v, err := strconv.ParseInt(value, 10, 64); ok && err == nil {
			stats[name] = v
		}
	}
	maps.Copy(stats, e.golang.listenerStats(e.t, pattern))
	return stats
}

// Stat is one counter or gauge, 0 if Envoy has none of that name.
func (e *Envoy) Stat(name string) int64 {
	e.t.Helper()
	if e.golang != nil && strings.HasPrefix(name, "meta_protocol.") {
		return e.golang.metric(e.t, name)
	}
	return e.Stats("^" + strings.ReplaceAll(name, ".", "[.]") + "$")[name]
}

// WaitStat waits until a counter or gauge satisfies a condition.
func (e *Envoy) WaitStat(name string, ok func(int64) bool) {
	e.t.Helper()
	e.until(name, func() bool { return ok(e.Stat(name)) })
}

// AtLeast is a condition for WaitStat.
func AtLeast(n int64) func(int64) bool { return func(v int64) bool { return v >= n } }

// Exactly is a condition for WaitStat.
func Exactly(n int64) func(int64) bool { return func(v int64) bool { return v == n } }

func (e *Envoy) path(name string) string { return filepath.Join(e.dir, name) }

// file is the config source of a file that the test rewrites.
func (e *Envoy) file(name string) map[string]any {
	return map[string]any{"resource_api_version": "V3", "path_config_source": map[string]any{"path": e.path(name)}}
}

// write replaces a file of resources in one step, which is what Envoy watches
// for.
func (e *Envoy) write(name string, resources []Resource) {
	e.t.Helper()
	e.version++
	for _, r := range resources {
		e.discover(r)
		if c, ok := r["eds_cluster_config"].(map[string]any); ok {
			eds := "eds-" + r["name"].(string) + ".json"
			c["eds_config"] = e.file(eds)
			// A test gives the endpoints with the cluster; Envoy wants them apart.
			if endpoints, ok := r[initialEndpoints].([]Endpoint); ok {
				e.write(eds, []Resource{assignment(r["name"].(string), endpoints)})
			}
		}
	}
	clean := make([]Resource, len(resources))
	for i, r := range resources {
		clean[i] = Resource{}
		for k, v := range r {
			if k != initialEndpoints {
				clean[i][k] = v
			}
		}
	}
	b, err := json.Marshal(map[string]any{"version_info": strconv.Itoa(e.version), "resources": clean})
	require.NoError(e.t, err)
	require.NoError(e.t, os.WriteFile(e.path(name+".new"), b, 0o644))
	require.NoError(e.t, os.Rename(e.path(name+".new"), e.path(name)))
}

func extensionFile(name string) string { return "ecds-" + name + ".json" }

// discover tells filters of a listener that are discovered in which file.
func (e *Envoy) discover(listener Resource) {
	chains, _ := listener["filter_chains"].([]any)
	for _, chain := range chains {
		filters, _ := chain.(M)["filters"].([]M)
		for _, f := range filters {
			if d, ok := f["config_discovery"].(M); ok {
				source := e.file(extensionFile(f["name"].(string)))
				if given, ok := d["config_source"].(M); ok && given["initial_fetch_timeout"] != nil {
					source["initial_fetch_timeout"] = given["initial_fetch_timeout"]
				}
				d["config_source"] = source
			}
		}
	}
}

// update rewrites a file and waits until Envoy has accepted or refused it.
func (e *Envoy) update(file, stats string, resources []Resource) (accepted bool) {
	e.t.Helper()
	count := func(what string) int64 { return e.Stat(stats + what) }
	ok, refused := count("update_success"), count("update_rejected")
	e.write(file, resources)
	e.until(file+" to be read", func() bool {
		accepted = count("update_success") > ok
		return accepted || count("update_rejected") > refused
	})
	return accepted
}

// SetListeners replaces all listeners.
func (e *Envoy) SetListeners(r ...Resource) (accepted bool) {
	e.t.Helper()
	if e.golang != nil {
		r = e.updateGolang(r)
	}
	return e.update("lds.json", "listener_manager.lds.", r)
}

// SetClusters replaces all clusters.
func (e *Envoy) SetClusters(r ...Resource) (accepted bool) {
	e.t.Helper()
	return e.update("cds.json", "cluster_manager.cds.", r)
}

// SetExtension replaces the configuration of a discovered filter.
func (e *Envoy) SetExtension(name string, filter M) {
	e.t.Helper()
	stats := "extension_config_discovery.network_filter." + name + ".config_reload"
	before := e.Stat(stats)
	e.write(extensionFile(name), []Resource{e.golang.extensionForm(Extension(name, filter))})
	e.WaitStat(stats, AtLeast(before+1))
}

// SetEndpoints replaces the endpoints of an EDS cluster.
func (e *Envoy) SetEndpoints(cluster string, endpoints ...Endpoint) {
	e.t.Helper()
	if !e.update("eds-"+cluster+".json", "cluster."+cluster+".", []Resource{assignment(cluster, endpoints)}) {
		e.t.Fatalf("Envoy refused endpoints of %s", cluster)
	}
}

var socketNumber struct {
	sync.Mutex
	n int
}

// Socket is an abstract socket name that no other Envoy of this machine uses.
func Socket() string {
	socketNumber.Lock()
	defer socketNumber.Unlock()
	socketNumber.n++
	return fmt.Sprintf("@meltemi-test-%d-%d", os.Getpid(), socketNumber.n)
}

// Indent formats JSON for a failure's text.
func Indent(s string) string {
	var b bytes.Buffer
	if json.Indent(&b, []byte(s), "", " ") != nil {
		return s
	}
	return b.String()
}
