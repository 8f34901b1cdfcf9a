// Command filterso is a shared object for tests: Meltemi with the example
// filters, one that panics and one that keeps a goroutine busy.
package main

import (
	"sync/atomic"

	"google.golang.org/protobuf/types/known/anypb"

	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	_ "github.com/meltemi-mesh/meltemi/envoy-build/meltemi"
	_ "github.com/meltemi-mesh/meltemi/examples/filters/tenant"
	_ "github.com/meltemi-mesh/meltemi/examples/filters/zone"
	"github.com/meltemi-mesh/meltemi/filter"
)

func main() {}

var spin atomic.Uint64

func init() {
	filter.Register("test.busy", func(*anypb.Any, filter.FactoryContext) (filter.Filter, error) {
		go func() {
			for n := uint64(0); ; n++ {
				spin.Store(n)
			}
		}()
		return boom{}, nil
	})
	filter.Register("test.boom", func(*anypb.Any, filter.FactoryContext) (filter.Filter, error) { return boom{}, nil })
}

// boom panics in the hook that the attachment "boom" names.
type boom struct{}

func (boom) OnRequest(m *filter.Message) filter.Verdict {
	if v, _ := m.Request().Get("boom"); string(v) == "request" {
		panic("boom")
	}
	return filter.Continue
}

func (boom) OnResponse(m *filter.Message) filter.Verdict {
	if v, _ := m.Request().Get("boom"); string(v) == "response" {
		var p *int
		*p = 1
	}
	return filter.Continue
}
