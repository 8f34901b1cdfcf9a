package filter_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

// outlierEnv is a cluster of hosts under load from clients of two workers.
type outlierEnv struct {
	*toyEnv
	clients []*filtertest.Client
	asked   map[string]int    // requests by host
	bad     map[string]string // hosts that do not work, and how
	late    [][]func()        // what late hosts answer, by step
	pause   time.Duration     // between requests
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
	e := &outlierEnv{toyEnv: &toyEnv{Host: h, t: t}, pause: 20 * time.Millisecond, late: make([][]func(), 100), asked: map[string]int{}, bad: map[string]string{}, failed: map[string]int{}}
	e.up = h.Cluster("up", hostNames(hosts)...)
	e.up.Serve = e.serve
	e.cfg = h.MustLoad(policyConfig(codec, action, table, `, "request_timeout": "5s", "delivery": "ECDS"`))
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
	for end := d / e.pause; end > 0; end-- {
		for _, c := range e.clients {
			var b strings.Builder
			for range 4 {
				e.sent++
				fmt.Fprintf(&b, "req %d m -\n", 1000+e.sent) // some below are special
			}
			c.Send([]byte(b.String()))
		}
		e.Advance(e.pause)
		for _, f := range e.late[99] { // two seconds late, or more
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
	raced.Skip(t)
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
					e.pause = 100 * time.Millisecond
					e.load(15 * time.Second)
					require.Less(t, e.asked["h2"], 10)
					require.LessOrEqual(t, e.settles()*1000, e.sent-before)
					return
				}
				require.EqualValues(t, 1, e.count("outlier_ejections_total"))
				require.EqualValues(t, 1, e.count("outlier_ejections_active"))
				e.load(200 * time.Millisecond) // the other worker follows
				there := e.asked["h2"]
				e.pause = 100 * time.Millisecond
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
				require.Greater(t, e.asked["h2"], there+50)
				require.LessOrEqual(t, e.settles()*1000, e.sent-before)
			})
		}
	}
}

// TestOneOfThreeIsLeftOutNotTwo, and if all are bad none is.
func TestOneOfThreeIsLeftOutNotTwo(t *testing.T) {
	e := newOutlierEnv(t, "toy.byid", "", watching(""), 3)
	e.load(time.Second)
	e.bad["h1"], e.bad["h3"] = "fail", "fail"
	e.load(2 * time.Second)
	clear(e.asked)
	e.load(5 * time.Second)
	e.counts(map[string]int64{"outlier_ejections_active": 1, "outlier_ejections_total": 1})
	require.Positive(t, e.count("outlier_ejections_overflow"))
	require.Len(t, e.asked, 2)
	require.Positive(t, e.asked["h2"])
	require.Contains(t, strings.Join(e.Log(), "\n"), "cluster up: host h1 is ejected for 30s: too many failures in a row")
	require.Contains(t, strings.Join(e.Log(), "\n"), "cluster up: host h3 would be ejected, were there not as many as may be: too many failures in a row")

	e.bad["h2"] = "fail"
	e.load(time.Second)
	clear(e.asked)
	e.load(5 * time.Second)
	require.Len(t, e.asked, 3, "as none works")
	e.bad = map[string]string{"h1": "fail"}
	e.load(3 * time.Second)
	clear(e.asked)
	e.load(3 * time.Second)
	require.Equal(t, []bool{false, true, true}, []bool{e.asked["h1"] > 0, e.asked["h2"] > 0, e.asked["h3"] > 0})
	e.settles()
}

// TestWhatIsNoFailureOfAHostEjectsNone: refusals and errors of the application.
func TestWhatIsNoFailureOfAHostEjectsNone(t *testing.T) {
	for _, answer := range []string{"busy", "nope", "err"} {
		e := newOutlierEnv(t, "toy.byid", "", watching(`"consecutive_failures": 1, "failure_percentage_threshold": 1, "failure_percentage_request_volume": 1`), 3)
		e.bad["h2"] = answer
		e.load(5 * time.Second)
		e.counts(map[string]int64{"outlier_ejections_total": 0, "outlier_ejections_overflow": 0})
		require.Len(t, e.asked, 3)
	}
}

// TestHostsAreNotWatchedWithoutAPolicy.
func TestHostsAreNotWatchedWithoutAPolicy(t *testing.T) {
	for _, table := range []string{"", `, "clusters": [{"name": "other", "outlier_detection": {}}]`, `, "clusters": [{"name": "up"}, {"name": "*", "outlier_detection": {}}]`} {
		e := newOutlierEnv(t, "toy.byid", "", table, 3)
		e.bad["h2"] = "fail"
		e.load(2 * time.Second)
		watched := strings.Contains(table, "*")
		require.Equal(t, watched, e.count("outlier_ejections_total") > 0, table)
	}
}

