package filter_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

// discovered is a listener whose routes a file has, once the test has written it.
type discovered struct {
	*env
	path string
}

// discover has config_source, beside the path, and the configuration, more fields.
func discover(t *testing.T, source, more string) *discovered {
	d := &discovered{path: filepath.Join(t.TempDir(), "rds.json")}
	h := twoClusters(t)
	d.env = &env{Host: h, t: t}
	d.cfg = h.MustLoad(d.config(source, more))
	d.c = h.Dial(d.cfg)
	return d
}

func (d *discovered) config(source, more string) string {
	return strings.Replace(listener("", more), `"route_config": `, fmt.Sprintf(`"rds": {"route_config_name": "r", "config_source": {"path": %q%s}}`, d.path, source), 1)
}

func (d *discovered) write(text string) {
	d.t.Helper()
	require.NoError(d.t, os.WriteFile(d.path+".new", []byte(text), 0o600))
	require.NoError(d.t, os.Rename(d.path+".new", d.path))
}

func (d *discovered) route(cluster string) {
	d.t.Helper()
	d.write(`{"version_info": "` + cluster + `", "resources": [{"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.config.route.v1alpha.RouteConfiguration",
		"name": "r", "routes": [{"route": {"cluster": "` + cluster + `"}}]}]}`)
}

// heard waits until a counter has a value.
func (d *discovered) heard(counter string, n int64) {
	d.t.Helper()
	d.WaitUntil(func() bool {
		d.Advance(25 * time.Millisecond)
		return d.cfg.Counter("dubbo.t."+counter) == n
	})
}

// become waits until a client is served by a host.
func (d *discovered) become(c *filtertest.Client, host string) {
	d.t.Helper()
	asked := false
	d.WaitUntil(func() bool {
		if !asked {
			c.Send(req(1))
		}
		fs := replies(d.t, c)
		asked = len(fs) == 0
		return !asked && fs[len(fs)-1].Text() == host
	})
}

const noRoutes = "no route for org.example.Greeter/sayHello: there are no routes yet"

// TestRequestsWaitForTheFirstRoutes of all kinds, and what comes behind them on their
// connections.
func TestRequestsWaitForTheFirstRoutes(t *testing.T) {
	d := discover(t, "", "")
	other := d.Dial(d.cfg)
	d.c.Send(req(1), req(2), req(3))
	other.Send(dubbotest.Request{ID: 1, Oneway: true, Argument: "x"}.Bytes())
	d.Advance(10 * time.Second)
	require.Empty(t, replies(t, d.c))
	require.True(t, d.c.ReadDisabled())
	require.True(t, other.ReadDisabled())
	require.EqualValues(t, 2, d.count("request_active"), "the others are not read")
	d.route("v1")
	d.WaitUntil(func() bool { return !d.c.ReadDisabled() && !other.ReadDisabled() })
	got := replies(t, d.c)
	require.Len(t, got, 3)
	for i, f := range got {
		require.EqualValues(t, i+1, f.ID)
		require.Equal(t, "h1", f.Text())
	}
	require.Zero(t, d.count("request_active"))
	require.Zero(t, d.count("oneway_dropped"))
	d.route("v2")
	d.become(d.c, "h2")
	d.heard("rds_update_success", 2)
	require.Equal(t, d.cfg.Counter("dubbo.t.rds_update_attempt"), 2+d.cfg.Counter("dubbo.t.rds_update_failure"))
	// What is held stays, whatever comes.
	d.write("garbage")
	d.heard("rds_update_rejected", 1)
	require.Equal(t, "h2", served(t, d.c))
	d.write(`{"version_info": "3"}`)
	d.heard("rds_update_empty", 1)
	require.Equal(t, "h2", served(t, d.c))
	failures := d.count("rds_update_failure")
	require.NoError(t, os.Remove(d.path))
	d.heard("rds_update_failure", failures+1)
	require.Equal(t, "h2", served(t, d.c))
}

// TestNoRoutesInTime: requests get an error when the time for the first ones is over,
// later ones at once, until there are some.
func TestNoRoutesInTime(t *testing.T) {
	d := discover(t, `, "initial_fetch_timeout": "5s"`, "")
	d.c.Send(req(1))
	d.Advance(3 * time.Second)
	late := d.Dial(d.cfg)
	late.Send(req(1))
	d.Advance(1999 * time.Millisecond)
	require.Empty(t, replies(t, d.c))
	d.Advance(10 * time.Millisecond)
	for _, c := range []*filtertest.Client{d.c, late} {
		f := one(t, c)
		require.EqualValues(t, 60, f.Status)
		require.Equal(t, noRoutes, f.Text())
		require.False(t, c.ReadDisabled())
	}
	d.c.Send(req(2))
	require.Equal(t, noRoutes, one(t, d.c).Text())
	require.Contains(t, strings.Join(d.Log(), "\n"), `no routes "r" from file `+d.path+` within 5s`)
	d.route("v1")
	d.become(d.c, "h1")
}

