package consistent

// Algorithm is how a table is made.
type Algorithm uint8

const (
	// Ring is ketama's: each host has places on a ring, as many as its weight wants.
	Ring Algorithm = iota
	// Maglev is that of Google's load balancer: hosts take turns at the places of a
	// table.
	Maglev
)

// Bounds and defaults are Envoy's.
const (
	DefaultMinimumRingSize = 1024
	DefaultMaximumRingSize = MaxRingSize
	MaxRingSize            = 8 << 20
	DefaultTableSize       = 65537
	MaxTableSize           = 5_000_011
)

// Policy says how requests are hashed to hosts.
type Policy struct {
	// Algorithm is Ring or Maglev.
	Algorithm Algorithm
	// MinimumRingSize and MaximumRingSize bound the entries of a ring: at least the
	// minimum, unless weights that differ much take more, and at most the maximum. 1
	// to MaxRingSize.
	MinimumRingSize, MaximumRingSize uint32
	// TableSize is Maglev's, a prime up to MaxTableSize.
	TableSize uint32
	// BalanceFactor bounds the requests in flight to a host, in percent of its share
	// of all. 0: it does not; else at least 100.
	BalanceFactor uint32
}

// Default is what counts where nothing is said.
var Default = Policy{MinimumRingSize: DefaultMinimumRingSize, MaximumRingSize: DefaultMaximumRingSize}

// Prime reports whether n is one.
func Prime(n uint32) bool {
	if n < 4 {
		return n > 1
	}
	if n%2 == 0 {
		return false
	}
	for d := uint64(3); d*d <= uint64(n); d += 2 {
		if uint64(n)%d == 0 {
			return false
		}
	}
	return true
}
