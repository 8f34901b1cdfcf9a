package e2e

import (
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	modulesv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/dynamic_modules/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	_ "github.com/meltemi-mesh/meltemi/codecs/brpc"
	"github.com/meltemi-mesh/meltemi/control/check"
	"github.com/meltemi-mesh/meltemi/filter/config"
	_ "github.com/meltemi-mesh/meltemi/filters/rbac"
	_ "github.com/meltemi-mesh/meltemi/filters/router"
)

// probed is a bootstrap that Envoy and `meltemi check` take.
const probed = `static_resources:
  listeners:
  - name: l
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - filters:
      - name: meltemi
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.dynamic_modules.v3.DynamicModuleNetworkFilter
          dynamic_module_config: {name: meltemi, do_not_close: true, metrics_namespace: meta_protocol}
          filter_name: meta_protocol_proxy
          terminal_filter: true
          filter_config:
            "@type": type.googleapis.com/google.protobuf.Struct
            value:
              stat_prefix: t
              protocol: {name: brpc, codec: {name: aeraki.meta_protocol.codec.brpc}}
              route_config:
                name: r
                routes:
                - match: {metadata: [{name: tenant, string_match: {exact: acme}}]}
                  route: {cluster: v1}
  - name: meltemi-loopback
    address: {pipe: {path: "@meltemi-probe"}}
    listener_filters:
    - name: envoy.filters.listener.proxy_protocol
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol
        rules:
        - {tlv_type: 0xE0, on_tlv_present: {metadata_namespace: meltemi, key: cluster}}
        - {tlv_type: 0xE1, on_tlv_present: {metadata_namespace: meltemi, key: token}}
    filter_chains:
    - filters:
      - name: meltemi.carrier
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.dynamic_modules.v3.DynamicModuleNetworkFilter
          dynamic_module_config: {name: meltemi, do_not_close: true, metrics_namespace: meta_protocol}
          filter_name: carrier
          filter_config:
            "@type": type.googleapis.com/google.protobuf.Struct
            value: {path: "@meltemi-probe"}
      - name: envoy.filters.network.tcp_proxy
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: m, cluster: none, idle_timeout: 0s}
  clusters:
  - {name: v1, type: STATIC, connect_timeout: 1s, load_assignment: {cluster_name: v1}}
`

// probedJSON is the same in JSON.
const probedJSON = `{"static_resources": {"listeners": [
  {"name": "l", "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}, "filter_chains": [{"filters": [{"name": "meltemi", "typed_config": {
    "@type": "type.googleapis.com/envoy.extensions.filters.network.dynamic_modules.v3.DynamicModuleNetworkFilter",
    "dynamic_module_config": {"name": "meltemi", "do_not_close": true, "metrics_namespace": "meta_protocol"},
    "filter_name": "meta_protocol_proxy",
    "terminal_filter": true,
    "filter_config": ` + structJSON + `
  }}]}]},
  {"name": "meltemi-loopback", "address": {"pipe": {"path": "@meltemi-probe"}}, "filter_chains": [{"filters": [{"name": "meltemi.carrier", "typed_config": {
    "@type": "type.googleapis.com/envoy.extensions.filters.network.dynamic_modules.v3.DynamicModuleNetworkFilter",
    "dynamic_module_config": {"name": "meltemi", "do_not_close": true, "metrics_namespace": "meta_protocol"},
    "filter_name": "carrier",
    "filter_config": {"@type": "type.googleapis.com/google.protobuf.Struct", "value": {"path": "@meltemi-probe"}}
  }}, {"name": "envoy.filters.network.tcp_proxy", "typed_config": {
    "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "m", "cluster": "none", "idle_timeout": "0s"
  }}]}]}
 ], "clusters": [{"name": "v1", "type": "STATIC", "connect_timeout": "1s", "load_assignment": {"cluster_name": "v1"}}]
}}
`

// structJSON is the part of probedJSON that the module gets, configJSON what is
// in it.
const (
	structJSON = `{"@type": "type.googleapis.com/google.protobuf.Struct", "value": ` + configJSON + `}`
	configJSON = `{
      "stat_prefix": "t",
      "protocol": {"name": "brpc", "codec": {"name": "aeraki.meta_protocol.codec.brpc"}},
      "route_config": {"name": "r", "routes": [{"match": {"metadata": [{"name": "tenant", "string_match": {"exact": "acme"}}]}, "route": {"cluster": "v1"}}]}
    }`
)

// probe is a file of that name.
type probe struct{ name, file, text string }

// sites are places of probed where a value of each kind can stand: what is
// replaced, and by what.
var sites = []struct{ name, old, new string }{
	{"string", "name: l\n", "name: %s\n"},
	{"filter_name", "filter_name: meta_protocol_proxy", "filter_name: %s"},
	{"bool", "do_not_close: true", "do_not_close: %s"},
	{"terminal_filter", "terminal_filter: true", "terminal_filter: %s"},
	{"uint32", "port_value: 0", "port_value: %s"},
	{"wrapper", "name: l\n", "name: l\n    per_connection_buffer_limit_bytes: %s\n"},
	{"duration", "connect_timeout: 1s", "connect_timeout: %s"},
	{"enum", "type: STATIC", "type: %s"},
	{"double", "type: STATIC", "type: STATIC, common_lb_config: {healthy_panic_threshold: {value: %s}}"},
	{"message", "type: STATIC", "type: STATIC, common_lb_config: %s"},
	{"strings", "    - filters:\n      - name: meltemi\n", "    - filter_chain_match: {server_names: %s}\n      filters:\n      - name: meltemi\n"},
	{"numbers", "    - filters:\n      - name: meltemi\n", "    - filter_chain_match: {source_ports: %s}\n      filters:\n      - name: meltemi\n"},
	{"map", "name: l\n", "name: l\n    metadata: {filter_metadata: %s}\n"},
	{"key", "name: l\n", "name: l\n    metadata: {filter_metadata: {%s: {}}}\n"},
	{"value", "name: l\n", "name: l\n    metadata: {filter_metadata: {a: {b: %s}}}\n"},
	{"any", "dynamic_module_config:", "filter_config: %s\n          dynamic_module_config:"},
	{"struct", "\n            value:\n", "\n            value: %s\n            x:\n"},
	{"struct string", "stat_prefix: t", "stat_prefix: %s"},
	{"struct exact", "exact: acme", "exact: %s"},
	{"struct bool", "name: tenant", "name: tenant, invert_match: %s"},
	{"struct uint32", "route: {cluster: v1}", "route: {weighted_clusters: {clusters: [{name: v1, weight: %s}]}}"},
	{"struct int64", "name: tenant, string_match: {exact: acme}", "name: tenant, range_match: {start: %s, end: 9223372036854775807}"},
	{"struct duration", "stat_prefix: t", "stat_prefix: t\n              request_timeout: %s"},
	{"struct enum", "name: brpc,", "name: brpc, connection_mode: %s,"},
	{"struct list", "[{name: tenant, string_match: {exact: acme}}]", "%s"},
	{"struct key", "stat_prefix: t", "stat_prefix: t\n              %s: {}"},
	{
		"in a string", "filter_config:\n            \"@type\": type.googleapis.com/google.protobuf.Struct\n            value:\n",
		"filter_config:\n            \"@type\": type.googleapis.com/google.protobuf.StringValue\n            value: %s\n          filter_configs:\n",
	},
}

