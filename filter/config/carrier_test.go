package config

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLoadCarrier(t *testing.T) {
	for text, want := range map[string]Carrier{
		`{"path": "@a"}`: {Path: "@a"},
		`{"path": "@a", "admin_address": "unix:/run/m.sock"}`: {"@a", "unix:/run/m.sock"},
		`{"path": "@a", "admin_address": "127.0.0.1:0"}`:      {"@a", "127.0.0.1:0"},
		`{"path": "@a", "admin_address": "[::1]:9901"}`:       {"@a", "[::1]:9901"},
	} {
		c, err := LoadCarrier([]byte(text))
		require.NoError(t, err, text)
		require.Equal(t, want, c)
	}
	for text, path := range map[string]string{
		`{`: "", `{"path": "@a", "x": 1}`: "", `{}`: "path", `{"path": ""}`: "path",
		`{"path": "@a", "admin_address": "unix:@b"}`:         "admin_address",
		`{"path": "@a", "admin_address": "unix:b"}`:          "admin_address",
		`{"path": "@a", "admin_address": "unix:/"}`:          "admin_address",
		`{"path": "@a", "admin_address": "localhost:80"}`:    "admin_address",
		`{"path": "@a", "admin_address": "127.0.0.1"}`:       "admin_address",
		`{"path": "@a", "admin_address": "127.0.0.1:70000"}`: "admin_address",
	} {
		_, err := LoadCarrier([]byte(text))
		var fault *Error
		require.ErrorAs(t, err, &fault, text)
		require.Equal(t, path, fault.Path, text)
	}
}
