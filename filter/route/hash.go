package route

import (
	"net/netip"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/consistent"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// maxHashParts are those of one route.
const maxHashParts = 100

// Hash is what the requests of a route choose their hosts by.
type Hash struct{ parts []hashPart }

type hashPart struct {
	property  string // "": the client's address
	principal bool   // … or its principal
	terminal  bool
}

// Key returns the hash of a request from a client's address, which may be unknown, and
// principal, "" if it has none. ok is false if it has none of the parts.
func (h *Hash) Key(md *codecs.Metadata, source netip.Addr, principal string) (key uint64, ok bool) {
	var text [64]byte
	for i := range h.parts {
		p := &h.parts[i]
		var next uint64
		found := true
		switch {
		case p.property != "":
			var value []byte
			value, found = md.Get(p.property)
			next = consistent.Hash(value)
		case p.principal:
			found = principal != ""
			next = consistent.HashString(principal)
		case source.IsValid():
			next = consistent.Hash(source.AppendTo(text[:0]))
		default:
			found = false
		}
		if found && ok {
			key = consistent.Combine(key, next)
		} else if found {
			key, ok = next, true
		}
		if p.terminal && ok {
			break
		}
	}
	return key, ok
}

// hash returns what requests of a route with that action are hashed by, nil if by
// nothing.
func (c *compiler) hash(a *routev1alpha.RouteAction, table *Hash, path string) *Hash {
	own := c.hashParts(a.GetHashPolicies(), path+".hash_policies")
	if names := a.GetHashPolicy(); len(names) > 0 {
		if len(own) > 0 {
			c.refuse(path+".hash_policy", "does not go with hash_policies")
		}
		if len(names) > maxHashParts {
			c.refuse(path+".hash_policy", "at most %d entries, has %d", maxHashParts, len(names))
		}
		for i, name := range names {
			if name == "" {
				c.refuse(element(path+".hash_policy", i), "must not be empty")
			}
			own = append(own, hashPart{property: name})
		}
	}
	switch {
	case len(own) > 0:
		return &Hash{own}
	case len(table.parts) > 0:
		return table
	}
	return nil
}

func (c *compiler) hashParts(from []*routev1alpha.HashPolicy, path string) (parts []hashPart) {
	if len(from) > maxHashParts {
		c.refuse(path, "at most %d entries, has %d", maxHashParts, len(from))
	}
	for i, p := range from {
		at, part := element(path, i), hashPart{terminal: p.GetTerminal()}
		switch s := p.GetPolicySpecifier().(type) {
		case *routev1alpha.HashPolicy_Metadata_:
			if part.property = s.Metadata.GetName(); part.property == "" {
				c.refuse(at+".metadata.name", "required")
			}
		case *routev1alpha.HashPolicy_SourceIp:
			if !s.SourceIp {
				c.refuse(at+".source_ip", "must be true")
			}
		case *routev1alpha.HashPolicy_Principal:
			if part.principal = s.Principal; !s.Principal {
				c.refuse(at+".principal", "must be true")
			}
		default:
			c.refuse(at, "required: metadata, source_ip or principal")
		}
		parts = append(parts, part)
	}
	return parts
}

func (c *compiler) loadBalancing(from *routev1alpha.LoadBalancing, path string) *consistent.Policy {
	if from == nil {
		return nil
	}
	p := consistent.Default
	size := func(n int) uint32 { return uint32(min(n, consistent.MaxRingSize)) }
	switch lb := from.GetPolicy().(type) {
	case *routev1alpha.LoadBalancing_Maglev_:
		p = consistent.Policy{Algorithm: consistent.Maglev}
		p.TableSize = size(c.number(lb.Maglev.GetTableSize(), path+".maglev.table_size", 2, consistent.MaxTableSize, consistent.DefaultTableSize))
		if !consistent.Prime(p.TableSize) {
			c.refuse(path+".maglev.table_size", "must be a prime, is %d", p.TableSize)
		}
	case *routev1alpha.LoadBalancing_RingHash_:
		at, r := path+".ring_hash", lb.RingHash
		p.MinimumRingSize = size(c.number(r.GetMinimumRingSize(), at+".minimum_ring_size", 1, consistent.MaxRingSize, consistent.DefaultMinimumRingSize))
		p.MaximumRingSize = size(c.number(r.GetMaximumRingSize(), at+".maximum_ring_size", 1, consistent.MaxRingSize, consistent.DefaultMaximumRingSize))
		if p.MaximumRingSize < p.MinimumRingSize {
			c.refuse(at+".maximum_ring_size", "must be at least minimum_ring_size, %d, is %d", p.MinimumRingSize, p.MaximumRingSize)
		}
	}
	p.BalanceFactor = size(c.number(from.GetHashBalanceFactor(), path+".hash_balance_factor", 100, 1_000_000, 0))
	return &p
}
