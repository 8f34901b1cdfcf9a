package fields

import (
	"slices"
	"testing"
	"time"

	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func TestDuration(t *testing.T) {
	for _, tt := range []struct {
		d    *durationpb.Duration
		want time.Duration
		says string
	}{
		{nil, 7 * time.Second, ""},
		{durationpb.New(time.Millisecond), time.Millisecond, ""},
		{durationpb.New(time.Microsecond), time.Microsecond, "must be at least 1ms, is 1µs"},
		{&durationpb.Duration{Seconds: 315_576_000_000}, longest, ""},
		{&durationpb.Duration{Seconds: 1, Nanos: -1}, 7 * time.Second, "has seconds and nanos with different signs"},
	} {
		got, err := Duration(tt.d, time.Millisecond, 7*time.Second)
		require.Equal(t, tt.want, got)
		if tt.says == "" {
			require.NoError(t, err)
		} else {
			require.ErrorContains(t, err, tt.says)
		}
	}
}

func TestNumber(t *testing.T) {
	for n, says := range map[uint32]string{
		0: "must be between 1 and 5, is 0", 1: "", 5: "", 6: "must be between 1 and 5, is 6",
	} {
		got, err := Number(wrapperspb.UInt32(n), 1, 5, 3)
		require.Equal(t, int(n), got)
		if says == "" {
			require.NoError(t, err)
		} else {
			require.EqualError(t, err, says)
		}
	}
	got, err := Number(nil, 1, 5, 9)
	require.NoError(t, err)
	require.Equal(t, 9, got)
}

func TestOthers(t *testing.T) {
	m := (&typev3.FractionalPercent{Numerator: 1, Denominator: typev3.FractionalPercent_MILLION}).ProtoReflect()
	require.Equal(t, []protoreflect.Name{"numerator", "denominator"}, slices.Collect(Others(m)))
	require.Equal(t, []protoreflect.Name{"denominator"}, slices.Collect(Others(m, "numerator")))
	require.Empty(t, slices.Collect(Others((*typev3.FractionalPercent)(nil).ProtoReflect())))
}
