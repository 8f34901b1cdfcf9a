package process

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

// TestMain fails when a test leaves a goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// lines is a log.
type lines []string

func (l *lines) logf(level host.Level, format string, args ...any) {
	*l = append(*l, fmt.Sprintf("%d ", level)+fmt.Sprintf(format, args...))
}

func TestALineASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lines
		var s Sometimes
		for i := range 25 { // ten a second
			s.Logf(log.logf, host.Warn, "line %d", i)
			time.Sleep(100 * time.Millisecond)
		}
		require.Equal(t, lines{
			"3 line 0", "3 line 10 (9 more such lines left out)", "3 line 20 (9 more such lines left out)",
		}, log)
	})
}

func TestPanicsAreCountedAndLogged(t *testing.T) {
	var log lines
	p := NewPanics(log.logf)
	require.False(t, p.Any())
	require.True(t, p.Guard("resting", func() {}))
	require.False(t, p.Any())
	require.False(t, p.Guard("juggling", func() { panic("dropped") }))
	require.False(t, p.Guard("juggling", func() { panic("again") }))
	require.True(t, p.Any())
	require.EqualValues(t, 2, p.Take())
	require.False(t, p.Any())
	require.Zero(t, p.Take())
	require.Len(t, log, 1, "one line a second")
	require.Contains(t, log[0], "4 meltemi: panic while juggling: dropped\n")
	require.Contains(t, log[0], "TestPanicsAreCountedAndLogged", "the stack that panicked")
}

func TestLimitsOfTheRuntime(t *testing.T) {
	const gib = 1 << 30
	for _, tc := range []struct {
		workers       int
		memory        int64
		procs, limit  string // of the environment
		want          limits
		warnsOf, warn string
	}{
		{workers: 4, memory: 8 * gib, want: limits{6, 2 * gib}},
		{workers: 0, memory: 8 * gib, want: limits{3, 2 * gib}},
		{workers: 4, memory: 100 << 20, want: limits{6, leastMemory}},
		{workers: 4, memory: 8 * gib, procs: "1", limit: "512MiB", want: limits{1, gib / 2}},
		{workers: 4, memory: 8 * gib, procs: "0", want: limits{6, 2 * gib}, warnsOf: procsEnv, warn: "using 6"},
		{workers: 4, memory: 8 * gib, procs: "many", want: limits{6, 2 * gib}, warnsOf: procsEnv, warn: "using 6"},
		{workers: 4, memory: 8 * gib, limit: "512M", want: limits{6, 2 * gib}, warnsOf: memoryEnv, warn: "using 2147483648"},
	} {
		var log lines
		env := map[string]string{procsEnv: tc.procs, memoryEnv: tc.limit}
		require.Equal(t, tc.want, choose(tc.workers, tc.memory, func(k string) string { return env[k] }, log.logf), tc)
		if tc.warn == "" {
			require.Empty(t, log)
			continue
		}
		require.Len(t, log, 1)
		require.True(t, strings.HasPrefix(log[0], "3 ") && strings.Contains(log[0], tc.warnsOf) && strings.Contains(log[0], tc.warn), log[0])
	}
	require.Positive(t, physicalMemory())
}

func TestSizes(t *testing.T) {
	for s, want := range map[string]int64{
		"1": 1, "1B": 1, "2KiB": 2 << 10, "3MiB": 3 << 20, "4GiB": 4 << 30, "5TiB": 5 << 40, "off": math.MaxInt64,
		"9223372036854775807": math.MaxInt64,
	} {
		n, ok := parseBytes(s)
		require.True(t, ok, s)
		require.Equal(t, want, n, s)
	}
	for _, s := range []string{"", "0", "-1", "1K", "1MB", "MiB", "1.5GiB", "1 KiB", "8388608TiB", "9223372036854775808"} {
		_, ok := parseBytes(s)
		require.False(t, ok, s)
	}
}

func TestMemoryIsLookedForWhenItIsIdle(t *testing.T) {
	var k keeper
	m := memory{objects: 2 * worthwhile}
	require.True(t, k.idle(m))
	require.True(t, k.found(memory{free: worthwhile}))
	m.allocated += m.held()/4 + 1
	require.False(t, k.idle(m), "it is needed again")
	m.allocated += m.held() / 4
	require.True(t, k.idle(m))
	require.False(t, k.found(memory{free: worthwhile - 1}))
	for range upkeepRest {
		require.False(t, k.idle(m), "it rests")
	}
	require.True(t, k.idle(m))
	require.False(t, k.idle(memory{allocated: m.allocated, objects: worthwhile / 2, free: worthwhile/2 - 1}), "too little")
}

// TestMemoryOfThisProcess: the names of what is read exist.
func TestMemoryOfThisProcess(t *testing.T) {
	m := readMemory()
	require.Positive(t, m.allocated)
	require.Positive(t, m.objects)
}
