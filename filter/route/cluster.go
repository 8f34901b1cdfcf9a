package route

import (
	"math"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meltemi-mesh/meltemi/filter/breaker"
	"github.com/meltemi-mesh/meltemi/filter/lightest"
	"github.com/meltemi-mesh/meltemi/filter/outlier"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// Cluster is what a table says of requests to one cluster. It must not be changed.
type Cluster struct {
	// Outliers says which hosts are left out, nil: none.
	Outliers *outlier.Policy
	// Breakers says how much may be under way, nil: there is no limit.
	Breakers *breaker.Policy
	// Lightest says how requests without a hash choose hosts, nil: by their weights.
	Lightest *lightest.Policy
	balanced bool // it has a policy of load balancing
}

const (
	anyCluster  = "*"
	maxClusters = 10_000
	maxKeyNames = 8
	most        = math.MaxInt32
)

// Cluster returns what the table says of requests to a cluster, nil if nothing.
func (t *Table) Cluster(name string) *Cluster {
	if t.clusters == nil {
		return nil
	}
	if c := t.clusters[name]; c != nil {
		return c
	}
	return t.clusters[anyCluster]
}

// cluster adds to a table's clusters what from says of one.
func (c *compiler) cluster(to map[string]*Cluster, from *routev1alpha.ClusterPolicy, path string) map[string]*Cluster {
	if from.GetOutlierDetection() == nil && from.GetCircuitBreakers() == nil && from.GetLoadBalancing() == nil {
		return to
	}
	if to == nil {
		to = map[string]*Cluster{}
	}
	to[from.GetName()] = &Cluster{
		Outliers: c.outliers(from.GetOutlierDetection(), path+".outlier_detection"),
		Breakers: c.breakers(from.GetCircuitBreakers(), path+".circuit_breakers"),
		Lightest: c.lightest(from.GetLoadBalancing(), path+".load_balancing"),
		balanced: from.GetLoadBalancing() != nil,
	}
	return to
}

// inherit gives clusters what those without a policy of their own have, where theirs
// says nothing.
func inherit(clusters map[string]*Cluster) {
	rest := clusters[anyCluster]
	if rest == nil {
		return
	}
	for _, c := range clusters {
		if c.Outliers == nil {
			c.Outliers = rest.Outliers
		}
		if c.Breakers == nil {
			c.Breakers = rest.Breakers
		}
		if !c.balanced {
			c.Lightest = rest.Lightest
		}
	}
}

func (c *compiler) outliers(from *routev1alpha.OutlierDetection, path string) *outlier.Policy {
	if from == nil {
		return nil
	}
	p := &outlier.Policy{
		ConsecutiveFailures: c.number(from.GetConsecutiveFailures(), path+".consecutive_failures", 1, most, 5),
		FailurePercent:      c.number(from.GetFailurePercentageThreshold(), path+".failure_percentage_threshold", 1, 100, 0),
		RequestVolume:       c.number(from.GetFailurePercentageRequestVolume(), path+".failure_percentage_request_volume", 1, most, 50),
		Silence:             c.duration(from.GetSilence(), path+".silence", 0),
		Interval:            c.window(from.GetInterval(), path+".interval"),
		BaseEjectionTime:    c.duration(from.GetBaseEjectionTime(), path+".base_ejection_time", 30*time.Second),
		MaxEjectionPercent:  c.number(from.GetMaxEjectionPercent(), path+".max_ejection_percent", 0, 100, 10),
	}
	p.MaxEjectionTime = c.duration(from.GetMaxEjectionTime(), path+".max_ejection_time", max(300*time.Second, p.BaseEjectionTime))
	if p.MaxEjectionTime < p.BaseEjectionTime {
		c.refuse(path+".max_ejection_time", "must be at least base_ejection_time, %v, is %v", p.BaseEjectionTime, p.MaxEjectionTime)
	}
	if from.GetFailurePercentageRequestVolume() != nil && from.GetFailurePercentageThreshold() == nil {
		c.refuse(path+".failure_percentage_request_volume", "needs failure_percentage_threshold")
	}
	return p
}

func (c *compiler) lightest(from *routev1alpha.LoadBalancing, path string) *lightest.Policy {
	switch lb := from.GetPolicy().(type) {
	case *routev1alpha.LoadBalancing_LeastRequest_:
		at := path + ".least_request.choice_count"
		return &lightest.Policy{Choices: c.number(lb.LeastRequest.GetChoiceCount(), at, 2, lightest.MaxChoices, lightest.DefaultChoices)}
	case *routev1alpha.LoadBalancing_PeakEwma_:
		at := path + ".peak_ewma.decay_time"
		d := c.duration(lb.PeakEwma.GetDecayTime(), at, lightest.DefaultDecay)
		if d > lightest.MaxDecay {
			c.refuse(at, "must be at most %v, is %v", lightest.MaxDecay, d)
		}
		return &lightest.Policy{Choices: lightest.DefaultChoices, Decay: d}
	}
	return nil
}

func (c *compiler) breakers(from *routev1alpha.CircuitBreakers, path string) *breaker.Policy {
	if from == nil {
		return nil
	}
	p := &breaker.Policy{
		Requests:    c.limit(from.GetMaxRequests(), path+".max_requests"),
		Pending:     c.limit(from.GetMaxPendingRequests(), path+".max_pending_requests"),
		Connections: c.number(from.GetMaxConnections(), path+".max_connections", 1, most, breaker.Unlimited),
	}
	if n := len(from.GetKeys()); n > breaker.MaxKeyPolicies {
		c.refuse(path+".keys", "at most %d, has %d", breaker.MaxKeyPolicies, n)
		return p
	}
	ids := map[string]bool{}
	for i, k := range from.GetKeys() {
		at := element(path+".keys", i)
		kp := c.key(k, at)
		id := strings.ToLower(strings.Join(kp.Names, "\x00"))
		if ids[id] {
			c.refuse(at+".names", "a breaker before has the same")
		}
		ids[id] = true
		p.Keys = append(p.Keys, kp)
	}
	return p
}

func (c *compiler) key(from *routev1alpha.KeyBreaker, path string) breaker.KeyPolicy {
	p := breaker.KeyPolicy{
		Names:           from.GetNames(),
		MaxRequests:     c.limit(from.GetMaxRequests(), path+".max_requests"),
		ErrorPercent:    c.number(from.GetErrorPercent(), path+".error_percent", 1, 100, 0),
		SlowPercent:     c.number(from.GetSlowPercent(), path+".slow_percent", 1, 100, 0),
		SlowThreshold:   c.duration(from.GetSlowThreshold(), path+".slow_threshold", 0),
		MinimumRequests: c.number(from.GetMinimumRequests(), path+".minimum_requests", 1, most, 20),
		Interval:        c.window(from.GetInterval(), path+".interval"),
		OpenTime:        c.duration(from.GetOpenTime(), path+".open_time", 5*time.Second),
		MaxKeys:         c.number(from.GetMaxKeys(), path+".max_keys", 1, 1<<20, 4096),
	}
	if n := len(p.Names); n == 0 || n > maxKeyNames {
		c.refuse(path+".names", "must be 1 to %d, has %d", maxKeyNames, n)
	}
	names := map[string]bool{}
	for i, name := range p.Names {
		name = strings.ToLower(name)
		switch {
		case name == "":
			c.refuse(element(path+".names", i), "required")
		case names[name]:
			c.refuse(element(path+".names", i), "is there twice")
		}
		names[name] = true
	}
	switch slow := from.GetSlowPercent() != nil; {
	case slow && from.GetSlowThreshold() == nil:
		c.refuse(path+".slow_threshold", "required, as there is slow_percent")
	case !slow && from.GetSlowThreshold() != nil:
		c.refuse(path+".slow_threshold", "needs slow_percent")
	case !slow && from.GetErrorPercent() == nil && from.GetMaxRequests() == nil:
		c.refuse(path, "limits nothing: max_requests, error_percent or slow_percent required")
	}
	return p
}

// limit is a number of things that may be there.
func (c *compiler) limit(n *wrapperspb.UInt32Value, path string) int {
	return c.number(n, path, 0, most, breaker.Unlimited)
}

// window is a time over which something is counted.
func (c *compiler) window(d *durationpb.Duration, path string) time.Duration {
	const least, longest = 100 * time.Millisecond, time.Hour
	w := c.duration(d, path, 10*time.Second)
	if w >= time.Millisecond && (w < least || w > longest) {
		c.refuse(path, "must be between %v and %v, is %v", least, longest, w)
	}
	return w
}
