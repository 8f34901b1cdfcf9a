package upstream

import (
	"math/bits"
	"time"
)

const (
	// latencyBuckets are four to an octave, of microseconds.
	latencyBuckets = 4 * 32
	// enoughLatencies make a percentile.
	enoughLatencies = 100
	// maxLatencies is from when older ones fade.
	maxLatencies = 2048
	// latencyRefresh is after how many of them a percentile is found anew.
	latencyRefresh = 32
)

// Latency is how long answers of a cluster take, over one worker's last ones.
type Latency struct {
	counts [latencyBuckets]uint16
	n      int

	percent float64 // of what was asked last
	is      time.Duration
	age     int
}

// Latency returns how long answers take. It knows what is added to it.
func (p *Pool) Latency() *Latency {
	if p.latency == nil {
		p.latency = new(Latency)
	}
	return p.latency
}

// Add notes an answer.
func (l *Latency) Add(d time.Duration) {
	us := max(uint64(d/time.Microsecond), 4)
	octave := bits.Len64(us) - 1
	i := min(4*octave+int(us>>(octave-2))&3, latencyBuckets-1)
	l.counts[i]++
	l.age++
	if l.n++; l.n >= maxLatencies {
		l.n = 0
		for i := range l.counts {
			l.counts[i] /= 2
			l.n += int(l.counts[i])
		}
	}
}

// Percentile returns the time within which percent of the answers came, to a
// fifth; 0 while too few are known.
func (l *Latency) Percentile(percent float64) time.Duration {
	if l.n < enoughLatencies {
		return 0
	}
	if l.is != 0 && l.percent == percent && l.age < latencyRefresh {
		return l.is
	}
	left := int(float64(l.n)*percent/100 + 0.5)
	for i, n := range l.counts {
		if left -= int(n); left <= 0 {
			l.percent, l.age = percent, 0
			l.is = time.Duration((uint64(i&3)+5)<<(i/4)/4) * time.Microsecond
			return l.is
		}
	}
	return 0
}
