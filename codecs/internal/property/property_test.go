package property

import (
	"math"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

func TestNumbersAreDecimal(t *testing.T) {
	p := New("size")
	for _, v := range []int64{0, 1, 255, 256, -1, math.MaxInt64, math.MinInt64} {
		var m codecs.Metadata
		p.PutNumber(&m, v)
		got, ok := m.Get("size")
		require.True(t, ok)
		require.Equal(t, strconv.FormatInt(v, 10), string(got))
	}
}

func TestNamesAreOwnInAnyCase(t *testing.T) {
	s := Set{New("service"), New("log_id")}
	for name, own := range map[string]bool{
		"service": true, "SerVice": true, "LOG_ID": true,
		"": false, "log-id": false, "services": false, "servic": false,
	} {
		require.Equal(t, own, s.Has([]byte(name)), name)
	}
}

func TestPropertiesDoNotAllocate(t *testing.T) {
	p := New("size")
	var m codecs.Metadata
	require.Zero(t, raced.AllocsPerRun(t, 100, func() {
		m.Reset()
		p.PutNumber(&m, 200)
		p.PutNumber(&m, 1<<40)
		p.Put(&m, p.name)
	}))
}
