package pbwire

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
)

func TestEntriesAreSetOnceEach(t *testing.T) {
	var all []codecs.KeyValue
	for i := range 70 { // more than are remembered
		all = append(all, codecs.KeyValue{Key: fmt.Sprint("k", i), Value: fmt.Sprint("v", i)})
	}
	for _, n := range []int{0, 1, 64, 70} {
		e := Entries{Set: all[:n]}
		require.Equal(t, -1, e.Find([]byte("k")))
		var b []byte
		had := min(n, 3)
		for i := range had {
			require.Equal(t, i, e.Find([]byte(all[i].Key)))
			b = e.Put(b, i, 7)
		}
		b = e.Append(b, 7)
		require.Equal(t, n-had, e.Added)
		var r Reader
		var got []codecs.KeyValue
		for r.Reset(b); r.Next(); {
			require.True(t, r.Is(7, Bytes))
			key, value, err := Entry(r.Bytes)
			require.NoError(t, err)
			got = append(got, codecs.KeyValue{Key: string(key), Value: string(value)})
		}
		require.NoError(t, r.Err())
		require.Equal(t, append([]codecs.KeyValue(nil), all[:n]...), got)
	}
	// Behind those that are remembered, one is set again: the later one wins.
	e := Entries{Set: all}
	b := e.Append(e.Put(nil, 69, 7), 7)
	require.Equal(t, 70, e.Added)
	require.NotEmpty(t, b)

	key, value, err := Entry([]byte{0x12, 0})
	require.NoError(t, err)
	require.Nil(t, key)
	require.NotNil(t, value)
	require.Empty(t, value)
	_, _, err = Entry([]byte{0x0a, 9})
	require.ErrorIs(t, err, ErrTruncated)
}
