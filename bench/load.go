package main

import (
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// result is what one run of load saw.
type result struct {
	Requests int64
	Seconds  float64
	P50, P99 time.Duration
}

func (r *result) rate() float64 { return float64(r.Requests) / r.Seconds }

// samples holds latencies for percentiles; every run keeps up to maxSamples of
// each connection's, the last ones.
const maxSamples = 1 << 17

type samples struct {
	at []uint32 // ns
	n  int
}

func (s *samples) add(d time.Duration) {
	v := uint32(min(d, 1<<32-1))
	if len(s.at) < maxSamples {
		s.at = append(s.at, v)
	} else {
		s.at[s.n%maxSamples] = v
	}
	s.n++
}

func percentiles(all []*samples) (p50, p99 time.Duration) {
	var v []uint32
	for _, s := range all {
		v = append(v, s.at...)
	}
	if len(v) == 0 {
		return 0, 0
	}
	slices.Sort(v)
	return time.Duration(v[len(v)/2]), time.Duration(v[len(v)*99/100])
}

// closedLoop keeps outstanding requests under way on each of conns for d. All of them are
// answered when it returns.
func closedLoop(conns []net.Conn, p *protocol, outstanding int, d time.Duration) (*result, error) {
	var stopping atomic.Bool
	errs := make(chan error, len(conns))
	all := make([]*samples, len(conns))
	begin := time.Now()
	var wg sync.WaitGroup
	for i, c := range conns {
		all[i] = &samples{}
		wg.Go(func() {
			if err := oneClosed(c, p, outstanding, all[i], &stopping); err != nil {
				errs <- err
			}
		})
	}
	time.Sleep(d)
	stopping.Store(true)
	wg.Wait()
	return resultOf(all, begin, errs)
}

// resultOf is what there was since begin, or the first error.
func resultOf(all []*samples, begin time.Time, errs <-chan error) (*result, error) {
	r := &result{Seconds: time.Since(begin).Seconds()}
	select {
	case err := <-errs:
		return nil, err
	default:
	}
	for _, s := range all {
		r.Requests += int64(s.n)
	}
	r.P50, r.P99 = percentiles(all)
	return r, nil
}

func oneClosed(c net.Conn, p *protocol, outstanding int, s *samples, stopping *atomic.Bool) error {
	sent := make([]time.Time, outstanding)
	out := make([]byte, 0, 1024*outstanding)
	in := make([]byte, 0, 64<<10)
	now := time.Now()
	for i := range outstanding {
		out = p.request(out, uint64(i))
		sent[i] = now
	}
	if _, err := c.Write(out); err != nil {
		return err
	}
	left := outstanding
	for left > 0 {
		if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		n, err := c.Read(in[len(in):cap(in)])
		if err != nil {
			return fmt.Errorf("%d answers are missing: %w", left, err)
		}
		in = in[:len(in)+n]
		now := time.Now()
		stop := stopping.Load()
		out = out[:0]
		b := in
		for {
			n := p.next(b)
			if n == 0 {
				break
			}
			id, ok := p.answer(b[:n])
			if id >= uint64(outstanding) || !ok {
				return fmt.Errorf("unexpected answer: id %d, success %t", id, ok)
			}
			b = b[n:]
			s.add(now.Sub(sent[id]))
			if stop {
				left--
				continue
			}
			out = p.request(out, id)
			sent[id] = now
		}
		in = in[:copy(in, b)]
		if len(out) > 0 {
			if _, err := c.Write(out); err != nil {
				return err
			}
		}
	}
	return nil
}

// openLoop sends rate requests a second over conns connections, whether or not
// answers come, and measures from the moment at which a request was due.
func openLoop(conns []net.Conn, p *protocol, rate float64, d time.Duration) (*result, error) {
	all := make([]*samples, len(conns))
	errs := make(chan error, 2*len(conns))
	var wg sync.WaitGroup
	begin := time.Now().Add(5 * time.Millisecond)
	gap := time.Duration(float64(len(conns)) / rate * float64(time.Second))
	for i, c := range conns {
		all[i] = &samples{}
		first := begin.Add(gap * time.Duration(i) / time.Duration(len(conns)))
		n := int(float64(d) / float64(gap))
		wg.Go(func() {
			var out []byte
			for k := range n {
				if wait := time.Until(first.Add(time.Duration(k) * gap)); wait > 0 {
					time.Sleep(wait)
				}
				out = p.request(out[:0], uint64(k))
				if _, err := c.Write(out); err != nil {
					errs <- err
					return
				}
			}
		})
		wg.Go(func() {
			in := make([]byte, 0, 64<<10)
			for got := 0; got < n; {
				c.SetReadDeadline(time.Now().Add(10 * time.Second))
				m, err := c.Read(in[len(in):cap(in)])
				if err != nil {
					errs <- fmt.Errorf("%d answers are missing: %w", n-got, err)
					return
				}
				in = in[:len(in)+m]
				now := time.Now()
				b := in
				for {
					m := p.next(b)
					if m == 0 {
						break
					}
					id, _ := p.answer(b[:m])
					all[i].add(now.Sub(first.Add(time.Duration(id) * gap)))
					b = b[m:]
					got++
				}
				in = in[:copy(in, b)]
			}
		})
	}
	wg.Wait()
	return resultOf(all, begin, errs)
}
