// Package resp is as much of Redis's protocol (RESP2, arrays of bulk strings) as it
// takes to try on a real server what protocols without ids need: a preface (AUTH),
// leases (WATCH, MULTI, BLPOP, SUBSCRIBE) that are given back clean, and pushes. It
// is for tests; all keys go to one cluster.
package resp

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// Password is what servers ask for.
const Password = "sesame"

func init() {
	codecs.Register("test.codec.resp", func(*anypb.Any, codecs.Limits) (codecs.Codec, error) { return codec{}, nil })
}

type codec struct{}

func (codec) Traits() codecs.Traits {
	return codecs.Traits{Correlation: codecs.InOrder, ShareByDefault: true, Attributes: []string{"command"}}
}

func (codec) NewDecoder(d codecs.Direction) codecs.Decoder {
	if d == codecs.ServerToClient {
		return answers{}
	}
	return &requests{}
}

func (codec) Encode(dst []byte, m *codecs.Metadata, _ *codecs.Mutation) ([]byte, error) {
	return append(dst, m.Raw...), nil
}

func (codec) EncodeError(dst []byte, _ *codecs.Metadata, e *codecs.LocalError) ([]byte, error) {
	return append(append(append(dst, "-ERR "...), strings.ReplaceAll(e.Message, "\r\n", " ")...), "\r\n"...), nil
}

// EncodeHeartbeat implements codecs.Heartbeater: PING and QUIT.
func (codec) EncodeHeartbeat(dst []byte, hb *codecs.Metadata) ([]byte, error) {
	if string(hb.ReplyInfo) == "QUIT" {
		return append(dst, "+OK\r\n"...), nil
	}
	return append(dst, "+PONG\r\n"...), nil
}

// AppendPreface implements codecs.Prefacer.
func (codec) AppendPreface(dst []byte, _ uint8) ([]byte, error) {
	return Append(dst, "AUTH", Password), nil
}

// CheckPreface implements codecs.Prefacer.
func (codec) CheckPreface(req, answer *codecs.Metadata) error {
	if !bytes.HasPrefix(answer.Raw, []byte("+")) {
		return fmt.Errorf("the answer to %s is %.60q", req.ReplyInfo, answer.Raw)
	}
	return nil
}

// AppendReset implements codecs.Resetter.
func (c codec) AppendReset(dst []byte, variant uint8) ([]byte, error) {
	return c.AppendPreface(Append(dst, "RESET"), variant)
}

// CheckReset implements codecs.Resetter.
func (c codec) CheckReset(req, answer *codecs.Metadata) error { return c.CheckPreface(req, answer) }

// Append appends a command.
func Append(dst []byte, args ...string) []byte {
	dst = fmt.Appendf(dst, "*%d\r\n", len(args))
	for _, a := range args {
		dst = fmt.Appendf(dst, "$%d\r\n%s\r\n", len(a), a)
	}
	return dst
}

func wrong(reason string) error { return &codecs.ProtocolError{Protocol: "resp", Reason: reason} }

// number reads the number of a line that begins with a type byte. n is where the
// next line begins, 0 if this one is not whole.
func number(b []byte) (v, n int, err error) {
	i := bytes.Index(b, []byte("\r\n"))
	if i < 0 {
		return 0, 0, nil
	}
	v, err = strconv.Atoi(string(b[1:i]))
	if err != nil || v > 1<<20 {
		return 0, 0, wrong("not a number, or too large a one")
	}
	return v, i + 2, nil
}

// value returns the length of the first value of b, 0 if it is not whole.
func value(b []byte, depth int) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	switch b[0] {
	case '+', '-', ':':
		if i := bytes.Index(b, []byte("\r\n")); i >= 0 {
			return i + 2, nil
		}
		return 0, nil
	case '$', '*':
		v, n, err := number(b)
		if err != nil || n == 0 || v < 0 {
			return n, err
		}
		if b[0] == '$' {
			if len(b) < n+v+2 {
				return 0, nil
			}
			return n + v + 2, nil
		}
		if depth > 8 {
			return 0, wrong("nested too deep")
		}
		for range v {
			l, err := value(b[n:], depth+1)
			if err != nil || l == 0 {
				return 0, err
			}
			n += l
		}
		return n, nil
	}
	return 0, wrong("not a value")
}

// whole fills in what all messages have.
func whole(b []byte, m *codecs.Metadata) (int, error) {
	n, err := value(b, 0)
	if err != nil {
		return 0, err
	}
	if n == 0 {
		return len(b) + 1, nil
	}
	m.Raw, m.BodySize = b[:n], n
	return n, nil
}

// requests decodes what a client sends, and knows what state the server keeps for it.
type requests struct {
	multi, watch, subscribed bool
}

func (d *requests) Decode(b []byte, m *codecs.Metadata) (int, error) {
	if b[0] != '*' {
		return 0, wrong("a command is an array")
	}
	n, err := whole(b, m)
	if err != nil || n > len(b) {
		return n, err
	}
	count, at, _ := number(b)
	if count < 1 || b[at] != '$' {
		return 0, wrong("a command is an array of bulk strings")
	}
	size, skip, _ := number(b[at:])
	name := strings.ToUpper(string(b[at+skip : at+skip+max(0, size)]))
	m.Put([]byte("command"), []byte(name))
	m.SetOperation(nil, []byte(name))
	m.ReplyInfo = append(m.ReplyInfo[:0], name...)
	switch name {
	case "PING":
		m.Type, m.ExpectsReply = codecs.Heartbeat, true
		return n, nil
	case "QUIT":
		m.Type, m.ExpectsReply = codecs.Goodbye, true
		return n, nil
	}
	held := d.multi || d.watch || d.subscribed
	switch name {
	case "WATCH":
		d.watch = true
	case "UNWATCH":
		d.watch = false
	case "MULTI":
		d.multi = true
	case "EXEC", "DISCARD":
		d.multi, d.watch = false, false
	case "SUBSCRIBE":
		d.subscribed = true
	case "UNSUBSCRIBE":
		d.subscribed = false
	case "BLPOP", "BRPOP":
		held = true
	}
	switch {
	case d.multi || d.watch || d.subscribed:
		m.Lease = codecs.LeaseHeld
	case held:
		m.Lease = codecs.LeaseEnds
	}
	return n, nil
}

// answers decodes what a server sends.
type answers struct{}

func (a answers) Decode(b []byte, m *codecs.Metadata) (int, error) { return a.DecodeAnswer(b, m, nil) }

func (answers) DecodeAnswer(b []byte, m, _ *codecs.Metadata) (int, error) {
	n, err := whole(b, m)
	if err != nil || n > len(b) {
		return n, err
	}
	switch {
	case bytes.HasPrefix(b, []byte("*3\r\n$7\r\nmessage\r\n")):
		m.Type = codecs.Push
	case b[0] == '-':
		m.Type, m.Status = codecs.Error, codecs.StatusError
	default:
		m.Type = codecs.Response
	}
	return n, nil
}

// Read returns the first value of b and what is behind it; ok is false if it is
// not whole.
func Read(b []byte) (v string, rest []byte, ok bool, err error) {
	n, err := value(b, 0)
	if err != nil || n == 0 {
		return "", b, false, err
	}
	return string(b[:n]), b[n:], true, nil
}
