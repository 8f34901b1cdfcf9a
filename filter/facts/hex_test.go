package facts_test

import (
	"encoding/hex"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/facts"
)

func TestDigitsAreThoseOfPackageHex(t *testing.T) {
	all := make([]byte, 256+3)
	for i := range all {
		all[i] = byte(i)
	}
	for n := range all {
		require.Equal(t, "id "+hex.EncodeToString(all[len(all)-n:]), string(facts.AppendHex([]byte("id "), all[len(all)-n:])))
	}
}
