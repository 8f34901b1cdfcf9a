package e2e

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/control/translate/envoyfilter"
	"github.com/meltemi-mesh/meltemi/e2e/internal/docs"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/missing"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// stage is one of a Dockerfile's.
type stage struct {
	from, name string
	steps      [][]string // instruction, then its arguments
}

// stages reads a Dockerfile.
func stages(t *testing.T, path string) (stages []*stage) {
	t.Helper()
	text := strings.ReplaceAll(source(t, path), "\\\n", " ")
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0 || strings.HasPrefix(words[0], "#"):
		case words[0] == "FROM":
			require.Len(t, words, 4, line)
			stages = append(stages, &stage{from: words[1], name: words[3]})
		case len(stages) > 0:
			s := stages[len(stages)-1]
			s.steps = append(s.steps, words)
		default:
			require.Equal(t, "ARG", words[0], line)
		}
	}
	return stages
}

// image builds what a stage of the Dockerfile adds to its base into root, and
// returns the environment that it sets.
func image(t *testing.T, name, root string) (env map[string]string) {
	t.Helper()
	all := stages(t, "envoy-build/Dockerfile")
	find := func(name string) *stage {
		i := slices.IndexFunc(all, func(s *stage) bool { return s.name == name })
		require.GreaterOrEqual(t, i, 0, name)
		return all[i]
	}
	// The build's working directory is the repository.
	workdir := ""
	for _, step := range find("build").steps {
		switch step[0] {
		case "WORKDIR":
			workdir = step[1]
		case "COPY":
			require.Equal(t, []string{"COPY", ".", "."}, step)
		case "RUN":
			cmd := exec.Command("sh", "-c", strings.Join(step[1:], " "))
			cmd.Dir = peers.Root()
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
		case "ENV": // of an older Go than this one
		default:
			require.Fail(t, "unknown step", step)
		}
	}
	env = map[string]string{}
	for _, step := range find(name).steps {
		switch step[0] {
		case "COPY":
			copied(t, step[1:], workdir, root)
		case "ENV":
			for _, kv := range step[1:] {
				k, v, ok := strings.Cut(kv, "=")
				require.True(t, ok, kv)
				env[k] = v
			}
		case "USER", "CMD":
		default:
			require.Fail(t, "a distroless image has no shell to run it in", step)
		}
	}
	return env
}

// copied does a COPY from the build.
func copied(t *testing.T, args []string, workdir, root string) {
	t.Helper()
	var uid, gid int
	var mode uint64
	var paths []string
	for _, arg := range args {
		flag, value, _ := strings.Cut(arg, "=")
		var err error
		switch flag {
		case "--from":
			require.Equal(t, "build", value)
		case "--chown":
			_, err = fmt.Sscanf(value, "%d:%d", &uid, &gid)
		case "--chmod":
			mode, err = strconv.ParseUint(value, 8, 32)
		default:
			require.False(t, strings.HasPrefix(arg, "-"), arg)
			paths = append(paths, arg)
		}
		require.NoError(t, err)
	}
	require.Len(t, paths, 2)
	from, ok := strings.CutPrefix(paths[0], workdir+"/")
	require.True(t, ok, paths[0])
	b, err := os.ReadFile(filepath.Join(peers.Root(), from))
	require.NoError(t, err)
	to := filepath.Join(root, paths[1])
	require.NoError(t, os.MkdirAll(filepath.Dir(to), 0o755))
	require.NoError(t, os.WriteFile(to, b, 0o600))
	require.NoError(t, os.Chmod(to, os.FileMode(mode)))
	if os.Geteuid() == 0 {
		require.NoError(t, os.Chown(to, uid, gid))
	}
}

func file(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(b)
}

// TestImages: the shared object is in each of them, everybody may read and
// nobody but root may change it, and it loads where the proxies run.
func TestImages(t *testing.T) {
	for name, want := range map[string]struct {
		path string
		env  map[string]string
	}{
		"proxy": {"/usr/local/lib/meltemi/libmeltemi.so", map[string]string{
			"ENVOY_DYNAMIC_MODULES_SEARCH_PATH": "/usr/local/lib/meltemi", "ISTIO_META_MELTEMI": "true",
		}},
		"copier": {"/libmeltemi.so", map[string]string{}},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			require.Equal(t, want.env, image(t, name, root))
			so := filepath.Join(root, want.path)
			info, err := os.Stat(so)
			require.NoError(t, err)
			require.Equal(t, os.FileMode(0o755), info.Mode())
			if os.Geteuid() == 0 {
				stat := info.Sys().(*syscall.Stat_t)
				require.Zero(t, stat.Uid)
				require.Zero(t, stat.Gid)
			}
			checkSharedObject(t, so, runtime.GOARCH)
		})
	}
}

