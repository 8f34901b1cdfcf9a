package localratelimit

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/keyed"
	"github.com/meltemi-mesh/meltemi/filter/tokenbucket"
)

// version is a configuration with a descriptor of two requests a day, one of many versions.
func version(i int) *config {
	l := tokenbucket.Limit{Max: 2, PerFill: 2, Interval: 24 * time.Hour}
	return &config{descriptors: []descriptor{{names: keyed.Names{"tenant"}, most: mostKeys, bucket: bucket{strconv.Itoa(i), tokenbucket.NewRate(l)}}}}
}

// spend has so many tenants spend what they have, and reports whether they had all of it.
func spend(t *testing.T, l *limits, tenants int, now time.Duration) bool {
	t.Helper()
	had := true
	for i := range tenants {
		m := &codecs.Metadata{}
		m.Set("tenant", strconv.Itoa(i))
		for range 2 {
			from, shared := l.descriptors[0].take(m, now)
			require.False(t, shared)
			had = had && from != nil
		}
	}
	return had
}

// TestWhatNobodyUsesIsBounded, by the number of definitions and by that of their buckets:
// what was left first goes first, and what was left last stays.
func TestWhatNobodyUsesIsBounded(t *testing.T) {
	for _, tt := range []struct{ versions, tenants, stay int }{
		{maxIdle + 50, 1, maxIdle}, {28, 9999, maxIdleBuckets / 10_000}, {2, maxIdleBuckets + 1, 1},
	} {
		t.Run(fmt.Sprint(tt), func(t *testing.T) {
			s := newStore()
			for i := range tt.versions {
				l := s.limits(version(i))
				require.True(t, spend(t, l, tt.tenants, time.Minute))
				s.leave(l)
				s.sweep(time.Minute)
			}
			require.Len(t, s.all, tt.stay)
			require.Len(t, s.idle, tt.stay)
			require.Equal(t, tt.stay*(tt.tenants+1), s.size)
			first := tt.versions - tt.stay
			require.False(t, spend(t, s.limits(version(first)), 1, time.Minute))
			require.True(t, spend(t, s.limits(version(first-1)), 1, time.Minute), "it was forgotten")
			require.Len(t, s.idle, tt.stay-1)
		})
	}
}

// TestWhatNobodyUsesGoesWhenItIsFull, and not before. Who comes back meanwhile begins the time
// anew.
func TestWhatNobodyUsesGoesWhenItIsFull(t *testing.T) {
	s := newStore()
	for day := range time.Duration(3) {
		now := day * 24 * time.Hour
		l := s.limits(version(0))
		spend(t, l, 100, now)
		s.leave(l)
		s.sweep(now)
		s.sweep(now + 24*time.Hour - 1)
		require.Len(t, s.all, 1)
		require.Equal(t, 101, s.size)
	}
	s.sweep(3 * 24 * time.Hour)
	require.Empty(t, s.all)
	require.Empty(t, s.idle)
	require.Zero(t, s.size)
}

// TestNoTableIsWalkedThrough: its buckets are not looked at, whoever holds them.
func TestNoTableIsWalkedThrough(t *testing.T) {
	s := newStore()
	l := s.limits(version(0))
	require.True(t, spend(t, l, 10, 0))
	s.leave(l)
	e, _ := l.descriptors[0].table.table.Lock([]byte(keyed.Key("1")), mostKeys, 0)
	defer e.Unlock()
	swept := make(chan struct{})
	go func() {
		s.sweep(time.Hour)
		s.sweep(48 * time.Hour)
		close(swept)
	}()
	select {
	case <-swept:
	case <-time.After(10 * time.Second):
		t.Fatal("it waits for a bucket")
	}
	require.Empty(t, s.all)
}
