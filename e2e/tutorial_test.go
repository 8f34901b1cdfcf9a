package e2e

import (
	"bufio"
	"fmt"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/docs"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

const tutorial = "examples/custom-protocol"

func source(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(peers.Root(), path))
	require.NoError(t, err)
	return string(b)
}

// TestTheTutorial does what the tutorial's README tells its reader to do, on
// other ports, and sees what it promises.
func TestTheTutorial(t *testing.T) {
	t.Parallel()
	blocks := docs.Blocks(source(t, tutorial+"/README.md"))
	require.NotEmpty(t, blocks)
	t.Run("snippets", func(t *testing.T) {
		sources := map[string]string{"yaml": "\n" + source(t, tutorial+"/envoy.yaml")}
		for _, file := range []string{"main.go", "parley/codec.go", "parley/codec_test.go", "parley/pipeline_test.go"} {
			sources["go"] += "\n" + source(t, tutorial+"/"+file)
		}
		for _, b := range blocks {
			if b.Kind == "go" || b.Kind == "yaml" {
				require.Contains(t, sources[b.Kind], "\n"+b.Text)
			}
		}
		require.Less(t, strings.Count(source(t, tutorial+"/parley/codec.go"), "\n"), 200, "as the README says")
	})
	t.Run("links", func(t *testing.T) {
		for _, file := range []string{tutorial + "/README.md", "examples/memcached/README.md", "codecs/README.md", "docs/istio.md", "examples/istio/README.md", "README.md"} {
			for _, link := range regexp.MustCompile(`\]\(([^):#]+)\)`).FindAllStringSubmatch(source(t, file), -1) {
				_, err := os.Stat(filepath.Join(peers.Root(), filepath.Dir(file), link[1]))
				require.NoError(t, err, file)
			}
		}
	})
	once(t, func(t *testing.T, v variant) {
		sh := newReader(t, v, tutorial, "build/custom-protocol", 7700, 7701, 7702, 9901)
		sh.follow(blocks)
		log := sh.file("envoy.log")
		for _, bad := range []string{"panic", "[critical]"} {
			require.NotContains(t, log, bad)
		}
	})
}

const filterTutorial = "examples/filters"

// TestTheFilterTutorial does what the README of the example filters tells: a filter from
// nothing, in a module elsewhere, to what it does in Envoy.
func TestTheFilterTutorial(t *testing.T) {
	t.Parallel()
	blocks := docs.Blocks(source(t, filterTutorial+"/README.md"))
	once(t, func(t *testing.T, v variant) {
		r := newFollower(t, v, "build/custom-filter", 7800, 7801, 9901)
		r.follow(blocks[:2]) // the module is made
		r.relocate("gate/envoy.yaml")
		sources := "\n" + r.file("gate/envoy.yaml") + r.file("gate/gate/filter.go") + r.file("gate/gate/filter_test.go")
		for _, b := range blocks {
			if b.Kind == "go" || b.Kind == "yaml" {
				require.Contains(t, sources, "\n"+b.Text)
			}
		}
		r.follow(blocks[2:])
		log := r.file("envoy.log")
		for _, bad := range []string{"panic", "[critical]"} {
			require.NotContains(t, log, bad)
		}
	})
}

// reader is somebody who does what the README of an example tells.
type reader struct {
	t        *testing.T
	dir      string
	there    *strings.Replacer // from what the README says to what is so here
	back     *strings.Replacer
	swapped  [][2]string
	ports    map[int]int
	commands io.Writer
	output   chan string
	ended    chan struct{} // the shell: a command has failed
}

// newReader is one who has its files elsewhere than dir, and other ports.
func newReader(t *testing.T, v variant, example, dir string, ports ...int) *reader {
	t.Helper()
	r := newFollower(t, v, dir, ports...)
	require.NoError(t, os.WriteFile(filepath.Join(r.dir, "envoy.yaml"), []byte(source(t, example+"/envoy.yaml")), 0o600))
	r.relocate("envoy.yaml")
	r.swap(example+"/envoy.yaml", r.dir+"/envoy.yaml")
	return r
}

// relocate gives a configuration of Envoy the ports that are so here, and a socket.
func (r *reader) relocate(file string) {
	r.t.Helper()
	config := r.file(file)
	require.NotEmpty(r.t, config, file)
	for port, own := range r.ports {
		config = strings.ReplaceAll(config, fmt.Sprintf("port_value: %d}", port), fmt.Sprintf("port_value: %d}", own))
	}
	config = strings.ReplaceAll(config, "@meltemi", envoytest.Socket())
	require.NoError(r.t, os.WriteFile(filepath.Join(r.dir, file), []byte(config), 0o600))
}

