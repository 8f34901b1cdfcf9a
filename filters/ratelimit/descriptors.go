package ratelimit

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/route"
	ratelimitv1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/ratelimit/v1alpha"
)

const (
	maxDescriptors = 16
	maxEntries     = 16
	// maxValue is where values of properties are cut, in bytes.
	maxValue = 1024
	maxHits  = 1_000_000_000
)

// descriptor is what is made of a request for the service.
type descriptor struct {
	entries []entry
	hits    hits
	limit   *override // nil: the service's own
}

// entry makes one of a descriptor. One of its kinds is set.
type entry struct {
	key, value string // a constant, or what stands for a property

	property string
	optional bool // without the property there is no entry
	required bool // … nor a descriptor

	address bool
	v4, v6  int // bits that count; -1: all, as an address

	match  *route.Match
	expect bool
}

// hits is what a request counts for; the zero value says nothing.
type hits struct {
	set      bool
	number   uint64
	property string
}

// override is another limit than the service's.
type override struct {
	requests uint32
	unit     typev3.RateLimitUnit
	property string
}

// single is what the C++ proxy has.
func (p *parser) single(d *ratelimitv1alpha.RateLimit_Descriptor, path string) descriptor {
	e := entry{key: d.GetDescriptorKey(), property: d.GetProperty()}
	if e.key == "" {
		p.Add(path+".descriptor_key", "required")
	}
	if e.property == "" {
		p.Add(path+".property", "required")
	}
	return descriptor{entries: []entry{e}}
}

func (p *parser) several(from []*ratelimitv1alpha.Limit) []descriptor {
	var ds []descriptor
	for i, l := range from {
		path := fmt.Sprintf("rate_limits[%d]", i)
		if n := len(l.GetActions()); n < 1 || n > maxEntries {
			p.Add(path+".actions", "must be between 1 and %d, are %d", maxEntries, n)
		}
		d := descriptor{hits: p.hits(l.GetHitsAddend(), path+".hits_addend", 0)}
		for j, a := range l.GetActions() {
			d.entries = append(d.entries, p.entry(a, fmt.Sprintf("%s.actions[%d]", path, j)))
		}
		if o := l.GetLimit(); o != nil {
			d.limit = &override{o.GetRequestsPerUnit(), o.GetUnit(), o.GetProperty()}
			if u := o.GetUnit(); u < typev3.RateLimitUnit_SECOND || u > typev3.RateLimitUnit_YEAR {
				p.Add(path+".limit.unit", "want SECOND to YEAR, is %v", u)
			}
		}
		ds = append(ds, d)
	}
	return ds
}

func (p *parser) entry(a *ratelimitv1alpha.Limit_Action, path string) entry {
	switch s := a.GetActionSpecifier().(type) {
	case *ratelimitv1alpha.Limit_Action_Property_:
		path += ".property"
		e := entry{
			key: s.Property.GetDescriptorKey(), property: s.Property.GetName(), value: s.Property.GetDefaultValue(),
			optional: s.Property.GetSkipIfAbsent(),
		}
		e.required = e.value == "" && !e.optional
		if e.property == "" {
			p.Add(path+".name", "required")
		}
		if e.optional && e.value != "" {
			p.Add(path+".skip_if_absent", "goes not with default_value")
		}
		if e.key == "" {
			e.key = e.property
		}
		return e
	case *ratelimitv1alpha.Limit_Action_GenericKey_:
		return p.constant(s.GenericKey.GetDescriptorKey(), "generic_key", s.GenericKey.GetDescriptorValue(), path+".generic_key")
	case *ratelimitv1alpha.Limit_Action_RemoteAddress_:
		r := s.RemoteAddress
		e := entry{address: true, key: r.GetDescriptorKey(), v4: -1, v6: -1}
		def := "remote_address"
		if m := r.GetV4PrefixMaskLen(); m != nil {
			e.v4, def = p.Number(m, path+".remote_address.v4_prefix_mask_len", 0, 32, 32), "masked_remote_address"
		}
		if m := r.GetV6PrefixMaskLen(); m != nil {
			e.v6, def = p.Number(m, path+".remote_address.v6_prefix_mask_len", 0, 128, 128), "masked_remote_address"
		}
		if e.key == "" {
			e.key = def
		}
		return e
	case *ratelimitv1alpha.Limit_Action_Match_:
		e := p.constant(s.Match.GetDescriptorKey(), "header_match", s.Match.GetDescriptorValue(), path+".match")
		if s.Match.GetMatch() == nil {
			p.Add(path+".match.match", "required")
		}
		e.match = p.match(s.Match.GetMatch(), path+".match.match")
		e.expect = s.Match.GetExpectMatch() == nil || s.Match.GetExpectMatch().GetValue()
		return e
	default:
		p.Add(path, "want property, generic_key, remote_address or match")
		return entry{}
	}
}

