package trpc

import (
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire"
)

// Timeout implements codecs.Deadliner: the timeout of a call, in ms; 0 is none. A
// stream's INIT has no place for one.
func (c *codec) Timeout(req *codecs.Metadata) time.Duration {
	if !saysTimeout(req) {
		return 0
	}
	var millis uint32
	var r pbwire.Reader
	for r.Reset(req.Raw[headerSize:req.HeaderSize]); r.Next(); {
		if r.Is(requestTimeout, pbwire.Varint) {
			millis = uint32(r.Uint)
		}
	}
	return time.Duration(millis) * time.Millisecond
}

// saysTimeout reports whether m is a message that can.
func saysTimeout(m *codecs.Metadata) bool {
	return (m.Type == codecs.Request || m.Type == codecs.Oneway) && m.Malformed == ""
}
