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

// called returns where a header says who calls what: from its first text, the caller most
// often, to the func.
func called(header []byte) (from, to int) {
	var r pbwire.Reader
	texts := 0
	for r.Reset(header); r.Next(); {
		if r.Type != pbwire.Bytes {
			continue
		}
		if texts++; texts == 1 {
			from = r.Start
		}
		if r.Number == requestFunc {
			return from, r.End
		}
	}
	return 0, 0
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
