package route

import (
	"sync"
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
		{"the first one also before its event", func(ts *Tables) { ts.Add(key, a); ts.Add(key, b) }, a},
		{"the first one again, though its event never came", func(ts *Tables) {
			ts.Add(key, a)
			v := ts.Add(key, b)
			v.Publish()
			v.Remove()
		}, a},
		{"a new one without an event when the published one goes", func(ts *Tables) {
			v := ts.Add(key, a)
			v.Publish()
			ts.Add(key, b)
			v.Remove()
		}, b},
		{"of two without an event the older when the published one goes", func(ts *Tables) {
			v := ts.Add(key, a)
			v.Publish()
			ts.Add(key, b)
			ts.Add(key, c)
			v.Remove()
		}, b},
		{"one without an event is passed over when a newer one goes", func(ts *Tables) {
			ts.Add(key, a).Publish()
			ts.Add(key, b)
			v := ts.Add(key, c)
			v.Publish()
			v.Remove()
		}, a},
		{"down the whole stack", func(ts *Tables) {
			ts.Add(key, a).Publish()
			v, w := ts.Add(key, b), ts.Add(key, c)
			v.Publish()
			w.Publish()
			w.Remove()
			v.Remove()
		}, a},
		{"the same table twice", func(ts *Tables) {
			ts.Add(key, a).Publish()
			v := ts.Add(key, a)
			v.Publish()
			v.Remove()
		}, a},
		{"events of one that is gone mean nothing", func(ts *Tables) {
			v := ts.Add(key, a)
			v.Remove()
			ts.Add(key, b).Publish()
			v.Publish()
			v.Remove()
		}, b},
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

func TestASlotFollowsItsKeyAndNoOther(t *testing.T) {
	ts := NewTables()
	a, b, c := &Table{}, &Table{}, &Table{}
	first := ts.Add(Key{"scope", "r"}, a)
	first.Publish()
	ts.Add(Key{"scope", "s"}, b)
	ts.Add(Key{"other", "r"}, c)
	slot := ts.Slot(Key{"scope", "r"})
	require.Same(t, a, slot.Load())
	second := ts.Add(Key{"scope", "r"}, c)
	second.Publish()
	first.Remove()
	require.Same(t, slot, ts.Slot(Key{"scope", "r"}))
	require.Same(t, c, slot.Load())
	require.Same(t, b, ts.Slot(Key{"scope", "s"}).Load())
}

// TestTablesAreReplacedWhileWorkersRead is for the race detector, and holds
// that a reader always finds a table while one version lives.
func TestTablesAreReplacedWhileWorkersRead(t *testing.T) {
	ts := NewTables()
	key := Key{"scope", "r"}
	ts.Add(key, &Table{}).Publish()
	slot := ts.Slot(key)
	done := make(chan struct{})
	var readers, writers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					if slot.Load() == nil || ts.Slot(key) != slot {
						t.Error("the table is gone")
						return
					}
				}
			}
		})
		writers.Go(func() {
			for range 1000 {
				v, w := ts.Add(key, &Table{}), ts.Add(key, &Table{})
				w.Publish()
				v.Remove()
				w.Remove()
			}
		})
	}
	writers.Wait()
	close(done)
	readers.Wait()
}
