package route

import (
	"math"
	"strings"
	"time"

	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/forward"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

const (
	maxRetries = 10
	// maxKeptBytes and keptBytes are the largest and the default limit of requests that
	// are kept for a retry.
	maxKeptBytes, keptBytes = 1 << 30, 64 << 10
)

// policies is what a table says for all its routes.
type policies struct {
	timeout time.Duration
	retry   *routev1alpha.RetryPolicy
	hedge   *routev1alpha.HedgePolicy
}

// defaults validates what the table says for all its routes.
func (c *compiler) defaults(rc *routev1alpha.RouteConfiguration) *policies {
	d := &policies{
		timeout: c.duration(rc.GetTimeout(), "timeout", 0),
		retry:   rc.GetRetryPolicy(),
		hedge:   rc.GetHedgePolicy(),
	}
	c.retry(&forward.Policy{}, d.retry, "retry_policy", true)
	c.hedge(&forward.Policy{}, d.hedge, "hedge_policy")
	return d
}

// policy returns what a route wants for its requests, nil if that is nothing.
func (c *compiler) policy(a *routev1alpha.RouteAction, d *policies, path string) *forward.Policy {
	p := &forward.Policy{Timeout: c.duration(a.GetTimeout(), path+".timeout", d.timeout)}
	retry, hedge := a.GetRetryPolicy(), a.GetHedgePolicy()
	if retry != nil {
		c.retry(p, retry, path+".retry_policy", a.GetIdempotent())
	} else {
		retry = d.retry
		(&compiler{}).retry(p, retry, "", true) // its faults are known
	}
	if !a.GetIdempotent() {
		p.On &= forward.Unexecuted
	}
	switch {
	case hedge != nil && !a.GetIdempotent():
		c.refuse(path+".hedge_policy", "needs idempotent: the request is executed twice")
	case hedge != nil:
		c.hedge(p, hedge, path+".hedge_policy")
	case a.GetIdempotent():
		(&compiler{}).hedge(p, d.hedge, "")
	}
	if retry == nil {
		p.MaxBytes = keptBytes
		p.BackoffBase, p.BackoffMax = backoffBase, backoffTimes*backoffBase
	}
	if p.Timeout == 0 && retry == nil && p.HedgeDelay == 0 && p.HedgePercentile == 0 {
		return nil
	}
	return p
}

const (
	backoffBase  = 25 * time.Millisecond
	backoffTimes = 10
)

// retry puts into p what from says. idempotent tells that it may name conditions of
// requests that may have been executed.
func (c *compiler) retry(p *forward.Policy, from *routev1alpha.RetryPolicy, path string, idempotent bool) {
	if from == nil {
		return
	}
	on := from.GetRetryOn()
	if on == "" {
		on = (forward.OnConnectFailure | forward.OnRefused).String()
	}
	for name := range strings.SplitSeq(on, ",") {
		name = strings.TrimSpace(name)
		cond, known := forward.ParseCondition(name)
		switch {
		case !known:
			c.refuse(path+".retry_on", "%q is no condition", name)
		case !idempotent && cond&forward.Unexecuted == 0:
			c.refuse(path+".retry_on", "%s needs idempotent: the request may have been executed", name)
		default:
			p.On |= cond
		}
	}
	p.Retries = c.number(from.GetNumRetries(), path+".num_retries", 0, maxRetries, 1)
	p.PerTry = c.duration(from.GetPerTryTimeout(), path+".per_try_timeout", 0)
	p.MaxBytes = c.number(from.GetPerRequestBufferLimitBytes(), path+".per_request_buffer_limit_bytes", 0, maxKeptBytes, keptBytes)
	p.Codes = from.GetRetriableStatusCodes()
	switch listed := p.On&forward.OnCode != 0; {
	case listed && len(p.Codes) == 0:
		c.refuse(path+".retriable_status_codes", "required, as retry_on has retriable-status-codes")
	case !listed && len(p.Codes) > 0:
		c.refuse(path+".retriable_status_codes", "needs retriable-status-codes in retry_on")
	}
	b := from.GetRetryBackOff()
	p.BackoffBase = c.duration(b.GetBaseInterval(), path+".retry_back_off.base_interval", backoffBase)
	p.BackoffMax = c.duration(b.GetMaxInterval(), path+".retry_back_off.max_interval", backoffTimes*p.BackoffBase)
	if p.BackoffMax < p.BackoffBase {
		c.refuse(path+".retry_back_off.max_interval", "must be at least base_interval, %v, is %v", p.BackoffBase, p.BackoffMax)
	}
}

func (c *compiler) hedge(p *forward.Policy, from *routev1alpha.HedgePolicy, path string) {
	if from == nil {
		return
	}
	switch h := from.GetHedgeSpecifier().(type) {
	case *routev1alpha.HedgePolicy_HedgeDelay:
		p.HedgeDelay = c.duration(h.HedgeDelay, path+".hedge_delay", 0)
	case *routev1alpha.HedgePolicy_HedgePercentile:
		p.HedgePercentile = c.percent(h.HedgePercentile, path+".hedge_percentile", 50, 100)
		if p.HedgePercentile == 100 {
			c.refuse(path+".hedge_percentile", "must be less than 100")
		}
	default:
		c.refuse(path, "required: hedge_delay or hedge_percentile")
	}
}

func (c *compiler) duration(d *durationpb.Duration, path string, def time.Duration) time.Duration {
	v, err := fields.Duration(d, time.Millisecond, def)
	if err != nil {
		c.refuse(path, "%v", err)
	}
	return v
}

func (c *compiler) number(n *wrapperspb.UInt32Value, path string, least, most, def int) int {
	v, err := fields.Number(n, least, most, def)
	if err != nil {
		c.refuse(path, "%v", err)
	}
	return v
}

func (c *compiler) percent(p *typev3.Percent, path string, least, most float64) float64 {
	v := p.GetValue()
	if math.IsNaN(v) || v < least || v > most {
		c.refuse(path, "must be between %v and %v, is %v", least, most, v)
		return least
	}
	return v
}
