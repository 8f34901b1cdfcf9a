package route

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/consistent"
	"github.com/meltemi-mesh/meltemi/internal/raced"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// hashOf is that of the first route of a table.
func hashOf(t *testing.T, config string) *Hash {
	t.Helper()
	rc := new(routev1alpha.RouteConfiguration)
	require.NoError(t, protojson.Unmarshal([]byte(config), rc))
	table, errs := Compile(rc, Env{})
	require.Empty(t, errs)
	return table.routes[0].Hash
}

func byHash(action string) string {
	return `{"routes": [{"route": {"cluster": "c", ` + action + `}}]}`
}

func TestFaultsOfHashPolicies(t *testing.T) {
	for _, tt := range []struct{ action, fault string }{
		{`"hash_policies": [{"source_ip": true}, {}]`, "hash_policies[1]: required: metadata, source_ip or principal"},
		{`"hash_policies": [{"metadata": {}}]`, "hash_policies[0].metadata.name: required"},
		{`"hash_policies": [{"source_ip": false}]`, "hash_policies[0].source_ip: must be true"},
		{`"hash_policies": [{"principal": false}]`, "hash_policies[0].principal: must be true"},
		{`"hash_policy": ["a", ""]`, "hash_policy[1]: must not be empty"},
		{`"hash_policy": ["a"], "hash_policies": [{"source_ip": true}]`, "hash_policy: does not go with hash_policies"},
		{`"hash_policy": ["k"` + strings.Repeat(`, "k"`, 100) + `]`, "hash_policy: at most 100 entries, has 101"},
		{
			`"hash_policies": [{"source_ip": true}` + strings.Repeat(`, {"source_ip": true}`, 100) + `]`,
			"hash_policies: at most 100 entries, has 101",
		},
	} {
		require.Equal(t, []string{"routes[0].route." + tt.fault}, faultsOf(t, byHash(tt.action)))
	}
	require.Equal(t, []string{"hash_policies[0].source_ip: must be true"}, faultsOf(t, `{"hash_policies": [{"source_ip": false}]}`))
	for _, tt := range []struct{ lb, fault string }{
		{`"ring_hash": {"minimum_ring_size": 0}`, "ring_hash.minimum_ring_size: must be between 1 and 8388608, is 0"},
		{`"ring_hash": {"maximum_ring_size": 8388609}`, "ring_hash.maximum_ring_size: must be between 1 and 8388608, is 8388609"},
		{`"ring_hash": {"maximum_ring_size": 1023}`, "ring_hash.maximum_ring_size: must be at least minimum_ring_size, 1024, is 1023"},
		{`"maglev": {"table_size": 1}`, "maglev.table_size: must be between 2 and 5000011, is 1"},
		{`"maglev": {"table_size": 65536}`, "maglev.table_size: must be a prime, is 65536"},
		{`"hash_balance_factor": 99`, "hash_balance_factor: must be between 100 and 1000000, is 99"},
	} {
		all := faultsOf(t, `{"clusters": [{"name": "c", "load_balancing": {`+tt.lb+`}}]}`)
		require.Contains(t, all, "clusters[0].load_balancing."+tt.fault)
	}
}

func TestPoliciesOfClusters(t *testing.T) {
	table := mustCompile(t, `{"clusters": [
		{"name": "*", "load_balancing": {"maglev": {}}},
		{"name": "a", "load_balancing": {"hash_balance_factor": 150}},
		{"name": "b", "load_balancing": {"ring_hash": {"minimum_ring_size": 3, "maximum_ring_size": 3}}},
		{"name": "c", "load_balancing": {"maglev": {"table_size": 251}}},
		{"name": "d", "retry_budget": {}}]}`)
	maglev := consistent.Policy{Algorithm: consistent.Maglev, TableSize: 65537}
	require.Equal(t, maglev, *table.Cluster("x").Hashing)
	require.Equal(t, maglev, *table.Cluster("d").Hashing)
	balanced := consistent.Default
	balanced.BalanceFactor = 150
	require.Equal(t, balanced, *table.Cluster("a").Hashing)
	require.Equal(t, consistent.Policy{MinimumRingSize: 3, MaximumRingSize: 3}, *table.Cluster("b").Hashing)
	require.Equal(t, consistent.Policy{Algorithm: consistent.Maglev, TableSize: 251}, *table.Cluster("c").Hashing)
	require.Equal(t, consistent.Default, *mustCompile(t, `{}`).Cluster("c").Hashing)
}

