package brpc

import (
	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire"
)

// Trace implements codecs.TraceCarrier: the ids of brpc's own spans.
func (c *codec) Trace(m *codecs.Metadata) (t codecs.Trace) {
	if !saysTimeout(m) {
		return t
	}
	var meta, r pbwire.Reader
	for meta.Reset(m.Raw[m.Scratch[scratchRPC]+headerSize : m.Scratch[scratchMetaEnd]]); meta.Next(); {
		if !meta.Is(fieldRequest, pbwire.Bytes) {
			continue
		}
		for r.Reset(meta.Bytes); r.Next(); { // it has been read before, without a fault
			if r.Type != pbwire.Varint {
				continue
			}
			switch r.Number {
			case requestTraceID:
				t.ID = r.Uint
			case requestSpanID:
				t.Span = r.Uint
			case requestParentSpanID:
				t.Parent = r.Uint
			}
		}
	}
	return t
}
