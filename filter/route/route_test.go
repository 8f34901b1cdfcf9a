package route

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/meltemi-mesh/meltemi/codecs"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

func compile(t testing.TB, json string) (*Table, error) {
	t.Helper()
	rc := new(routev1alpha.RouteConfiguration)
	require.NoError(t, protojson.Unmarshal([]byte(json), rc))
	return Compile(rc)
}

func mustCompile(t testing.TB, json string) *Table {
	t.Helper()
	table, err := compile(t, json)
	require.NoError(t, err)
	return table
}

func message(kvs ...string) *codecs.Metadata {
	m := &codecs.Metadata{}
	for i := 0; i < len(kvs); i += 2 {
		m.Put([]byte(kvs[i]), []byte(kvs[i+1]))
	}
	return m
}

func TestMatchersBehaveLikeEnvoys(t *testing.T) {
	for _, tc := range []struct {
		matcher string
		yes, no [][]string
	}{
		{`"exact_match": "v"`, [][]string{{"k", "v"}, {"K", "v"}, {"k", "x", "k", "v"}}, [][]string{{}, {"k", "V"}, {"k", "vv"}, {"k", ""}}},
		{`"exact_match": "v", "invert_match": true`, [][]string{{"k", "x"}}, [][]string{{"k", "v"}, {"k", "x", "k", "v"}, {}}},
		{`"exact_match": "v", "invert_match": true, "treat_missing_header_as_empty": true`, [][]string{{"k", "x"}, {}}, [][]string{{"k", "v"}}},
		{`"exact_match": "", "treat_missing_header_as_empty": true`, [][]string{{}, {"k", ""}}, [][]string{{"k", "v"}}},
		{`"string_match": {"exact": "V", "ignore_case": true}`, [][]string{{"k", "v"}, {"k", "V"}}, [][]string{{"k", "w"}}},
		{`"prefix_match": "ab"`, [][]string{{"k", "ab"}, {"k", "abc"}}, [][]string{{"k", "a"}, {"k", "xab"}, {}}},
		{`"string_match": {"prefix": "AB", "ignore_case": true}`, [][]string{{"k", "abc"}}, [][]string{{"k", "a"}}},
		{`"suffix_match": "bc"`, [][]string{{"k", "abc"}}, [][]string{{"k", "bcd"}, {"k", "c"}}},
		{`"string_match": {"suffix": "bc"}`, [][]string{{"k", "abc"}}, [][]string{{"k", "c"}}},
		{`"contains_match": "b"`, [][]string{{"k", "abc"}}, [][]string{{"k", "ac"}, {"k", ""}}},
		{`"string_match": {"contains": "B", "ignore_case": true}`, [][]string{{"k", "abc"}}, [][]string{{"k", "ac"}}},
		{`"safe_regex_match": {"regex": "a+|b"}`, [][]string{{"k", "aaa"}, {"k", "b"}}, [][]string{{"k", "aab"}, {"k", "xa"}, {"k", ""}}},
		{`"string_match": {"safe_regex": {"regex": "(?i)a.*"}}`, [][]string{{"k", "Ax\ny"}}, [][]string{{"k", "xa"}}},
		{`"range_match": {"start": -5, "end": 10}`, [][]string{{"k", "-5"}, {"k", "9"}, {"k", "+3"}}, [][]string{{"k", "10"}, {"k", "-6"}, {"k", "1.0"}, {"k", ""}, {"k", "x"}, {"k", "99999999999999999999"}}},
		{`"range_match": {"start": "-9223372036854775808", "end": "9223372036854775807"}`, [][]string{{"k", "-9223372036854775808"}}, [][]string{{"k", "-9223372036854775809"}, {"k", "9223372036854775807"}}},
		{`"present_match": true`, [][]string{{"k", ""}}, [][]string{{}}},
		{`"present_match": false`, [][]string{{}}, [][]string{{"k", "v"}}},
		{`"present_match": true, "invert_match": true`, [][]string{{}}, [][]string{{"k", "v"}}},
		{`"present_match": false, "invert_match": true`, [][]string{{"k", "v"}}, [][]string{{}}},
		{`"present_match": true, "treat_missing_header_as_empty": true`, [][]string{{}, {"k", "v"}}, nil},
		{`"invert_match": false`, [][]string{{"k", "v"}}, [][]string{{}}},
	} {
		t.Run(tc.matcher, func(t *testing.T) {
			table := mustCompile(t, `{"routes": [{"match": {"metadata": [{"name": "k", `+tc.matcher+`}]}, "route": {"cluster": "c"}}]}`)
			for _, kvs := range tc.yes {
				require.NotNil(t, table.Match(message(kvs...)), "%v should match", kvs)
			}
			for _, kvs := range tc.no {
				require.Nil(t, table.Match(message(kvs...)), "%v should not match", kvs)
			}
		})
	}
}

