// Package trpctest makes and reads frames of tRPC for tests. It shares nothing
// with the codec that it helps to test but the protocol.
package trpctest

import "encoding/binary"

// Types of a stream's frames.
const (
	Init     = 1
	Data     = 2
	Feedback = 3
	Close    = 4
)

// Request describes a request. What is 0 or empty is not written, unless said
// otherwise.
type Request struct {
	ID              uint32
	BareID          bool   // the fixed header has no id, as with Java and C++
	Caller          string // default "trpc.app.client.service"
	Callee          string // default "trpc.app.server.Greeter"
	Func            string // default "/trpc.app.server.Greeter/SayHello"
	Oneway          bool
	TimeoutMS       uint32
	MessageType     uint32
	ContentType     uint32
	ContentEncoding uint32
	TransInfo       [][2]string
	Window          uint32 // of a stream
	Body            []byte
	Attachment      []byte
}

// Response describes an answer.
type Response struct {
	ID         uint32
	BareID     bool // as in Request
	Ret        int32
	FuncRet    int32
	ErrorMsg   string
	TransInfo  [][2]string
	Window     uint32 // of a stream
	Body       []byte
	Attachment []byte
}

// Frame makes a unary frame with its id in the fixed header.
func Frame(id uint32, header, rest []byte) []byte { return frame(0, 0, id, 1, header, rest) }

// StreamFrame makes a frame of a stream.
func StreamFrame(kind byte, id uint32, body []byte) []byte { return frame(1, kind, id, 0, nil, body) }

func frame(frameType, kind byte, id uint32, version byte, header, rest []byte) []byte {
	b := []byte{0x09, 0x30, frameType, kind}
	b = binary.BigEndian.AppendUint32(b, uint32(16+len(header)+len(rest)))
	b = binary.BigEndian.AppendUint16(b, uint16(len(header)))
	b = binary.BigEndian.AppendUint32(b, id)
	return append(append(append(b, version, 0), header...), rest...)
}

// Varint appends a field to a message.
func Varint(b []byte, number int, v uint64) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(b, uint64(number)<<3), v)
}

// Bytes appends a field to a message.
func Bytes(b []byte, number int, v string) []byte {
	b = binary.AppendUvarint(b, uint64(number)<<3|2)
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}

func number(b []byte, n int, v int64) []byte {
	if v == 0 {
		return b
	}
	return Varint(b, n, uint64(v))
}

func text(b []byte, n int, v string) []byte {
	if v == "" {
		return b
	}
	return Bytes(b, n, v)
}

func entries(b []byte, n int, kvs [][2]string) []byte {
	for _, kv := range kvs {
		b = Bytes(b, n, string(Bytes(Bytes(nil, 1, kv[0]), 2, kv[1])))
	}
	return b
}

func fixedID(id uint32, bare bool) uint32 {
	if bare {
		return 0
	}
	return id
}

func (r Request) defaults() Request {
	if r.Caller == "" {
		r.Caller = "trpc.app.client.service"
	}
	if r.Callee == "" {
		r.Callee = "trpc.app.server.Greeter"
	}
	if r.Func == "" {
		r.Func = "/trpc.app.server.Greeter/SayHello"
	}
	return r
}

// Header returns the RequestProtocol.
func (r Request) Header() []byte {
	r = r.defaults()
	var b []byte
	if r.Oneway {
		b = Varint(b, 2, 1)
	}
	b = number(b, 3, int64(r.ID))
	b = number(b, 4, int64(r.TimeoutMS))
	b = Bytes(Bytes(Bytes(b, 5, r.Caller), 6, r.Callee), 7, r.Func)
	b = number(b, 8, int64(r.MessageType))
	b = entries(b, 9, r.TransInfo)
	b = number(b, 10, int64(r.ContentType))
	b = number(b, 11, int64(r.ContentEncoding))
	return number(b, 12, int64(len(r.Attachment)))
}

// Bytes returns the frame of the request.
func (r Request) Bytes() []byte {
	return Frame(fixedID(r.ID, r.BareID), r.Header(), append(append([]byte(nil), r.Body...), r.Attachment...))
}

// Meta returns the TrpcStreamInitMeta of a client.
func (r Request) Meta() []byte {
	r = r.defaults()
	b := Bytes(Bytes(Bytes(nil, 1, r.Caller), 2, r.Callee), 3, r.Func)
	b = number(b, 4, int64(r.MessageType))
	b = Bytes(nil, 1, string(entries(b, 5, r.TransInfo)))
	b = number(b, 3, int64(r.Window))
	b = number(b, 4, int64(r.ContentType))
	return number(b, 5, int64(r.ContentEncoding))
}

// Init returns the frame that opens a stream whose id is the request's.
func (r Request) Init() []byte { return StreamFrame(Init, r.ID, r.Meta()) }

// Header returns the ResponseProtocol.
func (r Response) Header() []byte {
	b := number(nil, 3, int64(r.ID))
	b = number(b, 4, int64(r.Ret))
	b = number(b, 5, int64(r.FuncRet))
	b = text(b, 6, r.ErrorMsg)
	b = entries(b, 8, r.TransInfo)
	return number(b, 12, int64(len(r.Attachment)))
}

// Bytes returns the frame of the answer.
func (r Response) Bytes() []byte {
	return Frame(fixedID(r.ID, r.BareID), r.Header(), append(append([]byte(nil), r.Body...), r.Attachment...))
}

// Init returns the frame by which a server says whether it has opened the
// stream whose id is the answer's. Of the answer it has the outcome and the
// window.
func (r Response) Init() []byte {
	b := Bytes(nil, 2, string(text(number(nil, 1, int64(r.Ret)), 2, r.ErrorMsg)))
	return StreamFrame(Init, r.ID, number(b, 3, int64(r.Window)))
}

// FeedbackFrame makes a frame that opens the window of a stream by more bytes.
func FeedbackFrame(id, more uint32) []byte {
	return StreamFrame(Feedback, id, number(nil, 1, int64(more)))
}

// CloseFrame makes a frame that closes the sender's half of a stream, or if it
// is a reset both.
func CloseFrame(id uint32, reset bool, ret int32, msg string) []byte {
	var b []byte
	if reset {
		b = Varint(b, 1, 1)
	}
	return StreamFrame(Close, id, text(number(b, 2, int64(ret)), 3, msg))
}
