package redact_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	_ "github.com/meltemi-mesh/meltemi/examples/filters/redact"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

func listener(pattern string) string {
	return fmt.Sprintf(`{
  "stat_prefix": "t", "protocol": {"name": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}},
  "meta_protocol_filters": [
    {"name": "example.filters.redact", "config": {"@type": "type.googleapis.com/google.protobuf.Struct", "value": {"pattern": %q}}},
    {"name": "aeraki.meta_protocol.filters.router"}],
  "route_config": {"routes": [{"route": {"cluster": "cards"}}]}}`, pattern)
}

func TestNumbersOfCardsAreNotTold(t *testing.T) {
	h := filtertest.New(t)
	var answer func(id uint64) []byte
	h.Cluster("cards", "10.0.0.3:20880").Serve = func(s *filtertest.Server, b []byte) int {
		requests, rest := dubbotest.Parse(b)
		for _, r := range requests {
			s.Send(answer(r.ID))
		}
		return len(b) - len(rest)
	}
	c := h.Dial(h.MustLoad(listener("[0-9]{12,19}")))
	zone := [2]string{"zone", "a"}
	for _, tt := range []struct {
		answer func(id uint64) []byte
		want   []byte
	}{
		{
			func(id uint64) []byte { return dubbotest.Response(id, "card 4111111111111111 of Ada", zone) },
			dubbotest.Response(7, "card **************** of Ada", zone),
		},
		{func(id uint64) []byte { return dubbotest.Response(id, "no card") }, dubbotest.Response(7, "no card")},
		{func(id uint64) []byte { return dubbotest.ErrorResponse(id, 80, "down") }, dubbotest.ErrorResponse(7, 80, "down")},
		{
			func(id uint64) []byte { return dubbotest.Frame(23, 20, id, []byte("4111111111111111 in JSON")) },
			dubbotest.ErrorResponse(7, 50, "the answer cannot be looked into"),
		},
	} {
		answer = tt.answer
		c.Send(dubbotest.Request{ID: 7}.Bytes())
		h.Settle()
		require.Equal(t, tt.want, c.Take())
	}
}

func TestAPatternIsNeeded(t *testing.T) {
	for pattern, want := range map[string]string{"": "pattern: required", "(": "pattern: error parsing regexp"} {
		faults := filter.Check([]byte(listener(pattern)))
		require.Len(t, faults, 1)
		require.ErrorContains(t, faults[0], want)
	}
}
