package outlier

import (
	"sync/atomic"
	"time"
)

// Host is one host of a cluster.
type Host struct {
	hosts *Hosts
	addr  string

	out      atomic.Bool  // ejected
	bad      atomic.Bool  // that, or it would be if it were allowed
	failures atomic.Int64 // in a row
	heard    atomic.Int64 // when it has sent something last
	window   window

	// Under hosts.mu.
	users    int           // connections to it
	until    time.Duration // then it may be tried
	forgetAt time.Duration // from then on it need not be remembered without a connection
	times    int           // it was ejected, less those that it has made up for
	backAt   time.Duration
	number   uint64 // of the ejection that lasts
	told     bool   // somebody tells of it
	probe    uint64 // number of the probe that is under way, 0: none
	silence  silence
}

// silence is what is known of requests without an answer since the host has sent
// something.
type silence struct {
	began  time.Duration // when the first was sent
	until  time.Duration // when the last was given up
	waited time.Duration // how long there was at least one
	timed  int           // how many have timed out
}

// window counts what has ended within an interval.
type window struct {
	end           atomic.Int64
	total, failed atomic.Int64
}

// Leave notes that a connection to the host has ended. What has failed is remembered
// for a while without one: by each failure a connection may have ended.
func (h *Host) Leave(now time.Duration) {
	hs := h.hosts
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if h.users--; h.users > 0 || h.out.Load() {
		return
	}
	if h.failures.Load() > 0 || h.window.failed.Load() > 0 || h.silence.until > 0 {
		h.forgetAt = now + lostTime
	}
	h.sound()
}

// Address of the host.
func (h *Host) Address() string { return h.addr }

// Out reports whether the host is to be left out.
func (h *Host) Out() bool { return h.out.Load() && !h.hosts.panicked.Load() }

// Ejected reports whether the ejection of that number lasts.
func (h *Host) Ejected(number uint64) bool {
	h.hosts.mu.Lock()
	defer h.hosts.mu.Unlock()
	return h.out.Load() && h.number == number
}

// Adopt gives the caller the ejection that lasts, to tell of it, if nobody does.
func (h *Host) Adopt() (number uint64, ok bool) {
	h.hosts.mu.Lock()
	defer h.hosts.mu.Unlock()
	if !h.out.Load() || h.told {
		return 0, false
	}
	h.told = true
	return h.number, true
}

// Disown has somebody else adopt the ejection of that number, if it lasts.
func (h *Host) Disown(number uint64) {
	h.hosts.mu.Lock()
	defer h.hosts.mu.Unlock()
	if h.out.Load() && h.number == number {
		h.told = false
		h.hosts.version.Add(1)
	}
}

// Heard notes that the host has sent something.
func (h *Host) Heard(now time.Duration) {
	if last := time.Duration(h.heard.Load()); now >= last+heardEvery {
		h.heard.Store(int64(now))
	}
}

// silentSince reports whether the host has sent nothing since then.
func (h *Host) silentSince(t time.Duration) bool {
	return time.Duration(h.heard.Load())+heardEvery <= t
}

// Succeeded notes that a request has got its answer.
func (h *Host) Succeeded(p *Policy, now time.Duration) {
	if p.FailurePercent > 0 {
		h.window.add(p, now, false)
	}
	if h.failures.Load() != 0 {
		h.failures.Store(0)
	}
	if h.bad.Load() {
		h.better(now)
	}
}

// better is Succeeded of a host that is bad. Of one that is left out answers still
// come to earlier requests; only its probe tells whether it can be used again.
func (h *Host) better(now time.Duration) {
	hs := h.hosts
	hs.mu.Lock()
	defer hs.mu.Unlock()
	switch {
	case !h.out.Load():
		h.sound()
	case hs.panicked.Load():
		h.comeBack(now)
	}
}

// Failed notes that a request, or a connection with requests, has failed.
func (h *Host) Failed(p *Policy, now time.Duration) Ejection {
	if h.out.Load() {
		return Ejection{} // its probe will tell
	}
	why := None
	if p.FailurePercent > 0 && h.window.add(p, now, true) {
		why = Percentage
	}
	if h.failures.Add(1) >= int64(p.ConsecutiveFailures) {
		why = Consecutive
	}
	if why == None {
		return Ejection{}
	}
	h.hosts.mu.Lock()
	defer h.hosts.mu.Unlock()
	return h.eject(p, now, why)
}