// TestTheGuideBuildsTheseImages: the commands of docs/istio.md that want a container
// engine name stages, arguments and files that there are, and give the images the
// names that the patches of pods use.
func TestTheGuideBuildsTheseImages(t *testing.T) {
	all := stages(t, "envoy-build/Dockerfile")
	dockerfile := source(t, "envoy-build/Dockerfile")
	tags := map[string]string{}
	for _, b := range docs.Blocks(source(t, "docs/istio.md")) {
		if b.Kind != "console" {
			continue
		}
		flags := flag.NewFlagSet("docker buildx build", flag.ContinueOnError)
		file, target := flags.String("f", "", ""), flags.String("target", all[len(all)-1].name, "")
		arg, tag := flags.String("build-arg", "", ""), flags.String("tag", "", "")
		platform := flags.String("platform", "", "")
		flags.Bool("push", false, "")
		command, ok := strings.CutPrefix(strings.TrimSpace(b.Text), "docker buildx build ")
		require.True(t, ok, b.Text)
		require.NoError(t, flags.Parse(strings.Fields(command)))
		require.Equal(t, []string{"."}, flags.Args())
		require.Equal(t, "envoy-build/Dockerfile", *file)
		require.Equal(t, "linux/amd64,linux/arm64", *platform)
		require.True(t, slices.ContainsFunc(all, func(s *stage) bool { return s.name == *target }), *target)
		if *arg != "" {
			name, _, _ := strings.Cut(*arg, "=")
			require.Contains(t, dockerfile, "\nARG "+name+"=")
		}
		tags[*target] = *tag
	}
	require.Len(t, tags, 2)
	require.Contains(t, source(t, "examples/istio/image.yaml"), "sidecar.istio.io/proxyImage: "+tags["proxy"]+"\n")
	for _, patch := range []string{"init-container.yaml", "gateway-init-container.yaml"} {
		require.Contains(t, source(t, "examples/istio/"+patch), "image: "+tags["copier"]+"\n")
	}
}

// enter stands for Envoy and runs it as a pod does: in the image's root file
// system, which it may only read, as user 1337. What Istio mounts as a volume
// is the folder of the bootstrap.
const enter = `#!/bin/sh -e
WORK=
previous=
for arg; do
  [ "$previous" != -c ] || WORK=$(dirname "$arg")
  previous=$arg
done
export WORK
chown -R 1337:1337 "$WORK"
mkdir -p "$IMAGE$WORK"
exec unshare --mount --propagation private sh -ec '
mount --bind "$IMAGE" "$IMAGE"
for d in dev proc sys; do mount --rbind /$d "$IMAGE/$d"; done
mount --bind "$WORK" "$IMAGE$WORK"
mount -o remount,bind,ro "$IMAGE"
exec setpriv --no-new-privs chroot --userspec 1337:1337 --groups= "$IMAGE" /usr/local/bin/envoy "$@"
' sh "$@"
`

