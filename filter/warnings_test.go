package filter_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// TestOnePeersNoiseHidesNothingElse: what is logged of a kind of faults comes with
// growing pauses, and other kinds are told all the same.
func TestOnePeersNoiseHidesNothingElse(t *testing.T) {
	h := filtertest.New(t)
	h.Cluster("up", "h1")
	load := func(prefix string) *filtertest.Config {
		return h.MustLoad(strings.Replace(toyConfig(`"codec": {"name": "toy.bounded"}`, `, "limits": {"partial_frame_timeout": "0.05s"}`), `"stat_prefix": "t"`, `"stat_prefix": "`+prefix+`"`, 1))
	}
	one, two := load("one"), load("two")
	said := func(parts ...string) (n int) {
		for _, l := range h.Log() {
			has := true
			for _, p := range parts {
				has = has && strings.Contains(l, p)
			}
			if has {
				n++
			}
		}
		return n
	}
	noise := func(cfg *filtertest.Config) { h.Dial(cfg).Send([]byte("rubbish\n")) }
	for i := range 600 {
		noise(one)
		switch i {
		case 300:
			noise(two)
		case 301:
			h.Dial(one).Send([]byte("req ")) // another kind
		}
		h.Advance(100 * time.Millisecond)
	}
	require.Equal(t, 6, said(`"one"`, "not a line of it"), "in a minute, at 0, 1, 3, 7, 15 and 31 s")
	require.Equal(t, 1, said(`"one"`, "(9 more such lines left out)"))
	require.Equal(t, 1, said(`"two"`, "not a line of it"))
	require.Equal(t, 1, said(`"one"`, "was not complete"))
	h.Advance(5 * time.Minute)
	noise(one)
	require.Equal(t, 7, said(`"one"`, "not a line of it"))
	h.Advance(time.Second)
	noise(one)
	require.Equal(t, 8, said(`"one"`, "not a line of it"), "it has been quiet in between")
}

// TestAClusterThatIsDownIsLoggedAHandfulOfTimes, each of several.
func TestAClusterThatIsDownIsLoggedAHandfulOfTimes(t *testing.T) {
	e := newToyEnv(t, "toy.byid", `, "request_timeout": "70s", "upstream": {"connect_backoff_max": "1s"}`)
	tries := e.failing(host.ConnectFailed)
	for range 600 {
		e.say("req 1 m -")
		e.Advance(100 * time.Millisecond)
	}
	require.Greater(t, *tries, 40)
	n := 0
	for _, l := range e.Log() {
		if strings.Contains(l, "cluster up: no connection") {
			n++
		}
	}
	require.InDelta(t, 5, n, 3, fmt.Sprint(e.Log()))
}

// TestANewOutageIsToldAtOnce, also soon after one that was long.
func TestANewOutageIsToldAtOnce(t *testing.T) {
	e := newToyEnv(t, "toy.byid", `, "upstream": {"connect_backoff_max": "1s"}`)
	logged := func() int { return strings.Count(strings.Join(e.Log(), "\n"), "cluster up: no connection") }
	e.failing(host.ConnectFailed)
	for range 3600 {
		e.say("req 1 m -")
		e.Advance(time.Second)
	}
	require.InDelta(t, 18, logged(), 4)
	e.up.Fail = nil
	e.Advance(time.Minute)
	before := logged()
	e.failing(host.ConnectFailed)
	e.say("req 1 m -")
	require.Equal(t, before+1, logged())
}

// TestAPanicIsLoggedAHandfulOfTimes with its stack, and hides none at another place.
func TestAPanicIsLoggedAHandfulOfTimes(t *testing.T) {
	e := newToyEnv(t, "toy.byid", "")
	e.MayPanic()
	for range 100 {
		for _, line := range []string{"req 2 m boom-decode\n", "req 2 m boom-encode\n"} {
			c := e.Dial(e.cfg)
			c.Send([]byte(line))
			require.True(t, c.Closed())
		}
		e.Advance(100 * time.Millisecond)
	}
	e.counts(map[string]int64{"connection_panic": 200})
	log := strings.Join(e.Log(), "\n")
	require.Equal(t, 4, strings.Count(log, "panic: boom: Decode"), "at 0, 1, 3 and 7 s")
	require.Equal(t, 4, strings.Count(log, "panic: boom: Encode"))
	require.Equal(t, 8, strings.Count(log, "[running]"))
}

// TestLinesOfFilters have what belongs to their message, and are not a line each.
func TestLinesOfFilters(t *testing.T) {
	d := keep(t)
	e := newProbed(t)
	e.up.Serve = serveToys
	d.a.request = func(m *filter.Message) filter.Verdict {
		m.Logf(host.Info, "it has %d bytes", m.Request().BodySize)
		return filter.Continue
	}
	d.b.end = func(m *filter.Message) { m.Logf(host.Debug, "it has ended") }
	for i := range 10 {
		e.say(fmt.Sprintf("req %d m1 -", i))
	}
	e.Advance(time.Second)
	e.say("req 10 m2 hello")
	from := regexp.QuoteMeta(`meltemi: stat_prefix "t": filter probe.`)
	for _, want := range []string{
		from + `a: client 10\.0\.0\.2:\d+ \(connection \d+\), m1: it has 11 bytes\n`,
		from + `b: client 10\.0\.0\.2:\d+ \(connection \d+\), m1: it has ended\n`,
		from + `a: client .*, m2: it has 16 bytes \(9 more such lines left out\)\n`,
	} {
		require.Regexp(t, want, strings.Join(e.Log(), "\n")+"\n")
	}
	require.Equal(t, 4, strings.Count(strings.Join(e.Log(), "\n"), "filter probe."))
}
