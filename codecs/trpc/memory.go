package trpc

import (
	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbshape"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire"
)

// headerSchema is what may differ in the headers of requests that share a shape.
var headerSchema = pbshape.Schema{Head: called, Fields: []pbshape.Field{
	{Number: requestID, Kind: pbshape.ID},
	{Number: requestTimeout, Kind: pbshape.Positive32, Property: propTimeout},
	{Number: requestTransInfo, Kind: pbshape.Entry},
	{Number: requestAttachmentSize, Kind: pbshape.Part},
}}

// called returns where a header names the caller, the callee and the func, in this order.
func called(header []byte) []byte {
	from := -1
	var r pbwire.Reader
	for r.Reset(header); r.Next(); {
		switch {
		case r.Is(requestFunc, pbwire.Bytes) && from >= 0:
			return header[from:r.End]
		case r.Is(requestCaller, pbwire.Bytes), r.Is(requestCallee, pbwire.Bytes):
			if from < 0 {
				from = r.Start
			}
		}
	}
	return nil
}

// known fills in what a request says whose header is of a form.
func (d *decoder) known(m *codecs.Metadata, f *pbshape.Form) {
	version, fixed, id := m.Scratch[scratchVersion], frameID(m.Raw), uint32(d.ID)
	m.Type, m.Scratch = f.Type, f.Scratch
	m.ID = uint64(id)
	m.Scratch[scratchID] = uint32(headerSize + d.At)
	m.Scratch[scratchVersion] = version
	m.Scratch[scratchFlags] = flagRequest
	if fixed != 0 || id == 0 {
		m.Scratch[scratchFlags] |= flagFixedID
	}
}
