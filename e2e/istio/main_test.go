// Package istio runs Meltemi as a user of Istio does: a real control plane,
// stock proxies, real clients and servers, everything applied with kubectl.
package istio

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/meltemi-mesh/meltemi/e2e/internal/mesh"
	"github.com/meltemi-mesh/meltemi/e2e/internal/missing"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// world is the mesh that all tests share. They run one after the other, each in
// a Kubernetes namespace of its own.
var world *mesh.Mesh

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) (code int) {
	if err := mesh.Unavailable(); err != nil {
		fmt.Println("skipped:", err)
		if missing.Fatal() {
			return 1
		}
		return 0
	}
	build := filepath.Join(peers.Root(), "build")
	var err error
	world, err = mesh.Start(mesh.Options{
		ControlPlane: filepath.Join(build, "istio"),
		Helm:         filepath.Join(build, "helm"),
		Envoy:        cmp.Or(os.Getenv("ENVOY_BIN"), filepath.Join(build, "envoy-"+cmp.Or(os.Getenv("ENVOY_VERSION"), "1.40.0"), "envoy")),
		Module:       filepath.Join(build, "libmeltemi.so"),
	})
	defer func() {
		if err := world.Stop(); err != nil {
			fmt.Println(err)
			code = 1
		}
	}()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return m.Run()
}
