package brpctest

import (
	"encoding/binary"

	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire/pbwiretest"
)

// Parsed is a frame taken apart: of a call, or of a stream. Of a field that
// occurs more than once the last is here.
type Parsed struct {
	Magic   string
	Meta    []byte
	Payload []byte // the body, and behind it the attachment

	// Of a call.
	ID              uint64
	Service, Method string
	Code            int32
	Text            string
	Opens           uint64 // the sender's id of the stream that is opened
	UserFields      map[string]string
	ExtFields       map[string]string

	// Of a stream.
	To, From uint64
	Kind     int
}

// Parse takes whole frames apart and returns the rest. It panics when a meta
// cannot be read.
func Parse(b []byte) (frames []Parsed, rest []byte) {
	for len(b) >= 12 {
		n := 12 + int(binary.BigEndian.Uint32(b[4:]))
		if n > len(b) {
			break
		}
		meta := 12 + int(binary.BigEndian.Uint32(b[8:]))
		frames = append(frames, parse(string(b[:4]), b[12:meta], b[meta:n]))
		b = b[n:]
	}
	return frames, b
}

func parse(magic string, meta, payload []byte) Parsed {
	p := Parsed{
		Magic: magic, Meta: meta, Payload: payload,
		UserFields: map[string]string{}, ExtFields: map[string]string{},
	}
	if magic == "STRM" {
		pbwiretest.Fields(meta, func(n int, v uint64, _ []byte) {
			switch n {
			case 1:
				p.To = v
			case 2:
				p.From = v
			case 3:
				p.Kind = int(v)
			}
		})
		return p
	}
	pbwiretest.Fields(meta, func(n int, v uint64, b []byte) {
		switch n {
		case 1:
			p.request(b)
		case 2:
			pbwiretest.Fields(b, func(n int, v uint64, b []byte) {
				switch n {
				case 1:
					p.Code = int32(v)
				case 2:
					p.Text = string(b)
				}
			})
		case 4:
			p.ID = v
		case 8:
			pbwiretest.Fields(b, func(n int, v uint64, _ []byte) {
				if n == 1 {
					p.Opens = v
				}
			})
		case 9:
			k, v := pbwiretest.Entry(b)
			p.UserFields[k] = v
		}
	})
	return p
}

func (p *Parsed) request(b []byte) {
	pbwiretest.Fields(b, func(n int, _ uint64, b []byte) {
		switch n {
		case 1:
			p.Service = string(b)
		case 2:
			p.Method = string(b)
		case 7:
			if len(b) > 0 && b[0] == '\n' {
				k, v := pbwiretest.Entry(b)
				p.ExtFields[k] = v
			}
		}
	})
}
