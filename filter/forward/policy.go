package forward

import (
	"slices"
	"time"
)

// Policy is what a route wants for its requests beyond one attempt. It is immutable.
type Policy struct {
	// Timeout from the request's arrival, 0: none, and deadlines of clients are not
	// heeded.
	Timeout time.Duration
	// PerTry is how long an attempt may take, 0: as long as the request.
	PerTry time.Duration
	// On are the conditions of a retry, those that an idempotent request wants only if
	// it is one.
	On Conditions
	// Codes are those of retriable answers, for [OnCode].
	Codes []int32
	// Retries at most.
	Retries int
	// BackoffBase and BackoffMax bound the pauses before them.
	BackoffBase, BackoffMax time.Duration
	// MaxBytes of a request that is kept for a retry.
	MaxBytes int
	// HedgeDelay is after how long a second attempt is made at another host, 0: never,
	// or after HedgePercentile.
	HedgeDelay time.Duration
	// HedgePercentile of the last answers' times, 0 to 100. 0: never.
	HedgePercentile float64
}

// repeats reports whether requests have to be kept for further attempts.
func (p *Policy) repeats() bool { return p.Retries > 0 || p.hedges() }

func (p *Policy) hedges() bool { return p.HedgeDelay > 0 || p.HedgePercentile > 0 }

// wants reports whether the policy has requests retried for one of the reasons why.
func (p *Policy) wants(why Conditions) bool { return p.On&why != 0 }

// retriable reports whether code is a listed one.
func (p *Policy) retriable(code int32) bool {
	return p.wants(OnCode) && slices.Contains(p.Codes, code)
}

// Conditions are reasons for a retry.
type Conditions uint8

// The conditions, with the names of their configuration.
const (
	// OnConnectFailure: no server has got the request.
	OnConnectFailure Conditions = 1 << iota
	// OnRefused: the server has not executed it.
	OnRefused
	// OnOverloaded: nor has it, as it has too much to do.
	OnOverloaded
	// OnReset: the connection ended before the answer.
	OnReset
	// OnTimeout: no answer came within PerTry.
	OnTimeout
	// OnServerError: the answer says that the server has failed.
	OnServerError
	// OnCode: the answer has one of Codes.
	OnCode
	// OnDemand: the owner wants it, see [Exchange.Repeat]. No policy has it.
	OnDemand

	// Unexecuted are the conditions of requests that were not executed: they are safe.
	Unexecuted = OnConnectFailure | OnRefused | OnOverloaded
	// ByAnswer are those that an answer has told.
	ByAnswer = OnRefused | OnOverloaded | OnServerError | OnCode
)

// conditionNames are those of Envoy where it has the condition.
var conditionNames = []string{
	"connect-failure", "refused", "overloaded", "reset", "timeout", "server-error", "retriable-status-codes",
	onDemand,
}

const onDemand = "filter"

// ParseCondition returns the condition of a name.
func ParseCondition(name string) (Conditions, bool) {
	i := slices.Index(conditionNames, name)
	return 1 << max(i, 0), i >= 0 && name != onDemand
}

func (c Conditions) String() string {
	s := ""
	for i, name := range conditionNames {
		if c&(1<<i) != 0 {
			s += "," + name
		}
	}
	if s == "" {
		return ""
	}
	return s[1:]
}

// maxRepeated is the largest request without a policy that is kept, in bytes.
const maxRepeated = 64 << 10

// unplanned is for a request without a policy that no server has got, or that its owner
// may want repeated.
var unplanned = Policy{MaxBytes: maxRepeated, BackoffBase: 25 * time.Millisecond, BackoffMax: 250 * time.Millisecond}
