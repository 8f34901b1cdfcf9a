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
	Late     int64 // open loop: requests that were not sent in their time
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

// closedLoop keeps outstanding requests under way on each of conns
// connections for d, after warm has passed.
func closedLoop(addr string, p *protocol, conns, outstanding int, warm, d time.Duration) (*result, error) {
	var counted atomic.Int64
	var measuring atomic.Bool
	stop := make(chan struct{})
	errs := make(chan error, conns)
	all := make([]*samples, conns)
	var wg sync.WaitGroup
	for i := range conns {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			close(stop)
			return nil, err
		}
		all[i] = &samples{}
		wg.Go(func() {
			if err := oneClosed(c, p, outstanding, all[i], &counted, &measuring, stop); err != nil {
				errs <- err
			}
		})
	}
	time.Sleep(warm)
	measuring.Store(true)
	begin := time.Now()
	before := counted.Load()
	onMeasure(true)
	time.Sleep(d)
	onMeasure(false)
	measuring.Store(false)
	r := &result{Requests: counted.Load() - before, Seconds: time.Since(begin).Seconds()}
	close(stop)
	wg.Wait()
	select {
	case err := <-errs:
		return nil, err
	default:
	}
	r.P50, r.P99 = percentiles(all)
	return r, nil
}

// onMeasure is called at the beginning and the end of what is measured.
var onMeasure = func(bool) {}

func oneClosed(c net.Conn, p *protocol, outstanding int, s *samples, counted *atomic.Int64, measuring *atomic.Bool, stop chan struct{}) error {
	defer c.Close()
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
	stopping := false
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
		keep := measuring.Load()
		if !stopping {
			select {
			case <-stop:
				stopping = true
			default:
			}
		}
		out = out[:0]
		b, k := in, int64(0)
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
			k++
			if keep {
				s.add(now.Sub(sent[id]))
			}
			if stopping {
				left--
				continue
			}
			out = p.request(out, id)
			sent[id] = now
		}
		in = in[:copy(in, b)]
		counted.Add(k)
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
func openLoop(addr string, p *protocol, conns int, rate float64, warm, d time.Duration) (*result, error) {
	all := make([]*samples, conns)
	errs := make(chan error, 2*conns)
	var counted atomic.Int64
	var measuring atomic.Bool
	var wg sync.WaitGroup
	begin := time.Now().Add(50 * time.Millisecond)
	gap := time.Duration(float64(conns) / rate * float64(time.Second))
	for i := range conns {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return nil, err
		}
		all[i] = &samples{}
		first := begin.Add(gap * time.Duration(i) / time.Duration(conns))
		n := int(float64(warm+d) / float64(gap))
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
			defer c.Close()
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
					if measuring.Load() {
						id, _ := p.answer(b[:m])
						s := now.Sub(first.Add(time.Duration(id) * gap))
						all[i].add(s)
						counted.Add(1)
					}
					b = b[m:]
					got++
				}
				in = in[:copy(in, b)]
			}
		})
	}
	time.Sleep(time.Until(begin) + warm)
	measuring.Store(true)
	start := time.Now()
	onMeasure(true)
	wg.Wait()
	onMeasure(false)
	r := &result{Requests: counted.Load(), Seconds: time.Since(start).Seconds()}
	select {
	case err := <-errs:
		return nil, err
	default:
	}
	r.P50, r.P99 = percentiles(all)
	return r, nil
}
