package filter_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

// outlierEnv is a cluster of hosts under load from clients of two workers.
type outlierEnv struct {
	*toyEnv
	clients []*filtertest.Client
	asked   map[string]int    // requests by host
	bad     map[string]string // hosts that do not work, and how
	late    [][]func()        // what late hosts answer, by step
	sent    int
	good    int
	failed  map[string]int // errors by their text
}

// timeout is how long an attempt may take.
const timeout = time.Second

const retrying = `, "idempotent": true, "timeout": "5s", "retry_policy": {"num_retries": 2, "per_try_timeout": "1s",
	"retry_on": "connect-failure,refused,overloaded,reset,timeout,server-error", ` + quick + `}`

func watching(fields string) string {
	return `, "clusters": [{"name": "up", "outlier_detection": {` + fields + `}}]`
}

func newOutlierEnv(t *testing.T, codec, action, table string, hosts int) *outlierEnv {
	t.Helper()
	mod := filter.NewModule()
	mod.Seed(1)
	h := filtertest.NewWith(t, mod, 2)
	e := &outlierEnv{toyEnv: &toyEnv{Host: h, t: t}, late: make([][]func(), 100), asked: map[string]int{}, bad: map[string]string{}, failed: map[string]int{}}
	e.up = h.Cluster("up", hostNames(hosts)...)
	e.up.Serve = e.serve
	e.cfg = h.MustLoad(policyConfig(codec, action, table, `, "request_timeout": "5s"`))
	e.clients = []*filtertest.Client{h.DialOn(e.cfg, 0), h.DialOn(e.cfg, 1)}
	e.c = e.clients[0]
	return e
}

func hostNames(n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprint("h", i+1))
	}
	return names
}

func (e *outlierEnv) serve(s *filtertest.Server, b []byte) int {
	for _, l := range lines(b) {
		id := strings.Fields(l)[1]
		e.asked[s.Host]++
		res := []byte("res " + id + " m ok\n")
		switch e.bad[s.Host] {
		case "":
			s.Send(res)
		case "late":
			e.late[0] = append(e.late[0], func() { s.Send(res) })
		case "reset":
			s.Reset()
		case "black hole":
		case "half a frame":
			s.Send([]byte("res " + id))
		case "garbage":
			s.Send([]byte("what\n"))
		default: // a type of answers
			s.Send([]byte(e.bad[s.Host] + " " + id + " m no\n"))
		}
	}
	return len(b)
}

// load lets requests come for some time, four of each client at once.
func (e *outlierEnv) load(d time.Duration) {
	e.t.Helper()
	for end := d / (20 * time.Millisecond); end > 0; end-- {
		for _, c := range e.clients {
			var b strings.Builder
			for range 4 {
				e.sent++
				fmt.Fprintf(&b, "req %d m -\n", e.sent)
			}
			c.Send([]byte(b.String()))
		}
		e.Advance(20 * time.Millisecond)
		for _, f := range e.late[99] { // two seconds late
			f()
		}
		copy(e.late[1:], e.late)
		e.late[0] = nil
		e.take()
	}
}

func (e *outlierEnv) take() {
	for _, c := range e.clients {
		for _, l := range lines(c.Take()) {
			if f := strings.SplitN(l, " ", 4); f[0] == "res" {
				e.good++
			} else {
				e.failed[f[0]+" "+f[3]]++
			}
		}
	}
}

// settles lets what is under way end, and reports how many requests have failed.
func (e *outlierEnv) settles() int {
	e.Advance(5 * time.Second)
	e.take()
	failed := 0
	for _, n := range e.failed {
		failed += n
	}
	require.Equal(e.t, e.sent, e.good+failed)
	e.counts(map[string]int64{"request_active": 0})
	return failed
}

// TestABadHostIsLeftOut within two timeouts, whatever is wrong with it, and together
// with retries clients hardly see it.
func TestABadHostIsLeftOut(t *testing.T) {
	for _, codec := range []string{"toy.byid", "toy.exclusive"} {
		for _, bad := range []string{"late", "fail", "black hole", "reset", "half a frame", "garbage"} {
			t.Run(codec+" "+bad, func(t *testing.T) {
				e := newOutlierEnv(t, codec, retrying, watching(`"base_ejection_time": "20s"`), 4)
				e.load(2 * time.Second)
				require.Zero(t, e.count("outlier_ejections_total"))
				require.Len(t, e.asked, 4)
				clear(e.asked)
				before := e.sent
				e.bad["h2"] = bad
				e.load(2*timeout + 20*time.Millisecond)
				if codec == "toy.exclusive" && e.count("outlier_ejections_total") == 0 {
					// It is used no more all the same: what is lost was replaced by others.
					require.Contains(t, []string{"reset", "half a frame", "garbage"}, bad)
					e.load(15 * time.Second)
					require.Less(t, e.asked["h2"], 10)
					require.LessOrEqual(t, e.settles()*1000, e.sent-before)
					return
				}
				require.EqualValues(t, 1, e.count("outlier_ejections_total"))
				require.EqualValues(t, 1, e.count("outlier_ejections_active"))
				e.load(200 * time.Millisecond) // the other worker follows
				there := e.asked["h2"]
				e.load(15 * time.Second)
				require.Equal(t, there, e.asked["h2"], "it is not used")
				attempts := 0
				for _, n := range e.asked {
					attempts += n
				}
				require.LessOrEqual(t, float64(attempts), 1.2*float64(e.sent-before))

				// As it still does not work, one request shows it.
				e.load(8 * time.Second)
				e.counts(map[string]int64{"outlier_probes": 1, "outlier_probe_failures": 1, "outlier_ejections_total": 2, "outlier_ejections_active": 1})
				require.Equal(t, there+1, e.asked["h2"])

				// It does again, and gets its share.
				delete(e.bad, "h2")
				e.load(30 * time.Second)
				require.Equal(t, there+1, e.asked["h2"])
				e.load(15 * time.Second)
				e.counts(map[string]int64{"outlier_probes": 2, "outlier_probe_failures": 1, "outlier_ejections_total": 2, "outlier_ejections_active": 0})
				require.Greater(t, e.asked["h2"], there+100)
				require.LessOrEqual(t, e.settles()*1000, e.sent-before)
			})
		}
	}
}
