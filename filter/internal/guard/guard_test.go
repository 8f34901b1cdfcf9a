package guard

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

// decoder is one that does what its function does.
type decoder func(b []byte, m *codecs.Metadata) (int, error)

func (d decoder) Decode(b []byte, m *codecs.Metadata) (int, error) { return d(b, m) }

var errOwn = errors.New("an error of the codec's")

func TestWhatPanicsComesBackAsAnErrorWithItsSite(t *testing.T) {
	short := make([]byte, 3)
	for name, boom := range map[string]func(){
		"a text":            func() { panic("boom") },
		"an error":          func() { panic(errOwn) },
		"out of range":      func() { _ = short[len(t.Name())] },
		"nil":               func() { panic(nil) },
		"within a deferral": func() { defer func() { panic("boom") }(); panic("first") },
	} {
		t.Run(name, func(t *testing.T) {
			for call, err := range map[string]error{
				"Do": Do(boom),
				"Decode": func() error {
					_, err := Decode(decoder(func([]byte, *codecs.Metadata) (int, error) { boom(); return 1, nil }), []byte("x"), nil)
					return err
				}(),
				"Append": func() error {
					_, err := Append(nil, func([]byte) ([]byte, error) { boom(); return nil, nil })
					return err
				}(),
			} {
				require.EqualError(t, err, Text, call)
				p := In(fmt.Errorf("a caller's words: %w", err))
				require.NotNil(t, p, call)
				require.NotNil(t, p.Value, call)
				require.Regexp(t, `/guard_test\.go:\d+$`, p.Site, call)
				require.Contains(t, string(p.Stack), "guard_test.go", call)
				require.False(t, p.Logged, call)
			}
		})
	}
}

func TestErrorsThatAreNoPanics(t *testing.T) {
	require.Nil(t, In(nil))
	require.Nil(t, In(errOwn))
	require.NoError(t, Do(func() {}))
	for _, want := range []int{1, 5, 100} {
		n, err := Decode(decoder(func([]byte, *codecs.Metadata) (int, error) { return want, nil }), nil, nil)
		require.NoError(t, err)
		require.Equal(t, want, n)
	}
	n, err := Decode(decoder(func([]byte, *codecs.Metadata) (int, error) { return 0, errOwn }), nil, nil)
	require.Zero(t, n)
	require.Same(t, errOwn, err)
}

// TestADecoderThatTakesNothing would be called for ever.
func TestADecoderThatTakesNothing(t *testing.T) {
	for _, n := range []int{0, -1} {
		_, err := Decode(decoder(func([]byte, *codecs.Metadata) (int, error) { return n, nil }), []byte("x"), nil)
		require.NotNil(t, In(err))
		require.Equal(t, fmt.Sprintf("a decoder took %d bytes", n), In(err).Value)
	}
}

// TestWhatStoodBeforeIsLeft, whatever a codec does to what it appends to.
func TestWhatStoodBeforeIsLeft(t *testing.T) {
	const before = "of others"
	for name, f := range map[string]func(dst []byte) ([]byte, error){
		"an error and nothing": func([]byte) ([]byte, error) { return nil, errOwn },
		"an error and more":    func(dst []byte) ([]byte, error) { return append(dst, "half"...), errOwn },
		"an error and less":    func(dst []byte) ([]byte, error) { return dst[:2], errOwn },
		"a panic":              func(dst []byte) ([]byte, error) { _ = append(dst, "half"...); panic("boom") },
	} {
		t.Run(name, func(t *testing.T) {
			b, err := Append(append(make([]byte, 0, 100), before...), f)
			require.Error(t, err)
			require.Equal(t, before, string(b))
		})
	}
	b, err := Append([]byte(before), func(dst []byte) ([]byte, error) { return append(dst, ", and more"...), nil })
	require.NoError(t, err)
	require.Equal(t, before+", and more", string(b))
}

func TestGuardingDoesNotAllocate(t *testing.T) {
	d := decoder(func([]byte, *codecs.Metadata) (int, error) { return 1, nil })
	dst := make([]byte, 0, 100)
	var m codecs.Metadata
	require.Zero(t, raced.AllocsPerRun(t, 100, func() {
		if _, err := Decode(d, dst, &m); err != nil {
			t.Error(err)
		}
		if _, err := Append(dst, func(dst []byte) ([]byte, error) { return append(dst, 'x'), nil }); err != nil {
			t.Error(err)
		}
		if err := Do(func() {}); err != nil {
			t.Error(err)
		}
	}))
}
