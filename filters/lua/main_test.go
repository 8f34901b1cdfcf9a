package lua

import (
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestMain gives hooks more time than even a busy machine takes of them: what they may take
// is for TestAHookThatTakesLong alone.
func TestMain(m *testing.M) {
	usual.time = time.Hour
	goleak.VerifyTestMain(m)
}
