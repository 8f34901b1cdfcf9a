// Package contribhost builds and drives the program in e2e/contribhost, which serves
// connections with a library as Envoy's golang network filter does.
package contribhost

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/meltemi-mesh/meltemi/e2e/internal/missing"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// Binary is the program, built once for each state of its sources.
func Binary(t testing.TB) string { return binary(t, plain) }

// BinaryWithAddressSanitizer is Binary that ends at the first use of memory that is not there
// any more, or never was.
func BinaryWithAddressSanitizer(t testing.TB) string { return binary(t, sanitized) }

var (
	plain     = sync.OnceValues(func() (string, error) { return build("contribhost", "-O2") })
	sanitized = sync.OnceValues(func() (string, error) {
		return build("contribhost-asan", "-O1", "-fsanitize=address", "-fno-omit-frame-pointer")
	})
)

func binary(t testing.TB, build func() (string, error)) string {
	t.Helper()
	bin, err := build()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		missing.Skip(t, "the imitated host of contrib Envoy needs g++: %v", err)
	case err != nil:
		t.Fatal(err)
	}
	return bin
}

func build(name string, flags ...string) (string, error) {
	if _, err := exec.LookPath("g++"); err != nil {
		return "", err
	}
	dir := filepath.Join(peers.Root(), "e2e", "contribhost")
	sources, err := filepath.Glob(filepath.Join(dir, "*.cc"))
	if err != nil {
		return "", err
	}
	headers, err := filepath.Glob(filepath.Join(dir, "*.h"))
	if err != nil {
		return "", err
	}
	script := filepath.Join(dir, "build.sh")
	sum := sha256.New()
	fmt.Fprintln(sum, flags)
	for _, f := range slices.Concat(headers, sources, []string{script}) {
		b, err := os.ReadFile(f)
		if err != nil {
			return "", err
		}
		sum.Write(b)
	}
	out := filepath.Join(peers.Root(), "build", "contribhost", name+"-"+hex.EncodeToString(sum.Sum(nil)[:8]))
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	old, _ := filepath.Glob(filepath.Join(filepath.Dir(out), name+"-"+strings.Repeat("?", 16)))
	for _, f := range old {
		os.Remove(f)
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return "", err
	}
	fresh := fmt.Sprintf("%s.%d", out, os.Getpid())
	if b, err := exec.Command(script, append([]string{fresh}, flags...)...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", name, err, b)
	}
	return out, os.Rename(fresh, out)
}
