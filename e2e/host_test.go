package e2e

import (
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/missing"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

func TestTheSharedObjectLoadsOnOldSystems(t *testing.T) {
	t.Parallel()
	checkSharedObject(t, filepath.Join(peers.Root(), "build", "libmeltemi.so"), runtime.GOARCH)
}

// TestTheSharedObjectForArm64: it is built, and takes from Envoy and gives to it
// what the one that all other tests run does.
func TestTheSharedObjectForArm64(t *testing.T) {
	out, err := exec.Command("make", "-C", peers.Root(), "so-arm64").CombinedOutput()
	if err != nil && !missing.Fatal() {
		if _, err := exec.LookPath("aarch64-linux-gnu-gcc"); err != nil {
			missing.Skip(t, "no cross compiler: %v", err)
		}
	}
	require.NoError(t, err, "%s", out)
	so := filepath.Join(peers.Root(), "build", "arm64", "libmeltemi.so")
	checkSharedObject(t, so, "arm64")
	native := filepath.Join(peers.Root(), "build", "libmeltemi.so")
	require.Equal(t, boundary(t, native), boundary(t, so))
}

// boundary is what is between a shared object and Envoy: each function with
// whether it is imported and how it is bound.
func boundary(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := elf.Open(path)
	require.NoError(t, err)
	defer f.Close()
	symbols, err := f.DynamicSymbols()
	require.NoError(t, err)
	b := map[string]string{}
	for _, s := range symbols {
		if strings.HasPrefix(s.Name, "envoy_dynamic_module_") || strings.HasPrefix(s.Name, "envoyGo") {
			b[s.Name] = fmt.Sprint(s.Section == elf.SHN_UNDEF, elf.ST_BIND(s.Info))
		}
	}
	require.NotEmpty(t, b)
	return b
}

// checkSharedObject makes sure that a shared object is for an architecture, as Go
// calls it, needs nothing newer than glibc 2.34 and no library but libc, and that
// it stays loaded.
func checkSharedObject(t *testing.T, path, arch string) {
	t.Helper()
	f, err := elf.Open(path)
	require.NoError(t, err)
	defer f.Close()
	require.Equal(t, map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[arch], f.Machine)
	symbols, err := f.ImportedSymbols()
	require.NoError(t, err)
	for _, s := range symbols {
		v, ok := strings.CutPrefix(s.Version, "GLIBC_2.")
		if !ok {
			continue
		}
		minor, _, _ := strings.Cut(v, ".")
		n, err := strconv.Atoi(minor)
		require.NoError(t, err)
		require.LessOrEqual(t, n, 34, s.Name)
	}
	libraries, err := f.ImportedLibraries()
	require.NoError(t, err)
	for _, l := range libraries {
		require.Contains(t, []string{"libc.so.6", "libpthread.so.0", "libdl.so.2", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}, l)
	}
	flags, err := f.DynValue(elf.DT_FLAGS_1)
	require.NoError(t, err)
	require.NotEmpty(t, flags)
	require.NotZero(t, flags[0]&uint64(elf.DF_1_NODELETE))
	// Envoys differ in what they offer: with one import that is not weak an Envoy
	// that lacks it would not load the object.
	callbacks := 0
	for name, bound := range boundary(t, path) {
		if strings.HasPrefix(name, "envoy_dynamic_module_callback_") || strings.HasPrefix(name, "envoyGo") && !strings.HasPrefix(name, "envoyGoFilterOn") {
			callbacks++
			require.Equal(t, fmt.Sprint(true, elf.STB_WEAK), bound, name)
		}
	}
	require.Positive(t, callbacks)
}

// TestGosRuntimeIsOurs: the container's GOMAXPROCS and GOMEMLIMIT are not
// meant for the workers, and busy goroutines make none of them wait. They are not
// interrupted here, so that who waits for one waits for ever; as the garbage
// collector would, it is off.
func TestGosRuntimeIsOurs(t *testing.T) {
	t.Parallel()
	buildFilterSO(t)
	once(t, func(t *testing.T, v variant) {
		if v.golang {
			// Workers are known there by their first clients, see TestGosProcessorsGrowWithTheWorkers:
			// that stops what runs, which cannot be done to what is not interrupted.
			v.workers = 1
		}
		for name, tc := range map[string]struct {
			env   []string
			limit int64
		}{
			"limit of ours":     {[]string{"MELTEMI_GOMEMLIMIT=300MiB"}, 300 << 20},
			"quarter of memory": {nil, max(memory(t)/4, 64<<20)},
		} {
			t.Run(name, func(t *testing.T) {
				s := scripted.Serve(t, scripted.Answer("here"))
				config := toOne("one")
				config["meta_protocol_filters"] = []any{envoytest.M{"name": "test.busy"}, envoytest.M{"name": "aeraki.meta_protocol.filters.router"}}
				o := v.options()
				o.Modules = filterSO()
				o.Env = append([]string{
					"GOMAXPROCS=" + strconv.Itoa(v.workers), "GOMEMLIMIT=10MiB", "GODEBUG=asyncpreemptoff=1", "GOGC=off",
				}, tc.env...)
				o.Clusters = []envoytest.Resource{envoytest.Cluster("one", envoytest.At(s.Port)...)}
				o.Listeners = []envoytest.Resource{
					envoytest.LoopbackOf("custom", envoytest.Socket()),
					envoytest.Listener("dubbo", envoytest.Module("custom", "meta_protocol_proxy", config)),
				}
				e := envoytest.Start(t, o)
				require.Contains(t, e.Log(), fmt.Sprintf("GOMAXPROCS %d, Go memory limit %d MiB", v.workers+2, tc.limit>>20))
				c := scripted.Dial(t, e.Port("dubbo"))
				c.Ask(1, dubbotest.Request{Method: "runtime"})
				require.Equal(t, fmt.Sprintf("GOMAXPROCS %d, memory limit %d", v.workers+2, tc.limit), c.Read().Text())
				for id := range uint64(300) {
					c.Ask(id, dubbotest.Request{})
					require.Equal(t, "here", c.Read().Text())
				}
			})
		}
	})
}

// memory of the machine, or of the container that the test runs in.
func memory(t *testing.T) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/meminfo")
	require.NoError(t, err)
	var kib int64
	_, err = fmt.Sscanf(string(b), "MemTotal: %d kB", &kib)
	require.NoError(t, err)
	least := kib << 10
	for _, path := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		b, _ := os.ReadFile(path)
		if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil {
			least = min(least, n)
		}
	}
	return least
}

