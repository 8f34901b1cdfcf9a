package connectionlimit_test

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	"github.com/meltemi-mesh/meltemi/filters/connectionlimit"
)

func listener(fields string) string {
	return fmt.Sprintf(`{"stat_prefix": "t", "protocol": {"name": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}},
	"meta_protocol_filters": [{"name": %q, "config": {"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.connection_limit.v1alpha.ConnectionLimit",
	"stat_prefix": "l", %s}}, {"name": "aeraki.meta_protocol.filters.router"}],
	"route_config": {"routes": [{"direct_response": {"body": "passed"}}]}}`, connectionlimit.Name, fields)
}

// bed is a host with two workers and a listener.
type bed struct {
	*filtertest.Host
	t   *testing.T
	cfg *filtertest.Config
}

func newBed(t *testing.T, fields string) *bed {
	b := &bed{Host: filtertest.NewWith(t, filter.NewModule(), 2), t: t}
	b.cfg = b.MustLoad(listener(fields))
	return b
}

func ask(c *filtertest.Client) string {
	c.Send(dubbotest.Request{ID: 7}.Bytes())
	answers, _ := dubbotest.Parse(c.Take())
	if len(answers) != 1 || answers[0].ID != 7 {
		return fmt.Sprint(len(answers), " answers")
	}
	return answers[0].Text()
}

func (b *bed) served(c *filtertest.Client) {
	b.t.Helper()
	require.Equal(b.t, "passed", ask(c))
	require.False(b.t, c.Closed())
}

func (b *bed) refused(c *filtertest.Client) {
	b.t.Helper()
	require.False(b.t, c.Closed())
	require.Equal(b.t, "connection limit: there are too many connections", ask(c))
	b.Advance(0)
	require.True(b.t, c.Closed())
}

func (b *bed) leaves(c *filtertest.Client) {
	c.Close()
	b.Settle()
}

// counts wants these values, and 0 of all others.
func (b *bed) counts(want map[string]int) {
	b.t.Helper()
	b.Advance(100 * time.Millisecond)
	for _, name := range []string{"active_connections", "limited_connections", "limited_by_address", "addresses_overflow"} {
		require.EqualValues(b.t, want[name], b.cfg.Counter("dubbo.t.connection_limit.l."+name), name)
	}
}

// TestSoManyConnections over all workers; those beyond are told so, and do not count.
func TestSoManyConnections(t *testing.T) {
	b := newBed(t, `"max_connections": "2"`)
	one, two := b.DialOn(b.cfg, 0), b.DialOn(b.cfg, 1)
	for w := range 2 {
		b.refused(b.DialOn(b.cfg, w))
	}
	b.served(one)
	b.served(two)
	b.leaves(one)
	three := b.DialOn(b.cfg, 1)
	b.served(three)
	b.refused(b.DialOn(b.cfg, 0))
	b.leaves(two)
	b.counts(map[string]int{"active_connections": 1, "limited_connections": 3})
	b.leaves(three)
	b.counts(map[string]int{"limited_connections": 3})
}

func TestSoManyOfAnAddress(t *testing.T) {
	b := newBed(t, `"max_connections": "4", "max_connections_per_address": "2", "ipv4_prefix_length": 24, "ipv6_prefix_length": 64`)
	a, again := b.DialFrom(b.cfg, "10.1.1.1"), b.DialFrom(b.cfg, "::ffff:10.1.1.2")
	b.refused(b.DialFrom(b.cfg, "10.1.1.1"))
	other := b.DialFrom(b.cfg, "2001:db8::1:0:0:1")
	b.served(b.DialFrom(b.cfg, "2001:db8::2:0:0:1"))
	for range 3 {
		b.refused(b.DialFrom(b.cfg, "10.1.2.1")) // too many of all
	}
	b.leaves(a)
	b.served(b.DialFrom(b.cfg, "10.1.1.3"))
	b.served(again)
	b.leaves(other)
	b.refused(b.DialFrom(b.cfg, "10.1.1.4"))
	b.served(b.DialFrom(b.cfg, "10.1.2.1"))
}

// TestAddressesBeyondThoseThatAreToldApart share a count.
func TestAddressesBeyondThoseThatAreToldApart(t *testing.T) {
	b := newBed(t, `"max_connections_per_address": "1", "max_addresses": 2`)
	a, c := b.DialFrom(b.cfg, "10.1.1.1"), b.DialFrom(b.cfg, "10.1.1.2")
	d := b.DialFrom(b.cfg, "10.1.1.3")
	b.refused(b.DialFrom(b.cfg, "10.1.1.4"))
	b.refused(b.DialFrom(b.cfg, "10.1.1.1"))
	for _, c := range []*filtertest.Client{a, c, d} {
		b.served(c)
		b.leaves(c)
	}
	b.served(b.DialFrom(b.cfg, "10.1.1.4"))
	b.counts(map[string]int{"active_connections": 1, "limited_connections": 2, "limited_by_address": 2, "addresses_overflow": 2})
}

