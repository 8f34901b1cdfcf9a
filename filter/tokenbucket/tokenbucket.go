// Package tokenbucket limits how often something may be done: a [Bucket] holds tokens,
// who does it takes one, and time brings new ones. Buckets know no clock: who takes
// tells the time, as [filter.Message.Now] does. They are exact: of all that is taken,
// by however many goroutines at once, never more is granted than a bucket holds at most
// and what has come since, and what was not granted when it could have been comes at
// most a nanosecond late. Nothing is rounded twice, so that it stays so for years.
//
// [filter.Message.Now]: https://pkg.go.dev/github.com/meltemi-mesh/meltemi/filter#Message.Now
package tokenbucket

import (
	"math"
	"math/bits"
	"sync/atomic"
	"time"
)

// Limit is what a bucket grants. Limits that are equal are the same.
type Limit struct {
	// Max tokens are in a bucket at the most, and in a new one. 0 grants nothing.
	Max uint32
	// PerFill tokens come in each Interval: evenly, not all at its end. A bucket whose
	// PerFill or Interval is 0 gets none. What is more than a token a nanosecond counts
	// as that.
	PerFill  uint32
	Interval time.Duration
}

const (
	// Times are counted from bias before 0 until horizon, both many years off, and
	// those beyond count as these.
	bias    = 1 << 57
	horizon = 1 << 59
	// most is what a count of units does not exceed, so that two have a difference.
	most = 1 << 62
	// lag is how far behind others a goroutine may tell the time, as a worker that has
	// been busy does. Who is further behind has a clock that has been put back.
	lag = 10 * time.Second
)

// Rate is a Limit as buckets want it. It does not change, and many may share it.
type Rate struct {
	limit Limit
	// Tokens are counted in units, as many that after t nanoseconds t*num/den of them
	// have come: an integer, if a unit can be that small, and less than most until
	// horizon.
	token    uint64 // units of one
	num, den uint64
	full     int64 // units of Max tokens
	lag      int64 // units that come in lag
}

// NewRate returns the rate of l.
func NewRate(l Limit) *Rate {
	r := &Rate{limit: l, token: 1, den: 1}
	if l.PerFill > 0 && l.Interval > 0 {
		i := min(uint64(l.Interval), horizon)
		p := min(uint64(l.PerFill), i)
		g := gcd(p, i)
		p, i = p/g, i/g
		r.token, r.num = i, p
		if finest := min(i*(most/horizon)/p, most/max(uint64(l.Max), 1)); finest < i {
			r.token, r.num, r.den = finest, p*finest, i
		}
	}
	r.full = int64(r.token) * int64(l.Max)
	r.lag, _ = r.came(uint64(lag))
	return r
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// Limit returns what r was made of.
func (r *Rate) Limit() Limit { return r.limit }

// Fill returns how long it takes an empty bucket to be full, at most; the longest time there
// is if it never is, or later.
func (r *Rate) Fill() time.Duration {
	if r.full == 0 {
		return 0
	}
	if r.num == 0 {
		return math.MaxInt64
	}
	hi, lo := bits.Mul64(uint64(r.full), r.den)
	if hi >= r.num {
		return math.MaxInt64
	}
	t, rest := bits.Div64(hi, lo, r.num)
	if rest > 0 {
		t++
	}
	return time.Duration(min(t, math.MaxInt64))
}

// came returns the units that have come until t, rounded down and up.
func (r *Rate) came(t uint64) (down, up int64) {
	hi, lo := bits.Mul64(t, r.num)
	n, rest := lo, uint64(0)
	if r.den != 1 {
		n, rest = bits.Div64(hi, lo, r.den)
	}
	down, up = int64(n), int64(n)
	if rest != 0 {
		up++
	}
	return down, up
}

func (r *Rate) at(now time.Duration) (down, up int64) {
	return r.came(uint64(min(max(now, -bias), horizon-bias) + bias))
}

// Bucket is what may be taken of. It is one atomic number: any goroutine may call its
// methods, and none waits. It must not be copied.
type Bucket struct {
	rate *Rate
	// taken is what had come when the bucket would have been empty: what has come since
	// is in it, but for what is more than it holds.
	taken atomic.Int64
}

// New returns a full bucket.
func New(r *Rate) *Bucket {
	b := &Bucket{}
	b.Init(r)
	return b
}

// Init makes b a full bucket. Nobody may use it meanwhile.
func (b *Bucket) Init(r *Rate) {
	b.rate = r
	b.taken.Store(-most)
}

// Rate returns that of b.
func (b *Bucket) Rate() *Rate { return b.rate }

// Take takes n tokens, at least one, if there are as many, else none. now is a monotonic time since
// any point, the same for all who take. Who is up to 10 s behind the others finds what
// was there then, less what has been taken since. Who is further behind has a clock that
// has been put back: the bucket is empty then, and fills from there.
func (b *Bucket) Take(now time.Duration, n uint32) bool {
	r := b.rate
	if n > r.limit.Max {
		return false
	}
	cost := int64(r.token) * int64(n)
	down, up := r.at(now)
	for {
		taken := b.taken.Load()
		from := taken
		switch has := down - taken; {
		case has >= r.full:
			from = up - r.full
		case b.putBack(taken, down, up):
			return false
		case has < cost:
			return false
		}
		if b.taken.CompareAndSwap(taken, from+cost) {
			return true
		}
	}
}

// putBack looks whether the clock was put back, and goes on from there.
func (b *Bucket) putBack(taken, down, up int64) bool {
	if taken-down <= b.rate.lag {
		return false
	}
	b.taken.CompareAndSwap(taken, up)
	return true
}

// Return gives n tokens back that Take has given.
func (b *Bucket) Return(n uint32) { b.taken.Add(-int64(b.rate.token) * int64(n)) }

// Full reports whether b is as good as new: it may be forgotten.
func (b *Bucket) Full(now time.Duration) bool {
	taken := b.taken.Load()
	down, up := b.rate.at(now)
	return !b.putBack(taken, down, up) && down-taken >= b.rate.full
}
