// Package mock is an example of a filter that answers in the place of a server: methods
// that a client is to call before there is one, or a test without one, return what the
// configuration says.
//
//	meta_protocol_filters:
//	- name: example.filters.mock
//	  config:
//	    "@type": type.googleapis.com/google.protobuf.Struct
//	    value: {texts: {sayHello: hello}}
//	- name: aeraki.meta_protocol.filters.router
package mock

import (
	"maps"
	"slices"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/fields"
)

// Name is the filter's config name.
const Name = "example.filters.mock"

func init() { filter.Register(Name, filter.Factory(newMock)) }

type settings struct {
	// Texts that methods return, where the protocol has strings: Dubbo and Thrift.
	Texts map[string]string `json:"texts"`
	// Payloads that methods return, in the protocol's serialization, in base64.
	Payloads map[string][]byte `json:"payloads"`
}

type mock map[string]codecs.Payload

func newMock(config *anypb.Any, env *filter.Env) (filter.Filter, error) {
	s := &settings{}
	if err := fields.Struct(config, s); err != nil {
		return nil, err
	}
	f := mock{}
	var faults fields.Faults
	add := func(field, method string, p codecs.Payload) {
		f[method] = p
		for _, c := range env.Codecs {
			if payloader, ok := c.(codecs.Payloader); !ok {
				faults.Add(field, "the codec cannot answer with a payload")
			} else if err := payloader.CheckReply(p); err != nil {
				faults.Add(field, "%v", err)
			}
		}
	}
	for _, method := range slices.Sorted(maps.Keys(s.Texts)) {
		add("texts."+method, method, codecs.Payload{Bytes: []byte(s.Texts[method]), Text: true})
	}
	for _, method := range slices.Sorted(maps.Keys(s.Payloads)) {
		add("payloads."+method, method, codecs.Payload{Bytes: s.Payloads[method]})
	}
	return f, faults.Err()
}

// OnRequest implements filter.Filter.
func (f mock) OnRequest(m *filter.Message) filter.Verdict {
	p, ok := f[string(m.Request().Method())]
	if !ok {
		return filter.Continue
	}
	m.MutateResponse().Set("mocked", "yes")
	return m.Answer(p)
}
