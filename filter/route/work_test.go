package route

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

func matching(name, regex string) *routev3.HeaderMatcher {
	return newMatcher(12, name, regex, false, false, false)
}

func containing(name, text string, fold bool) *routev3.HeaderMatcher {
	return newMatcher(11, name, text, false, false, fold)
}

// spent is what a search costs.
func spent(t *Table, md *codecs.Metadata) (steps int, found int32, fault error) {
	var v view
	defer v.done()
	if err := v.locate(t.keys, md.Properties()); err != nil {
		return v.spent, -1, err
	}
	found, o := t.index.first(t.routes, &v)
	return v.spent, found, faults[o]
}

// table has one route for each rule, and behind them one that matches all.
func tableOf(t testing.TB, rules ...*routev3.HeaderMatcher) *Table {
	t.Helper()
	rc := &routev1alpha.RouteConfiguration{}
	for _, h := range rules {
		rc.Routes = append(rc.Routes, route(h))
	}
	rc.Routes = append(rc.Routes, route())
	table, faults := Compile(rc, Env{})
	require.Empty(t, faults)
	return table
}

func thousand(rule func(i int) *routev3.HeaderMatcher) (rules []*routev3.HeaderMatcher) {
	for i := range 1000 {
		rules = append(rules, rule(i))
	}
	return rules
}

// expensive are tables and messages that are made for each other.
func expensive(t testing.TB) map[string]struct {
	table *Table
	md    *codecs.Metadata
} {
	long := func(unit string) []string {
		return []string{"k", strings.Repeat(unit, MaxValueBytes/len(unit))}
	}
	repeated := func(unit string) (kvs []string) {
		for range maxRepeats {
			kvs = append(kvs, long(unit)...)
		}
		return kvs
	}
	many := func(name, value string) (kvs []string) {
		for range 1024 {
			kvs = append(kvs, name, value)
		}
		return kvs
	}
	type attack = struct {
		table *Table
		md    *codecs.Metadata
	}
	manyKeys := func() (rules []*routev3.HeaderMatcher) {
		for i := range maxKeys {
			rules = append(rules, exactly(fmt.Sprintf("%s%02d", strings.Repeat("k", 250), i), "v"))
		}
		return rules
	}
	return map[string]attack{
		"a canary's number at the end": {tableOf(t, thousand(func(i int) *routev3.HeaderMatcher { return matching("k", fmt.Sprintf(".*-canary%d", i)) })...), message(long("-canary")...)},
		"one of several words":         {tableOf(t, thousand(func(i int) *routev3.HeaderMatcher { return matching("k", fmt.Sprintf(".*(acme|globex|%d).*", i)) })...), message(long("acm")...)},
		"repeated eight times":         {tableOf(t, thousand(func(i int) *routev3.HeaderMatcher { return matching("k", fmt.Sprintf("(a|b)+%dx?", i)) })...), message(repeated("a")...)},
		"many states":                  {tableOf(t, matching("k", ".*a.{500}b"), matching("k", ".*a.{501}b")), message(long("a")...)},
		"whatever the case":            {tableOf(t, thousand(func(i int) *routev3.HeaderMatcher { return matching("k", fmt.Sprintf("(?i).*acme.*%d", i)) })...), message(long("acm")...)},
		"contains":                     {tableOf(t, thousand(func(i int) *routev3.HeaderMatcher { return containing("k", fmt.Sprintf("aaaaaaab%d", i), false) })...), message(long("a")...)},
		"contains, whatever the case":  {tableOf(t, thousand(func(i int) *routev3.HeaderMatcher { return containing("k", fmt.Sprintf("aaaaaaab%d", i), true) })...), message(long("A")...)},
		"numbers with zeros before": {tableOf(t, thousand(func(int) *routev3.HeaderMatcher {
			return newMatcher(5, "k", "", false, false, false)
		})...), message("k", strings.Repeat("0", MaxValueBytes-2)+"99")},
		"many attachments, and more keys than have numbers": {tableOf(t, thousand(func(i int) *routev3.HeaderMatcher { return matching(fmt.Sprintf("k%03d", i), "a.*") })...), message(append(many("k-00", "x"), many("k-01", "x")...)...)},
		"one key again and again":                           {tableOf(t, thousand(func(i int) *routev3.HeaderMatcher { return matching(fmt.Sprintf("k%03d", i), "a*b") })...), message(many("k999", strings.Repeat("a", 1000))...)},
		"long names alike":                                  {tableOf(t, manyKeys()...), message(many(strings.Repeat("K", 250)+"99", "v")...)},
	}
}

