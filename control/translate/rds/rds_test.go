package rds_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	"github.com/meltemi-mesh/meltemi/control/input"
	"github.com/meltemi-mesh/meltemi/control/translate/envoyfilter"
	"github.com/meltemi-mesh/meltemi/control/translate/rds"
	"github.com/meltemi-mesh/meltemi/filter/config"
	"github.com/meltemi-mesh/meltemi/filter/host"
	client "github.com/meltemi-mesh/meltemi/filter/rds"
	"github.com/meltemi-mesh/meltemi/filter/route"
	_ "github.com/meltemi-mesh/meltemi/filters"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func document(t *testing.T, m proto.Message) string {
	t.Helper()
	raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	require.NoError(t, err)
	var v any
	require.NoError(t, json.Unmarshal(raw, &v))
	b, err := yaml.Marshal(v)
	require.NoError(t, err)
	return string(b)
}

// TestTables: what comes of each testdata/*.in.yaml, a description as meltemi envoyfilter
// reads it, is its .out.yaml, and proxies understand both types alike.
func TestTables(t *testing.T) {
	inputs, err := filepath.Glob("testdata/*.in.yaml")
	require.NoError(t, err)
	all, err := filepath.Glob("testdata/*")
	require.NoError(t, err)
	for _, file := range all {
		require.Contains(t, inputs, strings.Replace(file, ".out.", ".in.", 1), "no test reads it")
	}
	require.NotEmpty(t, inputs)
	for _, in := range inputs {
		t.Run(filepath.Base(in), func(t *testing.T) {
			text, err := os.ReadFile(in)
			require.NoError(t, err)
			s, _, errs := input.Load(text)
			require.Empty(t, errs)
			_, faults := envoyfilter.Generate(s)
			require.Empty(t, faults)
			tables, err := rds.Tables(s)
			require.NoError(t, err)
			var got bytes.Buffer
			for _, own := range tables {
				fmt.Fprintf(&got, "# own\n%s---\n", document(t, own))
				http, err := rds.HTTP(own)
				if err != nil {
					for _, line := range strings.Split(err.Error(), "\n") {
						fmt.Fprintf(&got, "# refused: %s\n", line)
					}
					continue
				}
				fmt.Fprintf(&got, "# http\n%s---\n", document(t, http))
				read := understood(t, http)
				again, err := rds.HTTP(read)
				require.NoError(t, err)
				again.VirtualHosts[0].Name = http.GetVirtualHosts()[0].GetName()
				require.Equal(t, document(t, http), document(t, again))
			}
			golden := strings.TrimSuffix(in, ".in.yaml") + ".out.yaml"
			if *update {
				require.NoError(t, os.WriteFile(golden, got.Bytes(), 0o600))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Equal(t, string(want), got.String())
		})
	}
}

// understood is what a proxy makes of a resource.
func understood(t *testing.T, m proto.Message) (rc *routev1alpha.RouteConfiguration) {
	t.Helper()
	a, err := anypb.New(m)
	require.NoError(t, err)
	raw, err := proto.Marshal(&discoveryv3.DiscoveryResponse{VersionInfo: "1", TypeUrl: config.EnvoyRoutes, Resources: []*anypb.Any{a}})
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "routes.pb")
	require.NoError(t, os.WriteFile(file, raw, 0o600))
	p, err := config.Load([]byte(`{"stat_prefix": "t", "protocol": {"name": "dubbo", "codec": {"name": "c"}}, "rds": {
		"route_config_name": "` + m.(interface{ GetName() string }).GetName() + `", "config_source": {"path_config_source": {"path": "` + file + `"}}}}`))
	require.NoError(t, err)
	synctest.Test(t, func(t *testing.T) {
		u := &proxy{T: t}
		cancel := client.NewRegistry().Subscribe(p.RDS, u, u)
		time.Sleep(time.Minute)
		synctest.Wait()
		cancel()
		rc = u.routes
	})
	require.NotNil(t, rc)
	return rc
}

type proxy struct {
	*testing.T
	routes *routev1alpha.RouteConfiguration
}

// Compile implements client.User.
func (p *proxy) Compile(rc *routev1alpha.RouteConfiguration) (func(), []*route.Error) {
	return func() { p.routes = rc }, nil
}

// Heard implements client.User.
func (*proxy) Heard(client.Event) {}

// Logf implements host.Background.
func (p *proxy) Logf(level host.Level, format string, args ...any) {
	if level > host.Info {
		p.Errorf(format, args...)
	}
}

// DialCluster implements host.Background.
func (*proxy) DialCluster(context.Context, string) (net.Conn, error) { return nil, errors.New("no") }
