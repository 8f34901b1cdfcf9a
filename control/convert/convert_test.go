package convert

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	_ "github.com/meltemi-mesh/meltemi/codecs/brpc"
	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	_ "github.com/meltemi-mesh/meltemi/codecs/thrift"
	_ "github.com/meltemi-mesh/meltemi/codecs/trpc"
	"github.com/meltemi-mesh/meltemi/control/check"
	_ "github.com/meltemi-mesh/meltemi/filters"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// told is what the command tells of a file.
func told(r *Result) string {
	var b strings.Builder
	for _, c := range r.Converted {
		fmt.Fprintf(&b, "# %d: %s\n", c.Line, c.What)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "# note: %v\n", n)
	}
	for _, l := range r.Lost {
		fmt.Fprintf(&b, "# lost: %v\n", l)
	}
	return b.String()
}

// TestFile: NAME.in.yaml becomes NAME.out.yaml, NAME.golang.yaml where there is
// that, and what is told of it is above.
func TestFile(t *testing.T) {
	inputs, err := filepath.Glob("testdata/*.in.*")
	require.NoError(t, err)
	require.NotEmpty(t, inputs)
	stale, err := filepath.Glob("testdata/*")
	require.NoError(t, err)
	for _, in := range inputs {
		text, err := os.ReadFile(in)
		require.NoError(t, err)
		stem := strings.TrimSuffix(strings.TrimSuffix(in, filepath.Ext(in)), ".in")
		stale = slices.DeleteFunc(stale, func(f string) bool { return f == in })
		for form, o := range map[string]Options{"out": {}, "golang": {Golang: true}} {
			golden := stem + "." + form + ".yaml"
			if _, err := os.Stat(golden); err != nil && (!*update || form != "out") {
				require.Equal(t, "golang", form, "no %s", golden)
				continue
			}
			stale = slices.DeleteFunc(stale, func(f string) bool { return f == golden })
			t.Run(filepath.Base(golden), func(t *testing.T) {
				r, fault := File(in, text, o)
				require.Nil(t, fault)
				got := told(r) + string(r.YAML)
				if *update {
					require.NoError(t, os.WriteFile(golden, []byte(got), 0o600))
				}
				want, err := os.ReadFile(golden)
				require.NoError(t, err)
				require.Equal(t, string(want), got)
				for _, e := range slices.Concat(r.Notes, r.Lost) {
					require.True(t, e.Line > 0 || e.Path == "", e)
				}
				for _, f := range check.File(golden, r.YAML).Faults {
					// What was not converted stays, and may be none of Envoy's.
					require.NotContains(t, f.Path, "filter_config", "%v", f)
					require.NotEmpty(t, r.Lost, "%v", f)
				}
				again, fault := File(golden, r.YAML, o)
				require.Nil(t, fault)
				if len(r.Lost) == 0 {
					require.Nil(t, again.YAML, "what is converted is left alone")
				}
			})
		}
	}
	require.Empty(t, stale, "no test has these")
}

func TestUnreadable(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"a.pb":   {"x", "want YAML or JSON"},
		"a.yaml": {"a: [", ""},
		"a.json": {"a: b", ""},
	} {
		r, fault := File(name, []byte(c.text), Options{})
		require.Nil(t, r, name)
		require.NotNil(t, fault, name)
		require.Contains(t, fault.Error(), c.want)
	}
}

func TestNothing(t *testing.T) {
	r, fault := File("-", []byte("a: b"), Options{})
	require.Nil(t, fault)
	require.Equal(t, new(Result), r)
}

// TestEqualNames: of JSON's the last counts, and what is made of it must be the only one.
func TestEqualNames(t *testing.T) {
	r, fault := File("a.json", []byte(`{"name": "d", "typed_config": {"@type": "x/google.protobuf.Empty"}, "typed_config": {
		"@type": "type.googleapis.com/envoy.extensions.filters.network.dubbo_proxy.v3.DubboProxy", "stat_prefix": "d"}}`), Options{})
	require.Nil(t, fault)
	require.Len(t, r.Converted, 1)
	require.Equal(t, 1, strings.Count(string(r.YAML), "typed_config:"))
	require.NotContains(t, string(r.YAML), "DubboProxy")
}
