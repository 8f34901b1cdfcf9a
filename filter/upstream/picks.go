package upstream

import "slices"

const (
	// maxPicked is how many of the load balancer's last picks a pool remembers.
	maxPicked = 96
	// enoughPicked of them show a period that is no accident.
	enoughPicked = 16
)

// picks are the hosts to which the load balancer sent a pool's connections, in
// the order in which it was asked. Round robin, weighted or not, repeats itself;
// once that shows, one period tells the hosts' shares exactly, while counts that
// stop in the middle of a period favour whoever came first in it.
type picks struct{ last []pickOf }

// pickOf is the host that one attempt to connect led to.
type pickOf struct {
	attempt int
	host    string
}

// add enters a pick. Those of connections that take longer to become ready come
// later than the picks behind them.
func (ps *picks) add(attempt int, host string) {
	i := len(ps.last)
	for i > 0 && ps.last[i-1].attempt > attempt {
		i--
	}
	ps.last = slices.Insert(ps.last, i, pickOf{attempt, host})
	if len(ps.last) > maxPicked {
		ps.last = slices.Delete(ps.last, 0, 1)
	}
}

func (ps *picks) forget() { ps.last = ps.last[:0] }

// period returns the picks of one period, nil if none shows.
func (ps *picks) period() []pickOf {
	n := len(ps.last)
	for p := 1; 2*p <= n; p++ {
		// Two repetitions while that is all there is, later three: what is
		// random repeats itself for a short while, too.
		window := ps.last[n-min(n, max(3*p, enoughPicked)):]
		repeats := true
		for i := p; i < len(window) && repeats; i++ {
			repeats = window[i].host == window[i-p].host
		}
		if repeats {
			return ps.last[n-p:]
		}
	}
	return nil
}

// shares sets the shares of hosts according to the period, if one shows. One that
// lacks a host of few picks is too short to be the load balancer's, or has none
// yet of a host whose connections take longer to become ready; later the host
// has been replaced.
func (ps *picks) shares(hosts []string, shares []float64) (ok bool) {
	period := ps.period()
	for i, h := range hosts {
		shares[i] = 0
		for _, p := range period {
			if p.host == h {
				shares[i] += 1 / float64(len(period))
			}
		}
		if shares[i] == 0 && len(ps.last) < enoughPicked {
			return false
		}
	}
	return len(period) > 0
}
