package e2e

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/rdsserver"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

var soakTime = flag.Duration("soak", 15*time.Second, "how long TestSoak goes on")

// TestSoak mixes load of several kinds with faults and updates of endpoints,
// routes, their policies and listeners; another listener has its routes by RDS. Every
// request is accounted for, what Envoy holds does not grow, and what is under way is
// nothing in the end.
func TestSoak(t *testing.T) {
	buildFilterSO(t)
	once(t, func(t *testing.T, v variant) {
		var all []*scripted.Server
		var at []envoytest.Endpoint
		for range 4 {
			s := scripted.Serve(t, echo)
			all = append(all, s)
			at = append(at, envoytest.Endpoint{Port: s.Port})
		}
		loopback := envoytest.LoopbackOf("custom", envoytest.Socket())
		listener := func(generation int) envoytest.Resource {
			c := envoytest.Dubbo("test")
			c["route_config"] = soakTable("test", generation)
			c["upstream"] = envoytest.M{"max_connection_age": "2s", "idle_timeout": "1s"}
			c["request_timeout"] = "1s"
			c["meta_protocol_filters"] = []any{envoytest.M{"name": "test.runtime"}, envoytest.M{"name": "aeraki.meta_protocol.filters.router"}}
			return envoytest.Listener("dubbo", envoytest.Module("custom", "meta_protocol_proxy", c))
		}
		routes := rdsserver.Start(t, 0, nil)
		byRDS := discovered("dubbo", "soak", "DELTA_GRPC", fromAddress(routes.Port))
		byRDS["upstream"], byRDS["request_timeout"] = envoytest.M{"max_connection_age": "2s", "idle_timeout": "1s"}, "1s"
		byRDSListener := envoytest.Listener("discovered", envoytest.Module("custom", "meta_protocol_proxy", byRDS))
		say := func(generation int) {
			text, err := json.Marshal(soakTable("soak", generation))
			require.NoError(t, err)
			rc := new(routev1alpha.RouteConfiguration)
			require.NoError(t, protojson.Unmarshal(text, rc))
			require.Empty(t, routes.Say("soak", rc))
		}
		o := v.options()
		o.Modules = filterSO()
		o.Clusters = []envoytest.Resource{envoytest.Cluster("four", at...), envoytest.Cluster("pair", at[:2]...)}
		o.Listeners = []envoytest.Resource{loopback, listener(0), byRDSListener}
		e := envoytest.Start(t, o)
		port, discoveredPort := e.Port("dubbo"), e.Port("discovered")
		require.True(t, eventually(patience, func() bool { open, _ := routes.Streams(); return open == 1 }))
		say(0)
		var sums, discoveredSums tally
		provePolicies(t, e, "test", port, all, &sums)
		provePolicies(t, e, "soak", discoveredPort, all, &discoveredSums)
		before := measure(t, e, port, &sums)
		stop := make(chan struct{})
		var load sync.WaitGroup
		end := sync.OnceFunc(func() {
			close(stop)
			load.Wait()
		})
		defer end()
		for client := range uint64(11) {
			port, sums := port, &sums
			if client >= 8 {
				port, sums = discoveredPort, &discoveredSums
			}
			load.Go(func() {
				rng := rand.New(rand.NewPCG(client, 9))
				for n := 0; !isClosed(stop); n++ {
					session(t, kinds[rng.IntN(len(kinds))], rng, fmt.Sprintf("%d-%d", client, n), port, sums)
				}
			})
		}

		rng := rand.New(rand.NewPCG(5, 5))
		var levels []level
		begin := time.Now()
		for generation := 1; time.Since(begin) < *soakTime && !t.Failed(); generation++ {
			s := all[rng.IntN(len(all))]
			say(generation)
			switch generation % 5 {
			case 0:
				s.Disconnect()
			case 1:
				e.SetEndpoints("four", at[:2+rng.IntN(3)]...)
			case 2:
				for range 2 {
					s.Set(faults[rng.IntN(len(faults))])
					time.Sleep(50 * time.Millisecond) // how long the fault lasts
				}
				s.Set(echo)
			case 3:
				require.True(t, e.SetListeners(loopback, listener(generation), byRDSListener))
			case 4:
				time.Sleep(500 * time.Millisecond) // load without new faults
				levels = append(levels, measure(t, e, port, &sums))
			}
		}
		end()
		t.Log(&sums)
		t.Log("by RDS:", &discoveredSums)
		require.NotEmpty(t, levels)
		// Without clients there are no connections, once the pools have closed. Each
		// worker keeps two carriers for the next, and more than those for 10 s: each
		// has a goroutine and two files.
		var after level
		carriers := int64(2*v.workers + 4)
		eventually(patience, func() bool { // what has not settled then is told below
			after = measure(t, e, port, &sums)
			return after[downstream] == 0 && after[upstream] == 0 && after[goroutines] <= before[goroutines]+carriers
		})
		n := len(levels)
		text := fmt.Sprintf("%d levels; before, first, after a quarter, after a half, last, in the end:", n)
		for i, m := range measures {
			text += fmt.Sprintf(" %s %d", m.name, []int64{before[i], levels[0][i], levels[n/4][i], levels[n/2][i], levels[n-1][i], after[i]})
		}
		t.Log(text)

		require.Greater(t, sums.answered.Load(), int64(1000))
		checkCounters(t, e)
		lost := int64(0)
		for i, counter := range counters {
			// What clients know of and what Envoy counted is the same, but for what
			// Envoy may not have seen before one of both closed a connection.
			f := &sums.frames[i]
			require.GreaterOrEqual(t, e.Stat(stats+counter), f.told.Load(), counter)
			require.LessOrEqual(t, e.Stat(stats+counter), f.told.Load()+f.lost.Load()+f.left.Load(), counter)
			lost += f.lost.Load()
		}
		served, sent := int64(0), int64(0)
		for _, s := range all {
			served += s.Requests()
		}
		for _, prefix := range []string{stats, "meta_protocol.dubbo.soak."} {
			for _, name := range []string{"request", "request_retry", "request_hedge", "mirror"} {
				n := e.Stat(prefix + name)
				require.Positive(t, n, prefix+name)
				sent += n
			}
		}
		require.LessOrEqual(t, served, sent, "none is sent more often than the policies say")
		require.Zero(t, e.Stat("meta_protocol.dubbo.soak.rds_update_rejected")+e.Stat("meta_protocol.dubbo.soak.rds_update_failure"))
		// A gauge is told by a connection.
		var active map[string]int64
		require.True(t, eventually(patience, func() bool {
			for _, p := range []int{port, discoveredPort} {
				c := scripted.Dial(t, p)
				c.Ask(1, dubbotest.Request{Argument: "<last>"})
				c.Read()
				c.Close()
			}
			active = e.Stats("^meta_protocol[.]dubbo[.].*_active$")
			for _, n := range active {
				if n != 0 {
					return false
				}
			}
			return len(active) > 0
		}), "%v", active)
		require.Less(t, lost, sums.answered.Load()/1000+100, "lost with their connection")
		require.Zero(t, after[downstream], "connections of clients that have gone")
		require.Zero(t, after[upstream], "connections to servers that nobody needs")
		require.LessOrEqual(t, after[goroutines], before[goroutines]+carriers, "goroutines without connections")
		require.LessOrEqual(t, after[descriptors], before[descriptors]+2*carriers+10, "open files without connections")
		if n >= 8 {
			for i, m := range measures {
				early, late := median(levels[n/4:n/2], i), median(levels[n-n/4:], i)
				require.LessOrEqual(t, late, early+early*m.percent/100+m.more, "%s, from a quarter of the time on", m.name)
			}
		}
	})
}

