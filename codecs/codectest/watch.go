package codectest

import (
	"fmt"
	"sync"
	"time"
)

// patience is how long one call of a codec may take before it is held to hang.
const patience = 30 * time.Second

// watchdog ends the test, with the bytes, when a call of the codec does not
// come back: the timeout of go test would not show them.
type watchdog struct {
	mu    sync.Mutex
	w     where
	bytes []byte
	since time.Time // zero: there is no call
}

func (d *watchdog) enter(w where, b []byte) {
	if d != nil {
		d.mu.Lock()
		d.w, d.bytes, d.since = w, b, time.Now()
		d.mu.Unlock()
	}
}

func (d *watchdog) leave() {
	if d != nil {
		d.mu.Lock()
		d.bytes, d.since = nil, time.Time{}
		d.mu.Unlock()
	}
}

// look returns what to say of a call that takes too long.
func (d *watchdog) look(now time.Time) (fault string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.since.IsZero() || now.Sub(d.since) < patience {
		return ""
	}
	return fmt.Sprintf("%s: the codec does not come back\n%s", d.w, dump(d.bytes))
}

// watch makes the watchdog look, until stop is called.
func (d *watchdog) watch() (stop func()) {
	done := make(chan struct{})
	go func() {
		tick := time.NewTicker(patience / 10)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			if fault := d.look(time.Now()); fault != "" {
				panic(fault)
			}
		}
	}()
	return func() { close(done) }
}
