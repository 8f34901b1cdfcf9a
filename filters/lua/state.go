package lua

import (
	"context"
	"errors"
	"fmt"
	"time"

	lua "github.com/yuin/gopher-lua"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
)

const (
	// What the stacks of a state, and of each coroutine, have: calls, and values.
	maxCalls   = 128
	someValues = 256
	maxValues  = 16 << 10

	// maxGap is how far behind the end of a table an element can be set.
	maxGap = 64 << 10
	// What values take, in bytes, more or less.
	sizeValue  = 16
	sizeKey    = 96
	sizeTable  = 1280
	sizeThread = 32 << 10
	// costStale is how much more a key counts that a table has had: what looks for the one
	// behind such keys cannot stop among them.
	costStale = 4
)

var (
	errBroken = errors.New("the interpreter has failed; it begins anew")
	// errAnswered ends a hook that has answered.
	errAnswered = errors.New("answered")
)

// limits are what is not configured.
type limits struct {
	// time is where a hook ends that has instructions left, as a builtin function may
	// take longer than it counts: so long that a processor which is taken away for a
	// while is no reason.
	time time.Duration
	// kept is how much what a script has in its globals may take, in bytes, more or less.
	// It is looked at each check instructions, in hooks that look at steps values each.
	kept, check, steps int
}

var usual = limits{time: 200 * time.Millisecond, kept: 16 << 20, check: 1 << 20, steps: 4096}

// state is a script that runs on one worker.
type state struct {
	script *script
	part   *part // nil when it is only judged
	limits limits
	l      *lua.LState
	budget budget

	request, response *lua.LFunction // hooks; nil: there is none

	objects
	m         *filter.Message // whose hook runs; nil: none does
	answering bool            // it is the response's
	reply     *codecs.LocalError

	executed int   // instructions, since its size was looked at
	walk     *walk // that looks at it now; nil: none does
	stale    int   // bytes of keys that tables have had
	broken   bool  // the interpreter may not be run again
	used     time.Duration

	lines, skips lines // of the log
}

// load runs a script's outermost level in a state of its own.
func (sc *script) load(p *part) (*state, error) {
	s := &state{script: sc, part: p, limits: usual, lines: lines{most: maxLines}, skips: lines{most: 1}}
	if p != nil {
		s.limits = p.limits
	}
	s.budget = budget{Context: context.Background(), most: s.limits.time}
	s.l = lua.NewState(lua.Options{
		CallStackSize: maxCalls, RegistrySize: someValues, RegistryMaxSize: maxValues, RegistryGrowStep: 2 * someValues, SkipOpenLibs: true,
	})
	s.libraries()
	s.makeObjects()
	s.l.SetContext(&s.budget)
	if err := s.call(s.l.NewFunctionFromProto(sc.proto), loadInstructions); err != nil {
		return nil, err
	}
	g := s.l.G.Global // whose metatable, if it has one, is not asked
	s.request, _ = g.RawGetString(onRequest).(*lua.LFunction)
	s.response, _ = g.RawGetString(onResponse).(*lua.LFunction)
	return s, nil
}

// run runs a hook for m, and returns with what it is answered, nil if it is not. The
// answer counts where the script has failed, too.
func (s *state) run(m *filter.Message, hook *lua.LFunction, instructions int) (*codecs.LocalError, error) {
	s.m, s.answering, s.reply = m, hook == s.response, nil
	err := s.call(hook, instructions, s.handle)
	s.m = nil
	if s.reply != nil {
		err = nil
	}
	return s.reply, err
}

// call calls a function of the script.
func (s *state) call(f *lua.LFunction, instructions int, args ...lua.LValue) error {
	s.budget.begin(instructions)
	s.l.Push(f)
	for _, a := range args {
		s.l.Push(a)
	}
	err := s.l.PCall(len(args), 0, nil)
	s.executed += instructions - s.budget.now - s.budget.later
	if err != nil {
		s.failed(err)
		err = told(err)
	}
	if s.l.GetTop() != 0 || s.l.G.CurrentThread != s.l {
		s.broken = true // it has ended within a coroutine
	}
	return err
}

// failed looks at an error whether the interpreter itself has failed.
func (s *state) failed(err error) {
	var e *lua.ApiError
	s.broken = s.broken || errors.As(err, &e) && e.Type == lua.ApiErrorPanic
}

// told is the error of a hook as log lines have it: where and what. Stacks are for those
// who debug at home.
func told(err error) error {
	v := thrown(err)
	if _, is := v.(*lua.LTable); is {
		return errors.New("a table was thrown")
	}
	return errors.New(printable(v.String()))
}

// fit reports whether the state can run another hook: nil, or why not.
func (s *state) fit() error {
	if s.broken {
		return errBroken
	}
	if s.walk == nil {
		if s.executed < s.limits.check {
			return nil
		}
		s.executed = 0
		s.walk = newWalk(s.limits.kept-costStale*s.stale, s.l.G.Global, s.l.G.Registry)
	}
	over := s.walk.on(s.limits.steps)
	if s.walk.left < 0 {
		return fmt.Errorf("what it keeps takes more than %d bytes; it begins anew", s.limits.kept)
	}
	if over {
		s.walk = nil
	}
	return nil
}

// walk adds up what can be reached, so much at a time: hooks run in between, and what they
// move meanwhile counts once, or the next time.
type walk struct {
	left  int                     // bytes
	turn  int                     // values that are looked at now
	seen  map[lua.LValue]struct{} // what refers to others
	todo  []lua.LValue            // … and is not looked into yet
	table *lua.LTable             // that is being looked into, nil: none
	key   lua.LValue              // up to there
}

func newWalk(left int, from ...lua.LValue) *walk {
	w := &walk{left: left, seen: map[lua.LValue]struct{}{}}
	for _, v := range from {
		w.add(v)
	}
	return w
}

// on goes on for so many values, and reports whether there are no more. It ends where
// nothing is left.
func (w *walk) on(values int) (over bool) {
	for w.turn = values; w.turn > 0 && w.left >= 0; {
		switch n := len(w.todo) - 1; {
		case w.table != nil:
			w.next()
		case n < 0:
			return true
		default:
			v := w.todo[n]
			w.todo = w.todo[:n]
			w.into(v)
		}
	}
	return false
}

// next adds the next key of the table, and its value.
func (w *walk) next() {
	key, value := w.table.Next(w.key)
	if w.key = key; key == lua.LNil {
		w.table = nil
		w.turn--
		return
	}
	if _, is := key.(lua.LNumber); !is {
		w.left -= sizeKey
	}
	w.add(key)
	w.add(value)
}

// into looks into what refers to others.
func (w *walk) into(v lua.LValue) {
	switch v := v.(type) {
	case *lua.LTable:
		w.left -= sizeTable / 8
		w.add(v.Metatable)
		w.table, w.key = v, lua.LNil
	case *lua.LFunction:
		w.turn--
		w.left -= sizeKey
		for _, u := range v.Upvalues {
			w.add(u.Value())
		}
	case *lua.LState:
		w.turn--
		w.left -= sizeThread
		for i := range v.GetTop() {
			w.add(v.Get(i + 1))
		}
	}
}

// add counts a value. What it refers to is looked into later.
func (w *walk) add(v lua.LValue) {
	w.turn--
	w.left -= sizeValue
	switch v := v.(type) {
	case lua.LString:
		w.left -= len(v)
	case *lua.LTable, *lua.LFunction, *lua.LState:
		if _, is := w.seen[v]; !is {
			w.seen[v] = struct{}{}
			w.todo = append(w.todo, v)
		}
	}
}
