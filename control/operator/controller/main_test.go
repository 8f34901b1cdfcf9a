package controller

import (
	"testing"

	"github.com/go-logr/logr"
	"go.uber.org/goleak"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/klog/v2"
)

// TestMain fails when a test leaves a goroutine behind.
func TestMain(m *testing.M) {
	// One of Kubernetes' sleeps by the time at which it was called last, which is that of
	// another test's virtual time.
	utilruntime.ErrorHandlers = nil
	klog.SetLogger(logr.Discard())
	goleak.VerifyTestMain(m)
}
