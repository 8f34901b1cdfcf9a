package codecs_test

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

// remembered returns a shape with two properties.
func remembered(t *testing.T) *codecs.Shape {
	var m codecs.Metadata
	m.Put([]byte("a"), []byte("1"))
	m.Put([]byte("b"), []byte("2"))
	m.SetOperation([]byte("service"), []byte("method"))
	_, s := new(codecs.Shapes).Learn([]byte("head"), []byte("tail"), &m)
	require.NotNil(t, s)
	return s
}

func value(m *codecs.Metadata, name string) string {
	v, _ := m.Get(name)
	return string(v)
}

func TestSharedPropertiesAreCopiedWhenTheyChange(t *testing.T) {
	s := remembered(t)
	for name, change := range map[string]func(m *codecs.Metadata){
		"set":       func(m *codecs.Metadata) { m.Set("a", "changed") },
		"set bytes": func(m *codecs.Metadata) { m.SetBytes("A", []byte("changed")) },
		"put":       func(m *codecs.Metadata) { m.Put([]byte("c"), []byte("changed")) },
		"drop":      func(m *codecs.Metadata) { m.Drop("a") },
		"operation": func(m *codecs.Metadata) { m.SetOperation([]byte("service"), []byte("method")) },
	} {
		t.Run(name, func(t *testing.T) {
			var m, o codecs.Metadata
			m.Share(s)
			change(&m)
			require.Nil(t, m.Shape())
			require.Equal(t, "2", value(&m, "b"))
			o.Share(s)
			require.Len(t, o.Properties(), 2)
			require.Equal(t, "1", value(&o, "a"))
			require.Equal(t, "service/method", string(o.AppendOperation(nil)))
		})
	}
}

func TestWhatIsSharedOutlivesTheMessage(t *testing.T) {
	s := remembered(t)
	for name, end := range map[string]func(m *codecs.Metadata){
		"reset":   (*codecs.Metadata).Reset,
		"release": (*codecs.Metadata).Release,
		"outline": func(m *codecs.Metadata) { m.Reset(); m.SetOutline(&codecs.Metadata{}) },
	} {
		t.Run(name, func(t *testing.T) {
			var m, o codecs.Metadata
			m.Share(s)
			end(&m)
			require.Nil(t, m.Shape())
			require.Empty(t, m.Properties())
			m.Put([]byte("c"), []byte("3"))
			m.Put([]byte("d"), []byte("4"))
			o.Share(s)
			require.Equal(t, "1", value(&o, "a"))
			o.Detach()
			require.Equal(t, "2", value(&o, "b"))
			c := o.Outline()
			require.Nil(t, c.Shape())
			require.Empty(t, c.Properties())
		})
	}
}

// TestMemoryOfPropertiesIsKept: messages with and without shapes in turn need none anew.
func TestMemoryOfPropertiesIsKept(t *testing.T) {
	s := remembered(t)
	var m, spare codecs.Metadata
	name := []byte("n")
	require.Zero(t, raced.AllocsPerRun(t, 100, func() {
		for range 3 {
			m.Borrow(&spare)
			m.Put(name, name)
			m.Release()
			m.Return(&spare)
			m.Reset()
			m.Borrow(&spare)
			m.Share(s)
			m.Set("a", "3")
			m.Reset()
			m.Share(s)
			m.Detach()
			m.Release()
			m.Return(&spare)
			m.Reset()
		}
	}))
}

// TestWhatAShapeKeepsIsByItsKey: what was found by one table is not what another finds.
func TestWhatAShapeKeepsIsByItsKey(t *testing.T) {
	s := remembered(t)
	_, ok := s.Find(1)
	require.False(t, ok)
	s.Keep(1, 7)
	v, ok := s.Find(1)
	require.True(t, ok)
	require.Equal(t, int32(7), v)
	_, ok = s.Find(2)
	require.False(t, ok)
	for key := range uint64(6) { // the last of which are kept
		s.Keep(2+key, int32(key))
	}
	_, ok = s.Find(1)
	require.False(t, ok)
	for key := range uint64(6) {
		v, ok := s.Find(2 + key)
		require.True(t, ok)
		require.Equal(t, int32(key), v)
	}
}

// TestNewShapesMakeRoomSlowly: where all places are taken one of 64 frames is learnt.
func TestNewShapesMakeRoomSlowly(t *testing.T) {
	var s codecs.Shapes
	var m codecs.Metadata
	learnt := 0
	for i := range 64 * 100 {
		if tail := []byte{byte(i), byte(i >> 8)}; s.Due([]byte("head"), tail, &m) {
			s.Learn([]byte("head"), tail, &m)
			learnt++
		}
	}
	require.InDelta(t, 100+4, learnt, 1)
	require.NotNil(t, s.Head([]byte("head")))
	large := make([]byte, 5000)
	require.False(t, s.Due(large, nil, &m))
}

