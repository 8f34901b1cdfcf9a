package parley

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// FuzzDecode: whatever comes, a frame is the same however its bytes are cut,
// goes out as it came in, and can be read again after it was changed.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		"CALL id=7 len=5 method=Greeter.hello tenant=acme\nworldPING id=8 len=0\n",
		"TELL id=0 len=0  method=A.b \n",
		"NOPE id=4294967295 len=2 code=no-route\nno",
		"DONE id=7 len=0 k=v k=w\n",
		"PONG id=07 len=0\n",
		"CALL id=7 len=4294967295\n",
	} {
		f.Add([]byte(seed))
	}
	c, err := New(nil, codecs.Limits{})
	require.NoError(f, err)
	var mut codecs.Mutation
	mut.Set("tenant", "set")
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 {
			return
		}
		var m, part, again codecs.Metadata
		n, err := c.NewDecoder(codecs.ClientToServer).Decode(b, &m)
		if err != nil || n > len(b) {
			return
		}
		require.Equal(t, n, m.HeaderSize+m.BodySize)
		for i := 1; i < n; i += 1 + n/50 {
			part.Reset()
			need, err := c.NewDecoder(codecs.ClientToServer).Decode(b[:i], &part)
			require.NoError(t, err)
			require.Greater(t, need, i)
			require.LessOrEqual(t, need, n)
		}
		same, err := c.Encode(nil, &m, nil)
		require.NoError(t, err)
		require.Equal(t, b[:n], same)
		changed, err := c.Encode(nil, &m, &mut)
		if err != nil {
			require.ErrorIs(t, err, codecs.ErrNoMutation)
			return
		}
		k, err := c.NewDecoder(codecs.ClientToServer).Decode(changed, &again)
		require.NoError(t, err)
		require.Equal(t, len(changed), k)
		require.Empty(t, again.Malformed)
		value, _ := again.Get("tenant")
		require.Equal(t, "set", string(value))
	})
}
