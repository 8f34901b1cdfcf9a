package brpc

import (
	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbshape"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire"
)

// What may differ in the metas of requests that share a shape: ids, those of traces, and
// times. A field 7 that is no extension field is one of those ids.
var (
	metaSchema = pbshape.Schema{Head: called, Fields: append([]pbshape.Field{
		{Number: fieldUserFields, Kind: pbshape.Entry},
	}, differ...)}
	// An extension field has to be equal to the user field of its name: none may differ.
	extSchema = pbshape.Schema{Head: called, Fields: differ}

	differ = []pbshape.Field{
		{Number: fieldRequest, Kind: pbshape.Message, In: []pbshape.Field{
			{Number: requestLogID, Kind: pbshape.Int64, Property: propLogID},
			{Number: requestTraceID, Kind: pbshape.Int64, Property: propTraceID},
			{Number: requestSpanID, Kind: pbshape.Int64, Property: propSpanID},
			{Number: requestParentSpanID, Kind: pbshape.Int64, Property: propParentSpanID},
			{Number: requestTimeout, Kind: pbshape.Int32, Property: propTimeout},
			{Number: requestIDOrExtField, Kind: pbshape.Text, Unless: isExtField},
		}},
		{Number: fieldCorrelationID, Kind: pbshape.ID},
		{Number: fieldAttachmentSize, Kind: pbshape.Int32, Property: propAttachmentSize},
	}
)

func isExtField(b []byte) bool {
	_, _, ok := extField(b)
	return ok
}

// called returns where a meta names the service and the method, if they are the first that
// it says.
func called(meta []byte) []byte {
	var r pbwire.Reader
	if r.Reset(meta); !r.Next() || !r.Is(fieldRequest, pbwire.Bytes) {
		return nil
	}
	b := r.Bytes
	if r.Reset(b); !r.Next() || !r.Is(requestService, pbwire.Bytes) || !r.Next() || !r.Is(requestMethod, pbwire.Bytes) {
		return nil
	}
	return b[:r.End]
}

// known fills in what a request says whose meta is of a form.
func (d *decoder) known(m *codecs.Metadata, f *pbshape.Form) {
	m.Type, m.Scratch = f.Type, f.Scratch
	m.Scratch[scratchMetaEnd] = uint32(m.HeaderSize)
	m.Scratch[scratchID] = uint32(headerSize + d.At)
	m.ID = d.ID
}

// remember learns the shape of a request without a fault.
func (d *decoder) remember(m *codecs.Metadata, meta []byte) {
	if m.Scratch[scratchExtFields] > 0 {
		d.Remember(&extSchema, m, meta)
	} else {
		d.Remember(&metaSchema, m, meta)
	}
}