// TestWhoSaysNothing is closed behind the delay, each his own.
func TestWhoSaysNothing(t *testing.T) {
	b := newBed(t, `"max_connections": "1", "delay": "3s"`)
	served := b.Dial(b.cfg)
	first := b.Dial(b.cfg)
	gone := b.Dial(b.cfg)
	b.Advance(time.Second)
	second, late := b.Dial(b.cfg), b.Dial(b.cfg)
	b.leaves(gone)
	first.Send(dubbotest.Request{ID: 1}.Bytes()[:20])
	b.Advance(1900 * time.Millisecond)
	require.False(t, first.Closed())
	b.Advance(200 * time.Millisecond)
	require.True(t, first.Closed())
	require.False(t, second.Closed())
	b.refused(late)
	b.Advance(time.Second)
	require.True(t, second.Closed())
	b.served(served)
	again := b.Dial(b.cfg)
	b.Advance(3100 * time.Millisecond)
	require.True(t, again.Closed())
	b.served(served)
}

func TestWithoutADelay(t *testing.T) {
	b := newBed(t, `"max_connections": "1", "delay": "0s"`)
	b.served(b.Dial(b.cfg))
	c := b.Dial(b.cfg)
	b.Advance(0)
	require.True(t, c.Closed())
	require.Empty(t, c.Take())
}

// TestAllOfItIsAnswered: what a client has sent at once, behind which it is closed.
func TestAllOfItIsAnswered(t *testing.T) {
	b := newBed(t, `"max_connections": "1", "status": {"status": "DENIED", "body": "full"}`)
	b.served(b.Dial(b.cfg))
	c := b.Dial(b.cfg)
	c.Send(dubbotest.Request{ID: 1, Oneway: true}.Bytes(), dubbotest.Request{ID: 2}.Bytes())
	answers, _ := dubbotest.Parse(c.Take())
	for _, a := range answers {
		require.Equal(t, "full", a.Text())
	}
	b.Advance(0)
	require.True(t, c.Closed())
}

// TestCountsSurviveUpdates: connections of the version before count.
func TestCountsSurviveUpdates(t *testing.T) {
	b := newBed(t, `"max_connections": "2", "max_connections_per_address": "2"`)
	one := b.Dial(b.cfg)
	b.Dial(b.cfg)
	next := b.MustLoad(listener(`"max_connections": "3", "max_connections_per_address": "3"`))
	three := b.Dial(next)
	b.served(three)
	b.refused(b.Dial(next))
	b.leaves(one)
	b.served(b.Dial(next))
	b.refused(b.Dial(next))
}

func TestTurnedOff(t *testing.T) {
	b := newBed(t, `"max_connections": "1", "runtime_enabled": {"default_value": false}`)
	b.served(b.Dial(b.cfg))
	b.served(b.Dial(b.cfg))
	b.counts(map[string]int{})
}

func TestWhatIsRefused(t *testing.T) {
	for fields, want := range map[string]string{
		`"delay": "1s"`: "max_connections: required, or max_connections_per_address",
		`"stat_prefix": "", "max_connections": "1"`:               "stat_prefix: required",
		`"max_connections": "0"`:                                  "max_connections: must be at least 1, is 0",
		`"max_connections_per_address": "0"`:                      "max_connections_per_address: must be at least 1, is 0",
		`"max_connections": "1", "delay": "3601s"`:                "delay: must be at most 1h0m0s, is 1h0m1s",
		`"max_connections": "1", "delay": "-1s"`:                  "delay: must be at least 0s, is -1s",
		`"max_connections": "1", "runtime_enabled": {}`:           "runtime_enabled.default_value: required",
		`"max_connections": "1", "ipv4_prefix_length": 33`:        "ipv4_prefix_length: must be between 1 and 32, is 33",
		`"max_connections": "1", "ipv6_prefix_length": 0`:         "ipv6_prefix_length: must be between 1 and 128, is 0",
		`"max_connections": "1", "max_addresses": 1048577`:        "max_addresses: must be between 1 and 1048576, is 1048577",
		`"max_connections": "1", "status": {"status": "OK"}`:      "status.status",
		`"max_connections": "1", "status": {"code": 300}`:         "status.code",
		`"max_connections": "1", "max_connection_duration": "5s"`: "max_connection_duration",
	} {
		_, err := filtertest.New(t).Load(strings.Replace(listener(fields), `"stat_prefix": "l", "stat_prefix": ""`, `"stat_prefix": ""`, 1))
		require.ErrorContains(t, err, "meta_protocol_filters[0].config."+want, fields)
	}
	_, err := filtertest.New(t).Load(fmt.Sprintf(`{"stat_prefix": "t", "protocol": {"name": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}},
		"meta_protocol_filters": [{"name": %q}, {"name": "aeraki.meta_protocol.filters.router"}], "route_config": {}}`, connectionlimit.Name))
	require.ErrorContains(t, err, "meta_protocol_filters[0].config: required")
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
