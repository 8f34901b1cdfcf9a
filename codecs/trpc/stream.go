package trpc

import (
	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire"
)

// Fields of TrpcStreamInitMeta.
const (
	initRequestMeta     = 1
	initResponseMeta    = 2
	initContentType     = 4
	initContentEncoding = 5
)

// Fields of TrpcStreamInitRequestMeta.
const (
	metaCaller      = 1
	metaCallee      = 2
	metaFunc        = 3
	metaMessageType = 4
	metaTransInfo   = 5
)

// Fields of TrpcStreamInitResponseMeta.
const (
	metaRet      = 1
	metaErrorMsg = 2
)

// Fields of TrpcStreamCloseMeta.
const (
	closeType = 1
	closeRet  = 2
	closeMsg  = 3
)

// closeReset is the close type that ends a stream both ways.
const closeReset = 1

// streamFrame reads the frame of a stream that is m.Raw.
func (d *decoder) streamFrame(m *codecs.Metadata) error {
	m.ID = uint64(frameID(m.Raw))
	m.StreamID = m.ID
	at, reason := headerFault(m.Raw)
	if reason != "" && d.dir == codecs.ServerToClient { // on the stream's own connection
		return protocolError(at, reason)
	}
	if err := d.streamKind(m); err != nil || reason == "" {
		return err
	}
	m.Malformed = reason
	return nil
}

// streamKind reads what the type of the frame says that it has.
func (d *decoder) streamKind(m *codecs.Metadata) error {
	switch m.Raw[atStreamType] {
	case streamInit:
		if d.dir == codecs.ClientToServer {
			opening(m)
		} else {
			opened(m)
		}
	case streamClose:
		return d.closing(m)
	default:
		m.Type = codecs.StreamData
	}
	return nil
}

// opening reads the frame by which a client opens a stream.
func opening(m *codecs.Metadata) {
	m.Type = codecs.StreamInit
	m.Scratch[scratchFlags] = flagRequest
	var (
		c    call
		t    transInfo
		meta []byte
		r    pbwire.Reader
	)
	for r.Reset(m.Raw[headerSize:]); r.Next(); {
		switch {
		case r.Is(initRequestMeta, pbwire.Bytes):
			if meta != nil {
				m.Malformed = faultTwice // which readers merge
			}
			meta = r.Bytes
		case r.Is(initContentType, pbwire.Varint):
			c.contentType = uint32(r.Uint)
		case r.Is(initContentEncoding, pbwire.Varint):
			c.contentEncoding = uint32(r.Uint)
		}
	}
	err := r.Err()
	for r.Reset(meta); r.Next(); {
		switch r.Type {
		case pbwire.Bytes:
			switch r.Number {
			case metaCaller:
				c.caller = r.Bytes
			case metaCallee:
				c.callee = r.Bytes
			case metaFunc:
				c.fn = r.Bytes
			case metaTransInfo:
				t.found(&r)
			}
		case pbwire.Varint:
			if r.Number == metaMessageType {
				c.messageType = uint32(r.Uint)
			}
		}
	}
	c.put(m)
	m.Scratch[scratchEntries] = uint32(t.entries)
	switch {
	case m.Malformed != "":
	case err != nil:
		m.Malformed = err.Error()
	case r.Err() != nil:
		m.Malformed = r.Err().Error()
	case meta == nil:
		m.Malformed = faultNoMeta // servers may panic
	case t.entries > maxEntries:
		m.Malformed = faultEntries
	default:
		m.Malformed = t.put(m, meta, metaTransInfo)
	}
}

// opened reads the frame by which a server tells whether it has opened a
// stream.
func opened(m *codecs.Metadata) {
	ret, _, fault := initResult(m.Raw[headerSize:])
	m.Malformed = fault
	if ret != 0 || fault != "" {
		m.Type, m.Status = codecs.Error, codecs.StatusError
		if m.Code, m.Failure = ret, failureOf(ret); fault != "" {
			m.Failure = codecs.HostFailure
		}
		m.FixedID = true // it is the stream's
	} else {
		m.Type = codecs.StreamInit
	}
	if fault == "" {
		m.Defer(initLoader{})
	}
}

// initResult reads the response_meta of a TrpcStreamInitMeta. Without one the
// server has no complaint.
func initResult(b []byte) (ret int32, text []byte, fault string) {
	var meta []byte
	var r pbwire.Reader
	for r.Reset(b); r.Next(); {
		if r.Is(initResponseMeta, pbwire.Bytes) {
			if meta != nil {
				return 0, nil, faultTwice
			}
			meta = r.Bytes
		}
	}
	if err := r.Err(); err != nil {
		return 0, nil, err.Error()
	}
	for r.Reset(meta); r.Next(); {
		switch {
		case r.Is(metaRet, pbwire.Varint):
			ret = pbwire.Int32(r.Uint)
		case r.Is(metaErrorMsg, pbwire.Bytes):
			text = r.Bytes
		}
	}
	if err := r.Err(); err != nil {
		return 0, nil, err.Error()
	}
	return ret, text, ""
}

type initLoader struct{}

// Load implements codecs.Loader.
func (initLoader) Load(m *codecs.Metadata) {
	ret, text, _ := initResult(m.Raw[headerSize:])
	propRet.PutNumber(m, int64(ret))
	if len(text) > 0 {
		propErrorMsg.Put(m, text)
	}
}

// closing reads the frame by which a side closes a stream. A client may close
// its half and go on listening. A server does not listen any more, nor does a
// client whose server has closed (tRPC-Go, tRPC-Cpp).
func (d *decoder) closing(m *codecs.Metadata) error {
	m.Type = codecs.StreamCloseTwoWay
	var kind int32
	var r pbwire.Reader
	for r.Reset(m.Raw[headerSize:]); r.Next(); {
		if r.Is(closeType, pbwire.Varint) {
			kind = pbwire.Int32(r.Uint)
		}
	}
	if err := r.Err(); err != nil {
		if d.dir == codecs.ServerToClient { // on the stream's own connection
			return protocolError(headerSize+r.Pos(), err.Error())
		}
		m.Malformed = err.Error()
		return nil
	}
	if d.dir == codecs.ClientToServer && kind != closeReset {
		m.Type = codecs.StreamCloseOneWay
	}
	return nil
}
