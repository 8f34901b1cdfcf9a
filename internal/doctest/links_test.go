package doctest

import (
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var link = regexp.MustCompile(`\]\(([^)\s]+)\)`)

// TestLinksLeadSomewhere: those to files of the project and to headings.
func TestLinksLeadSomewhere(t *testing.T) {
	n := 0
	for _, f := range files() {
		if path.Ext(f) != ".md" {
			continue
		}
		for _, m := range link.FindAllStringSubmatch(fence.ReplaceAllString(read(t, f), ""), -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			n++
			to, anchor, _ := strings.Cut(m[1], "#")
			target := f
			if to != "" {
				target = path.Join(path.Dir(f), to)
			}
			require.True(t, slices.ContainsFunc(files(), func(o string) bool {
				return o == target || strings.HasPrefix(o, target+"/")
			}), "%s: %s is not there", f, m[1])
			if anchor != "" && path.Ext(target) == ".md" {
				require.Contains(t, anchors(read(t, target)), anchor, "%s: %s", f, m[1])
			}
		}
	}
	require.Greater(t, n, 50)
}

// anchors are those that GitHub gives to headings.
func anchors(text string) (all []string) {
	for line := range strings.SplitSeq(fence.ReplaceAllString(text, ""), "\n") {
		if heading := strings.TrimLeft(line, "#"); heading != line && strings.HasPrefix(heading, " ") {
			a := strings.ToLower(strings.TrimSpace(heading))
			a = regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(a, "")
			all = append(all, strings.ReplaceAll(a, " ", "-"))
		}
	}
	return all
}

var (
	testName = regexp.MustCompile("`((?:Test|Benchmark|Fuzz)[A-Z]\\w*)`")
	testFunc = regexp.MustCompile(`(?m)^func ((?:Test|Benchmark|Fuzz)\w+)\(`)
)

// TestTestsThatDocumentsNameExist.
func TestTestsThatDocumentsNameExist(t *testing.T) {
	there := map[string]bool{}
	for _, f := range files() {
		if strings.HasSuffix(f, "_test.go") || strings.HasPrefix(f, "codecs/codectest/") && path.Ext(f) == ".go" {
			for _, m := range testFunc.FindAllStringSubmatch(read(t, f), -1) {
				there[m[1]] = true
			}
		}
	}
	for _, f := range files() {
		if path.Ext(f) != ".md" {
			continue
		}
		for _, m := range testName.FindAllStringSubmatch(read(t, f), -1) {
			require.True(t, there[m[1]], "%s: there is no %s", f, m[1])
		}
	}
}
