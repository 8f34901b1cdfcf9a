package tokenbucket

import (
	"time"

	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/meltemi-mesh/meltemi/filter/fields"
)

// Parse judges a bucket of a configuration, which is at path: tokens_per_fill is at least
// one, by default one, and fill_interval at least a millisecond; max_tokens may be 0.
func Parse(tb *typev3.TokenBucket, path string, faults *fields.Faults) Limit {
	faults.Only(tb, path, "max_tokens", "tokens_per_fill", "fill_interval")
	l := Limit{Max: tb.GetMaxTokens(), PerFill: 1}
	if n := tb.GetTokensPerFill(); n != nil {
		if l.PerFill = n.GetValue(); l.PerFill == 0 {
			faults.Add(fields.Join(path, "tokens_per_fill"), "must be at least 1, is 0")
		}
	}
	if tb.GetFillInterval() == nil {
		faults.Add(fields.Join(path, "fill_interval"), "required")
	}
	l.Interval = faults.Duration(tb.GetFillInterval(), fields.Join(path, "fill_interval"), time.Millisecond, time.Millisecond)
	return l
}
