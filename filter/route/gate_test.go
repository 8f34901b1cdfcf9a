package route

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/internal/raced"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// TestSharesOfRequests: one number is drawn for all routes, so that the shares of
// routes that follow each other include each other; none is drawn where nobody asks.
func TestSharesOfRequests(t *testing.T) {
	table := mustCompile(t, `{"routes": [
		{"name": "never", "match": {"runtime_fraction": {"default_value": {"numerator": 0}}}, "route": {"cluster": "c"}},
		{"name": "tenth", "match": {"runtime_fraction": {"default_value": {"numerator": 10}}}, "route": {"cluster": "c"}},
		{"name": "tenth of acme", "match": {"metadata": [{"name": "tenant", "exact_match": "acme"}], "runtime_fraction": {"default_value": {"numerator": 1000, "denominator": "TEN_THOUSAND"}}}, "route": {"cluster": "c"}},
		{"name": "quarter", "match": {"runtime_fraction": {"default_value": {"numerator": 250000, "denominator": "MILLION"}}}, "route": {"cluster": "c"}},
		{"name": "all", "match": {"runtime_fraction": {"default_value": {"numerator": 100}}}, "route": {"cluster": "c"}}]}`)
	const n = 100_000
	for _, table := range []*Table{table, indexed(table)} {
		seen := map[string]int{}
		rng := rand.New(rand.NewPCG(1, 2))
		for range n {
			r, err := table.Find(message("tenant", "acme"), Origin{}, rng)
			require.NoError(t, err)
			seen[r.Name]++
		}
		require.Zero(t, seen["never"])
		// A tenth has the numbers of the route before, in hundredths or in
		// thousandths of a percent: what is left for it is where they differ.
		require.InDelta(t, n/10, seen["tenth"], n/200)
		require.InDelta(t, 0.9*n/10, seen["tenth of acme"], n/200)
		require.Equal(t, n, seen["tenth"]+seen["tenth of acme"]+seen["quarter"]+seen["all"])
	}
	plain := mustCompile(t, `{"routes": [{"route": {"cluster": "c"}}]}`)
	require.NotNil(t, plain.Match(message()), "no number is drawn: there is no source of any")
	alike := mustCompile(t, `{"routes": [
		{"name": "a", "match": {"runtime_fraction": {"default_value": {"numerator": 30}}}, "route": {"cluster": "c"}},
		{"name": "b", "match": {"runtime_fraction": {"default_value": {"numerator": 30}}}, "route": {"cluster": "c"}}]}`)
	rng := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		r, _ := alike.Find(message(), Origin{}, rng)
		require.True(t, r == nil || r.Name == "a", "b has the share that a has taken")
	}
}

func TestRoutesOfADirection(t *testing.T) {
	table := mustCompile(t, `{"routes": [
		{"name": "in", "match": {"direction": "INBOUND"}, "route": {"cluster": "c"}},
		{"name": "out", "match": {"direction": "OUTBOUND", "metadata": [{"name": "m", "exact_match": "x"}]}, "route": {"cluster": "c"}},
		{"name": "any", "match": {"direction": "UNSPECIFIED"}, "route": {"cluster": "c"}}]}`)
	for _, table := range []*Table{table, indexed(table)} {
		for d, want := range map[corev3.TrafficDirection]string{corev3.TrafficDirection_INBOUND: "in", corev3.TrafficDirection_OUTBOUND: "out", corev3.TrafficDirection_UNSPECIFIED: "any"} {
			r, err := table.Find(message("m", "x"), Origin{Direction: d}, nil)
			require.NoError(t, err)
			require.Equal(t, want, r.Name)
		}
	}
}

// TestARouteThatIsExcludedDoesNotDecide, also if its rules cost too much.
func TestARouteThatIsExcludedDoesNotDecide(t *testing.T) {
	table := mustCompile(t, `{"routes": [
		{"match": {"direction": "INBOUND", "metadata": [{"name": "k", "contains_match": "x"}]}, "route": {"cluster": "c"}},
		{"name": "rest", "route": {"cluster": "c"}}]}`)
	long := message("k", strings.Repeat("y", MaxValueBytes+1))
	r, err := table.Find(long, Origin{Direction: corev3.TrafficDirection_OUTBOUND}, nil)
	require.NoError(t, err)
	require.Equal(t, "rest", r.Name)
	_, err = table.Find(long, Origin{Direction: corev3.TrafficDirection_INBOUND}, nil)
	require.ErrorIs(t, err, ErrTooLong)
}

