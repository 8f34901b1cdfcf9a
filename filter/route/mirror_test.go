package route

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

func TestMirrorsHaveTheirDefaults(t *testing.T) {
	table := mustCompile(t, `{"routes": [
		{"route": {"cluster": "c", "request_mirror_policies": [{"cluster": "m"}, {"cluster": "n",
			"runtime_fraction": {"default_value": {"numerator": 3, "denominator": "TEN_THOUSAND"}},
			"after_mutation": true, "max_request_bytes": 1, "max_requests": 65536, "timeout": "3600s", "compare": true}]}},
		{"route": {"cluster": "c"}}]}`)
	require.Equal(t, []Mirror{
		{Cluster: "m", MaxRequestBytes: 65536, MaxRequests: 100, Timeout: 5 * time.Second, share: fields.Fraction{Share: 1, Of: 1}},
		{
			Cluster: "n", AfterMutation: true, Compare: true, MaxRequestBytes: 1, MaxRequests: 65536, Timeout: time.Hour,
			share: fields.Fraction{Share: 3, Of: 10_000},
		},
	}, table.routes[0].Mirrors)
	require.Nil(t, table.routes[1].Mirrors)
}

// TestARouteHasTheTablesMirrors unless it has its own, of which those of no request
// are none.
func TestARouteHasTheTablesMirrors(t *testing.T) {
	table := mustCompile(t, `{"request_mirror_policies": [{"cluster": "d"}], "routes": [
		{"route": {"cluster": "c"}},
		{"route": {"cluster": "c", "request_mirror_policies": [{"cluster": "o"}]}},
		{"route": {"cluster": "c", "request_mirror_policies": [{"cluster": "o", "runtime_fraction": {"default_value": {}}}]}}]}`)
	require.Equal(t, "d", table.routes[0].Mirrors[0].Cluster)
	require.Equal(t, "o", table.routes[1].Mirrors[0].Cluster)
	require.Len(t, table.routes[1].Mirrors, 1)
	require.Nil(t, table.routes[2].Mirrors)
}

func TestAMirrorPicksItsShare(t *testing.T) {
	const n = 1_000_000
	for fraction, want := range map[string]float64{
		`{"numerator": 50}`: n / 2, `{"numerator": 1}`: n / 100, `{"numerator": 100}`: n,
		`{"numerator": 5, "denominator": "TEN_THOUSAND"}`: n / 2000, `{"numerator": 300, "denominator": "MILLION"}`: 300,
	} {
		table := mustCompile(t, `{"routes": [{"route": {"cluster": "c", "request_mirror_policies": [{"cluster": "m", "runtime_fraction": {"runtime_key": "k", "default_value": `+fraction+`}}]}}]}`)
		rng := rand.New(rand.NewPCG(1, 2))
		picked := 0
		for range n {
			if table.routes[0].Mirrors[0].Picks(rng) {
				picked++
			}
		}
		require.InEpsilon(t, want, picked, 0.15, fraction)
	}
}

// ordered is a mutator of codecs whose requests cannot be mirrored.
type ordered struct{ codecs.Mutator }

func (ordered) CheckMirror() error { return errors.New("no") }

func TestMirrorsAreRefusedWithTheirPath(t *testing.T) {
	compile := func(policies string, m codecs.Mutator, atTable bool) []string {
		json := `{"routes": [{"route": {"cluster": "c"}}, {"route": {"cluster": "c", "request_mirror_policies": [` + policies + `]}}]}`
		if atTable {
			json = `{"request_mirror_policies": [` + policies + `]}`
		}
		rc := new(routev1alpha.RouteConfiguration)
		require.NoError(t, protojson.Unmarshal([]byte(json), rc))
		_, faults := Compile(rc, Env{Mutator: m})
		var texts []string
		for _, f := range faults {
			texts = append(texts, strings.Replace(f.Error(), "routes[1].route.request_mirror_policies", "HERE", 1))
		}
		return texts
	}
	for policy, want := range map[string]string{
		`{}`: "HERE[0].cluster: required",
		`{"cluster": "m", "runtime_fraction": {"runtime_key": "k"}}`:                  "HERE[0].runtime_fraction.default_value: required",
		`{"cluster": "m", "runtime_fraction": {"default_value": {"denominator": 3}}}`: "HERE[0].runtime_fraction.default_value.denominator: unknown value 3",
		`{"cluster": "m", "runtime_fraction": {"default_value": {"numerator": 101}}}`: "HERE[0].runtime_fraction.default_value.numerator: must be at most 100, is 101",
		`{"cluster": "m", "max_request_bytes": 0}`:                                    "HERE[0].max_request_bytes: must be between 1 and 1073741824, is 0",
		`{"cluster": "m", "max_request_bytes": 1073741825}`:                           "HERE[0].max_request_bytes: must be between 1 and 1073741824, is 1073741825",
		`{"cluster": "a"}, {"cluster": "m", "max_requests": 0}`:                       "HERE[1].max_requests: must be between 1 and 65536, is 0",
		`{"cluster": "m", "max_requests": 65537}`:                                     "HERE[0].max_requests: must be between 1 and 65536, is 65537",
		`{"cluster": "m", "timeout": "0s"}`:                                           "HERE[0].timeout: must be between 1ms and 1h0m0s, is 0s",
		`{"cluster": "m", "timeout": "3600.000000001s"}`:                              "HERE[0].timeout: must be between 1ms and 1h0m0s, is 1h0m0.000000001s",
		strings.TrimSuffix(strings.Repeat(`{"cluster": "m"},`, 17), ","):              "HERE: at most 16 entries, has 17",
	} {
		require.Equal(t, []string{want}, compile(policy, nil, false), policy)
	}
	require.Equal(t, []string{"request_mirror_policies[0].cluster: required"}, compile(`{}`, nil, true))
	require.Equal(t, []string{"request_mirror_policies: no"}, compile(`{"cluster": "m"}`, ordered{}, true))
	require.Equal(t, []string{"HERE: no"}, compile(`{"cluster": "m"}`, ordered{}, false))
	require.Empty(t, compile("", ordered{}, false))
	require.Empty(t, compile(strings.TrimSuffix(strings.Repeat(`{"cluster": "m"},`, 16), ","), nil, false))
}