// values are what can stand there.
var values = []string{
	"true", "True", "TRUE", "tRUE", "yes", "No", "on", "OFF", "y", "N", "t", `"true"`, `'yes'`, `"1"`, `"on"`, "!!bool true", "!!bool \"true\"", "! true", "!!str true",
	"0", "1", "-1", "+5", "5.0", "5.", ".5", "1e2", "1E+2", "0x10", "010", "08", "0o12", "0b11", "1_000", "1,5", "12:30", "-0", "0x1p3", "1e400", ".inf", "-.Inf", ".nan", "inf", "nan", "Infinity",
	"2147483647", "2147483648", "4294967295", "4294967296", "9007199254740991", "9007199254740992", "9007199254740993", "9223372036854775807", "9223372036854775808", "13800138000", "1.0000000001",
	`"5"`, `" 5"`, `"5 "`, `"0x10"`, `"5.0"`, `"1e2"`, "!!int \"5\"", "!!str 5", "! 5", "!!float 5", "!custom 5", "&a 5", "&a ! 5",
	"~", "null", "Null", "NULL", "nULL", "", `""`, "''", "!!null x", "!!str", "!!str null", "!",
	"1s", "1.5s", "0.1234567891s", "-1s", "1m", "01s", "1S", "1 s", `"1s"`, "315576000001s", ".5s", "1.s", "{seconds: 1}", "{seconds: 1, nanos: 5}", "{seconds: '1'}",
	"STATIC", "static", "Static", `"STATIC"`, "STRICT_DNS", "EDS_", "SHARED", "shared", "EXCLUSIVE", "7",
	"[]", "{}", "[a]", "[1]", "[1, 2]", "[[1], 2]", "[~]", "[a, ]", "[, a]", "[a b, c]", "[a: b]", "{a}", "{a: }", "{a: 1}", "{a: {b: 1}}", "{a: {b: yes}}", "{value: 1}", "{value: x}", "{? a : {}}", "{a: {}, a: {}}", "{a: {}, b: *x}", "{\"a\":{}}", "{a:{}}",
	`{"@type": type.googleapis.com/google.protobuf.Struct, value: {}}`,
	`{"@type": google.protobuf.Struct, value: {}}`, `{"@type": /google.protobuf.Struct, value: {}}`, `{"@type": x/google.protobuf.Struct, value: {}}`,
	`{"@type": type.googleapis.com/google.protobuf.Empty}`, `{"@type": type.googleapis.com/google.protobuf.Empty, value: {}}`,
	`{"@type": type.googleapis.com/no.such.Type}`, `{"@type": 5}`, `{"@type": ~}`, `{value: {}}`,
	"meta_protocol_proxy", "carrier", "abc", "a b", "a#b", "a #b", "a: b", "a:b", "'it''s'", `"a\tb"`, `"a\x41\u0042"`, `"a\/b"`, `"\q"`, "2001-01-01", "2001-01-01T00:00:00Z", "=", "<<", "@x", "`x", "%x", "*x", "-x", "- x", "?x", ":x", "!ignore x", "|\n  5", ">\n  5", "été", `"\ud83d\ude00"`, "a\tb", "\ta", "x: y: z", "&a", "& x", "&a &b x", "!!str !!str x", "!<tag:yaml.org,2002:str> 5", "!!binary YQ==",
	"meltemi-probe", `"@meltemi-probe"`, "[{name: tenant, string_match: {exact: a}}]", "{name: tenant, string_match: {exact: a}}", "[{name: tenant, string_match: {exact: a, prefix: b}}]", "[{name: tenant, stringMatch: {exact: a}}]", "[{name: tenant, string_match: {exact: a}, stringMatch: {exact: b}}]",
}

// probedTCP is a part of probed.
const probedTCP = `typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: m, cluster: none, idle_timeout: 0s}`

// opaqueTCP is the same in a TypedStruct.
func opaqueTCP(fields string) string {
	return `typed_config: {"@type": type.googleapis.com/xds.type.v3.TypedStruct, type_url: type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, value: {` + fields + `}}`
}

