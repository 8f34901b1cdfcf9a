package rbac

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/route"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

// request is one as the naive evaluator sees it.
type request struct {
	peer            peer
	service, method string
	properties      [][2]string
	varies          int // the property in which others of its shape differ, -1 if there is none
}

func (r *request) metadata() *codecs.Metadata {
	md := new(codecs.Metadata)
	md.SetOperation([]byte(r.service), []byte(r.method))
	for _, p := range r.properties {
		md.Put([]byte(p[0]), []byte(p[1]))
	}
	return md
}

// could is what the naive evaluator finds: whether something may be so, and whether it
// may not. Both: servers may take it one way or the other.
type could struct{ be, not bool }

func is(b bool) could { return could{b, !b} }

func (c could) truth() route.Truth {
	switch {
	case c.be && c.not:
		return route.Unknown
	case c.be:
		return route.Yes
	}
	return route.No
}

// matched goes through policies in the order of their names.
func (r *request) matched(rules *rbacv3.RBAC) (could, string) {
	all := could{not: true}
	for _, name := range slices.Sorted(maps.Keys(rules.GetPolicies())) {
		p := rules.GetPolicies()[name]
		perms, ids := could{not: true}, could{not: true}
		for _, perm := range p.GetPermissions() {
			perms = or2(perms, r.permission(perm))
		}
		for _, id := range p.GetPrincipals() {
			ids = or2(ids, r.principal(id))
		}
		if c := and2(perms, ids); c.be {
			if !c.not {
				return c, name
			}
			all.be = true
		}
	}
	return all, ""
}

func or2(a, b could) could  { return could{a.be || b.be, a.not && b.not} }
func and2(a, b could) could { return could{a.be && b.be, a.not || b.not} }
func not1(a could) could    { return could{a.not, a.be} }

func (r *request) permission(p *rbacv3.Permission) could {
	var c could
	switch {
	case p.GetAndRules() != nil:
		c = is(true)
		for _, o := range p.GetAndRules().GetRules() {
			c = and2(c, r.permission(o))
		}
	case p.GetOrRules() != nil:
		c = is(false)
		for _, o := range p.GetOrRules().GetRules() {
			c = or2(c, r.permission(o))
		}
	case p.GetNotRule() != nil:
		c = not1(r.permission(p.GetNotRule()))
	case p.GetAny():
		c = is(true)
	case p.GetHeader() != nil:
		c = r.header(p.GetHeader())
	case p.GetUrlPath() != nil:
		path := r.path()
		c = is(path != "" && text(p.GetUrlPath().GetPath(), path))
	case p.GetMetadata() != nil:
		c = r.meta(p.GetMetadata())
	case p.GetDestinationIp() != nil:
		c = is(in(p.GetDestinationIp(), r.peer.local.Addr()))
	case p.GetDestinationPortRange() != nil:
		port := int32(r.peer.local.Port())
		c = is(r.peer.local.IsValid() && port >= p.GetDestinationPortRange().GetStart() && port < p.GetDestinationPortRange().GetEnd())
	case p.GetRequestedServerName() != nil:
		sni := ""
		if r.peer.tls != nil {
			sni = r.peer.tls.ServerName
		}
		c = is(text(p.GetRequestedServerName(), sni))
	default:
		c = is(r.peer.local.IsValid() && uint32(r.peer.local.Port()) == p.GetDestinationPort())
	}
	return c
}

