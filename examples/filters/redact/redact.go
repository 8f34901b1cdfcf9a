// Package redact is an example of a filter that looks into answers and changes them: what
// matches an expression, card numbers for instance, comes to clients as asterisks.
//
//	meta_protocol_filters:
//	- name: example.filters.redact
//	  config:
//	    "@type": type.googleapis.com/google.protobuf.Struct
//	    value: {pattern: "[0-9]{12,19}"}
//	- name: aeraki.meta_protocol.filters.router
package redact

import (
	"bytes"
	"regexp"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/fields"
)

// Name is the filter's config name.
const Name = "example.filters.redact"

func init() { filter.Register(Name, filter.Factory(newRedact)) }

type settings struct {
	// Pattern of what nobody is to see: an expression for the bytes of texts.
	Pattern string `json:"pattern"`
}

type redact struct{ pattern *regexp.Regexp }

func newRedact(config *anypb.Any, _ *filter.Env) (filter.Filter, error) {
	s := &settings{}
	if err := fields.Struct(config, s); err != nil {
		return nil, err
	}
	var faults fields.Faults
	if s.Pattern == "" {
		faults.Add("pattern", "required")
	}
	pattern, err := regexp.Compile(s.Pattern)
	if err != nil {
		faults.Add("pattern", "%v", err)
	}
	return redact{pattern}, faults.Err()
}

// OnRequest implements filter.Filter.
func (redact) OnRequest(*filter.Message) filter.Verdict { return filter.Continue }

// OnResponse implements filter.ResponseFilter. As many asterisks as there were bytes: so the
// filter need not know the serialization, in which lengths stand before texts.
func (f redact) OnResponse(m *filter.Message) filter.Verdict {
	if m.Response().Type == codecs.Error {
		return filter.Continue // which carries no payload
	}
	p, err := m.Payload()
	switch {
	case err != nil:
		return m.Reply(codecs.BadResponse, "the answer cannot be looked into")
	case p.Compression != 0:
		return m.Reply(codecs.BadResponse, "the answer is compressed, and cannot be looked into")
	case !f.pattern.Match(p.Bytes):
		return filter.Continue
	}
	p.Bytes = f.pattern.ReplaceAllFunc(p.Bytes, func(b []byte) []byte { return bytes.Repeat([]byte("*"), len(b)) })
	if err := m.SetPayload(p); err != nil {
		return m.Reply(codecs.BadResponse, err.Error())
	}
	return filter.Continue
}
