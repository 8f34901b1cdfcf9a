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

func request(tenant string) []byte {
	return dubbotest.Request{ID: 1, Attachments: [][2]string{{"tenant", tenant}}}.Bytes()
}

func TestRequestsGoToTheirTenantsZone(t *testing.T) {
	h := filtertest.New(t)
	south, north := h.Cluster("south", "s"), h.Cluster("north", "n")
	c := h.Dial(h.MustLoad(listener))
	c.Send(request("acme"))
	h.WaitUntil(func() bool { return len(south.Servers()) == 1 })
	require.Empty(t, north.Servers())
	require.Empty(t, north.Servers())
	c.Send(request("other"))
	h.WaitUntil(func() bool { return len(north.Servers()) == 1 })
	require.Len(t, south.Servers(), 1)
}

func TestAFailedLookupIsAnswered(t *testing.T) {
	h := filtertest.New(t)
	c := h.Dial(h.MustLoad(listener))
	c.Send(request(""))
	h.WaitUntil(func() bool { return len(c.Received()) > 0 })
	answers, _ := dubbotest.Parse(c.Take())
	require.Len(t, answers, 1)
	require.Equal(t, "zone lookup: no tenant", answers[0].Text())
}

func TestAnAnswerForAClientThatHasLeftReachesNobody(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	former := zone.SetDirectory(func(string) (string, error) {
		close(asked)
		<-answer
		return "", errors.New("late")
	})
	t.Cleanup(func() { zone.SetDirectory(former) })
	h := filtertest.New(t)
	c := h.Dial(h.MustLoad(listener))
	c.Send(request("acme"))
	<-asked
	c.Close()
	close(answer)
	h.WaitWake()
	require.Empty(t, c.Take())
}
