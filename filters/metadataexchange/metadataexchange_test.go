package metadataexchange

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	_ "github.com/meltemi-mesh/meltemi/filters/router"
	"github.com/meltemi-mesh/meltemi/internal/raced"
	metadataexchangev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/metadata_exchange/v1alpha"
)

// seer tells of the workloads of each message at its end.
type seer struct{ ended []string }

var seen *seer

func (s *seer) OnRequest(m *filter.Message) filter.Verdict {
	m.Route() // too early
	return filter.Continue
}

func (s *seer) OnEnd(m *filter.Message) {
	s.ended = append(s.ended, fmt.Sprintf("%s -> %s", m.Source().Field("workload"), m.Destination().Field("workload")))
}

func init() {
	filter.Register("seer", filter.Factory(func(*anypb.Any, *filter.Env) (filter.Filter, error) { return seen, nil }))
}

func listener(direction, workload string) string {
	return `{"stat_prefix": "` + workload + `", "traffic_direction": "` + direction + `", "protocol": {"name": "p", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}},
		"meta_protocol_filters": [{"name": "seer"}, {"name": "` + Name + `", "config": {"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.metadata_exchange.v1alpha.MetadataExchange",
			"node_id": "` + workload + `-id", "workload": {"workload_name": "` + workload + `", "namespace": "shop", "labels": {"app": "` + workload + `", "other": "x"}}}},
			{"name": "aeraki.meta_protocol.filters.router"}],
		"route_config": {"name": "` + workload + direction + `", "routes": [
			{"match": {"source_labels": {"app": "web"}}, "route": {"cluster": "web"}},
			{"match": {"source_labels": {"other": "x"}}, "route": {"cluster": "never"}},
			{"route": {"cluster": "rest"}}]}}`
}

// env is a client of a listener with the filter.
type env struct {
	*filtertest.Host
	t   *testing.T
	cfg *filtertest.Config
	c   *filtertest.Client
	at  string            // the cluster that has got the last request
	got map[string]string // its attachments
	say [][2]string       // those of the answer
}

func start(t *testing.T, direction, workload string) *env {
	t.Helper()
	seen = new(seer)
	h := filtertest.New(t)
	e := &env{Host: h, t: t}
	for _, name := range []string{"web", "rest", "never"} {
		h.Cluster(name, "h1").Serve = func(s *filtertest.Server, b []byte) int {
			e.at, e.got = name, attachments(t, codecs.ClientToServer, b)
			s.Send(dubbotest.Response(e.id(b), name, e.say...))
			return len(b)
		}
	}
	e.cfg = h.MustLoad(listener(direction, workload))
	e.c = h.Dial(e.cfg)
	return e
}

func (e *env) id(b []byte) uint64 {
	frames, _ := dubbotest.Parse(b)
	return frames[0].ID
}

// ask sends a request and returns what the client sees of its answer.
func (e *env) ask(sent ...[2]string) map[string]string {
	e.t.Helper()
	e.c.Send(dubbotest.Request{ID: 1, Attachments: sent}.Bytes())
	return attachments(e.t, codecs.ServerToClient, e.c.Take())
}

func attachments(t *testing.T, d codecs.Direction, frame []byte) map[string]string {
	t.Helper()
	c, err := dubbo.New(nil, codecs.Limits{})
	require.NoError(t, err)
	var m codecs.Metadata
	n, err := c.NewDecoder(d).Decode(frame, &m)
	require.NoError(t, err)
	require.Len(t, frame, n)
	all := map[string]string{}
	for _, p := range m.Properties() {
		if strings.HasPrefix(strings.ToLower(string(p.Name)), "x-") {
			all[string(p.Name)] = string(p.Value)
		}
	}
	return all
}

func metadataOf(t *testing.T, workload, app string) string {
	t.Helper()
	text, err := encode(&filter.Workload{WorkloadName: workload, Namespace: "shop", Labels: map[string]string{"app": app}})
	require.NoError(t, err)
	return text
}