// provePolicies has a listener retry, hedge and mirror a request: what faults of a
// moment bring about is up to chance.
func provePolicies(t *testing.T, e *envoytest.Envoy, listener string, port int, servers []*scripted.Server, sums *tally) {
	t.Helper()
	for _, policy := range []struct {
		counter    string
		generation int
		behaviour  scripted.Behaviour
	}{
		{"request_retry", 1, scripted.Close},
		{"request_hedge", 2, scripted.Never},
		{"mirror", 4, echo},
	} {
		for _, s := range servers {
			s.Set(policy.behaviour)
		}
		c := scripted.Dial(t, port)
		c.Ask(1, dubbotest.Request{Method: method(policy.generation), Argument: "<policy>"})
		c.Read()
		c.Close()
		sums.frames[twoway].told.Add(1)
		e.WaitStat("meta_protocol.dubbo."+listener+"."+policy.counter, envoytest.AtLeast(1))
	}
}

// soakTable is a table of routes with every policy, whose limits and tables of hosts
// change with the generation.
func soakTable(name string, generation int) envoytest.M {
	type m = envoytest.M
	route := func(generation int, more m) m {
		r := envoytest.Route("four", map[string]string{"method": method(generation)})
		for k, v := range more {
			r["route"].(m)[k] = v
		}
		return r
	}
	changing := envoytest.Route([]string{"four", "pair", "nowhere"}[generation%3], map[string]string{"method": method(generation)})
	loadBalancing := []m{{"ring_hash": m{}}, {"maglev": m{"table_size": 251}, "hash_balance_factor": 150}}[generation%2]
	return m{
		"name": name,
		"routes": []any{
			changing,
			route(1, m{"idempotent": true, "timeout": "0.9s", "retry_policy": m{
				"retry_on": "connect-failure,refused,overloaded,reset,timeout,server-error", "num_retries": 2, "per_try_timeout": "0.3s",
			}}),
			route(2, m{"idempotent": true, "hedge_policy": m{"hedge_delay": "0.02s"}}),
			route(3, m{"hash_policies": []any{m{"metadata": m{"name": "method"}}, m{"source_ip": true}}}),
			route(4, m{"request_mirror_policies": []any{m{"cluster": "pair", "compare": true, "timeout": "0.5s"}}}),
			envoytest.Route("four", nil),
		},
		"clusters": []any{m{
			"name": "*", "load_balancing": loadBalancing,
			"retry_budget":      m{"budget_percent": m{"value": 20 + 10*(generation%4)}, "max_concurrent_retries": 50},
			"outlier_detection": m{"consecutive_failures": 3 + generation%3, "base_ejection_time": "0.5s", "max_ejection_time": "2s", "max_ejection_percent": 50},
			"circuit_breakers": m{
				"max_requests": 200 + 50*(generation%3), "max_pending_requests": 150, "max_connections": 20,
				"keys": []any{
					m{"names": []any{"method"}, "error_percent": 60, "slow_percent": 90, "slow_threshold": "0.5s", "open_time": "0.2s", "interval": "1s"},
					m{"names": []any{"interface", "method"}, "max_requests": 100 + generation%2},
				},
			},
		}},
	}
}

