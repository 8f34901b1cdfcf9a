package main

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"time"
)

// turn is what was measured of a target while it had load.
type turn struct {
	cpu, rate, p50, p99 float64 // µs per request, requests a second, µs
}

// series is what was measured of a target in a scenario: its turns in each life of its
// process.
type series struct {
	target    string
	lives     [][]turn
	upstreams int
	out       bool // it has failed
}

// comparison is a scenario in which targets take turns: each has load for a moment over
// connections that stay, while the others have nothing to do. What drifts hits all alike.
type comparison struct {
	scenario
	pr       *protocol
	series   []*series
	openRate float64   // requests a second, of an open loop
	others   []float64 // which part of the machine others took, in each round
}

func newComparison(pr *protocol, sc scenario) *comparison {
	c := &comparison{scenario: sc, pr: pr}
	targets := pr.targets
	if sc.targets != nil {
		targets = sc.targets
	}
	for _, t := range targets {
		if !chosen(*only, t) {
			continue
		}
		c.series = append(c.series, &series{target: t})
		if *beforePath != "" && strings.HasPrefix(t, "meltemi") {
			c.series = append(c.series, &series{target: t + beforeSuffix})
		}
	}
	return c
}

// warm is for how long a target has load before each of its turns.
const warm = 20 * time.Millisecond

// player is a target that takes turns.
type player struct {
	*series
	proxy *proxy
	conns []net.Conn
	last  turn
}

// measure has the proxies of a life take their turns. rate is that of an open loop.
func (c *comparison) measure(ps []*proxy, rate float64) error {
	c.openRate = rate
	var players []*player
	for _, s := range c.series {
		i := slices.IndexFunc(ps, func(p *proxy) bool { return p.name == s.target })
		if i < 0 || s.out {
			continue
		}
		conns, err := dial(ps[i].addr, c.conns)
		defer hangUp(conns)
		if err != nil {
			return fmt.Errorf("%s: %w", s.target, err)
		}
		s.lives = append(s.lives, nil)
		players = append(players, &player{series: s, proxy: ps[i], conns: conns})
	}
	rounds, d := *runs, *duration
	if c.open { // of fewer requests there is no p99
		rounds, d = (rounds+4)/5, 5*d
	}
	for range rounds {
		slices.Reverse(players) // nobody is always behind the same one
		m := watch()
		var used time.Duration
		for _, p := range players {
			if p.out {
				continue
			}
			cpu, err := c.turn(p, d)
			if err != nil && strings.HasPrefix(p.target, "meltemi") {
				return fmt.Errorf("%s: %w", p.target, err)
			}
			if err != nil {
				// dubbo_proxy loses connections when it cannot keep up. What it still has to do
				// would take the processors from those behind it.
				fmt.Printf("%s left out of %s: %v\n", p.target, c.name, err)
				p.proxy.stop()
				p.out, p.proxy.gone = true, true
			}
			used += cpu
		}
		c.others = append(c.others, m.others(used))
		for _, p := range players {
			if n := len(p.lives) - 1; !p.out {
				p.lives[n] = append(p.lives[n], p.last)
			}
		}
	}
	for _, p := range players {
		p.upstreams = p.proxy.upstreams()
	}
	return nil
}

// turn measures one turn of p, and returns what its process has used for it, the warming
// included.
func (c *comparison) turn(p *player, d time.Duration) (cpu time.Duration, err error) {
	cold := p.proxy.cpu()
	if _, err := c.load(p.conns, warm); err != nil {
		return 0, err
	}
	before := p.proxy.cpu()
	r, err := c.load(p.conns, d)
	if err != nil {
		return 0, err
	}
	after := p.proxy.cpu()
	p.last = turn{micros(after-before) / float64(r.Requests), r.rate(), micros(r.P50), micros(r.P99)}
	return after - cold, nil
}

// load has requests under way for d.
func (c *comparison) load(conns []net.Conn, d time.Duration) (*result, error) {
	if c.open {
		return openLoop(conns, c.pr, c.openRate, d)
	}
	return closedLoop(conns, c.pr, c.outstanding, d)
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

// saturate returns the rate of p with one request under way on each of n connections.
func saturate(p *proxy, pr *protocol, n int) (float64, error) {
	conns, err := dial(p.addr, n)
	defer hangUp(conns)
	if err != nil {
		return 0, err
	}
	if _, err := closedLoop(conns, pr, 1, 10*warm); err != nil {
		return 0, err
	}
	r, err := closedLoop(conns, pr, 1, time.Second)
	if err != nil {
		return 0, err
	}
	return r.rate(), nil
}

func dial(addr string, n int) (conns []net.Conn, err error) {
	for range n {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return conns, err
		}
		conns = append(conns, c)
	}
	return conns, nil
}

func hangUp(conns []net.Conn) {
	for _, c := range conns {
		c.Close()
	}
}