// swap has commands say is where the README says said, and what they print the reverse.
func (r *reader) swap(said, is string) {
	r.swapped = append([][2]string{{said, is}}, r.swapped...)
	var there, back []string
	for _, s := range r.swapped {
		there, back = append(there, s[0], s[1]), append(back, s[1], s[0])
	}
	r.there, r.back = strings.NewReplacer(there...), strings.NewReplacer(back...)
}

// newFollower is newReader without a configuration.
func newFollower(t *testing.T, v variant, dir string, ports ...int) *reader {
	t.Helper()
	r := &reader{t: t, dir: t.TempDir(), ports: map[int]int{}, output: make(chan string, 1000), ended: make(chan struct{})}
	r.swap(dir, r.dir)
	r.swap("build/envoy-"+newest.version+"/envoy", v.options().Bin)
	for _, port := range ports {
		r.ports[port] = peers.RestartPort(t)
		r.swap(fmt.Sprintf("127.0.0.1:%d", port), fmt.Sprintf("127.0.0.1:%d", r.ports[port]))
	}

	cmd := exec.Command("sh", "-e")
	cmd.Dir = peers.Root()
	cmd.Env = append(os.Environ(), "MAKELEVEL=", "MAKEFLAGS=") // a reader's make is not make test's child
	// What it leaves running ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, in, err := os.Pipe()
	require.NoError(t, err)
	cmd.Stdout, cmd.Stderr = in, in
	require.NoError(t, cmd.Start())
	in.Close()
	go func() {
		cmd.Wait()
		close(r.ended)
	}()
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-r.ended
		out.Close()
		if t.Failed() {
			log := r.file("envoy.log")
			t.Logf("end of Envoy's log:\n%s", log[max(0, len(log)-2000):])
		}
	})
	r.commands = stdin
	go func() {
		lines := bufio.NewReader(out)
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			r.output <- line
		}
	}()
	return r
}

func (r *reader) file(name string) string {
	b, _ := os.ReadFile(filepath.Join(r.dir, name))
	return string(b)
}

// follow executes the blocks of a README, and sees what it promises.
func (r *reader) follow(blocks []docs.Block) {
	r.t.Helper()
	var printed string
	for _, b := range blocks {
		switch b.Kind {
		case "sh":
			require.Empty(r.t, printed, "the README does not show what the block before prints:\n%s", b.Text)
			printed = r.run(b.Text)
		case "text":
			require.Regexp(r.t, b.Sample(), printed, "want:\n%s", b.Text)
			printed = ""
		}
	}
	require.Empty(r.t, printed)
}

// run executes a block and returns what it prints. It must succeed.
func (r *reader) run(block string) (printed string) {
	r.t.Helper()
	const done = "-- done --\n"
	_, err := io.WriteString(r.commands, r.there.Replace(block)+"echo '"+strings.TrimSpace(done)+"'\n")
	require.NoError(r.t, err)
	late := time.After(20 * time.Minute) // it may compile all there is, for fuzzing
	for {
		select {
		case line := <-r.output:
			if line == done || strings.HasSuffix(line, done) {
				return r.back.Replace(printed + strings.TrimSuffix(line, done))
			}
			printed += line
		case <-r.ended:
			for len(r.output) > 0 {
				printed += <-r.output
			}
			r.t.Fatalf("failed:\n%s\n%s", block, printed)
		case <-late:
			r.t.Fatalf("does not end:\n%s\n%s", block, printed)
		}
	}
}

// imports are the packages of Meltemi that a main package imports.
func imports(t *testing.T, file, under string) (paths []string) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(peers.Root(), file), nil, parser.ImportsOnly)
	require.NoError(t, err)
	for _, i := range f.Imports {
		path, err := strconv.Unquote(i.Path.Value)
		require.NoError(t, err)
		if strings.HasPrefix(path, "github.com/meltemi-mesh/meltemi/"+under) {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	return paths
}

// TestAllMainsLinkTheSameCodecs: what Envoy speaks the tool reads, and the
// tutorial's shared object has it too.
func TestAllMainsLinkTheSameCodecs(t *testing.T) {
	t.Parallel()
	want := imports(t, "envoy-build/main.go", "codecs/")
	require.NotEmpty(t, want)
	require.Equal(t, want, imports(t, "cmd/meltemi/main.go", "codecs/"))
	require.Equal(t, want, imports(t, tutorial+"/main.go", "codecs/"))
}
