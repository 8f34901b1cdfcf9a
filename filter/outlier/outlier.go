// Package outlier decides which hosts of a cluster are left out for a while, by how
// they have served requests. It knows neither connections nor clocks: who uses it
// tells what has happened, and when. All workers of a process share what it knows,
// so everything here may be called from any goroutine.
package outlier

import "time"

// Policy says when a host is ejected, and for how long. It does not change.
type Policy struct {
	// ConsecutiveFailures is how many in a row eject a host, at least 1.
	ConsecutiveFailures int
	// FailurePercent is the share of failures within Interval that ejects a host of
	// which at least RequestVolume requests have ended; 0: shares do not count.
	FailurePercent, RequestVolume int
	// Silence is how long a host may send nothing while a request waits for its
	// answer; 0: until silentTimeouts requests have timed out since it has sent
	// something.
	Silence time.Duration
	// Interval is the window of FailurePercent. Each one in use makes up for one
	// ejection before.
	Interval time.Duration
	// BaseEjectionTime is how long the first ejection lasts, a multiple of it the
	// ones behind it, and MaxEjectionTime, which is not less, the longest.
	BaseEjectionTime, MaxEjectionTime time.Duration
	// MaxEjectionPercent of the hosts may be ejected at a time, one in any case, but
	// never the last.
	MaxEjectionPercent int
}

const (
	// silentTimeouts of a host that sends nothing eject it: one alone may be the
	// fault of its request.
	silentTimeouts = 2
	// lostTime is, at the least, how long a host to which no connection leads is not
	// taken to have left the cluster, if it is ejected, from when it may be tried, or
	// has failed.
	lostTime = 30 * time.Second
	// heardEvery is how exactly is known when a host has sent something.
	heardEvery = time.Millisecond
)

// Reason is why a host is ejected.
type Reason uint8

// The reasons.
const (
	// None: it is not.
	None Reason = iota
	// Consecutive: so many failures in a row.
	Consecutive
	// Percentage: such a share of failures.
	Percentage
	// Silent: it sends nothing while requests wait for their answers.
	Silent
	// ProbeFailed: it was ejected, and the request that tried it has failed.
	ProbeFailed
)

var reasons = [...]string{
	None: "none", Consecutive: "too many failures in a row", Percentage: "too large a share of failures",
	Silent: "it sends nothing while requests wait for their answers", ProbeFailed: "the request that tried it again has failed",
}

func (r Reason) String() string { return reasons[r] }

// Ejection is what an observation has led to, the zero value to nothing.
type Ejection struct {
	Reason Reason
	// Withheld says that the host stays in use: too many are ejected already.
	Withheld bool
	// For is how long it will last, until the host is tried.
	For time.Duration
}

// length of the n-th ejection.
func (p *Policy) length(n int) time.Duration {
	if time.Duration(n) > p.MaxEjectionTime/p.BaseEjectionTime {
		return p.MaxEjectionTime
	}
	return time.Duration(n) * p.BaseEjectionTime
}
