package trpc

import (
	"unicode/utf8"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire"
	"github.com/meltemi-mesh/meltemi/codecs/internal/property"
)

// What is wrong with headers.
const (
	faultNoHeader   = "no header"
	faultAttachment = "attachment that is larger than the body"
	faultEntries    = "more than 1024 entries of trans_info"
	faultKey        = "key of trans_info that is not UTF-8"
	faultNoMeta     = "no request_meta"
	faultTwice      = "part of the meta that occurs twice"
)

// header is what the headers of requests and of answers have in common. Of a
// field that occurs more than once the last counts, as to all readers.
type header struct {
	requestID      uint32
	idAt           int // offset of the request id, behind its tag; 0: none
	attachmentSize uint32
	transInfo
}

// transInfo is where the entries of a message's trans_info are.
type transInfo struct {
	entries int
	first   int // offset of the first
}

func (t *transInfo) found(r *pbwire.Reader) {
	if t.entries == 0 {
		t.first = r.Start
	}
	t.entries++
}

// identify fills in the id of a unary frame and finds fault with its header,
// of which h is what could be read before err. The frame has the id twice. The
// header's counts, as it does to all peers; if it cannot be had the fixed
// header's says who has to be answered.
func (h *header) identify(m *codecs.Metadata, err error) {
	fixed := frameID(m.Raw)
	m.ID = uint64(fixed)
	if h.idAt > 0 {
		m.ID = uint64(h.requestID)
		m.Scratch[scratchID] = uint32(headerSize + h.idAt)
	}
	m.Scratch[scratchEntries] = uint32(h.entries)
	if fixed != 0 || m.ID == 0 {
		m.Scratch[scratchFlags] |= flagFixedID
	}
	switch {
	case err != nil:
		m.Malformed = err.Error()
		m.Scratch[scratchFlags] |= flagBroken
	case m.HeaderSize == headerSize: // which servers refuse
		if _, m.Malformed = headerFault(m.Raw); m.Malformed == "" {
			m.Malformed = faultNoHeader
		}
		m.Scratch[scratchFlags] |= flagBroken
	case int64(h.attachmentSize) > int64(m.BodySize):
		m.Malformed = faultAttachment // readers may panic
	case h.entries > maxEntries:
		m.Malformed = faultEntries
	}
}

// put puts the entries of b, which has been read before, as properties. It
// returns what is wrong with one that cannot be read: readers of protobuf
// refuse the whole message then.
func (t *transInfo) put(m *codecs.Metadata, b []byte, number int32) (fault string) {
	if t.entries == 0 {
		return ""
	}
	entries := property.EntriesOf(m)
	var r pbwire.Reader
	for r.Reset(b[t.first:]); fault == "" && r.Next(); {
		if !r.Is(number, pbwire.Bytes) {
			continue
		}
		key, value, err := pbwire.Entry(r.Bytes)
		switch {
		case err != nil:
			fault = err.Error()
		case !utf8.Valid(key):
			fault = faultKey
		case !own.Has(key):
			entries.Put(key, value)
		}
	}
	entries.Close()
	return fault
}
