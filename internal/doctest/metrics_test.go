package doctest

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/metrics"
)

// TestEachMetricIsDescribed, once, and nothing else is.
func TestEachMetricIsDescribed(t *testing.T) {
	want := []string{metrics.RequestTime}
	for c := range metrics.Counters {
		want = append(want, c.String())
	}
	for g := range metrics.Gauges {
		want = append(want, g.String())
	}
	var described []string
	for _, r := range rows(section(t, read(t, "docs/metrics.md"), "# Metrics")) {
		require.Len(t, r, 3, r)
		require.NotEmpty(t, r[1], r[0])
		require.NotEmpty(t, r[2], r[0])
		switch name := strings.Trim(r[0], "`"); {
		case strings.HasPrefix(name, "meltemi_"): // of the process
			require.True(t, declared().literal(name), name)
		case strings.HasPrefix(name, "meta_protocol."): // of a host
			require.True(t, declared().literal(strings.TrimPrefix(name, "meta_protocol.")), name)
		default:
			described = append(described, name)
		}
	}
	slices.Sort(want)
	slices.Sort(described)
	require.Equal(t, want, described)
}

// TestCountersThatDocumentsNameExist.
func TestCountersThatDocumentsNameExist(t *testing.T) {
	n := 0
	for _, r := range rows(section(t, read(t, "DESIGN.md"), "## Bounds")) {
		for _, name := range spans(r[len(r)-1]) {
			require.True(t, metric(name), "%s: no counter %s", r[0], name)
			n++
		}
	}
	require.Greater(t, n, 20)
}

func metric(name string) bool {
	for c := range metrics.Counters {
		if c.String() == name {
			return true
		}
	}
	for g := range metrics.Gauges {
		if g.String() == name {
			return true
		}
	}
	return name == metrics.RequestTime
}

var plain = regexp.MustCompile(`^[a-z_]+$`)

// TestWhatCanGoWrong: the lines of the log that README.md tells of are some that the
// code writes, and the counters exist.
func TestWhatCanGoWrong(t *testing.T) {
	table := rows(section(t, read(t, "README.md"), "## What can go wrong"))
	require.GreaterOrEqual(t, len(table), 10)
	for _, r := range table {
		require.Len(t, r, 3, r)
		require.NotEmpty(t, r[2], r[0])
		lines := spans(r[1])
		require.NotEmpty(t, lines, r[0])
		for _, line := range lines {
			if plain.MatchString(line) {
				require.True(t, metric(line), "no counter %s", line)
				continue
			}
			// … stands for what is filled in.
			for part := range strings.SplitSeq(line, "…") {
				require.True(t, declared().literal(strings.TrimSpace(part)), "%s: the code does not say %q", r[0], part)
			}
		}
	}
}
