package tracing

import "math/rand/v2"

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

// generate makes a random UUID.
func (id *requestID) generate(rng *rand.Rand) {
	hi, lo := rng.Uint64(), rng.Uint64()
	var b [16]byte
	put64(b[:8], hi)
	put64(b[8:], lo)
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	at := 0
	for i, c := range b {
		switch i {
		case 4, 6, 8, 10:
			id[at] = '-'
			at++
		}
		id[at], id[at+1] = hexDigits[c>>4], hexDigits[c&15]
		at += 2
	}
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