func TestImpossibleMatchesAreRefusedWithTheirPath(t *testing.T) {
	for match, want := range map[string]string{
		`"runtime_fraction": {}`:                                                                     "runtime_fraction.default_value: required",
		`"runtime_fraction": {"default_value": {"numerator": 101}}`:                                  "runtime_fraction.default_value.numerator: must be at most 100, is 101",
		`"runtime_fraction": {"default_value": {"numerator": 10001, "denominator": "TEN_THOUSAND"}}`: "runtime_fraction.default_value.numerator: must be at most 10000, is 10001",
		`"runtime_fraction": {"default_value": {"numerator": 1, "denominator": 7}}`:                  "runtime_fraction.default_value.denominator: unknown value 7",
		`"direction": 3`: "direction: unknown value 3",
	} {
		_, err := compile(t, `{"routes": [{"match": {`+match+`}, "route": {"cluster": "c"}}]}`)
		require.EqualError(t, err, "routes[0].match."+want)
	}
}

// TestRoutesOfSourceLabels: all have to be known and equal.
func TestRoutesOfSourceLabels(t *testing.T) {
	table := mustCompile(t, `{"routes": [
		{"name": "both", "match": {"source_labels": {"app": "web", "version": "v1"}}, "route": {"cluster": "c"}},
		{"name": "web", "match": {"source_labels": {"app": "web"}}, "route": {"cluster": "c"}},
		{"name": "empty", "match": {"source_labels": {"lane": ""}}, "route": {"cluster": "c"}},
		{"name": "rest", "route": {"cluster": "c"}}]}`)
	md := message()
	for want, labels := range map[string]map[string]string{
		"both": {"app": "web", "version": "v1", "x": "y"}, "web": {"app": "web", "version": "V1"},
		"empty": {"lane": ""}, "rest": {"app": "Web"},
	} {
		find := func() *Route { r, _ := table.Find(md, Origin{Labels: labels}, nil); return r }
		require.Equal(t, want, find().Name)
		require.Zero(t, raced.AllocsPerRun(t, 100, func() { find() }))
	}
	require.Equal(t, "rest", table.Match(md).Name, "nothing is known")
}

func TestDirectResponses(t *testing.T) {
	table := mustCompile(t, `{"routes": [{"direct_response": {"status": "OVER_LIMIT", "body": "closed for today"}}, {"direct_response": {}}]}`)
	require.Equal(t, &codecs.LocalError{Type: codecs.OverLimit, Message: "closed for today"}, table.routes[0].Direct)
	require.Equal(t, &codecs.LocalError{Type: codecs.Unspecified, Message: "unspecified"}, table.routes[1].Direct)
	for route, want := range map[string]string{
		`"direct_response": {}, "route": {"cluster": "c"}`:                      "direct_response: there is a route, too",
		`"direct_response": {"status": 11}`:                                     "direct_response.status: unknown value 11",
		`"direct_response": {"body": "` + strings.Repeat("x", maxBody+1) + `"}`: "direct_response.body: must have at most 4096 bytes, has 4097",
		`"direct_response": {}, "response_keys_to_remove": ["k"]`:               "direct_response: does not go with mutations: nothing is sent on",
		`"direct_response": {}, "request_mutation": [{"key": "k"}]`:             "direct_response: does not go with mutations: nothing is sent on",
	} {
		_, err := compile(t, `{"routes": [{`+route+`}]}`)
		require.EqualError(t, err, "routes[0]."+want)
	}
	for i := range statuses {
		require.NotEqual(t, "unknown", statuses[i].String())
	}
	require.Len(t, statuses, int(codecs.Denied)+1)
}

// fewCodes is a codec whose answers carry codes up to 9.
type fewCodes struct{ codecs.Codec }

func (fewCodes) CheckCode(code int32) error {
	if code > 9 {
		return errors.New("must be at most 9")
	}
	return nil
}

// coded is the mutator of a listener with it.
type coded struct {
	codecs.Mutator
	fewCodes
}

