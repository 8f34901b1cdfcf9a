package istio

import (
	"archive/tar"
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/control/loopback"
	"github.com/meltemi-mesh/meltemi/e2e/internal/contribhost"
	"github.com/meltemi-mesh/meltemi/e2e/internal/images"
	"github.com/meltemi-mesh/meltemi/e2e/internal/mesh"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
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
	contrib := contribhost.Binary(t)
	files["/usr/local/bin/contribhost"] = contrib
	for _, path := range append(images.Libraries(t, envoy), images.Libraries(t, contrib)...) {
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

	t.Run("proxy before 1.31", func(t *testing.T) { servesByGolang(t, proxy) })
}

// servesByGolang runs the programs of a proxy of Istio before 1.31 in an image's file system, with
// its environment and Istio's user: the imitated host of the golang filter, and the Envoy that has
// the loopback listener.
func servesByGolang(t *testing.T, image *images.Image) {
	const library = "/usr/local/lib/meltemi/libmeltemi.so"
	server := scripted.Serve(t, scripted.Answer("from the image"))
	var settings struct{ Path string }
	require.NoError(t, json.Unmarshal([]byte(image.Config.Var("MELTEMI_PROCESS")), &settings))
	for _, dir := range []string{path.Dir(settings.Path), "/tmp", "/proc", "/dev"} {
		dir = filepath.Join(image.Root, dir)
		require.NoError(t, os.MkdirAll(dir, 0o755))
		require.NoError(t, os.Chown(dir, 1337, 1337))
	}
	run := func(argv ...string) *exec.Cmd {
		cmd := exec.Command("unshare", append([]string{"--mount", "--propagation", "private", "sh", "-ec", `
mount --bind "$ROOT" "$ROOT"
mount --bind "$ROOT$OWN" "$ROOT$OWN"
mount --rbind /dev "$ROOT/dev"
mount -t proc proc "$ROOT/proc"
mount -o remount,bind,ro "$ROOT"
exec setpriv --no-new-privs chroot --userspec 1337:1337 --groups= "$ROOT" "$@"
`, "sh"}, argv...)...)
		cmd.Env = append(slices.Clone(image.Config.Env), "PATH="+os.Getenv("PATH"), "ROOT="+image.Root, "OWN="+path.Dir(settings.Path))
		log, err := os.Create(filepath.Join(t.TempDir(), "log"))
		require.NoError(t, err)
		cmd.Stderr = log
		t.Cleanup(func() {
			cmd.Process.Kill() // it may have ended
			cmd.Wait()
			log.Close()
			if said, _ := os.ReadFile(log.Name()); t.Failed() {
				t.Logf("%s\n%s", argv, said)
			}
		})
		return cmd
	}
	write := func(name string, b []byte) string {
		require.NoError(t, os.WriteFile(filepath.Join(image.Root, name), b, 0o644))
		return name
	}

	bootstrap, err := json.Marshal(map[string]any{"static_resources": map[string]any{
		"listeners": []any{loopback.Listener{Socket: settings.Path, Tunnels: true, Connect: true}.Config()},
		"clusters": []any{map[string]any{"name": "shop", "type": "STATIC", "load_assignment": map[string]any{
			"cluster_name": "shop", "endpoints": []any{map[string]any{"lb_endpoints": []any{map[string]any{
				"endpoint": map[string]any{"address": map[string]any{"socket_address": map[string]any{"address": "127.0.0.1", "port_value": server.Port}}},
			}}}},
		}}},
	}})
	require.NoError(t, err)
	envoy := run("/usr/local/bin/envoy", "-c", write("/bootstrap.json", bootstrap), "--disable-hot-restart", "-l", "warning")
	require.NoError(t, envoy.Start())

	plugin, err := anypb.New(wrapperspb.String(`{"stat_prefix": "shop", "protocol": {"name": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}},
		"route_config": {"name": "shop", "routes": [{"route": {"cluster": "shop"}}]}}`))
	require.NoError(t, err)
	b, err := proto.Marshal(plugin)
	require.NoError(t, err)
	config := contribhost.Config{Listeners: []contribhost.Listener{{Name: "shop", Address: "127.0.0.1:0", Filter: contribhost.Filter{
		LibraryID: "meltemi", LibraryPath: library, PluginName: "meta_protocol_proxy", PluginConfig: b,
	}}}}
	host := run("/usr/local/bin/contribhost", write("/contribhost.conf", []byte(config.String())))
	in, err := host.StdinPipe()
	require.NoError(t, err)
	out, err := host.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, host.Start())
	said := bufio.NewScanner(out)
	require.True(t, said.Scan(), "it is ready")
	_, err = io.WriteString(in, "listeners\n")
	require.NoError(t, err)
	require.True(t, said.Scan())
	_, port, err := net.SplitHostPort(strings.TrimPrefix(said.Text(), "shop "))
	require.NoError(t, err)
	n, err := strconv.Atoi(port)
	require.NoError(t, err)

	// The first call waits for the loopback listener.
	c := scripted.Dial(t, n)
	for id := range uint64(3) {
		c.Ask(id, dubbotest.Request{})
		require.Equal(t, "from the image", c.Read().Text())
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", host.Process.Pid))
	require.NoError(t, err)
	require.Contains(t, string(maps), library)
	info, err := os.Stat(filepath.Join(image.Root, settings.Path))
	require.NoError(t, err)
	require.Equal(t, os.ModeSocket|0o600, info.Mode(), "nobody but the proxy's user reaches the clusters")
	require.EqualValues(t, 1337, info.Sys().(*syscall.Stat_t).Uid)
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
