package route

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// oneByte is what varies: the property "b", which is the frame.
type oneByte struct{}

func (oneByte) Load(m *codecs.Metadata) { m.Properties()[1].Value = m.Raw }

// TestWhatVariesWithinAShapeIsLookedAt by tables that have a rule on it; others remember
// the route, and leave the message its shape.
func TestWhatVariesWithinAShapeIsLookedAt(t *testing.T) {
	var shapes codecs.Shapes
	h, old := shapes.Learn([]byte("head"), []byte("tail"), message("a", "1", "b", "2"))
	s := h.Widen(old, []byte("tail"), []codecs.Hole{{To: 1, Property: 1}}, message("a", "1", "b", "2"))
	s.Rest = oneByte{}
	shared := func(b string) *codecs.Metadata {
		m := &codecs.Metadata{Raw: []byte(b)}
		m.Share(s)
		return m
	}
	looks := mustCompile(t, `{"name": "r", "routes": [
		{"name": "eight", "match": {"metadata": [{"name": "B", "exact_match": "8"}]}, "route": {"cluster": "c"}},
		{"name": "one", "match": {"metadata": [{"name": "a", "exact_match": "1"}]}, "route": {"cluster": "c"}}]}`)
	blind := mustCompile(t, `{"name": "r", "routes": [{"name": "one", "match": {"metadata": [{"name": "a", "exact_match": "1"}]}, "route": {"cluster": "c"}}]}`)
	for range 2 {
		require.Equal(t, "one", looks.Match(shared("7")).Name)
		require.Equal(t, "eight", looks.Match(shared("8")).Name)
	}
	for range 2 {
		m := shared("7")
		require.Equal(t, "one", blind.Match(m).Name)
		require.Equal(t, s, m.Shape())
	}
	_, known := s.Find(blind.key)
	require.True(t, known)
}
