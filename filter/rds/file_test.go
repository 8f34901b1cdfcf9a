package rds_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/meltemi-mesh/meltemi/filter/rds"
)

func unmarshal(t *testing.T, text string, m proto.Message) {
	t.Helper()
	require.NoError(t, protojson.Unmarshal([]byte(text), m))
}

// put replaces a file in one step.
func put(t *testing.T, path, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path+".new", []byte(text), 0o600))
	require.NoError(t, os.Rename(path+".new", path))
}

const (
	inJSON = `{"version_info": "1", "resources": [{"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.config.route.v1alpha.RouteConfiguration",
		"name": "greeter", "routes": [{"route": {"cluster": "CLUSTER"}}]}]}`
	inYAML = `version_info: "1"
resources:
- "@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
  name: greeter
  virtual_hosts:
  - name: dummy
    domains: ["*"]
    routes: [{match: {prefix: /}, route: {cluster: CLUSTER}}]
`
	inText = `version_info: "1" resources { [type.googleapis.com/aeraki.meta_protocol_proxy.config.route.v1alpha.RouteConfiguration] {
		name: "greeter" routes { route { cluster: "CLUSTER" } } } }`
)

func TestAFile(t *testing.T) {
	binary, err := proto.Marshal(response("1", http(name, "CLUSTER")))
	require.NoError(t, err)
	for file, text := range map[string]string{
		"rds.json": inJSON, "rds": inJSON, "rds.yaml": inYAML, "rds.YML": inYAML, "rds.pb_text": inText, "rds.pb": string(binary),
	} {
		t.Run(file, func(t *testing.T) {
			virtually(t, func(b *bed) {
				path := filepath.Join(t.TempDir(), file)
				u, cancel := b.subscribe(source(t, `"config_source": {"path_config_source": {"path": "`+path+`"}}`))
				defer cancel()
				time.Sleep(time.Minute)
				synctest.Wait()
				require.Empty(t, u.to())
				require.Equal(t, []rds.Event{rds.Failed}, u.events)
				require.Equal(t, 1, b.said("no such file"))

				put(t, path, strings.ReplaceAll(text, "CLUSTER", "cluste1"))
				time.Sleep(time.Second)
				require.Equal(t, "cluste1", u.to())
				put(t, path, strings.ReplaceAll(text, "CLUSTER", "cluste2"))
				time.Sleep(time.Second)
				require.Equal(t, "cluste2", u.to())
				require.Equal(t, 1, b.said(`file `+path+` answers again`))

				put(t, path, "garbage: [")
				time.Sleep(time.Minute)
				require.Equal(t, "cluste2", u.to())
				require.Equal(t, 1, b.said("refused: "))
				require.NoError(t, os.Remove(path))
				time.Sleep(time.Minute)
				require.Equal(t, "cluste2", u.to())
				put(t, path, strings.ReplaceAll(text, "CLUSTER", "cluste3"))
				time.Sleep(time.Second)
				require.Equal(t, "cluste3", u.to())
				require.Equal(t, []rds.Event{rds.Failed, rds.Accepted, rds.Accepted, rds.Refused, rds.Failed, rds.Accepted}, u.events)
			})
		})
	}
}

// TestAFileBehindALink, as Kubernetes mounts them: the link to the folder is replaced.
func TestAFileBehindALink(t *testing.T) {
	virtually(t, func(b *bed) {
		dir := t.TempDir()
		version := func(v string) {
			require.NoError(t, os.Mkdir(filepath.Join(dir, v), 0o700))
			put(t, filepath.Join(dir, v, "rds.json"), strings.Replace(inJSON, "CLUSTER", v, 1))
			require.NoError(t, os.Symlink(v, filepath.Join(dir, "new")))
			require.NoError(t, os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "data")))
		}
		version("v1")
		u, cancel := b.subscribe(source(t, `"config_source": {"path": "`+filepath.Join(dir, "data", "rds.json")+`"}`))
		defer cancel()
		require.Equal(t, "v1", u.to())
		version("v2")
		time.Sleep(time.Second)
		require.Equal(t, "v2", u.to())
	})
}

// TestFaultsInAFile have the path of the field.
func TestFaultsInAFile(t *testing.T) {
	virtually(t, func(b *bed) {
		path := filepath.Join(t.TempDir(), "rds.json")
		put(t, path, strings.Replace(inJSON, `"cluster"`, `"clutser"`, 1))
		_, cancel := b.subscribe(source(t, `"config_source": {"path": "`+path+`"}`))
		defer cancel()
		synctest.Wait()
		require.Equal(t, 1, b.said("refused: resources[0].routes[0].route.clutser: unknown field"))
		require.NoError(t, os.Truncate(path, rds.MaxBytes+1))
		time.Sleep(time.Second)
		synctest.Wait()
		require.Equal(t, 1, b.said("the file has more than 33554432 bytes"))
	})
}
