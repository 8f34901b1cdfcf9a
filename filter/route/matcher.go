package route

import (
	"bytes"
	"fmt"
	"math"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// kind of a matcher, after the deprecated forms have been turned into theirs.
type kind uint8

const (
	present kind = iota
	absent       // present_match: false
	exact
	prefix
	suffix
	contains
	regex
	intRange
)

// matcher is one frozen HeaderMatcher. Semantics are those of HeaderUtility in
// Envoy 1.39. That is the first version that does not join the values of a
// header that occurs more than once by commas, as a rule that can be evaded by
// repeating a key is none (CVE-2026-26308): a matcher holds if any value
// matches, an inverted one if no value does.
type matcher struct {
	name       string // lower case
	key        int    // number of the name in the table's keys, or unnumbered
	kind       kind
	fold       bool // without regard to ASCII case
	text       string
	needle     []byte // text, for contains; lower case if fold
	borders    []int  // of needle, if fold
	re         *program
	test       int // number of what a regex or contains asks of its key
	start, end int64
	invert     bool
	// missingEmpty treats a missing property as one with an empty value.
	// Without it a matcher on the value of a missing property does not hold,
	// not even inverted.
	missingEmpty bool
}

// indexable reports whether a route with m can be found by its text.
func (m *matcher) indexable() bool {
	return m.kind == exact && !m.fold && !m.invert && (!m.missingEmpty || m.text != "")
}

func compileMatcher(h *routev3.HeaderMatcher) (matcher, string, error) {
	m := matcher{
		name: lower(h.GetName()), invert: h.GetInvertMatch(),
		missingEmpty: h.GetTreatMissingHeaderAsEmpty(),
	}
	if m.name == "" {
		return m, "name", fmt.Errorf("required")
	}
	switch s := h.GetHeaderMatchSpecifier().(type) {
	case nil:
		m.kind = present
	case *routev3.HeaderMatcher_PresentMatch:
		if m.kind = present; !s.PresentMatch {
			m.kind = absent
		}
	case *routev3.HeaderMatcher_ExactMatch:
		if m.kind, m.text = exact, s.ExactMatch; m.text == "" {
			m.kind = prefix // Envoy: any value, other than with string_match
		}
	case *routev3.HeaderMatcher_PrefixMatch:
		if s.PrefixMatch == "" {
			return m, "prefix_match", fmt.Errorf("must not be empty")
		}
		m.kind, m.text = prefix, s.PrefixMatch
	case *routev3.HeaderMatcher_SuffixMatch:
		if s.SuffixMatch == "" {
			return m, "suffix_match", fmt.Errorf("must not be empty")
		}
		m.kind, m.text = suffix, s.SuffixMatch
	case *routev3.HeaderMatcher_ContainsMatch:
		if s.ContainsMatch == "" {
			return m, "contains_match", fmt.Errorf("must not be empty")
		}
		m.setContains(s.ContainsMatch)
	case *routev3.HeaderMatcher_SafeRegexMatch:
		re, err := compileRegex(s.SafeRegexMatch)
		if err != nil {
			return m, "safe_regex_match.regex", err
		}
		m.kind, m.re, m.text = regex, re, s.SafeRegexMatch.GetRegex()
	case *routev3.HeaderMatcher_RangeMatch:
		m.kind, m.start, m.end = intRange, s.RangeMatch.GetStart(), s.RangeMatch.GetEnd()
		if m.start >= m.end {
			return m, "range_match", fmt.Errorf("start %d must be less than end %d", m.start, m.end)
		}
	case *routev3.HeaderMatcher_StringMatch:
		if field, err := m.fromStringMatcher(s.StringMatch); err != nil {
			return m, "string_match" + field, err
		}
	default:
		return m, "", fmt.Errorf("matcher %T is not supported", s)
	}
	return m, "", nil
}

// fromStringMatcher returns the path of the field, with a dot before it, that
// an error is about.
func (m *matcher) fromStringMatcher(s *matcherv3.StringMatcher) (field string, err error) {
	switch p := s.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		m.kind, m.text = exact, p.Exact
	case *matcherv3.StringMatcher_Prefix:
		m.kind, m.text, field = prefix, p.Prefix, ".prefix"
	case *matcherv3.StringMatcher_Suffix:
		m.kind, m.text, field = suffix, p.Suffix, ".suffix"
	case *matcherv3.StringMatcher_Contains:
		m.setContains(p.Contains)
		field = ".contains"
	case *matcherv3.StringMatcher_SafeRegex:
		if s.GetIgnoreCase() {
			return ".ignore_case", fmt.Errorf("does not go with safe_regex")
		}
		m.kind, m.text = regex, p.SafeRegex.GetRegex()
		m.re, err = compileRegex(p.SafeRegex)
		return ".safe_regex.regex", err
	case *matcherv3.StringMatcher_Custom:
		return ".custom", fmt.Errorf("not supported")
	case nil:
		return "", fmt.Errorf("required: one of exact, prefix, suffix, contains, safe_regex")
	default:
		return "", fmt.Errorf("%T is not supported", p)
	}
	if m.text == "" && m.kind != exact {
		return field, fmt.Errorf("must not be empty")
	}
	if m.fold = s.GetIgnoreCase(); m.fold && m.kind == contains {
		m.needle = []byte(lower(m.text))
		m.borders = borders(m.needle)
	}
	return "", nil
}

func (m *matcher) setContains(text string) {
	m.kind, m.text, m.needle = contains, text, []byte(text)
}

// lower is ASCII only, as header names and Envoy's ignore_case are.
func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c | 0x20
		}
	}
	return string(b)
}

// outcome is what a rule finds in a message, before it is inverted.
type outcome uint8

