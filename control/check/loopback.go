package check

import (
	"errors"
	"fmt"
	"strings"

	"github.com/meltemi-mesh/meltemi/filter/config"
)

// carrierConfig checks that the carriers are dialled where their listener is.
func (c *checker) carrierConfig(l loaded) {
	carrier, err := config.LoadCarrier(l.raw)
	var fault *config.Error
	switch {
	case errors.As(err, &fault):
		c.refuse(l.line(fault.Path), behind(l.where.path, fault.Path), "%s", fault.Reason)
	case err != nil:
		c.refuse(l.first, l.where.path, "%v", err)
	case c.listener != nil && c.listener.socket == "":
		c.refuse(l.line("path"), behind(l.where.path, "path"), "its listener is not bound to a pipe")
	case c.listener != nil && c.listener.socket != carrier.Path:
		c.refuse(l.line("path"), behind(l.where.path, "path"), "its listener is bound to %s", c.listener.socket)
	}
}

// tlv is one that a loopback listener has become metadata of that key, or else what is
// told happens.
type tlv struct {
	kind     int
	key, els string
}

// loopback notes what a loopback listener lacks that Envoy does without. Why it
// is there is told in examples/dubbo/envoy.yaml.
func (c *checker) loopback(l place, wanted ...tlv) {
	const most, balance, timeout = "max_connections_to_accept_per_socket_event", "connection_balance_config", "listener_filters_timeout"
	for _, option := range []struct {
		path []string
		why  string
	}{
		{[]string{most}, "want 1: without it a process that connects as fast as it can stops the workers"},
		{[]string{timeout}, "want 0.5s: without it those who connect and say nothing are kept for 15s"},
		{[]string{balance, "exact_balance"}, "want {}: without it connections gather on one worker, and the others' requests wait"},
	} {
		if !l.has(option.path...) {
			c.note(l.Line, behind(l.path, strings.Join(option.path, ".")), "%s", option.why)
		}
	}
	has := map[string]bool{}
	filters, _ := l.at("listener_filters")
	for _, f := range filters.elements() {
		typed, _ := f.at("typed_config")
		rules, _ := typed.at("rules")
		for _, rule := range rules.elements() {
			present, _ := rule.at("on_tlv_present")
			has[rule.text("tlv_type")+" "+present.text("metadata_namespace")+" "+present.text("key")] = true
		}
	}
	for _, t := range wanted {
		if !has[fmt.Sprintf("%d meltemi %s", t.kind, t.key)] {
			c.note(l.Line, behind(l.path, "listener_filters"), "want envoy.filters.listener.proxy_protocol, "+
				"with a rule that makes TLV 0x%X the metadata meltemi:%s: without it %s", t.kind, t.key, t.els)
		}
	}
}