// TestOutbound tells servers' proxies of the own workload, and learns of theirs.
func TestOutbound(t *testing.T) {
	e := start(t, "OUTBOUND", "web")
	e.say = [][2]string{{metadataKey, metadataOf(t, "cart", "cart")}, {idKey, "cart-id"}, {"x-other", "y"}}
	answer := e.ask([2]string{"X-Envoy-Peer-Metadata", "forged"}, [2]string{"x-kept", "z"})
	require.Equal(t, map[string]string{metadataKey: metadataOf(t, "web", "web"), idKey: "web-id", "x-kept": "z"}, e.got)
	require.Equal(t, map[string]string{"x-other": "y"}, answer, "it is between the proxies")
	require.Equal(t, "web", e.at, "the source is the own workload")
	require.Equal(t, []string{"web -> cart"}, seen.ended)

	e.say = nil
	e.ask()
	require.Equal(t, []string{"web -> cart", "web -> "}, seen.ended)
}

// TestInbound learns of clients' workloads, and tells of the own one who has told.
func TestInbound(t *testing.T) {
	e := start(t, "INBOUND", "cart")
	answer := e.ask([2]string{metadataKey, metadataOf(t, "frontend", "web")}, [2]string{idKey, "web-id"}, [2]string{"x-kept", "z"})
	require.Equal(t, map[string]string{"x-kept": "z"}, e.got)
	require.Equal(t, map[string]string{metadataKey: metadataOf(t, "cart", "cart"), idKey: "cart-id"}, answer)
	require.Equal(t, "web", e.at)

	require.Empty(t, e.ask([2]string{metadataKey + "x", "y"}), "who has not told is not told")
	require.Equal(t, "rest", e.at)
	require.Equal(t, []string{"frontend -> cart", " -> cart"}, seen.ended, "the second does not get the first one's")
}

// TestWithoutADirection there is nothing to tell, and what is told goes on.
func TestWithoutADirection(t *testing.T) {
	e := start(t, "UNSPECIFIED", "web")
	sent := map[string]string{metadataKey: metadataOf(t, "frontend", "web"), idKey: "web-id"}
	require.Empty(t, e.ask([2]string{metadataKey, sent[metadataKey]}, [2]string{idKey, sent[idKey]}))
	require.Equal(t, sent, e.got)
	require.Equal(t, []string{"frontend -> "}, seen.ended)
}

// TestMalformedMetadata is counted, and taken for none.
func TestMalformedMetadata(t *testing.T) {
	e := start(t, "INBOUND", "cart")
	for range 2 {
		e.ask([2]string{metadataKey, "?"})
	}
	e.ask([2]string{metadataKey, strings.Repeat("A", maxMetadata+4)})
	require.Equal(t, "rest", e.at)
	require.Empty(t, e.got)
	e.Advance(1e9)
	require.EqualValues(t, 3, e.cfg.Counter("p.cart.metadata_exchange.malformed"))
}

// TestPeersAreReadOnce, and as many are kept as may be.
func TestPeersAreReadOnce(t *testing.T) {
	var ps peers
	metadata := []byte(metadataOf(t, "w", "a"))
	read := 0
	learn := func(id string) *filter.Workload {
		w, known := ps.find([]byte(id), metadata)
		if !known {
			read++
			w = decode([]byte(id), metadata, wanted)
			ps.add(w)
		}
		return w
	}
	first := learn("first")
	require.Same(t, first, learn("first"))
	require.Equal(t, "second", learn("second").ID, "an id is a part of it")
	require.Equal(t, 2, read)
	id := []byte("first")
	require.Zero(t, raced.AllocsPerRun(t, 100, func() { ps.find(id, metadata) }))
	for i := range maxPeers {
		learn(fmt.Sprint(i))
	}
	require.LessOrEqual(t, len(ps.known), maxPeers)
	require.Equal(t, "first", learn("first").ID)

	long := make([]byte, maxMetadata+1)
	_, known := ps.find(nil, long)
	require.False(t, known)
	n := len(ps.known)
	ps.add(nil)
	require.Len(t, ps.known, n)
}