// TestAHostThatIsSilentIsLeftOut before its requests time out.
func TestAHostThatIsSilentIsLeftOut(t *testing.T) {
	for _, codec := range []string{"toy.byid", "toy.inorder", "toy.exclusive"} {
		e := newOutlierEnv(t, codec, "", watching(`"silence": "0.3s"`), 4)
		e.load(time.Second)
		e.bad["h2"] = "black hole"
		e.load(500 * time.Millisecond)
		e.counts(map[string]int64{"outlier_ejections_silence": 1, "outlier_ejections_total": 1, "request_timeout": 0})
		if codec == "toy.inorder" { // clients wait for what is owed to them there
			e.Advance(5 * time.Second)
		}
		clear(e.asked)
		e.load(2 * time.Second)
		require.Len(t, e.asked, 3)
		e.settles()
	}
}

// TestAHostThatLosesAllRacesIsLeftOut: hedged requests never time out.
func TestAHostThatLosesAllRacesIsLeftOut(t *testing.T) {
	e := newOutlierEnv(t, "toy.byid", hedging, watching(`"silence": "0.3s"`), 4)
	e.load(time.Second)
	e.bad["h2"] = "black hole"
	e.load(time.Second)
	e.counts(map[string]int64{"outlier_ejections_silence": 1, "request_timeout": 0})
	require.Zero(t, e.settles())
}

// TestProbesOfABlackHoleAreJudged though their requests are hedged: the host is left out
// for longer and longer.
func TestProbesOfABlackHoleAreJudged(t *testing.T) {
	e := newOutlierEnv(t, "toy.byid", hedging, watching(`"silence": "0.3s", "base_ejection_time": "5s"`), 4)
	e.load(time.Second)
	e.bad["h2"] = "black hole"
	e.load(24 * time.Second)
	e.counts(map[string]int64{"outlier_ejections_silence": 1, "outlier_probe_failures": 2, "request_timeout": 0})
	require.LessOrEqual(t, e.count("outlier_probes"), int64(20))
	delete(e.bad, "h2")
	e.load(20 * time.Second)
	e.counts(map[string]int64{"outlier_ejections_active": 0, "outlier_probe_failures": 2})
	e.settles()
}

// TestOnewaysDoNotHideSilence of the calls behind them.
func TestOnewaysDoNotHideSilence(t *testing.T) {
	for _, head := range []string{"mcertain", "mfire"} {
		h := filtertest.New(t)
		e := &toyEnv{Host: h, t: t, up: h.Cluster("up", "h1", "h2")}
		config := policyConfig("toy.hidden", "", watching(`"silence": "0.3s"`), `, "request_timeout": "5s", "upstream": {"max_connections": 2}`)
		e.cfg = h.MustLoad(strings.Replace(config, `"name": "toy",`, `"name": "toy", "connection_mode": "SHARED",`, 1))
		e.c = h.Dial(e.cfg)
		e.serveAs(map[string]string{"h1": "res", "h2": "res"})
		for i := range 20 {
			e.say(fmt.Sprintf("req %d mcertain -", i))
			e.Advance(50 * time.Millisecond)
		}
		e.got()
		e.serveAs(map[string]string{"h2": "res"})
		for i := range 4 {
			say(e.Dial(e.cfg), fmt.Sprintf("req %d %s -", 100+i, head))
		}
		e.Advance(4 * time.Millisecond)
		for i := range 8 {
			e.say(fmt.Sprintf("req %d mcertain -", 200+i))
		}
		e.Advance(time.Second)
		require.EqualValues(t, 1, e.count("outlier_ejections_silence"), head)
	}
}

// TestTheProbesClientLeaves: then another request tries the host.
func TestTheProbesClientLeaves(t *testing.T) {
	for _, codec := range []string{"toy.byid", "toy.exclusive", "toy.inorder"} {
		e := newOutlierEnv(t, codec, "", watching(`"base_ejection_time": "5s"`), 4)
		e.load(time.Second)
		e.bad["h2"] = "fail"
		e.load(time.Second)
		e.counts(map[string]int64{"outlier_ejections_active": 1})
		e.bad["h2"] = "black hole"
		clear(e.asked)
		for range 3 {
			var leaving *filtertest.Client
			for e.asked["h2"] == 0 { // until one is on its way
				leaving = e.Dial(e.cfg)
				say(leaving, "req 1 m -")
				e.Advance(100 * time.Millisecond)
				if e.asked["h2"] == 0 {
					leaving.Close()
				}
			}
			e.Advance(300 * time.Millisecond)
			clear(e.asked)
			e.load(500 * time.Millisecond)
			require.Zero(t, e.asked["h2"], "there is one")
			leaving.Close()
			e.Settle()
		}
		e.counts(map[string]int64{"outlier_probe_failures": 0, "outlier_ejections_active": 1})
		delete(e.bad, "h2")
		e.load(3 * time.Second)
		e.counts(map[string]int64{"outlier_ejections_active": 0, "outlier_ejections_total": 1})
		e.settles()
	}
}