func (r *request) principal(p *rbacv3.Principal) could {
	switch {
	case p.GetAndIds() != nil:
		c := is(true)
		for _, o := range p.GetAndIds().GetIds() {
			c = and2(c, r.principal(o))
		}
		return c
	case p.GetOrIds() != nil:
		c := is(false)
		for _, o := range p.GetOrIds().GetIds() {
			c = or2(c, r.principal(o))
		}
		return c
	case p.GetNotId() != nil:
		return not1(r.principal(p.GetNotId()))
	case p.GetAuthenticated() != nil:
		if r.peer.tls == nil || !r.peer.tls.Mutual {
			return is(false)
		}
		if p.GetAuthenticated().GetPrincipalName() == nil {
			return is(true)
		}
		names := append(append([]string{r.peer.tls.Subject}, r.peer.tls.URISANs...), r.peer.tls.DNSSANs...)
		return is(slices.ContainsFunc(names, func(n string) bool { return text(p.GetAuthenticated().GetPrincipalName(), n) }))
	case p.GetDirectRemoteIp() != nil:
		return is(in(p.GetDirectRemoteIp(), r.peer.direct))
	case p.GetRemoteIp() != nil:
		return is(in(p.GetRemoteIp(), r.peer.remote))
	case p.GetSourceIp() != nil:
		return is(in(p.GetSourceIp(), r.peer.remote))
	case p.GetHeader() != nil:
		return r.header(p.GetHeader())
	case p.GetUrlPath() != nil:
		path := r.path()
		return is(path != "" && text(p.GetUrlPath().GetPath(), path))
	case p.GetMetadata() != nil:
		return r.meta(p.GetMetadata())
	}
	return is(p.GetAny())
}

func (r *request) path() string {
	switch {
	case r.service == "" && r.method == "":
		return ""
	case r.service == "" || r.method == "":
		return "/" + r.service + r.method
	}
	return "/" + r.service + "/" + r.method
}

func in(r *corev3.CidrRange, ip netip.Addr) bool {
	a := netip.MustParseAddr(r.GetAddressPrefix())
	if !ip.IsValid() || a.Is4() != ip.Is4() {
		return false
	}
	bits := func(a netip.Addr) (s string) {
		for _, b := range a.AsSlice() {
			s += fmt.Sprintf("%08b", b)
		}
		return s[:r.GetPrefixLen().GetValue()]
	}
	return bits(a) == bits(ip)
}

func text(s *matcherv3.StringMatcher, v string) bool {
	fold := func(t string) string {
		if s.GetIgnoreCase() {
			return strings.ToLower(t)
		}
		return t
	}
	v = fold(v)
	switch p := s.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		return v == fold(p.Exact)
	case *matcherv3.StringMatcher_Prefix:
		return strings.HasPrefix(v, fold(p.Prefix))
	case *matcherv3.StringMatcher_Suffix:
		return strings.HasSuffix(v, fold(p.Suffix))
	case *matcherv3.StringMatcher_Contains:
		return strings.Contains(v, fold(p.Contains))
	}
	return regexp.MustCompile("^(?:" + s.GetSafeRegex().GetRegex() + ")$").MatchString(v)
}

// meta is the same as a property, but that what is missing is no value.
func (r *request) meta(m *matcherv3.MetadataMatcher) could {
	h := &routev3.HeaderMatcher{Name: m.GetPath()[0].GetKey()}
	if m.GetValue().GetStringMatch() != nil {
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: m.GetValue().GetStringMatch()}
	} else {
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_PresentMatch{PresentMatch: m.GetValue().GetPresentMatch()}
	}
	if m.GetInvert() {
		return not1(r.header(h))
	}
	return r.header(h)
}

func (r *request) header(h *routev3.HeaderMatcher) could {
	var values []string
	switch name := strings.ToLower(h.GetName()); name {
	case ":path":
		if p := r.path(); p != "" {
			values = []string{p}
		}
	case ":method":
		values = []string{"POST"}
	default:
		for _, p := range r.properties {
			if strings.ToLower(p[0]) == name {
				values = append(values, p[1])
			}
		}
	}
	if len(values) == 0 && h.GetTreatMissingHeaderAsEmpty() {
		values = []string{""}
	}
	if p, asks := h.GetHeaderMatchSpecifier().(*routev3.HeaderMatcher_PresentMatch); asks {
		return is((len(values) > 0 == p.PresentMatch) != h.GetInvertMatch())
	}
	var c could
	for _, v := range values {
		var matches bool
		if rg := h.GetRangeMatch(); rg != nil {
			n, err := strconv.ParseInt(v, 10, 64)
			matches = err == nil && n >= rg.GetStart() && n < rg.GetEnd()
		} else {
			matches = text(h.GetStringMatch(), v)
		}
		if matches != h.GetInvertMatch() {
			c.be = true
		} else {
			c.not = true
		}
	}
	if len(values) == 0 {
		return is(false)
	}
	return c
}

