package e2e

import (
	"encoding/json"
	"flag"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/meltemi-mesh/meltemi/control/translate/envoyfilter"
	"github.com/meltemi-mesh/meltemi/e2e/internal/docs"
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

// environment is what a stage of the Dockerfile sets.
func environment(t *testing.T, name string) map[string]string {
	t.Helper()
	env := map[string]string{}
	all := stages(t, "envoy-build/Dockerfile")
	i := slices.IndexFunc(all, func(s *stage) bool { return s.name == name })
	require.GreaterOrEqual(t, i, 0, name)
	for _, step := range all[i].steps {
		if step[0] != "ENV" {
			continue
		}
		for _, kv := range step[1:] {
			k, v, ok := strings.Cut(kv, "=")
			require.True(t, ok, kv)
			env[k] = strings.Trim(v, "'")
		}
	}
	return env
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
		for k, v := range c.ProxyMetadata { // Istio puts quotes around it
			v, err := strconv.Unquote(`"` + v + `"`)
			require.NoError(t, err)
			c.ProxyMetadata[k] = v
		}
		return p, c
	}
	env := environment(t, "proxy")
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
