package v1alpha1

import (
	"math"
	"time"
)

// Duration is a time as Istio's objects have it: protobuf's form, such as 0.5s, or Go's,
// such as 1m30s.
//
// +kubebuilder:validation:MaxLength=32
// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))+$`
type Duration string

// Time is the duration; 0 of nil. What is longer than can be told is the longest: as 0 it
// would be the default of some fields.
func (d *Duration) Time() time.Duration {
	if d == nil {
		return 0
	}
	t, err := time.ParseDuration(string(*d))
	if err != nil {
		return math.MaxInt64
	}
	return t
}