// TestWhatMakesRoomIsForgotten, also by a decoder that has been shown it: many idle ones
// would keep more than all that is remembered.
func TestWhatMakesRoomIsForgotten(t *testing.T) {
	var s codecs.Shapes
	var m codecs.Metadata
	var heads []*codecs.Head
	for i := range 64 * 1000 {
		if head := []byte{'h', byte(i), byte(i >> 8)}; s.Due(head, nil, &m) {
			h, _ := s.Learn(head, nil, &m)
			heads = append(heads, h)
		}
	}
	kept := 0
	for _, h := range heads {
		if h.Bytes != nil {
			kept++
			require.Same(t, h, s.Head(h.Bytes))
		} else {
			require.Zero(t, *h)
		}
	}
	require.Greater(t, len(heads), 1000)
	require.Equal(t, 64*2, kept)
}

// loader sets a property when it is asked for.
type loader struct{ n int }

func (l *loader) Load(m *codecs.Metadata) { l.n++; m.Set("x-request-id", "7") }

// TestWhatIsDeferredIsBesideTheShape when somebody asks for it.
func TestWhatIsDeferredIsBesideTheShape(t *testing.T) {
	s := remembered(t)
	var l loader
	var m codecs.Metadata
	m.Share(s)
	m.Defer(&l)
	require.Equal(t, "1", value(&m, "A"))
	require.Len(t, m.Known(), 2)
	m.Detach()
	require.Zero(t, l.n)
	require.NotNil(t, m.Shape())
	require.Equal(t, "7", value(&m, "X-Request-Id"))
	require.NotNil(t, m.Shape(), "it is beside the shape's")
	_, ok := m.Get("none")
	require.False(t, ok)
	require.Len(t, m.Properties(), 3)
	require.Nil(t, m.Shape())
	require.Equal(t, 1, l.n)

	m.Reset()
	m.Share(s)
	m.Defer(&l)
	require.Len(t, m.Properties(), 3)
	m.Reset()
	m.Share(s)
	m.Defer(&l)
	m.Set("a", "changed")
	require.Equal(t, "7", value(&m, "x-request-id"))
	m.Reset()
	m.Share(s)
	require.Len(t, m.Properties(), 2)
	require.Equal(t, 3, l.n)
}

// TestHolesAreSoughtSeldom where there were none the last time.
func TestHolesAreSoughtSeldom(t *testing.T) {
	var s codecs.Shapes
	var m codecs.Metadata
	h, shape := s.Learn([]byte("head"), []byte("tail"), &m)
	tried := func(requests int) (n int) {
		for range requests {
			if h.Tries() {
				n++
			}
		}
		return n
	}
	require.Equal(t, 1, tried(1))
	require.Zero(t, tried(63))
	require.Equal(t, 10, tried(640))
	require.NotNil(t, h.Widen(shape, []byte("tail"), []codecs.Hole{{From: 0, To: 1}}, &m))
	require.Equal(t, 1, tried(1), "as they were found")
}

// second reads the property "b" out of the frame.
type second struct{}

func (second) Load(m *codecs.Metadata) { m.Properties()[1].Value = m.Raw[:1] }

// TestWhatHolesHaveIsReadWhenItIsAskedFor: until then the message shares the shape.
func TestWhatHolesHaveIsReadWhenItIsAskedFor(t *testing.T) {
	var shapes codecs.Shapes
	var m, o codecs.Metadata
	m.Put([]byte("a"), []byte("1"))
	m.Put([]byte("b"), []byte("2"))
	h, old := shapes.Learn([]byte("head"), []byte("tail"), &m)
	require.False(t, old.Varies("b"))
	s := h.Widen(old, []byte("tail"), []codecs.Hole{{From: 0, To: 1, Property: -1}, {From: 1, To: 2, Property: 1}}, &m)
	s.Rest = second{}
	require.True(t, s.Varies("B"))
	require.False(t, s.Varies("a"))
	for name, ask := range map[string]func(m *codecs.Metadata){
		"get":        func(m *codecs.Metadata) { require.Equal(t, "9", value(m, "B")) },
		"properties": func(m *codecs.Metadata) { require.Len(t, m.Properties(), 2) },
		"set":        func(m *codecs.Metadata) { m.Set("a", "1") },
		"put":        func(m *codecs.Metadata) { m.Put([]byte("c"), nil) },
		"drop":       func(m *codecs.Metadata) { m.Drop("a") },
		"remove":     func(m *codecs.Metadata) { m.Remove("b"); m.Put([]byte("b"), m.Raw) },
		"detach":     (*codecs.Metadata).Detach,
	} {
		t.Run(name, func(t *testing.T) {
			m.Reset()
			m.Raw = []byte("9")
			m.Share(s)
			require.Equal(t, "1", value(&m, "a"))
			require.Equal(t, s, m.Shape())
			ask(&m)
			require.Nil(t, m.Shape())
			require.Equal(t, s, m.FrameShape(), "the frame is what it was")
			require.Equal(t, "9", value(&m, "b"))
			o.Reset()
			o.Raw = []byte("8")
			o.Share(s)
			require.Equal(t, "8", value(&o, "b"))
		})
	}
	m.Reset()
	m.Raw = []byte("9")
	m.Share(s)
	require.Nil(t, m.Outline().FrameShape())
	m.Release()
	require.Empty(t, m.Properties())
	require.Nil(t, m.FrameShape())
}

