package codecs_test

import (
	"fmt"
	"math"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

// withProperties puts n properties that are views of the frame it returns.
func withProperties(m *codecs.Metadata, n int) (frame []byte) {
	for i := range n {
		frame = fmt.Appendf(frame, "%05d", i)
	}
	m.Raw = frame
	for i := range n {
		b := frame[5*i : 5*i+5]
		m.Put(b[:3], b[3:])
	}
	m.SetOperation(frame[:2], frame[2:5])
	return frame
}

func TestDetachedPropertiesOutliveTheirFrame(t *testing.T) {
	for _, n := range []int{1, 64, 65, 3000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			var m codecs.Metadata
			frame := withProperties(&m, n)
			want := string(frame)
			check := func() {
				t.Helper()
				ps := m.Properties()
				require.Len(t, ps, n)
				got := ""
				for _, p := range ps {
					got += string(p.Name) + string(p.Value)
				}
				require.Equal(t, want, got)
				require.Equal(t, want[:2]+"/"+want[2:5], string(m.AppendOperation(nil)))
			}
			check()
			m.Detach()
			require.Nil(t, m.Raw)
			clear(frame)
			check()
			m.Detach()
			check()
			v, ok := m.Get("000")
			require.True(t, ok)
			require.Equal(t, "00", string(v))
			m.Set("000", "xy")
			m.Set("new", "z")
			m.Detach()
			require.Len(t, m.Properties(), n+1-(min(n, 100)-1), "a hundred are called 000, of which one is left")
			v, _ = m.Get("000")
			require.Equal(t, "xy", string(v))
			v, _ = m.Get("new")
			require.Equal(t, "z", string(v))
			m.Release()
			require.Empty(t, m.Properties())
			require.Empty(t, m.AppendOperation(nil))
		})
	}
}

// TestWhatIsSetIsTheOnlyOne of its name, where the first one was.
func TestAnOperationUpToALength(t *testing.T) {
	for _, tc := range [][3]string{
		{"", "", ""}, {"s", "", "s"}, {"", "m", "m"}, {"svc", "mtd", "svc/mtd"}, {"service", "mtd", "ser/mtd"}, {"s", "method", "s/met"}, {"service", "method", "ser/met"},
	} {
		var m codecs.Metadata
		m.SetOperation([]byte(tc[0]), []byte(tc[1]))
		require.Equal(t, tc[2], string(m.AppendOperationUpTo(nil, 3)))
	}
}

func TestWhatIsSetIsTheOnlyOne(t *testing.T) {
	var m codecs.Metadata
	for _, kv := range [][2]string{{"a", "1"}, {"K", "first"}, {"b", "2"}, {"k", "second"}, {"k", "third"}} {
		m.Put([]byte(kv[0]), []byte(kv[1]))
	}
	m.SetBytes("k", []byte("new"))
	m.Set("c", "3")
	got := ""
	for _, p := range m.Properties() {
		got += string(p.Name) + "=" + string(p.Value) + " "
	}
	require.Equal(t, "a=1 k=new b=2 c=3 ", got)
	m.Remove("K")
	m.Remove("none")
	require.Len(t, m.Properties(), 3)
	_, has := m.Get("k")
	require.False(t, has)
	value := []byte("again")
	m.Reset()
	m.Put([]byte("k"), value)
	require.Zero(t, raced.AllocsPerRun(t, 100, func() { m.Reset(); m.SetBytes("k", value) }))
}

