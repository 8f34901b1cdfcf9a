package doctest

import (
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// shape are the parts of the README of a directory with a concern of its own.
var shape = []string{"## What it does", "## How it works", "## Rules", "## Files", "## Testing"}

// filterShape is that of a filter's page. One that counts nothing has no counters, and
// how it works may be told behind what it does.
var filterShape = []string{"## What it does", "## Configuration", "## Counters", "## Rules", "## Files", "## Testing"}

// shaped have such a README. Any other that begins like one is held to it, too, and so
// are those of filters.
var shaped = []string{
	"filter", "filter/upstream", "filter/forward", "envoy-build/dynamicmodules", "control", "cmd",
}

var listing = regexp.MustCompile(`(?m)^[\w./-]+(?:\.go|\.c|\.h|/)$`)

func TestReadmesHaveOneShape(t *testing.T) {
	dirs := slices.Clone(shaped)
	for _, f := range files() {
		if dir := path.Dir(f); path.Base(f) == "README.md" && !slices.Contains(dirs, dir) &&
			strings.Contains(read(t, f), "\n"+shape[0]+"\n") {
			dirs = append(dirs, dir)
		}
	}
	for _, f := range sources() {
		if dir := path.Dir(f); path.Dir(dir) == "filters" && !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	for _, dir := range dirs {
		t.Run(dir, func(t *testing.T) {
			text := read(t, path.Join(dir, "README.md"))
			require.True(t, strings.HasPrefix(text, "# "+path.Base(dir)+"\n"), "its title is the directory's name")
			var headings []string
			for line := range strings.SplitSeq(fence.ReplaceAllString(text, ""), "\n") {
				if strings.HasPrefix(line, "## ") {
					headings = append(headings, line)
				}
			}
			want := shape
			if path.Dir(dir) == "filters" {
				want = slices.Clone(filterShape)
				if !slices.Contains(headings, "## Counters") {
					require.False(t, counts(t, dir), "there is no ## Counters")
					want = slices.DeleteFunc(want, func(h string) bool { return h == "## Counters" })
				}
				if slices.Contains(headings, "## How it works") {
					want = slices.Insert(want, 1, "## How it works")
				}
			}
			require.Equal(t, want, headings)
			for _, h := range want {
				require.NotEmpty(t, strings.TrimSpace(section(t, text, h)), h)
			}
			checkFiles(t, dir, section(t, text, "## Files"))
		})
	}
}

// counts reports whether a filter defines a metric.
func counts(t *testing.T, dir string) bool {
	return slices.ContainsFunc(sources(), func(f string) bool {
		return path.Dir(f) == dir && regexp.MustCompile(`\.(Counter|Gauge|Histogram)\(`).MatchString(read(t, f))
	})
}

// checkFiles holds a list of files and folders against the directory.
func checkFiles(t *testing.T, dir, text string) {
	var has []string // sources, and folders with such
	for _, f := range sources() {
		rel, below := strings.CutPrefix(f, dir+"/")
		if !below {
			continue
		}
		if first, _, deeper := strings.Cut(rel, "/"); deeper {
			rel = first + "/"
		}
		if !slices.Contains(has, rel) {
			has = append(has, rel)
		}
	}
	listed := listing.FindAllString(strings.Join(spans(text), "\n"), -1)
	there := func(l string) bool {
		p := path.Join(dir, l)
		return slices.ContainsFunc(files(), func(f string) bool {
			return f == p || strings.HasSuffix(l, "/") && strings.HasPrefix(f, p+"/")
		})
	}
	for i, l := range listed { // one behind another may lack their folder
		if i > 0 && !there(l) {
			listed[i] = path.Dir(listed[i-1]) + "/" + l
		}
	}
	for _, h := range has {
		require.True(t, slices.ContainsFunc(listed, func(l string) bool {
			return l == h || strings.HasSuffix(h, "/") && strings.HasPrefix(l, h)
		}), "%s is not listed", h)
	}
	for _, l := range listed {
		require.True(t, there(l), "%s is listed and gone", l)
	}
}
