// Package images builds the stages of Dockerfiles by an image builder, Debian's buildah. No image is pulled: what they begin with are stand-ins under the same names.
package images

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/missing"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// Store is where images are built and kept until the end of the test.
type Store struct {
	t    *testing.T
	dir  string
	debs string // Debian's packages, unpacked
}

// Image is one that was built.
type Image struct {
	Config Config
	// Layers are the digests of their archives, the oldest first.
	Layers []string
	// Top is what the last layer has.
	Top []tar.Header
	// Root is its file system, of one that was built: it may be written to.
	Root string
}

// Config is what an image says of its containers, see OCI's image specification.
type Config struct {
	User                 string
	Env, Entrypoint, Cmd []string
	WorkingDir           string
}

// Var is a variable of its environment.
func (c *Config) Var(name string) string {
	for _, kv := range c.Env {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}

// Open makes a store with the stand-ins: of golang Debian 11, whose Go is this one; of
// Istio's proxy the files of proxy; of busybox Debian's.
func Open(t *testing.T, proxy map[string]string) *Store {
	t.Helper()
	if out, err := exec.Command("unshare", "--mount", "true").CombinedOutput(); err != nil {
		missing.Skip(t, "no mount namespaces: %s", out)
	}
	fetch := exec.Command(filepath.Join(peers.Root(), "tools", "bullseye.sh"))
	if out, err := fetch.CombinedOutput(); err != nil {
		missing.Skip(t, "%v: %s", err, out)
	}
	// Not where tests have their folders: layers are of many files, and not small.
	dir, err := os.MkdirTemp("", "images")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755))
	s := &Store{t: t, dir: dir, debs: filepath.Join(peers.Root(), "build", "debs", "images")}
	s.write("registries.conf", "unqualified-search-registries = [\"docker.io\"]\n")
	s.write("policy.json", `{"default": [{"type": "insecureAcceptAnything"}]}`)
	// The builder runs itself once more, and then without an LD_LIBRARY_PATH.
	libs, _ := filepath.Glob(filepath.Join(s.debs, "usr", "lib", "*-linux-gnu")) // the pattern is sound
	s.write("ld.conf", "include /etc/ld.so.conf\n"+strings.Join(libs, "\n")+"\n")
	s.run("/sbin/ldconfig", "-C", s.path("ld.cache"), "-f", s.path("ld.conf"))

	bullseye, err := filepath.EvalSymlinks(filepath.Join(peers.Root(), "build", "bullseye.tar.gz"))
	require.NoError(t, err)
	s.base("golang:1.24-bullseye", `ADD `+filepath.Base(bullseye)+` /
ENV PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin GOPATH=/go
`, filepath.Dir(bullseye))
	s.stand("istio/proxyv2:1.31.0", proxy, nil, `ENV ISTIO_META_ISTIO_PROXY_SHA=none
ENTRYPOINT ["/usr/local/bin/pilot-agent"]
`)
	busybox := map[string]string{"/bin/busybox": filepath.Join(s.debs, "bin", "busybox")}
	s.stand("busybox:1.37", busybox, map[string]string{"/bin/cp": "busybox", "/bin/sh": "busybox"}, "CMD [\"sh\"]\n")
	return s
}

// stand makes a stand-in of files and links, and says more of it.
func (s *Store) stand(name string, files, links map[string]string, more string) {
	s.t.Helper()
	context := s.path("context")
	at := func(to string) string {
		to = filepath.Join(context, "root", to)
		require.NoError(s.t, os.MkdirAll(filepath.Dir(to), 0o755))
		return to
	}
	for to, from := range files {
		s.run("cp", "-L", from, at(to))
	}
	for to, from := range links {
		require.NoError(s.t, os.Symlink(from, at(to)))
	}
	s.base(name, "COPY root /\n"+more, context)
	require.NoError(s.t, os.RemoveAll(context))
}

func (s *Store) base(name, steps, context string) {
	s.t.Helper()
	repository := "docker.io/" + name
	if !strings.Contains(name, "/") {
		repository = "docker.io/library/" + name
	}
	s.write("Dockerfile", "FROM scratch\n"+steps)
	s.bud(s.path("Dockerfile"), repository, context)
}

