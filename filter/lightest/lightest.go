// Package lightest tells which of some hosts has the least to do: by the requests that are
// in flight, or by how long answers take besides.
package lightest

import (
	"math"
	"time"
)

// Bounds and defaults of a Policy.
const (
	DefaultChoices = 2
	MaxChoices     = 100
	DefaultDecay   = 10 * time.Second
	MaxDecay       = time.Hour
)

// Policy says how a host is chosen.
type Policy struct {
	// Choices is how many hosts are compared: picked at random, by their weights. 2 to
	// MaxChoices.
	Choices int
	// Decay is the time in which what is known of a host's answers loses its weight,
	// where hosts are compared by how long answers take. 0: only what is in flight
	// counts. At most MaxDecay.
	Decay time.Duration
}

// Peak is a moving average of how long the answers of a host take that rises at once to
// the longest (peak EWMA). The zero value knows of none.
type Peak struct {
	average float64 // in ns
	at      time.Duration
}

// Average of the answers that were added.
func (k *Peak) Average() time.Duration { return time.Duration(k.average) }

// Add notes an answer that took d.
func (k *Peak) Add(d, now, decay time.Duration) {
	if f := float64(d); f > k.average {
		k.average = f
	} else {
		w := math.Exp(-float64(now-k.at) / float64(decay))
		k.average = k.average*w + f*(1-w)
	}
	k.at = now
}

// Cost is what a further request costs. Of a host of which nothing is heard the average
// counts less and less, so that it is tried again; one of which nothing is known gets one
// request.
func (k *Peak) Cost(inFlight float64, now, decay time.Duration) float64 {
	if k.average == 0 {
		if inFlight > 0 {
			return math.MaxFloat64
		}
		return 0
	}
	return k.average * math.Exp(-float64(now-k.at)/float64(decay)) * (1 + inFlight)
}
