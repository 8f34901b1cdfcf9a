package route

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheNewestPublishedTableIsValid(t *testing.T) {
	key := Key{"scope", "r"}
	a, b, c := &Table{}, &Table{}, &Table{}
	for _, tc := range []struct {
		name string
		do   func(ts *Tables)
		want *Table
	}{
		{"the first one at once", func(ts *Tables) { ts.Add(key, a) }, a},
		{"a second one not yet", func(ts *Tables) { ts.Add(key, a).Publish(); ts.Add(key, b) }, a},
		{"a second one when published", func(ts *Tables) { ts.Add(key, a).Publish(); ts.Add(key, b).Publish() }, b},
		{"the one before when it goes", func(ts *Tables) { ts.Add(key, a).Publish(); v := ts.Add(key, b); v.Publish(); v.Remove() }, a},
		{"a refused one leaves no trace", func(ts *Tables) { ts.Add(key, a).Publish(); ts.Add(key, b).Remove() }, a},
		{"the old one goes first", func(ts *Tables) { v := ts.Add(key, a); v.Publish(); ts.Add(key, b); v.Remove() }, b},
		{"late publication of an old one", func(ts *Tables) { v := ts.Add(key, a); ts.Add(key, b).Publish(); v.Publish() }, b},
		{"three", func(ts *Tables) {
			ts.Add(key, a).Publish()
			v := ts.Add(key, b)
			v.Publish()
			ts.Add(key, c).Publish()
			v.Remove()
		}, c},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ts := NewTables()
			tc.do(ts)
			require.Same(t, tc.want, ts.Slot(key).Load())
			require.Nil(t, ts.Slot(Key{"other", "r"}))
		})
	}
	ts := NewTables()
	v := ts.Add(key, a)
	v.Remove()
	v.Publish()
	v.Remove()
	require.Nil(t, ts.Slot(key))
}
