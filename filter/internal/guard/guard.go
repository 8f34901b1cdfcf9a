// Package guard calls codecs, which are written by others: what panics there
// comes back as an error, so that it ends what it belongs to and nothing else.
package guard

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// Text is what peers are told of a panic.
const Text = "internal error"

// Panic is a panic as an error.
type Panic struct {
	Value any
	Stack []byte
	// Site is the file and line that panicked.
	Site string
	// Logged is for those that pass it on.
	Logged bool
}

func (*Panic) Error() string { return Text }

// In returns the panic that err is, nil if it is none.
func In(err error) *Panic {
	if err == nil {
		return nil
	}
	var p *Panic
	errors.As(err, &p)
	return p
}

// New returns what recover returned, which must not be nil, as an error. It is to
// be called where the panic was caught.
func New(value any) *Panic {
	return &Panic{Value: value, Stack: debug.Stack(), Site: site()}
}

// site returns what called panic, or made the runtime do so.
func site() string {
	var pcs [64]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(0, pcs[:])])
	panicking := false
	for {
		f, more := frames.Next()
		switch {
		case f.Function == "runtime.gopanic":
			panicking = true
		case panicking && !strings.HasPrefix(f.Function, "runtime."):
			return f.File + ":" + strconv.Itoa(f.Line)
		}
		if !more {
			return ""
		}
	}
}

// Catch is deferred. It turns a panic into err.
func Catch(err *error) {
	if r := recover(); r != nil {
		*err = New(r)
	}
}

// undo is Catch for what appends to dst.
func undo(b *[]byte, dst []byte, err *error) {
	if r := recover(); r != nil {
		*err = New(r)
	}
	if *err != nil {
		*b = dst
	}
}

// Decode is d.Decode.
func Decode(d codecs.Decoder, b []byte, m *codecs.Metadata) (n int, err error) {
	defer Catch(&err)
	return Took(d.Decode(b, m))
}

// Took returns what a decoder has returned. It panics if that took no bytes, as
// it would be called for ever.
func Took(n int, err error) (int, error) {
	if err == nil && n <= 0 {
		panic(fmt.Sprintf("a decoder took %d bytes", n))
	}
	return n, err
}

// Append is f(dst). After an error or a panic b is dst.
func Append(dst []byte, f func(dst []byte) ([]byte, error)) (b []byte, err error) {
	defer undo(&b, dst, &err)
	return f(dst)
}

// Do runs f.
func Do(f func()) (err error) {
	defer Catch(&err)
	f()
	return nil
}
