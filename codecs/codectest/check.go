package codectest

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/meltemi-mesh/meltemi/codecs"
)

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
	// needed has the streams that need the excuse that the property looks at.
	needed map[*stream]bool
}

// stopped is what failf panics with, to be caught where the checks can go on.
type stopped struct{}

// breach is what is panicked with where the codec is called and cannot be reported.
type breach string

// where tells what was being done.
type where struct {
	stream *stream
	name   string // in place of a stream
	frame  int    // its number in the stream, from 0
	split  int    // at which offset of the frame it was cut; 0: nowhere
	doing  string
	with   shown // other bytes that matter, if any
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

// errorf reports a fault that no bytes show.
func (c *check) errorf(format string, args ...any) {
	c.t.Helper()
	text := fmt.Sprintf(format, args...)
	c.t.fault(fault{kind: text, text: text})
}

// failf reports a fault with the bytes that show it, and stops the check of the
// stream.
func (c *check) failf(w where, b []byte, format string, args ...any) {
	c.t.Helper()
	// The bytes may be lent: they are others when the fault is printed.
	f := fault{where: w.String(), text: fmt.Sprintf(format, args...), shown: []shown{{"", bytes.Clone(b)}}}
	f.kind = kindOf(f.text)
	if w.with.bytes != nil {
		f.shown = append(f.shown, shown{w.with.title, bytes.Clone(w.with.bytes)})
	}
	c.t.fault(f)
	panic(stopped{})
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

func (c *check) eachOf(sts []*stream, f func(st *stream)) (ok bool) {
	failures := 0
	for _, st := range sts {
		if !c.attempt(func() { f(st) }) {
			if failures++; failures == maxFailures {
				break
			}
		}
	}
	return failures == 0
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
			if fault, is := r.(breach); is {
				c.failf(w, b, "%s", string(fault))
			}
			c.failf(w, b, "the codec panics: %v\n%s", r, panicSite())
		}
	}()
	f()
}