// base makes a root file system as far as Envoy needs one: itself, where
// Istio's images have it, and the libraries that it is linked to.
func base(t *testing.T, root, envoy string) {
	t.Helper()
	for _, dir := range []string{"dev", "proc", "sys", "usr/local/bin", "etc"} {
		require.NoError(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	put := func(from, to string) {
		b, err := os.ReadFile(from)
		require.NoError(t, err)
		to = filepath.Join(root, to)
		require.NoError(t, os.MkdirAll(filepath.Dir(to), 0o755))
		require.NoError(t, os.WriteFile(to, b, 0o755))
	}
	put(envoy, "/usr/local/bin/envoy")
	libraries, err := exec.Command("ldd", envoy).Output()
	require.NoError(t, err)
	for _, path := range regexp.MustCompile(`(?m)(/\S+) \(0x`).FindAllStringSubmatch(string(libraries), -1) {
		put(path[1], path[1])
	}
}

// TestAProxyRunsFromTheImage: a stock Envoy with the image's layer, started as
// Istio starts it, forwards a Dubbo call.
func TestAProxyRunsFromTheImage(t *testing.T) {
	if out, err := exec.Command("unshare", "--mount", "true").CombinedOutput(); err != nil {
		missing.Skip(t, "no mount namespaces: %s", out)
	}
	once(t, func(t *testing.T, v variant) {
		root, err := os.MkdirTemp("", "image")
		require.NoError(t, err)
		t.Cleanup(func() { os.RemoveAll(root) })
		require.NoError(t, os.Chmod(root, 0o755))
		env := image(t, "proxy", root)
		o := v.options()
		base(t, root, o.Bin)
		o.Bin = filepath.Join(t.TempDir(), "envoy")
		require.NoError(t, os.WriteFile(o.Bin, []byte(enter), 0o755))
		s := scripted.Serve(t, scripted.Answer("here"))
		o.Modules = env["ENVOY_DYNAMIC_MODULES_SEARCH_PATH"]
		o.Env = []string{"GOMAXPROCS=2", "GOMEMLIMIT=1073741824", "IMAGE=" + root}
		o.Args = []string{
			"--drain-strategy", "immediate", "--local-address-ip-version", "v4",
			"--file-flush-interval-msec", "1000", "--allow-unknown-static-fields",
		}
		o.Clusters = []envoytest.Resource{envoytest.Cluster("one", envoytest.At(s.Port)...)}
		o.Listeners = []envoytest.Resource{envoytest.Loopback(envoytest.Socket()), envoytest.Listener("dubbo", envoytest.Proxy(toOne("one")))}
		e := envoytest.Start(t, o)
		c := scripted.Dial(t, e.Port("dubbo"))
		c.Ask(1, dubbotest.Request{})
		require.Equal(t, "here", c.Read().Text())
		e.WaitStat(stats+"response_success", envoytest.Exactly(1))
		status := file(t, fmt.Sprintf("/proc/%d/status", e.Pid()))
		require.Regexp(t, `\nUid:(\t1337){4}\n`, status)
		require.Regexp(t, `\nCapEff:\t0+\n`, status)
		mounts := file(t, fmt.Sprintf("/proc/%d/mounts", e.Pid()))
		require.Regexp(t, `(?m)^\S+ / \S+ ro\b`, mounts)
	})
}

// TestThePatchesOfPods: what examples/istio has Deployments patched with agrees
// with the images and with what the generator asks of proxies.
func TestThePatchesOfPods(t *testing.T) {
	t.Parallel()
	type mount struct {
		Name      string
		MountPath string `yaml:"mountPath"`
	}
	type pods struct {
		Spec struct {
			Template struct {
				Metadata struct{ Annotations map[string]string }
				Spec     struct {
					InitContainers []struct {
						VolumeMounts []mount `yaml:"volumeMounts"`
					} `yaml:"initContainers"`
					Volumes []struct{ Name string }
				}
			}
		}
	}
	type proxyConfig struct {
		ProxyMetadata     map[string]string   `yaml:"proxyMetadata"`
		ProxyStatsMatcher map[string][]string `yaml:"proxyStatsMatcher"`
	}
	read := func(text string) (p pods, c proxyConfig) {
		require.NoError(t, yaml.Unmarshal([]byte(text), &p))
		require.NoError(t, yaml.Unmarshal([]byte(p.Spec.Template.Metadata.Annotations["proxy.istio.io/config"]), &c))
		return p, c
	}
	env := image(t, "proxy", t.TempDir())
	patch, err := envoyfilter.PodPatch(nil)
	require.NoError(t, err)
	_, asked := read(string(patch))

	_, byImage := read(source(t, "examples/istio/image.yaml"))
	require.Equal(t, asked.ProxyStatsMatcher, byImage.ProxyStatsMatcher)
	for k, v := range asked.ProxyMetadata {
		require.Equal(t, v, env[k], "the image says so")
	}

	p, byVolume := read(source(t, "examples/istio/init-container.yaml"))
	require.Equal(t, asked.ProxyStatsMatcher, byVolume.ProxyStatsMatcher)
	require.Equal(t, env, byVolume.ProxyMetadata)
	var mounts map[string]struct{ MountPath string }
	require.NoError(t, json.Unmarshal([]byte(p.Spec.Template.Metadata.Annotations["sidecar.istio.io/userVolumeMount"]), &mounts))
	volume := p.Spec.Template.Spec.Volumes[0].Name
	require.Equal(t, env["ENVOY_DYNAMIC_MODULES_SEARCH_PATH"], mounts[volume].MountPath)
	copier := p.Spec.Template.Spec.InitContainers[0].VolumeMounts[0]
	require.Equal(t, volume, copier.Name)
	all := stages(t, "envoy-build/Dockerfile")
	steps := all[slices.IndexFunc(all, func(s *stage) bool { return s.name == "copier" })].steps
	require.Contains(t, strings.Join(steps[len(steps)-1], " "), `"`+copier.MountPath+`/libmeltemi.so"`)
}
