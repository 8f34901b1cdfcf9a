package zone_test

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/examples/filters/zone"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

const listener = `{
  "stat_prefix": "t", "protocol": {"name": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}},
  "meta_protocol_filters": [{"name": "example.filters.zone"}, {"name": "aeraki.meta_protocol.filters.router"}],
  "route_config": {"routes": [
    {"match": {"metadata": [{"name": "zone", "string_match": {"exact": "south"}}]}, "route": {"cluster": "south"}},
    {"route": {"cluster": "north"}}]}}`

func request(id uint64, tenant string) []byte {
	return dubbotest.Request{ID: id, Attachments: [][2]string{{"tenant", tenant}}}.Bytes()
}

// clusters answer every request with their name.
func clusters(h *filtertest.Host, names ...string) {
	for _, name := range names {
		h.Cluster(name, name).Serve = func(s *filtertest.Server, b []byte) int {
			requests, rest := dubbotest.Parse(b)
			for _, r := range requests {
				s.Send(dubbotest.Response(r.ID, name))
			}
			return len(b) - len(rest)
		}
	}
}

// answers waits for n answers, and returns their texts by their ids.
func answers(t *testing.T, h *filtertest.Host, c *filtertest.Client, n int) map[uint64]string {
	t.Helper()
	var got []dubbotest.Parsed
	h.WaitUntil(func() bool {
		got, _ = dubbotest.Parse(c.Received())
		return len(got) >= n
	})
	texts := map[uint64]string{}
	for _, a := range got {
		texts[a.ID] = a.Text()
	}
	require.Len(t, texts, len(got), "an id was answered twice")
	return texts
}

func TestRequestsGoToTheirTenantsZone(t *testing.T) {
	h := filtertest.New(t)
	clusters(h, "south", "north")
	c := h.Dial(h.MustLoad(listener))
	c.Send(request(1, "acme"), request(2, "other"), request(3, "acme"))
	require.Equal(t, map[uint64]string{1: "south", 2: "north", 3: "south"}, answers(t, h, c, 3))
}

func TestAFailedLookupIsAnswered(t *testing.T) {
	h := filtertest.New(t)
	c := h.Dial(h.MustLoad(listener))
	c.Send(request(1, ""))
	h.WaitUntil(func() bool { return len(c.Received()) > 0 })
	answers, _ := dubbotest.Parse(c.Take())
	require.Len(t, answers, 1)
	require.Equal(t, "zone lookup: no tenant", answers[0].Text())
}

// TestAnAnswerForAClientThatHasLeftReachesNobody, nor the client that has come
// after it and asks, with the same id, for another tenant.
func TestAnAnswerForAClientThatHasLeftReachesNobody(t *testing.T) {
	asked, answer := make(chan string), map[string]chan error{"acme": make(chan error), "other": make(chan error)}
	former := zone.SetDirectory(func(tenant string) (string, error) {
		asked <- tenant
		return "north", <-answer[tenant]
	})
	t.Cleanup(func() { zone.SetDirectory(former) })
	h := filtertest.New(t)
	clusters(h, "north")
	cfg := h.MustLoad(listener)
	left := h.Dial(cfg)
	left.Send(request(1, "acme"))
	require.Equal(t, "acme", <-asked)
	left.Close()
	neighbour := h.Dial(cfg)
	neighbour.Send(request(1, "other"))
	require.Equal(t, "other", <-asked)
	answer["acme"] <- errors.New("late")
	h.WaitWake()
	require.Empty(t, neighbour.Received())
	answer["other"] <- nil
	require.Equal(t, map[uint64]string{1: "north"}, answers(t, h, neighbour, 1))
	require.Zero(t, h.Panics())
}
