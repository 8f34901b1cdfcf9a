package lua

import "strings"

const (
	maxCaptures = 32
	// maxDepth is how deep quantifiers and captures of a pattern may follow each other.
	maxDepth = 200
	// perStep is how many steps of matching count as an instruction.
	perStep = 8
)

// Lengths of captures that have none.
const (
	unclosed = -1 - iota
	position
)

type capture struct{ start, length int }

// matcher matches one of Lua's patterns as Lua does, but counts its steps: a pattern with
// several quantifiers may need a power of the text's length.
type matcher struct {
	text, pattern string
	spend         func(n int) bool // instructions
	fail          func(format string, args ...any)
	cost          func() error

	captures [maxCaptures]capture
	level    int
	depth    int
	steps    int // not yet spent
}

func (m *matcher) step() {
	if m.steps++; m.steps < perStep {
		return
	}
	n := m.steps / perStep
	m.steps %= perStep
	if !m.spend(n) {
		m.fail("%v", m.cost())
	}
}

// find returns where the first match at or behind from begins and ends, -1 if there is
// none.
func (m *matcher) find(from int) (start, end int) {
	p := 0
	if strings.HasPrefix(m.pattern, "^") {
		p = 1
	}
	for ; from <= len(m.text); from++ {
		m.level = 0
		if end = m.match(from, p); end >= 0 {
			return from, end
		}
		if p == 1 {
			break
		}
	}
	return -1, -1
}

// match returns where what the pattern from p on matches at s ends, -1 if it does not.
func (m *matcher) match(s, p int) int {
	if m.depth++; m.depth > maxDepth {
		m.fail("the pattern is too complex")
	}
	end := m.items(s, p)
	m.depth--
	return end
}

func (m *matcher) items(s, p int) int {
	for p < len(m.pattern) {
		m.step()
		switch c := m.pattern[p]; {
		case c == '(' && m.at(p+1) == ')':
			return m.open(s, p+2, position)
		case c == '(':
			return m.open(s, p+1, unclosed)
		case c == ')':
			return m.shut(s, p+1)
		case c == '$' && p+1 == len(m.pattern):
			if s != len(m.text) {
				return -1
			}
			return s
		case c == '%' && m.at(p+1) == 'b':
			if s = m.balanced(s, p+2); s < 0 {
				return -1
			}
			p += 4
			continue
		case c == '%' && m.at(p+1) == 'f':
			if m.at(p+2) != '[' {
				m.fail("missing '[' after '%%f' in pattern")
			}
			end := m.classEnd(p + 2)
			var before, behind byte
			if s > 0 {
				before = m.text[s-1]
			}
			if s < len(m.text) {
				behind = m.text[s]
			}
			if m.inSet(before, p+2, end) || !m.inSet(behind, p+2, end) {
				return -1
			}
			p = end
			continue
		case c == '%' && digit(m.at(p+1)):
			if s = m.again(s, m.pattern[p+1]); s < 0 {
				return -1
			}
			p += 2
			continue
		}
		end := m.classEnd(p)
		switch m.at(end) {
		case '?':
			if m.single(s, p, end) {
				if e := m.match(s+1, end+1); e >= 0 {
					return e
				}
			}
			p = end + 1
		case '*':
			return m.most(s, p, end)
		case '+':
			if !m.single(s, p, end) {
				return -1
			}
			return m.most(s+1, p, end)
		case '-':
			return m.least(s, p, end)
		default:
			if !m.single(s, p, end) {
				return -1
			}
			s, p = s+1, end
		}
	}
	return s
}

// at is the byte of the pattern at p, 0 behind its end.
func (m *matcher) at(p int) byte {
	if p < len(m.pattern) {
		return m.pattern[p]
	}
	return 0
}

// most matches as many of the class from p to end as it can, up to least at least.
func (m *matcher) most(least, p, end int) int {
	most := least
	for m.single(most, p, end) {
		m.step()
		most++
	}
	for ; most >= least; most-- {
		if e := m.match(most, end+1); e >= 0 {
			return e
		}
	}
	return -1
}

// least matches as few as it can.
func (m *matcher) least(s, p, end int) int {
	for {
		if e := m.match(s, end+1); e >= 0 {
			return e
		}
		if !m.single(s, p, end) {
			return -1
		}
		s++
	}
}