// edits change the whole file: what is replaced, and by what.
var edits = []struct{ name, old, new string }{
	{"as it is", "", ""},
	{"a byte order mark", "static_resources:\n", "\ufeffstatic_resources:\n"},
	{"a document mark", "static_resources:\n", "---\nstatic_resources:\n"},
	{"a directive", "static_resources:\n", "%YAML 1.2\n---\nstatic_resources:\n"},
	{"an empty document before", "static_resources:\n", "---\n---\nstatic_resources:\n"},
	{"a comment before", "static_resources:\n", "# nothing\n\nstatic_resources:\n"},
	{"a second document", "load_assignment: {cluster_name: v1}}\n", "load_assignment: {cluster_name: v1}}\n---\nnonsense: 1\n"},
	{"a second document that is no YAML", "load_assignment: {cluster_name: v1}}\n", "load_assignment: {cluster_name: v1}}\n---\n[\n"},
	{"an end mark", "load_assignment: {cluster_name: v1}}\n", "load_assignment: {cluster_name: v1}}\n...\n"},
	{"an end mark with more behind", "load_assignment: {cluster_name: v1}}\n", "load_assignment: {cluster_name: v1}}\n...\nnonsense\n"},
	{"no line break at the end", "load_assignment: {cluster_name: v1}}\n", "load_assignment: {cluster_name: v1}}"},
	{"an unknown field", "static_resources:\n", "static_resource: {}\nstatic_resources:\n"},
	{"an unknown field deeper", "stat_prefix: m,", "stat_prefx: m,"},
	{"camelCase", "static_resources:\n", "staticResources:\n"},
	{"camelCase within", "filter_name: meta_protocol_proxy", "filterName: meta_protocol_proxy"},
	{"CamelCase", "filter_name: meta_protocol_proxy", "FilterName: meta_protocol_proxy"},
	{"both cases", "filter_name: meta_protocol_proxy", "filter_name: meta_protocol_proxy\n          filterName: meta_protocol_proxy"},
	{"camelCase in the struct", "stat_prefix: t", "statPrefix: t"},
	{"both cases in the struct", "stat_prefix: t", "stat_prefix: t\n              statPrefix: t"},
	{"a key twice", "filter_name: meta_protocol_proxy", "filter_name: nonsense\n          filter_name: meta_protocol_proxy"},
	{"a key twice, the last is wrong", "filter_name: meta_protocol_proxy", "filter_name: meta_protocol_proxy\n          filter_name: nonsense"},
	{"a key twice in the struct", "stat_prefix: t", "stat_prefix: t\n              stat_prefix: u"},
	{"a quoted key twice", "stat_prefix: t", "stat_prefix: t\n              \"stat_prefix\": u"},
	{"two of a oneof", "address: {socket_address: {address: 127.0.0.1, port_value: 0}}", "address: {socket_address: {address: 127.0.0.1, port_value: 0}, pipe: {path: x}}"},
	{"two of a oneof, one null", "address: {socket_address: {address: 127.0.0.1, port_value: 0}}", "address: {socket_address: {address: 127.0.0.1, port_value: 0}, pipe: ~}"},
	{"no address", "    address: {socket_address: {address: 127.0.0.1, port_value: 0}}\n", "    address: {}\n"},
	{"no filter name", "      - name: meltemi\n", "      - name: \"\"\n"},
	{"no cluster name", "{name: v1, type: STATIC", "{type: STATIC"},
	{"a list where an object is wanted", "address: {socket_address: {address: 127.0.0.1, port_value: 0}}", "address: [{socket_address: {address: 127.0.0.1, port_value: 0}}]"},
	{"an object where a list is wanted", "  - {name: v1, type: STATIC, connect_timeout: 1s, load_assignment: {cluster_name: v1}}", "    {name: v1, type: STATIC, connect_timeout: 1s, load_assignment: {cluster_name: v1}}"},
	{"an object where a list is wanted, in the struct", "metadata: [{name: tenant, string_match: {exact: acme}}]", "metadata: {name: tenant, string_match: {exact: acme}}"},
	{"a port too large", "port_value: 0", "port_value: 65536"},
	{"ignored", "static_resources:\n", "!ignore unused: {filter_name: meta_protocol_proxy}\nstatic_resources:\n"},
	{"ignored, and used", "static_resources:\n", "!ignore unused: &n meta_protocol_proxy\nstatic_resources:\n"},
	{"ignored by a value's tag", "static_resources:\n", "unused: !ignore {}\nstatic_resources:\n"},
	{"ignored in the struct", "stat_prefix: t", "stat_prefix: t\n              !ignore foo: 1"},
	{"a field that is ignored", "terminal_filter: true", "!ignore terminal_filter: true"},
	{"an alias", "string_match: {exact: acme}", "string_match: {exact: &a acme}}, {name: other, string_match: {exact: *a}"},
	{"an alias as a key", "name: tenant, string_match", "name: &k string_match, *k "},
	{"an alias of a key", "name: tenant, string_match: {exact: acme}", "&k name: tenant, string_match: {exact: acme}}, {*k : other, string_match: {exact: acme}"},
	{"an alias of an object", "string_match: {exact: acme}", "string_match: &m {exact: acme}}, {name: other, string_match: *m"},
	{"an unknown alias", "exact: acme", "exact: *nobody"},
	{"an anchor twice", "string_match: {exact: acme}", "string_match: {exact: &a acme}}, {name: other, string_match: {exact: &a b}}, {name: third, string_match: {exact: *a}"},
	{"an alias of itself", "string_match: {exact: acme}", "string_match: &m {exact: acme, x: *m}"},
	{"a merge key", "string_match: {exact: acme}", "string_match: &m {exact: acme}}, {name: other, string_match: {<<: *m}"},
	{"a merge key of Envoy's messages", "filter_name: meta_protocol_proxy", "<<: {filter_name: meta_protocol_proxy}"},
	{"a complex key", "stat_prefix: t", "stat_prefix: t\n              ? [a]\n              : b"},
	{"an explicit key", "stat_prefix: t", "? stat_prefix\n              : t"},
	{"a key without a value", "stat_prefix: t", "stat_prefix: t\n              idle_timeout:"},
	{"a number as a key", "stat_prefix: t", "stat_prefix: t\n              5: b"},
	{"a tab for indentation", "              stat_prefix: t", "\t\t\t\t\t\t\tstat_prefix: t"},
	{"a tab behind the colon", "stat_prefix: t", "stat_prefix:\tt"},
	{"a tab in flow", "{exact: acme}", "{\texact:\tacme\t}"},
	{"a tab on an empty line", "stat_prefix: t\n", "stat_prefix: t\n\t\n"},
	{"wrong indentation", "              stat_prefix: t", "               stat_prefix: t"},
	{"less indentation", "              stat_prefix: t", "             stat_prefix: t"},
	{"a list without indentation", "                routes:\n                - match", "                routes:\n                - match"},
	{"flow over lines", "{exact: acme}", "{\n exact:\n acme\n}"},
	{"flow at the margin", "{exact: acme}", "{\nexact:\nacme\n}"},
	{"a trailing comma", "{exact: acme}", "{exact: acme,}"},
	{"two commas", "{exact: acme}", "{exact: acme,,}"},
	{"no space behind a colon", "{exact: acme}", "{exact:acme}"},
	{"no space behind a quoted key", "{exact: acme}", `{"exact":acme}`},
	{"an unclosed brace", "{exact: acme}", "{exact: acme"},
	{"an unclosed quote", "exact: acme", "exact: \"acme"},
	{"a comment in flow", "{exact: acme}", "{exact: acme # yes\n }"},
	{"no space before a comment", "{exact: acme}", "{exact: acme}#no"},
	{"a string over lines", "stat_prefix: t", "stat_prefix: t\n                u"},
	{"a quoted string over lines", "stat_prefix: t", "stat_prefix: \"t\n                u\""},
	{"a literal", "stat_prefix: t", "stat_prefix: |\n                t"},
	{"a literal that says how it is indented", "stat_prefix: t", "stat_prefix: |2-\n                t"},
	{"a folded string", "stat_prefix: t", "stat_prefix: >-\n                t\n                u"},
	{"colons in a string", "stat_prefix: t", "stat_prefix: t: u"},
	{"a control character", "stat_prefix: t", "stat_prefix: \"t\x01\""},
	{"a character that is no UTF-8", "stat_prefix: t", "stat_prefix: \"t\xff\""},
	{"a null character", "stat_prefix: t", `stat_prefix: "t\0u"`},
	{"a non-breaking space", "stat_prefix: t", "stat_prefix:\u00a0t"},
	{"a line separator", "stat_prefix: t", "stat_prefix: t\u2028u: v"},
	{"next line", "stat_prefix: t", "stat_prefix: t\u0085u"},
	{"a type without a host", `"@type": type.googleapis.com/google.protobuf.Struct`, `"@type": google.protobuf.Struct`},
	{"another host", `"@type": type.googleapis.com/google.protobuf.Struct`, `"@type": example.org/google.protobuf.Struct`},
	{"the type last", "            \"@type\": type.googleapis.com/google.protobuf.Struct\n            value: {path: \"@meltemi-probe\"}", "            value: {path: \"@meltemi-probe\"}\n            \"@type\": type.googleapis.com/google.protobuf.Struct"},
	{"the type without quotes", `            "@type": type.googleapis.com/google.protobuf.Struct`, "            @type: type.googleapis.com/google.protobuf.Struct"},
	{"no type", "            \"@type\": type.googleapis.com/google.protobuf.Struct\n            value:\n", "            value:\n"},
	{"an unknown type", "google.protobuf.Struct", "google.protobuf.Structure"},
	{"a message of ours", "type.googleapis.com/google.protobuf.Struct\n            value:\n", proxyType + "\n            value:\n"},
	{"a field beside the value", "            value: {path: \"@meltemi-probe\"}", "            value: {path: \"@meltemi-probe\"}\n            more: 1"},
	{"an xds TypedStruct", "type.googleapis.com/google.protobuf.Struct\n            value:\n", "type.googleapis.com/xds.type.v3.TypedStruct\n            type_url: " + proxyType + "\n            value:\n"},
	{"a udpa TypedStruct", "type.googleapis.com/google.protobuf.Struct\n            value:\n", "type.googleapis.com/udpa.type.v1.TypedStruct\n            type_url: " + proxyType + "\n            value:\n"},
	{"a TypedStruct of another type", "type.googleapis.com/google.protobuf.Struct\n            value:\n", "type.googleapis.com/udpa.type.v1.TypedStruct\n            type_url: x/google.protobuf.Empty\n            value:\n"},
	{"a TypedStruct in camelCase", "type.googleapis.com/google.protobuf.Struct\n            value:\n", "type.googleapis.com/xds.type.v3.TypedStruct\n            typeUrl: " + proxyType + "\n            value:\n"},
	{"a TypedStruct for an extension", probedTCP, opaqueTCP("stat_prefix: m, cluster: none")},
	{"a TypedStruct with an unknown field", probedTCP, opaqueTCP("stat_prefix: m, cluster: none, nonsense: 1")},
	{"a TypedStruct with a wrong value", probedTCP, opaqueTCP("stat_prefix: 5, cluster: none")},
	{"a TypedStruct that lacks a field", probedTCP, opaqueTCP("cluster: none")},
	{"a TypedStruct of an unknown type", probedTCP, edited(opaqueTCP("cluster: none"), "TcpProxy", "TcpProxies")},
	{"a TypedStruct that is none for an extension", "name: l\n", "name: l\n    metadata: {typed_filter_metadata: {a: " + edited(opaqueTCP("nonsense: 1"), "typed_config: ", "") + "}}\n"},
	{"a TypedStruct in the wrong place", "      - name: envoy.filters.network.tcp_proxy\n", "      - name: again\n        " + opaqueTCP("stat_prefix: m, cluster: none") + "\n      - name: envoy.filters.network.tcp_proxy\n"},
	{"a default chain only", "    filter_chains:\n    - filters:\n      - name: meltemi\n", "    default_filter_chain:\n      filters:\n      - name: meltemi\n"},
	{"a filter instead of a list of one", "      - name: meltemi\n", "        name: meltemi\n"},
	{"a carrier instead of a list of one", "  clusters:\n", `  - {name: c, address: {pipe: {path: "@c"}}, filter_chains: {filters: {name: c, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.dynamic_modules.v3.DynamicModuleNetworkFilter, dynamic_module_config: {name: meltemi}, filter_name: carrier, filter_config: {"@type": type.googleapis.com/google.protobuf.Struct, value: {path: "@c"}}}}}}
  clusters:
`},
	{"a number too large for a double", "name: tenant, string_match: {exact: acme}", "name: tenant, range_match: {start: 1e400, end: 5}"},
	{"no codec", ", codec: {name: aeraki.meta_protocol.codec.brpc}", ""},
	{"an unknown codec", "codec.brpc", "codec.nope"},
	{"an Any in the struct", "codec: {name: aeraki.meta_protocol.codec.brpc}", `codec: {name: aeraki.meta_protocol.codec.brpc, config: {"@type": type.googleapis.com/google.protobuf.Struct, value: {}}}`},
	{"a filter in the wrong place", "      - name: envoy.filters.network.tcp_proxy\n", "      - name: again\n        typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: m, cluster: none}\n      - name: envoy.filters.network.tcp_proxy\n"},
	{"a carrier that ends the chain", "filter_name: carrier", "filter_name: carrier\n          terminal_filter: true"},
}

