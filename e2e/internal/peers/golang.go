package peers

import (
	"path/filepath"
	"sync"
	"testing"
)

// OfficialLibrary is a library for Envoy's golang network filter that links the official package:
// an echo that logs each call.
func OfficialLibrary(t testing.TB) string {
	t.Helper()
	needed(t, "golang", "Go", buildOfficial())
	return officialLibrary()
}

func officialLibrary() string {
	return filepath.Join(Root(), "build", "peers", "golang", "libecho.so")
}

var buildOfficial = sync.OnceValue(func() error {
	return run(filepath.Join(Root(), "e2e", "peers", "golang"), "go", "build", "-trimpath", "-buildmode=c-shared", "-o", officialLibrary(), ".")
})

// RegisteredLibrary is the folder of a libmeltemi.so that links the official package:
// envoy-build/golang/register/example.
func RegisteredLibrary(t testing.TB) string {
	t.Helper()
	needed(t, "golang", "Go", buildRegistered())
	return registeredLibrary()
}

func registeredLibrary() string { return filepath.Join(Root(), "build", "registered") }

var buildRegistered = sync.OnceValue(func() error {
	return run(filepath.Join(Root(), "envoy-build", "golang", "register"), "go", "build", "-trimpath", "-buildmode=c-shared",
		"-ldflags=-s -w", "-o", filepath.Join(registeredLibrary(), "libmeltemi.so"), "./example")
})
