package command

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// repository is Meltemi's, skipped where tests run without it.
func repository(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("../../..")
	require.NoError(t, err)
	if mod, err := os.ReadFile(filepath.Join(root, "go.mod")); err != nil || !isMeltemi(mod) {
		t.Skip("the repository is not at hand")
	}
	return root
}

func newCodec(args ...string) (status int, stdout, stderr string) {
	return command(append([]string{"new-codec"}, args...)...)
}

func command(args ...string) (status int, stdout, stderr string) {
	var out, complaints bytes.Buffer
	status = Main(args, strings.NewReader(""), &out, &complaints)
	return status, out.String(), complaints.String()
}

// TestNewModulesWork: they build, and their tests, tools and configurations are sound, as
// they are, formatted, and without the network.
func TestNewModulesWork(t *testing.T) {
	root := repository(t)
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("no go")
	}
	for kind, checked := range map[string]string{
		"codec": `envoy.yaml: an Envoy bootstrap, as Envoy reads YAML
envoy.yaml:24: meta_protocol_proxy, stat_prefix "local"
envoy.yaml:64: carrier
`,
		"filter": `envoy.yaml: an Envoy bootstrap, as Envoy reads YAML
envoy.yaml:24: meta_protocol_proxy, stat_prefix "local"
envoy.yaml:76: carrier
`,
	} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			t.Chdir(root) // found without being told
			status, stdout, stderr := command("new-"+kind, "-dir", dir, "hello")
			require.Zero(t, status, stderr)
			require.Contains(t, stdout, "a module with the "+kind+` "hello" and all that it needs`)
			require.Contains(t, stdout, filepath.Join(dir, "hello", "README.md")+" says what is next\n")
			run := func(name string, args ...string) string {
				cmd := exec.Command(name, args...)
				cmd.Dir = filepath.Join(dir, "hello")
				cmd.Env = append(os.Environ(), "GOPROXY=off", "GOFLAGS=-mod=readonly", "GOWORK=off")
				out, err := cmd.CombinedOutput()
				require.NoError(t, err, "%s %s\n%s", name, args, out)
				return string(out)
			}
			run("go", "vet", "./...")
			run("go", "test", "./hello")
			require.Equal(t, checked, run("go", "run", "./meltemi", "check", "envoy.yaml"))
			if gofmt, err := exec.LookPath("gofmt"); err == nil {
				require.Empty(t, run(gofmt, "-l", "."))
			}
		})
	}
}

// TestNewModulesHaveTheLoopbackOfTheTutorial, which is the same everywhere.
func TestNewModulesHaveTheLoopbackOfTheTutorial(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(repository(t), "examples/custom-protocol/envoy.yaml"))
	require.NoError(t, err)
	section := func(text string) string {
		_, text, found := strings.Cut(text, "  - name: meltemi-loopback\n")
		require.True(t, found)
		text, _, found = strings.Cut(text, "\n  clusters:\n")
		require.True(t, found)
		return text
	}
	for kind := range newKinds {
		files, err := (&newModule{kind: kind, Name: "parley"}).files()
		require.NoError(t, err)
		require.Equal(t, section(string(b)), section(string(files["envoy.yaml"])))
	}
}

func TestWhereANewCodecFindsMeltemi(t *testing.T) {
	root := repository(t)
	t.Chdir(t.TempDir())
	status, _, stderr := newCodec("hello")
	require.Equal(t, statusFault, status)
	require.Equal(t, "meltemi: this program is of no released version: say where Meltemi's repository is, with -meltemi\n", stderr)

	status, _, stderr = newCodec("-meltemi", root, "-module", "example.org/rpc/hello", "hello")
	require.Zero(t, status, stderr)
	mod, err := os.ReadFile("hello/go.mod")
	require.NoError(t, err)
	require.Contains(t, string(mod), "module example.org/rpc/hello\n")
	require.Contains(t, string(mod), "replace github.com/meltemi-mesh/meltemi => "+root+"\n")

	blank := filepath.Join(t.TempDir(), "a b")
	require.NoError(t, os.Symlink(root, blank))
	status, _, stderr = newCodec("-meltemi", blank, "other")
	require.Zero(t, status, stderr)
	mod, err = os.ReadFile("other/go.mod")
	require.NoError(t, err)
	require.Contains(t, string(mod), `replace github.com/meltemi-mesh/meltemi => "`+blank+"\"\n")

	within, err := from(filepath.Join(root, "examples", "hello"), root)
	require.NoError(t, err)
	require.Equal(t, "../..", within)
}

