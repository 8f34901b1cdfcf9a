package doctest

import (
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var mapLine = regexp.MustCompile(`^( *)(\S+) +(\S.*)$`)

// TestTheFileMapIsComplete: each directory with sources is in it, of filter and
// filter/upstream each file, and nothing that is gone.
func TestTheFileMapIsComplete(t *testing.T) {
	listed := map[string]bool{}
	var whole []string // with all below
	blocks := fence.FindAllStringSubmatch(section(t, read(t, "DESIGN.md"), "## File map"), -1)
	require.Len(t, blocks, 1)
	var above []string
	for line := range strings.SplitSeq(strings.TrimSpace(blocks[0][2]), "\n") {
		if line == "" {
			continue
		}
		m := mapLine.FindStringSubmatch(line)
		require.NotNil(t, m, "%q has no description", line)
		depth := len(m[1]) / 2
		require.LessOrEqual(t, depth, len(above), line)
		name, all := strings.CutSuffix(m[2], "…")
		p := path.Join(append(slices.Clone(above[:depth]), name)...)
		require.False(t, listed[p], "%s is listed twice", p)
		listed[p] = true
		if strings.HasSuffix(name, "/") {
			above = append(above[:depth], strings.TrimSuffix(name, "/"))
		}
		if all {
			whole = append(whole, p+"/")
		}
	}
	there := map[string]bool{}
	for _, f := range files() {
		there[f] = true
		for dir := path.Dir(f); dir != "."; dir = path.Dir(dir) {
			there[dir] = true
		}
	}
	for p := range listed {
		require.True(t, there[p], "%s is in the file map and gone", p)
	}
	for _, f := range sources() {
		dir := path.Dir(f)
		if slices.ContainsFunc(whole, func(w string) bool { return strings.HasPrefix(f, w) }) {
			continue
		}
		require.True(t, listed[dir], "%s is not in the file map", dir)
		if dir == "filter" || dir == "filter/upstream" {
			require.True(t, listed[f], "%s is not in the file map", f)
		}
	}
}

// TestTheWayOfARequestIsThere: each function that it names exists.
func TestTheWayOfARequestIsThere(t *testing.T) {
	names := spans(section(t, read(t, "DESIGN.md"), "## The way of a request"))
	require.Greater(t, len(names), 30)
	for _, n := range names {
		if path.Ext(n) == ".c" {
			continue
		}
		require.True(t, declared().funcs[n], "no function %s", n)
	}
}

var arrow = regexp.MustCompile(`(?m)^ +(\S+) --> ([^\s:]+)`)

// states are those of the diagram of a section.
func states(t *testing.T, heading string) []string {
	blocks := fence.FindAllStringSubmatch(section(t, read(t, "DESIGN.md"), heading), -1)
	require.Len(t, blocks, 1)
	require.Equal(t, "mermaid", blocks[0][1])
	found := map[string]bool{}
	for _, m := range arrow.FindAllStringSubmatch(blocks[0][2], -1) {
		found[m[1]], found[m[2]] = true, true
	}
	delete(found, "[*]")
	return slices.Sorted(maps.Keys(found))
}

// TestTheStateDiagramsHaveTheStatesOfTheCode.
func TestTheStateDiagramsHaveTheStatesOfTheCode(t *testing.T) {
	for heading, typ := range map[string]string{
		"### An upstream connection": "filter/upstream.connState",
		"### A carrier":              "envoy-build/internal/carrier.state",
	} {
		require.Equal(t, slices.Sorted(slices.Values(declared().consts[typ])), states(t, heading), heading)
	}
	// A client connection's are fields of it and its parts, but for those in which
	// none is set.
	c := declared().fields
	fields := slices.Concat(c["filter.connection"], c["filter.output"], c["filter.departure"])
	var named []string
	for _, s := range states(t, "### A client connection") {
		if s != "sniffing" && s != "speaking" {
			require.Contains(t, fields, s)
			named = append(named, s)
		}
	}
	require.Equal(t, []string{"closed", "draining", "dropped", "ending", "finishing", "plain"}, named)
}
