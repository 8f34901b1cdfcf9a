package route

import (
	"fmt"
	"math"
	"regexp"
	"strings"

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

// matcher is one frozen HeaderMatcher. Semantics are those of Envoy's
// HeaderUtility, except that a property that occurs more than once is not
// joined by commas: each value is looked at by itself, as a rule that can be
// evaded by repeating a key is none. A matcher holds if any value matches, an
// inverted one if no value does.
type matcher struct {
	name       string // lower case
	kind       kind
	fold       bool // without regard to ASCII case; text is in lower case then
	text       string
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
		name: strings.ToLower(h.GetName()), invert: h.GetInvertMatch(),
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
		m.kind, m.text = exact, s.ExactMatch
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
		m.kind, m.text = contains, s.ContainsMatch
	case *routev3.HeaderMatcher_SafeRegexMatch:
		re, err := compileRegex(s.SafeRegexMatch)
		if err != nil {
			return m, "safe_regex_match", err
		}
		m.kind, m.re = regex, re
	case *routev3.HeaderMatcher_RangeMatch:
		m.kind, m.start, m.end = intRange, s.RangeMatch.GetStart(), s.RangeMatch.GetEnd()
		if m.start >= m.end {
			return m, "range_match", fmt.Errorf("start %d must be less than end %d", m.start, m.end)
		}
	case *routev3.HeaderMatcher_StringMatch:
		if err := m.fromStringMatcher(s.StringMatch); err != nil {
			return m, "string_match", err
		}
	default:
		return m, "", fmt.Errorf("matcher %T is not supported", s)
	}
	return m, "", nil
}

func (m *matcher) fromStringMatcher(s *matcherv3.StringMatcher) error {
	switch p := s.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		m.kind, m.text = exact, p.Exact
	case *matcherv3.StringMatcher_Prefix:
		m.kind, m.text = prefix, p.Prefix
	case *matcherv3.StringMatcher_Suffix:
		m.kind, m.text = suffix, p.Suffix
	case *matcherv3.StringMatcher_Contains:
		m.kind, m.text = contains, p.Contains
	case *matcherv3.StringMatcher_SafeRegex:
		if s.GetIgnoreCase() {
			return fmt.Errorf("ignore_case does not go with safe_regex")
		}
		re, err := compileRegex(p.SafeRegex)
		m.kind, m.re = regex, re
		return err
	case nil:
		return fmt.Errorf("required: one of exact, prefix, suffix, contains, safe_regex")
	default:
		return fmt.Errorf("%T is not supported", p)
	}
	if m.text == "" && m.kind != exact {
		return fmt.Errorf("must not be empty")
	}
	if m.fold = s.GetIgnoreCase(); m.fold {
		m.text = strings.ToLower(m.text)
	}
	return nil
}

// compileRegex compiles a pattern that has to match a whole value, as Envoy's
// RE2 matchers do.
func compileRegex(r *matcherv3.RegexMatcher) (*regexp.Regexp, error) {
	if r.GetRegex() == "" {
		return nil, fmt.Errorf("regex: required")
	}
	re, err := regexp.Compile(`^(?s:` + r.GetRegex() + `)$`)
	if err != nil {
		return nil, fmt.Errorf("regex: %w", err)
	}
	// (?s: keeps ^ and $ of the pattern as they are, and ours at the ends.
	if _, err := regexp.Compile(r.GetRegex()); err != nil { // such as "a)(b"
		return nil, fmt.Errorf("regex: %w", err)
	}
	re.Longest()
	return re, nil
}

func (m *matcher) matches(md *codecs.Metadata) bool {
	found := false
	props := md.Properties()
	for i := range props {
		p := &props[i]
		if len(p.Name) != len(m.name) || !codecs.EqualFold(p.Name, m.name) {
			continue
		}
		found = true
		if m.kind == present || m.kind == absent {
			break
		}
		if m.value(p.Value) {
			return !m.invert
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

func (m *matcher) value(v []byte) bool {
	switch m.kind {
	case exact:
		if m.fold {
			return codecs.EqualFold(v, m.text)
		}
		return string(v) == m.text
	case prefix:
		return len(v) >= len(m.text) && m.equal(v[:len(m.text)])
	case suffix:
		return len(v) >= len(m.text) && m.equal(v[len(v)-len(m.text):])
	case contains:
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

// parseInt reads a whole decimal number without allocating.
func parseInt(v []byte) (int64, bool) {
	if len(v) == 0 || len(v) > 20 {
		return 0, false
	}
	s, neg := v, false
	if s[0] == '-' || s[0] == '+' {
		neg, s = s[0] == '-', s[1:]
	}
	if len(s) == 0 {
		return 0, false
	}
	var n uint64
	for _, c := range s {
		if c < '0' || c > '9' || n > (math.MaxUint64-9)/10 {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	switch {
	case neg && n <= 1<<63:
		return -int64(n), true //nolint:gosec // 1<<63 is its own negative.
	case neg || n > math.MaxInt64:
		return 0, false
	}
	return int64(n), true
}
