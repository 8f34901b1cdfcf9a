package filter_test

import (
	"strings"
	"testing"

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
