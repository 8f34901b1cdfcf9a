package route

import (
	"fmt"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/internal/raced"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// shape is a kind of large table, with a message that its last route matches.
type shape struct {
	name  string
	sizes []int
	route func(i int) []*routev3.HeaderMatcher
	last  func(of int) []string
}

func service(i int) string { return fmt.Sprintf("org.example.Service%d", i/100) }

func exactly(name, text string) *routev3.HeaderMatcher {
	return newMatcher(8, name, text, false, false, false)
}

var shapes = []shape{
	{"interface and method", []int{10, 100, 10000}, func(i int) []*routev3.HeaderMatcher {
		return []*routev3.HeaderMatcher{exactly("interface", service(i)), exactly("method", fmt.Sprintf("method%d", i%100))}
	}, func(n int) []string {
		return []string{"interface", service(n - 1), "method", fmt.Sprintf("method%d", (n-1)%100)}
	}},
	{"what tells apart comes fourth", []int{10, 10000}, func(i int) []*routev3.HeaderMatcher {
		return []*routev3.HeaderMatcher{exactly("cell", "c"), exactly("env", "e"), exactly("lane", "l"), exactly("method", fmt.Sprintf("method%d", i))}
	}, func(n int) []string {
		return []string{"cell", "c", "env", "e", "lane", "l", "method", fmt.Sprintf("method%d", n-1)}
	}},
	// A hundred routes share an interface and are tried one by one.
	{"interface and prefix of method", []int{10, 100, 10000}, func(i int) []*routev3.HeaderMatcher {
		return []*routev3.HeaderMatcher{exactly("interface", service(i)), newMatcher(9, "method", fmt.Sprintf("method%02d", i%100), false, false, false)}
	}, func(n int) []string {
		return []string{"interface", service(n - 1), "method", fmt.Sprintf("method%02dx", (n-1)%100)}
	}},
	// Nothing to index: the worst cases, in proportion to the table.
	{"prefix of method", []int{10, 100, 10000}, func(i int) []*routev3.HeaderMatcher {
		return []*routev3.HeaderMatcher{newMatcher(9, "method", fmt.Sprintf("method%05d", i), false, false, false)}
	}, func(n int) []string { return []string{"method", fmt.Sprintf("method%05dx", n-1)} }},
	{"regex on method", []int{10, 100, 10000}, func(i int) []*routev3.HeaderMatcher {
		return []*routev3.HeaderMatcher{newMatcher(12, "method", fmt.Sprintf("method%05d.*", i), false, false, false)}
	}, func(n int) []string { return []string{"method", fmt.Sprintf("method%05dx", n-1)} }},
}

func (s shape) table(t testing.TB, n int) (*Table, *codecs.Metadata) {
	rc := &routev1alpha.RouteConfiguration{}
	for i := range n {
		rc.Routes = append(rc.Routes, route(s.route(i)...))
	}
	rc.Routes[n-1].Name = "last"
	table, faults := Compile(rc, Env{})
	require.Empty(t, faults)
	m := message(append(s.last(n), "path", "x", "version", "1", "tenant", "acme")...)
	require.Equal(t, "last", table.Match(m).Name)
	return table, m
}

func TestMatchingDoesNotAllocate(t *testing.T) {
	// All but the regex: package regexp has its machines from a pool, which the
	// race detector empties at will.
	for _, s := range shapes[:4] {
		t.Run(s.name, func(t *testing.T) {
			table, m := s.table(t, 100)
			require.Zero(t, raced.AllocsPerRun(t, 100, func() { table.Match(m) }))
		})
	}
}

// TestTheIndexLeavesFewRoutesToTry counts instead of measuring time.
func TestTheIndexLeavesFewRoutesToTry(t *testing.T) {
	for _, tc := range []struct {
		shape int
		want  int // routes in the largest group that is tried one by one
	}{{0, 1}, {1, 1}, {2, 100}, {3, 10000}} {
		t.Run(shapes[tc.shape].name, func(t *testing.T) {
			table, _ := shapes[tc.shape].table(t, 10000)
			most := len(table.index.others)
			for i := range table.index.tries {
				most = max(most, largest(table.index.tries[i].root))
			}
			require.Equal(t, tc.want, most)
		})
	}
}

func largest(n *node) int {
	most := len(n.routes)
	for _, child := range n.next {
		most = max(most, largest(child))
	}
	return most
}

func BenchmarkMatch(b *testing.B) {
	for _, s := range shapes {
		for _, n := range s.sizes {
			b.Run(fmt.Sprintf("%s/%d", s.name, n), func(b *testing.B) {
				table, m := s.table(b, n)
				b.ReportAllocs()
				for b.Loop() {
					table.Match(m)
				}
			})
		}
	}
}

// BenchmarkMatchManyProperties is the largest message that a codec lets
// through, against a table without an index.
func BenchmarkMatchManyProperties(b *testing.B) {
	table, _ := shapes[3].table(b, 10000)
	var kvs []string
	for i := range 1024 {
		kvs = append(kvs, fmt.Sprintf("k%05d", i), "v")
	}
	m := message(kvs...)
	b.ReportAllocs()
	for b.Loop() {
		table.Match(m)
	}
}
