package trpctest

import (
	"encoding/binary"

	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire/pbwiretest"
)

// Parsed is a frame taken apart. Of a field that occurs more than once the last
// is here.
type Parsed struct {
	Stream  bool
	Kind    byte   // type of a stream's frame
	FixedID uint32 // the fixed header's: of a stream, its id
	Version byte

	// Header is the protobuf message: in a stream all of INIT, FEEDBACK and
	// CLOSE. Payload is what follows it.
	Header, Payload []byte

	ID                   uint32 // the header's request id
	Oneway               bool
	Caller, Callee, Func string
	Ret, FuncRet         int32
	ErrorMsg             string
	TransInfo            map[string]string

	Window uint32 // of INIT, or by how much FEEDBACK opens it
	Reset  bool
}

// Parse takes whole frames apart and returns the rest. fromClient tells
// requests from answers. It panics when a header cannot be read.
func Parse(b []byte, fromClient bool) (frames []Parsed, rest []byte) {
	for len(b) >= 16 {
		n := int(binary.BigEndian.Uint32(b[4:]))
		if n < 16 || n > len(b) {
			break
		}
		frames = append(frames, parse(b[:n:n], fromClient))
		b = b[n:]
	}
	return frames, b
}

func parse(b []byte, fromClient bool) Parsed {
	end := 16 + int(binary.BigEndian.Uint16(b[8:]))
	p := Parsed{
		Stream: b[2] == 1, Kind: b[3], FixedID: binary.BigEndian.Uint32(b[10:]), Version: b[14],
		Header: b[16:end], Payload: b[end:], TransInfo: map[string]string{},
	}
	if p.Stream && p.Kind != Data {
		p.Header, p.Payload = p.Payload, nil
	}
	switch {
	case !p.Stream && fromClient:
		p.request()
	case !p.Stream:
		p.response()
	case p.Kind == Init:
		p.init()
	case p.Kind == Feedback:
		pbwiretest.Fields(p.Header, func(n int, v uint64, _ []byte) {
			if n == 1 {
				p.Window = uint32(v)
			}
		})
	case p.Kind == Close:
		pbwiretest.Fields(p.Header, func(n int, v uint64, b []byte) {
			switch n {
			case 1:
				p.Reset = v == 1
			case 2:
				p.Ret = int32(v)
			case 3:
				p.ErrorMsg = string(b)
			case 6:
				p.FuncRet = int32(v)
			}
		})
	}
	return p
}

func (p *Parsed) request() {
	pbwiretest.Fields(p.Header, func(n int, v uint64, b []byte) {
		switch n {
		case 2:
			p.Oneway = v == 1
		case 3:
			p.ID = uint32(v)
		case 5:
			p.Caller = string(b)
		case 6:
			p.Callee = string(b)
		case 7:
			p.Func = string(b)
		case 9:
			k, v := pbwiretest.Entry(b)
			p.TransInfo[k] = v
		}
	})
}

func (p *Parsed) response() {
	pbwiretest.Fields(p.Header, func(n int, v uint64, b []byte) {
		switch n {
		case 3:
			p.ID = uint32(v)
		case 4:
			p.Ret = int32(v)
		case 5:
			p.FuncRet = int32(v)
		case 6:
			p.ErrorMsg = string(b)
		case 8:
			k, v := pbwiretest.Entry(b)
			p.TransInfo[k] = v
		}
	})
}

func (p *Parsed) init() {
	pbwiretest.Fields(p.Header, func(n int, v uint64, b []byte) {
		switch n {
		case 1:
			pbwiretest.Fields(b, func(n int, _ uint64, b []byte) {
				switch n {
				case 1:
					p.Caller = string(b)
				case 2:
					p.Callee = string(b)
				case 3:
					p.Func = string(b)
				case 5:
					k, v := pbwiretest.Entry(b)
					p.TransInfo[k] = v
				}
			})
		case 2:
			pbwiretest.Fields(b, func(n int, v uint64, b []byte) {
				switch n {
				case 1:
					p.Ret = int32(v)
				case 2:
					p.ErrorMsg = string(b)
				}
			})
		case 3:
			p.Window = uint32(v)
		}
	})
}
