package codectest

import (
	"fmt"
	"os"
	"strings"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// golden checks that the captures decode as the golden file says.
func (c *check) golden() {
	if c.s.Golden == "" {
		c.skipped = "the suite has no golden file"
		return
	}
	var b strings.Builder
	c.each(captured, func(st *stream) {
		fmt.Fprintf(&b, "# %s\n", st.name)
		c.walk(st, "", func(_ where, _ int, m *codecs.Metadata) { b.WriteString(Describe(m) + "\n") })
	})
	got := b.String()
	if *update {
		if err := os.WriteFile(c.s.Golden, []byte(got), 0o600); err != nil {
			c.errorf("%v", err)
		}
		return
	}
	want, err := os.ReadFile(c.s.Golden)
	if err != nil {
		c.errorf("%v (go test -update writes it)", err)
		return
	}
	if d := firstDifference(string(want), got); d != "" {
		c.errorf("%s differs from what the captures decode to (go test -update rewrites it): %s", c.s.Golden, d)
	}
}

// firstDifference of two texts, with the title above it.
func firstDifference(want, got string) string {
	w, g := strings.SplitAfter(want, "\n"), strings.SplitAfter(got, "\n")
	title := ""
	for i := range max(len(w), len(g)) {
		var x, y string
		if i < len(w) {
			x = w[i]
		}
		if i < len(g) {
			y = g[i]
		}
		if x != y {
			return fmt.Sprintf("line %d, %s\nwant %sgot  %s", i+1, title, x, y)
		}
		if strings.HasPrefix(x, "#") {
			title = strings.TrimSpace(x)
		}
	}
	return ""
}
