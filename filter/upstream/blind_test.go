package upstream_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestWhereNothingTellsOfHostsNoneIsLookedFor: each connection would lead to one that is not
// known yet, for ever.
func TestWhereNothingTellsOfHostsNoneIsLookedFor(t *testing.T) {
	b := newBed(t, byID, nil)
	b.has(8)
	b.turns(60, time.Second/2, "")
	require.Len(t, b.servers, 4)
	require.Len(t, b.open(), 4)
}

// TestHostsThatWereAssumedAreNoOthers: when it is known how many there are, what led to them before
// is as good as new.
func TestHostsThatWereAssumedAreNoOthers(t *testing.T) {
	for assumed, dials := range map[bool]int{true: 4, false: 5} {
		b := newBed(t, byID, nil)
		b.has(8)
		b.hosts.Assumed = assumed
		b.sends("first")
		for _, s := range b.servers {
			s.ready("h")
		}
		require.Len(t, b.open(), 4)
		b.has(1)
		b.turns(20, time.Second/5, "h")
		require.Len(t, b.servers, dials, "hosts were assumed: %v", assumed)
	}
}