// TestARequestWaitsNoLongerThanItsTimeout also where the first routes have no time.
func TestARequestWaitsNoLongerThanItsTimeout(t *testing.T) {
	d := discover(t, `, "initial_fetch_timeout": "0s"`, `, "request_timeout": "1s"`)
	d.c.Send(req(1), req(2))
	d.Advance(500 * time.Millisecond)
	late := d.Dial(d.cfg)
	late.Send(req(1))
	d.Advance(510 * time.Millisecond)
	require.Contains(t, one(t, d.c).Text(), "timed out while waiting for routes")
	require.Empty(t, replies(t, late))
	d.Advance(500 * time.Millisecond)
	require.Contains(t, one(t, late).Text(), "timed out while waiting for routes")
	d.Advance(500 * time.Millisecond)
	require.Contains(t, one(t, d.c).Text(), "timed out while waiting for routes", "the second was read when the first was done")
	require.EqualValues(t, 3, d.count("request_timeout"))
	d.Advance(time.Hour)
	late.Send(req(2))
	d.route("v1")
	d.WaitUntil(func() bool { return !late.ReadDisabled() })
	require.Equal(t, "h1", one(t, late).Text())
}

// TestTheFirstAnswerIsRefused or empty: nothing is to be waited for, as in Envoy.
func TestTheFirstAnswerIsRefused(t *testing.T) {
	for what, text := range map[string]string{
		"refused": `{"resources": [{"@type": "type.googleapis.com/google.protobuf.Duration", "value": "1s"}]}`,
		"empty":   `{}`,
	} {
		t.Run(what, func(t *testing.T) {
			d := discover(t, "", "")
			d.c.Send(req(1))
			require.Empty(t, replies(t, d.c))
			d.write(text)
			d.WaitUntil(func() bool { return !d.c.ReadDisabled() })
			require.Equal(t, noRoutes, one(t, d.c).Text())
		})
	}
}

// TestClientsThatLeaveWhileTheyWait leave nothing behind.
func TestClientsThatLeaveWhileTheyWait(t *testing.T) {
	d := discover(t, "", "")
	clients := []*filtertest.Client{}
	for range 5 {
		c := d.Dial(d.cfg)
		c.Send(req(1))
		clients = append(clients, c)
	}
	d.c.Send(req(1))
	for _, i := range []int{2, 0, 4} {
		clients[i].Close()
	}
	require.EqualValues(t, 3, d.count("request_active"))
	require.EqualValues(t, 3, d.count("request_abandoned"))
	d.route("v1")
	d.WaitUntil(func() bool { return !d.c.ReadDisabled() })
	for _, c := range []*filtertest.Client{clients[1], clients[3], d.c} {
		require.Equal(t, "h1", one(t, c).Text())
	}
	require.Zero(t, d.count("request_active"))
}

// TestAClientThatSendsNoMore gets its answer all the same.
func TestAClientThatSendsNoMore(t *testing.T) {
	d := discover(t, "", "")
	d.c.Send(req(1), req(2))
	d.c.CloseWrite()
	d.route("v1")
	d.WaitUntil(d.c.Closed)
	require.Len(t, replies(t, d.c), 2)
	require.Zero(t, d.Panics())
}

// TestFewRequestsWait: as many as may wait for a connection.
func TestFewRequestsWait(t *testing.T) {
	for what, tc := range map[string]struct {
		limit string
		wait  int
	}{
		"by number": {`"max_pending_requests": 2`, 4},
		"by bytes":  {`"max_pending_bytes": 1`, 1},
	} {
		t.Run(what, func(t *testing.T) {
			d := discover(t, "", `, "upstream": {`+tc.limit+`}`)
			clients := []*filtertest.Client{}
			for range 6 {
				c := d.Dial(d.cfg)
				c.Send(req(1))
				clients = append(clients, c)
			}
			for i, c := range clients {
				if i < tc.wait {
					require.Empty(t, replies(t, c), i)
				} else {
					require.Equal(t, "too many requests wait for routes", one(t, c).Text())
				}
			}
			require.EqualValues(t, 6-tc.wait, d.count("request_overflow"))
			clients[0].Close()
			clients[5].Send(req(2))
			require.Empty(t, replies(t, clients[5]), "there is room again")
		})
	}
}

