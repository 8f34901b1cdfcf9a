package tracing

import (
	"encoding/binary"
	"math/rand/v2"

	"github.com/meltemi-mesh/meltemi/filter/facts"
)

// Request ids are Envoy's: UUIDs whose first 8 digits decide, together with the shares
// of a configuration, whether the request is traced, at each hop alike, and whose version
// says that somebody has decided, and why.
const (
	idLength = 36
	reasonAt = 14 // the version
)

// requestID is one that is as Envoy's.
type requestID [idLength]byte

// Reason is why a request is traced.
type reason byte

const (
	untraced       reason = '4'
	randomSampling reason = '9'
	serviceForced  reason = 'a'
	clientForced   reason = 'b'
)

// number is what decides about the request, of shares. It reports false of what is none
// of Envoy's ids.
func number(id []byte) (uint64, bool) {
	if len(id) != idLength {
		return 0, false
	}
	n := uint64(0)
	for _, c := range id[:8] {
		if c >= 'A' && c <= 'F' {
			c |= 0x20
		}
		d, ok := digit(c)
		if !ok {
			return 0, false
		}
		n = n<<4 | uint64(d)
	}
	return n % shares, true
}

// reason is what the id says; untraced also if nobody has decided.
func (id *requestID) reason() reason {
	switch r := reason(id[reasonAt]); r {
	case randomSampling, serviceForced, clientForced:
		return r
	default:
		return untraced
	}
}

func (id *requestID) pack(r reason) { id[reasonAt] = byte(r) }

// generate makes a random UUID, and returns its number.
func (id *requestID) generate(rng *rand.Rand) uint64 {
	hi, lo := rng.Uint64(), rng.Uint64()
	hi = hi&^0xf000 | 0x4000
	lo = lo&^(0xc0<<56) | 0x80<<56
	put64(id[:], facts.Hex(uint32(hi>>32)))
	id.part(8, 13, facts.Hex(uint32(hi)))
	id.part(18, 23, facts.Hex(uint32(lo>>32)))
	put64(id[28:], facts.Hex(uint32(lo)))
	return (hi >> 32) % shares
}

// part has two groups of four digits, each behind a dash.
func (id *requestID) part(first, second int, digits uint64) {
	id[first], id[second] = '-', '-'
	binary.BigEndian.PutUint32(id[first+1:], uint32(digits>>32))
	binary.BigEndian.PutUint32(id[second+1:], uint32(digits))
}

// decide is Envoy's decision about a request: by what its id says already, by what it
// asks for, or, with told, by what the trace says that it is part of; else by its number.
func (c *Config) decide(said reason, n uint64, a *asked, told *bool, rng *rand.Rand) reason {
	r := said
	switch {
	case r != untraced:
	case a.values[keyClientTraceID] != nil && rng.Uint64()%shares < c.client:
		r = clientForced
	case a.values[keyForceTrace] != nil:
		r = serviceForced
	case told != nil:
		if *told {
			r = randomSampling
		}
	case n < c.random:
		r = randomSampling
	}
	if n >= c.overall {
		return untraced
	}
	return r
}
