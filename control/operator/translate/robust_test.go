package translate_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/control/operator/translate"
	"github.com/meltemi-mesh/meltemi/control/translate/envoyfilter"
)

const (
	shop = `apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {clusterIP: 10.0.0.1, selector: {app: orders}, ports: [{name: tcp-metaprotocol-dubbo, port: 20880}]}
`
	onlyWeb = `---
apiVersion: dubbo.aeraki.io/v1alpha1
kind: DubboAuthorizationPolicy
metadata: {name: only-web, namespace: shop}
spec: {rules: [{from: [{source: {namespaces: [web]}}]}]}
`
)

// translated is what becomes of orders.shop, its EnvoyFilters as text, by their components.
func translated(t *testing.T, text string) (*translate.Output, map[string]string) {
	t.Helper()
	out := translate.Translate(hosts(decode(t, []byte(text)))["orders.shop.svc.cluster.local"])
	filters := map[string]string{}
	for _, f := range out.Filters {
		b, err := envoyfilter.YAML([]*envoyfilter.Filter{f})
		require.NoError(t, err)
		filters[f.Labels[translate.Component]] += string(b)
	}
	return out, filters
}

// TestPoliciesHoldWhateverTheCodecIsCalled: by its short name or its long one, with options
// or found out by the bytes of a connection.
func TestPoliciesHoldWhateverTheCodecIsCalled(t *testing.T) {
	const options = `, codecConfig: {"@type": type.googleapis.com/aeraki.meta_protocol.codec.DubboCodec}`
	for _, codec := range []string{
		"dubbo", "dubbo" + options, "aeraki.meta_protocol.codec.dubbo", "aeraki.meta_protocol.codec.dubbo" + options,
		"auto", "aeraki.meta_protocol.codec.auto",
	} {
		protocol := "---\napiVersion: metaprotocol.aeraki.io/v1alpha1\nkind: ApplicationProtocol\nmetadata: {name: own}\nspec: {protocol: own, codec: " + codec + "}\n"
		out, filters := translated(t, strings.Replace(shop, "metaprotocol-dubbo", "metaprotocol-own", 1)+protocol+onlyWeb)
		require.Empty(t, out.Faults, codec)
		require.Contains(t, filters["inbound"], "shop/only-web[0]", codec)
	}
}
