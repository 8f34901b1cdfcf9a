// Command filterso is a shared object for tests: Meltemi with the example
// filters, filters and a codec that panic, a filter that keeps all of Go's
// processors busy, one that tells of Go's runtime, one that replies, one that
// pauses until it is told and one that chooses hosts.
package main

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	_ "github.com/meltemi-mesh/meltemi/codecs/brpc"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo"
	_ "github.com/meltemi-mesh/meltemi/codecs/thrift"
	_ "github.com/meltemi-mesh/meltemi/codecs/trpc"
	_ "github.com/meltemi-mesh/meltemi/envoy-build/filterso/resp"
	_ "github.com/meltemi-mesh/meltemi/envoy-build/meltemi"
	_ "github.com/meltemi-mesh/meltemi/examples/filters/mock"
	_ "github.com/meltemi-mesh/meltemi/examples/filters/redact"
	_ "github.com/meltemi-mesh/meltemi/examples/filters/tenant"
	_ "github.com/meltemi-mesh/meltemi/examples/filters/zone"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

func main() {}

var spin atomic.Uint64

func init() {
	filter.Register("test.busy", filter.Factory(func(*anypb.Any, *filter.Env) (filter.Filter, error) {
		// As many as a container's GOMAXPROCS would let run at once.
		n, err := strconv.Atoi(os.Getenv("GOMAXPROCS"))
		if err != nil {
			return nil, err
		}
		for range n {
			go func() {
				for n := uint64(0); ; n++ {
					spin.Store(n)
				}
			}()
		}
		return tells(func() string {
			return fmt.Sprintf("GOMAXPROCS %d, memory limit %d", runtime.GOMAXPROCS(0), debug.SetMemoryLimit(-1))
		}), nil
	}))
	filter.Register("test.runtime", filter.Factory(func(*anypb.Any, *filter.Env) (filter.Filter, error) {
		return tells(func() string {
			runtime.GC() // what is left is in use
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return fmt.Sprintf("goroutines %d, heap %d", runtime.NumGoroutine(), m.HeapAlloc)
		}), nil
	}))
	filter.Register("test.boom", filter.Factory(func(*anypb.Any, *filter.Env) (filter.Filter, error) { return boom{}, nil }))
	filter.Register("test.pins", filter.Factory(func(*anypb.Any, *filter.Env) (filter.Filter, error) { return pins{}, nil }))
	filter.Register("test.reply", filter.Factory(func(*anypb.Any, *filter.Env) (filter.Filter, error) { return reply{}, nil }))
	filter.Register("test.gate", filter.Factory(func(*anypb.Any, *filter.Env) (filter.Filter, error) { return &gate{}, nil }))
	codecs.Register("test.codec.boom", func(config *anypb.Any, limits codecs.Limits) (codecs.Codec, error) {
		c, err := dubbo.New(config, limits)
		if err != nil {
			return nil, err
		}
		return boomCodec{c.(heartbeater)}, nil
	})
}

// tells answers the method "runtime" with what Go's runtime says of itself.
type tells func() string

func (says tells) OnRequest(m *filter.Message) filter.Verdict {
	if string(m.Request().Method()) != "runtime" {
		return filter.Continue
	}
	return m.Reply(codecs.Unspecified, says())
}

// pins has requests go to the host that their attachment "pin" names, or rather to that of
// "prefer", but not to that of "away", and tells servers of each attempt.
type pins struct{}

func (pins) OnRequest(m *filter.Message) filter.Verdict {
	for name, strict := range map[string]bool{"prefer": false, "pin": true} {
		if host, has := m.Request().Get(name); has {
			m.SetHost(string(host), strict)
		}
	}
	return filter.Continue
}

func (pins) OnAttempt(m *filter.Message, a *filter.Attempt) {
	if away, _ := m.Request().Get("away"); string(away) == a.Host {
		a.Refuse("it is away")
		return
	}
	a.Mutate().Set("attempt", strconv.Itoa(a.Number))
	a.Mutate().Set("at", a.Host)
}

func (pins) OnAttemptEnd(m *filter.Message, a *filter.Attempt) {
	if a.Failure != nil {
		m.Logf(host.Info, "attempt %d at %s has failed: %s", a.Number, a.Host, a.Failure.Message)
	}
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

// boomCodec is Dubbo's, but panics at a frame that says where, or makes the
// pipeline panic.
type boomCodec struct{ heartbeater }

type heartbeater interface {
	codecs.Codec
	codecs.Heartbeater
}

func (c boomCodec) NewDecoder(d codecs.Direction) codecs.Decoder {
	return boomDecoder{c.heartbeater.NewDecoder(d), d}
}

func (c boomCodec) Encode(dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	boomAt(m.Raw, "encode")
	return c.heartbeater.Encode(dst, m, mut)
}

type boomDecoder struct {
	codecs.Decoder
	d codecs.Direction
}

func (d boomDecoder) Decode(b []byte, m *codecs.Metadata) (int, error) {
	boomAt(b, "decode "+d.d.String())
	n, err := d.Decoder.Decode(b, m)
	if bytes.Contains(b, []byte("boom in the pipeline")) {
		m.BodySize = 1 << 62 // no such buffer can be had
	}
	return n, err
}

func boomAt(b []byte, where string) {
	if bytes.Contains(b, []byte("boom in "+where)) {
		panic("boom in " + where)
	}
}