// blocks are what a Struct may be written as: lines behind a colon.
var blocks = []string{
	"\n  b : c", "\n  b:  c  ", "\n  b: c\t", "\n  b:\tc", "\n  b\t: c", "\n\tb: c", "\n  b: c\n\t\n  d: e", "\n  b: c\n\t# x\n  d: e", "\n  b: c # x", "\n  b: c\t# x", "\n# x\n  b: c", "\n      # x\n  b: c",
	"\n  b:\n  - c\n  - d", "\n  b:\n  -\tc", "\n  b:\n  - - c\n    - d", "\n  b:\n  -\n  - ~", "\n  b: - c", "\n  b:\n    - c: d\n      e: f", "\n  b:\n    - c: d\n     e: f", "\n  b:\n    - c\n   - d", "\n  b:\n    c: d\n   e: f", "\n  b:\n  c: d", "\n  b:\nc: d",
	"\n  ? b\n  : c", "\n  ? b", "\n  : c", "\n  ? - b\n  : c", "\n  [b]: c", "\n  {b: c}: d", "\n  \"b\": c", "\n  'b': c", "\n  'b' : c", "\n  \"b\":c", "\n  b:c", "\n  b:c: d", "\n  b: c:d", "\n  b: c: d", "\n  b: \"c\": d", "\n  b: 'c' d", "\n  b: 'c' # d", "\n  b: 'c'# d", "\n  b: [c] d", "\n  b: {c: d} e",
	"\n  b: c\n    d", "\n  b: c\n  d", "\n  b: c\n\n    d", "\n  b:\n    c\n    d", "\n  b: c\n    # x\n    d", "\n  b: c # x\n    d", "\n  b: 'c\n    d'", "\n  b: 'c\n d'", "\n  b: 'c\nd'", "\n  b: \"c\\\n    d\"", "\n  b: \"c\n\n  d\"", "\n  b: \"c\n---\n  d\"", "\n  \"b\n  c\": d",
	"\n  b: |\n    c\n  d: e", "\n  b: |\n    c\n   d", "\n  b: |\n   c\n    d", "\n  b: |\n\n\n    c", "\n  b: |\n     \n    c", "\n  b: |+\n    c\n\n", "\n  b: |-\n    c", "\n  b: |1\n   c", "\n  b: |2-\n    c", "\n  b: |-2\n    c", "\n  b: |0\n    c", "\n  b: |12\n    c", "\n  b: |x\n    c", "\n  b: | # x\n    c", "\n  b: |# x\n    c", "\n  b: |", "\n  b: |\n  \tc", "\n  b: |\n\tc", "\n  b: >\n    c\n      d\n    e", "\n  b: |\n    c: d\n    - e", "\n  b: |\n  c: d",
	" {b: c, d: e}", " {b: c,\n  d: e}", " {b: c\n  , d: e}", " {b: c,\nd: e}", " {b: c, # x\n  d: e}", " {b: c,# x\n  d: e}", " {b: c\n  # x\n  }", " {b: c\n    d}", " {b: 'c'\n    }", " {\tb: c}", " {b: c\t}", " {\n\tb: c\n\t}", " {b: [c, [d]], e: {f: {}}}", " {b: [c d, e]}", " {b: [c,d]}", " {b: [c,,d]}", " {b: [,]}", " {b: [c,]}", " {b: c,}", " {,}", " {b, c: d}", " {b: , c: d}", " {b:, c: d}", " {b:c}", " {b: c:d}", " {b: c: d}", " {'b':c}", " {\"b\":\"c\"}", " {\"b\":[1]}", " {\"b\":{}}", " {b:{}}", " {b:[]}", " {b: [c: d]}", " {b: [c: d, e: f]}", " {b: [? c : d]}", " {b: [: d]}", " {? b : c}", " {? b}", " {: c}", " {b: c]", " {b: [c}", " {b: c}}", " {b: c} d: e", " {b: - c}", " {b: -c}", " {b: [-]}", " {b: [- c]}", " {b: [-, c]}", " {b: ?c}", " {b: [?]}", " {b: :c}", " {b: [:]}", " {b: [a:]}", " {b: [a?]}", " {b: a{c}", " {b: a[c}", " {b: a,c}", " {b: a#c}", " {b: |\n  c\n}", " {b: 'it''s'}", " {b: \"c\\\"d\"}", " {b: @c}", " {b: `c}", " {b: %c}", " {b: !c d}", " {b: !!str}", " {b: !!str, c: d}", " {b: &x c, d: *x}", " {b: &x c, d: *x }", " {b: &x, c: *x}", " {b: *x}", " {b: &x [*x]}", " {&x b: c, d: *x}", " {b: & c}", " {b: &x &y c}", " {b: &x !!str c}", " {b: !!str &x c}", " {b: !!map {}}", " {b: !foo [c]}", " {b: !!set {c}}", " {!ignore b: c}", " {!ignore b: {!ignore c: d}}", " {\"b\" : c}", " {b: c, b: d}",
	" &x {b: c}", " &x\n  b: c", " !!map\n  b: c", " !!map {b: c}", " !foo\n  b: c", " &x !!map\n  b: c", "\n  &x\n  b: c", "\n  &x b: c", "\n  &x b: &y c", "\n  b: &x\n    c: d\n  e: *x", "\n  b: &x c\n  *x : d", "\n  b: &x c\n  *x: d", "\n  b: !!str\n  c: d", "\n  !!str b: c", "\n  b: &x-y.z c", "\n  b: &x: c", "\n  b: *nobody", "\n  <<: {c: d}", "\n  <<: &x {c: d}\n  <<: *x",
	"\n  b: \"\\0\\a\\b\\t\\n\\v\\f\\r\\e\\ \\\"\\/\\\\\\N\\_\\L\\P\"", "\n  b: \"\\x4\"", "\n  b: \"\\x41\\u0041\\U00000041\"", "\n  b: \"\\ud83d\\ude00\"", "\n  b: \"\\ud83d\"", "\n  b: \"\\U0011ffff\"", "\n  b: \"\\'\"", "\n  b: '\\q'", "\n  b: \\q", "\n  b: \"\\\tc\"", "\n  b: \"/ \\/ \\\\/\"", "\n  b: c\\/d",
	"\n  b: @c", "\n  b: `c", "\n  b: %c", "\n  %b: c", "\n  @b: c", "\n  b: ,c", "\n  b: ]", "\n  b: }", "\n  b: a]b}c,d", "\n  b: [", "\n  b: *", "\n  b: &", "\n  b: !", "\n  b: |c", "\n  b: >c", "\n  b: -", "\n  b: --", "\n  b: ---", "\n  b: ...", "\n  b: ?", "\n  b: ? c", "\n  b: :", "\n  b: ::", "\n  b: c:", "\n  b: ~c", "\n  b: =", "\n  -b: c", "\n  - b", "\n  -", "\n  b", "\n  b c: d", "\n  b#c: d", "\n  b #c: d", "\n  ~: c", "\n  null: c", "\n  yes: c\n  true: d", "\n  5: c\n  0x5: d", "\n  '': c", "\n  ? ''\n  : c", "\n  ? |\n    b\n  : c", "\n  b: \u00a0c", "\n  \u00e9: \u65e5\u672c", "\n  b: c\ufeffd", "\n  b: \U0001f600", "\n  b: c\x00d", "\n  b: c\x04d", "\n  b: c\x0bd", "\n  b: c\x7fd", "\n  b: c\xc3(d", "\n  b: c\u2028d",
	"\n  " + strings.Repeat("b", 1000) + ": c", "\n  " + strings.Repeat("b", 1100) + ": c", " {" + strings.Repeat("b", 1100) + ": c}", " {\"" + strings.Repeat("b", 1100) + "\": c}", " {b: " + strings.Repeat("[", 80) + strings.Repeat("]", 80) + "}", " {b: " + strings.Repeat("[", 100) + strings.Repeat("]", 100) + "}",
}

