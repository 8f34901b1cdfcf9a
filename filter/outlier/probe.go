package outlier

import "time"

// Probe is the right to try an ejected host whose time is over with one request. There
// is one at a time. Its holder ends it once, by what has become of the request; the
// zero value is none.
type Probe struct {
	h      *Host
	number uint64
}

// Due reports whether the host waits for somebody who tries it.
func (h *Host) Due(now time.Duration) bool {
	if !h.out.Load() {
		return false
	}
	h.hosts.mu.Lock()
	defer h.hosts.mu.Unlock()
	return h.due(now)
}

func (h *Host) due(now time.Duration) bool { return h.out.Load() && h.probe == 0 && now >= h.until }

// Probe gives the right to try the host, if it is to be tried and nobody has it.
func (h *Host) Probe(now time.Duration) (pr Probe, ok bool) {
	if !h.out.Load() {
		return pr, false
	}
	hs := h.hosts
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if !h.due(now) {
		return pr, false
	}
	hs.numbers++
	h.probe = hs.numbers
	return Probe{h, h.probe}, true
}

// Held reports whether there is something to end.
func (pr *Probe) Held() bool { return pr.h != nil }

// take ends the probe. It reports false if it counts no more, as the host is back, or
// there was none.
func (pr *Probe) take() (h *Host, counts bool) {
	h = pr.h
	if pr.h = nil; h == nil || h.probe != pr.number {
		return h, false
	}
	h.probe = 0
	return h, true
}

// Free ends the probe without a word on the host: another may be made.
func (pr *Probe) Free() {
	if pr.h != nil { // for nearly all requests there is nothing to do
		pr.free()
	}
}

func (pr *Probe) free() {
	mu := &pr.h.hosts.mu
	mu.Lock()
	defer mu.Unlock()
	pr.take()
}

// Succeeded brings the host back.
func (pr *Probe) Succeeded(now time.Duration) {
	if pr.h == nil {
		return
	}
	mu := &pr.h.hosts.mu
	mu.Lock()
	defer mu.Unlock()
	if h, counts := pr.take(); counts {
		h.comeBack(now)
	}
}

// Failed ejects the host again, for longer.
func (pr *Probe) Failed(p *Policy, now time.Duration) Ejection {
	if pr.h == nil {
		return Ejection{}
	}
	mu := &pr.h.hosts.mu
	mu.Lock()
	defer mu.Unlock()
	if h, counts := pr.take(); counts {
		return h.again(p, now, ProbeFailed)
	}
	return Ejection{}
}

// Abandoned ends the probe as nobody waits any more for the answer to its request, which
// was sent at that time: as a failure once the host has been silent for as long as the
// policy allows, over all probes since it was left out, and else without a word on it.
// Requests that are hedged are most often not waited for longer.
func (pr *Probe) Abandoned(p *Policy, sent, now time.Duration) Ejection {
	if pr.h == nil {
		return Ejection{}
	}
	mu := &pr.h.hosts.mu
	mu.Lock()
	defer mu.Unlock()
	h, counts := pr.take()
	if !counts || !h.silentSince(sent) || h.silentFor(sent, now) < p.Silence {
		return Ejection{}
	}
	h.silence = silence{}
	return h.again(p, now, ProbeFailed)
}
