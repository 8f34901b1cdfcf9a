package adaptiveconcurrency

import (
	"fmt"
	"slices"
	"strings"
	"time"

	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/keyed"
	"github.com/meltemi-mesh/meltemi/filter/route"
	adaptivev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/adaptive_concurrency/v1alpha"
)

const (
	maxNames        = 8
	maxLimit        = 1_000_000
	defaultMost     = 1000
	defaultInitial  = 20
	defaultLeast    = 3
	defaultMeasure  = 30 * time.Second
	defaultInterval = 100 * time.Millisecond
)

var usual = codecs.LocalError{Type: codecs.OverLimit, Message: "the concurrency limit is reached"}

// config is a frozen AdaptiveConcurrency.
type config struct {
	policy
	reply   codecs.LocalError
	names   keyed.Names
	id      string // of the names
	maxKeys int
}

// parser gathers faults.
type parser struct{ fields.Faults }

func parse(any *anypb.Any, env *filter.Env) (filter.Config, error) {
	m := new(adaptivev1alpha.AdaptiveConcurrency)
	if err := fields.Unpack(any, m); err != nil {
		return nil, err
	}
	p := &parser{}
	c := &config{}
	if m.GetGradientControllerConfig() == nil {
		p.Add("gradient_controller_config", "required")
	}
	c.policy = p.policy(m.GetGradientControllerConfig(), "gradient_controller_config")
	p.keys(c, m.GetKeys())
	var errs []*fields.Error
	c.reply, errs = route.Reply(m.GetConcurrencyLimitExceededStatus(), usual, "concurrency_limit_exceeded_status", env.Codecs)
	for _, err := range errs {
		p.AddAll("", err)
	}
	return c, p.Err()
}

func (p *parser) policy(m *adaptivev1alpha.GradientControllerConfig, path string) policy {
	limit, rtt := m.GetConcurrencyLimitParams(), m.GetMinRttCalcParams()
	limitPath, rttPath := path+".concurrency_limit_params.", path+".min_rtt_calc_params."
	o := policy{
		most:       p.Number(limit.GetMaxConcurrencyLimit(), limitPath+"max_concurrency_limit", 1, maxLimit, defaultMost),
		interval:   p.Duration(limit.GetConcurrencyUpdateInterval(), limitPath+"concurrency_update_interval", time.Millisecond, defaultInterval),
		requests:   p.Number(rtt.GetRequestCount(), rttPath+"request_count", 1, 10_000, 50),
		jitter:     p.percent(rtt.GetJitter(), rttPath+"jitter", 100, 15),
		percentile: p.percent(m.GetSampleAggregatePercentile(), path+".sample_aggregate_percentile", 100, 50),
		tolerance:  1 + p.percent(rtt.GetBuffer(), rttPath+"buffer", 1000, 50),
		measure:    defaultMeasure,
	}
	if o.interval > time.Minute {
		p.Add(limitPath+"concurrency_update_interval", "must be at most %v, is %v", time.Minute, o.interval)
	}
	if o.percentile == 0 {
		p.Add(path+".sample_aggregate_percentile", "must be more than 0")
	}
	o.least = p.Number(rtt.GetMinConcurrency(), rttPath+"min_concurrency", 1, o.most, min(defaultLeast, o.most))
	o.initial = p.Number(limit.GetInitialConcurrencyLimit(), limitPath+"initial_concurrency_limit", o.least, o.most,
		min(max(defaultInitial, o.least), o.most))
	if d := rtt.GetInterval(); d != nil && d.GetSeconds() == 0 && d.GetNanos() == 0 {
		o.measure = 0
	} else {
		o.measure = p.Duration(d, rttPath+"interval", time.Second, defaultMeasure)
	}
	switch fixed := rtt.GetFixedValue(); {
	case o.measure == 0 && fixed == nil:
		p.Add(rttPath+"fixed_value", "required, as interval is 0")
	case o.measure != 0 && fixed != nil:
		p.Add(rttPath+"fixed_value", "must not be set, as interval is not 0")
	default:
		o.fixed = p.Duration(fixed, rttPath+"fixed_value", time.Microsecond, 0)
	}
	return o
}

// percent returns a share, def percent if it is absent.
func (p *parser) percent(m *typev3.Percent, path string, most, def float64) float64 {
	if m == nil {
		return def / 100
	}
	v := m.GetValue()
	if !(v >= 0 && v <= most) { // nor NaN
		p.Add(path, "must be between 0 and %v, is %v", most, v)
	}
	return v / 100
}

func (p *parser) keys(c *config, m *adaptivev1alpha.AdaptiveConcurrency_Keys) {
	c.maxKeys = p.Number(m.GetMaxKeys(), "keys.max_keys", 1, 65536, 4096)
	if m == nil {
		return
	}
	if n := len(m.GetNames()); n < 1 || n > maxNames {
		p.Add("keys.names", "must be 1 to %d, are %d", maxNames, n)
	}
	for i, name := range m.GetNames() {
		path := fmt.Sprintf("keys.names[%d]", i)
		switch low := strings.ToLower(name); {
		case name == "":
			p.Add(path, "required")
		case slices.Contains(c.names, low):
			p.Add(path, "%q is there twice", name)
		default:
			c.names = append(c.names, low)
		}
	}
	c.id = strings.Join(c.names, "\x00") + "\x00"
}