// jsonEdits are those of probedJSON.
var jsonEdits = []struct{ name, old, new string }{
	{"as it is", "", ""},
	{"a byte order mark", `{"static_resources"`, "\ufeff" + `{"static_resources"`},
	{"a slash", "type.googleapis.com/", `type.googleapis.com\/`},
	{"a comment", `"stat_prefix": "t"`, `"stat_prefix": "t" /* no */`},
	{"a trailing comma", `"stat_prefix": "t",`, `"stat_prefix": "t",,`},
	{"a comma before a brace", `"terminal_filter": true,`, `"terminal_filter": true, "filter_names": {},`},
	{"a comma at the end of an object", `"exact": "acme"}`, `"exact": "acme",}`},
	{"a comma at the end of a list", `"route": {"cluster": "v1"}}]`, `"route": {"cluster": "v1"}},]`},
	{"a comma alone", `{"cluster_name": "v1"}`, `{,}`},
	{"single quotes", `"stat_prefix": "t"`, `'stat_prefix': 't'`},
	{"no quotes", `"stat_prefix": "t"`, `stat_prefix: "t"`},
	{"no quotes around a value", `"stat_prefix": "t"`, `"stat_prefix": t`},
	{"a name that begins with a digit", `"stat_prefix": "t"`, `"stat_prefix": "t", 5a: 1`},
	{"a key twice", `"filter_name": "carrier"`, `"filter_name": "x", "filter_name": "carrier"`},
	{"a message twice", `"pipe": {"path": "@meltemi-probe"}`, `"pipe": {"path": "@meltemi-probe"}, "pipe": {"mode": 384}`},
	{"a wrapper twice", `"name": "v1", "type"`, `"name": "v1", "per_connection_buffer_limit_bytes": 5, "per_connection_buffer_limit_bytes": 6, "type"`},
	{"a list twice", `"clusters": [`, `"clusters": [{"name": "v2", "type": "STATIC"}], "clusters": [`},
	{"a key twice in the struct", `"stat_prefix": "t"`, `"stat_prefix": "t", "stat_prefix": "t"`},
	{"both cases", `"filter_name": "carrier"`, `"filterName": "x", "filter_name": "carrier"`},
	{"null in a list", `"clusters": [`, `"clusters": [null, `},
	{"null in a list of the struct", `"routes": [`, `"routes": [null, `},
	{"a list in a list", `"clusters": [{"name": "v1", "type": "STATIC", "connect_timeout": "1s", "load_assignment": {"cluster_name": "v1"}}]`, `"clusters": [[{"name": "v1", "type": "STATIC", "connect_timeout": "1s", "load_assignment": {"cluster_name": "v1"}}]]`},
	{"an element for a list", `"clusters": [{"name": "v1", "type": "STATIC", "connect_timeout": "1s", "load_assignment": {"cluster_name": "v1"}}]`, `"clusters": {"name": "v1", "type": "STATIC", "connect_timeout": "1s", "load_assignment": {"cluster_name": "v1"}}`},
	{"a bool as a string", `"do_not_close": true`, `"do_not_close": "true"`},
	{"a bool as T", `"do_not_close": true`, `"do_not_close": "T"`},
	{"a bool as a number", `"do_not_close": true`, `"do_not_close": 1`},
	{"yes", `"do_not_close": true`, `"do_not_close": yes`},
	{"True", `"do_not_close": true`, `"do_not_close": True`},
	{"a number as a string", `"port_value": 0`, `"port_value": "0"`},
	{"a number with an exponent", `"port_value": 0`, `"port_value": 1e2`},
	{"a number with a fraction", `"port_value": 0`, `"port_value": 1.5`},
	{"a whole number with a fraction", `"port_value": 0`, `"port_value": 1.0`},
	{"a leading zero", `"port_value": 0`, `"port_value": 010`},
	{"a plus", `"port_value": 0`, `"port_value": +1`},
	{"hexadecimal", `"port_value": 0`, `"port_value": 0x10`},
	{"minus zero", `"port_value": 0`, `"port_value": -0`},
	{"a point first", `"port_value": 0`, `"port_value": .5`},
	{"a point last", `"port_value": 0`, `"port_value": 5.`},
	{"too large", `"port_value": 0`, `"port_value": 1e400`},
	{"NaN", `"port_value": 0`, `"port_value": NaN`},
	{"a string for an enum", `"STATIC"`, `"static"`},
	{"a number for an enum", `"STATIC"`, `0`},
	{"a number in a string for an enum", `"STATIC"`, `"0"`},
	{"an unknown number for an enum", `"STATIC"`, `77`},
	{"a number for a string", `"cluster_name": "v1"`, `"cluster_name": 1`},
	{"a number for a duration", `"connect_timeout": "1s"`, `"connect_timeout": 1`},
	{"an object for a duration", `"connect_timeout": "1s"`, `"connect_timeout": {"seconds": 1}`},
	{"an escape", `"stat_prefix": "t"`, `"stat_prefix": "\u0074"`},
	{"an escape in capitals", `"stat_prefix": "t"`, `"stat_prefix": "\U0074"`},
	{"an unknown escape", `"stat_prefix": "t"`, `"stat_prefix": "\x74"`},
	{"an escaped single quote", `"stat_prefix": "t"`, `"stat_prefix": "\'"`},
	{"a surrogate pair", `"stat_prefix": "t"`, `"stat_prefix": "\ud83d\ude00"`},
	{"half a pair", `"stat_prefix": "t"`, `"stat_prefix": "\ud83d"`},
	{"the other half", `"stat_prefix": "t"`, `"stat_prefix": "\ude00"`},
	{"a line break in a string", `"stat_prefix": "t"`, "\"stat_prefix\": \"t\nu\""},
	{"a tab in a string", `"stat_prefix": "t"`, "\"stat_prefix\": \"t\tu\""},
	{"no UTF-8", `"stat_prefix": "t"`, "\"stat_prefix\": \"t\xff\""},
	{"no UTF-8 in a key", `"stat_prefix": "t"`, "\"stat_prefix\": \"t\", \"t\xff\": 1"},
	{"something behind", "]\n}}\n", "]\n}} x\n"},
	{"another object behind", "]\n}}\n", "]\n}} {}\n"},
	{"cut", "]\n}}\n", "]\n}\n"},
	{"a number that is not exact", `"string_match": {"exact": "acme"}`, `"range_match": {"start": 9007199254740992, "end": 9007199254740993}`},
	{"a large number that is exact", `"string_match": {"exact": "acme"}`, `"range_match": {"start": 1, "end": 9007199254740991}`},
	{"a large number in a string", `"string_match": {"exact": "acme"}`, `"range_match": {"start": "9007199254740992", "end": "9007199254740993"}`},
	{"a phone number", `"exact": "acme"`, `"exact": 13800138000`},
	{"an unknown field", `"terminal_filter": true`, `"terminal_filter": true, "x": 1`},
	{"an unknown field that is null", `"terminal_filter": true`, `"terminal_filter": true, "x": null`},
	{"null for a string", `"filter_name": "carrier"`, `"filter_name": null`},
	{"a type twice", `"@type": "type.googleapis.com/google.protobuf.Struct"`, `"@type": "type.googleapis.com/google.protobuf.Struct", "@type": "type.googleapis.com/google.protobuf.Struct"`},
	{"a value twice", `"value": {"path": "@meltemi-probe"}`, `"value": {"path": "@meltemi-probe"}, "value": {"path": "@meltemi-probe"}`},
	{"an extension", `"terminal_filter": true`, `"terminal_filter": true, "[x.y]": 1`},
	{"deep", `"terminal_filter": true`, `"terminal_filter": true, "x": ` + strings.Repeat("[", 90) + strings.Repeat("]", 90)},
	{"YAML", `"stat_prefix": "t",`, "stat_prefix: t\n"},
}

