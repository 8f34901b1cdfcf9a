package fault

import (
	"math"
	"time"

	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/route"
	faultv1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/fault/v1alpha"
)

// settings are a frozen Fault.
type settings struct {
	delay delay
	abort abort
	max   int64
}

// delay is who waits, and how long. A share of nothing is no delay.
type delay struct {
	share     fields.Fraction
	length    time.Duration // the longest if byRequest
	byRequest bool
}

// abort is who is answered with an error, and with which. A share of nothing is none.
type abort struct {
	share     fields.Fraction
	reply     codecs.LocalError
	byRequest bool // its code
}

var usual = codecs.LocalError{Type: codecs.Unspecified, Message: "fault filter abort"}

func parse(config *anypb.Any, env *filter.Env) (filter.Config, error) {
	m := new(faultv1alpha.Fault)
	if err := fields.Unpack(config, m); err != nil {
		return nil, err
	}
	s := &settings{max: math.MaxInt64}
	var faults fields.Faults
	if n := m.GetMaxActiveFaults(); n != nil {
		s.max = int64(n.GetValue())
	}
	if m.GetDelay() == nil && m.GetAbort() == nil {
		faults.Add("delay", "required, or abort")
	}
	if d := m.GetDelay(); d != nil {
		s.delay = parseDelay(d, &faults)
	}
	if a := m.GetAbort(); a != nil {
		s.abort = parseAbort(a, env, &faults)
	}
	return s, faults.Err()
}

func parseDelay(m *faultv1alpha.Delay, faults *fields.Faults) (d delay) {
	length := func(from *durationpb.Duration, path string) {
		if from == nil {
			faults.Add(path, "required")
		}
		d.length = faults.Duration(from, path, time.Millisecond, time.Millisecond)
	}
	switch m.GetDelaySpecifier().(type) {
	case *faultv1alpha.Delay_FixedDelay:
		length(m.GetFixedDelay(), "delay.fixed_delay")
	case *faultv1alpha.Delay_HeaderDelay_:
		d.byRequest = true
		length(m.GetHeaderDelay().GetMaxDelay(), "delay.header_delay.max_delay")
	default:
		faults.Add("delay.fixed_delay", "required, or header_delay")
	}
	var err error
	d.share, err = fields.ParseFraction(m.GetPercentage())
	faults.AddAll("delay.percentage", err)
	return d
}

func parseAbort(m *faultv1alpha.Abort, env *filter.Env, faults *fields.Faults) (a abort) {
	var errs []*fields.Error
	switch m.GetAbortSpecifier().(type) {
	case *faultv1alpha.Abort_Reply:
		a.reply, errs = route.Reply(m.GetReply(), usual, "abort.reply", env.Codecs)
	case *faultv1alpha.Abort_HeaderAbort_:
		reply := m.GetHeaderAbort().GetReply()
		if a.byRequest = true; reply.GetCode() != 0 {
			faults.Add("abort.header_abort.reply.code", "is for the requests to say")
		} else {
			a.reply, errs = route.Reply(reply, usual, "abort.header_abort.reply", env.Codecs)
		}
		for _, c := range env.Codecs {
			if _, is := c.(codecs.CodeChecker); !is {
				faults.Add("abort.header_abort", "a codec of the listener has no codes that requests could name")
				break
			}
		}
	default:
		faults.Add("abort.reply", "required, or header_abort")
	}
	for _, e := range errs {
		faults.AddAll("", e)
	}
	var err error
	a.share, err = fields.ParseFraction(m.GetPercentage())
	faults.AddAll("abort.percentage", err)
	return a
}

// The properties by which requests ask for faults.
const (
	delayProperty = "x-envoy-fault-delay-request"
	abortProperty = "x-envoy-fault-abort-request"
	percentage    = "-percentage"
)

// of returns how long a request that is one of the share waits, 0 if it does not.
func (d *delay) of(md *codecs.Metadata) (time.Duration, fields.Fraction) {
	if d.share.Share == 0 || !d.byRequest {
		return d.length, d.share
	}
	ms, ok := number(md, delayProperty)
	if !ok {
		return 0, d.share
	}
	return min(time.Duration(ms)*time.Millisecond, d.length), lowered(d.share, md, delayProperty+percentage)
}

// of returns what a request that is one of the share is answered with.
func (a *abort) of(md *codecs.Metadata, codec codecs.Codec) (codecs.LocalError, fields.Fraction) {
	if a.share.Share == 0 || !a.byRequest {
		return a.reply, a.share
	}
	e := a.reply
	code, ok := number(md, abortProperty)
	checker, _ := codec.(codecs.CodeChecker)
	if !ok || code == 0 || code > math.MaxInt32 || checker == nil || checker.CheckCode(int32(code)) != nil {
		return e, fields.Fraction{Of: 1}
	}
	e.Code = int32(code)
	return e, lowered(a.share, md, abortProperty+percentage)
}

// lowered is the share that a request asks for, if it is less.
func lowered(share fields.Fraction, md *codecs.Metadata, property string) fields.Fraction {
	if n, ok := number(md, property); ok {
		share.Share = min(share.Share, uint64(n))
	}
	return share
}

// number is the value of a property, if that is a decimal number of 32 bits.
func number(md *codecs.Metadata, property string) (n uint32, ok bool) {
	v, there := md.Get(property)
	if !there || len(v) == 0 || len(v) > 10 {
		return 0, false
	}
	var all uint64
	for _, c := range v {
		if c < '0' || c > '9' {
			return 0, false
		}
		all = 10*all + uint64(c-'0')
	}
	return uint32(all), all <= math.MaxUint32
}