const (
	missing outcome = iota // no such property
	no                     // no value matches
	yes
	// It cannot be told: a value is too long, or the rules of the table have
	// cost too much.
	tooLong
	tooMuch
	differ // the values say different things; see Look
)

// matches reports whether the rule holds. If that cannot be told it reports
// true, and sets v.fault.
func (m *matcher) matches(v *view) bool {
	var found outcome
	if m.kind == contains || m.kind == regex {
		found = m.find(v)
	} else {
		found = m.look(v)
	}
	if found = m.orEmpty(v, found); found >= tooLong {
		v.fault = found
		return true
	}
	return m.holds(found)
}

// orEmpty is what was found, or would be found in an empty value if a missing one is
// to be taken for that.
func (m *matcher) orEmpty(v *view, found outcome) outcome {
	if found != missing || !m.missingEmpty {
		return found
	}
	if m.kind > absent {
		return m.value(v, nil)
	}
	return no
}

// holds reports whether the rule holds if that was found.
func (m *matcher) holds(found outcome) bool {
	switch {
	case m.kind == present:
		return (found != missing) != m.invert
	case m.kind == absent:
		return (found == missing) != m.invert
	case found == missing:
		return false
	default:
		return (found == yes) != m.invert
	}
}

// find is look for rules whose cost grows with the value: it is done once for all
// that ask the same of the same key.
func (m *matcher) find(v *view) (found outcome) {
	w := v.work()
	if o, known := w.known(m.test); known {
		return o
	}
	found = m.look(v)
	w.learn(m.test, found)
	return found
}

// look looks for a value that matches.
func (m *matcher) look(v *view) (found outcome) {
	if m.key != unnumbered {
		n := v.n[m.key]
		if n == 0 {
			return missing
		}
		if found = m.value(v, v.props[v.first[m.key]].Value); n == 1 || found == yes {
			return found
		}
		for at := v.again(m.key); at != nil; at = v.further(at) {
			o := m.value(v, v.props[at.at].Value)
			if o == yes {
				return yes
			}
			found = max(found, o)
		}
		return found
	}
	if v.spent += linear(2 * len(v.props)); v.spent > maxSteps {
		return tooMuch
	}
	for i := range v.props {
		if p := &v.props[i]; codecs.EqualFold(p.Name, m.name) {
			o := m.value(v, p.Value)
			if o == yes {
				return yes
			}
			found = max(found, o)
		}
	}
	return found
}

// value tells whether one value matches. Whether there is one is all that
// present and absent ask for.
func (m *matcher) value(view *view, v []byte) outcome {
	matched := false
	switch m.kind {
	case exact:
		matched = m.equal(v)
	case prefix:
		matched = len(v) >= len(m.text) && m.equal(v[:len(m.text)])
	case suffix:
		matched = len(v) >= len(m.text) && m.equal(v[len(v)-len(m.text):])
	case contains, regex, intRange:
		if len(v) > MaxValueBytes {
			return tooLong
		}
		if view.spent > maxSteps {
			return tooMuch
		}
		return m.costly(view, v)
	}
	if matched {
		return yes
	}
	return no
}

// costly is value for rules whose cost grows with the value.
func (m *matcher) costly(view *view, v []byte) outcome {
	var matched bool
	switch {
	case m.kind == regex:
		w := &view.work().machine
		w.left = maxSteps - view.spent
		var ok bool
		matched, ok = m.re.run(w, v)
		if view.spent = maxSteps - w.left; !ok {
			return tooMuch
		}
	case m.kind == intRange:
		view.spent += linear(len(v))
		n, ok := parseInt(v)
		matched = ok && n >= m.start && n < m.end
	case m.fold:
		view.spent += linear(2 * len(v))
		matched = m.containsFold(v)
	default:
		view.spent += linear(len(v))
		matched = bytes.Contains(v, m.needle)
	}
	if matched {
		return yes
	}
	return no
}

// containsFold is the search of Knuth, Morris and Pratt: its cost does not grow
// with the text.
func (m *matcher) containsFold(v []byte) bool {
	k := 0
	for _, c := range v {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		for k > 0 && m.needle[k] != c {
			k = m.borders[k-1]
		}
		if m.needle[k] == c {
			k++
		}
		if k == len(m.needle) {
			return true
		}
	}
	return false
}

// borders tells, for each start of s, how long the longest end of it is that s
// begins with, too.
func borders(s []byte) []int {
	b := make([]int, len(s))
	k := 0
	for i := 1; i < len(s); i++ {
		for k > 0 && s[k] != s[i] {
			k = b[k-1]
		}
		if s[k] == s[i] {
			k++
		}
		b[i] = k
	}
	return b
}

func (m *matcher) equal(v []byte) bool {
	if m.fold {
		return codecs.EqualFold(v, m.text)
	}
	return string(v) == m.text
}

// parseInt reads a decimal number, between ASCII whitespace or not, as
// absl::SimpleAtoi does, without allocating.
func parseInt(v []byte) (int64, bool) {
	s := bytes.Trim(v, " \t\n\v\f\r")
	neg := len(s) > 0 && s[0] == '-'
	if neg || len(s) > 0 && s[0] == '+' {
		s = s[1:]
	}
	if len(s) == 0 {
		return 0, false
	}
	// Counted downwards: there is one more number below zero than above.
	var n int64
	for _, c := range s {
		if c < '0' || c > '9' || n < math.MinInt64/10 {
			return 0, false
		}
		d := int64(c - '0')
		if n *= 10; n < math.MinInt64+d {
			return 0, false
		}
		n -= d
	}
	if neg {
		return n, true
	}
	return -n, n != math.MinInt64
}
