package fault

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFaultsAreTold(t *testing.T) {
	var l List
	l.Add("", "want %s", "one document")
	l.Add(Join(Join("", "labels"), "a.b/c"), "100%%")
	l.Add(Join("server", ""), "empty")
	require.EqualError(t, l, "want one document\nlabels[\"a.b/c\"]: 100%\nserver[\"\"]: empty")
}