// TestGosMonitorDoesNotSpin: the timers of Go's own threads are lazy, Envoy's are
// as they were.
func TestGosMonitorDoesNotSpin(t *testing.T) {
	slack := func(of string) string {
		t.Helper()
		b, err := os.ReadFile("/proc/" + of + "/timerslack_ns")
		require.NoError(t, err)
		return strings.TrimSpace(string(b))
	}
	everywhere(t, func(t *testing.T, v variant) {
		e := v.start(t, toOne("one"))
		usual := slack("self")
		require.Equal(t, usual, slack(strconv.Itoa(e.Pid())))
		comms, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/comm", e.Pid()))
		require.NoError(t, err)
		workers, lazy := 0, 0
		for _, comm := range comms {
			b, err := os.ReadFile(comm)
			require.NoError(t, err)
			s := slack(filepath.Base(filepath.Dir(comm)))
			if strings.HasPrefix(string(b), "wrk:") {
				workers++
				require.Equal(t, usual, s)
			} else if s == "5000000" {
				lazy++
			}
		}
		require.Equal(t, v.workers, workers)
		require.Positive(t, lazy)
	})
}

func TestGosProcessorsCanBeSet(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		o := v.options()
		o.Env = []string{"MELTEMI_GOMAXPROCS=7"}
		o.Listeners = []envoytest.Resource{envoytest.Loopback(envoytest.Socket()), envoytest.Listener("dubbo", envoytest.Proxy(toOne("one")))}
		require.Contains(t, envoytest.Start(t, o).Log(), "meltemi: GOMAXPROCS 7,")
	})
}

// TestGosProcessorsGrowWithTheWorkers: the golang filter does not say how many there are.
func TestGosProcessorsGrowWithTheWorkers(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		if !v.golang {
			t.Skip("dynamic modules are told how many workers there are")
		}
		e := v.start(t, toOne("one"))
		require.Contains(t, e.Log(), "meltemi: GOMAXPROCS 3,")
		// The kernel says which worker gets a connection.
		require.Eventually(t, func() bool {
			e.Dial("dubbo")
			return strings.Contains(e.Log(), fmt.Sprintf("meltemi: GOMAXPROCS %d\n", v.workers+2))
		}, patience, tick)
	})
}

func TestCountersAreAtPrometheusToo(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		s := scripted.Serve(t, scripted.Answer("here"))
		e := v.start(t, toOne("one"), envoytest.Cluster("one", envoytest.At(s.Port)...))
		c := scripted.Dial(t, e.Port("dubbo"))
		for id := range uint64(7) {
			c.Ask(id, dubbotest.Request{})
			c.Read()
		}
		e.WaitStat(stats+"response_success", envoytest.Exactly(7))
		text := e.Prometheus()
		require.Regexp(t, `(?m)^envoy_meta_protocol_dubbo_test_request(\{})? 7$`, text)
		require.Regexp(t, `(?m)^envoy_meta_protocol_dubbo_test_request_active(\{})? 0$`, text)
		require.Contains(t, text, "# TYPE envoy_meta_protocol_dubbo_test_request_time_ms histogram")
	})
}

