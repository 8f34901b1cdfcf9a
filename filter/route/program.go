package route

import (
	"bytes"
	"fmt"
	"regexp/syntax"
	"strings"
	"unicode/utf8"

	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// program is a regular expression that has to match a whole value, as Envoy's
// RE2 matchers do. It is the compiled form of package regexp, run by an
// automaton of our own for two reasons: every step is counted, so that a value
// which makes an expression expensive is given up, and a value that leaves the
// expression's path is left at that byte.
type program struct {
	insts []syntax.Inst
	start uint32 // behind the prefix
	// Every match begins with prefix, and contains needle.
	prefix string
	needle []byte
	asks   bool // has assertions such as \b
}

func compileRegex(r *matcherv3.RegexMatcher) (*program, error) {
	if r.GetRegex() == "" {
		return nil, fmt.Errorf("required")
	}
	parsed, err := syntax.Parse(r.GetRegex(), syntax.Perl)
	if err != nil {
		return nil, err
	}
	needle := required(parsed)
	compiled, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return nil, err
	}
	p := &program{insts: compiled.Inst, start: uint32(compiled.Start), needle: []byte(needle)}
	for i := range p.insts {
		p.asks = p.asks || p.insts[i].Op == syntax.InstEmptyWidth
	}
	p.cutPrefix()
	if strings.Contains(p.prefix, needle) {
		p.needle = nil
	}
	return p, nil
}

// cutPrefix moves the runes with which every match begins from the program's
// start into its prefix.
func (p *program) cutPrefix() {
	var b strings.Builder
	defer func() { p.prefix = b.String() }()
	for !p.asks { // assertions look back
		i := &p.insts[p.start]
		switch {
		case i.Op == syntax.InstNop || i.Op == syntax.InstCapture:
		case i.Op == syntax.InstRune1 && i.Rune[0] != utf8.RuneError:
			b.WriteRune(i.Rune[0])
		default:
			return
		}
		p.start = i.Out
	}
}

// required is the longest text that every match of re contains.
func required(re *syntax.Regexp) (text string) {
	switch re.Op {
	case syntax.OpLiteral:
		// U+FFFD stands for bytes that are not UTF-8, too.
		if s := string(re.Rune); re.Flags&syntax.FoldCase == 0 && !strings.ContainsRune(s, utf8.RuneError) {
			return s
		}
	case syntax.OpRepeat:
		if re.Min > 0 {
			return required(re.Sub[0])
		}
	case syntax.OpCapture, syntax.OpPlus, syntax.OpConcat:
		for _, sub := range re.Sub {
			if s := required(sub); len(s) > len(text) {
				text = s
			}
		}
	}
	return text
}

// machine is what a run of a program needs. One can be used for many programs.
type machine struct {
	now, next threads
	left      int // steps that may still be done
}

// threads is a set of instructions that wait for a rune: a sparse set, which is
// emptied at once.
type threads struct {
	at    []uint32 // where an instruction stands in list
	list  []uint32
	match bool // the program may end here
}

func (t *threads) reset(n int) {
	if len(t.at) < n {
		t.at, t.list = make([]uint32, n), make([]uint32, 0, n)
	}
	t.list, t.match = t.list[:0], false
}

// run reports whether v matches as a whole. ok is false if no steps are left.
func (p *program) run(m *machine, v []byte) (matched, ok bool) {
	if len(v) < len(p.prefix) || string(v[:len(p.prefix)]) != p.prefix {
		m.left--
		return false, m.left >= 0
	}
	v = v[len(p.prefix):]
	if len(p.needle) > 0 {
		m.left -= linear(len(v))
		if !bytes.Contains(v, p.needle) {
			return false, m.left >= 0
		}
	}
	m.now.reset(len(p.insts))
	m.next.reset(len(p.insts))
	before, r, size := rune(-1), rune(-1), 0
	if len(v) > 0 {
		r, size = decode(v)
	}
	p.add(m, &m.now, p.start, p.flags(before, r))
	for len(v) > 0 && len(m.now.list) > 0 && m.left >= 0 {
		v = v[size:]
		before, r, size = r, -1, 0
		if len(v) > 0 {
			r, size = decode(v)
		}
		flags := p.flags(before, r)
		m.next.list, m.next.match = m.next.list[:0], false
		for _, pc := range m.now.list {
			i := &p.insts[pc]
			if takes(i, before) {
				p.add(m, &m.next, i.Out, flags)
			}
		}
		m.left -= 1 + len(m.now.list)
		m.now, m.next = m.next, m.now
	}
	return len(v) == 0 && m.now.match, m.left >= 0
}

func decode(v []byte) (r rune, size int) {
	if v[0] < utf8.RuneSelf {
		return rune(v[0]), 1
	}
	return utf8.DecodeRune(v)
}

// flags are the assertions that hold between two runes, -1 where there is none.
func (p *program) flags(before, behind rune) syntax.EmptyOp {
	if !p.asks {
		return 0
	}
	return syntax.EmptyOpContext(before, behind)
}

func takes(i *syntax.Inst, r rune) bool {
	switch i.Op {
	case syntax.InstRune1:
		return r == i.Rune[0]
	case syntax.InstRuneAny:
		return true
	case syntax.InstRuneAnyNotNL:
		return r != '\n'
	default:
		return i.MatchRune(r)
	}
}

// add puts what pc leads to without a rune into t.
func (p *program) add(m *machine, t *threads, pc uint32, flags syntax.EmptyOp) {
	for {
		if at := t.at[pc]; at < uint32(len(t.list)) && t.list[at] == pc {
			return
		}
		m.left--
		t.at[pc] = uint32(len(t.list))
		t.list = append(t.list, pc)
		switch i := &p.insts[pc]; i.Op {
		case syntax.InstAlt, syntax.InstAltMatch:
			p.add(m, t, i.Out, flags)
			pc = i.Arg
		case syntax.InstEmptyWidth:
			if syntax.EmptyOp(i.Arg)&^flags != 0 {
				return
			}
			pc = i.Out
		case syntax.InstNop, syntax.InstCapture:
			pc = i.Out
		case syntax.InstMatch:
			t.match = true
			return
		default:
			return
		}
	}
}
