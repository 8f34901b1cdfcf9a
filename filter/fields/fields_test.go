package fields

import (
	"slices"
	"testing"
	"time"

	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
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

func TestConfigurationsAreGoStructs(t *testing.T) {
	type inner struct {
		Limit int `json:"limit"`
	}
	type config struct {
		Key   string  `json:"key"`
		Rules []inner `json:"rules"`
	}
	for text, want := range map[string]string{
		`{"key": "tenant", "rules": [{"limit": 3}]}`: "",
		`{}`:                          "",
		`{"kee": "x"}`:                `unknown field "kee"`,
		`{"key": 7}`:                  "key: want a string, got a number",
		`{"rules": [{"limit": "x"}]}`: "rules.limit: want a int, got a string",
		`{"rules": [{"limit": 1.5}]}`: "rules.limit: want a int, got a number 1.5",
	} {
		s := new(structpb.Struct)
		require.NoError(t, protojson.Unmarshal([]byte(text), s))
		packed, err := anypb.New(s)
		require.NoError(t, err)
		var c config
		if err = Struct(packed, &c); want != "" {
			require.EqualError(t, err, want, text)
			continue
		}
		require.NoError(t, err, text)
		if text != "{}" {
			require.Equal(t, config{"tenant", []inner{{3}}}, c)
		}
	}
	c := config{Key: "default"}
	require.NoError(t, Struct(nil, &c))
	require.Equal(t, "default", c.Key)
	packed, err := anypb.New(wrapperspb.String("x"))
	require.NoError(t, err)
	require.ErrorContains(t, Struct(packed, &c), "mismatched message type")
}
