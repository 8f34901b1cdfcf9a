// Package fields judges single fields of configurations. Who gathers the faults adds
// their paths.
package fields

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// longest is what a longer duration counts as: later than any process ends, and far
// from where sums of durations overflow.
const longest = 10 * 365 * 24 * time.Hour

// Duration returns d, def if it is absent. One that is no valid one counts as def, one
// that is less than least as it is, and the error says why it is to be refused.
func Duration(d *durationpb.Duration, least, def time.Duration) (time.Duration, error) {
	if d == nil {
		return def, nil
	}
	if err := d.CheckValid(); err != nil {
		return def, errors.New(CleanError(err))
	}
	v := min(d.AsDuration(), longest)
	if v < least {
		return v, fmt.Errorf("must be at least %v, is %v", least, v)
	}
	return v, nil
}

// Number returns n, def if it is absent. The error says that it is not between least
// and most, both included.
func Number(n *wrapperspb.UInt32Value, least, most, def int) (int, error) {
	if n == nil {
		return def, nil
	}
	v := int(n.GetValue())
	if v < least || v > most {
		return v, fmt.Errorf("must be between %d and %d, is %d", least, most, v)
	}
	return v, nil
}

// Others are the fields of m that are set and not named, in the order of their
// declaration.
func Others(m protoreflect.Message, names ...protoreflect.Name) iter.Seq[protoreflect.Name] {
	return func(yield func(protoreflect.Name) bool) {
		fields := m.Descriptor().Fields()
		for i := range fields.Len() {
			if f := fields.Get(i); m.Has(f) && !slices.Contains(names, f.Name()) && !yield(f.Name()) {
				return
			}
		}
	}
}

// CleanError drops what protobuf-go puts before its messages.
func CleanError(err error) string {
	s := err.Error()
	if i := strings.Index(s, "): "); strings.HasPrefix(s, "proto:") && i > 0 {
		return s[i+3:]
	}
	return strings.TrimLeft(strings.TrimPrefix(s, "proto:"), "\u00a0 ")
}

// Unpack fills m with a configuration, which is required.
func Unpack(config *anypb.Any, m proto.Message) error {
	if config == nil {
		return &Error{Reason: "required"}
	}
	if err := config.UnmarshalTo(m); err != nil {
		return &Error{Path: "type_url", Reason: CleanError(err)}
	}
	return nil
}

// Struct fills v, a pointer to a Go struct, with a configuration that is a
// google.protobuf.Struct, by the rules of encoding/json and the tags of v's fields. What v
// has no field for is a fault. Without a configuration v stays as it is.
func Struct(config *anypb.Any, v any) error {
	if config == nil {
		return nil
	}
	s := new(structpb.Struct)
	if err := config.UnmarshalTo(s); err != nil {
		return &Error{Reason: CleanError(err)}
	}
	b, err := protojson.Marshal(s)
	if err != nil {
		return &Error{Reason: CleanError(err)}
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	err = d.Decode(v)
	var t *json.UnmarshalTypeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &t):
		return &Error{t.Field, fmt.Sprintf("want a %s, got a %s", t.Type, t.Value)}
	default:
		return &Error{Reason: strings.TrimPrefix(err.Error(), "json: ")}
	}
}
