package route

import (
	"math"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meltemi-mesh/meltemi/filter/breaker"
	"github.com/meltemi-mesh/meltemi/filter/consistent"
	"github.com/meltemi-mesh/meltemi/filter/lightest"
	"github.com/meltemi-mesh/meltemi/filter/outlier"
	"github.com/meltemi-mesh/meltemi/filter/upstream"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// Cluster is what a table says of requests to one cluster. It must not be changed.
type Cluster struct {
	// Budget bounds the retries. Never nil.
	Budget *upstream.Budget
	// Hashing is how hashes are mapped to hosts. Never nil.
	Hashing *consistent.Policy
	// Outliers says which hosts are left out, nil: none.
	Outliers *outlier.Policy
	// Breakers says how much may be under way, nil: there is no limit.
	Breakers *breaker.Policy
	// Lightest says how requests without a hash choose hosts, nil: by their weights.
	Lightest *lightest.Policy
}

// silent is of clusters of which nothing is said.
var silent = Cluster{Budget: &upstream.DefaultBudget, Hashing: &consistent.Default}

const (
	anyCluster  = "*"
	maxClusters = 10_000
	maxKeyNames = 8
	most        = math.MaxInt32
)

// Cluster returns what the table, which may be nil, says of requests to a cluster.
func (t *Table) Cluster(name string) *Cluster {
	if t == nil {
		return &silent
	}
	if c := t.clusters[name]; c != nil {
		return c
	}
	return t.others
}

// clusters compiles what a table says of clusters: those that it names, and others.
func (c *compiler) clusters(from []*routev1alpha.ClusterPolicy) (named map[string]*Cluster, others *Cluster) {
	if n := len(from); n > maxClusters {
		c.refuse("clusters", "at most %d, has %d", maxClusters, n)
		return nil, &silent
	}
	if len(from) > 0 {
		named = map[string]*Cluster{}
	}
	for i, cl := range from {
		at := element("clusters", i)
		switch name := cl.GetName(); {
		case name == "":
			c.refuse(at+".name", "required")
		case named[name] != nil:
			c.refuse(at+".name", "%q has a policy already", name)
		}
		named[cl.GetName()] = &Cluster{
			Budget:   c.budget(cl.GetRetryBudget(), at+".retry_budget"),
			Hashing:  c.loadBalancing(cl.GetLoadBalancing(), at+".load_balancing"),
			Outliers: c.outliers(cl.GetOutlierDetection(), at+".outlier_detection"),
			Breakers: c.breakers(cl.GetCircuitBreakers(), at+".circuit_breakers"),
			Lightest: c.lightest(cl.GetLoadBalancing(), at+".load_balancing"),
		}
	}
	others = &silent
	if rest := named[anyCluster]; rest != nil {
		rest.inherit(others)
		others = rest
	}
	for _, cl := range named {
		cl.inherit(others)
	}
	delete(named, anyCluster) // most tables name no other, and are not to look for each request's
	return named, others
}

// inherit takes from others what is not said of the cluster.
func (cl *Cluster) inherit(others *Cluster) {
	if cl.Budget == nil {
		cl.Budget = others.Budget
	}
	if cl.Hashing == nil { // nothing is said of load balancing
		cl.Hashing, cl.Lightest = others.Hashing, others.Lightest
	}
	if cl.Outliers == nil {
		cl.Outliers = others.Outliers
	}
	if cl.Breakers == nil {
		cl.Breakers = others.Breakers
	}
}

func (c *compiler) budget(from *routev1alpha.RetryBudget, path string) *upstream.Budget {
	if from == nil {
		return nil
	}
	b := upstream.DefaultBudget
	if p := from.GetBudgetPercent(); p != nil {
		b.Ratio = c.percent(p, path+".budget_percent", 0, 100) / 100
	}
	b.PerSecond = c.number(from.GetMinRetriesPerSecond(), path+".min_retries_per_second", 0, 1_000_000, b.PerSecond)
	b.Concurrent = c.number(from.GetMaxConcurrentRetries(), path+".max_concurrent_retries", 1, 1_000_000, b.Concurrent)
	return &b
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
