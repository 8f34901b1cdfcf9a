package keyed_test

import (
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/keyed"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

func message(kvs ...string) *codecs.Metadata {
	m := &codecs.Metadata{}
	for i := 0; i < len(kvs); i += 2 {
		m.Put([]byte(kvs[i]), []byte(kvs[i+1]))
	}
	return m
}

func TestKeysDiffer(t *testing.T) {
	n := keyed.Names{"a", "b"}
	long := strings.Repeat("x", 1000)
	keys := map[string]bool{}
	all := []*codecs.Metadata{
		message(), message("a", ""), message("b", ""), message("a", "", "b", ""),
		message("a", "xy", "b", "z"), message("a", "x", "b", "yz"), message("a", "xyz"), message("b", "xyz"),
		message("a", long), message("a", long+"x"), message("b", long), message("a", "x", "b", long),
	}
	for _, m := range all {
		k := n.Append(nil, m)
		require.LessOrEqual(t, len(k), keyed.Size)
		keys[string(k)] = true
	}
	require.Len(t, keys, len(all))
	require.Equal(t, keyed.Key("x", "yz"), string(n.Append(nil, message("B", "yz", "c", "1", "A", "x", "a", "other"))))
	require.Equal(t, keyed.Key("x", long), string(n.Append(nil, message("a", "x", "b", long))))
}

// TestOfLongValuesTheBeginningCounts, and the length: what a client sends is not looked at
// whole for each key.
func TestOfLongValuesTheBeginningCounts(t *testing.T) {
	n := keyed.Names{"a"}
	key := func(v string) string {
		k := string(n.Append(nil, message("a", v)))
		require.Equal(t, keyed.Key(v), k)
		return k
	}
	const looked = 8 << 10
	long := strings.Repeat("x", looked)
	require.Equal(t, key(long+"one"), key(long+"two"))
	require.NotEqual(t, key(long+"one"), key(long+"three"))
	require.NotEqual(t, key(long+"one"), key(long[1:]+"y"+"one"))
}

// count is a value that is idle when until is over.
type count struct {
	n     int
	until time.Duration
}

func table(most int) *keyed.Table[count] {
	return keyed.NewTable(most, func(c *count) { c.n = 100 }, func(c *count, now time.Duration) bool { return now >= c.until })
}

func use(t *keyed.Table[count], most int, key string, now time.Duration) (n int, shared bool) {
	e, shared := t.Lock([]byte(key), most, now)
	defer e.Unlock()
	e.Value.n++
	e.Value.until = now + time.Second
	return e.Value.n, shared
}

func TestTheOldestIdleKeyIsForgotten(t *testing.T) {
	tab := table(3)
	at := func(key string, now time.Duration, want int, wantShared bool) {
		t.Helper()
		n, shared := use(tab, 3, key, now)
		require.Equal(t, want, n)
		require.Equal(t, wantShared, shared)
	}
	at("a", 0, 101, false)
	at("b", 0, 101, false)
	at("c", 0, 101, false)
	at("a", 0, 102, false)
	at("d", time.Second-1, 101, true)
	at("e", time.Second-1, 102, true)
	at("d", time.Second, 101, false) // instead of one of the others: all are idle
	old := 0
	for _, key := range []string{"a", "b", "c"} {
		if n, _ := use(tab, 3, key, 10*time.Second); n > 101 {
			old++
		}
	}
	require.LessOrEqual(t, old, 2)
}

// TestManyKeysAtOnce: as many as there is room for are told apart, and each counts.
func TestManyKeysAtOnce(t *testing.T) {
	tab := table(4096)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 10_000 {
				use(tab, 4096, strconv.Itoa(i%20_000), 0)
			}
		})
	}
	wg.Wait()
	require.Equal(t, 4096, tab.Len())
	sum, rest := 0, 0 // rest is the value that the others share
	for i := range 20_000 {
		e, shared := tab.Lock([]byte(strconv.Itoa(i)), 4096, 0)
		if shared {
			rest = e.Value.n - 100
		} else {
			sum += e.Value.n - 100
		}
		e.Unlock()
	}
	require.Equal(t, 40_000, sum+rest)
}

func TestAKnownKeyAllocatesNothing(t *testing.T) {
	tab, n, m := table(4096), keyed.Names{"a", "b"}, message("a", "x", "b", strings.Repeat("x", 100))
	require.Zero(t, raced.AllocsPerRun(t, 100, func() {
		var room [keyed.Size]byte
		e, _ := tab.Lock(n.Append(room[:0], m), 4096, 0)
		e.Unlock()
	}))
}