// TestAllCountersOfAListener by their names: dashboards have them. The first are
// those of the C++ MetaProtocol Proxy.
func TestAllCountersOfAListener(t *testing.T) {
	t.Parallel()
	want := strings.Fields(`
		cx_destroy_local_with_active_rq cx_destroy_remote_with_active_rq
		local_response_business_exception local_response_error local_response_success
		request request_decoding_error request_decoding_success request_event request_oneway request_twoway request_stream
		response response_business_exception response_decoding_error response_decoding_success response_error
		response_error_caused_connection_close response_success
		idle_timeout request_active

		breaker_key_max_requests breaker_key_open breaker_max_connections breaker_max_pending_requests breaker_max_requests
		breaker_opened
		outlier_ejections_active outlier_ejections_consecutive_failures outlier_ejections_failure_percentage
		outlier_ejections_overflow outlier_ejections_silence outlier_ejections_total outlier_probe_failures outlier_probes
		connection_panic downstream_overflow drain_closed filter_panic
		mirror mirror_active mirror_different mirror_failed mirror_overflow mirror_same mutation_refused mutation_skipped oneway_dropped
		oneway_error_told oneway_presumed
		partial_frame_overflow partial_frame_timeout partial_frame_wait
		passthrough_active passthrough_connect_fail passthrough_connection
		rds_update_attempt rds_update_empty rds_update_failure rds_update_rejected rds_update_success
		request_hash_host_busy request_hash_host_unavailable request_hash_hosts_unknown request_hash_no_key request_host_unavailable access_log_lost access_log_written
		request_deadline_spent request_hedge request_hedge_won request_per_try_timeout
		request_retry request_retry_limit_exceeded request_retry_overflow request_retry_success
		request_abandoned request_direct_response request_no_cluster request_overflow request_timeout request_unanswered request_unroutable request_unserved
		stream_abandoned stream_active stream_idle_timeout stream_refused stream_reset stream_stray
		upstream_abuse upstream_connect_fail upstream_event upstream_partial_frame_wait upstream_reset upstream_stray_response
		upstream_unserved`)
	everywhere(t, func(t *testing.T, v variant) {
		e := v.start(t, toOne("one"))
		e.Port("dubbo")
		got := []string{}
		for name := range e.Stats("^meta_protocol[.]") {
			if short, ok := strings.CutPrefix(name, stats); ok {
				got = append(got, short)
			} else {
				require.Equal(t, "meta_protocol.panics", name)
			}
		}
		require.ElementsMatch(t, want, got)
		if !v.golang { // whose histograms are on Meltemi's own page, see TestCountersAreAtPrometheusToo
			require.Contains(t, e.Admin("/stats?type=Histograms"), stats+"request_time_ms")
		}
	})
}

func TestLinesAreLoggedAtTheirLevels(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		filters, refused := []envoytest.M{envoytest.Module("meltemi", "bogus", envoytest.M{}), envoytest.TCPProxy("none")}, `filter_name "bogus" is unknown`
		if v.golang { // of the name it is told by connections
			filters, refused = []envoytest.M{envoytest.Proxy(envoytest.Protocol("bogus", "test"))}, "meta_protocol_proxy refused: "
		}
		bad := envoytest.Listener("bad", filters...)
		start := func(level string) string {
			o := v.options()
			o.Env = []string{"MELTEMI_GOMAXPROCS=none"}
			o.Args = []string{"--component-log-level", v.component() + ":" + level}
			o.Listeners = []envoytest.Resource{envoytest.Loopback(envoytest.Socket())}
			e := envoytest.Start(t, o)
			require.Equal(t, v.golang, e.SetListeners(append(o.Listeners, bad)...))
			return e.Log()
		}
		lines := []struct{ level, text string }{
			{"info", "GOMAXPROCS "}, {"warning", `MELTEMI_GOMAXPROCS="none" is not`}, {"error", refused},
		}
		for least, from := range lines {
			log := start(from.level)
			for i, l := range lines {
				line := regexp.MustCompile(`\[` + l.level + `\]\[` + v.component() + `\] .*meltemi: ` + regexp.QuoteMeta(l.text))
				require.Equal(t, i >= least, line.MatchString(log), "%s from %s on", l.level, from.level)
			}
		}
	})
}
