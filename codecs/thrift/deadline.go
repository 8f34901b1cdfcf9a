package thrift

import (
	"encoding/binary"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/decimal"
)

// Timeout implements codecs.Deadliner: number 12 of a TTHeader, rpc-timeout, in ms as
// text. Nothing else of Thrift has one.
func (c *codec) Timeout(req *codecs.Metadata) time.Duration {
	if !hasMarks(req) {
		return 0
	}
	end, err := headerEnd(req.Raw)
	if err != nil {
		return 0
	}
	var millis int32 // of two the later counts
	r := infoReader{b: req.Raw[:end], at: int(req.Scratch[scratchInfo]), kitex: true}
	for {
		kind, n := r.next()
		if kind == partEnd {
			return time.Duration(max(millis, 0)) * time.Millisecond
		}
		for ; n > 0 && r.err == nil; n-- {
			key, value := r.pair(kind)
			if r.err == nil && kind == partNumbered && binary.BigEndian.Uint16(key) == numberTimeout {
				millis, _ = decimal.Int32(value)
			}
		}
	}
}

// hasMarks reports whether m is a call whose header can say of it how long its client
// waits, and that it is a retry.
func hasMarks(m *codecs.Metadata) bool {
	flags := m.Scratch[scratchForm]
	return form(flags&0xff).transport() >= ttheader && flags&noInfo == 0 &&
		(m.Type == codecs.Request || m.Type == codecs.Oneway) && m.Malformed == ""
}