// random makes configurations and requests in which much matches.
type random struct{ *rand.Rand }

func (r random) of(s ...string) string { return s[r.IntN(len(s))] }
func (r random) one(n int) bool        { return r.IntN(n) == 0 }

func (r random) texts() *matcherv3.StringMatcher {
	t := r.of("x", "xy", "/s/m", "/s/", "/s", "/m", "m", "spiffe://c/ns/a/sa/b", "spiffe://c/ns/a/", "b", "X", "10", "/S/M", "s.com")
	switch r.IntN(6) {
	case 0, 1:
		if r.one(10) {
			t = ""
		}
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: t}, IgnoreCase: r.one(4)}
	case 2:
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: t}, IgnoreCase: r.one(4)}
	case 3:
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Suffix{Suffix: t}, IgnoreCase: r.one(4)}
	case 4:
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Contains{Contains: t}, IgnoreCase: r.one(4)}
	}
	re := r.of(".*", ".+", "/s/.*", "x?y*", "spiffe://[^/]*/ns/a/.*", "", "m|/s/m") + r.of("", "", "x*")
	if re == "" {
		re = "x"
	}
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: re}}}
}

func (r random) header() *routev3.HeaderMatcher {
	h := &routev3.HeaderMatcher{
		Name: r.of(":path", ":path", ":method", "a", "A", "b", "Tenant"), InvertMatch: r.one(4), TreatMissingHeaderAsEmpty: r.one(5),
	}
	switch r.IntN(6) {
	case 0:
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_PresentMatch{PresentMatch: r.one(2)}
	case 1:
		start := int64(r.IntN(12))
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_RangeMatch{RangeMatch: &typev3.Int64Range{Start: start, End: start + 1 + int64(r.IntN(5))}}
	default:
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: r.texts()}
	}
	return h
}

func (r random) cidr() *corev3.CidrRange {
	a := netip.MustParseAddr(r.of("10.1.2.3", "10.1.2.4", "192.168.0.1", "2001:db8::1", "2001:db8::2"))
	return &corev3.CidrRange{AddressPrefix: a.String(), PrefixLen: wrapperspb.UInt32(uint32(r.IntN(a.BitLen() + 1)))}
}

func (r random) meta() *matcherv3.MetadataMatcher {
	m := &matcherv3.MetadataMatcher{
		Filter: namespace, Invert: r.one(3),
		Path:  []*matcherv3.MetadataMatcher_PathSegment{{Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: r.of("a", "B")}}},
		Value: &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_StringMatch{StringMatch: r.texts()}},
	}
	if r.one(4) {
		m.Value.MatchPattern = &matcherv3.ValueMatcher_PresentMatch{PresentMatch: r.one(2)}
	}
	return m
}

func (r random) path() *matcherv3.PathMatcher {
	return &matcherv3.PathMatcher{Rule: &matcherv3.PathMatcher_Path{Path: r.texts()}}
}