// TestAPolicyGoesAndComes while a host is ejected: without one all are used.
func TestAPolicyGoesAndComes(t *testing.T) {
	e := newOutlierEnv(t, "toy.byid", "", watching(""), 4)
	e.load(time.Second)
	e.bad["h2"] = "fail"
	e.load(time.Second)
	e.counts(map[string]int64{"outlier_ejections_active": 1})
	newer := e.MustLoad(policyConfig("toy.byid", "", "", `, "request_timeout": "5s", "delivery": "ECDS"`))
	e.load(time.Second)
	clear(e.asked)
	e.load(time.Second)
	require.Len(t, e.asked, 4)
	e.counts(map[string]int64{"outlier_ejections_active": 0})
	newest := e.MustLoad(policyConfig("toy.byid", "", watching(`"base_ejection_time": "600s"`), `, "request_timeout": "5s", "delivery": "ECDS"`))
	e.load(2 * time.Second)
	clear(e.asked)
	e.load(time.Second)
	require.Len(t, e.asked, 3)
	active := func() int64 {
		return newer.Counter("toy.t.outlier_ejections_active") + newest.Counter("toy.t.outlier_ejections_active") + e.count("outlier_ejections_active")
	}
	require.EqualValues(t, 1, active())
	e.settles()
	for _, c := range e.clients {
		c.Close()
	}
	e.DialOn(newest, 0) // gauges are told by connections
	e.DialOn(newest, 1)
	e.Advance(5 * time.Minute)
	require.Zero(t, active(), "the pools have gone")
}

// TestTwoThatResetExclusiveConnections are left out one after the other: what has failed
// of the second is not forgotten when the first is, as no connection leads to it.
func TestTwoThatResetExclusiveConnections(t *testing.T) {
	raced.Skip(t)
	for _, bad := range []string{"reset", "half a frame", "garbage"} {
		t.Run(bad, func(t *testing.T) {
			e := newOutlierEnv(t, "toy.exclusive", retrying, watching(`"consecutive_failures": 3, "base_ejection_time": "600s", "max_ejection_percent": 50`), 6)
			e.load(2 * time.Second)
			e.bad["h2"], e.bad["h3"] = bad, bad
			e.load(30 * time.Second)
			e.counts(map[string]int64{"outlier_ejections_total": 2, "outlier_ejections_active": 2})
			require.LessOrEqual(t, e.settles()*1000, e.sent)
		})
	}
}

// TestAnEjectionEndsWhileNobodyIsConnected: the gauge is told by the next connection,
// whatever has become of the version of the listener by which it was raised.
func TestAnEjectionEndsWhileNobodyIsConnected(t *testing.T) {
	const idle = 2 * time.Minute // the pools go
	for what, meanwhile := range map[string]func(e *outlierEnv, load func() *filtertest.Config) *filtertest.Config{
		"the same version": func(e *outlierEnv, _ func() *filtertest.Config) *filtertest.Config {
			e.Advance(idle)
			return e.cfg
		},
		"replaced behind the end": func(e *outlierEnv, load func() *filtertest.Config) *filtertest.Config {
			e.Advance(idle)
			newer := load()
			e.cfg.Destroy()
			return newer
		},
		"replaced before the end": func(e *outlierEnv, load func() *filtertest.Config) *filtertest.Config {
			newer := load()
			e.cfg.Destroy()
			e.Advance(idle)
			return newer
		},
		"kept beside the next, behind the end": func(e *outlierEnv, load func() *filtertest.Config) *filtertest.Config {
			e.Advance(idle)
			return load()
		},
		"kept beside the next, before the end": func(e *outlierEnv, load func() *filtertest.Config) *filtertest.Config {
			newer := load()
			e.Advance(idle)
			return newer
		},
		"removed behind the end": func(e *outlierEnv, load func() *filtertest.Config) *filtertest.Config {
			e.Advance(idle)
			e.cfg.Destroy()
			return load()
		},
		"removed before the end": func(e *outlierEnv, load func() *filtertest.Config) *filtertest.Config {
			e.cfg.Destroy()
			e.Advance(idle)
			return load()
		},
	} {
		t.Run(what, func(t *testing.T) {
			e := newOutlierEnv(t, "toy.byid", "", watching(`"base_ejection_time": "600s"`), 4)
			e.load(time.Second)
			e.bad["h2"] = "fail"
			e.load(time.Second)
			e.settles()
			e.counts(map[string]int64{"outlier_ejections_active": 1})
			for _, c := range e.clients {
				c.Close()
			}
			e.Settle()
			newer := meanwhile(e, func() *filtertest.Config {
				return e.MustLoad(policyConfig("toy.byid", "", "", `, "request_timeout": "5s", "delivery": "ECDS"`))
			})
			e.DialOn(newer, 0)
			e.DialOn(newer, 1)
			e.Advance(time.Second)
			active := newer.Counter("toy.t.outlier_ejections_active")
			if newer != e.cfg && !strings.HasPrefix(what, "removed") { // else it is another gauge
				active += e.count("outlier_ejections_active")
			}
			require.Zero(t, active)
		})
	}
}

