package filter_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	"github.com/meltemi-mesh/meltemi/filter/route"
)

// TestAPaddedValueEvadesNoRule: what is too long to be looked at goes nowhere,
// and its client and the operator are told; its neighbours on the connection
// are served.
func TestAPaddedValueEvadesNoRule(t *testing.T) {
	h := filtertest.New(t)
	v1 := h.Cluster("v1", "h1")
	v1.Serve = answer
	cfg := h.MustLoad(listener(`{"routes": [{"match": {"metadata": [{"name": "tenant", "safe_regex_match": {"regex": "(evil|mallory).*"}}]}, "route": {"cluster": "jail"}},
		{"route": {"cluster": "v1"}}]}`, ""))
	c := h.Dial(cfg)
	padded := "evil" + strings.Repeat("x", route.MaxValueBytes)
	c.Send(dubbotest.Request{ID: 1, Attachments: [][2]string{{"tenant", padded}}}.Bytes())
	f := one(t, c)
	require.Equal(t, byte(60), f.Status)
	require.Equal(t, "no route for org.example.Greeter/sayHello: a value that rules look at has more than 8192 bytes", f.Text())
	c.Send(dubbotest.Request{ID: 2, Attachments: [][2]string{{"tenant", "acme"}, {"other", padded}}}.Bytes())
	require.Equal(t, byte(20), one(t, c).Status)
	e := &env{Host: h, t: t, cfg: cfg}
	require.EqualValues(t, 1, e.count("request_unroutable"))
}

func to(cluster string) string {
	return listener(`{"name": "r", "routes": [{"route": {"cluster": "`+cluster+`"}}]}`, "")
}

// served is who answers a client's next request. The client may have been told
// before that its listener is replaced.
func served(t *testing.T, c *filtertest.Client) string {
	t.Helper()
	c.Send(req(1))
	fs := replies(t, c)
	require.NotEmpty(t, fs)
	return fs[len(fs)-1].Text()
}

func twoClusters(t *testing.T) *filtertest.Host {
	h := filtertest.New(t)
	h.Cluster("v1", "h1").Serve = answer
	h.Cluster("v2", "h2").Serve = answer
	return h
}

// TestTwoTablesOfOneKeyThatComeTogetherAreRefused, whichever field makes them one.
func TestTwoTablesOfOneKeyThatComeTogetherAreRefused(t *testing.T) {
	h := twoClusters(t)
	first, err := h.LoadUnpublished(to("v1"))
	require.NoError(t, err)
	_, err = h.LoadUnpublished(to("v2"))
	require.ErrorContains(t, err, `stat_prefix "t": stat_prefix: another listener or filter chain that comes with this one has it`)
	same, err := h.LoadUnpublished(to("v1"))
	require.NoError(t, err, "the same routes in several filter chains")
	scoped := func(cluster, prefix string) string {
		return strings.Replace(to(cluster), `"t"`, `"`+prefix+`", "table_scope": "shared"`, 1)
	}
	_, err = h.LoadUnpublished(scoped("v1", "a"))
	require.NoError(t, err)
	_, err = h.LoadUnpublished(scoped("v2", "b"))
	require.ErrorContains(t, err, `stat_prefix "b": table_scope: another`)
	first.Publish()
	same.Publish()
	h.MustLoad(to("v2")) // an update
}

// TestAnotherListenersTable: one that comes later with the stat_prefix of a
// listener that still takes connections gets them no routes of its own.
func TestAnotherListenersTable(t *testing.T) {
	h := twoClusters(t)
	a := h.MustLoad(to("v1"))
	old := h.Dial(a)
	old.Send(req(1))
	require.Equal(t, "h1", one(t, old).Text())
	b := h.MustLoad(to("v2"))
	other := h.Dial(b)
	require.Equal(t, "h2", served(t, other))
	h.Advance(2 * time.Second)
	require.Equal(t, "h1", served(t, h.Dial(a)), "it is alive, and has its own routes")
	if !old.Closed() {
		require.Equal(t, "h1", served(t, old))
	}
	require.Equal(t, "h2", served(t, other))
	require.Contains(t, strings.Join(h.Log(), "\n"), "have the same stat_prefix and route_config.name, and other routes: each keeps its own")
}

// TestAListenersUpdateThatWarms: until the new version takes connections the old
// one does, by its routes. Then its connections follow, without a warning.
func TestAListenersUpdateThatWarms(t *testing.T) {
	h := twoClusters(t)
	v1 := h.MustLoad(to("v1"))
	h.Dial(v1)
	v2 := h.MustLoad(to("v2"))
	h.Advance(10 * time.Second)
	c := h.Dial(v1)
	require.Equal(t, "h1", served(t, c))
	h.Dial(v2)
	require.Equal(t, "h2", served(t, c))
	require.NotContains(t, strings.Join(h.Log(), "\n"), "each keeps its own")
}

// TestAWorkerThatIsLate still has the old version for a moment.
func TestAWorkerThatIsLate(t *testing.T) {
	h := twoClusters(t)
	v1 := h.MustLoad(to("v1"))
	h.Dial(v1)
	h.MustLoad(to("v2"))
	require.Equal(t, "h2", served(t, h.Dial(v1)))
}

// TestAnotherListenersAddress tells at once: by its first connection.
func TestAnotherListenersAddress(t *testing.T) {
	h := twoClusters(t)
	a := h.MustLoad(to("v1"))
	old := h.DialAt(a, "10.0.0.1:1")
	h.DialAt(h.MustLoad(to("v2")), "10.0.0.9:2")
	require.Equal(t, "h1", served(t, old))
	require.Contains(t, strings.Join(h.Log(), "\n"), "listeners at 10.0.0.1:1 and 10.0.0.9:2 have the same stat_prefix")
	// An update of the first one is for its own connections again.
	a2 := h.MustLoad(listener(`{"name": "r", "routes": [{"name": "a", "route": {"cluster": "v2"}}]}`, ""))
	h.DialAt(a2, "10.0.0.8:1")
	require.Equal(t, "h2", served(t, old))
}

// TestDurationsWithoutEnd: the longest that protobuf has end nothing.
func TestDurationsWithoutEnd(t *testing.T) {
	const longest = `"315576000000s"`
	h := filtertest.New(t)
	v1 := h.Cluster("v1", "h1")
	cfg := h.MustLoad(listener(twoRoutes, `, "request_timeout": `+longest+`, "idle_timeout": `+longest+`,
		"limits": {"partial_frame_timeout": `+longest+`, "stream_idle_timeout": `+longest+`},
		"upstream": {"max_connection_age": `+longest+`, "idle_timeout": `+longest+`, "connect_backoff_max": `+longest+`}`))
	idle, half, c := h.Dial(cfg), h.Dial(cfg), h.Dial(cfg)
	half.Send(req(1)[:20])
	c.Send(req(1))
	for range 1000 {
		h.Advance(time.Minute)
	}
	require.False(t, idle.Closed() || half.Closed())
	require.Empty(t, c.Take())
	servers := v1.Servers()
	require.Len(t, servers, 1)
	servers[0].Send(dubbotest.Response(parse(servers[0].Take())[0].ID, "late"))
	h.Advance(time.Second)
	require.Equal(t, "late", one(t, c).Text())
}
