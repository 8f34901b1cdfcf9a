package route

import (
	"math/rand/v2"
	"time"

	"github.com/meltemi-mesh/meltemi/filter/fields"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

const (
	// maxMirrors are the policies of one route.
	maxMirrors = 16

	mirrorBytes      = 64 << 10
	mirrorRequests   = 100
	mirrorTimeout    = 5 * time.Second
	maxMirrorTimeout = time.Hour
)

// Mirror is one frozen RequestMirrorPolicy.
type Mirror struct {
	// Cluster that gets the copies.
	Cluster string
	// AfterMutation: copies have the changes of filters and route.
	AfterMutation bool
	// Compare: how both answers end is compared.
	Compare bool
	// MaxRequestBytes is the largest request that is copied, MaxRequests how many
	// copies for the cluster may be on their way on a worker.
	MaxRequestBytes, MaxRequests int
	// Timeout of a copy.
	Timeout time.Duration

	share fields.Fraction
}

// Picks decides whether a request is copied, by a random number unless all are.
func (m *Mirror) Picks(rng *rand.Rand) bool {
	return m.share.Share == m.share.Of || m.share.Has(rng.Uint64())
}

// mirrors leaves policies out that no request falls under.
func (c *compiler) mirrors(from []*routev1alpha.RouteAction_RequestMirrorPolicy, path string) (ms []Mirror) {
	if len(from) > maxMirrors {
		c.refuse(path, "at most %d entries, has %d", maxMirrors, len(from))
	}
	if codecs, ok := c.env.Mutator.(interface{ CheckMirror() error }); ok && len(from) > 0 {
		if err := codecs.CheckMirror(); err != nil {
			c.refuse(path, "%v", err)
		}
	}
	for i, p := range from {
		if m := c.mirror(p, element(path, i)); m.share.Share > 0 {
			ms = append(ms, m)
		}
	}
	return ms
}

func (c *compiler) mirror(from *routev1alpha.RouteAction_RequestMirrorPolicy, path string) Mirror {
	m := Mirror{
		Cluster: from.GetCluster(), AfterMutation: from.GetAfterMutation(), Compare: from.GetCompare(),
		MaxRequestBytes: c.number(from.GetMaxRequestBytes(), path+".max_request_bytes", 1, 1<<30, mirrorBytes),
		MaxRequests:     c.number(from.GetMaxRequests(), path+".max_requests", 1, 1<<16, mirrorRequests),
		Timeout:         mirrorTimeout,
		share:           fields.Fraction{Share: 1, Of: 1},
	}
	if m.Cluster == "" {
		c.refuse(path+".cluster", "required")
	}
	if f := from.GetRuntimeFraction(); f != nil {
		m.share = c.fraction(f, path+".runtime_fraction")
	}
	if d := from.GetTimeout(); d != nil {
		m.Timeout = d.AsDuration()
		if err := d.CheckValid(); err != nil || m.Timeout < time.Millisecond || m.Timeout > maxMirrorTimeout {
			c.refuse(path+".timeout", "must be between %v and %v, is %v", time.Millisecond, maxMirrorTimeout, m.Timeout)
		}
	}
	return m
}
