package lua

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

// TestWhatIsKeptIsBounded: globals that grow begin anew, whatever they grow by.
func TestWhatIsKeptIsBounded(t *testing.T) {
	for name, grow := range map[string]string{
		"elements":   `for i = 1, 300 do t[#t + 1] = {n} end`,
		"keys":       `for i = 1, 200 do t["client" .. n .. "/" .. i] = i end`,
		"dead keys":  `for i = 1, 200 do local k = n .. "/" .. i t[k] = i t[k] = nil end`,
		"strings":    `for i = 1, 10 do t[#t + 1] = ("x"):rep(8000) .. n .. i end`,
		"functions":  `for i = 1, 200 do local j = i t[#t + 1] = function() return j end end`,
		"coroutines": `for i = 1, 10 do t[#t + 1] = coroutine.wrap(function() end) end`,
		"a list":     `for i = 1, 300 do t = {t} end`,
	} {
		t.Run(name, func(t *testing.T) {
			runs, err := keeping(t, `t, n = t or {}, (n or 0) + 1 `+grow)
			require.ErrorContains(t, err, "what it keeps takes more than 1048576 bytes; it begins anew")
			require.Greater(t, runs, 1)
		})
	}
}

// keeping runs a hook until what it keeps is too much, and not for ever.
func keeping(t *testing.T, body string) (runs int, err error) {
	b := newBed(t, `"filter_context": {}`, usualRoutes)
	sc, err := compile("s", "function envoy_on_request(h) "+body+" end")
	require.NoError(t, err)
	onPass = func(m *filter.Message) {
		s, e := sc.load(&part{whole: &whole{config: &config{}, limits: limits{time: time.Hour, kept: 1 << 20, check: 1000, steps: 4096}}})
		require.NoError(t, e)
		for ; runs < 300 && err == nil; runs++ {
			_, e := s.run(m, s.request, 100_000)
			require.NoError(t, e)
			err = s.fit()
		}
	}
	b.ask()
	return runs, err
}

// TestWhatIsNotKept is no reason to begin anew.
func TestWhatIsNotKept(t *testing.T) {
	_, err := keeping(t, `local t = {} for i = 1, 100 do t["k" .. i] = {i, ("x"):rep(1000)} end last = t`)
	require.NoError(t, err)
}

// TestWhatIsKeptIsLookedAtInSteps: no hook waits for all of it, however much it is, and what
// is too much is found all the same.
func TestWhatIsKeptIsLookedAtInSteps(t *testing.T) {
	for _, fill := range []string{
		`for i = 1, 10000 do t[i] = i end`, `for i = 1, 5000 do t["k" .. i] = true end`, `for i = 1, 3000 do t = {t} end`,
		`for i = 1, 3000 do local f = t t = function() return f end end`,
	} {
		state := walked(t, `t = {} `+fill, limits{time: time.Hour, kept: 16 << 20, steps: 1000})
		require.NoError(t, state.call(state.request, 1<<20))
		hooks := 0
		for more := true; more; more = state.walk != nil {
			before := walk{}
			if state.walk != nil {
				before = *state.walk
			}
			require.NoError(t, state.fit())
			if state.walk != nil && before.left > 0 {
				require.Less(t, before.left-state.walk.left, 1000*(sizeTable/8+sizeKey+4*sizeValue), "of %s", fill)
			}
			hooks++
		}
		require.Greater(t, hooks, 5, fill)
		state.limits.kept, state.executed = 100<<10, 1
		var err error
		for more := true; more && err == nil; more = state.walk != nil {
			err = state.fit()
		}
		require.ErrorContains(t, err, "what it keeps takes more than 102400 bytes", fill)
	}
}

// TestWhatMovesWhileItIsLookedAt counts for what there is of it at a time.
func TestWhatMovesWhileItIsLookedAt(t *testing.T) {
	for name, move := range map[string]string{
		"generations": `n = (n or 0) + 1 new = new or {} new["k" .. n] = ("x"):rep(100) if n % 200 == 0 then old, new = new, {} end`,
		"a queue":     `n = (n or 0) + 1 local e = {v = ("x"):rep(100)} if last then last.next = e else first = e end last = e if n > 100 then first = first.next end`,
		"a window":    `t = t or {} table.insert(t, {("x"):rep(100)}) if #t > 100 then table.remove(t, 1) end`,
	} {
		state := walked(t, move, limits{time: time.Hour, kept: 300 << 10, steps: 100})
		walks := 0
		for range 5000 {
			require.NoError(t, state.call(state.request, 10_000), name)
			before := state.walk
			require.NoError(t, state.fit(), name)
			if before != nil && state.walk == nil {
				walks++
			}
		}
		require.Greater(t, walks, 100, name)
	}
}

// walked is a state of a script whose hook does what body says.
func walked(t *testing.T, body string, l limits) *state {
	t.Helper()
	sc, err := compile("s", "function envoy_on_request() "+body+" end")
	require.NoError(t, err)
	s, err := sc.load(&part{whole: &whole{config: &config{}, limits: l}})
	require.NoError(t, err)
	return s
}

