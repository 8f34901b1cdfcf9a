package main

import (
	"fmt"
	"slices"
)

// row is what a target took in a scenario: medians.
type row struct {
	Protocol, Scenario, Target string
	Workers                    int
	CPU                        float64 // µs per request
	Rate                       float64
	P50, P99                   float64 // µs
	Upstreams                  int
}

// goal is how much of another target's a target may take.
type goal struct {
	target, of string
	atMost     float64
}

func (s *series) median(what func(turn) float64) float64 {
	var all []float64
	for _, l := range s.lives {
		for _, t := range l {
			all = append(all, what(t))
		}
	}
	return median(all)
}

func turnCPU(t turn) float64 { return t.cpu }
func turnP99(t turn) float64 { return t.p99 }

// report prints what was measured, and returns goals that were missed.
func (c *comparison) report() (rows []row, missed []string) {
	by := "1 worker"
	if *workers > 1 {
		by = fmt.Sprintf("%d workers", *workers)
	}
	fmt.Printf("\n%s %s (%s, %d lives of %d rounds; others took %.0f %% of the machine)\n\n", c.pr.name, c.name, by, *lives, len(c.others) / *lives, 100*median(c.others))
	if c.open {
		fmt.Printf("open loop at %.0f requests/s\n\n", c.openRate)
	}
	reference := c.find("tcp_proxy")
	if reference == nil {
		reference = c.find("meltemi")
	}
	of := ""
	if reference != nil {
		of = "of " + reference.target
	}
	fmt.Printf("| target | CPU µs/req | %s | req/s | p50 µs | p99 µs | upstream |\n|---|---|---|---|---|---|---|\n", of)
	for _, s := range c.series {
		if c.find(s.target) == nil {
			continue
		}
		r := row{
			c.pr.name, c.name, s.target, *workers, s.median(turnCPU),
			s.median(func(t turn) float64 { return t.rate }), s.median(func(t turn) float64 { return t.p50 }), s.median(turnP99), s.upstreams,
		}
		ratio := ""
		if reference != nil && s != reference && r.CPU > 0 {
			ratio = ratioOf(s, reference, turnCPU).String()
		}
		fmt.Printf("| %s | %.2f | %s | %.0f | %.0f | %.0f | %d |\n", r.Target, r.CPU, ratio, r.Rate, r.P50, r.P99, r.Upstreams)
		rows = append(rows, r)
	}
	fmt.Println()
	for _, s := range c.series {
		c.compare("CPU", turnCPU, goal{s.target, s.target + beforeSuffix, 0})
	}
	for _, g := range c.goals {
		missed = append(missed, c.compare("CPU", turnCPU, g)...)
	}
	for _, g := range c.p99 {
		missed = append(missed, c.compare("p99", turnP99, g)...)
	}
	return rows, missed
}

// compare prints how two targets compare, if they have been, and returns that as missed if
// there is a goal which it is above.
func (c *comparison) compare(name string, what func(turn) float64, g goal) (missed []string) {
	a, b := c.find(g.target), c.find(g.of)
	if a == nil || b == nil {
		return nil
	}
	r := ratioOf(a, b, what)
	line := fmt.Sprintf("%s %s: %s of %s is %v of %s's", c.pr.name, c.name, name, g.target, r, g.of)
	if g.atMost > 0 {
		line += fmt.Sprintf(", goal %.2f", g.atMost)
	}
	fmt.Println(line)
	if g.atMost > 0 && r.is > g.atMost {
		missed = append(missed, line)
	}
	return missed
}

// find returns what was measured of a target, nil if nothing was.
func (c *comparison) find(target string) *series {
	i := slices.IndexFunc(c.series, func(s *series) bool { return s.target == target && !s.out && len(s.lives) > 0 })
	if i < 0 {
		return nil
	}
	return c.series[i]
}
