package fields

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Error is one fault of a configuration.
type Error struct {
	// Path of the field in the configuration, such as "rules[2].name"; "" for all of it.
	Path   string
	Reason string
}

func (e *Error) Error() string {
	if e.Path == "" {
		return e.Reason
	}
	return e.Path + ": " + e.Reason
}

// Faults gathers what is wrong with a configuration. The zero value is empty.
type Faults struct{ all []error }

// Add adds a fault of the field at path.
func (f *Faults) Add(path, format string, args ...any) {
	f.all = append(f.all, &Error{path, fmt.Sprintf(format, args...)})
}

// AddAll adds the faults that err is, of what is at path.
func (f *Faults) AddAll(path string, err error) {
	Each(err, func(e *Error) { f.all = append(f.all, &Error{Join(path, e.Path), e.Reason}) })
}

// Duration is [Duration] of the field at path.
func (f *Faults) Duration(d *durationpb.Duration, path string, least, def time.Duration) time.Duration {
	v, err := Duration(d, least, def)
	if err != nil {
		f.Add(path, "%v", err)
	}
	return v
}

// Number is [Number] of the field at path.
func (f *Faults) Number(n *wrapperspb.UInt32Value, path string, least, most, def int) int {
	v, err := Number(n, least, most, def)
	if err != nil {
		f.Add(path, "%v", err)
	}
	return v
}

// Only adds a fault for each field of m, which is at path, that is set and not named.
func (f *Faults) Only(m proto.Message, path string, names ...protoreflect.Name) {
	for name := range Others(m.ProtoReflect(), names...) {
		f.Add(Join(path, string(name)), "not supported")
	}
}

// Err returns all faults as one error, of which [Each] tells; nil if there are none.
func (f *Faults) Err() error { return errors.Join(f.all...) }

// Each calls f for each fault that err is made of. An error that is no *Error is one
// without a path.
func Each(err error, f func(e *Error)) {
	if err == nil {
		return
	}
	if several, is := err.(interface{ Unwrap() []error }); is {
		for _, e := range several.Unwrap() {
			Each(e, f)
		}
		return
	}
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{Reason: err.Error()}
	}
	f(e)
}

// Join joins the path of a message and that of a field in it.
func Join(path, field string) string {
	if path == "" || field == "" || strings.HasPrefix(field, "[") {
		return path + field
	}
	return path + "." + field
}
