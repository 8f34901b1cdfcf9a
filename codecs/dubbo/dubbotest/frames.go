// Package dubbotest makes and reads Dubbo frames for tests. It shares nothing
// with the codec that it helps to test but the protocol.
package dubbotest

import (
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Request describes a request with one string argument.
type Request struct {
	ID          uint64
	Interface   string // default "org.example.Greeter"
	Method      string // default "sayHello"
	Version     string
	Argument    string
	Oneway      bool
	Attachments [][2]string
}

func appendString(b []byte, s string) []byte {
	const most = 0xffff // in a chunk
	n := utf8.RuneCountInString(s)
	for ; n > most; n -= most {
		runes := 0
		end := strings.IndexFunc(s, func(rune) bool { runes++; return runes > most })
		b = append(append(b, 'R', most>>8, most&0xff), s[:end]...)
		s = s[end:]
	}
	switch {
	case n < 32:
		b = append(b, byte(n))
	case n < 1024:
		b = append(b, 0x30|byte(n>>8), byte(n))
	default:
		b = append(b, 'S', byte(n>>8), byte(n))
	}
	return append(b, s...)
}

// Frame makes a frame with a body.
func Frame(flags, status byte, id uint64, body []byte) []byte {
	b := []byte{0xda, 0xbb, flags, status}
	b = binary.BigEndian.AppendUint64(b, id)
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	return append(b, body...)
}

// Bytes returns the frame of the request.
func (r Request) Bytes() []byte {
	if r.Interface == "" {
		r.Interface = "org.example.Greeter"
	}
	if r.Method == "" {
		r.Method = "sayHello"
	}
	var b []byte
	for _, s := range []string{"2.0.2", r.Interface, r.Version, r.Method, "Ljava/lang/String;", r.Argument} {
		b = appendString(b, s)
	}
	flags := byte(0xc2)
	if r.Oneway {
		flags = 0x82
	}
	return Frame(flags, 0, r.ID, appendMap(b, r.Attachments))
}

func appendMap(b []byte, kvs [][2]string) []byte {
	b = append(b, 'H')
	for _, kv := range kvs {
		b = appendString(appendString(b, kv[0]), kv[1])
	}
	return append(b, 'Z')
}

// Response makes an answer with a string value, and attachments if there are
// any.
func Response(id uint64, value string, attachments ...[2]string) []byte {
	if len(attachments) == 0 {
		return Frame(0x02, 20, id, appendString([]byte{0x91}, value))
	}
	return Frame(0x02, 20, id, appendMap(appendString([]byte{0x94}, value), attachments))
}

// ErrorResponse makes an answer with a status and a text.
func ErrorResponse(id uint64, status byte, text string) []byte {
	return Frame(0x02, status, id, appendString(nil, text))
}

// Heartbeat makes a heartbeat request.
func Heartbeat(id uint64) []byte { return Frame(0xe2, 0, id, []byte{'N'}) }

// ReadOnly makes the event by which a server says that it is leaving.
func ReadOnly(id uint64) []byte { return Frame(0xa2, 0, id, []byte{1, 'R'}) }

// Parsed is a frame taken apart.
type Parsed struct {
	Flags, Status byte
	ID            uint64
	Body          []byte
}

// Text returns the string that the body of a non-OK answer is, or that a value
// answer carries.
func (p Parsed) Text() string {
	b := p.Body
	if p.Status == 20 && len(b) > 0 {
		b = b[1:]
	}
	switch {
	case len(b) == 0:
		return ""
	case b[0] < 32:
		return string(b[1:min(len(b), 1+int(b[0]))])
	case b[0]&0xfc == 0x30:
		return string(b[2:min(len(b), 2+int(b[0]&3)<<8+int(b[1]))])
	case b[0] == 'S':
		return string(b[3:min(len(b), 3+int(b[1])<<8+int(b[2]))])
	}
	return fmt.Sprintf("%x", b)
}

// Parse takes whole frames apart and returns the rest.
func Parse(b []byte) (frames []Parsed, rest []byte) {
	for len(b) >= 16 {
		n := 16 + int(binary.BigEndian.Uint32(b[12:]))
		if n > len(b) {
			break
		}
		frames = append(frames, Parsed{b[2], b[3], binary.BigEndian.Uint64(b[4:]), b[16:n]})
		b = b[n:]
	}
	return frames, b
}
