package brpc

import (
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire"
)

// Timeout implements codecs.Deadliner: timeout_ms; 0 is none, and so is what is less.
func (c *codec) Timeout(req *codecs.Metadata) time.Duration {
	if !saysTimeout(req) {
		return 0
	}
	var millis int32
	var r pbwire.Reader
	for r.Reset(req.Raw[req.Scratch[scratchRPC]+headerSize : req.Scratch[scratchMetaEnd]]); r.Next(); {
		if r.Is(fieldRequest, pbwire.Bytes) { // it has been read before, without a fault
			v, _, _ := varint(r.Bytes, requestTimeout)
			millis = pbwire.Int32(v)
		}
	}
	return time.Duration(max(millis, 0)) * time.Millisecond
}

// saysTimeout reports whether m is a message that can.
func saysTimeout(m *codecs.Metadata) bool {
	return (m.Type == codecs.Request || m.Type == codecs.StreamInit) && m.Malformed == ""
}