func TestImpossibleMatchersAreRefusedWithTheirPath(t *testing.T) {
	for matcher, want := range map[string]string{
		`"name": ""`: "name: required",
		`"name": "k", "safe_regex_match": {"regex": "("}`:                                  "safe_regex_match: regex: ",
		`"name": "k", "safe_regex_match": {"regex": "a)(b"}`:                               "safe_regex_match: regex: ",
		`"name": "k", "safe_regex_match": {}`:                                              "safe_regex_match: regex: required",
		`"name": "k", "range_match": {"start": 5, "end": 5}`:                               "range_match: start 5 must be less than end 5",
		`"name": "k", "prefix_match": ""`:                                                  "prefix_match: must not be empty",
		`"name": "k", "string_match": {}`:                                                  "string_match: required",
		`"name": "k", "string_match": {"prefix": ""}`:                                      "string_match: must not be empty",
		`"name": "k", "string_match": {"custom": {"name": "x"}}`:                           "is not supported",
		`"name": "k", "string_match": {"safe_regex": {"regex": "a"}, "ignore_case": true}`: "ignore_case does not go with safe_regex",
	} {
		_, err := compile(t, `{"routes": [{"route": {"cluster": "c"}}, {"match": {"metadata": [{"name": "a"}, {`+matcher+`}]}, "route": {"cluster": "c"}}]}`)
		require.ErrorContains(t, err, "routes[1].match.metadata[1]", matcher)
		require.ErrorContains(t, err, want, matcher)
	}
}

func TestTheFirstMatchWins(t *testing.T) {
	table := mustCompile(t, `{"routes": [
		{"name": "decoy", "match": {"metadata": [{"name": "i", "exact_match": "I"}, {"name": "m", "exact_match": "other"}]}, "route": {"cluster": "c"}},
		{"name": "prefix", "match": {"metadata": [{"name": "m", "prefix_match": "get"}]}, "route": {"cluster": "c"}},
		{"name": "exact", "match": {"metadata": [{"name": "i", "exact_match": "I"}, {"name": "m", "exact_match": "getX"}]}, "route": {"cluster": "c"}},
		{"name": "interface", "match": {"metadata": [{"name": "i", "exact_match": "I"}]}, "route": {"cluster": "c"}},
		{"name": "rest", "route": {"cluster": "c"}}]}`)
	for _, tc := range []struct{ i, m, want string }{
		{"I", "getX", "prefix"}, {"I", "other", "decoy"}, {"I", "setX", "interface"}, {"J", "x", "rest"},
	} {
		require.Equal(t, tc.want, table.Match(message("i", tc.i, "m", tc.m)).Name)
	}
}

func TestAKeyRepeatedTooOftenMatchesNothing(t *testing.T) {
	table := mustCompile(t, `{"routes": [{"match": {"metadata": [{"name": "k", "exact_match": "v"}]}, "route": {"cluster": "c"}}, {"route": {"cluster": "d"}}]}`)
	kvs := []string{"k", "v"}
	for range maxRepeats - 1 {
		kvs = append(kvs, "k", "x")
	}
	require.Equal(t, "c", table.Match(message(kvs...)).PickCluster(0))
	require.Nil(t, table.Match(message(append(kvs, "k", "x")...)))
}

func TestWeightsShareTheRandomNumbers(t *testing.T) {
	table := mustCompile(t, `{"routes": [{"route": {"weighted_clusters": {"clusters": [{"name": "a", "weight": 90}, {"name": "b", "weight": 0}, {"name": "c", "weight": 10}]}}}]}`)
	r := table.Match(message())
	n := map[string]int{}
	for rnd := range uint64(1000) {
		n[r.PickCluster(rnd)]++
	}
	require.Equal(t, map[string]int{"a": 900, "c": 100}, n)
}

func TestTheLastOfEqualMutationKeysWins(t *testing.T) {
	table := mustCompile(t, `{"routes": [{"route": {"cluster": "c"}, "request_mutation": [{"key": "a", "value": "1"}, {"key": "b", "value": "2"}, {"key": "a", "value": "3"}]}]}`)
	require.Equal(t, []codecs.KeyValue{{Key: "a", Value: "3"}, {Key: "b", Value: "2"}}, table.Match(message()).RequestMutation)
}