// TestAnEjectionOutlivesItsListener: the gauge goes with it, and that of the one that
// comes in its place tells of all that is ejected.
func TestAnEjectionOutlivesItsListener(t *testing.T) {
	const config = `, "request_timeout": "5s", "delivery": "ECDS"`
	watch := watching(`"base_ejection_time": "600s"`)
	e := newOutlierEnv(t, "toy.byid", "", watch, 4)
	e.load(time.Second)
	e.bad["h2"] = "fail"
	e.load(time.Second)
	e.settles()
	e.counts(map[string]int64{"outlier_ejections_active": 1})
	for range 2 {
		for _, c := range e.clients {
			c.Close()
		}
		e.Settle()
		e.cfg.Destroy()
		_, err := e.Load(`{"stat_prefix": "t"}`)
		require.Error(t, err)
		e.cfg = e.MustLoad(policyConfig("toy.byid", "", watch, config))
		e.clients = []*filtertest.Client{e.DialOn(e.cfg, 0), e.DialOn(e.cfg, 1)}
		e.load(time.Second)
		e.settles()
		e.counts(map[string]int64{"outlier_ejections_active": 1})
	}
	delete(e.bad, "h2")
	e.Advance(10 * time.Minute)
	e.load(10 * time.Second)
	e.counts(map[string]int64{"outlier_ejections_active": 0, "request_active": 0})
}

// TestOnewaysInDisguiseEjectNobody: that they get no answer says nothing, until their
// operation has been seen to be answered.
func TestOnewaysInDisguiseEjectNobody(t *testing.T) {
	for known, ejected := range map[bool]int64{false: 0, true: 1} {
		e := newOutlierEnv(t, "toy.hidden", "", watching(""), 4)
		if known {
			e.load(time.Second)
		}
		for _, h := range hostNames(4) {
			e.bad[h] = "black hole"
		}
		e.load(500 * time.Millisecond)
		e.Advance(6 * time.Second)
		require.Positive(t, e.count("request_timeout")+e.count("oneway_presumed"))
		e.counts(map[string]int64{"outlier_ejections_active": ejected})
	}
}

// TestTheShareIsOfAllHosts of the cluster, also of those to which no connection leads.
func TestTheShareIsOfAllHosts(t *testing.T) {
	e := newOutlierEnv(t, "toy.byid", "", watching(""), 50)
	for i := range 25 {
		e.bad[fmt.Sprint("h", i+1)] = "fail"
	}
	e.load(2 * time.Second)
	e.counts(map[string]int64{"outlier_ejections_active": 5})
}

// TestHostsAreReplacedWhileOneIsEjected: what has left the cluster is forgotten, and
// takes no place of one that may be ejected.
func TestHostsAreReplacedWhileOneIsEjected(t *testing.T) {
	e := newOutlierEnv(t, "toy.byid", "", watching(`"base_ejection_time": "2s"`), 3)
	e.load(time.Second)
	e.bad["h2"] = "fail"
	e.load(time.Second)
	e.up.SetHosts("h1", "h3", "h4", "h5")
	e.load(5 * time.Second)
	e.counts(map[string]int64{"outlier_ejections_active": 1})
	e.load(30 * time.Second)
	e.counts(map[string]int64{"outlier_ejections_active": 0, "outlier_ejections_total": 1})
	e.bad["h4"] = "fail"
	e.load(time.Second)
	e.counts(map[string]int64{"outlier_ejections_active": 1, "outlier_ejections_total": 2, "outlier_ejections_overflow": 0})
	e.settles()
}