// Build builds a stage of a Dockerfile. Modules and what the compiler has cached are those
// of this machine.
func (s *Store) Build(file, target string) *Image {
	s.t.Helper()
	env := strings.Fields(s.run("go", "env", "GOROOT", "GOMODCACHE", "GOCACHE"))
	require.Len(s.t, env, 3)
	name := "localhost/" + target
	s.bud(filepath.Join(peers.Root(), file), name, peers.Root(), "--target", target,
		"--volume", env[0]+":/usr/local/go:ro", "--volume", env[1]+":/go/pkg/mod:ro", "--volume", env[2]+":/root/.cache/go-build")
	image := s.Image(name)
	container := strings.TrimSpace(s.buildah("from", "--signature-policy", s.path("policy.json"), "--pull-never", name))
	image.Root = strings.TrimSpace(s.buildah("mount", container))
	return image
}

func (s *Store) bud(file, name, context string, args ...string) {
	s.t.Helper()
	args = append([]string{"bud", "--signature-policy", s.path("policy.json"), "--isolation", "chroot", "--pull-never", "--file", file, "--tag", name}, args...)
	s.buildah(append(args, context)...)
}

// Image is what there is of a name, without a Root.
func (s *Store) Image(name string) *Image {
	s.t.Helper()
	layout := s.path("oci")
	s.buildah("push", "--signature-policy", s.path("policy.json"), name, "oci:"+layout)
	defer os.RemoveAll(layout)
	blob := func(digest string) string {
		return filepath.Join(layout, "blobs", strings.Replace(digest, ":", "/", 1))
	}
	read := func(path string, v any) {
		b, err := os.ReadFile(path)
		require.NoError(s.t, err)
		require.NoError(s.t, json.Unmarshal(b, v))
	}
	type descriptor struct{ Digest string }
	var index struct{ Manifests []descriptor }
	read(filepath.Join(layout, "index.json"), &index)
	require.Len(s.t, index.Manifests, 1)
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	read(blob(index.Manifests[0].Digest), &manifest)
	var config struct {
		Config Config
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	read(blob(manifest.Config.Digest), &config)
	require.Len(s.t, config.RootFS.DiffIDs, len(manifest.Layers))
	return &Image{
		Config: config.Config, Layers: config.RootFS.DiffIDs,
		Top: s.entries(blob(manifest.Layers[len(manifest.Layers)-1].Digest)),
	}
}

// entries are those of a layer's compressed archive.
func (s *Store) entries(path string) (entries []tar.Header) {
	s.t.Helper()
	r := tar.NewReader(strings.NewReader(s.run("gzip", "-dc", path)))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return entries
		}
		require.NoError(s.t, err)
		entries = append(entries, *h)
	}
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, name) }

func (s *Store) write(name, text string) {
	s.t.Helper()
	require.NoError(s.t, os.WriteFile(s.path(name), []byte(text), 0o644))
}

func (s *Store) buildah(args ...string) string {
	s.t.Helper()
	require.NoError(s.t, os.MkdirAll(s.path("tmp"), 0o755))
	return s.run(append([]string{
		"unshare", "--mount", "--propagation", "private", "sh", "-ec", `mount --bind "$0" /etc/ld.so.cache; exec "$@"`, s.path("ld.cache"),
		"env", "TMPDIR=" + s.path("tmp"),
		filepath.Join(s.debs, "usr", "bin", "buildah"), "--storage-driver", "vfs", "--root", s.path("store"), "--runroot", s.path("run"),
		"--registries-conf", s.path("registries.conf"),
	}, args...)...)
}

func (s *Store) run(argv ...string) string {
	s.t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	require.NoError(s.t, cmd.Run(), "%s\n%s%s", strings.Join(argv, " "), out.Bytes()[:min(out.Len(), 10_000)], &problem)
	return out.String()
}

// Libraries are those that a program is linked to, where it finds them.
func Libraries(t *testing.T, program string) (paths []string) {
	t.Helper()
	out, err := exec.Command("ldd", program).Output()
	require.NoError(t, err)
	for _, m := range regexp.MustCompile(`(?m)(/\S+) \(0x`).FindAllStringSubmatch(string(out), -1) {
		paths = append(paths, m[1])
	}
	require.NotEmpty(t, paths, fmt.Sprint(program, ": linked to nothing"))
	return paths
}