// TestTheEnvironmentOfAnIstioProxy says what the configuration leaves open.
func TestTheEnvironmentOfAnIstioProxy(t *testing.T) {
	variables := map[string]string{
		"POD_NAME": "cart-1", "POD_NAMESPACE": "shop", "INSTANCE_IP": "10.0.0.1", "ISTIO_META_WORKLOAD_NAME": "cart", "ISTIO_META_CLUSTER_ID": "east",
		"ISTIO_META_OWNER": "kubernetes://apis/apps/v1/namespaces/shop/deployments/cart", "ISTIO_METAJSON_LABELS": `{"app": "old", "version": "v1"}`,
	}
	env := filter.Environment{
		Variable: func(name string) string { return variables[name] },
		File: func(path string) ([]byte, error) {
			require.Equal(t, "/etc/istio/pod/labels", path)
			return []byte("app=\"cart\"\npod-template-hash=\"x\"\nnonsense\nquoted=\"a\\\"b\"\n"), nil
		},
	}
	s := &settings{labels: map[string]bool{"app": true, "version": true, "quoted": true}}
	e, err := newExchange(s, env)
	require.NoError(t, err)
	require.Equal(t, filter.Workload{
		ID: "sidecar~10.0.0.1~cart-1.shop~shop.svc.cluster.local", Name: "cart-1", Namespace: "shop", WorkloadName: "cart", ClusterID: "east",
		Owner: variables["ISTIO_META_OWNER"], Labels: map[string]string{"app": "cart", "version": "v1", "quoted": `a"b`},
	}, e.own)

	s.own = filter.Workload{ID: "id", Name: "n", Labels: map[string]string{"app": "web"}}
	e, err = newExchange(s, env)
	require.NoError(t, err)
	require.Equal(t, "id", e.own.ID)
	require.Equal(t, "n", e.own.Name)
	require.Equal(t, "shop", e.own.Namespace)
	require.Equal(t, map[string]string{"app": "web"}, e.own.Labels)

	variables["ISTIO_META_OWNER"] = strings.Repeat("x", maxMetadata)
	_, err = newExchange(s, env)
	require.ErrorContains(t, err, "workload: what is sent of it must have at most 8192 bytes, has ")

	none := filter.Environment{Variable: func(string) string { return "" }, File: func(string) ([]byte, error) { return nil, errors.New("none") }}
	e, err = newExchange(&settings{}, none)
	require.NoError(t, err)
	require.Empty(t, e.metadata, "there is nothing to tell")
}

func TestImpossibleConfigurationsAreRefused(t *testing.T) {
	codec, err := dubbo.New(nil, codecs.Limits{})
	require.NoError(t, err)
	env := &filter.Env{Codecs: []codecs.Codec{codec}}
	for config, want := range map[string]string{
		`{"node_id": "` + strings.Repeat("x", maxID+1) + `"}`:             "node_id: must have at most 1024 bytes, has 1025",
		`{"additional_labels": [` + strings.Repeat(`"a",`, 100) + `"a"]}`: "additional_labels: at most 100, has 101",
		`{"additional_labels": ["a", ""]}`:                                "additional_labels[1]: required",
	} {
		m := new(metadataexchangev1alpha.MetadataExchange)
		require.NoError(t, protojson.Unmarshal([]byte(config), m))
		packed, err := anypb.New(m)
		require.NoError(t, err)
		_, err = parse(packed, env)
		require.EqualError(t, err, want)
	}
	_, err = parse(nil, env)
	require.NoError(t, err, "as the C++ proxy's")
	_, err = parse(nil, &filter.Env{Codecs: []codecs.Codec{struct{ codecs.Codec }{}}})
	require.EqualError(t, err, "no codec of the listener can set and remove attributes")
	_, err = parse(new(anypb.Any), env)
	require.ErrorContains(t, err, "type_url: ")
}
