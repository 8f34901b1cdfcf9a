package filters_test

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/brpc/brpctest"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/codecs/trpc/trpctest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

var chaos = flag.Int("chaos", 5, "how many rounds of TestUpdatesInTheMiddle each protocol has")

// speech is what clients and servers of a protocol say.
type speech struct {
	codec  string
	frames func(rng *rand.Rand, id int) []byte // of a client
	serve  func(s *filtertest.Server, b []byte) int
}

func thrift(kind byte, method string, id int, rest string) []byte {
	b := append([]byte{0x80, 1, 0, kind}, binary.BigEndian.AppendUint32(nil, uint32(len(method)))...)
	b = append(append(binary.BigEndian.AppendUint32(append(b, method...), uint32(id)), rest...), 0)
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
}

var speeches = map[string]speech{
	"dubbo": {
		codec: "dubbo",
		frames: func(rng *rand.Rand, id int) []byte {
			switch rng.IntN(8) {
			case 0:
				return dubbotest.Heartbeat(uint64(id))
			case 1:
				return dubbotest.Frame(0xc2, 0, uint64(id), []byte{'N'}) // malformed
			}
			return dubbotest.Request{
				ID: uint64(id), Oneway: rng.IntN(5) == 0, Method: []string{"sayHello", "slow", "none"}[rng.IntN(3)],
				Attachments: [][2]string{{"tenant", fmt.Sprint("t", rng.IntN(3))}, {"x-envoy-fault-delay-request", fmt.Sprint(rng.IntN(100))}},
			}.Bytes()
		},
		serve: func(s *filtertest.Server, b []byte) int {
			calls, rest := dubbotest.Parse(b)
			for _, c := range calls {
				if c.Flags&0x60 == 0x40 {
					s.Send(dubbotest.Response(c.ID, "served"))
				}
			}
			return len(b) - len(rest)
		},
	},
	"thrift": {
		codec: "thrift",
		frames: func(rng *rand.Rand, id int) []byte {
			kind, method := byte(1), []string{"sayHello", "slow", "none", "hidden"}[rng.IntN(4)]
			if rng.IntN(5) == 0 {
				kind = 4
			}
			return thrift(kind, method, id*rng.IntN(2), "")
		},
		serve: func(s *filtertest.Server, b []byte) int {
			n := 0
			for len(b) >= n+12 {
				size := 4 + int(binary.BigEndian.Uint32(b[n:]))
				if len(b) < n+size {
					break
				}
				f := b[n : n+size]
				n += size
				l := int(binary.BigEndian.Uint32(f[8:]))
				method, id := string(f[12:12+l]), int(binary.BigEndian.Uint32(f[12+l:]))
				if f[7] == 1 && method != "hidden" {
					s.Send(thrift(2, method, id, ""))
				}
			}
			return n
		},
	},
	"trpc": {
		codec: "trpc",
		frames: func(rng *rand.Rand, id int) []byte {
			r := trpctest.Request{ID: uint32(id), Oneway: rng.IntN(5) == 0, TransInfo: [][2]string{{"tenant", fmt.Sprint("t", rng.IntN(3))}}}
			switch rng.IntN(6) {
			case 0:
				return r.Init()
			case 1:
				return trpctest.StreamFrame(trpctest.Data, uint32(max(1, id-1-rng.IntN(3))), []byte("data"))
			case 2:
				return trpctest.CloseFrame(uint32(max(1, id-1-rng.IntN(3))), rng.IntN(2) == 0, 0, "")
			}
			return r.Bytes()
		},
		serve: func(s *filtertest.Server, b []byte) int {
			frames, rest := trpctest.Parse(b, true)
			for _, f := range frames {
				switch {
				case f.Stream && f.Kind == trpctest.Init:
					s.Send(trpctest.Response{ID: f.FixedID}.Init())
				case f.Stream && f.Kind == trpctest.Data:
					s.Send(trpctest.StreamFrame(trpctest.Data, f.FixedID, []byte("back")))
				case !f.Stream && !f.Oneway:
					s.Send(trpctest.Response{ID: f.ID}.Bytes())
				}
			}
			return len(b) - len(rest)
		},
	},
	"brpc": {
		codec: "brpc",
		frames: func(rng *rand.Rand, id int) []byte {
			return brpctest.Request{ID: uint64(id), UserFields: [][2]string{{"tenant", fmt.Sprint("t", rng.IntN(3))}}}.Bytes()
		},
		serve: func(s *filtertest.Server, b []byte) int {
			frames, rest := brpctest.Parse(b)
			for _, f := range frames {
				s.Send(brpctest.Response{ID: f.ID}.Bytes())
			}
			return len(b) - len(rest)
		},
	},
}