// TestWorkPerMessageIsBounded counts steps instead of measuring time. A message
// that is given up goes nowhere, not to the route that matches all.
func TestWorkPerMessageIsBounded(t *testing.T) {
	for name, a := range expensive(t) {
		t.Run(name, func(t *testing.T) {
			steps, _, fault := spent(a.table, a.md)
			require.ErrorIs(t, fault, ErrTooMuch)
			require.Less(t, steps, maxSteps+maxSteps/10)
			r, err := a.table.Find(a.md, Origin{}, nil)
			require.Nil(t, r)
			require.ErrorIs(t, err, ErrTooMuch)
		})
	}
}

// TestOrdinaryTablesOfExpressionsAreFarFromTheBound: what people write, a
// thousand times, for values as they are.
func TestOrdinaryTablesOfExpressionsAreFarFromTheBound(t *testing.T) {
	for _, pattern := range []string{`org\.example\.Service%d\..*`, `.*-canary%d`, `(?i)tenant-%d`, `v%d\.[0-9]+(\.[0-9]+)?`, `%d|x%[1]d|y%[1]d`, `.*(acme|globex)-%d.*`} {
		table := tableOf(t, thousand(func(i int) *routev3.HeaderMatcher { return matching("k", fmt.Sprintf(pattern, i)) })...)
		for _, v := range []string{"org.example.Service999.sayHello", "greeter-2.eu-west.example.com/v1.2.3-canary999", "x"} {
			steps, _, fault := spent(table, message("k", v))
			require.NoError(t, fault)
			require.Less(t, steps, maxSteps/2, "%s %s", pattern, v)
		}
	}
}

// expensiveTogether are conditions and messages that are made for each other, though each
// condition alone is far from the bound.
func expensiveTogether() map[string]struct {
	rules []*routev3.HeaderMatcher
	md    *codecs.Metadata
} {
	type attack = struct {
		rules []*routev3.HeaderMatcher
		md    *codecs.Metadata
	}
	long := message("k", strings.Repeat("acm", MaxValueBytes/3))
	return map[string]attack{
		"expressions":             {thousand(func(i int) *routev3.HeaderMatcher { return matching("k", fmt.Sprintf(".*(acme|globex|%d).*", i)) }), long},
		"the beginning of a word": {thousand(func(i int) *routev3.HeaderMatcher { return matching("k", fmt.Sprintf(".*-canary%d", i)) }), long},
		"contains":                {thousand(func(i int) *routev3.HeaderMatcher { return containing("k", fmt.Sprint("acme", i), false) }), long},
		"many attachments":        {thousand(func(i int) *routev3.HeaderMatcher { return exactly(fmt.Sprintf("k%03d", i), "v") }), message(slices.Repeat([]string{"x000", "v"}, 1024)...)},
	}
}

// conditions are what the rules say, each by itself.
func conditions(t testing.TB, rules []*routev3.HeaderMatcher) (all []*Match) {
	t.Helper()
	for _, h := range rules {
		x, faults := CompileMatch(route(h).Match)
		require.Empty(t, faults)
		all = append(all, x)
	}
	return all
}

// TestWorkOfConditionsIsBounded together, though each alone is far from the bound; those
// behind cannot be told, and cost nothing.
func TestWorkOfConditionsIsBounded(t *testing.T) {
	for name, a := range expensiveTogether() {
		t.Run(name, func(t *testing.T) {
			all := conditions(t, a.rules)
			var first, together Spent
			_, err := all[0].Matches(a.md, Origin{}, nil, &first)
			require.NoError(t, err)
			require.Less(t, int(first), maxSteps/3)
			for _, x := range all {
				var is bool
				is, err = x.Matches(a.md, Origin{}, nil, &together)
				require.False(t, is)
			}
			require.ErrorIs(t, err, ErrTooMuch)
			require.Less(t, int(together), maxSteps+maxSteps/10)
			before := together
			_, err = all[0].Matches(a.md, Origin{}, nil, &together)
			require.ErrorIs(t, err, ErrTooMuch)
			require.Equal(t, before, together)
			any, _ := CompileMatch(nil)
			is, err := any.Matches(a.md, Origin{}, nil, &together)
			require.NoError(t, err, "it looks at nothing")
			require.True(t, is)
		})
	}
}