func (p *parser) constant(key, def, value, path string) entry {
	if key == "" {
		key = def
	}
	if value == "" {
		p.Add(path+".descriptor_value", "required")
	}
	return entry{key: key, value: value}
}

func (p *parser) hits(h *ratelimitv1alpha.HitsAddend, path string, least uint32) hits {
	switch s := h.GetSpecifier().(type) {
	case *ratelimitv1alpha.HitsAddend_Number:
		if s.Number < least || s.Number > maxHits {
			p.Add(path+".number", "must be between %d and %d, is %d", least, maxHits, s.Number)
		}
		return hits{set: true, number: uint64(s.Number)}
	case *ratelimitv1alpha.HitsAddend_Property:
		if s.Property == "" {
			p.Add(path+".property", "required")
		}
		return hits{set: true, property: s.Property}
	}
	if h != nil {
		p.Add(path, "want number or property")
	}
	return hits{}
}

// of is what m counts for.
func (h *hits) of(m *filter.Message) uint64 {
	if !h.set {
		return 1
	}
	if h.property == "" {
		return h.number
	}
	if n, ok := number(m, h.property, maxHits); ok {
		return n
	}
	return 1
}

// number is the value of a property, if it is a number up to most.
func number(m *filter.Message, property string, most uint64) (uint64, bool) {
	v, _ := m.Request().Get(property)
	if len(v) > 20 {
		return 0, false
	}
	n, err := strconv.ParseUint(string(v), 10, 64)
	return n, err == nil && n <= most
}

// of makes the descriptors of m.
func (l *limits) of(m *filter.Message) []*commonv3.RateLimitDescriptor {
	var all []*commonv3.RateLimitDescriptor
	for i := range l.descriptors {
		if d := l.descriptors[i].of(m); d != nil {
			all = append(all, d)
		}
	}
	return all
}

// of makes the descriptor of m, nil if there is none.
func (d *descriptor) of(m *filter.Message) *commonv3.RateLimitDescriptor {
	made := &commonv3.RateLimitDescriptor{}
	for i := range d.entries {
		e := &d.entries[i]
		value, is := e.of(m)
		if is {
			made.Entries = append(made.Entries, &commonv3.RateLimitDescriptor_Entry{Key: e.key, Value: value})
		} else if !e.optional {
			return nil
		}
	}
	if len(made.Entries) == 0 {
		return nil
	}
	if d.hits.set {
		made.HitsAddend = wrapperspb.UInt64(d.hits.of(m))
	}
	made.Limit = d.limit.of(m)
	return made
}

// of is the entry's value for m, if there is one.
func (e *entry) of(m *filter.Message) (value string, is bool) {
	switch {
	case e.property != "":
		v, has := m.Request().Get(e.property)
		if !has {
			return e.value, !e.required && !e.optional
		}
		return strings.ToValidUTF8(string(v[:min(len(v), maxValue)]), "?"), true
	case e.address:
		return e.masked(m.Connection().RemoteIP())
	case e.match != nil:
		// What cannot be told counts as what the entry is for, so that nobody gets
		// around a limit by what is costly to look at.
		holds, err := m.Matches(e.match)
		return e.value, holds == e.expect || err != nil
	default:
		return e.value, true
	}
}

func (e *entry) masked(a netip.Addr) (string, bool) {
	bits := e.v6
	if a.Is4() {
		bits = e.v4
	}
	switch {
	case !a.IsValid():
		return "", false
	case e.v4 < 0 && e.v6 < 0:
		return a.String(), true
	case bits < 0:
		bits = a.BitLen()
	}
	p, err := a.Prefix(bits)
	return p.String(), err == nil
}

// of is the limit for m, nil if that is the service's.
func (o *override) of(m *filter.Message) *commonv3.RateLimitDescriptor_RateLimitOverride {
	if o == nil {
		return nil
	}
	n := o.requests
	if o.property != "" {
		if v, ok := number(m, o.property, math.MaxUint32); ok {
			n = uint32(v)
		} else if n == 0 {
			return nil
		}
	}
	return &commonv3.RateLimitDescriptor_RateLimitOverride{RequestsPerUnit: n, Unit: o.unit}
}
