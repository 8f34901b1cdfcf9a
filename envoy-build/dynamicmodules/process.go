package dynamicmodules

import (
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/meltemi-mesh/meltemi/envoy-build/internal/admin"
	"github.com/meltemi-mesh/meltemi/envoy-build/internal/loopback"
	"github.com/meltemi-mesh/meltemi/envoy-build/internal/process"
	"github.com/meltemi-mesh/meltemi/filter/export"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// What the process has one of. C has no other way to reach it, as it must not hold
// Go's pointers.
var (
	// module is what was given to Serve.
	module host.Module
	// configs are the live configurations.
	configs configTable
	// balancers are the live load balancers.
	balancers balancerTable
	// workers by their index.
	workers [loopback.MaxWorkers]atomic.Pointer[worker]
	// panics are those that were caught and that Envoy's counter does not have yet:
	// it needs a live filter.
	panics = process.NewPanics(logf)
	// dialer dials the loopback listener.
	dialer = loopback.New(loopback.Connect, logf, panics)
	// operators ask what the process has to tell.
	operators = admin.New(pages, logf)

	setUpOnce sync.Once
)

// panicsCounter counts the panics of the whole process: on a carrier, or on the
// main thread, they are nobody's.
const panicsCounter = "panics"

// pages are what the pipeline tells about itself.
func pages() http.Handler {
	if t, ok := module.(host.Teller); ok {
		return t.Pages()
	}
	return http.NotFoundHandler()
}

// push has the pipeline push its metrics.
func push(to *export.Push) {
	if p, ok := module.(interface {
		Push(to *export.Push, b host.Background)
	}); ok {
		p.Push(to, background{})
	}
}

func setUp(concurrency int) {
	setUpOnce.Do(func() {
		process.SetUp(concurrency, logf, func() {
			everyWorker(func(w *worker) { w.trim() })
		})
	})
}

// everyWorker has f run on every worker, soon. Any goroutine may call it.
func everyWorker(f func(w *worker)) {
	for i := range workers {
		if w := workers[i].Load(); w != nil {
			w.Post(func() { f(w) })
		}
	}
}

// barrier is deferred in each event of the main thread.
func barrier(doing string) {
	if r := recover(); r != nil {
		panics.Caught(doing, r)
	}
}