func (m *matcher) open(s, p, length int) int {
	if m.level == maxCaptures {
		m.fail("too many captures")
	}
	m.captures[m.level] = capture{s, length}
	m.level++
	end := m.match(s, p)
	if end < 0 {
		m.level--
	}
	return end
}

func (m *matcher) shut(s, p int) int {
	i := m.level - 1
	for i >= 0 && m.captures[i].length != unclosed {
		i--
	}
	if i < 0 {
		m.fail("invalid pattern capture")
	}
	m.captures[i].length = s - m.captures[i].start
	end := m.match(s, p)
	if end < 0 {
		m.captures[i].length = unclosed
	}
	return end
}

// balanced matches from one of the two bytes at p to the other that belongs to it.
func (m *matcher) balanced(s, p int) int {
	if p+1 >= len(m.pattern) {
		m.fail("unbalanced pattern")
	}
	if s >= len(m.text) || m.text[s] != m.pattern[p] {
		return -1
	}
	open := 1
	for i := s + 1; i < len(m.text); i++ {
		m.step()
		switch m.text[i] {
		case m.pattern[p+1]:
			if open--; open == 0 {
				return i + 1
			}
		case m.pattern[p]:
			open++
		}
	}
	return -1
}

// again matches what a capture has.
func (m *matcher) again(s int, number byte) int {
	i := int(number) - '1'
	if i < 0 || i >= m.level || m.captures[i].length == unclosed {
		m.fail("invalid capture index")
	}
	c := m.captures[i]
	if c.length == position {
		return -1
	}
	had := m.text[c.start : c.start+c.length]
	m.steps += len(had) / perUnit
	if !strings.HasPrefix(m.text[s:], had) {
		return -1
	}
	return s + len(had)
}

// classEnd returns where the class that begins at p ends.
func (m *matcher) classEnd(p int) int {
	c := m.pattern[p]
	p++
	switch c {
	case '%':
		if p == len(m.pattern) {
			m.fail("malformed pattern (ends with '%%')")
		}
		return p + 1
	case '[':
		if m.at(p) == '^' {
			p++
		}
		for first := true; first || m.at(p) != ']'; first = false {
			if p >= len(m.pattern) {
				m.fail("malformed pattern (missing ']')")
			}
			if m.pattern[p] == '%' {
				p++
			}
			p++
		}
		return p + 1
	}
	return p
}

func (m *matcher) single(s, p, end int) bool {
	if s >= len(m.text) {
		return false
	}
	c := m.text[s]
	switch m.pattern[p] {
	case '.':
		return true
	case '%':
		return inClass(c, m.pattern[p+1])
	case '[':
		return m.inSet(c, p, end)
	}
	return m.pattern[p] == c
}

// inSet reports whether c is in the set from p to end.
func (m *matcher) inSet(c byte, p, end int) bool {
	m.steps += (end - p) / perStep
	p, end = p+1, end-1
	in := true
	if m.pattern[p] == '^' {
		in = false
		p++
	}
	for ; p < end; p++ {
		switch at := m.pattern[p]; {
		case at == '%':
			if p++; inClass(c, m.pattern[p]) {
				return in
			}
		case p+2 < end && m.pattern[p+1] == '-':
			if at <= c && c <= m.pattern[p+2] {
				return in
			}
			p += 2
		case at == c:
			return in
		}
	}
	return !in
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

// inClass reports whether c is of the class that a letter names, or is class itself.
func inClass(c, class byte) bool {
	lower, upper := 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z'
	var in bool
	switch class | 0x20 {
	case 'a':
		in = lower || upper
	case 'c':
		in = c < ' ' || c == 0x7f
	case 'd':
		in = digit(c)
	case 'l':
		in = lower
	case 'p':
		in = '!' <= c && c <= '~' && !lower && !upper && !digit(c)
	case 's':
		in = c == ' ' || '\t' <= c && c <= '\r'
	case 'u':
		in = upper
	case 'w':
		in = lower || upper || digit(c)
	case 'x':
		in = digit(c) || 'a' <= c|0x20 && c|0x20 <= 'f'
	case 'z':
		in = c == 0
	default:
		return c == class
	}
	if class&0x20 == 0 { // upper case: all others
		return !in
	}
	return in
}