func (r random) permission(depth int) *rbacv3.Permission {
	set := func() *rbacv3.Permission_Set {
		s := &rbacv3.Permission_Set{}
		for range 1 + r.IntN(3) {
			s.Rules = append(s.Rules, r.permission(depth-1))
		}
		return s
	}
	n := 12
	if depth == 0 {
		n = 9
	}
	switch r.IntN(n) {
	case 0, 1, 2:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_Header{Header: r.header()}}
	case 3, 4:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_UrlPath{UrlPath: r.path()}}
	case 5:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_Metadata{Metadata: r.meta()}}
	case 6:
		if r.one(2) {
			start := int32(20878 + r.IntN(4))
			return &rbacv3.Permission{Rule: &rbacv3.Permission_DestinationPortRange{DestinationPortRange: &typev3.Int32Range{Start: start, End: start + 2}}}
		}
		return &rbacv3.Permission{Rule: &rbacv3.Permission_DestinationPort{DestinationPort: uint32(20879 + r.IntN(2))}}
	case 7:
		if r.one(2) {
			return &rbacv3.Permission{Rule: &rbacv3.Permission_DestinationIp{DestinationIp: r.cidr()}}
		}
		return &rbacv3.Permission{Rule: &rbacv3.Permission_RequestedServerName{RequestedServerName: r.texts()}}
	case 8:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_Any{Any: true}}
	case 9:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_AndRules{AndRules: set()}}
	case 10:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_OrRules{OrRules: set()}}
	}
	return &rbacv3.Permission{Rule: &rbacv3.Permission_NotRule{NotRule: r.permission(depth - 1)}}
}

func (r random) principal(depth int) *rbacv3.Principal {
	set := func() *rbacv3.Principal_Set {
		s := &rbacv3.Principal_Set{}
		for range 1 + r.IntN(3) {
			s.Ids = append(s.Ids, r.principal(depth-1))
		}
		return s
	}
	n := 12
	if depth == 0 {
		n = 9
	}
	switch r.IntN(n) {
	case 0, 1:
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_Authenticated_{Authenticated: &rbacv3.Principal_Authenticated{PrincipalName: r.texts()}}}
	case 2:
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_Authenticated_{Authenticated: &rbacv3.Principal_Authenticated{}}}
	case 3:
		switch r.IntN(3) {
		case 0:
			return &rbacv3.Principal{Identifier: &rbacv3.Principal_DirectRemoteIp{DirectRemoteIp: r.cidr()}}
		case 1:
			return &rbacv3.Principal{Identifier: &rbacv3.Principal_SourceIp{SourceIp: r.cidr()}}
		}
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_RemoteIp{RemoteIp: r.cidr()}}
	case 4, 5:
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_Header{Header: r.header()}}
	case 6:
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_UrlPath{UrlPath: r.path()}}
	case 7:
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_Metadata{Metadata: r.meta()}}
	case 8:
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_Any{Any: true}}
	case 9:
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_AndIds{AndIds: set()}}
	case 10:
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_OrIds{OrIds: set()}}
	}
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_NotId{NotId: r.principal(depth - 1)}}
}

func (r random) rules() *rbacv3.RBAC {
	rules := &rbacv3.RBAC{Policies: map[string]*rbacv3.Policy{}}
	n := r.IntN(6)
	if r.one(20) {
		n = 70 // more than a word of a set
	}
	for i := range n {
		p := &rbacv3.Policy{}
		for range 1 + r.IntN(2) {
			p.Permissions = append(p.Permissions, r.permission(2))
		}
		for range 1 + r.IntN(2) {
			p.Principals = append(p.Principals, r.principal(2))
		}
		rules.Policies[fmt.Sprintf("p%02d", i)] = p
	}
	return rules
}

