package forward

import (
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/internal/timer"
	"github.com/meltemi-mesh/meltemi/filter/upstream"
)

const (
	// maxKept bounds the frames of a worker that are kept for further attempts; what
	// comes then is sent once.
	maxKept = 64 << 20
	// maxRepeats is how often a request is repeated as its owner wants it, together with
	// retries, where a policy does not allow more of those.
	maxRepeats = 3
	// maxFree bounds the plans that are kept for the next requests.
	maxFree = 4096
)

// plan is what an exchange needs that may make further attempts, or has a deadline of
// its route's.
type plan struct {
	x       *Exchange
	policy  *Policy
	due     time.Duration
	expects Expects
	may     bool // be repeated as the policy says
	retried bool // the answer came behind a retry and needs no other, which is to be told
	hedged  bool // it is that of the second attempt, which is to be told
	keeps   bool // the request behind its answer, as the owner may want it repeated
	size    int  // of the request, in bytes
	written bool // a server may have got it
	retries int
	kept    int // bytes
	spent   upstream.Spending
	avoid   string        // the host of the attempt that failed last
	wait    timer.Timer   // until the next attempt
	hedge   timer.Timer   // until the second one
	slow    time.Duration // after which it is made, or asked about again
	second  attempt
}

// devise makes the plan for a request that is about to be sent, and returns how long
// its first attempt may take.
func (x *Exchange) devise(p *upstream.Pool, s *upstream.Send, policy *Policy, expects Expects, repeatable bool) time.Duration {
	pl := x.newPlan(policy)
	now := x.env.now()
	pl.due, pl.expects = now+s.Timeout, expects
	fits := s.Line == nil && s.Size <= policy.MaxBytes
	pl.may = expects != NoAnswer && policy.repeats() && fits
	pl.keeps = expects != NoAnswer && repeatable && fits
	pl.size = s.Size
	if pl.may || pl.keeps {
		p.Deposit()
	}
	if pl.may && expects == AnAnswer && policy.hedges() {
		pl.slow = policy.HedgeDelay
		if policy.HedgePercentile > 0 {
			pl.slow = p.Latency().Percentile(policy.HedgePercentile)
		}
		if pl.slow > 0 {
			pl.watch(now)
		}
	}
	return pl.time(now)
}

func (x *Exchange) newPlan(policy *Policy) *plan {
	env := x.env
	var pl *plan
	if n := len(env.free); n > 0 {
		pl = env.free[n-1]
		env.free = env.free[:n-1]
	} else {
		pl = &plan{}
		pl.second.call.Init(&pl.second)
		pl.wait.Fire, pl.hedge.Fire = pl.resend, pl.twice
	}
	pl.x, pl.policy, pl.second.x, x.plan = x, policy, x, pl
	return pl
}

// end gives the plan back.
func (pl *plan) end() {
	x := pl.x
	env := x.env
	env.timers.Stop(&pl.wait)
	env.timers.Stop(&pl.hedge)
	x.first.call.Cancel()
	x.first.end(nil, nil)
	pl.second.call.Cancel()
	pl.second.end(nil, nil)
	pl.spent.Done()
	env.kept -= pl.kept
	pl.x, pl.policy, pl.second.x, pl.avoid = nil, nil, nil, ""
	pl.due, pl.expects, pl.may, pl.written, pl.retries, pl.kept, pl.slow = 0, NoAnswer, false, false, 0, 0, 0
	pl.keeps, pl.size, pl.retried, pl.hedged = false, 0, false, false
	if len(env.free) < maxFree {
		env.free = append(env.free, pl)
	}
}

// time is how long an attempt may take that starts now.
func (pl *plan) time(now time.Duration) time.Duration {
	left := pl.due - now
	if pl.policy.PerTry > 0 && pl.expects == AnAnswer {
		left = min(left, pl.policy.PerTry)
	}
	return left
}

func (pl *plan) encode(a *attempt, dst []byte, id uint64) ([]byte, error) {
	x := pl.x
	left := time.Duration(0)
	if pl.policy.Timeout > 0 {
		left = max(a.call.Due()-x.env.now(), 1)
	}
	b, err := x.owner.Encode(dst, id, left, x.attempts-1)
	if err != nil {
		return b, err
	}
	pl.written = true
	x.hosts = append(x.hosts, a.call.Host())
	switch n := max(pl.size, len(b)-len(dst)); {
	case pl.kept > 0:
	case (pl.may || pl.keeps) && x.env.kept+n <= maxKept:
		pl.kept = n
		x.env.kept += n
		x.owner.Keep()
	default:
		pl.may = false
		x.owner.Release()
	}
	return b, nil
}

// rest waits for what the owner makes of the answer of a.
func (pl *plan) rest(a *attempt) {
	env := pl.x.env
	env.timers.Stop(&pl.wait)
	env.timers.Stop(&pl.hedge)
	o := pl.other(a)
	o.call.Cancel()
	o.end(nil, nil) // before its owner's end, and before another attempt is made in its place
}

// other is the attempt beside a.
func (pl *plan) other(a *attempt) *attempt {
	if a == &pl.second {
		return &pl.x.first
	}
	return &pl.second
}

