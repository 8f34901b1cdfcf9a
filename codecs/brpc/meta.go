package brpc

import "github.com/meltemi-mesh/meltemi/codecs/internal/pbwire"

// Fields of RpcMeta (brpc's src/brpc/policy/baidu_rpc_meta.proto). The checksum is new
// there: of the payload with its attachment.
const (
	fieldRequest        = 1
	fieldResponse       = 2
	fieldCompressType   = 3
	fieldCorrelationID  = 4
	fieldAttachmentSize = 5
	fieldChunkInfo      = 6
	fieldStreamSettings = 8
	fieldUserFields     = 9
	fieldChecksumType   = 11
	fieldChecksum       = 12
)

// Fields of RpcRequestMeta. Number 7 is a string in brpc, and in brpc-java and
// jprotobuf a list of key and value.
const (
	requestService      = 1
	requestMethod       = 2
	requestLogID        = 3
	requestTraceID      = 4
	requestSpanID       = 5
	requestParentSpanID = 6
	requestIDOrExtField = 7
	requestTimeout      = 8
)

// Fields of RpcResponseMeta.
const (
	responseErrorCode = 1
	responseErrorText = 2
)

// Fields of StreamSettings and ChunkInfo (streaming_rpc_meta.proto,
// options.proto).
const (
	settingsStreamID = 1
	settingsExtraIDs = 4
	chunkID          = 2
)

// What is wrong with metas.
const (
	faultLong     = "meta of more than 1048576 bytes"
	faultTwice    = "part of the meta that occurs twice"
	faultRequest  = "no request meta"
	faultResponse = "response meta that cannot be read"
	faultNames    = "no service or no method"
	faultMethod   = "method with a dot, of a service with one"
	faultFields   = "more than 1024 user fields"
	faultDiffer   = "user field that differs from the extension field of its name"
	faultStream   = "no id in the settings of a stream"
	faultStreams  = "several streams at once are not supported"
	faultChunks   = "messages in chunks are not supported"
)

// rpcMeta is what a message's RpcMeta says. Of a number that occurs more than
// once the last counts, as to all readers.
type rpcMeta struct {
	bytes          []byte // all of it
	request        []byte // nil: none
	response       []byte // nil: none
	settings       []byte // of a stream; nil: none
	chunk          []byte // nil: none
	correlationID  uint64
	id             int // offset of the correlation id's value; 0: none
	compressType   int32
	attachmentSize int32
	userFields     int
	// twice says that a message within it occurs more than once. brpc merges
	// what jprotobuf replaces: rules would not see what the server sees.
	twice bool
}

// read reads b. If it cannot be read to its end err says why; what comes before
// has been read.
func (meta *rpcMeta) read(b []byte) error {
	meta.bytes = b
	var r pbwire.Reader
	for r.Reset(b); r.Next(); {
		switch r.Type {
		case pbwire.Bytes:
			switch r.Number {
			case fieldRequest:
				meta.part(&meta.request, r.Bytes)
			case fieldResponse:
				meta.part(&meta.response, r.Bytes)
			case fieldStreamSettings:
				meta.part(&meta.settings, r.Bytes)
			case fieldChunkInfo:
				meta.part(&meta.chunk, r.Bytes)
			case fieldUserFields:
				meta.userFields++
			}
		case pbwire.Varint:
			switch r.Number {
			case fieldCompressType:
				meta.compressType = pbwire.Int32(r.Uint)
			case fieldCorrelationID:
				meta.correlationID, meta.id = r.Uint, r.Value
			case fieldAttachmentSize:
				meta.attachmentSize = pbwire.Int32(r.Uint)
			}
		}
	}
	return r.Err()
}

// affordable reports whether it takes no longer to read b, a meta, for what it belongs to
// than one within the limit: others wait meanwhile.
func affordable(b []byte) bool {
	if len(b) <= maxMeta {
		return true
	}
	var r pbwire.Reader
	r.Reset(b)
	for range maxMeta / 2 { // as many fields as one within the limit has at the most
		if r.Pos() < len(b) && pbwire.Type(b[r.Pos()]&7) == pbwire.Group {
			return false // which may have any number of them
		}
		if !r.Next() {
			return true
		}
		if r.Is(fieldStreamSettings, pbwire.Bytes) && len(r.Bytes) > maxMeta {
			return false // so may these
		}
	}
	return false
}

func (meta *rpcMeta) part(p *[]byte, b []byte) {
	meta.twice = meta.twice || *p != nil
	*p = b
}

// extField reads a field 7 of a request's meta: an extension field of brpc-java
// has both a key and a value, anything else is brpc's request id.
func extField(b []byte) (key, value []byte, ok bool) {
	key, value, err := pbwire.Entry(b)
	return key, value, err == nil && key != nil && value != nil
}

// varint returns the value of a message's field, the last if it occurs more
// than once.
func varint(b []byte, number int32) (v uint64, found bool, err error) {
	var r pbwire.Reader
	for r.Reset(b); r.Next(); {
		if r.Is(number, pbwire.Varint) {
			v, found = r.Uint, true
		}
	}
	return v, found, r.Err()
}
