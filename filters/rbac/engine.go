package rbac

import (
	"math"
	"math/bits"
	"net/netip"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/route"
)

// engine is one frozen envoy.config.rbac.v3.RBAC.
type engine struct {
	action   rbacv3.RBAC_Action
	policies []policy // by their names, as Envoy goes through them
	rules    route.Rules
	facts    []fact
	index    index
}

type policy struct {
	name    string
	details string // of requests that are refused as it matches
	node    node
}

// kind of a node.
type kind uint8

const (
	fixed     kind = iota // number is a route.Truth
	known                 // the number of a fact of the connection
	operation             // that of a TextRule on what is called
	property              // that of a Rule on a property
	and
	or
	negated
)

// node is a permission or principal, or several.
type node struct {
	kind   kind
	number int
	of     []node
}

// peer is what is known of a client's connection.
type peer struct {
	remote, direct netip.Addr // invalid: no IP address
	local          netip.AddrPort
	tls            *host.TLS // nil: none
}

// fact is a question to which the answer is the same for all requests of a connection.
type fact interface {
	truth(p *peer, l *route.Look) route.Truth
}

func truth(is bool) route.Truth {
	if is {
		return route.Yes
	}
	return route.No
}

// end of a connection.
type end uint8

const (
	remote end = iota
	direct
	local
)

type cidr struct {
	which end
	in    netip.Prefix
}

func (c cidr) truth(p *peer, _ *route.Look) route.Truth {
	return truth(c.in.Contains([...]netip.Addr{remote: p.remote, direct: p.direct, local: p.local.Addr()}[c.which]))
}

// portRange is that of the local port, with start and without end.
type portRange struct{ start, end int }

func (r portRange) truth(p *peer, _ *route.Look) route.Truth {
	port := int(p.local.Port())
	return truth(p.local.IsValid() && r.start <= port && port < r.end)
}

type serverName struct{ is route.TextRule }

func (s serverName) truth(p *peer, l *route.Look) route.Truth {
	name := ""
	if p.tls != nil {
		name = p.tls.ServerName
	}
	return l.Text(s.is, []byte(name), true)
}

type authenticated struct{}

func (authenticated) truth(p *peer, _ *route.Look) route.Truth {
	return truth(p.tls != nil && p.tls.Mutual)
}

type principalName struct{ is route.TextRule }

// truth holds if any name of the certificate does: URIs, DNS names, the subject.
func (n principalName) truth(p *peer, l *route.Look) route.Truth {
	if p.tls == nil || !p.tls.Mutual {
		return route.No
	}
	t := l.Text(n.is, []byte(p.tls.Subject), true)
	for _, names := range [...][]string{p.tls.URISANs, p.tls.DNSSANs} {
		for _, name := range names {
			t = either(t, l.Text(n.is, []byte(name), true))
		}
	}
	return t
}

// either is Yes if one is, else Unknown if one is.
func either(a, b route.Truth) route.Truth {
	if a == route.Yes || b == route.Yes {
		return route.Yes
	}
	return max(a, b)
}

// standing is what an engine knows of a connection: its facts, and which policies can
// match requests that come over it.
type standing struct {
	engine *engine
	facts  []route.Truth
	// Sets of policies: all that can match, and those of them that are not indexed.
	alive, rest []uint64
	last        verdict
}

// verdict is what was found for requests that share a shape.
type verdict struct {
	shape   uint64 // its ID
	matched route.Truth
	which   int
}

// of returns the standing of a connection.
func (e *engine) of(p *peer) *standing {
	s := &standing{engine: e, facts: make([]route.Truth, len(e.facts))}
	var l route.Look
	l.Begin(&e.rules, nil)
	for i, f := range e.facts {
		s.facts[i] = f.truth(p, &l)
	}
	l.End()
	words := (len(e.policies) + 63) / 64
	s.alive, s.rest = make([]uint64, words), make([]uint64, words)
	x := look{standing: s, blind: true}
	for i := range e.policies {
		if x.eval(&e.policies[i].node) == route.No {
			continue
		}
		s.alive[i/64] |= 1 << (i % 64)
		if e.index.rest[i/64]>>(i%64)&1 != 0 {
			s.rest[i/64] |= 1 << (i % 64)
		}
	}
	return s
}