// declines reports whether the answer of a is not to be had, as a further attempt
// may bring a better one.
func (pl *plan) declines(a *attempt, resp *codecs.Metadata) bool {
	why := Conditions(0)
	switch resp.Failure {
	case codecs.Refused:
		why = OnRefused
	case codecs.Overloaded:
		why = OnOverloaded
	case codecs.HostFailure:
		why = OnServerError
	}
	if pl.policy.retriable(resp.Code) {
		why |= OnCode
	}
	if why&pl.policy.On != 0 && pl.may {
		if pl.other(a).call.Active() {
			return true // which may have it yet
		}
		if pl.again(a, why) {
			return true
		}
	} else {
		pl.retried = pl.retries > 0
	}
	if a == &pl.second {
		pl.hedged = true
		pl.x.won = won{a.call.Host(), a.call.Server(), a.call.SentAt()}
	}
	if pl.policy.HedgePercentile > 0 {
		// Of the first attempt, also where the second was faster: it is at least as slow as
		// that. The time of the second would make for ever more hedges.
		a.call.Pool().Latency().Add(pl.x.env.now() - pl.x.first.call.SentAt())
	}
	return false
}

// tell tells of how the answer came about that the owner keeps.
func (pl *plan) tell() {
	if pl.retried {
		pl.x.owner.Happened(RetrySucceeded, 0)
	}
	if pl.hedged {
		pl.x.owner.Happened(HedgeWon, 0)
	}
	pl.retried, pl.hedged = false, false
}

// failed reports whether the exchange goes on though a has failed.
func (pl *plan) failed(a *attempt, f *upstream.Failure) bool {
	why := reason(f)
	if f.Type == codecs.Timeout && pl.x.env.now() < pl.due {
		pl.x.owner.Happened(PerTryTimeout, 0)
	}
	if f.Panic == nil && pl.other(a).call.Active() {
		return true
	}
	return pl.again(a, why)
}

// rescue makes a plan for a request without one, if it has not been sent and may be
// elsewhere.
func (x *Exchange) rescue(f *upstream.Failure) bool {
	c := &x.first.call
	// A host may learn late that a connection never came about. By then the frame has been
	// let go.
	if f.Written || reason(f) != OnConnectFailure || f.Type != codecs.ConnectFailure || x.attempts != 1 {
		return false
	}
	p := c.Pool()
	if !p.Repeats() || !p.Alternative() {
		return false
	}
	pl := x.newPlan(&unplanned)
	pl.due = c.Due()
	return pl.again(&x.first, OnConnectFailure)
}

// reason is the condition that f is.
func reason(f *upstream.Failure) Conditions {
	switch {
	case f.NotProcessed:
		return OnRefused
	case f.Answer != nil: // which others would give, too
		return 0
	case f.Type == codecs.ConnectFailure, f.Type == codecs.Timeout && !f.Written:
		return OnConnectFailure
	case f.Type == codecs.Timeout:
		return OnTimeout
	case f.Written && (f.Type == codecs.UpstreamReset || f.Type == codecs.BadResponse):
		return OnReset
	}
	return 0
}

// again reports whether a further attempt is made, behind a.
func (pl *plan) again(a *attempt, why Conditions) bool {
	x := pl.x
	p, env := a.call.Pool(), x.env
	// Always once, whatever the policy: nobody has got it.
	unsent := why == OnConnectFailure && !pl.written && pl.retries == 0 && p.Repeats() && p.Alternative()
	if !unsent {
		switch {
		case why == OnDemand && pl.keeps && pl.retries < max(pl.policy.Retries, maxRepeats):
		case why == OnDemand:
			x.owner.Happened(RetryLimit, why)
			return false
		case !pl.may || !pl.policy.wants(why), pl.expects != AnAnswer && why&ByAnswer == 0:
			return false
		case pl.retries >= pl.policy.Retries:
			x.owner.Happened(RetryLimit, why)
			return false
		}
	}
	most := pl.policy.BackoffMax
	if base := pl.policy.BackoffBase; base < most>>pl.retries {
		most = base << pl.retries
	}
	at := env.now() + time.Duration(env.rand.Int64N(int64(most)+1))
	if at >= pl.due {
		return false
	}
	if !p.Withdraw(&pl.spent) {
		x.owner.Happened(RetryOverflow, why)
		return false
	}
	if !pl.written { // it may have come in this event
		x.owner.Hold()
	}
	pl.retries++
	pl.avoid = a.call.Host()
	x.owner.Happened(Retried, why)
	env.timers.Start(&pl.wait, at)
	return true
}

// resend makes a further attempt, if there is time left: timers are late by a little.
func (pl *plan) resend() {
	x := pl.x
	left := pl.time(x.env.now())
	if left <= 0 {
		f := &upstream.Failure{Type: codecs.Timeout, Reason: upstream.RequestTimeout, Written: pl.written}
		x.settle()
		x.owner.Failed(f)
		return
	}
	p, s := x.owner.Again()
	s.Timeout, s.Avoid = left, pl.avoid
	x.first.begin()
	p.Send(&x.first.call, &s)
}

// watch has twice called once the first attempt has gone on for long.
func (pl *plan) watch(now time.Duration) { pl.x.env.timers.Start(&pl.hedge, now+pl.slow) }

// twice makes a second attempt beside the first, if that goes on and there is another
// host.
func (pl *plan) twice() {
	x := pl.x
	first := &x.first.call
	if !pl.may || x.env.now() >= pl.due { // where both are due, its deadline ends the first one behind this
		return
	}
	if !first.Active() || first.Waiting() { // for its next attempt, or a connection: that server may be slow, too
		pl.watch(x.env.now())
		return
	}
	p, s := x.owner.Again()
	if !p.HasOther(first.Host()) { // it may come, but most often there is none
		pl.slow *= 2
		pl.watch(x.env.now())
		return
	}
	if !p.Withdraw(&pl.spent) {
		x.owner.Happened(RetryOverflow, OnTimeout)
		return
	}
	x.owner.Happened(Hedged, 0)
	s.Timeout, s.Avoid = pl.time(x.env.now()), first.Host()
	pl.second.begin()
	p.Send(&pl.second.call, &s)
}