// TestOrdinaryConditionsAreFarFromTheBound, a thousand for a message with what messages have.
func TestOrdinaryConditionsAreFarFromTheBound(t *testing.T) {
	kvs := []string{"k", "greeter-2.eu-west.example.com/v1.2.3-canary999"}
	for i := range 40 {
		kvs = append(kvs, strings.Repeat("x", 1+i%8), "v")
	}
	for _, pattern := range []string{`org\.example\.Service%d\..*`, `.*-canary%d`, `(?i)tenant-%d`, `.*(acme|globex)-%d.*`} {
		var spent Spent
		for _, x := range conditions(t, thousand(func(i int) *routev3.HeaderMatcher { return matching("k", fmt.Sprintf(pattern, i)) })) {
			_, err := x.Matches(message(kvs...), Origin{}, nil, &spent)
			require.NoError(t, err)
		}
		require.Less(t, int(spent), maxSteps/2, pattern)
	}
}

// TestEqualExpressionsAreEvaluatedOnce also where routes have other rules, too.
func TestEqualExpressionsAreEvaluatedOnce(t *testing.T) {
	value := strings.Repeat("a", 1000)
	once, _, _ := spent(tableOf(t, matching("k", "a*b")), message("k", value))
	rc := &routev1alpha.RouteConfiguration{}
	for i := range 1000 {
		rc.Routes = append(rc.Routes, route(newMatcher(12, []string{"k", "K"}[i%2], "a*b", i%3 == 0, false, false), exactly("other", fmt.Sprint(i))))
	}
	table, faults := Compile(rc, Env{})
	require.Empty(t, faults)
	steps, _, _ := spent(table, message("k", value, "other", "999"))
	require.LessOrEqual(t, steps, once+100)
}

// TestALongValueMatchesNothing where rules look at it: inverted or not, the
// message does not get past that route. Rules that cost the same however long
// the value is are not concerned, nor routes that another rule excludes.
func TestALongValueMatchesNothing(t *testing.T) {
	long := strings.Repeat("0", MaxValueBytes+1)
	for _, matcher := range []string{
		`"safe_regex_match": {"regex": "a.*"}`, `"safe_regex_match": {"regex": "0*"}`, `"contains_match": "0"`,
		`"string_match": {"contains": "A", "ignore_case": true}`, `"range_match": {"start": 0, "end": 9}`,
	} {
		for _, invert := range []string{"", `, "invert_match": true`} {
			table := mustCompile(t, `{"routes": [
				{"name": "before", "match": {"metadata": [{"name": "m", "exact_match": "before"}]}, "route": {"cluster": "c"}},
				{"match": {"metadata": [{"name": "k", `+matcher+invert+`}, {"name": "m", "exact_match": "x"}]}, "route": {"cluster": "c"}},
				{"name": "rest", "route": {"cluster": "d"}}]}`)
			for _, table := range []*Table{table, indexed(table)} {
				_, err := table.Find(message("k", long, "m", "x"), Origin{}, nil)
				require.ErrorIs(t, err, ErrTooLong, matcher+invert)
				require.Equal(t, "before", table.Match(message("k", long, "m", "before")).Name)
				require.Equal(t, "rest", table.Match(message("k", long, "m", "y")).Name)
				_, err = table.Find(message("k", long[1:], "m", "x"), Origin{}, nil)
				require.NoError(t, err)
			}
		}
	}
	for _, matcher := range []string{`"prefix_match": "00"`, `"suffix_match": "00"`, `"present_match": true`, `"exact_match": "0", "invert_match": true`} {
		table := mustCompile(t, `{"routes": [{"match": {"metadata": [{"name": "k", `+matcher+`}]}, "route": {"cluster": "c"}}]}`)
		require.NotNil(t, table.Match(message("k", long)), matcher)
	}
}

// TestAValueThatMatchesIsEnough: another one of the same key may be too long.
func TestAValueThatMatchesIsEnough(t *testing.T) {
	table := tableOf(t, matching("k", "a.*"))
	long := strings.Repeat("b", MaxValueBytes+1)
	for _, md := range []*codecs.Metadata{message("k", long, "k", "ab"), message("k", "ab", "k", long)} {
		_, found, fault := spent(table, md)
		require.NoError(t, fault)
		require.Zero(t, found)
	}
}

