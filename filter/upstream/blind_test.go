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
