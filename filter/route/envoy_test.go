package route

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/prototext"

	"github.com/meltemi-mesh/meltemi/codecs"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// asciiLower is written otherwise than the code under test, on purpose.
func asciiLower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if strings.IndexByte("ABCDEFGHIJKLMNOPQRSTUVWXYZ", c) >= 0 {
			b[i] = c + 32
		}
	}
	return string(b)
}

// envoyMatches says what Envoy 1.39 (HeaderUtility, each value by itself)
// makes of a matcher, straight from the proto and without any thought of
// speed: the oracle that the compiled form is held against.
//
//nolint:staticcheck // The deprecated forms are part of what is tested.
func envoyMatches(h *routev3.HeaderMatcher, values []string) bool {
	present := func(want bool) bool {
		if len(values) == 0 && !h.GetTreatMissingHeaderAsEmpty() {
			return h.GetInvertMatch() == want
		}
		return want != h.GetInvertMatch()
	}
	full := func(pattern, v string) bool {
		re := regexp.MustCompile(pattern)
		re.Longest()
		return slices.Equal(re.FindStringIndex(v), []int{0, len(v)})
	}
	var holds func(v string) bool
	switch s := h.GetHeaderMatchSpecifier().(type) {
	case nil:
		return present(true)
	case *routev3.HeaderMatcher_PresentMatch:
		return present(s.PresentMatch)
	case *routev3.HeaderMatcher_ExactMatch:
		holds = func(v string) bool { return s.ExactMatch == "" || v == s.ExactMatch }
	case *routev3.HeaderMatcher_PrefixMatch:
		holds = func(v string) bool { return strings.HasPrefix(v, s.PrefixMatch) }
	case *routev3.HeaderMatcher_SuffixMatch:
		holds = func(v string) bool { return strings.HasSuffix(v, s.SuffixMatch) }
	case *routev3.HeaderMatcher_ContainsMatch:
		holds = func(v string) bool { return strings.Contains(v, s.ContainsMatch) }
	case *routev3.HeaderMatcher_SafeRegexMatch:
		holds = func(v string) bool { return full(s.SafeRegexMatch.GetRegex(), v) }
	case *routev3.HeaderMatcher_RangeMatch:
		holds = func(v string) bool {
			n, err := strconv.ParseInt(strings.Trim(v, " \t\n\v\f\r"), 10, 64)
			return err == nil && n >= s.RangeMatch.GetStart() && n < s.RangeMatch.GetEnd()
		}
	case *routev3.HeaderMatcher_StringMatch:
		fold := func(v string) string { return v }
		if s.StringMatch.GetIgnoreCase() {
			fold = asciiLower
		}
		switch p := s.StringMatch.GetMatchPattern().(type) {
		case *matcherv3.StringMatcher_Exact:
			holds = func(v string) bool { return fold(v) == fold(p.Exact) }
		case *matcherv3.StringMatcher_Prefix:
			holds = func(v string) bool { return strings.HasPrefix(fold(v), fold(p.Prefix)) }
		case *matcherv3.StringMatcher_Suffix:
			holds = func(v string) bool { return strings.HasSuffix(fold(v), fold(p.Suffix)) }
		case *matcherv3.StringMatcher_Contains:
			holds = func(v string) bool { return strings.Contains(fold(v), fold(p.Contains)) }
		case *matcherv3.StringMatcher_SafeRegex:
			holds = func(v string) bool { return full(p.SafeRegex.GetRegex(), v) }
		}
	}
	if len(values) == 0 {
		return h.GetTreatMissingHeaderAsEmpty() && holds("") != h.GetInvertMatch()
	}
	return slices.ContainsFunc(values, holds) != h.GetInvertMatch()
}

// envoyRoute is the linear search for the first route that matches, -1 if none
// does.
func envoyRoute(rc *routev1alpha.RouteConfiguration, md *codecs.Metadata) int {
	return slices.IndexFunc(rc.GetRoutes(), func(r *routev1alpha.Route) bool {
		return !slices.ContainsFunc(r.GetMatch().GetMetadata(), func(h *routev3.HeaderMatcher) bool {
			var values []string
			for _, p := range md.Properties() {
				if asciiLower(string(p.Name)) == asciiLower(h.GetName()) {
					values = append(values, string(p.Value))
				}
			}
			return !envoyMatches(h, values)
		})
	})
}

