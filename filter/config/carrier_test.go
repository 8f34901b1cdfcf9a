package config

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLoadCarrier(t *testing.T) {
	for text, want := range map[string]Carrier{
		`{"path": "@a"}`: {Path: "@a"},
		`{"path": "@a", "admin_address": "unix:/run/m.sock"}`: {Path: "@a", Admin: "unix:/run/m.sock"},
		`{"path": "@a", "admin_address": "127.0.0.1:0"}`:      {Path: "@a", Admin: "127.0.0.1:0"},
		`{"path": "@a", "admin_address": "[::1]:9901"}`:       {Path: "@a", Admin: "[::1]:9901"},
	} {
		c, err := LoadCarrier([]byte(text))
		require.NoError(t, err, text)
		require.Equal(t, want, c)
	}
	for text, path := range map[string]string{
		`{`: "", `{"path": "@a", "x": 1}`: "", `{}`: "path", `{"path": ""}`: "path",
		`{"path": "@a", "admin_address": "unix:@b"}`:                                                                         "admin_address",
		`{"path": "@a", "admin_address": "unix:b"}`:                                                                          "admin_address",
		`{"path": "@a", "admin_address": "unix:/"}`:                                                                          "admin_address",
		`{"path": "@a", "admin_address": "localhost:80"}`:                                                                    "admin_address",
		`{"path": "@a", "admin_address": "127.0.0.1"}`:                                                                       "admin_address",
		`{"path": "@a", "admin_address": "127.0.0.1:70000"}`:                                                                 "admin_address",
		`{"path": "@a", "metrics": {}}`:                                                                                      "metrics.otlp",
		`{"path": "@a", "metrics": {"x": 1}}`:                                                                                "",
		`{"path": "@a", "metrics": {"otlp": {"x": 1}}}`:                                                                      "",
		`{"path": "@a", "metrics": {"otlp": {}}}`:                                                                            "metrics.otlp",
		`{"path": "@a", "metrics": {"otlp": {"grpc_service": {"envoy_grpc": {}}}}}`:                                          "metrics.otlp.grpc_service.envoy_grpc.cluster_name",
		`{"path": "@a", "metrics": {"otlp": {"grpc_service": {"x": 1}}}}`:                                                    "metrics.otlp.grpc_service",
		`{"path": "@a", "metrics": {"otlp": {"grpc_service": {"envoy_grpc": {"cluster_name": "c"}}, "interval": "0.5s"}}}`:   "metrics.otlp.interval",
		`{"path": "@a", "metrics": {"otlp": {"grpc_service": {"envoy_grpc": {"cluster_name": "c"}}, "interval": "seldom"}}}`: "metrics.otlp.interval",
	} {
		_, err := LoadCarrier([]byte(text))
		var fault *Error
		require.ErrorAs(t, err, &fault, text)
		require.Equal(t, path, fault.Path, text)
	}
	c, err := LoadCarrier([]byte(`{"path": "@a", "metrics": {"otlp": {"http_service": {"http_uri": {"cluster": "c", "uri": "/v1/metrics"}}, "interval": "15s"}}}`))
	require.NoError(t, err)
	require.NotNil(t, c.Push)
}