// TestWhatIsSetBesideAShapeLeavesItShared: a filter tells something that no client says.
func TestWhatIsSetBesideAShapeLeavesItShared(t *testing.T) {
	s := remembered(t)
	var m codecs.Metadata
	m.Share(s)
	m.Set("c", "3")
	m.SetBytes("C", []byte("4"))
	require.False(t, m.Remove("d"))
	require.Equal(t, s, m.Shape())
	require.Equal(t, "4", value(&m, "c"))
	require.Equal(t, "1", value(&m, "a"))
	require.True(t, m.Beside([]string{"a", "C"}))
	require.False(t, m.Beside([]string{"a", "d"}))
	require.Len(t, m.Known(), 2)
	m.Detach()
	require.Equal(t, s, m.Shape())
	require.Equal(t, "4", value(&m, "c"))
	require.True(t, m.Remove("c"))
	require.Equal(t, s, m.Shape())
	require.Len(t, m.Properties(), 2)
	m.Set("c", "5")
	require.Equal(t, []codecs.Property{{Name: []byte("a"), Value: []byte("1")}, {Name: []byte("b"), Value: []byte("2")}, {Name: []byte("c"), Value: []byte("5")}}, m.Properties())
	require.Nil(t, m.Shape())
	require.False(t, m.Beside([]string{"c"}), "all are its own")
	m.Reset()
	m.Share(s)
	require.Len(t, m.Properties(), 2)
}

// TestSharingIsNotSeen by those who set, change, remove and ask: a message that shares a shape,
// with a hole and something deferred, or neither, says what one with properties of its own says.
func TestSharingIsNotSeen(t *testing.T) {
	names := []string{"a", "B", "b", "c", "x-request-id", "X-Other"}
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 0))
		var shared, own codecs.Metadata
		var s *codecs.Shape
		if seed%2 == 0 {
			s = remembered(t)
		} else {
			var shapes codecs.Shapes
			own.Put([]byte("a"), []byte("1"))
			own.Put([]byte("b"), []byte("2"))
			h, old := shapes.Learn([]byte("head"), []byte("tail"), &own)
			s = h.Widen(old, []byte("tail"), []codecs.Hole{{From: 1, To: 2, Property: 1}}, &own)
			s.Rest = second{}
			own.Reset()
		}
		for range 2 { // the memory of the first message is the second's
			shared.Raw, own.Raw = []byte("2"), []byte("2")
			shared.Share(s)
			own.Put([]byte("a"), []byte("1"))
			own.Put([]byte("b"), []byte("2"))
			if r.IntN(2) == 0 {
				shared.Defer(&loader{})
				own.Defer(&loader{})
			}
			for range r.IntN(8) {
				name, v := names[r.IntN(len(names))], string(rune('A'+r.IntN(26)))
				switch r.IntN(7) {
				case 0, 1:
					shared.Set(name, v)
					own.Set(name, v)
				case 2:
					shared.SetBytes(name, []byte(v))
					own.SetBytes(name, []byte(v))
				case 3:
					require.Equal(t, own.Remove(name), shared.Remove(name))
				case 4:
					require.Equal(t, own.Drop("x-"), shared.Drop("x-"))
				case 5:
					shared.Detach()
					own.Detach()
				case 6:
					require.Equal(t, own.Properties(), shared.Properties())
				}
				name = names[r.IntN(len(names))]
				want, is := own.Get(name)
				got, there := shared.Get(name)
				require.Equal(t, is, there, name)
				require.Equal(t, string(want), string(got), name)
			}
			require.Equal(t, own.Properties(), shared.Properties())
			shared.Reset()
			own.Reset()
		}
	}
}