// look is one look of an engine at a request. Its memory is used again.
type look struct {
	standing *standing
	md       *codecs.Metadata
	blind    bool // there is no request yet, and what is asked of it is unknown
	found    bool // view has begun
	view     route.Look
	path     []byte // "/service/method", empty if there is none
	called   bool   // path is known

	best    int // policy that matches
	unknown bool
}

// none is the policy that matches if none does.
const none = math.MaxInt

// match returns the first policy that matches a request, none if none does. Unknown is
// the answer if none is known to, and of one it cannot be told. A client calls again and
// again what it has just called.
func (x *look) match(s *standing, md *codecs.Metadata) (route.Truth, int) {
	shape := s.engine.rules.Shape(md)
	if shape != nil && s.last.shape == shape.ID() {
		return s.last.matched, s.last.which
	}
	matched, which := x.find(s, md)
	if shape != nil && matched != route.Unknown {
		s.last = verdict{shape.ID(), matched, which}
	}
	return matched, which
}

// maxPathKept is how much memory for a path a look keeps, in bytes.
const maxPathKept = 1 << 10

// find is match by the rules.
func (x *look) find(s *standing, md *codecs.Metadata) (route.Truth, int) {
	*x = look{standing: s, md: md, path: x.path[:0], best: none}
	x.tryAll(s.rest)
	x.search(&s.engine.index)
	if x.found {
		x.view.End()
	}
	if cap(x.path) > maxPathKept {
		x.path = nil
	}
	switch {
	case x.best != none:
		return route.Yes, x.best
	case x.unknown:
		return route.Unknown, none
	}
	return route.No, none
}

// tryAll tries the policies of a set until one matches.
func (x *look) tryAll(set []uint64) {
	for w, word := range set {
		for ; word != 0; word &= word - 1 {
			if x.try(w*64 + bits.TrailingZeros64(word)) {
				return
			}
		}
	}
}

// try tries a policy, and reports whether those behind it need not be tried.
func (x *look) try(i int) bool {
	if i >= x.best {
		return true
	}
	switch x.eval(&x.standing.engine.policies[i].node) {
	case route.Yes:
		x.best = i
		return true
	case route.Unknown:
		x.unknown = true
	}
	return false
}

func (x *look) eval(n *node) route.Truth {
	switch n.kind {
	case fixed:
		return route.Truth(n.number)
	case known:
		return x.standing.facts[n.number]
	case operation:
		if x.blind {
			return route.Unknown
		}
		path := x.operation()
		return x.begun().Text(route.TextRule(n.number), path, len(path) > 0)
	case property:
		if x.blind {
			return route.Unknown
		}
		return x.begun().Property(route.Rule(n.number))
	case negated:
		return x.eval(&n.of[0]).Not()
	case and:
		t := route.Yes
		for i := range n.of {
			switch x.eval(&n.of[i]) {
			case route.No:
				return route.No
			case route.Unknown:
				t = route.Unknown
			}
		}
		return t
	default:
		t := route.No
		for i := range n.of {
			switch x.eval(&n.of[i]) {
			case route.Yes:
				return route.Yes
			case route.Unknown:
				t = route.Unknown
			}
		}
		return t
	}
}

func (x *look) begun() *route.Look {
	if !x.found {
		x.found = true
		x.view.Begin(&x.standing.engine.rules, x.md.Properties())
	}
	return &x.view
}

// operation is what the request calls, as a path.
func (x *look) operation() []byte {
	if !x.called {
		x.called = true
		if x.path = x.md.AppendOperation(append(x.path, '/')); len(x.path) == 1 {
			x.path = x.path[:0]
		}
	}
	return x.path
}