// TestTheIndexAgreesWithALinearSearch compares random tables and messages.
func TestTheIndexAgreesWithALinearSearch(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	word := func() string { return string(rune('a' + rng.IntN(3))) }
	kinds := []string{`"exact_match": %q`, `"exact_match": %q`, `"prefix_match": %q`, `"exact_match": %q, "invert_match": true`, `"string_match": {"exact": %q, "ignore_case": true}`}
	for range 300 {
		rc := `{"routes": [`
		for i := range 1 + rng.IntN(20) {
			if i > 0 {
				rc += ","
			}
			rc += fmt.Sprintf(`{"name": "%d", "route": {"cluster": "c"}, "match": {"metadata": [`, i)
			for j := range rng.IntN(4) {
				if j > 0 {
					rc += ","
				}
				rc += fmt.Sprintf(`{"name": %q, `+kinds[rng.IntN(len(kinds))]+`}`, "k"+word(), word())
			}
			rc += `]}}`
		}
		table := mustCompile(t, rc+`]}`)
		for range 50 {
			var kvs []string
			for range rng.IntN(6) {
				kvs = append(kvs, "k"+word(), word())
			}
			m := message(kvs...)
			var want *Route
			for i := range table.routes {
				if table.routes[i].matches(m) {
					want = &table.routes[i]
					break
				}
			}
			require.Same(t, want, table.Match(m), "%s\n%v", rc, kvs)
		}
	}
}

func largeTable(t testing.TB, n int) *Table {
	rc := &routev1alpha.RouteConfiguration{}
	for i := range n {
		r := new(routev1alpha.Route)
		require.NoError(t, protojson.Unmarshal(fmt.Appendf(nil, `{"route": {"cluster": "c%d"}, "match": {"metadata": [
			{"name": "interface", "exact_match": "org.example.Service%d"}, {"name": "method", "exact_match": "method%d"}]}}`, i, i/100, i%100), r))
		rc.Routes = append(rc.Routes, r)
	}
	table, err := Compile(rc)
	require.NoError(t, err)
	return table
}

func TestMatchingDoesNotAllocate(t *testing.T) {
	table := largeTable(t, 1000)
	m := message("interface", "org.example.Service9", "method", "method99", "tenant", "acme")
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if table.Match(m) == nil {
			t.Fatal("no match")
		}
	}))
}

func BenchmarkMatch(b *testing.B) {
	for _, n := range []int{10, 100, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			table := largeTable(b, n)
			m := message("interface", fmt.Sprintf("org.example.Service%d", (n-1)/100), "method", fmt.Sprintf("method%d", (n-1)%100), "path", "x", "version", "1", "tenant", "acme")
			b.ReportAllocs()
			for b.Loop() {
				if table.Match(m) == nil {
					b.Fatal("no match")
				}
			}
		})
	}
}

func TestTheNewestPublishedTableIsValid(t *testing.T) {
	key := Key{"scope", "r"}
	a, b, c := &Table{}, &Table{}, &Table{}
	for _, tc := range []struct {
		name string
		do   func(ts *Tables)
		want *Table
	}{
		{"the first one at once", func(ts *Tables) { ts.Add(key, a) }, a},
		{"a second one not yet", func(ts *Tables) { ts.Add(key, a).Publish(); ts.Add(key, b) }, a},
		{"a second one when published", func(ts *Tables) { ts.Add(key, a).Publish(); ts.Add(key, b).Publish() }, b},
		{"the one before when it goes", func(ts *Tables) { ts.Add(key, a).Publish(); v := ts.Add(key, b); v.Publish(); v.Remove() }, a},
		{"a refused one leaves no trace", func(ts *Tables) { ts.Add(key, a).Publish(); ts.Add(key, b).Remove() }, a},
		{"the old one goes first", func(ts *Tables) { v := ts.Add(key, a); v.Publish(); ts.Add(key, b); v.Remove() }, b},
		{"late publication of an old one", func(ts *Tables) { v := ts.Add(key, a); ts.Add(key, b).Publish(); v.Publish() }, b},
		{"three", func(ts *Tables) {
			ts.Add(key, a).Publish()
			v := ts.Add(key, b)
			v.Publish()
			ts.Add(key, c).Publish()
			v.Remove()
		}, c},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ts := NewTables()
			tc.do(ts)
			require.Same(t, tc.want, ts.Slot(key).Load())
			require.Nil(t, ts.Slot(Key{"other", "r"}))
		})
	}
	ts := NewTables()
	v := ts.Add(key, a)
	v.Remove()
	v.Publish()
	v.Remove()
	require.Nil(t, ts.Slot(key))
}