func TestNewCodecsThatAreRefused(t *testing.T) {
	root := repository(t)
	t.Chdir(t.TempDir())
	require.NoError(t, os.Mkdir("taken", 0o755))
	require.NoError(t, os.WriteFile("file", nil, 0o600))
	other := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(other, "go.mod"), []byte("module example.com/other\n"), 0o600))
	for _, tc := range []struct {
		name   string
		args   []string
		status int
		says   string
	}{
		{"no name", nil, statusUsage, "new-codec wants 1 argument, got 0"},
		{"two names", []string{"a", "b"}, statusUsage, "new-codec wants at most 1 argument, got 2"},
		{"empty", []string{""}, statusUsage, `"" is no name of a protocol: want lower-case letters and digits`},
		{"upper case", []string{"Hello"}, statusUsage, `"Hello" is no name of a protocol`},
		{"a digit first", []string{"2pc"}, statusUsage, `"2pc" is no name of a protocol`},
		{"a path", []string{"../hello"}, statusUsage, `"../hello" is no name of a protocol`},
		{"long", []string{strings.Repeat("x", 41)}, statusUsage, "is no name of a protocol"},
		{"keyword", []string{"select"}, statusUsage, `"select" is a word that means something else to Go or to this tool`},
		{"folder with a meaning", []string{"internal"}, statusUsage, `"internal" is a word that means something else to Go or to this tool`},
		{"what decode knows", []string{"auto"}, statusUsage, `"auto" is a word that means something else to Go or to this tool`},
		{"folder of the tool", []string{"meltemi"}, statusUsage, `the module has a folder "meltemi" already, for a tool`},
		{"module path of Go", []string{"-module", "net/http", "hello"}, statusUsage, "net/http is a package of Go's own"},
		{"linked codec", []string{"dubbo"}, statusUsage, `there is a codec "dubbo" already`},
		{"module path", []string{"-module", "a b", "hello"}, statusUsage, `"a b" is no path of a module`},
		{"module path of Meltemi", []string{"-module", module + "/x", "hello"}, statusUsage, "is Meltemi's own path"},
		{"folder that is there", []string{"-meltemi", root, "taken"}, statusFault, "taken is there already"},
		{"file that is there", []string{"-meltemi", root, "file"}, statusFault, "file is there already"},
		{"folder that is not there", []string{"-meltemi", root, "-dir", "none", "hello"}, statusFault, "none"},
		{"another repository", []string{"-meltemi", other, "hello"}, statusFault, other + " is not Meltemi's repository: its go.mod is that of another module"},
		{"no repository", []string{"-meltemi", "none", "hello"}, statusFault, "none is not Meltemi's repository"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			status, stdout, stderr := newCodec(tc.args...)
			require.Equal(t, tc.status, status)
			require.Empty(t, stdout)
			require.Contains(t, stderr, tc.says)
			entries, err := os.ReadDir(".")
			require.NoError(t, err)
			require.Len(t, entries, 2, "nothing is written")
		})
	}
}

func TestNewFiltersThatAreRefused(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, tc := range []struct{ name, says string }{
		{"router", `there is a filter "router" already`},
		{"try", `the module has a folder "try" already, for a tool`},
		{"Gate", `"Gate" is no name of a filter`},
	} {
		status, _, stderr := command("new-filter", tc.name)
		require.Equal(t, statusUsage, status)
		require.Contains(t, stderr, tc.says)
	}
}
