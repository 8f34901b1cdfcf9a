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
	of := func(n int) Entries {
		mut := new(codecs.Mutation)
		for _, kv := range all[:n] {
			mut.Set(kv.Key, kv.Value)
		}
		return Entries{Mutation: mut}
	}
	for _, n := range []int{0, 1, 64, 70} {
		e := of(n)
		require.False(t, e.Touches([]byte("k")))
		var b []byte
		had := min(n, 3)
		for i := range had {
			require.True(t, e.Touches([]byte(all[i].Key)))
			b = e.Replace(b, []byte(all[i].Key), 7)
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
	e := of(len(all))
	b := e.Append(e.Replace(nil, []byte("k69"), 7), 7)
	require.Equal(t, 70, e.Added)
	require.NotEmpty(t, b)

	// What is removed goes without a trace, unless it is set.
	e = of(1)
	e.Remove("gone")
	e.Remove("K0")
	e.Set("k0", "again")
	require.True(t, e.Touches([]byte("GONE")))
	require.Empty(t, e.Replace(nil, []byte("GONE"), 7))
	require.True(t, e.Touches([]byte("K0")))
	require.Empty(t, e.Replace(nil, []byte("K0"), 7))
	require.NotEmpty(t, e.Replace(nil, []byte("k0"), 7))

	key, value, err := Entry([]byte{0x12, 0})
	require.NoError(t, err)
	require.Nil(t, key)
	require.NotNil(t, value)
	require.Empty(t, value)
	_, _, err = Entry([]byte{0x0a, 9})
	require.ErrorIs(t, err, ErrTruncated)
}