// method that the generation of a listener has a route for.
func method(generation int) string { return "generation" + strconv.Itoa(generation%9) }

// kinds of sessions.
var kinds = []kind{
	{name: "small", batches: 200, together: 20},
	{name: "mixed", batches: 100, together: 20, mixed: true},
	{name: "large", batches: 20, together: 4, padding: 60_000},
	{name: "leaving", batches: 50, together: 20, mixed: true, padding: 2000, leaves: true},
	{name: "idle", batches: 10, together: 5, pause: 300 * time.Millisecond},
}

type kind struct {
	name string
	// Batches and requests sent together at most, with padding of up to so many
	// bytes.
	batches, together, padding int
	// mixed has oneways and heartbeats.
	mixed bool
	// pause at most before each batch.
	pause time.Duration
	// leaves while answers are due.
	leaves bool
}

// faults that servers have for a moment.
var faults = []scripted.Behaviour{
	scripted.Never, scripted.Garbage, scripted.Close, scripted.Reset, scripted.HalfFrame, scripted.CloseMidFrame, scripted.WrongID,
	func(c *scripted.Conn, req dubbotest.Parsed) {
		echo(c, req)
		echo(c, req)
	},
}

// echo answers with the argument, or with its part that no other request has.
func echo(c *scripted.Conn, req dubbotest.Parsed) {
	argument := string(req.Body[bytes.LastIndexByte(req.Body, '<') : bytes.LastIndexByte(req.Body, '>')+1])
	if req.ID%2 == 0 {
		argument = unique(argument)
	}
	scripted.Answer(argument)(c, req)
}

func unique(argument string) string { return argument[:strings.IndexByte(argument, '>')+1] }

// The types of frames that clients send.
const (
	twoway = iota
	oneway
	heartbeat
)

// counters of the types of frames.
var counters = [...]string{twoway: "request_twoway", oneway: "request_oneway", heartbeat: "request_event"}

// tally is what clients know.
type tally struct {
	answered, failed atomic.Int64
	// frames by their types: Envoy has counted all that it told of in some way. It
	// may have counted those lost when it closed a connection, as a drained
	// listener may while none is in flight: at most those that were on the way
	// right then. It may have counted those whose client left.
	frames [len(counters)]struct{ told, lost, left atomic.Int64 }
}

func (sums *tally) String() string {
	s := fmt.Sprintf("answered %d, failed %d; told of, lost with their connection, left:", sums.answered.Load(), sums.failed.Load())
	for i := range sums.frames {
		f := &sums.frames[i]
		s += fmt.Sprintf(" %s %d %d %d", counters[i], f.told.Load(), f.lost.Load(), f.left.Load())
	}
	return s
}