// TestAnOutlineIsWhatOutlivesAFrame, in new memory or that of another message.
func TestAnOutlineIsWhatOutlivesAFrame(t *testing.T) {
	m := codecs.Metadata{
		Type: codecs.Oneway, ID: 7, FixedID: true, HeaderSize: 1, BodySize: 2, Variant: 3, Scratch: [8]uint32{4},
		ReplyInfo: []byte("info"), Raw: []byte("raw"),
	}
	m.Put([]byte("k"), []byte("v"))
	m.SetOperation([]byte("service"), []byte("method"))
	var o codecs.Metadata
	for range 2 {
		o.SetOutline(&m)
		for _, o := range []*codecs.Metadata{&o, m.Outline()} {
			require.Nil(t, o.Raw)
			require.Empty(t, o.Properties())
			require.Empty(t, o.AppendOperation(nil))
			require.Equal(t, "info", string(o.ReplyInfo))
			require.NotSame(t, &m.ReplyInfo[0], &o.ReplyInfo[0])
			require.Equal(t, []any{m.Type, m.ID, m.FixedID, m.HeaderSize, m.BodySize, m.Variant, m.Scratch},
				[]any{o.Type, o.ID, o.FixedID, o.HeaderSize, o.BodySize, o.Variant, o.Scratch})
		}
		require.Zero(t, raced.AllocsPerRun(t, 10, func() { o.Reset(); o.SetOutline(&m) }))
		o.Reset()
		o.Set("of another", "message")
		o.Reset()
	}
}

func TestAMutationIsAssignedAsACopy(t *testing.T) {
	var a, b codecs.Mutation
	a.Set("k", "1")
	b.Set("old", "0")
	b.Assign(&a)
	a.Set("k", "2")
	require.Equal(t, []codecs.KeyValue{{Key: "k", Value: "1"}}, b.Entries())
}

// TestWhatMessagesHold is a small multiple of what came, however many properties
// that has, and little when they are over.
func TestWhatMessagesHold(t *testing.T) {
	const n, props = 500, 1000
	held := func(f func(m, spare *codecs.Metadata)) int {
		ms := make([]codecs.Metadata, n)
		var spare codecs.Metadata
		before := heap()
		for i := range ms {
			ms[i].Borrow(&spare)
			withProperties(&ms[i], props)
			f(&ms[i], &spare)
		}
		after := heap()
		runtime.KeepAlive(ms)
		return (after - before) / n
	}
	frame := 5 * props
	require.Less(t, held(func(m, _ *codecs.Metadata) { m.Detach() }), 4*frame)
	require.Less(t, held(func(m, _ *codecs.Metadata) { m.Detach(); m.Properties(); m.Detach() }), 4*frame)
	require.Less(t, held(func(m, spare *codecs.Metadata) { m.Release(); m.Return(spare) }), 256)
	require.Less(t, held(func(m, spare *codecs.Metadata) { m.Detach(); m.Properties(); m.Reset(); m.Return(spare) }), 4<<10)
	require.Less(t, held(func(m, _ *codecs.Metadata) {
		m.Set("k", string(make([]byte, 1<<20)))
		m.ReplyInfo = append(m.ReplyInfo, make([]byte, 1<<20)...)
		m.Detach()
		m.Reset()
	}), 4<<10)
}

func heap() int {
	runtime.GC()
	var ms runtime.MemStats
	runtime.ReadMemStats(&ms)
	return int(ms.HeapAlloc)
}

func TestAMutationOfAnotherAttempt(t *testing.T) {
	var none *codecs.Mutation
	require.True(t, none.Empty())
	require.Zero(t, none.Millis())
	require.Nil(t, none.WithoutOptional())
	require.False(t, none.ChangesAttributes())
	for _, tc := range []struct {
		timeout time.Duration
		want    int32
	}{
		{0, 0},
		{-time.Second, 0},
		{1, 1},
		{400 * time.Microsecond, 1},
		{time.Millisecond, 1},
		{1999 * time.Microsecond, 1},
		{time.Second, 1000},
		{math.MaxInt32 * time.Millisecond, math.MaxInt32},
		{math.MaxInt64, math.MaxInt32},
	} {
		mu := &codecs.Mutation{Timeout: tc.timeout}
		require.Equal(t, tc.want, mu.Millis(), tc.timeout)
		require.Equal(t, tc.want == 0, mu.Empty())
		mu.Set("k", "v")
		require.False(t, mu.Empty())
		if tc.want == 0 {
			require.Nil(t, mu.WithoutOptional())
		} else {
			require.Equal(t, &codecs.Mutation{Timeout: tc.timeout}, mu.WithoutOptional())
		}
		mu.Retry = 1
		require.Equal(t, &codecs.Mutation{Timeout: tc.timeout, Retry: 1}, mu.WithoutOptional())
		mu.Reset()
		require.True(t, mu.Empty())
		require.Zero(t, mu.Timeout)
		require.Zero(t, mu.Retry)
	}
	require.False(t, (&codecs.Mutation{Retry: 1}).Empty())
}

