// Package missing is for tests that need what a machine may not have.
package missing

import (
	"fmt"
	"os"
	"testing"
)

// Fatal tells whether nothing may be missing: in CI, where CI=true.
func Fatal() bool { return os.Getenv("CI") == "true" }

// Skip ends a test for a reason: it fails if that is fatal, and is skipped
// otherwise. The reason is printed either way; go test alone would keep it to
// itself without -v.
func Skip(t testing.TB, format string, args ...any) {
	t.Helper()
	reason := fmt.Sprintf(format, args...)
	if Fatal() {
		t.Fatal(reason)
	}
	fmt.Printf("skipped: %s: %s\n", t.Name(), reason)
	t.SkipNow()
}
