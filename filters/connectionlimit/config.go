package connectionlimit

import (
	"math"
	"time"

	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/route"
	connectionlimitv1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/connection_limit/v1alpha"
)

// none is no limit.
const none = math.MaxInt64

// config is a ConnectionLimit.
type config struct {
	statPrefix         string
	enabled            bool
	most, mostOfOne    int64
	delay              time.Duration
	ipv4Bits, ipv6Bits int
	addresses          int
	reply              codecs.LocalError
}

func parse(any *anypb.Any, env *filter.Env) (filter.Config, error) {
	m := new(connectionlimitv1alpha.ConnectionLimit)
	if err := fields.Unpack(any, m); err != nil {
		return nil, err
	}
	var faults fields.Faults
	c := &config{
		statPrefix: m.GetStatPrefix(),
		enabled:    true,
		most:       limit(m.GetMaxConnections(), "max_connections", &faults),
		mostOfOne:  limit(m.GetMaxConnectionsPerAddress(), "max_connections_per_address", &faults),
		delay:      faults.Duration(m.GetDelay(), "delay", 0, time.Second),
		ipv4Bits:   faults.Number(m.GetIpv4PrefixLength(), "ipv4_prefix_length", 1, 32, 32),
		ipv6Bits:   faults.Number(m.GetIpv6PrefixLength(), "ipv6_prefix_length", 1, 128, 128),
		addresses:  faults.Number(m.GetMaxAddresses(), "max_addresses", 1, 1<<20, 1<<16),
	}
	if c.statPrefix == "" {
		faults.Add("stat_prefix", "required")
	}
	if c.most == none && c.mostOfOne == none {
		faults.Add("max_connections", "required, or max_connections_per_address")
	}
	if c.delay > time.Hour {
		faults.Add("delay", "must be at most %v, is %v", time.Hour, c.delay)
	}
	if r := m.GetRuntimeEnabled(); r != nil {
		if r.GetDefaultValue() == nil {
			faults.Add("runtime_enabled.default_value", "required")
		}
		c.enabled = r.GetDefaultValue().GetValue()
	}
	reply, errs := route.Reply(m.GetStatus(), codecs.LocalError{Type: codecs.OverLimit, Message: text}, "status", env.Codecs)
	for _, e := range errs {
		faults.Add(e.Path, "%s", e.Reason)
	}
	c.reply = reply
	if err := faults.Err(); err != nil {
		return nil, err
	}
	return c, nil
}

func limit(n *wrapperspb.UInt64Value, path string, faults *fields.Faults) int64 {
	if n == nil {
		return none
	}
	if n.GetValue() == 0 {
		faults.Add(path, "must be at least 1, is 0")
	}
	return int64(min(n.GetValue(), none))
}