// TestRepeatedKeysAreWalkedOnce: three keys, each eight times, lead to the
// routes behind them once and not 512 times.
func TestRepeatedKeysAreWalkedOnce(t *testing.T) {
	rc := &routev1alpha.RouteConfiguration{}
	for i := range 100 {
		rc.Routes = append(rc.Routes, route(exactly("cell", "c"), exactly("env", "e"), exactly("lane", "l"),
			newMatcher(9, "method", fmt.Sprintf("method%05d", i), false, false, false)))
	}
	table, faults := Compile(rc, Env{})
	require.Empty(t, faults)
	for i := range table.routes {
		m := &table.routes[i].matchers
		(*m)[0], (*m)[3] = (*m)[3], (*m)[0]
		(*m)[0].key = unnumbered // its search is counted
	}
	var kvs []string
	for range maxRepeats {
		kvs = append(kvs, "cell", "c", "env", "e", "lane", "l")
	}
	md := message(append(kvs, "method", "other")...)
	steps, _, _ := spent(table, md)
	require.Less(t, steps, 2*100*linear(2*len(md.Properties())))
}

// TestProgramsAgreeWithPackageRegexp on patterns made of pieces at random.
func TestProgramsAgreeWithPackageRegexp(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	pieces := []string{"a", "b", "ab", ".", "[a-c]", "[^b]", `\d`, `\b`, `\B`, "^", "$", "(?i)a", "(?m)^", "(?m)$", "(?s).", "É", "\\x{FFFD}", "(a|b)", "(a*)*", "(|a)+", "a{2,3}", "(?:ab){0,2}", "-x", `\n`, "(?i)k"}
	values := []string{"a", "b", "A", "ab", "\n", "É", "\xff", "\uFFFD", "-x", "1", " ", "", "c", "\u212A"}
	tail := []string{"", "", "*", "+", "?", "*?", "{2}"}
	for range 4_000 {
		var pattern, value strings.Builder
		for range 1 + rng.IntN(4) {
			fmt.Fprintf(&pattern, "(?:%s)%s", pieces[rng.IntN(len(pieces))], tail[rng.IntN(len(tail))])
			if rng.IntN(6) == 0 {
				pattern.WriteByte('|')
			}
		}
		oracle, err := regexp.Compile(`\A(?:` + pattern.String() + `)\z`)
		require.NoError(t, err)
		p, err := compileRegex(&matcherv3.RegexMatcher{Regex: pattern.String()})
		require.NoError(t, err)
		m := &machine{}
		for range 4 {
			value.Reset()
			for range rng.IntN(5) {
				value.WriteString(values[rng.IntN(len(values))])
			}
			m.left = maxSteps
			got, ok := p.run(m, []byte(value.String()))
			require.True(t, ok)
			require.Equal(t, oracle.MatchString(value.String()), got, "%s %q", pattern.String(), value.String())
		}
	}
}

// TestWhatHasNotBeenReadToItsEndIsNotToldToMatchOrNot, however many steps are
// left when a program begins.
func TestWhatHasNotBeenReadToItsEndIsNotToldToMatchOrNot(t *testing.T) {
	for pattern, value := range map[string]string{
		".": "b", ".*a.{3}b": "xxaaaab", "(a|b)*c?": "ababab", `(?i)ab\b.*`: "aB c", "a.*xyz": "ab xyz", "abc": "abd",
	} {
		p, err := compileRegex(&matcherv3.RegexMatcher{Regex: pattern})
		require.NoError(t, err)
		m := &machine{left: maxSteps}
		want, _ := p.run(m, []byte(value))
		used := maxSteps - m.left
		for left := range used + 2 {
			m.left = left
			got, ok := p.run(m, []byte(value))
			require.Equal(t, left >= used, ok, "%s: %d of %d steps", pattern, left, used)
			if ok {
				require.Equal(t, want, got, "%s: %d of %d steps", pattern, left, used)
			}
		}
	}
}

// BenchmarkMatchExpensive is how long a worker is held at most: TestWorkPer-
// MessageIsBounded's messages.
func BenchmarkMatchExpensive(b *testing.B) {
	for name, a := range expensive(b) {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				a.table.Match(a.md)
			}
		})
	}
}

// BenchmarkConditionsExpensive is the same for conditions: TestWorkOfConditionsIsBounded's.
func BenchmarkConditionsExpensive(b *testing.B) {
	for name, a := range expensiveTogether() {
		all := conditions(b, a.rules)
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				var spent Spent
				for _, x := range all {
					_, _ = x.Matches(a.md, Origin{}, nil, &spent)
				}
			}
		})
	}
}
