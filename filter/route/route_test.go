package route

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
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
	table, faults := Compile(rc, Env{})
	if len(faults) > 0 {
		return nil, faults[0]
	}
	return table, nil
}

func mustCompile(t testing.TB, json string) *Table {
	t.Helper()
	table, err := compile(t, json)
	require.NoError(t, err)
	return table
}

// picked is the cluster that a route picks by rnd.
func picked(t testing.TB, r *Route, rnd uint64) string {
	t.Helper()
	target, err := r.Pick(rnd, nil)
	require.NoError(t, err)
	return target.Cluster
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
		{`"exact_match": "", "treat_missing_header_as_empty": true`, [][]string{{}, {"k", ""}, {"k", "v"}}, nil},
		{`"string_match": {"exact": ""}, "treat_missing_header_as_empty": true`, [][]string{{}, {"k", ""}}, [][]string{{"k", "v"}}},
		{`"exact_match": ""`, [][]string{{"k", ""}, {"k", "v"}}, [][]string{{}}},
		{`"exact_match": "", "invert_match": true`, nil, [][]string{{"k", ""}, {"k", "v"}, {}}},
		{`"string_match": {"exact": ""}`, [][]string{{"k", ""}}, [][]string{{"k", "v"}, {}}},
		{`"string_match": {"exact": "É", "ignore_case": true}`, [][]string{{"k", "É"}}, [][]string{{"k", "é"}}},
		{`"string_match": {"exact": "\u212a", "ignore_case": true}`, [][]string{{"k", "\u212a"}}, [][]string{{"k", "k"}}},
		{`"prefix_match": "a", "invert_match": true`, [][]string{{"k", "b"}, {"k", "b", "k", "c"}}, [][]string{{"k", "b", "K", "ab"}, {}}},
		{`"string_match": {"exact": "a,b"}`, [][]string{{"k", "a,b"}}, [][]string{{"k", "a", "k", "b"}}},
		{`"string_match": {"exact": "V", "ignore_case": true}`, [][]string{{"k", "v"}, {"k", "V"}}, [][]string{{"k", "w"}}},
		{`"prefix_match": "ab"`, [][]string{{"k", "ab"}, {"k", "abc"}}, [][]string{{"k", "a"}, {"k", "xab"}, {}}},
		{`"string_match": {"prefix": "AB", "ignore_case": true}`, [][]string{{"k", "abc"}}, [][]string{{"k", "a"}}},
		{`"suffix_match": "bc"`, [][]string{{"k", "abc"}}, [][]string{{"k", "bcd"}, {"k", "c"}}},
		{`"string_match": {"suffix": "bc"}`, [][]string{{"k", "abc"}}, [][]string{{"k", "c"}}},
		{`"contains_match": "b"`, [][]string{{"k", "abc"}}, [][]string{{"k", "ac"}, {"k", ""}}},
		{`"string_match": {"contains": "B", "ignore_case": true}`, [][]string{{"k", "abc"}}, [][]string{{"k", "ac"}}},
		{`"safe_regex_match": {"regex": "a+|b"}`, [][]string{{"k", "aaa"}, {"k", "b"}}, [][]string{{"k", "aab"}, {"k", "xa"}, {"k", ""}}},
		{`"string_match": {"safe_regex": {"regex": "(?i)a.*"}}`, [][]string{{"k", "Axy"}}, [][]string{{"k", "xa"}, {"k", "Ax\ny"}}},
		{`"string_match": {"safe_regex": {"regex": "(?s)a.*"}}`, [][]string{{"k", "ax\ny"}}, [][]string{{"k", "xa"}}},
		{`"safe_regex_match": {"regex": "a$"}`, [][]string{{"k", "a"}}, [][]string{{"k", "a\n"}}},
		{`"safe_regex_match": {"regex": "\\Qa.b"}`, [][]string{{"k", "a.b"}}, [][]string{{"k", "axb"}}},
		{`"range_match": {"start": -5, "end": 10}`, [][]string{{"k", "-5"}, {"k", "9"}, {"k", "+3"}, {"k", " 7\t"}, {"k", "-0000000000000000000000005"}}, [][]string{{"k", "10"}, {"k", "- 5"}, {"k", "1_0"}, {"k", "+"}, {"k", " "}, {"k", "-6"}, {"k", "1.0"}, {"k", ""}, {"k", "x"}, {"k", "99999999999999999999"}}},
		{`"range_match": {"start": "-9223372036854775808", "end": "9223372036854775807"}`, [][]string{{"k", "-9223372036854775808"}, {"k", "9223372036854775806"}}, [][]string{{"k", "-9223372036854775809"}, {"k", "9223372036854775808"}, {"k", "-9223372036854775815"}, {"k", "9223372036854775815"}, {"k", "-18446744073709551611"}, {"k", "9223372036854775807"}}},
		{`"present_match": true`, [][]string{{"k", ""}}, [][]string{{}}},
		{`"present_match": false`, [][]string{{}}, [][]string{{"k", "v"}}},
		{`"present_match": true, "invert_match": true`, [][]string{{}}, [][]string{{"k", "v"}}},
		{`"present_match": false, "invert_match": true`, [][]string{{"k", "v"}}, [][]string{{}}},
		{`"present_match": true, "treat_missing_header_as_empty": true`, [][]string{{}, {"k", "v"}}, nil},
		{`"present_match": false, "treat_missing_header_as_empty": true`, nil, [][]string{{}, {"k", "v"}}},
		{`"invert_match": true`, [][]string{{}}, [][]string{{"k", "v"}}},
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
		`"name": "k", "safe_regex_match": {"regex": "("}`:                                  "safe_regex_match.regex: ",
		`"name": "k", "safe_regex_match": {"regex": "a)(b"}`:                               "safe_regex_match.regex: ",
		`"name": "k", "safe_regex_match": {}`:                                              "safe_regex_match.regex: required",
		`"name": "k", "range_match": {"start": 5, "end": 5}`:                               "range_match: start 5 must be less than end 5",
		`"name": "k", "prefix_match": ""`:                                                  "prefix_match: must not be empty",
		`"name": "k", "string_match": {}`:                                                  "string_match: required",
		`"name": "k", "string_match": {"prefix": ""}`:                                      "string_match.prefix: must not be empty",
		`"name": "k", "string_match": {"custom": {"name": "x"}}`:                           "string_match.custom: not supported",
		`"name": "k", "string_match": {"safe_regex": {"regex": "a"}, "ignore_case": true}`: "ignore_case: does not go with safe_regex",
	} {
		_, err := compile(t, `{"routes": [{"route": {"cluster": "c"}}, {"match": {"metadata": [{"name": "a"}, {`+matcher+`}]}, "route": {"cluster": "c"}}]}`)
		require.ErrorContains(t, err, "routes[1].match.metadata[1]", matcher)
		require.ErrorContains(t, err, want, matcher)
	}
}