// inStrings are what a configuration that is written into a string may be.
var inStrings = []struct {
	name   string
	change func(string) string
}{
	{"as it is", func(s string) string { return s }},
	{"something behind", func(s string) string { return s + "x" }},
	{"twice", func(s string) string { return s + s }},
	{"YAML", func(string) string { return "stat_prefix: t" }},
	{"nothing", func(string) string { return "" }},
	{"a space before", func(s string) string { return " " + s }},
	{"a byte order mark", func(s string) string { return "\ufeff" + s }},
	{"a key twice", func(s string) string { return edited(s, `"name": "r"`, `"name": "r", "name": "r"`) }},
	{"a trailing comma", func(s string) string { return edited(s, `"exact": "acme"`, `"exact": "acme",`) }},
	{"single quotes", func(s string) string { return edited(s, `"acme"`, `'acme'`) }},
	{"a number that is not exact", func(s string) string {
		return edited(s, `"string_match": {"exact": "acme"}`, `"range_match": {"start": 1, "end": 9007199254740993}`)
	}},
}

// edited is a text with one part replaced.
func edited(text, part, by string) string {
	if !strings.Contains(text, part) {
		panic("no such part: " + part)
	}
	return strings.Replace(text, part, by, 1)
}

// probes are those that people write by hand, and every so many of those that
// put each value everywhere.
func probes(every int) (all []probe) {
	add := func(name, file, text string) { all = append(all, probe{name, file, text}) }
	for _, e := range edits {
		add("YAML, "+e.name, "probe.yaml", edited(probed, e.old, e.new))
	}
	for _, e := range jsonEdits {
		text := edited(probedJSON, e.old, e.new)
		add("JSON, "+e.name, "probe.json", text)
		if e.name != "both cases" { // of YAML it is chance which of them counts
			add("JSON as YAML, "+e.name, "probe.yml", text)
		}
	}
	add("CRLF", "probe.yaml", strings.ReplaceAll(probed, "\n", "\r\n"))
	add("CR", "probe.yaml", strings.ReplaceAll(probed, "\n", "\r"))
	add("UTF-16", "probe.yaml", utf16(probed))
	add("empty", "probe.yaml", "")
	add("a list", "probe.yaml", "- a\n")
	add("a string", "probe.yaml", "a\n")
	add("YAML without its name", "probe.conf", probed)
	add("JSON without its name", "probe", probedJSON)
	add("YAML in capitals", "PROBE.YAML", probed)
	add("YAML called JSON", "probe.json", probed)
	for _, e := range inStrings {
		text := e.change(configJSON)
		for form, value := range map[string]string{"StringValue": text, "BytesValue": base64.StdEncoding.EncodeToString([]byte(text))} {
			config := fmt.Sprintf(`{"@type": "type.googleapis.com/google.protobuf.%s", "value": %q}`, form, value)
			add(form+", "+e.name, "probe.json", edited(probedJSON, structJSON, config))
		}
	}
	for name, m := range serialized() {
		binary, err := proto.Marshal(m)
		if err != nil {
			panic(err)
		}
		inText, err := prototext.Marshal(m)
		if err != nil {
			panic(err)
		}
		add("binary, "+name, "probe.pb", string(binary))
		add("binary in capitals, "+name, "probe.PB", string(binary))
		add("binary called JSON, "+name, "probe.pb_length_delimited", string(binary))
		add("text, "+name, "probe.pb_text", string(inText))
		add("text with an unknown field, "+name, "probe.pb_text", "nonsense: 1 "+string(inText))
		add("binary with an unknown field, "+name, "probe.pb", string(protowire.AppendVarint(protowire.AppendTag(binary, 2015, protowire.VarintType), 1)))
	}
	add("YAML called binary", "probe.pb", probed)
	add("YAML called text", "probe.pb_text", probed)
	i := 0
	sample := func(name, text string) {
		if i++; i%every == 0 {
			add(name, "probe.yaml", text)
		}
	}
	for _, b := range blocks {
		text := "metadata:\n      filter_metadata:\n        a:" + strings.ReplaceAll(b, "\n", "\n          ")
		sample(fmt.Sprintf("block: %.100q", b), edited(probed, "name: l\n", "name: l\n    "+text+"\n"))
	}
	for _, s := range sites {
		for _, v := range values {
			sample(s.name+": "+v, edited(probed, s.old, fmt.Sprintf(s.new, v)))
		}
	}
	return all
}

