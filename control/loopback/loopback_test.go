package loopback_test

import (
	"encoding/json"
	"os"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/meltemi-mesh/meltemi/control/loopback"
)

// TestWhatIsWrittenByHandIsTheSame: the examples, of which users make their own.
func TestWhatIsWrittenByHandIsTheSame(t *testing.T) {
	for path, want := range map[string]loopback.Listener{
		"dubbo/envoy":           {Module: "meltemi", Socket: "@meltemi", Admin: "127.0.0.1:15880"},
		"custom-protocol/envoy": {Module: "parley", Socket: "@meltemi"},
		"dubbo/contrib":         {Socket: "/run/envoy/meltemi.sock", Tunnels: true, Connect: true},
	} {
		text, err := os.ReadFile("../../examples/" + path + ".yaml")
		require.NoError(t, err)
		require.JSONEq(t, marshal(t, want.Config()), marshal(t, listener(t, text)), path)
	}
}

// TestWhatIsToBeUncommentedIsTheSame: the lines for servers that see their clients'
// addresses.
func TestWhatIsToBeUncommentedIsTheSame(t *testing.T) {
	text, err := os.ReadFile("../../examples/dubbo/envoy.yaml")
	require.NoError(t, err)
	commented := regexp.MustCompile(`(?m)^    # (- name: envoy\.filters\.listener\.original_src|  +\S.*)$`)
	require.Len(t, commented.FindAll(text, -1), 4)
	text = commented.ReplaceAll(text, []byte("    $1"))
	want := loopback.Listener{Module: "meltemi", Socket: "@meltemi", Admin: "127.0.0.1:15880", Sources: true}
	require.JSONEq(t, marshal(t, want.Config()), marshal(t, listener(t, text)))
}

// listener finds the loopback listener of a bootstrap.
func listener(t *testing.T, text []byte) map[string]any {
	t.Helper()
	var bootstrap struct {
		StaticResources struct {
			Listeners []map[string]any `yaml:"listeners"`
		} `yaml:"static_resources"`
	}
	require.NoError(t, yaml.Unmarshal(text, &bootstrap))
	for _, l := range bootstrap.StaticResources.Listeners {
		if l["name"] == "meltemi-loopback" {
			return l
		}
	}
	t.Fatal("there is none")
	return nil
}

func marshal(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	require.NoError(t, err)
	return string(b)
}

// TestASocketInAFolderIsItsOwners: an abstract one has no mode.
func TestASocketInAFolderIsItsOwners(t *testing.T) {
	pipe := func(socket string) any {
		return loopback.Listener{Module: "meltemi", Socket: socket}.Config()["address"]
	}
	require.Equal(t, map[string]any{"pipe": map[string]any{"path": "/run/meltemi.sock", "mode": 0o600}}, pipe("/run/meltemi.sock"))
	require.Equal(t, map[string]any{"pipe": map[string]any{"path": "@meltemi"}}, pipe("@meltemi"))
}

func TestTheMarkOfPackets(t *testing.T) {
	for mark, want := range map[uint32]any{0: nil, 1337: uint32(1337)} {
		l := loopback.Listener{Module: "meltemi", Socket: "@meltemi", Sources: true, Mark: mark}.Config()
		source := l["listener_filters"].([]any)[1].(map[string]any)
		require.Equal(t, want, source["typed_config"].(map[string]any)["mark"])
	}
}