func TestRoutesThatLeadNowhereAreRefusedWithTheirPath(t *testing.T) {
	weighted := func(clusters string) string {
		return `"route": {"weighted_clusters": {"clusters": [` + clusters + `]}}`
	}
	for action, want := range map[string]string{
		``:                                     "routes[1].route: required",
		`"route": {}`:                          "routes[1].route.cluster: required",
		`"route": {"cluster": ""}`:             "routes[1].route.cluster: required",
		weighted(``):                           "routes[1].route.weighted_clusters.clusters: required",
		weighted(`{"name": "a", "weight": 0}`): "routes[1].route.weighted_clusters.clusters: the weights add up to 0",
		weighted(`{"name": "a", "weight": 1}, {"weight": 1}`):                                                   "routes[1].route.weighted_clusters.clusters[1].name: required",
		weighted(`{"name": "a"}`):                                                                               "routes[1].route.weighted_clusters.clusters[0].weight: required",
		weighted(`{"name": "a", "weight": 4294967295}, {"name": "b", "weight": 1}`):                             "routes[1].route.weighted_clusters.clusters: the weights add up to more than 4294967295",
		weighted(`{"name": "a", "weight": 1, "metadata_match": {}}`):                                            "routes[1].route.weighted_clusters.clusters[0].metadata_match: not supported",
		`"route": {"weighted_clusters": {"clusters": [{"name": "a", "weight": 1}], "runtime_key_prefix": "k"}}`: "routes[1].route.weighted_clusters.runtime_key_prefix: not supported",
		`"route": {"weighted_clusters": {"clusters": [{"name": "a", "weight": 1}], "total_weight": 100}}`:       "routes[1].route.weighted_clusters.total_weight: the weights add up to 1, is 100",
	} {
		_, err := compile(t, `{"routes": [{"route": {"cluster": "c"}}, {`+action+`}]}`)
		require.EqualError(t, err, want, action)
	}
	_, err := compile(t, `{"routes": [{"route": {"weighted_clusters": {"clusters": [{"name": "a", "weight": 4294967294}, {"name": "b", "weight": 1}]}}}]}`)
	require.NoError(t, err, "as much as fits")
}

