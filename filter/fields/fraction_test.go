package fields

import (
	"testing"

	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/stretchr/testify/require"
)

func TestFractions(t *testing.T) {
	for _, tt := range []struct {
		p    *typev3.FractionalPercent
		want Fraction
		says string
	}{
		{nil, Fraction{1, 1}, "required"},
		{&typev3.FractionalPercent{}, Fraction{0, 100}, ""},
		{&typev3.FractionalPercent{Numerator: 3, Denominator: typev3.FractionalPercent_TEN_THOUSAND}, Fraction{3, 1e4}, ""},
		{&typev3.FractionalPercent{Numerator: 1e6, Denominator: typev3.FractionalPercent_MILLION}, Fraction{1e6, 1e6}, ""},
		{&typev3.FractionalPercent{Numerator: 101}, Fraction{1, 1}, "numerator: must be at most 100, is 101"},
		{&typev3.FractionalPercent{Denominator: 7}, Fraction{1, 1}, "denominator: unknown value 7"},
	} {
		got, err := ParseFraction(tt.p)
		require.Equal(t, tt.want, got)
		if tt.says == "" {
			require.NoError(t, err)
		} else {
			require.EqualError(t, err, tt.says)
		}
	}
	half := Fraction{50, 100}
	require.True(t, half.Has(149))
	require.False(t, half.Has(150))
}
