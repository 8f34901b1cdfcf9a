// Command filterso is a shared object for tests: Meltemi with the example
// filters, one that panics, one that keeps a goroutine busy, one that replies and
// one that pauses until it is told.
package main

import (
	"strconv"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
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
	filter.Register("test.reply", func(*anypb.Any, filter.FactoryContext) (filter.Filter, error) { return reply{}, nil })
	filter.Register("test.gate", func(*anypb.Any, filter.FactoryContext) (filter.Filter, error) { return &gate{}, nil })
}

// reply answers with the type of error that the attachment "reply" is the
// number of, and the text of the attachment "text".
type reply struct{}

func (reply) OnRequest(m *filter.Message) filter.Verdict {
	number, ok := m.Request().Get("reply")
	if !ok {
		return filter.Continue
	}
	n, err := strconv.ParseUint(string(number), 10, 8)
	if err != nil {
		return m.Reply(codecs.Unspecified, err.Error())
	}
	text, _ := m.Request().Get("text")
	return m.Reply(codecs.ErrorType(n), string(text))
}

// gate pauses messages with the attachment "gate" until one comes in which it
// is "open".
type gate struct {
	mu     sync.Mutex
	paused []filter.Resumer
}

func (g *gate) OnRequest(m *filter.Message) filter.Verdict {
	v, ok := m.Request().Get("gate")
	if !ok {
		return filter.Continue
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if string(v) != "open" {
		g.paused = append(g.paused, m.Resumer())
		return filter.Pause
	}
	for _, r := range g.paused {
		r.Continue()
	}
	g.paused = nil
	return filter.Continue
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
