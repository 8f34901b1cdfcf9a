package fields

import (
	"fmt"

	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
)

// Fraction is a share: Share of Of, the first no more than the second, which is not 0.
type Fraction struct{ Share, Of uint64 }

// Has reports whether a random number is one of the share.
func (f Fraction) Has(rnd uint64) bool { return rnd%f.Of < f.Share }

// denominators are those of a share.
var denominators = map[typev3.FractionalPercent_DenominatorType]uint64{
	typev3.FractionalPercent_HUNDRED: 100, typev3.FractionalPercent_TEN_THOUSAND: 1e4, typev3.FractionalPercent_MILLION: 1e6,
}

// Denominator is the whole of which a numerator is a share. It reports false for what is
// none of Envoy's.
func Denominator(d typev3.FractionalPercent_DenominatorType) (of uint64, known bool) {
	of, known = denominators[d]
	return of, known
}

// ParseFraction makes a share of p, which is required. The error is an *[Error], with
// the path of the field in p; the share is one of all then.
func ParseFraction(p *typev3.FractionalPercent) (Fraction, error) {
	all := Fraction{1, 1}
	if p == nil {
		return all, &Error{Reason: "required"}
	}
	of, known := denominators[p.GetDenominator()]
	if !known {
		return all, &Error{"denominator", fmt.Sprintf("unknown value %d", p.GetDenominator())}
	}
	if share := uint64(p.GetNumerator()); share <= of {
		return Fraction{share, of}, nil
	}
	return all, &Error{"numerator", fmt.Sprintf("must be at most %d, is %d", of, p.GetNumerator())}
}