// one is a filter of some configuration.
func one(rng *rand.Rand, name string) string {
	pick := func(of ...string) string { return of[rng.IntN(len(of))] }
	share := pick(`{"numerator": 100}`, `{"numerator": 50}`, `{}`)
	config := map[string]string{
		"connection_limit": `"stat_prefix": "s", "max_connections": "` + pick("3", "6") + `", "max_connections_per_address": "4", "delay": "` + pick("0s", "0.1s") + `"`,
		"set_metadata":     `"entries": [{"name": "x-client", "format": "%REQ(tenant)%"}]`,
		"fault": `"delay": {"fixed_delay": "` + pick("0.02s", "0.2s") + `", "percentage": ` + share + `}, "abort": {"reply": {"body": "no"}, "percentage": {"numerator": ` + pick("0", "10") + `}},
			"max_active_faults": ` + pick("2", "100"),
		"rbac": `"rules": {"action": "DENY", "policies": {"p": {"permissions": [{"header": {"name": "method", "string_match": {"exact": "none"}}}], "principals": [{"any": true}]}}}`,
		"local_ratelimit": `"stat_prefix": "s", "token_bucket": {"max_tokens": ` + pick("5", "500") + `, "fill_interval": "0.1s"},
			"descriptors": [{"names": ["tenant"], "token_bucket": {"max_tokens": 4, "tokens_per_fill": 4, "fill_interval": "0.1s"}}]`,
		"ratelimit": `"domain": "d", "timeout": "` + pick("0.02s", "0.2s") + `", "rate_limit_service": {"grpc_service": {"envoy_grpc": {"cluster_name": "limits"}}}, "descriptors": [{"property": "method", "descriptor_key": "m"}]`,
		"rate_limit_quota": `"domain": "d", "rlqs_server": {"envoy_grpc": {"cluster_name": "limits"}}, "buckets": [
			{"bucket_id_builder": {"tenant": {"property": "tenant"}}, "reporting_interval": "1s"}]`,
		"adaptive_concurrency": `"gradient_controller_config": {"concurrency_limit_params": {"initial_concurrency_limit": ` + pick("3", "50") + `}}, "keys": {"names": ["tenant"], "max_keys": 2}`,
		"ext_authz":            `"grpc_service": {"envoy_grpc": {"cluster_name": "limits"}, "timeout": "` + pick("0.02s", "0.2s") + `"}, "failure_mode_allow": ` + pick("true", "false"),
		"metadata_exchange":    `"node_id": "n"`,
		"lua": `"default_source_code": {"inline_string": "n = 0 function envoy_on_request(h) n = n + 1 if h:headers():get('tenant') == 't2' then ` +
			pick(`h:respond({status = 'DENIED'}, 'no')`, `error(n)`, `h:headers():replace('lane', n .. '')`, `while true do end`) +
			` end end function envoy_on_response(h) h:headers():remove('load') end"}, "max_instructions": 1000, "failure_mode_deny": ` + pick("true", "false"),
	}[name]
	of := map[string]string{
		"connection_limit": "ConnectionLimit", "set_metadata": "SetMetadata", "fault": "Fault", "rbac": "RBAC", "local_ratelimit": "LocalRateLimit", "ratelimit": "RateLimit",
		"rate_limit_quota": "RateLimitQuota", "adaptive_concurrency": "AdaptiveConcurrency", "ext_authz": "ExtAuthz", "metadata_exchange": "MetadataExchange", "lua": "Lua",
	}[name]
	return `{"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.` + name + `.v1alpha.` + of + `", ` + config + `}`
}

var every = []string{
	"connection_limit", "set_metadata", "fault", "rbac", "local_ratelimit", "ratelimit", "rate_limit_quota", "adaptive_concurrency", "ext_authz", "metadata_exchange", "lua",
}

const prefix = "aeraki.meta_protocol.filters."

// version is a configuration with filters in any order, some of them twice, and routes
// that say something else to some.
func (s *speech) version(rng *rand.Rand, log string) string {
	var chain, perRoute []string
	for _, i := range rng.Perm(2 * len(every)) {
		if name := every[i%len(every)]; rng.IntN(3) == 0 {
			chain = append(chain, fmt.Sprintf(`{"name": %q, "config": %s}`, prefix+name, one(rng, name)))
			if !strings.Contains(strings.Join(perRoute, ""), `"`+prefix+name+`"`) && rng.IntN(2) == 0 {
				c := `{"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": true}`
				if slices.Contains([]string{"fault", "local_ratelimit", "adaptive_concurrency"}, name) {
					c = one(rng, name)
				}
				perRoute = append(perRoute, fmt.Sprintf(`%q: %s`, prefix+name, c))
			}
		}
	}
	chain = append(chain, fmt.Sprintf(`{"name": %q}`, prefix+"router"))
	timeout := []string{"0.05s", "1s"}[rng.IntN(2)]
	return `{"stat_prefix": "t", "protocol": {"name": "p", "codec": {"name": "aeraki.meta_protocol.codec.` + s.codec + `"}}, "request_timeout": "` + timeout + `",
		"access_log": [{"typed_config": {"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": "` + log + `"}}],
		"meta_protocol_filters": [` + strings.Join(chain, ", ") + `],
		"route_config": {"name": "r", "routes": [
			{"match": {"metadata": [{"name": "method", "string_match": {"exact": "slow"}}]}, "route": {"cluster": "silent"}, "typed_per_filter_config": {` + strings.Join(perRoute, ", ") + `}},
			{"route": {"cluster": "up"}, "typed_per_filter_config": {` + strings.Join(perRoute, ", ") + `}}]}}`
}