// TestAStateThatBeginsAnew is told of, and the request has it.
func TestAStateThatBeginsAnew(t *testing.T) {
	defer func(l limits) { usual = l }(usual)
	usual.kept, usual.check = 1<<20, 1000
	b := newBed(t, scripted(`n = 0 function envoy_on_request(h) n = n + 1 h:headers():add("n", n) t = t or {} t[n] = ("x"):rep(20000) end`), usualRoutes)
	for range 1000 {
		if b.ask(); b.value("n") == "1" && len(b.logged()) > 0 {
			break
		}
	}
	require.Equal(t, "1", b.value("n"))
	require.Equal(t, []string{"default_source_code: what it keeps takes more than 1048576 bytes; it begins anew"}, b.logged())
	b.counts(map[string]int{"state_reset": 1})
}

// TestScriptsOfUpdatedTables: the same script goes on, others are forgotten when there are
// many.
func TestScriptsOfUpdatedTables(t *testing.T) {
	p := &part{whole: &whole{config: &config{}}, states: map[*script]*state{}}
	script := func(i int) *script {
		sc, err := compile("s", fmt.Sprintf("n = %d function envoy_on_request() end", i))
		require.NoError(t, err)
		return sc
	}
	first, err := script(0).load(p)
	require.NoError(t, err)
	p.make(first)
	again := script(0)
	require.Same(t, first, p.adopt(again))
	require.Same(t, first, p.states[again])
	require.Len(t, p.states, 1)
	require.Nil(t, p.adopt(script(1)))
	for i := range maxStates + 5 {
		s, err := script(i + 1).load(p)
		require.NoError(t, err)
		s.used = 1
		p.make(s)
	}
	require.Len(t, p.states, maxStates)
	require.NotContains(t, p.states, again)
}

// hooks whose costs the page tells, and how often each allocates.
var hooks = []struct {
	name, body string
	allocs     float64
}{
	{"nothing", ``, 2},
	{"read", `local t = h:headers():get("tenant")`, 4},
	{"lane", `if h:headers():get("tenant") == "acme-1" then h:streamInfo():dynamicMetadata():set("f", "lane", "blue") end`, 8},
	{"replace", `h:headers():replace("lane", "blue")`, 6},
	{"pattern", `local a, b = h:headers():get("tenant"):match("^(%a+)-(%d+)$")`, 12},
	{"concat", `local s = h:headers():get("tenant") .. "-" .. h:streamInfo():method()`, 12},
	{"loop", `local n = 0 for i = 1, 1000 do n = n + i end`, 100},
}

// within calls f with what runs a request's hook, in the middle of a request.
func within(t testing.TB, body string, f func(run func())) {
	b := newBed(t, `"filter_context": {}`, usualRoutes)
	sc, err := compile("s", "function envoy_on_request(h) "+body+" end")
	require.NoError(t, err)
	onPass = func(m *filter.Message) {
		s, err := sc.load(&part{whole: &whole{config: &config{}, limits: usual}})
		require.NoError(t, err)
		f(func() {
			if _, err := s.run(m, s.request, 100_000); err != nil {
				t.Fatal(err)
			}
			m.MutateRequest().Reset()
			m.SetState(nil)
		})
	}
	b.ask([2]string{"tenant", "acme-1"})
}

// TestAHookThatTakesLong ends, however much it may execute, and one that does little does
// not.
func TestAHookThatTakesLong(t *testing.T) {
	defer func(l limits) { usual = l }(usual)
	usual.time = 0
	b := newBed(t, `"max_instructions": 1000000, `+scripted(`function envoy_on_request(h) h:headers():add("lane", "blue") if h:headers():get("evil") then while true do end end end`), usualRoutes)
	b.ask()
	require.Empty(t, b.logged())
	b.ask([2]string{"evil", "yes"})
	require.Equal(t, []string{"default_source_code:1: it has taken longer than a hook may"}, b.logged())
	b.counts(map[string]int{"errors": 1, "budget_exceeded": 1})
}

// TestAllocations are those that the page tells, or less.
func TestAllocations(t *testing.T) {
	for _, h := range hooks {
		within(t, h.body, func(run func()) {
			got := raced.AllocsPerRun(t, 100, run)
			t.Logf("%s: %v", h.name, got)
			require.LessOrEqual(t, got, h.allocs, h.name)
		})
	}
}

// BenchmarkFit is what hooks pay for it that what a script keeps is looked at, while it is.
func BenchmarkFit(b *testing.B) {
	for name, fill := range map[string]string{
		"numbers":   `for i = 1, 500000 do t[i] = i end`,
		"keys":      `for i = 1, 110000 do t["k" .. i] = i end`,
		"dead keys": `for i = 1, 35000 do t["k" .. i] = i t["k" .. i] = nil end t.last = 1`,
		"tables":    `for i = 1, 60000 do t[i] = {i} end`,
		"a list":    `for i = 1, 60000 do t = {t} end`,
	} {
		b.Run(name, func(b *testing.B) {
			sc, err := compile("s", "t = {} function envoy_on_request() "+fill+" end")
			require.NoError(b, err)
			s, err := sc.load(nil)
			require.NoError(b, err)
			require.NoError(b, s.call(s.request, 1<<30))
			for b.Loop() {
				s.executed = s.limits.check
				require.NoError(b, s.fit())
			}
		})
	}
}

func BenchmarkHooks(b *testing.B) {
	for _, h := range hooks {
		b.Run(h.name, func(b *testing.B) {
			within(b, h.body, func(run func()) {
				b.ReportAllocs()
				for b.Loop() {
					run()
				}
			})
		})
	}
}