const kinds = 14

// newMatcher makes a matcher of any kind.
func newMatcher(kind int, name, text string, invert, missing, fold bool) *routev3.HeaderMatcher {
	h := &routev3.HeaderMatcher{Name: name, InvertMatch: invert, TreatMissingHeaderAsEmpty: missing}
	re := &matcherv3.RegexMatcher{Regex: text}
	str := func(s *matcherv3.StringMatcher) {
		s.IgnoreCase = fold
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: s}
	}
	switch kind {
	case 0:
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_ExactMatch{ExactMatch: text}
	case 1:
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_PrefixMatch{PrefixMatch: text}
	case 2:
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_SuffixMatch{SuffixMatch: text}
	case 3:
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_ContainsMatch{ContainsMatch: text}
	case 4:
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_SafeRegexMatch{SafeRegexMatch: re}
	case 5:
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_RangeMatch{RangeMatch: &typev3.Int64Range{Start: int64(len(text)) - 3, End: 12}}
	case 6:
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}
	case 7:
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_PresentMatch{PresentMatch: false}
	case 8:
		str(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: text}})
	case 9:
		str(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: text}})
	case 10:
		str(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Suffix{Suffix: text}})
	case 11:
		str(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Contains{Contains: text}})
	case 12:
		str(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: re}})
	}
	return h
}

// impossible says which matchers Envoy or we refuse.
func impossible(kind int, name, text string, fold bool) bool {
	switch {
	case name == "":
		return true
	case kind >= 1 && kind <= 3 || kind >= 9 && kind <= 11:
		return text == ""
	case kind == 4 || kind == 12:
		_, err := regexp.Compile(text)
		return text == "" || err != nil || kind == 12 && fold
	case kind == 5:
		return len(text)-3 >= 12
	}
	return false
}

func route(matchers ...*routev3.HeaderMatcher) *routev1alpha.Route {
	return &routev1alpha.Route{
		Match: &routev1alpha.RouteMatch{Metadata: matchers},
		Route: &routev1alpha.RouteAction{ClusterSpecifier: &routev1alpha.RouteAction_Cluster{Cluster: "c"}},
	}
}

func FuzzMatcherAgreesWithEnvoy(f *testing.F) {
	for _, seed := range []struct {
		kind           int
		text           string
		v1, v2         string
		occurrences    uint8
		inv, miss, fld bool
	}{
		{kind: 0, text: "v", v1: "x", v2: "v", occurrences: 2, inv: true},       // a repeated key evades
		{kind: 0, text: "", v1: "x", occurrences: 1},                            // empty exact_match
		{kind: 0, text: "", miss: true},                                         // missing is empty
		{kind: 4, text: `a|ab`, v1: "ab", occurrences: 1},                       // longest alternative
		{kind: 4, text: `a)(b`, v1: "ab", occurrences: 1},                       // unbalanced
		{kind: 4, text: `\Qa.b`, v1: "a.b", occurrences: 1},                     // quote that never ends
		{kind: 4, text: `a.*`, v1: "a\nb", occurrences: 1},                      // newline
		{kind: 4, text: `a$`, v1: "a\n", occurrences: 1},                        // end of text
		{kind: 12, text: `(?m)^a$`, v1: "b\na", occurrences: 1},                 // lines
		{kind: 12, text: `(?i)É|\x{212A}`, v1: "k", occurrences: 1},             // Unicode folding
		{kind: 5, text: "abc", v1: " 7\t", occurrences: 1},                      // blanks
		{kind: 5, text: "abc", v1: "0000000000000000000000007", occurrences: 1}, // leading zeros
		{kind: 5, text: "abc", v1: "1_0", occurrences: 1},                       // underscore
		{kind: 5, v1: "-9223372036854775809", occurrences: 1, inv: true},        // overflow
		{kind: 7, occurrences: 0, miss: true, inv: true},                        // absent but empty
		{kind: 8, text: "É", v1: "É", occurrences: 1, fld: true},                // not ASCII
		{kind: 8, text: "\u212A", v1: "k", occurrences: 1, fld: true},           // Kelvin sign
		{kind: 11, text: "aB", v1: "xAb", occurrences: 1, fld: true},            // in the middle
		{kind: 13, occurrences: 1, inv: true},                                   // no kind
	} {
		f.Add(uint8(seed.kind), "K", "k", seed.text, seed.v1, seed.v2, seed.occurrences, seed.inv, seed.miss, seed.fld)
	}
	f.Fuzz(func(t *testing.T, kind uint8, rule, name, text, v1, v2 string, occurrences uint8, invert, missing, fold bool) {
		if !utf8.ValidString(rule) || !utf8.ValidString(text) {
			t.Skip("no proto can hold it")
		}
		k := int(kind) % kinds
		h := newMatcher(k, rule, text, invert, missing, fold)
		rc := &routev1alpha.RouteConfiguration{Routes: []*routev1alpha.Route{route(h)}}
		table, faults := Compile(rc, Env{})
		if impossible(k, rule, text, fold) {
			require.Len(t, faults, 1)
			require.Contains(t, faults[0].Path, "routes[0].match.metadata[0]")
			return
		}
		require.Empty(t, faults)
		md := message(append([]string{"other", text}, []string{name, v1, name, v2}[:2*(occurrences%3)]...)...)
		for _, table := range []*Table{table, indexed(table)} {
			require.Equal(t, envoyRoute(rc, md) == 0, table.Match(md) != nil, "%s\n%q", prototext.Format(h), md.Properties())
		}
	})
}