// serialized are variants of probedJSON as messages.
func serialized() map[string]*bootstrapv3.Bootstrap {
	all := map[string]*bootstrapv3.Bootstrap{}
	vary := func(name string, change func(m *bootstrapv3.Bootstrap, filter *modulesv3.DynamicModuleNetworkFilter)) {
		m, filter := new(bootstrapv3.Bootstrap), new(modulesv3.DynamicModuleNetworkFilter)
		if err := protojson.Unmarshal([]byte(probedJSON), m); err != nil {
			panic(err)
		}
		typed := m.StaticResources.Listeners[0].FilterChains[0].Filters[0].GetTypedConfig()
		if err := typed.UnmarshalTo(filter); err != nil {
			panic(err)
		}
		change(m, filter)
		if err := typed.MarshalFrom(filter); err != nil {
			panic(err)
		}
		all[name] = m
	}
	in := func(v proto.Message) *anypb.Any {
		a, err := anypb.New(v)
		if err != nil {
			panic(err)
		}
		return a
	}
	type (
		bootstrap = bootstrapv3.Bootstrap
		module    = modulesv3.DynamicModuleNetworkFilter
	)
	vary("as it is", func(*bootstrap, *module) {})
	vary("a cluster without a name", func(m *bootstrap, _ *module) { m.StaticResources.Clusters[0].Name = "" })
	vary("a filter that is none", func(_ *bootstrap, f *module) { f.FilterName = "x" })
	vary("JSON in a string", func(_ *bootstrap, f *module) { f.FilterConfig = in(wrapperspb.String(configJSON)) })
	vary("something else in a string", func(_ *bootstrap, f *module) { f.FilterConfig = in(wrapperspb.String("x")) })
	vary("JSON in bytes", func(_ *bootstrap, f *module) { f.FilterConfig = in(wrapperspb.Bytes([]byte(configJSON))) })
	vary("a type that the module does not know", func(_ *bootstrap, f *module) { f.FilterConfig = in(durationpb.New(time.Second)) })
	vary("no type of a filter", func(m *bootstrap, _ *module) {
		m.StaticResources.Listeners[1].FilterChains[0].Filters[0].GetTypedConfig().TypeUrl = ""
	})
	vary("the module's message", func(_ *bootstrap, f *module) {
		p, err := config.Parse([]byte(configJSON))
		if err != nil {
			panic(err)
		}
		f.FilterConfig = in(p)
	})
	vary("the module's message, wrong", func(_ *bootstrap, f *module) {
		p, err := config.Parse([]byte(configJSON))
		if err != nil {
			panic(err)
		}
		p.StatPrefix = ""
		f.FilterConfig = in(p)
	})
	return all
}

