package codecs_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
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
			require.Len(t, m.Properties(), n+1)
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
	mu.Reset()
	require.True(t, mu.Empty())
	mu.Remove("x")
	require.False(t, mu.Empty())
}
