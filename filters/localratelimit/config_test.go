package localratelimit_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

func TestWhatIsRefused(t *testing.T) {
	good := bucket(1, 1, "1s")
	descriptor := func(fields string) string { return limit(`"descriptors": [{` + fields + `}]`) }
	for config, want := range map[string]string{
		`null`: "config: required",
		`{"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.router.v1alpha.Router"}`: "config.type_url: ",
		strings.Replace(limit(`"conditions": []`), `"l"`, `""`, 1):                                  "config.stat_prefix: required",

		limit(`"token_bucket": {"max_tokens": 1}`):                                                 "config.token_bucket.fill_interval: required",
		limit(`"token_bucket": ` + bucket(1, 1, "0.0009s")):                                        "config.token_bucket.fill_interval: must be at least 1ms, is 900µs",
		limit(`"token_bucket": ` + bucket(1, 0, "1s")):                                             "config.token_bucket.tokens_per_fill: must be at least 1, is 0",
		limit(`"filter_enabled": {"runtime_key": "x"}`):                                            "config.filter_enabled.default_value: required",
		limit(`"filter_enforced": {"default_value": {"numerator": 101}}`):                          "config.filter_enforced.default_value.numerator: must be at most 100, is 101",
		limit(`"conditions": [{"match": {}}]`):                                                     "config.conditions[0].token_bucket: required",
		limit(`"conditions": [{"token_bucket": ` + good + `}]`):                                    "config.conditions[0].match: required",
		limit(`"conditions": [` + method("m", good) + `,` + method("m", bucket(1, 0, "1s")) + `]`): "config.conditions[1].token_bucket.tokens_per_fill: must be at least 1, is 0",
		limit(`"conditions": [{"match": {"metadata": [{}]}, "token_bucket": ` + good + `}]`):       "config.conditions[0].match.metadata[0].name: required",
		limit(`"status": {"code": 300}`):                                                           "config.status.code: ",

		descriptor(`"token_bucket": ` + good):                                      "config.descriptors[0].names: must be 1 to 8, are 0",
		descriptor(`"names": ["a"]`):                                               "config.descriptors[0].token_bucket: required",
		descriptor(`"names": ["a", ""], "token_bucket": ` + good):                  "config.descriptors[0].names[1]: required",
		descriptor(`"names": ["a", "A"], "token_bucket": ` + good):                 `config.descriptors[0].names[1]: "A" is there twice`,
		descriptor(`"names": ["a"], "max_keys": 1048577, "token_bucket": ` + good): "config.descriptors[0].max_keys: must be between 1 and 1048576, is 1048577",
		descriptor(`"names": ["a"], "token_bucket": ` + good + `, "overrides": [{"values": ["x", "y"], "token_bucket": ` + good + `}]`):                                             "config.descriptors[0].overrides[0].values: must be 1, as names, are 2",
		descriptor(`"names": ["a"], "token_bucket": ` + good + `, "overrides": [{"values": ["x"]}]`):                                                                                "config.descriptors[0].overrides[0].token_bucket: required",
		descriptor(`"names": ["a"], "token_bucket": ` + good + `, "overrides": [{"values": ["x"], "token_bucket": ` + good + `}, {"values": ["x"], "token_bucket": ` + good + `}]`): "config.descriptors[0].overrides[1].values: are there twice",
	} {
		_, err := filtertest.New(t).Load(listener(config, routes))
		require.ErrorContains(t, err, "meta_protocol_filters[0]."+want, config)
	}
}

func TestARoutesFaultsHaveItsPath(t *testing.T) {
	_, err := filtertest.New(t).Load(listener(limit(`"conditions": []`),
		`{"routes": [{"direct_response": {}, "typed_per_filter_config": {"aeraki.meta_protocol.filters.local_ratelimit": `+limit(`"token_bucket": {}`)+`}}]}`))
	require.ErrorContains(t, err, "route_config.routes[0].typed_per_filter_config[aeraki.meta_protocol.filters.local_ratelimit].token_bucket.fill_interval: required")
}

func TestTheReadmesConfiguration(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(readme), "```yaml\n")
	require.True(t, ok)
	config, _, _ := strings.Cut(rest, "```")
	var proxy map[string]any
	require.NoError(t, yaml.Unmarshal([]byte(config), &proxy))
	b, err := json.Marshal(proxy)
	require.NoError(t, err)
	filtertest.New(t).MustLoad(string(b))
}