func TestFailuresHaveNames(t *testing.T) {
	for f, want := range map[codecs.FailureClass]string{
		codecs.NoFailure: "no failure", codecs.HostFailure: "host failure", codecs.Refused: "refused", codecs.Overloaded: "overloaded", 9: "unknown",
	} {
		require.Equal(t, want, f.String())
		require.Equal(t, f == codecs.Refused || f == codecs.Overloaded, f.Unexecuted())
	}
}

func TestMutations(t *testing.T) {
	var none *codecs.Mutation
	require.True(t, none.Empty())
	require.Empty(t, none.Entries())
	require.Empty(t, none.Removed())
	require.False(t, none.Removes([]byte("a")))
	require.Equal(t, -1, none.Find([]byte("a")))

	var mu codecs.Mutation
	require.True(t, mu.Empty())
	mu.Set("a", "1")
	mu.Set("b", "2")
	mu.Set("a", "3")
	require.Equal(t, []codecs.KeyValue{{Key: "a", Value: "3"}, {Key: "b", Value: "2"}}, mu.Entries())
	mu.Remove("A")
	mu.Remove("a")
	require.Equal(t, []codecs.KeyValue{{Key: "b", Value: "2"}}, mu.Entries())
	require.Equal(t, []string{"A"}, mu.Removed())
	mu.Set("a", "4")
	require.Equal(t, 1, mu.Find([]byte("a")), "what is set later stays")
	require.True(t, mu.Removes([]byte("a")))
	require.False(t, mu.Removes([]byte("b")))
	var of codecs.Mutation
	of.Set("c", "5")
	of.Remove("d")
	of.Assign(&mu)
	require.Equal(t, mu, of)
	mu.Reset()
	require.True(t, mu.Empty())
	require.False(t, mu.ChangesAttributes())
	require.False(t, of.Empty(), "in its own memory")
	require.Equal(t, []string{"A"}, of.Removed())
	mu.Remove("x")
	require.False(t, mu.Empty())
	require.True(t, mu.ChangesAttributes())
	require.Nil(t, mu.WithoutOptional())
	mu.Timeout = time.Second
	require.Equal(t, &codecs.Mutation{Timeout: time.Second}, mu.WithoutOptional())
	mu = codecs.Mutation{Timeout: time.Second, Retry: 1}
	require.False(t, mu.ChangesAttributes())
	require.False(t, mu.Empty())
}

func TestWhatIsRequired(t *testing.T) {
	var mu, of codecs.Mutation
	mu.Require("a")
	require.True(t, mu.Empty(), "there is nothing of it")
	require.Nil(t, mu.WithoutOptional())
	mu.Set("A", "1")
	mu.Set("b", "2")
	mu.Remove("c")
	mu.Remove("D")
	mu.Require("d")
	of.Assign(&mu)
	for _, m := range []*codecs.Mutation{&mu, &of} {
		o := m.WithoutOptional()
		require.Equal(t, []codecs.KeyValue{{Key: "A", Value: "1"}}, o.Entries())
		require.Equal(t, []string{"D"}, o.Removed())
		require.Zero(t, o.Timeout)
	}
	mu.Timeout = time.Second
	mu.SetPayload(codecs.Payload{Bytes: []byte("x")})
	o := mu.WithoutOptional()
	require.Equal(t, time.Second, o.Timeout)
	require.True(t, o.Replaces())
	mu.Reset()
	mu.Set("a", "1")
	require.Nil(t, mu.WithoutOptional(), "no more")
	of.Assign(&mu)
	require.Nil(t, of.WithoutOptional())
}

func TestRemove(t *testing.T) {
	var m codecs.Metadata
	for _, name := range []string{"Lane", "lanes", "LANE", "lane-2"} {
		m.Put([]byte(name), []byte("v"))
	}
	require.True(t, m.Remove("lane"))
	require.False(t, m.Remove("lane"))
	require.Len(t, m.Properties(), 2)
	require.True(t, m.Drop("LANE"))
	require.Empty(t, m.Properties())
}