func TestKeys(t *testing.T) {
	a, b := consistent.Hash([]byte("1")), consistent.Hash([]byte("2"))
	v4, v6 := netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("2001:db8::1")
	for _, tt := range []struct {
		policies string
		source   netip.Addr
		key      uint64
		ok       bool
	}{
		{`"hash_policy": ["A"]`, v4, a, true},
		{`"hash_policy": ["a", "b"]`, v4, consistent.Combine(a, b), true},
		{`"hash_policy": ["b", "a"]`, v4, consistent.Combine(b, a), true},
		{`"hash_policy": ["none", "b"]`, v4, b, true},
		{`"hash_policy": ["none"]`, v4, 0, false},
		{`"hash_policies": [{"source_ip": true}]`, v4, consistent.Hash([]byte("10.1.2.3")), true},
		{`"hash_policies": [{"source_ip": true}]`, v6, consistent.Hash([]byte("2001:db8::1")), true},
		{`"hash_policies": [{"source_ip": true}]`, netip.Addr{}, 0, false},
		{`"hash_policies": [{"principal": true}]`, v4, consistent.Hash([]byte("spiffe://a/b")), true},
		{`"hash_policies": [{"principal": true}]`, netip.Addr{}, 0, false},
		{`"hash_policies": [{"metadata": {"name": "a"}, "terminal": true}, {"source_ip": true}]`, v4, a, true},
		{`"hash_policies": [{"metadata": {"name": "none"}, "terminal": true}, {"metadata": {"name": "b"}}]`, v4, b, true},
		{`"hash_policies": [{"metadata": {"name": "a"}}, {"metadata": {"name": "none"}, "terminal": true}, {"metadata": {"name": "b"}}]`, v4, a, true},
		{`"hash_policies": [{"metadata": {"name": "empty"}}]`, v4, consistent.Hash(nil), true},
	} {
		h := hashOf(t, byHash(tt.policies))
		var md codecs.Metadata
		for _, kv := range [][2]string{{"a", "1"}, {"B", "2"}, {"b", "other"}, {"empty", ""}} {
			md.Put([]byte(kv[0]), []byte(kv[1]))
		}
		principal := ""
		if tt.source.IsValid() {
			principal = "spiffe://a/b"
		}
		key, ok := h.Key(&md, tt.source, principal)
		require.Equal(t, tt.ok, ok, tt.policies)
		require.Equal(t, tt.key, key, tt.policies)
		require.Zero(t, raced.AllocsPerRun(t, 100, func() { h.Key(&md, tt.source, principal) }))
	}
}

func TestTheTablesHashPolicyIsOfRoutesWithoutOne(t *testing.T) {
	h := hashOf(t, `{"hash_policies": [{"metadata": {"name": "k"}}], "routes": [{"route": {"cluster": "c"}}]}`)
	require.Equal(t, []hashPart{{property: "k"}}, h.parts)
	h = hashOf(t, `{"hash_policies": [{"metadata": {"name": "k"}}], "routes": [{"route": {"cluster": "c", "hash_policy": ["own"]}}]}`)
	require.Equal(t, []hashPart{{property: "own"}}, h.parts)
	require.Nil(t, hashOf(t, `{"routes": [{"route": {"cluster": "c"}}], "clusters": [{"name": "c", "load_balancing": {}}]}`))
}
