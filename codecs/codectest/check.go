package codectest

import (
	"encoding/hex"
	"fmt"
	"runtime/debug"
	"strings"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// reporter is what the checks need of a *testing.T.
type reporter interface {
	Helper()
	Errorf(format string, args ...any)
	Logf(format string, args ...any)
}

// check is one property being checked.
type check struct {
	t       reporter
	s       *Suite
	codec   codecs.Codec
	traits  codecs.Traits
	streams []*stream
	mem     memory
	dog     *watchdog
	light   bool   // one of many fuzzed inputs: a part of what there is to try will do
	skipped string // why the property does not apply
}

// stopped is what failf panics with, to be caught where the checks can go on.
type stopped struct{}

// where tells what was being done.
type where struct {
	stream *stream
	name   string // in place of a stream
	frame  int    // its number in the stream, from 0
	split  int    // at which offset of the frame it was cut; 0: nowhere
	doing  string
}

func (w where) String() string {
	var b strings.Builder
	if w.stream != nil {
		fmt.Fprintf(&b, "%s, %s", w.stream.name, w.stream.dir)
		if len(w.stream.frames) > 1 {
			fmt.Fprintf(&b, ", frame %d", w.frame)
			if w.frame < len(w.stream.frames) {
				fmt.Fprintf(&b, " at offset %d", w.stream.frames[w.frame].at)
			}
		}
	} else {
		b.WriteString(w.name)
	}
	if w.split > 0 {
		fmt.Fprintf(&b, ", cut at %d", w.split)
	}
	if w.doing != "" {
		fmt.Fprintf(&b, ", %s", w.doing)
	}
	return b.String()
}

// failf reports a fault with the bytes that show it, and stops the check of the
// stream.
func (c *check) failf(w where, b []byte, format string, args ...any) {
	c.t.Helper()
	c.t.Errorf("%s: %s\n%s", w, fmt.Sprintf(format, args...), dump(b))
	panic(stopped{})
}

// maxDump is how many bytes a failure shows.
const maxDump = 1024

func dump(b []byte) string {
	if len(b) <= maxDump {
		return hex.Dump(b)
	}
	return fmt.Sprintf("%s... (%d bytes in all, the last of them:)\n%s",
		hex.Dump(b[:maxDump-128]), len(b), hex.Dump(b[len(b)-128:]))
}

// attempt runs f until it is through or has failed.
func (c *check) attempt(f func()) (ok bool) {
	defer func() {
		if r := recover(); r != nil {
			if _, is := r.(stopped); !is {
				panic(r)
			}
		}
	}()
	f()
	return true
}

// maxFailures is how many streams may fail before a check is given up.
const maxFailures = 8

// each runs f for every stream of the kinds, and goes on when one fails.
func (c *check) each(kinds kind, f func(st *stream)) {
	var sts []*stream
	for _, st := range c.streams {
		if st.kind&kinds != 0 {
			sts = append(sts, st)
		}
	}
	c.eachOf(sts, f)
}

func (c *check) eachOf(sts []*stream, f func(st *stream)) {
	failures := 0
	for _, st := range sts {
		if !c.attempt(func() { f(st) }) {
			if failures++; failures == maxFailures {
				c.t.Errorf("too many failures, the rest is not looked at")
				return
			}
		}
	}
}

// guard calls the codec and reports a panic with the bytes that caused it.
func (c *check) guard(w where, b []byte, f func()) {
	c.dog.enter(w, b)
	defer c.dog.leave()
	defer func() {
		if r := recover(); r != nil {
			if _, is := r.(stopped); is {
				panic(r)
			}
			c.failf(w, b, "the codec panics: %v\n%s", r, debug.Stack())
		}
	}()
	f()
}