// picky is a codec that sets x in requests and y in answers only, and no value
// but v.
type picky struct{}

func (picky) CheckMutation(d codecs.Direction, key, value string) error {
	switch {
	case key == "odd":
		return errors.New("rather: not")
	case key != map[codecs.Direction]string{codecs.ClientToServer: "x", codecs.ServerToClient: "y"}[d]:
		return fmt.Errorf("key: %.10q is not mine", key)
	case value != "v":
		return errors.New("value: is not v: at all")
	}
	return nil
}

func TestImpossibleMutationsAreRefusedWithTheirPath(t *testing.T) {
	const set = `[{"key": "x", "value": "v"}, {"key": "y", "value": "v"}, {"key": "odd"}]`
	long := strings.Repeat("x", codecs.MaxText+1)
	many := strings.Repeat(`{"key": "x", "value": "v"}, `, 1000) + `{"key": "x", "value": "v"}`
	for _, tc := range []struct {
		route   string
		mutator codecs.Mutator
		want    []string
	}{
		{`"request_mutation": ` + set, picky{}, []string{`request_mutation[1].key: "y" is not mine`, `request_mutation[2]: rather: not`}},
		{`"response_mutation": ` + set, picky{}, []string{`response_mutation[0].key: "x" is not mine`, `response_mutation[2]: rather: not`}},
		{`"request_mutation": ` + set + `, "response_mutation": ` + set, nil, nil},
		{`"request_mutation": [{"key": "x", "value": "w"}]`, picky{}, []string{`request_mutation[0].value: is not v: at all`}},
		// The codec is not asked for what none can set.
		{`"request_mutation": [{"value": "v"}]`, picky{}, []string{"request_mutation[0].key: must have 1 to 16384 bytes, has 0"}},
		{`"response_mutation": [{"key": "` + long + `", "value": "` + long + `"}]`, picky{}, []string{
			"response_mutation[0].key: must have 1 to 16384 bytes, has 16385", "response_mutation[0].value: must have at most 16384 bytes, has 16385",
		}},
		{`"request_mutation": [{"key": "` + long[1:] + `", "value": "` + long[1:] + `"}]`, nil, nil},
		{`"request_mutation": [` + many + `]`, picky{}, []string{"request_mutation: at most 1000 entries, has 1001"}},
	} {
		rc := new(routev1alpha.RouteConfiguration)
		require.NoError(t, protojson.Unmarshal([]byte(`{"routes": [{"route": {"cluster": "c"}}, {"route": {"cluster": "c"}, `+tc.route+`}]}`), rc))
		table, faults := Compile(rc, Env{Mutator: tc.mutator})
		require.Equal(t, len(tc.want) == 0, table != nil)
		var got []string
		for _, f := range faults {
			path, below := strings.CutPrefix(f.Error(), "routes[1].")
			require.True(t, below, f.Path)
			got = append(got, path)
		}
		require.Equal(t, tc.want, got)
	}
}

