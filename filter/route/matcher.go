package route

import (
	"bytes"
	"fmt"
	"math"
	"regexp"
	"regexp/syntax"

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
	needle     []byte // text, for bytes.Contains
	re         *regexp.Regexp
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
		m.kind, m.re = regex, re
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
		m.kind = regex
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
	m.fold = s.GetIgnoreCase()
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

// compileRegex compiles a pattern that has to match a whole value, as Envoy's
// RE2 matchers do.
func compileRegex(r *matcherv3.RegexMatcher) (*regexp.Regexp, error) {
	if r.GetRegex() == "" {
		return nil, fmt.Errorf("required")
	}
	// Parsed by itself first: "a)(b" must not close our group, nor "\Qa" quote
	// its end.
	parsed, err := syntax.Parse(r.GetRegex(), syntax.Perl)
	if err != nil {
		return nil, err
	}
	re, err := regexp.Compile(`\A(?:` + parsed.String() + `)\z`)
	if err != nil {
		return nil, err
	}
	return re, nil
}

func (m *matcher) matches(v *view) bool {
	found := false
	if m.key != unnumbered {
		i := v.first[m.key]
		for j := range v.n[m.key] {
			if found = true; j > 0 {
				i = v.next(m.key, i)
			}
			if m.value(v.props[i].Value) {
				return !m.invert
			}
		}
	} else {
		for i := range v.props {
			if p := &v.props[i]; codecs.EqualFold(p.Name, m.name) {
				found = true
				if m.value(p.Value) {
					return !m.invert
				}
			}
		}
	}
	switch {
	case m.kind == present:
		return (found || m.missingEmpty) != m.invert
	case m.kind == absent:
		return (!found && !m.missingEmpty) != m.invert
	case found:
		return m.invert
	default:
		return m.missingEmpty && m.value(nil) != m.invert
	}
}

// value tells whether one value matches. Whether there is one is all that
// present and absent ask for.
func (m *matcher) value(v []byte) bool {
	switch m.kind {
	case exact:
		return m.equal(v)
	case prefix:
		return len(v) >= len(m.text) && m.equal(v[:len(m.text)])
	case suffix:
		return len(v) >= len(m.text) && m.equal(v[len(v)-len(m.text):])
	case contains:
		if !m.fold {
			return bytes.Contains(v, m.needle)
		}
		for ; len(v) >= len(m.text); v = v[1:] {
			if m.equal(v[:len(m.text)]) {
				return true
			}
		}
		return false
	case regex:
		return m.re.Match(v)
	case intRange:
		n, ok := parseInt(v)
		return ok && n >= m.start && n < m.end
	}
	return false
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
