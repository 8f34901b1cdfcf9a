package config

import "bytes"

// HostsPolicy is the name by which a cluster names our load balancer.
const HostsPolicy = "hosts"

// LoadHosts reads the configuration of a load balancer, by the name that the cluster
// gives it. There is nothing to configure. A returned error is an *Error.
func LoadHosts(name string, raw []byte) error {
	if name != HostsPolicy {
		return &Error{Path: "lb_policy_name", Reason: "unknown: want " + HostsPolicy}
	}
	if raw = bytes.TrimSpace(raw); len(raw) > 0 && string(raw) != "{}" {
		return &Error{Path: "lb_policy_config", Reason: "must be empty"}
	}
	return nil
}