// TestAllFaultsAreTold, in the order of the routes.
func TestAllFaultsAreTold(t *testing.T) {
	rc := new(routev1alpha.RouteConfiguration)
	require.NoError(t, protojson.Unmarshal([]byte(`{"routes": [
		{"match": {"metadata": [{}, {"name": "k", "prefix_match": ""}]}, "request_mutation": [{}]},
		{"route": {"cluster": "c"}},
		{"route": {"weighted_clusters": {"clusters": [{"weight": 1}, {"name": "a", "metadata_match": {}}]}}}]}`), rc))
	_, faults := Compile(rc, Env{})
	var paths []string
	for _, f := range faults {
		paths = append(paths, f.Path)
	}
	require.Equal(t, []string{
		"routes[0].match.metadata[0].name", "routes[0].match.metadata[1].prefix_match", "routes[0].route", "routes[0].request_mutation[0].key",
		"routes[2].route.weighted_clusters.clusters[0].name",
		"routes[2].route.weighted_clusters.clusters[1].metadata_match", "routes[2].route.weighted_clusters.clusters[1].weight",
	}, paths)
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

func TestSpellingsOfANameAreOneKey(t *testing.T) {
	table := mustCompile(t, `{"routes": [{"match": {"metadata": [{"name": "ZoneZ", "prefix_match": "a"}, {"name": "zONEz", "suffix_match": "b"}]}, "route": {"cluster": "c"}}]}`)
	require.NotNil(t, table.Match(message("zonez", "ab")))
	require.NotNil(t, table.Match(message("ZONEZ", "a", "zonez", "b")))
	require.Nil(t, table.Match(message("ZONEZ", "a")))
}

// indexed is a table that is indexed although it is short.
func indexed(t *Table) *Table {
	x := &Table{routes: t.routes, keys: t.keys, draws: t.draws}
	x.index.build(t.routes, 0)
	return x
}

func TestAKeyRepeatedTooOftenMatchesNothing(t *testing.T) {
	for _, matcher := range []string{`"exact_match": "v"`, `"prefix_match": "v"`, `"present_match": true`, `"exact_match": "y", "invert_match": true`} {
		table := mustCompile(t, `{"routes": [{"match": {"metadata": [{"name": "k", `+matcher+`}]}, "route": {"cluster": "c"}}, {"route": {"cluster": "d"}}]}`)
		kvs := []string{"k", "v"}
		for range maxRepeats - 1 {
			kvs = append(kvs, "K", "x")
		}
		for _, table := range []*Table{table, indexed(table)} {
			require.Equal(t, "c", picked(t, table.Match(message(kvs...)), 0), matcher)
			require.Nil(t, table.Match(message(append(kvs, "k", "x")...)), matcher)
		}
		// Keys that no rule looks at do not matter.
		for i := range kvs {
			if kvs[i] == "K" {
				kvs[i] = "other"
			}
		}
		require.Equal(t, "c", picked(t, table.Match(message(append(kvs, "other", "x", "other", "x")...)), 0), matcher)
	}
}

func TestTablesThatLookAtManyKeysMatchAll(t *testing.T) {
	rc := &routev1alpha.RouteConfiguration{}
	for i := range 3 * maxKeys {
		r := route(newMatcher(0, fmt.Sprintf("k%d", i), "v", false, false, false), newMatcher(1, "method", "get", false, false, false))
		r.Name = fmt.Sprint(i)
		rc.Routes = append(rc.Routes, r)
	}
	table, faults := Compile(rc, Env{})
	require.Empty(t, faults)
	for i := range rc.Routes {
		require.Equal(t, fmt.Sprint(i), table.Match(message("method", "getX", fmt.Sprintf("K%d", i), "x", fmt.Sprintf("k%d", i), "v")).Name)
	}
	require.Nil(t, table.Match(message("method", "getX", "k", "v")))
}

func TestWeightsShareTheRandomNumbers(t *testing.T) {
	table := mustCompile(t, `{"routes": [{"route": {"weighted_clusters": {"clusters": [{"name": "a", "weight": 90}, {"name": "b", "weight": 0}, {"name": "c", "weight": 10}]}}}]}`)
	r := table.Match(message())
	n := map[string]int{}
	for rnd := range uint64(1000) {
		n[picked(t, r, rnd)]++
	}
	require.Equal(t, map[string]int{"a": 900, "c": 100}, n)
	require.Equal(t, []string{"a", "b", "c"}, r.Clusters())
	require.Equal(t, []string{"x"}, mustCompile(t, `{"routes": [{"route": {"cluster": "x"}}]}`).Match(message()).Clusters())
}

func TestTheLastOfEqualMutationKeysWins(t *testing.T) {
	table := mustCompile(t, `{"routes": [{"route": {"cluster": "c"}, "request_mutation": [{"key": "a", "value": "1"}, {"key": "b", "value": "2"}, {"key": "a", "value": "3"}]}]}`)
	mu, err := applied(t, table, message(), source{})
	require.NoError(t, err)
	require.Equal(t, []codecs.KeyValue{{Key: "a", Value: "3"}, {Key: "b", Value: "2"}}, mu.Entries())
}

func TestTablesAgreeWithALinearSearch(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	data := make([]byte, 1500)
	for range 300 {
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		checkTable(t, data)
	}
}