// session is one client connection.
func session(t *testing.T, k kind, rng *rand.Rand, name string, port int, sums *tally) {
	c, err := scripted.TryDial(t, port)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	var sent, told [len(counters)]int64
	defer func() {
		c.Close()
		for i := range sums.frames {
			f := &sums.frames[i]
			f.told.Add(told[i])
			if k.leaves {
				f.left.Add(sent[i] - told[i])
			} else {
				f.lost.Add(sent[i] - told[i])
			}
		}
	}()
	// goesOn is false at the end of the connection.
	goesOn := func(err error) bool {
		if os.IsTimeout(err) {
			t.Errorf("%s, %s: it hangs: sent %d, told %d", name, k.name, sent, told)
		}
		return err == nil
	}
	id := uint64(0)
	for range 1 + rng.IntN(k.batches) {
		if k.pause > 0 && !quiet(t, c, time.Duration(rng.Int64N(int64(k.pause)))) {
			return
		}
		var out []byte
		due := map[uint64]string{} // arguments, none for heartbeats
		for more := rng.IntN(k.together); more >= 0; more-- {
			id++
			argument := fmt.Sprintf("<%s-%d>%s>", name, id, strings.Repeat("x", rng.IntN(k.padding+1)))
			r := dubbotest.Request{ID: id, Method: method(rng.IntN(9)), Argument: argument}
			what := twoway
			// The last is answered, so that Envoy is known to have seen those before.
			if k.mixed && more > 0 {
				what = max(rng.IntN(5)-2, twoway)
			}
			sent[what]++
			switch what {
			case twoway:
				due[id] = argument
				out = append(out, r.Bytes()...)
			case oneway:
				r.Oneway = true
				out = append(out, r.Bytes()...)
			case heartbeat:
				due[id] = ""
				out = append(out, dubbotest.Heartbeat(id)...)
			}
		}
		c.SetWriteDeadline(time.Now().Add(patience))
		if _, err := c.Write(out); !goesOn(err) {
			return
		}
		for len(due) > 0 {
			if k.leaves && rng.IntN(50) == 0 {
				return
			}
			f, err := c.TryRead()
			if !goesOn(err) {
				return
			}
			if isEvent(f) && string(f.Body) == "\x01R" { // its listener is replaced; it stays as long as it may
				continue
			}
			argument, ok := due[f.ID]
			delete(due, f.ID)
			event, text := isEvent(f), f.Text()
			switch {
			case !ok || event != (argument == ""),
				!event && f.Status == statusOK && text != argument && text != unique(argument):
				t.Errorf("%s, %s: an answer that nobody waits for: flags %#x, id %d, %.100q", name, k.name, f.Flags, f.ID, text)
				return
			case event:
				told[heartbeat]++
			case f.Status == statusOK:
				told[twoway]++
				sums.answered.Add(1)
			default:
				told[twoway]++
				sums.failed.Add(1)
			}
		}
		told = sent
	}
}

// quiet tells whether a connection stays open, without a word but that its listener
// is replaced, for a while.
func quiet(t *testing.T, c *scripted.Client, d time.Duration) bool {
	c.SetReadDeadline(time.Now().Add(d))
	b := make([]byte, 1000)
	n, err := io.ReadAtLeast(c.TCPConn, b, 1)
	if n > 0 {
		if string(b[:n]) != string(dubbotest.ReadOnly(0)) {
			t.Errorf("an answer that nobody waits for, while the client was idle: %q", b[:n])
			return false
		}
		n, err = c.TCPConn.Read(b)
		if n > 0 {
			t.Errorf("%d bytes behind the read-only event, while the client was idle", n)
		}
	}
	return os.IsTimeout(err)
}

// What Envoy holds.
const (
	resident = iota
	heap
	goroutines
	descriptors
	downstream
	upstream
)

// measures with how much more there may be late in the run than early. How many
// connections there are depends on the faults of the last seconds, and each
// connection to a server has a goroutine and files.
var measures = [...]struct {
	name          string
	percent, more int64
}{
	resident:    {"resident kB", 20, 0},
	heap:        {"Go heap kB", 50, 1000},
	goroutines:  {"goroutines", 50, 20},
	descriptors: {"open files", 50, 50},
	downstream:  {"connections of clients", 0, 8},
	upstream:    {"connections to servers", 50, 20},
}

// level is a value of each of the measures.
type level [len(measures)]int64

// measure asks Go's runtime by a request, which is accounted for as others.
func measure(t *testing.T, e *envoytest.Envoy, port int, sums *tally) (l level) {
	t.Helper()
	for _, n := range e.Stats("^listener[.]127[.]0[.]0[.]1_[0-9]*[.]downstream_cx_active$") {
		l[downstream] += n
	}
	for _, n := range e.Stats("^cluster[.].*[.]upstream_cx_active$") {
		l[upstream] += n
	}
	l[resident], l[descriptors] = e.RSS()>>10, files(t, e.Pid())
	c, err := scripted.TryDial(t, port)
	require.NoError(t, err)
	defer c.Close()
	c.Ask(1, dubbotest.Request{Method: "runtime"})
	_, err = fmt.Sscanf(c.Read().Text(), "goroutines %d, heap %d", &l[goroutines], &l[heap])
	require.NoError(t, err)
	l[heap] >>= 10
	sums.frames[twoway].told.Add(1)
	return l
}

func median(levels []level, of int) int64 {
	values := make([]int64, len(levels))
	for i, l := range levels {
		values[i] = l[of]
	}
	slices.Sort(values)
	return values[len(values)/2]
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func files(t *testing.T, pid int) int64 {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	require.NoError(t, err)
	return int64(len(entries))
}
