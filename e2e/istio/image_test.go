package istio

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/images"
	"github.com/meltemi-mesh/meltemi/e2e/internal/mesh"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// TestTheImages: an image builder makes of the Dockerfiles what the guides promise:
// one layer more, a shared object that everybody may read and nobody but root may change,
// and that loads where the proxies run. The copier brings it into a volume. A proxy runs
// from its image as Istio starts it, in a mesh; the operator from its own as the chart says.
func TestTheImages(t *testing.T) {
	agent, envoy := world.Programs()
	files := map[string]string{
		"/usr/local/bin/pilot-agent": agent, "/usr/local/bin/envoy": envoy,
		"/var/lib/istio/envoy/envoy_bootstrap_tmpl.json": filepath.Join(peers.Root(), "build", "istio", "bootstrap.json"),
	}
	for _, path := range images.Libraries(t, envoy) {
		files[path] = path
	}
	store := images.Open(t, files)
	proxy, copier := store.Build("envoy-build/Dockerfile", "proxy"), store.Build("envoy-build/Dockerfile", "copier")

	t.Run("layers", func(t *testing.T) {
		for _, tc := range []struct {
			image, base *images.Image
			so          string
		}{
			{proxy, store.Image("docker.io/istio/proxyv2:1.31.0"), "usr/local/lib/meltemi/libmeltemi.so"},
			{copier, store.Image("docker.io/library/busybox:1.37"), "libmeltemi.so"},
		} {
			last := len(tc.image.Layers) - 1
			require.Equal(t, tc.base.Layers, tc.image.Layers[:last])
			for _, h := range tc.image.Top {
				name := strings.Trim(strings.TrimPrefix(h.Name, "./"), "/")
				require.True(t, strings.HasPrefix(tc.so, name), "%s is in the layer, too", h.Name)
				require.Zero(t, h.Uid+h.Gid, h.Name)
				require.Equal(t, int64(0o755), h.Mode&0o7777, h.Name)
				require.True(t, h.Typeflag == tar.TypeReg && name == tc.so || h.Typeflag == tar.TypeDir, h.Name)
			}
			require.NotEmpty(t, tc.image.Top)
			oldest(t, filepath.Join(tc.image.Root, tc.so))
			require.Subset(t, libraries(t, envoy), libraries(t, filepath.Join(tc.image.Root, tc.so)))
			require.Equal(t, tc.base.Config.Entrypoint, tc.image.Config.Entrypoint)
			require.Subset(t, tc.image.Config.Env, tc.base.Config.Env)
		}
		require.Equal(t, "/usr/local/lib/meltemi", proxy.Config.Var("ENVOY_DYNAMIC_MODULES_SEARCH_PATH"))
		require.Equal(t, "true", proxy.Config.Var("ISTIO_META_MELTEMI"))
		require.True(t, json.Valid([]byte(proxy.Config.Var("MELTEMI_PROCESS"))))
		require.Empty(t, proxy.Config.User)
		require.Equal(t, "1337:1337", copier.Config.User)
	})

	t.Run("copier", func(t *testing.T) {
		volume := filepath.Join(copier.Root, "meltemi")
		require.NoError(t, os.Mkdir(volume, 0o777))
		require.NoError(t, os.Chmod(volume, 0o777))
		argv := append([]string{"chroot", "--userspec", copier.Config.User, "--groups=", copier.Root}, copier.Config.Cmd...)
		out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
		require.NoError(t, err, "%s", out)
		path := filepath.Join(volume, "libmeltemi.so")
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o755), info.Mode())
		want, err := os.ReadFile(filepath.Join(copier.Root, "libmeltemi.so"))
		require.NoError(t, err)
		got, err := os.ReadFile(path)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got))
	})

	t.Run("proxy", func(t *testing.T) {
		s := openShopTo(t, mesh.PodSpec{Image: &mesh.Image{Root: proxy.Root, Env: proxy.Config.Env, Entrypoint: proxy.Config.Entrypoint}}, "v1", "v2")
		s.route("routes: [{route: {subset: v1}}]")
		answers(t, s.consumer(peers.DubboGo, peers.ConsumerOptions{}), 100, "v1")
		of := func(file string) string {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", s.client.Pid(), file))
			require.NoError(t, err)
			return string(b)
		}
		require.Regexp(t, `\nUid:(\t1337){4}\n`, of("status"))
		require.Regexp(t, `\nCapEff:\t0+\n`, of("status"))
		require.Regexp(t, `(?m)^\S+ / \S+ ro\b`, of("mounts"))
	})

	t.Run("operator", func(t *testing.T) {
		image := store.Build("control/operator/Dockerfile", "operator")
		require.Len(t, image.Layers, 1)
		require.Len(t, image.Top, 1, "nothing but the program")
		program := image.Top[0]
		require.Equal(t, "meltemi-operator", strings.TrimPrefix(program.Name, "./"))
		require.Zero(t, program.Uid+program.Gid)
		require.Equal(t, int64(0o755), program.Mode&0o7777)
		require.Equal(t, "65532:65532", image.Config.User)
		f, err := elf.Open(filepath.Join(image.Root, program.Name))
		require.NoError(t, err)
		defer f.Close()
		require.Nil(t, f.Section(".interp"), "it needs libraries")

		c := openCluster(t)
		c.image = mesh.Image{Root: image.Root, Env: image.Config.Env, Entrypoint: image.Config.Entrypoint}
		c.install()
		c.operator().Start()
	})
}

// libraries are those that a program or a shared object needs.
func libraries(t *testing.T, path string) []string {
	t.Helper()
	f, err := elf.Open(path)
	require.NoError(t, err)
	defer f.Close()
	names, err := f.ImportedLibraries()
	require.NoError(t, err)
	require.NotEmpty(t, names)
	return names
}

// oldest: the object is linked to what Debian 11 has, glibc 2.31.
func oldest(t *testing.T, so string) {
	t.Helper()
	f, err := elf.Open(so)
	require.NoError(t, err)
	defer f.Close()
	symbols, err := f.ImportedSymbols()
	require.NoError(t, err)
	versions := 0
	for _, s := range symbols {
		if v, ok := strings.CutPrefix(s.Version, "GLIBC_2."); ok {
			minor, _, _ := strings.Cut(v, ".")
			n, err := strconv.Atoi(minor)
			require.NoError(t, err)
			require.LessOrEqual(t, n, 31, s.Name)
			versions++
		}
	}
	require.Positive(t, versions)
}
