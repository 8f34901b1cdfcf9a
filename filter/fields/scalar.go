package fields

import (
	"math"
	"strconv"

	"google.golang.org/protobuf/types/known/structpb"
)

// Scalar is a value as text: whole numbers without a fraction. It reports false for null
// and for what has parts.
func Scalar(v *structpb.Value) (string, bool) {
	switch k := v.GetKind().(type) {
	case *structpb.Value_StringValue:
		return k.StringValue, true
	case *structpb.Value_BoolValue:
		return strconv.FormatBool(k.BoolValue), true
	case *structpb.Value_NumberValue:
		if n := k.NumberValue; n == math.Trunc(n) && math.Abs(n) < 1<<53 {
			return strconv.FormatInt(int64(n), 10), true
		}
		return strconv.FormatFloat(k.NumberValue, 'g', -1, 64), true
	default:
		return "", false
	}
}
