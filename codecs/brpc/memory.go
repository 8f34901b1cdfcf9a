package brpc

import (
	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbshape"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire"
)

// metaSchema is what may differ in the metas of requests that share a shape: ids, those of
// traces, times, and values. Extension fields are compared, and so is a user field of the
// name of one, as it has its value.
var metaSchema = pbshape.Schema{Head: called, Fields: []pbshape.Field{
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
	{Number: fieldUserFields, Kind: pbshape.Entry},
}}

func isExtField(b []byte) bool {
	_, _, ok := extField(b)
	return ok
}

// called returns where a meta names the service and the method, if they are the first that
// it says.
func called(meta []byte) (from, to int) {
	var r pbwire.Reader
	if r.Reset(meta); !r.Next() || !r.Is(fieldRequest, pbwire.Bytes) {
		return 0, 0
	}
	from = r.Value
	if r.Reset(r.Bytes); !r.Next() || !r.Is(requestService, pbwire.Bytes) || !r.Next() || !r.Is(requestMethod, pbwire.Bytes) {
		return 0, 0
	}
	return from, from + r.End
}

// known fills in what a request says whose meta is of a form.
func (d *decoder) known(m *codecs.Metadata, f *pbshape.Form) {
	m.Type, m.Scratch = f.Type, f.Scratch
	m.Scratch[scratchMetaEnd] = uint32(m.HeaderSize)
	m.Scratch[scratchID] = uint32(headerSize + d.At)
	m.ID = d.ID
}