func (r random) peer() peer {
	addresses := []netip.Addr{
		{}, netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("10.1.2.4"), netip.MustParseAddr("192.168.0.1"), netip.MustParseAddr("2001:db8::1"),
	}
	ip := func() netip.Addr { return addresses[r.IntN(len(addresses))] }
	p := peer{remote: ip(), direct: ip()}
	if a := ip(); a.IsValid() {
		p.local = netip.AddrPortFrom(a, uint16(20879+r.IntN(3)))
	}
	if r.one(3) {
		return p
	}
	p.tls = &host.TLS{ServerName: r.of("", "x", "s.com")}
	if r.one(4) {
		return p
	}
	p.tls.Mutual, p.tls.Subject = true, r.of("", "b", "CN=x")
	for range r.IntN(3) {
		p.tls.URISANs = append(p.tls.URISANs, r.of("spiffe://c/ns/a/sa/b", "spiffe://c/ns/x/sa/b", "x"))
	}
	for range r.IntN(2) {
		p.tls.DNSSANs = append(p.tls.DNSSANs, r.of("s.com", "xy"))
	}
	return p
}

func (r random) request(p peer) *request {
	q := &request{peer: p, service: r.of("s", "s", "S", "", "x", "s/m"), method: r.of("m", "m", "M", "", "y")}
	for range r.IntN(6) {
		q.properties = append(q.properties, [2]string{r.of("a", "A", "b", "B", "tenant", "other"), r.of("x", "xy", "X", "", "10", "5", "/s/m", "b")})
	}
	return q
}

// shaped returns a function that makes a message of what q says now, which shares the shape of
// what q said first. One property may vary, which the frame has then, and others be set beside.
func (r random) shaped(q *request) func() *codecs.Metadata {
	var shapes codecs.Shapes
	first := q.metadata()
	h, s := shapes.Learn([]byte("head"), []byte("tail"), first)
	before := slices.Clone(q.properties)
	q.varies = -1
	if len(before) > 0 && r.one(2) {
		q.varies = r.IntN(len(before))
		s = h.Widen(s, []byte("tail"), []codecs.Hole{{To: 4, Property: q.varies}}, first)
		s.Rest = whole(q.varies)
	}
	return func() *codecs.Metadata {
		m := new(codecs.Metadata)
		if q.varies >= 0 {
			m.Raw = []byte(q.properties[q.varies][1])
		}
		m.Share(s)
		for _, p := range q.properties[len(before):] {
			m.Set(p[0], p[1])
		}
		return m
	}
}

// whole is a frame that is the value of the property with that number.
type whole int

// Load implements codecs.Loader.
func (i whole) Load(m *codecs.Metadata) { m.Properties()[i].Value = m.Raw }

// vary gives q another value where its shape has a hole, or beside the shape.
func (r random) vary(q *request) {
	value := r.of("x", "xy", "X", "", "10", "5", "/s/m", "b")
	if q.varies >= 0 && r.one(2) {
		q.properties[q.varies][1] = value
		return
	}
	name := r.of("a", "b", "tenant", "other")
	if !slices.ContainsFunc(q.properties, func(p [2]string) bool { return strings.EqualFold(p[0], name) }) {
		q.properties = append(q.properties, [2]string{name, value})
	}
}

// TestTheEngineSaysWhatPlainReadingSays compares it with a plain evaluation of the
// configuration, which shares nothing with it.
func TestTheEngineSaysWhatPlainReadingSays(t *testing.T) {
	raced.Skip(t)
	r := random{rand.New(rand.NewPCG(14, 17))}
	var x look
	seen := map[route.Truth]int{}
	for range 7_000 {
		rules := r.rules()
		e, err := compile(rules)
		require.NoError(t, err)
		p := r.peer()
		s := e.of(&p)
		for range 5 {
			q := r.request(p)
			shared := r.shaped(q)
			for range 3 {
				want, policy := q.matched(rules)
				for i, md := range []*codecs.Metadata{q.metadata(), shared(), shared()} {
					got, n := x.match(s, md)
					seen[got]++
					if got != want.truth() || e.name(n) != policy {
						t.Fatalf("%+v, %d\n%s\nis %v by %q, should be %v by %q", q, i, protojson.Format(rules), got, e.name(n), want.truth(), policy)
					}
				}
				r.vary(q)
			}
		}
	}
	for _, n := range seen {
		require.Greater(t, n, 500, "%v", seen)
	}
}
