package upstream

// maxPicked is how many of the load balancer's last picks a pool remembers.
const maxPicked = 96

// picks are the hosts to which the load balancer sent a pool's connections, in
// their order. Round robin, weighted or not, repeats itself; once that shows,
// one period tells the hosts' shares exactly, while counts that stop in the
// middle of a period favour whoever came first in it.
type picks struct{ last []string }

func (ps *picks) add(host string) {
	if len(ps.last) == maxPicked {
		ps.last = append(ps.last[:0], ps.last[1:]...)
	}
	ps.last = append(ps.last, host)
}

func (ps *picks) forget() { ps.last = ps.last[:0] }

// period returns the picks of one period, nil if none shows.
func (ps *picks) period() []string {
	n := len(ps.last)
	for p := 1; 2*p <= n; p++ {
		// Two repetitions while that is all there is, later three: what is
		// random repeats itself for a short while, too.
		window := ps.last[n-min(n, max(3*p, 16)):]
		repeats := true
		for i := p; i < len(window) && repeats; i++ {
			repeats = window[i] == window[i-p]
		}
		if repeats {
			return ps.last[n-p:]
		}
	}
	return nil
}

// share returns how often host occurs in a period, and its length.
func share(period []string, host string) (n, sum float64) {
	for _, h := range period {
		if h == host {
			n++
		}
	}
	return n, float64(len(period))
}
