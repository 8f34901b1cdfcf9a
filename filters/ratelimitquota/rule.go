package ratelimitquota

import (
	"fmt"
	"math"
	"time"

	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"

	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/tokenbucket"
)

// rule decides which requests of a bucket pass. The strategy says which rule it is: a
// rule that has tokens is one bucket's.
type rule struct {
	strategy *typev3.RateLimitStrategy
	deny     bool
	tokens   *tokenbucket.Bucket
}

// units are those of requests_per_time_unit, a month as the services of Envoy count it.
var units = map[typev3.RateLimitUnit]time.Duration{
	typev3.RateLimitUnit_SECOND: time.Second, typev3.RateLimitUnit_MINUTE: time.Minute, typev3.RateLimitUnit_HOUR: time.Hour,
	typev3.RateLimitUnit_DAY: 24 * time.Hour, typev3.RateLimitUnit_MONTH: 30 * 24 * time.Hour, typev3.RateLimitUnit_YEAR: 365 * 24 * time.Hour,
}

// leastInterval between the tokens of a bucket.
const leastInterval = time.Microsecond

// newRule makes a rule; none lets all pass. The error is a [fields.Error] of a field in s.
func newRule(s *typev3.RateLimitStrategy) (*rule, error) {
	r := &rule{strategy: s}
	switch k := s.GetStrategy().(type) {
	case nil:
		if s != nil {
			return nil, &fields.Error{Reason: "want blanket_rule, requests_per_time_unit or token_bucket"}
		}
	case *typev3.RateLimitStrategy_BlanketRule_:
		switch k.BlanketRule {
		case typev3.RateLimitStrategy_ALLOW_ALL:
		case typev3.RateLimitStrategy_DENY_ALL:
			r.deny = true
		default:
			return nil, &fields.Error{Path: "blanket_rule", Reason: fmt.Sprintf("unknown value %d", k.BlanketRule)}
		}
	case *typev3.RateLimitStrategy_RequestsPerTimeUnit_:
		unit, known := units[k.RequestsPerTimeUnit.GetTimeUnit()]
		if !known {
			return nil, &fields.Error{
				Path: "requests_per_time_unit.time_unit", Reason: fmt.Sprintf("want SECOND to YEAR, is %v", k.RequestsPerTimeUnit.GetTimeUnit()),
			}
		}
		n := k.RequestsPerTimeUnit.GetRequestsPerTimeUnit()
		r.limit(n, n, unit)
	case *typev3.RateLimitStrategy_TokenBucket:
		interval := k.TokenBucket.GetFillInterval()
		if err := interval.CheckValid(); err != nil || interval.AsDuration() < leastInterval {
			return nil, &fields.Error{Path: "token_bucket.fill_interval", Reason: fmt.Sprintf("must be at least %v", leastInterval)}
		}
		fill := uint64(1)
		if f := k.TokenBucket.GetTokensPerFill(); f != nil {
			fill = uint64(f.GetValue())
		}
		if fill == 0 {
			return nil, &fields.Error{Path: "token_bucket.tokens_per_fill", Reason: "must be at least 1"}
		}
		r.limit(uint64(k.TokenBucket.GetMaxTokens()), fill, interval.AsDuration())
	}
	return r, nil
}

func (r *rule) limit(most, fill uint64, interval time.Duration) {
	r.tokens = tokenbucket.New(tokenbucket.NewRate(tokenbucket.Limit{
		Max: uint32(min(most, math.MaxUint32)), PerFill: uint32(min(fill, math.MaxUint32)), Interval: interval,
	}))
}

// fresh is a rule like r, with all its tokens.
func (r *rule) fresh() *rule {
	if r.tokens == nil {
		return r
	}
	return &rule{strategy: r.strategy, tokens: tokenbucket.New(r.tokens.Rate())}
}

// same reports whether s is r's strategy.
func (r *rule) same(s *typev3.RateLimitStrategy) bool { return proto.Equal(r.strategy, s) }

// allows decides on a request.
func (r *rule) allows(now time.Duration) bool {
	if r.tokens != nil {
		return r.tokens.Take(now, 1)
	}
	return !r.deny
}

// memory is how long the rule remembers what has passed.
func (r *rule) memory() time.Duration {
	if r.tokens == nil {
		return 0
	}
	l := r.tokens.Rate().Limit()
	return time.Duration(min(float64(l.Max)/float64(max(l.PerFill, 1))*float64(l.Interval), math.MaxInt64/2))
}
