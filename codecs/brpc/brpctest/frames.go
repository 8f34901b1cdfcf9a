// Package brpctest makes and reads frames of baidu_std and of its streams for
// tests. It shares nothing with the codec that it helps to test but the
// protocol.
package brpctest

import "encoding/binary"

// Request describes a request. What is 0 or empty is not written, unless said
// otherwise.
type Request struct {
	ID         uint64 // written if Zeros or not 0
	Service    string // default "example.Echo"
	Method     string // default "Echo"
	Zeros      bool   // numbers that are 0 are written, as brpc-java does
	LogID      int64
	TraceID    int64
	SpanID     int64
	ParentID   int64
	RequestID  string
	TimeoutMS  int32
	Compress   int32
	Stream     uint64 // the client's id of the stream that it opens
	UserFields [][2]string
	ExtFields  [][2]string // brpc-java's
	Body       []byte
	Attachment []byte
}

// Response describes an answer.
type Response struct {
	ID         uint64
	Code       int32
	Text       string
	Compress   int32
	Stream     uint64 // the server's id of the stream that it opens
	UserFields [][2]string
	Body       []byte
	Attachment []byte
}

// Kinds of a stream's frames.
const (
	Reset    = 1
	Close    = 2
	Data     = 3
	Feedback = 4
)

// Frame makes a frame of a meta and a payload.
func Frame(magic string, meta, payload []byte) []byte {
	b := append([]byte(nil), magic[:4]...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(meta)+len(payload)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(meta)))
	return append(append(b, meta...), payload...)
}

// Varint appends a field to a meta.
func Varint(b []byte, number int, v uint64) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(b, uint64(number)<<3), v)
}

// Bytes appends a field to a meta.
func Bytes(b []byte, number int, v string) []byte {
	b = binary.AppendUvarint(b, uint64(number)<<3|2)
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}

// number appends a field if it is not 0.
func number(b []byte, n int, v int64) []byte {
	if v == 0 {
		return b
	}
	return Varint(b, n, uint64(v))
}

func entries(b []byte, n int, kvs [][2]string) []byte {
	for _, kv := range kvs {
		b = Bytes(b, n, string(Bytes(Bytes(nil, 1, kv[0]), 2, kv[1])))
	}
	return b
}

// RequestMeta returns what goes into field 1 of the meta.
func (r Request) RequestMeta() []byte {
	if r.Service == "" {
		r.Service = "example.Echo"
	}
	if r.Method == "" {
		r.Method = "Echo"
	}
	b := Bytes(Bytes(nil, 1, r.Service), 2, r.Method)
	if r.Zeros && r.LogID == 0 {
		b = Varint(b, 3, 0)
	}
	b = number(b, 3, r.LogID)
	b = number(b, 4, r.TraceID)
	b = number(b, 5, r.SpanID)
	b = number(b, 6, r.ParentID)
	if r.RequestID != "" {
		b = Bytes(b, 7, r.RequestID)
	}
	b = entries(b, 7, r.ExtFields)
	return number(b, 8, int64(r.TimeoutMS))
}

// Meta returns the request's meta.
func (r Request) Meta() []byte {
	b := Bytes(nil, 1, string(r.RequestMeta()))
	return tail(b, r.Zeros, r.ID, r.Compress, r.Attachment, r.Stream, r.UserFields)
}

// Bytes returns the frame of the request.
func (r Request) Bytes() []byte {
	return Frame("PRPC", r.Meta(), append(append([]byte(nil), r.Body...), r.Attachment...))
}

// Meta returns the answer's meta.
func (r Response) Meta() []byte {
	in := Varint(nil, 1, uint64(r.Code))
	if r.Text != "" {
		in = Bytes(in, 2, r.Text)
	}
	return tail(Bytes(nil, 2, string(in)), true, r.ID, r.Compress, r.Attachment, r.Stream, r.UserFields)
}

// Bytes returns the frame of the answer.
func (r Response) Bytes() []byte {
	return Frame("PRPC", r.Meta(), append(append([]byte(nil), r.Body...), r.Attachment...))
}

// InStream returns the answer as brpc's servers give it to a request that opens
// a stream: within a frame of that stream.
func (r Response) InStream(client uint64) []byte {
	return StreamFrame(client, r.Stream, Data, r.Bytes())
}

// tail appends what the metas of requests and answers have in common.
func tail(b []byte, zeros bool, id uint64, compress int32, attachment []byte, stream uint64, user [][2]string) []byte {
	if zeros || compress != 0 {
		b = Varint(b, 3, uint64(compress))
	}
	if zeros || id != 0 {
		b = Varint(b, 4, id)
	}
	b = number(b, 5, int64(len(attachment)))
	if stream != 0 {
		b = Bytes(b, 8, string(Varint(Varint(Varint(nil, 1, stream), 2, 1), 3, 1)))
	}
	return entries(b, 9, user)
}

// StreamFrame makes a frame of a stream: to the receiver's id of it, from the
// sender's, which is not written if it is 0.
func StreamFrame(to, from uint64, kind int, payload []byte) []byte {
	meta := Varint(nil, 1, to)
	meta = number(meta, 2, int64(from))
	meta = Varint(meta, 3, uint64(kind))
	switch kind {
	case Data:
		meta = Varint(meta, 4, 0)
	case Feedback:
		meta = Bytes(meta, 5, string(Varint(nil, 1, uint64(len(payload)))))
		payload = nil
	}
	return Frame("STRM", meta, payload)
}