// TestFiltersWaitToo: none asks for a route that is not there yet.
func TestFiltersWaitToo(t *testing.T) {
	var asked []bool
	current = &testFilter{onRequest: func(m *filter.Message) filter.Verdict {
		asked = append(asked, m.Route() != nil)
		if m.Route() == nil {
			return m.Reply(codecs.Denied, m.Unroutable().Error())
		}
		return filter.Continue
	}}
	d := discover(t, "", `, "meta_protocol_filters": [{"name": "test"}, {"name": "aeraki.meta_protocol.filters.router"}]`)
	d.c.Send(req(1))
	require.Empty(t, asked)
	d.route("v1")
	d.WaitUntil(func() bool { return len(asked) > 0 })
	require.Equal(t, []bool{true}, asked)
	require.Equal(t, "h1", one(t, d.c).Text())
}

// TestAListenersUpdateKeepsItsRoutes: the new version has them from its first request
// on, and the old one's connections hear of updates as long as they live.
func TestAListenersUpdateKeepsItsRoutes(t *testing.T) {
	d := discover(t, "", "")
	d.route("v1")
	d.become(d.c, "h1")
	unpublished, err := d.LoadUnpublished(d.config("", `, "request_timeout": "3s"`))
	require.NoError(t, err)
	require.Equal(t, "h1", served(t, d.Dial(unpublished)))
	unpublished.Publish()
	c := d.Dial(unpublished)
	require.Equal(t, "h1", served(t, c))
	d.route("v2")
	d.become(c, "h2")
	if !d.c.Closed() {
		require.Equal(t, "h2", served(t, d.c))
	}
	d.c.Close()
	d.cfg.Destroy()
	require.Equal(t, "h2", served(t, c))
	d.route("v1")
	d.become(c, "h1")
}

// TestFromInlineRoutesToDiscoveredOnes of the same name: until they are there the ones
// before count, and if they go they do again.
func TestFromInlineRoutesToDiscoveredOnes(t *testing.T) {
	d := &discovered{path: filepath.Join(t.TempDir(), "rds.json")}
	d.env = &env{Host: twoClusters(t), t: t}
	inline := d.MustLoad(to("v1"))
	old := d.Dial(inline)
	require.Equal(t, "h1", served(t, old))
	d.cfg = d.MustLoad(d.config("", ""))
	c := d.Dial(d.cfg)
	require.Equal(t, "h1", served(t, c))
	d.route("v2")
	d.become(c, "h2")
	c.Close()
	d.cfg.Destroy()
	if !old.Closed() {
		require.Equal(t, "h1", served(t, old))
	}
}

// TestAnotherSourceOfOneKey is refused, as other inline routes are.
func TestAnotherSourceOfOneKey(t *testing.T) {
	d := &discovered{path: "/nowhere"}
	d.env = &env{Host: twoClusters(t), t: t}
	_, err := d.LoadUnpublished(d.config("", ""))
	require.NoError(t, err)
	_, err = d.LoadUnpublished(d.config(`, "initial_fetch_timeout": "1s"`, ""))
	require.NoError(t, err, "the same subscription")
	d.path = "/elsewhere"
	_, err = d.LoadUnpublished(d.config("", ""))
	require.ErrorContains(t, err, "another listener or filter chain that comes with this one has it")
	_, err = d.LoadUnpublished(to("v1"))
	require.ErrorContains(t, err, "another listener or filter chain that comes with this one has it")
}

// TestRoutesThatTheCodecCannotSet are refused as inline ones are.
func TestRoutesThatTheCodecCannotSet(t *testing.T) {
	d := discover(t, "", "")
	d.route("v1")
	d.become(d.c, "h1")
	d.write(`{"version_info": "2", "resources": [{"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.config.route.v1alpha.RouteConfiguration",
		"name": "r", "routes": [{"route": {"cluster": "v2"}, "request_mutation": [{"key": "path", "value": "x"}]}]}]}`)
	d.heard("rds_update_rejected", 1)
	require.Equal(t, "h1", served(t, d.c))
	require.Contains(t, strings.Join(d.Log(), "\n"), `routes "r", version "2", from file `+d.path+` refused: resources[0].routes[0].request_mutation[0].key: "path" belongs to the call itself`)
}