func utf16(s string) string {
	b := []byte{0xff, 0xfe}
	for _, c := range []byte(s) {
		b = append(b, c, 0)
	}
	return string(b)
}

// TestCheckSaysWhatEnvoySays: the verdicts of `meltemi check` and of Envoy on
// what people write, and mistype, are the same.
func TestCheckSaysWhatEnvoySays(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		every := 16
		if *matrix == "full" {
			every = 5
		}
		all := probes(every)
		work := make(chan probe)
		var wg sync.WaitGroup
		var took atomic.Int64
		for range runtime.GOMAXPROCS(0) {
			dir := t.TempDir()
			wg.Go(func() {
				for p := range work {
					file := filepath.Join(dir, p.file)
					if err := os.WriteFile(file, []byte(p.text), 0o600); err != nil {
						t.Error(err)
						continue
					}
					r := check.File(file, []byte(p.text))
					ours := len(r.Faults) == 0 && len(r.Found) > 0
					theirs, said := validate(v, file)
					if theirs {
						took.Add(1)
					}
					if ours != theirs {
						t.Errorf("%s: check takes it: %v, Envoy takes it: %v\ncheck: %v\nEnvoy: %s\n%s", p.name, ours, theirs, r.Faults, said, p.text)
					}
				}
			})
		}
		for _, p := range all {
			work <- p
		}
		close(work)
		wg.Wait()
		t.Logf("%d probes, of which Envoy took %d", len(all), took.Load())
		require.Greater(t, int(took.Load()), len(all)/5)
		require.Less(t, int(took.Load()), len(all)*4/5)
	})
}

// validate asks Envoy.
func validate(v variant, file string) (ok bool, said string) {
	o := v.options()
	cmd := exec.Command(o.Bin, "--mode", "validate", "-c", file, "--disable-hot-restart", "--concurrency", "1", "-l", "error")
	cmd.Env = append(os.Environ(), "ENVOY_DYNAMIC_MODULES_SEARCH_PATH="+o.Modules)
	out, err := cmd.CombinedOutput()
	return err == nil, string(out[:min(len(out), 1500)])
}
