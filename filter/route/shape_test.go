package route

import (
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// oneByte is what varies: the property "b", which is the frame.
type oneByte struct{}

func (oneByte) Load(m *codecs.Metadata) { m.Properties()[1].Value = m.Raw }

// holed returns a shape with the property "a", and that.
func holed() *codecs.Shape {
	var shapes codecs.Shapes
	h, old := shapes.Learn([]byte("head"), []byte("tail"), message("a", "1", "b", "2"))
	s := h.Widen(old, []byte("tail"), []codecs.Hole{{To: 1, Property: 1}}, message("a", "1", "b", "2"))
	s.Rest = oneByte{}
	return s
}

// remembers checks that a table with a rule on "a" alone remembers the route with the shape,
// which its messages go on sharing.
func remembers(t *testing.T, s *codecs.Shape, shared func() *codecs.Metadata) {
	t.Helper()
	blind := mustCompile(t, `{"name": "r", "routes": [{"name": "one", "match": {"metadata": [{"name": "a", "exact_match": "1"}]}, "route": {"cluster": "c"}}]}`)
	for range 2 {
		m := shared()
		require.Equal(t, "one", blind.Match(m).Name)
		require.Equal(t, s, m.Shape())
	}
	_, known := s.Find(blind.key)
	require.True(t, known)
}

// TestWhatVariesWithinAShapeIsLookedAt by tables that have a rule on it; others remember
// the route, and leave the message its shape.
func TestWhatVariesWithinAShapeIsLookedAt(t *testing.T) {
	s := holed()
	shared := func(b string) *codecs.Metadata {
		m := &codecs.Metadata{Raw: []byte(b)}
		m.Share(s)
		return m
	}
	looks := mustCompile(t, `{"name": "r", "routes": [
		{"name": "eight", "match": {"metadata": [{"name": "B", "exact_match": "8"}]}, "route": {"cluster": "c"}},
		{"name": "one", "match": {"metadata": [{"name": "a", "exact_match": "1"}]}, "route": {"cluster": "c"}}]}`)
	for range 2 {
		require.Equal(t, "one", looks.Match(shared("7")).Name)
		require.Equal(t, "eight", looks.Match(shared("8")).Name)
	}
	remembers(t, s, func() *codecs.Metadata { return shared("7") })
}

// TestWhatIsSetBesideAShapeIsLookedAt by tables that have a rule on it, and costs others
// nothing: they find the route of the shape.
func TestWhatIsSetBesideAShapeIsLookedAt(t *testing.T) {
	var shapes codecs.Shapes
	_, s := shapes.Learn([]byte("head"), []byte("tail"), message("a", "1"))
	told := func(team string) *codecs.Metadata {
		m := new(codecs.Metadata)
		m.Share(s)
		m.Set("team", team)
		return m
	}
	looks := mustCompile(t, `{"name": "r", "routes": [
		{"name": "red", "match": {"metadata": [{"name": "Team", "exact_match": "red"}]}, "route": {"cluster": "c"}},
		{"name": "one", "match": {"metadata": [{"name": "a", "exact_match": "1"}]}, "route": {"cluster": "c"}}]}`)
	for range 2 {
		m := new(codecs.Metadata)
		m.Share(s)
		require.Equal(t, "one", looks.Match(m).Name)
		require.Equal(t, "red", looks.Match(told("red")).Name)
		require.Equal(t, "one", looks.Match(told("blue")).Name)
	}
	remembers(t, s, func() *codecs.Metadata { return told("red") })
}

// TestRulesTellWhenAShapeSaysItAll: what somebody finds by them may be kept with it.
func TestRulesTellWhenAShapeSaysItAll(t *testing.T) {
	s := holed()
	rules := func(names ...string) *Rules {
		r := new(Rules)
		for _, name := range names {
			_, err := r.Property(&routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}})
			require.Nil(t, err)
		}
		r.Freeze()
		return r
	}
	m := &codecs.Metadata{Raw: []byte("7")}
	require.Nil(t, rules("a").Shape(m), "it shares none")
	m.Share(s)
	require.Equal(t, s, rules().Shape(m))
	require.Equal(t, s, rules("a", "c").Shape(m))
	require.Nil(t, rules("a", "B").Shape(m), "it varies")
	require.Nil(t, rules("X-Request-ID").Shape(m), "it may be deferred")
	m.Set("C", "3")
	require.Nil(t, rules("a", "c").Shape(m), "it is beside the shape")
	require.Equal(t, s, rules("a").Shape(m))
}