// script turns bytes into small choices, 0 when they are used up.
type script []byte

func (s *script) n(below int) int {
	if len(*s) == 0 {
		return 0
	}
	c := int((*s)[0])
	*s = (*s)[1:]
	return c % below
}

// FuzzTableAgreesWithLinearSearch lets the bytes choose a table out of few
// names and values, so that rules overlap, and messages with repeated keys.
func FuzzTableAgreesWithLinearSearch(f *testing.F) {
	f.Add([]byte("a table without rules"))
	f.Add([]byte{1, 1, 0, 0, 0, 0, 0, 0, 3})
	f.Add(slices.Repeat([]byte{7, 3, 8, 1, 0, 2, 0, 0, 5, 1}, 60))
	f.Fuzz(checkTable)
}

func checkTable(t *testing.T, data []byte) {
	s := script(data)
	names := 1 + s.n(2*maxKeys)
	name := func() string { return []string{"k", "K"}[s.n(2)] + strconv.Itoa(s.n(names)) }
	texts := []string{"a", "b", "ab", "A", "", "5", "a.*", "\n"}
	rc := &routev1alpha.RouteConfiguration{}
	for range s.n(40) {
		r := route()
		for range s.n(6) {
			kind, n, text := 0, name(), texts[s.n(len(texts))]
			if s.n(3) == 0 {
				kind = s.n(kinds)
			}
			flags := s.n(8)
			if flags > 0 {
				flags = s.n(8) & flags
			}
			fold := flags&4 != 0
			if !impossible(kind, n, text, fold) {
				r.Match.Metadata = append(r.Match.Metadata, newMatcher(kind, n, text, flags&1 != 0, flags&2 != 0, fold))
			}
		}
		r.Name = strconv.Itoa(len(rc.Routes))
		rc.Routes = append(rc.Routes, r)
	}
	table, faults := Compile(rc, Env{})
	require.Empty(t, faults)
	for range 1 + s.n(8) {
		var kvs []string
		seen := map[string]int{}
		for range s.n(24) {
			n := name()
			if seen[asciiLower(n)]++; seen[asciiLower(n)] <= maxRepeats {
				kvs = append(kvs, n, texts[s.n(len(texts))])
			}
		}
		md := message(kvs...)
		want := envoyRoute(rc, md)
		for _, table := range []*Table{table, indexed(table)} {
			got := table.Match(md)
			if want < 0 {
				require.Nil(t, got, "%s\n%q", prototext.Format(rc), kvs)
				continue
			}
			require.NotNil(t, got, "%s\n%q", prototext.Format(rc), kvs)
			require.Equal(t, fmt.Sprint(want), got.Name, "%s\n%q", prototext.Format(rc), kvs)
		}
	}
}