func TestCodesOfDirectResponses(t *testing.T) {
	direct := func(code int32) *routev1alpha.RouteConfiguration {
		return &routev1alpha.RouteConfiguration{Routes: []*routev1alpha.Route{{DirectResponse: &routev1alpha.DirectResponse{Code: code}}}}
	}
	table, faults := Compile(direct(9), Env{Mutator: coded{}})
	require.Empty(t, faults)
	require.EqualValues(t, 9, table.routes[0].Direct.Code)
	_, faults = Compile(direct(10), Env{Mutator: coded{}})
	require.Equal(t, []*Error{{Path: "routes[0].direct_response.code", Reason: "must be at most 9"}}, faults)
	_, faults = Compile(direct(10), Env{})
	require.Empty(t, faults, "the codec is not known yet")
}

// TestReplyOfFilters: what is not configured is the filter's own.
func TestReplyOfFilters(t *testing.T) {
	def := codecs.LocalError{Type: codecs.OverLimit, Message: "rate limited", Code: 3}
	few := []codecs.Codec{fewCodes{}}
	for _, tt := range []struct {
		d    *routev1alpha.DirectResponse
		want codecs.LocalError
	}{
		{nil, def},
		{&routev1alpha.DirectResponse{}, def},
		{&routev1alpha.DirectResponse{Code: 7}, codecs.LocalError{Type: codecs.OverLimit, Message: "rate limited", Code: 7}},
		{&routev1alpha.DirectResponse{Body: "later"}, codecs.LocalError{Type: codecs.OverLimit, Message: "later", Code: 3}},
		{&routev1alpha.DirectResponse{Status: routev1alpha.DirectResponse_DENIED}, codecs.LocalError{Type: codecs.Denied, Message: "rate limited"}},
	} {
		e, errs := Reply(tt.d, def, "reply", few)
		require.Empty(t, errs)
		require.Equal(t, tt.want, e)
	}
	_, errs := Reply(&routev1alpha.DirectResponse{Status: 99, Code: 10, Body: strings.Repeat("x", maxBody+1)}, def, "abort.reply", few)
	require.Equal(t, []*Error{
		{Path: "abort.reply.status", Reason: "unknown value 99"},
		{Path: "abort.reply.body", Reason: "must have at most 4096 bytes, has 4097"},
		{Path: "abort.reply.code", Reason: "must be at most 9"},
	}, errs)
	_, errs = Reply(&routev1alpha.DirectResponse{Code: 1}, def, "reply", []codecs.Codec{fewCodes{}, struct{ codecs.Codec }{}})
	require.Equal(t, []*Error{{Path: "reply.code", Reason: "the codec has one code for each status, and no others"}}, errs)
}

func TestRequestsThatNameTheirCluster(t *testing.T) {
	table := mustCompile(t, `{"routes": [{"route": {"cluster_from_metadata": {"name": "Lane", "allowed_clusters": ["blue", "green"]}}, "request_mutation": [{"key": "k", "value": "v"}]}]}`)
	r := &table.routes[0]
	require.Equal(t, []string{"blue", "green"}, r.Clusters())
	for _, name := range []string{"blue", "green"} {
		target, err := r.Pick(0, message("lane", name))
		require.NoError(t, err)
		require.Equal(t, name, target.Cluster)
		require.Len(t, target.Request, 1)
	}
	_, err := r.Pick(0, message("x", "blue"))
	require.EqualError(t, err, "the request names no cluster by its Lane")
	for _, name := range []string{"Blue", "", "blue ", strings.Repeat("x", 1000)} {
		_, err = r.Pick(0, message("lane", name))
		require.ErrorContains(t, err, "the request may not name the cluster ")
		require.Less(t, len(err.Error()), 200)
	}
	md := message("lane", "green")
	require.Zero(t, raced.AllocsPerRun(t, 100, func() { _, _ = r.Pick(0, md) }))
	for field, want := range map[string]string{
		`"allowed_clusters": ["a"]`:                        "name: required",
		`"name": "k"`:                                      "allowed_clusters: required",
		`"name": "k", "allowed_clusters": ["a", ""]`:       "allowed_clusters[1]: required",
		`"name": "k", "allowed_clusters": ["a", "b", "a"]`: `allowed_clusters[2]: "a" occurs twice`,
	} {
		_, err := compile(t, `{"routes": [{"route": {"cluster_from_metadata": {`+field+`}}}]}`)
		require.EqualError(t, err, "routes[0].route.cluster_from_metadata."+want)
	}
}