// TestUpdatesInTheMiddle has all filters see clients that come, ask and leave, servers
// that are lost, and configurations that change meanwhile, and at the end nothing is left.
func TestUpdatesInTheMiddle(t *testing.T) {
	for name, s := range speeches {
		t.Run(name, func(t *testing.T) {
			for seed := range *chaos {
				t.Run(fmt.Sprint(seed), func(t *testing.T) { s.round(t, rand.New(rand.NewPCG(uint64(seed), 7))) })
			}
		})
	}
}

func (s *speech) round(t *testing.T, rng *rand.Rand) {
	mod := filter.NewModule()
	mod.Seed(1)
	mod.Observe()
	h := filtertest.NewWith(t, mod, 2)
	h.DialCluster = func(context.Context, string) (net.Conn, error) { return nil, errors.New("nobody") }
	up, silent := h.Cluster("up", "h1", "h2"), h.Cluster("silent", "h3")
	up.Serve = s.serve
	type conn struct {
		*filtertest.Client
		of   *filtertest.Config
		last int
		over bool // it says no more
	}
	var clients []*conn
	log := filepath.Join(t.TempDir(), "log")
	cfg := h.MustLoad(s.version(rng, log))
	configs := []*filtertest.Config{cfg}
	gone := map[int]bool{}
	for range 150 {
		switch rng.IntN(12) {
		case 0, 1:
			if len(clients) < 8 {
				clients = append(clients, &conn{Client: h.DialOn(cfg, rng.IntN(2)), of: cfg})
			}
		case 2:
			if len(clients) > 0 {
				i := rng.IntN(len(clients))
				if rng.IntN(3) == 0 && !clients[i].over {
					clients[i].over = true
					clients[i].CloseWrite()
				} else {
					clients[i].Close()
					clients = slices.Delete(clients, i, i+1)
				}
				h.Settle()
			}
		case 3:
			h.Advance(time.Duration(rng.IntN(300)) * time.Millisecond)
		case 4:
			for _, c := range []*filtertest.Cluster{up, silent} {
				if ss := c.Servers(); len(ss) > 0 && rng.IntN(3) == 0 {
					if srv := ss[rng.IntN(len(ss))]; srv.Open() {
						srv.Reset()
					}
				}
			}
			h.Settle()
		case 5:
			if rng.IntN(3) == 0 {
				cfg = h.MustLoad(s.version(rng, log))
				configs = append(configs, cfg)
			}
			// What no client uses is forgotten, whatever of its oneways is under way.
			for i, c := range configs {
				if c != cfg && !gone[i] && !slices.ContainsFunc(clients, func(o *conn) bool { return o.of == c }) {
					gone[i] = true
					c.Destroy()
				}
			}
		default:
			if len(clients) > 0 {
				c := clients[rng.IntN(len(clients))]
				if c.over {
					continue
				}
				var b []byte
				for range 1 + rng.IntN(3) {
					c.last++
					b = append(b, s.frames(rng, c.last)...)
				}
				if rng.IntN(3) == 0 {
					i := rng.IntN(len(b))
					c.Send(b[:i])
					c.Send(b[i:])
				} else {
					c.Send(b)
				}
			}
		}
	}
	for _, c := range clients {
		c.Close()
	}
	h.Advance(2 * time.Minute)
	h.Advance(time.Second)
	left := map[string]int64{}
	for _, c := range configs {
		for _, name := range c.Metrics() {
			if strings.HasSuffix(name, "_active") || strings.Contains(name, ".active_") {
				left[name] += c.Counter(name)
			}
		}
	}
	for name, n := range left {
		require.Zero(t, n, name)
	}
	all, err := mod.Metrics().Gather()
	require.NoError(t, err)
	for _, f := range all {
		if f.GetName() == "meltemi_requests_in_flight" {
			for _, m := range f.GetMetric() {
				require.Zero(t, m.GetGauge().GetValue())
			}
		}
	}
}
