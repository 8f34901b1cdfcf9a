package lua

import (
	"context"
	"errors"
	"time"

	lua "github.com/yuin/gopher-lua"
)

const (
	// slice is how many instructions run until the clock is looked at. Most hooks have
	// fewer, and never look.
	slice = 4096
	// perUnit is how many bytes, or elements of tables, count as an instruction where a
	// builtin function makes or looks at them.
	perUnit = 64
)

var (
	errInstructions = errors.New("it has executed more instructions than a hook may")
	errTime         = errors.New("it has taken longer than a hook may")
)

// spent is the channel of a context that is done.
var spent = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// budget is what a hook may cost. It is the context of its Lua state: the machine asks a
// context before each instruction whether it is done, so this one counts how often it is
// asked. What is over stays so until begin: a script that catches the error gets it again
// by its next instruction.
type budget struct {
	context.Context
	most  time.Duration // that a hook may take
	now   int           // instructions until refill
	later int           // those behind that
	until time.Time
	err   error
}

// begin begins a hook.
func (b *budget) begin(instructions int) {
	b.now = min(instructions, slice)
	b.later = instructions - b.now
	b.until, b.err = time.Time{}, nil
}

// end has everything end with err.
func (b *budget) end(err error) { b.now, b.err = -1, err }

// spend takes n instructions, and reports whether they were there.
func (b *budget) spend(n int) bool {
	b.now -= n
	return b.now >= 0 || b.refill()
}

func (b *budget) refill() bool {
	switch now := time.Now(); {
	case b.err != nil:
	case b.until.IsZero():
		b.until = now.Add(b.most)
	case now.After(b.until):
		b.end(errTime)
	}
	if b.err != nil {
		b.now = -1
		return false
	}
	more := min(slice-b.now, b.later)
	b.now += more
	if b.later -= more; b.now < 0 {
		b.end(errInstructions)
	}
	return b.now >= 0
}

// Done implements context.Context.
func (b *budget) Done() <-chan struct{} {
	if b.spend(1) {
		return nil
	}
	return spent
}

// Err implements context.Context.
func (b *budget) Err() error { return b.err }

// charge has the hook pay for n bytes or elements. It raises an error if it cannot.
func (b *budget) charge(l *lua.LState, n int) {
	if !b.spend(1 + n/perUnit) {
		l.RaiseError("%v", b.err)
	}
}
