package memcached

import (
	"bytes"
	"strconv"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// answers decodes what a server sends. Where an answer ends, and whether it is one
// at all, depends on the request.
type answers struct {
	*codec
	// Of an answer of several lines that has not come as a whole: how much of it has
	// been read, and how much of the request's keys.
	at, keys int
}

// Decode implements codecs.Decoder.
func (d *answers) Decode(buf []byte, m *codecs.Metadata) (int, error) {
	return d.DecodeAnswer(buf, m, nil)
}

// DecodeAnswer implements codecs.AnswerDecoder.
func (d *answers) DecodeAnswer(buf []byte, m, req *codecs.Metadata) (n int, err error) {
	if req == nil {
		return fault(0, "nobody has asked for an answer")
	}
	if d.at > len(buf) {
		d.at, d.keys = 0, 0
	}
	m.Type = codecs.Response
	switch k := kind(req.Scratch[scratchKind]); k {
	case get, gets:
		n, err = d.values(buf, m, req, k == gets)
	case stats:
		n, err = d.stats(buf, m)
	default:
		n, err = d.line(buf, m, req, k)
	}
	if err != nil || n <= len(buf) {
		d.at, d.keys = 0, 0
	}
	if err == nil && n <= len(buf) {
		m.Raw, m.HeaderSize = buf[:n:n], n
	}
	return n, err
}

// next is the line at an offset, without its end, and what is behind it: more than
// there is if it has not come. That is told by an error first.
func (d *answers) next(buf []byte, at int) (line []byte, end int, err error) {
	longest := min(at+maxLine, d.maxFrame)
	i := bytes.IndexByte(buf[at:max(at, min(len(buf), longest))], '\n')
	switch {
	case i < 0 && len(buf) < longest:
		return nil, len(buf) + 1, nil
	case i < 0:
		_, err = fault(longest, "the line is too long")
		return nil, 0, err
	case i == 0 || buf[at+i-1] != '\r':
		_, err = fault(at+i, "a line that ends without \\r")
		return nil, 0, err
	}
	return buf[at : at+i-1], at + i + 1, nil
}

// isError tells the lines by which memcached refuses any command, and gives m their
// type.
func isError(line []byte, m *codecs.Metadata) bool {
	w, _ := word(line)
	switch string(w) {
	case "ERROR", "CLIENT_ERROR", "SERVER_ERROR":
		m.Type, m.Status = codecs.Error, codecs.StatusError
		return true
	}
	return false
}

const end = "END\r\n"

// values reads what get is answered: keys that were asked for, in that order.
func (d *answers) values(buf []byte, m, req *codecs.Metadata, cas bool) (int, error) {
	for {
		line, behind, err := d.next(buf, d.at)
		switch {
		case err != nil:
			return 0, err
		case behind > len(buf):
			return max(behind, d.at+len(end)), nil
		case string(line) == "END" || d.at == 0 && isError(line, m):
			return behind, nil
		}
		key, size, ok := value(line, cas)
		if !ok {
			return fault(d.at, "no value, nor the end of them")
		}
		keys, ok := skipTo(req.ReplyInfo, d.keys, key)
		if !ok {
			return fault(d.at, "the value of a key that was not asked for")
		}
		data := behind + size + len("\r\n")
		if whole := data + len(end); whole > d.maxFrame && d.at == 0 && single(req.ReplyInfo) {
			return 0, &codecs.TooLarge{Size: whole, Limit: d.maxFrame}
		} else if whole > d.maxFrame {
			return fault(d.at, "the values are too large together")
		} else if whole > len(buf) {
			return whole, nil
		}
		if string(buf[data-2:data]) != "\r\n" {
			return fault(data-2, "the value does not end where it should")
		}
		d.at, d.keys = data, keys
	}
}

// value reads the line before a value.
func value(line []byte, cas bool) (key []byte, size int, ok bool) {
	w, rest := word(line)
	key, rest = word(rest)
	flags, rest := word(rest)
	bytes, rest := word(rest)
	unique, rest := word(rest)
	size, ok = length(bytes)
	return key, size, ok && string(w) == "VALUE" && len(flags) > 0 && len(unique) > 0 == cas && len(rest) == 0
}

// length reads how long a value is.
func length(b []byte) (n int, ok bool) {
	u, err := strconv.ParseUint(string(b), 10, 31)
	return int(u), err == nil
}

// skipTo finds a key among those from an offset on, and where it ends.
func skipTo(keys []byte, at int, key []byte) (end int, ok bool) {
	for w, rest := word(keys[at:]); len(w) > 0; w, rest = word(rest) {
		if bytes.Equal(w, key) {
			return len(keys) - len(rest), true
		}
	}
	return at, false
}

// single reports whether there is but one key.
func single(keys []byte) bool {
	_, rest := word(keys)
	w, _ := word(rest)
	return len(w) == 0
}

// stats reads what stats is answered, by any of its subcommands.
func (d *answers) stats(buf []byte, m *codecs.Metadata) (int, error) {
	for {
		line, behind, err := d.next(buf, d.at)
		if err != nil || behind > len(buf) {
			return behind, err
		}
		switch w, _ := word(line); string(w) {
		case "END":
			return behind, nil
		case "STAT", "ITEM", "PREFIX":
			d.at = behind
		case "RESET", "OK":
			if d.at == 0 {
				return behind, nil
			}
			return fault(d.at, "no statistics")
		default:
			if d.at == 0 && isError(line, m) {
				return behind, nil
			}
			return fault(d.at, "no statistics")
		}
	}
}

// line reads an answer of one line, and perhaps a value.
func (d *answers) line(buf []byte, m, req *codecs.Metadata, k kind) (int, error) {
	line, n, err := d.next(buf, 0)
	if err != nil || n > len(buf) || isError(line, m) {
		return n, err
	}
	w, rest := word(line)
	size := -1
	if string(w) == "VA" && (k == metaGet || k == metaArithmetic) {
		var ok bool
		var bytes []byte
		bytes, rest = word(rest)
		if size, ok = length(bytes); !ok {
			return fault(0, "the value has no length")
		}
	} else if !answersTo(k, w, rest) {
		return fault(0, "it is no answer to the command")
	}
	if k >= metaGet && k <= metaDebug && !d.same(req, k, w, rest) {
		return fault(0, "the answer has another key or opaque than the request")
	}
	if req.Type == codecs.Quiet {
		m.Silent = quiet(k, w)
	}
	if size < 0 {
		return n, nil
	}
	n += size + len("\r\n")
	switch {
	case n > d.maxFrame:
		m.Silent = false
		return 0, &codecs.TooLarge{Size: n, Limit: d.maxFrame}
	case n <= len(buf) && string(buf[n-2:n]) != "\r\n":
		return fault(n-2, "the value does not end where it should")
	}
	return n, nil
}

// answersTo reports whether a line with that first word answers a command.
func answersTo(k kind, w, rest []byte) bool {
	switch string(w) {
	case "STORED", "NOT_STORED", "EXISTS":
		return k == stored
	case "NOT_FOUND":
		return k == stored || k == deleted || k == touched || k == number
	case "DELETED":
		return k == deleted
	case "TOUCHED":
		return k == touched
	case "OK":
		return k == ok
	case "VERSION":
		return k == version
	case "MN":
		return k == metaNoop
	case "HD":
		return k == metaGet || k == metaSet || k == metaDelete || k == metaArithmetic
	case "EN":
		return k == metaGet || k == metaDebug
	case "NS":
		return k == metaSet || k == metaArithmetic
	case "EX", "NF":
		return k == metaSet || k == metaDelete || k == metaArithmetic
	case "ME":
		return k == metaDebug
	}
	return k == number && len(w) > 0 && len(bytes.TrimLeft(w, "0123456789")) == 0 && len(rest) == 0
}

// quiet reports whether the flag q suppresses an answer.
func quiet(k kind, w []byte) bool {
	switch string(w) {
	case "EN":
		return k == metaGet
	case "HD":
		return k != metaGet
	case "VA":
		return k == metaArithmetic
	}
	return false
}

// same reports whether what a meta command's answer repeats is the request's.
func (d *answers) same(req *codecs.Metadata, k kind, w, flags []byte) bool {
	n := req.Scratch[scratchKey]
	key, opaque := req.ReplyInfo[:n], req.ReplyInfo[n:]
	if k == metaDebug {
		w, _ := word(flags)
		return len(w) == 0 || bytes.Equal(w, key) || isBase64(w, key)
	}
	binary := false
	var repeated, own []byte
	for f, rest := word(flags); len(f) > 0; f, rest = word(rest) {
		switch f[0] {
		case 'b':
			binary = true
		case 'k':
			repeated = f[1:]
		case 'O':
			own = f
		}
	}
	switch {
	case repeated != nil && binary && !isBase64(repeated, key), repeated != nil && !binary && !bytes.Equal(repeated, key):
		return false
	case len(own) == 0 && string(w) == "EN": // of old servers
		return true
	}
	return bytes.Equal(own, opaque)
}

// isBase64 reports whether w is key in base64.
func isBase64(w, key []byte) bool {
	var b [(maxKey+2)/3*4 + 4]byte
	return len(w) == strict.EncodedLen(len(key)) && len(w) <= len(b) && bytes.Equal(strict.AppendEncode(b[:0], key), w)
}
