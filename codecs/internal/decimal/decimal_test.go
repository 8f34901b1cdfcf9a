package decimal

import (
	"strconv"
	"strings"
	"testing"

	"github.com/meltemi-mesh/meltemi/internal/raced"
	"github.com/stretchr/testify/require"
)

func TestNumbersAreThoseOfStrconv(t *testing.T) {
	for _, text := range []string{
		"", "0", "-0", "+0", "7", "007", "+7", "-7", "2147483647", "2147483648", "-2147483648", "-2147483649",
		"9223372036854775808", strings.Repeat("9", 100), strings.Repeat("0", 100), "+", "-", "--1", "+-1", "abc", "1abc", " 1", "1 ", "1.0", "1e3", "0x1", "1_0", "١",
	} {
		want, err := strconv.ParseInt(text, 10, 32)
		got, ok := Int32([]byte(text))
		require.Equal(t, err == nil, ok, text)
		if ok {
			require.Equal(t, int32(want), got, text)
		}
	}
	long := []byte(strings.Repeat("x", 100))
	require.Zero(t, raced.AllocsPerRun(t, 10, func() { Int32(long) }))
}