// TimedOut is Failed of a request that was sent at that time and got no answer.
func (h *Host) TimedOut(p *Policy, sent, now time.Duration) Ejection {
	if e := h.Failed(p, now); e.Reason != None {
		return e
	}
	return h.unanswered(p, sent, now, 1)
}

// Abandoned notes that nobody waits any more for the answer to a request that was sent
// at that time. It is no failure, but the host may have been silent.
func (h *Host) Abandoned(p *Policy, sent, now time.Duration) Ejection {
	return h.unanswered(p, sent, now, 0)
}

func (h *Host) unanswered(p *Policy, sent, now time.Duration, timedOut int) Ejection {
	if !h.silentSince(sent) || h.out.Load() {
		return Ejection{}
	}
	h.hosts.mu.Lock()
	defer h.hosts.mu.Unlock()
	if h.silentFor(sent, now) >= p.Silence && p.Silence > 0 {
		return h.eject(p, now, Silent)
	}
	if h.silence.timed += timedOut; p.Silence == 0 && h.silence.timed >= silentTimeouts {
		return h.eject(p, now, Silent)
	}
	return Ejection{}
}

// silentFor adds a request that was sent at that time and is given up now, and returns
// how long there was at least one since the host has sent something.
func (h *Host) silentFor(sent, now time.Duration) time.Duration {
	s := &h.silence
	if s.until == 0 || !h.silentSince(s.began) {
		*s = silence{began: sent, until: sent}
	}
	s.began = min(s.began, sent)
	s.waited += max(0, now-max(sent, s.until))
	s.until = now
	return s.waited
}

// Waiting tells that a request that was sent at that time still waits for its answer.
func (h *Host) Waiting(p *Policy, sent, now time.Duration) Ejection {
	if p.Silence == 0 || now-sent < p.Silence || !h.silentSince(sent) || h.out.Load() {
		return Ejection{}
	}
	h.hosts.mu.Lock()
	defer h.hosts.mu.Unlock()
	return h.eject(p, now, Silent)
}

// eject leaves the host out, if that is allowed.
func (h *Host) eject(p *Policy, now time.Duration, why Reason) Ejection {
	hs := h.hosts
	if h.out.Load() || h.users == 0 {
		return Ejection{}
	}
	h.failures.Store(0)
	h.window.end.Store(0)
	h.silence = silence{}
	if !h.bad.Load() {
		h.bad.Store(true)
		hs.bad++
		hs.changed()
	}
	hs.sweep(now)
	if !hs.room(p) {
		return Ejection{Reason: why, Withheld: true}
	}
	if h.times > 0 {
		h.times = max(0, h.times-int(min((now-h.backAt)/p.Interval, time.Duration(h.times))))
	}
	h.out.Store(true)
	hs.ejected++
	hs.numbers++
	h.number, h.told = hs.numbers, false
	hs.changed()
	return h.again(p, now, why)
}

// again begins the time of an ejection.
func (h *Host) again(p *Policy, now time.Duration, why Reason) Ejection {
	h.times++
	d := p.length(h.times)
	h.until = now + d
	h.forgetAt = h.until + max(p.BaseEjectionTime, lostTime)
	return Ejection{Reason: why, For: d}
}

// sound ends that the host is bad.
func (h *Host) sound() {
	if h.bad.Load() {
		h.bad.Store(false)
		h.hosts.bad--
		h.hosts.changed()
	}
}

// comeBack ends an ejection.
func (h *Host) comeBack(now time.Duration) {
	h.out.Store(false)
	h.hosts.ejected--
	h.failures.Store(0)
	h.window.end.Store(0)
	h.probe, h.silence, h.backAt = 0, silence{}, now
	h.sound()
}

// add counts a request that has ended, and reports whether the share of failures is
// too large.
func (w *window) add(p *Policy, now time.Duration, failed bool) bool {
	if end := w.end.Load(); int64(now) >= end && w.end.CompareAndSwap(end, int64(now+p.Interval)) {
		w.total.Store(0)
		w.failed.Store(0)
	}
	total := w.total.Add(1)
	if !failed {
		return false
	}
	n := w.failed.Add(1)
	return total >= int64(p.RequestVolume) && n*100 >= total*int64(p.FailurePercent)
}
