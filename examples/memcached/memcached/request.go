package memcached

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"math"
	"strconv"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// kind is which answers a command has.
type kind uint32

const (
	none kind = iota // it is answered by the proxy, or not at all
	get              // values, and END
	gets             // values that have a cas number
	stats
	version
	ok
	stored
	deleted
	touched
	number
	metaGet
	metaSet
	metaDelete
	metaArithmetic
	metaDebug
	metaNoop
)

// command says what a client may write.
type command struct {
	kind     kind
	min, max int // words, its name included; max 0: any number
}

var commands = map[string]command{
	"get":       {get, 2, 0},
	"gets":      {gets, 2, 0},
	"gat":       {get, 2, 0},
	"gats":      {gets, 2, 0},
	"set":       {stored, 5, 6},
	"add":       {stored, 5, 6},
	"replace":   {stored, 5, 6},
	"append":    {stored, 5, 6},
	"prepend":   {stored, 5, 6},
	"cas":       {stored, 6, 7},
	"delete":    {deleted, 2, 4},
	"touch":     {touched, 3, 4},
	"incr":      {number, 3, 4},
	"decr":      {number, 3, 4},
	"mg":        {metaGet, 2, 0},
	"ms":        {metaSet, 2, 0},
	"md":        {metaDelete, 2, 0},
	"ma":        {metaArithmetic, 2, 0},
	"me":        {metaDebug, 1, 0},
	"mn":        {metaNoop, 1, 0},
	"stats":     {stats, 1, 0},
	"version":   {version, 1, 0},
	"quit":      {none, 1, 0},
	"flush_all": {ok, 1, 3},
	"verbosity": {ok, 2, 3},
}

// requests decodes what a client sends.
type requests struct {
	*codec
	seen int // bytes of the first line that have no end of line
}

// request is one whose line has come.
type request struct {
	command
	buf   []byte
	line  []byte // without its end
	end   int    // of the line in buf
	words [maxWords][]byte
	n     int // words, maxWords if there are more
}

// maxWords is how many words of a line memcached looks at at once: a line with more
// is the keys of a get, or not for it.
const maxWords = 23

// Decode implements codecs.Decoder.
func (d *requests) Decode(buf []byte, m *codecs.Metadata) (int, error) {
	if buf[0] == 0x80 {
		return fault(0, "this is the binary protocol")
	}
	longest := min(maxLine, d.maxFrame)
	if words := bytes.TrimLeft(buf[:min(len(buf), 100)], " "); bytes.HasPrefix(words, []byte("get ")) || bytes.HasPrefix(words, []byte("gets ")) {
		longest = min(maxKeys, d.maxFrame)
	}
	seen := min(d.seen, len(buf))
	i := bytes.IndexByte(buf[seen:max(seen, min(len(buf), longest))], '\n')
	if i < 0 && len(buf) < longest {
		d.seen = len(buf)
		return len(buf) + 1, nil
	}
	d.seen = 0
	if i < 0 {
		return fault(longest, "the line is too long")
	}
	d.seen = seen + i // if its data have not come
	r := request{buf: buf, line: buf[:seen+i], end: seen + i + 1}
	if n := len(r.line); n > 1 && r.line[n-1] == '\r' {
		r.line = r.line[:n-1]
	}
	n, err := d.decode(m, &r)
	if err != nil || n <= len(buf) {
		d.seen = 0
	}
	if err != nil || n > len(buf) {
		return n, err
	}
	m.Raw, m.HeaderSize, m.BodySize = buf[:n:n], r.end, n-r.end
	m.Malformed = replies[m.Scratch[scratchReply]].why
	return n, nil
}

func (d *requests) decode(m *codecs.Metadata, r *request) (n int, err error) {
	if at := bytes.IndexByte(r.line, 0); at >= 0 {
		return fault(at, "a zero in a line, at which servers end it")
	}
	for rest := r.line; r.n < maxWords; r.n++ {
		if r.words[r.n], rest = word(rest); len(r.words[r.n]) == 0 {
			break
		}
	}
	m.Type = codecs.Request
	known := false
	if r.n > 0 {
		r.command, known = commands[string(r.words[0])]
	}
	switch {
	case !known && r.n > 0 && bytes.HasPrefix(r.words[r.n-1], []byte("HTTP/")):
		return fault(0, "this is HTTP")
	case !known || r.n < r.min && r.kind != metaDebug || r.max > 0 && r.n > r.max:
		return r.refuse(m, unknown)
	}
	m.Scratch[scratchKind] = uint32(r.kind)
	m.Put(commandName, r.words[0])
	m.SetOperation(nil, r.words[0])
	switch r.kind {
	case get, gets:
		return d.get(m, r)
	case stored:
		return d.store(m, r)
	case deleted, touched, number:
		return d.change(m, r)
	case metaGet, metaSet, metaDelete, metaArithmetic, metaDebug:
		return d.meta(m, r)
	}
	return d.simple(m, r)
}

var commandName, prefixName = []byte("command"), []byte("prefix")

// word cuts the first word off.
func word(b []byte) (w, rest []byte) {
	b = bytes.TrimLeft(b, " ")
	if i := bytes.IndexByte(b, ' '); i >= 0 {
		return b[:i], b[i:]
	}
	return b, nil
}

// refuse has the line answered by the proxy.
func (r *request) refuse(m *codecs.Metadata, reply uint32) (int, error) {
	m.Scratch[scratchReply] = reply
	return r.end, nil
}

// noreply makes a oneway of a command whose last word says so.
func (r *request) noreply(m *codecs.Metadata) bool {
	if string(r.words[r.n-1]) != "noreply" {
		return false
	}
	m.Type = codecs.Oneway
	return true
}

// prefix is the part of a key by which rules go: up to its first delimiter, nothing
// if it has none.
func (c *codec) prefix(key []byte) []byte {
	i := bytes.Index(key, c.delimiter)
	if i < 0 {
		return nil
	}
	return key[:i+len(c.delimiter)]
}

// simple reads what has no key.
func (d *requests) simple(m *codecs.Metadata, r *request) (int, error) {
	switch r.kind {
	case none:
		m.Type = codecs.Goodbye
	case metaNoop:
		m.Type, m.ExpectsReply = codecs.Heartbeat, true
	case ok:
		if r.noreply(m) && r.n == r.min { // as in change
			return r.refuse(m, badFormat)
		}
	}
	m.Put(prefixName, nil)
	return r.end, nil
}

// change reads a command with a key and perhaps a number, which the server judges.
func (d *requests) change(m *codecs.Metadata, r *request) (int, error) {
	if r.kind == deleted && r.n > 2 {
		zero := string(r.words[2]) == "0"
		if noreply := r.noreply(m); r.n == 3 && !zero && !noreply || r.n == 4 && (!zero || !noreply) {
			return r.refuse(m, badDelete)
		}
	} else if r.kind != deleted && r.noreply(m) && r.n == r.min {
		return r.refuse(m, badFormat) // an error, of which not every server might keep silent
	}
	if len(r.words[1]) > maxKey {
		return r.refuse(m, badFormat)
	}
	m.Put(prefixName, d.prefix(r.words[1]))
	return r.end, nil
}

// get reads a command with any number of keys. Rules must not be able to tell one
// from the other, so all have one prefix.
func (d *requests) get(m *codecs.Metadata, r *request) (int, error) {
	_, keys := word(r.line)
	if r.words[0][1] == 'a' {
		_, keys = word(keys)
	}
	var prefix []byte
	several := false
	first := true
	for key, rest := word(keys); len(key) > 0; key, rest = word(rest) {
		if len(key) > maxKey {
			return r.refuse(m, badFormat)
		}
		p := d.prefix(key)
		several = several || !first && !bytes.Equal(p, prefix)
		prefix, first = p, false
	}
	if several {
		return r.refuse(m, severalPrefixes)
	}
	m.Put(prefixName, prefix)
	m.ReplyInfo = append(m.ReplyInfo[:0], keys...)
	return r.end, nil
}

// store reads a command with data behind the line, unless its numbers are none: then
// memcached takes the data for commands.
func (d *requests) store(m *codecs.Metadata, r *request) (int, error) {
	r.noreply(m)
	if len(r.words[1]) > maxKey {
		return r.refuse(m, badFormat)
	}
	_, is := numeral(r.words[2], math.MaxUint32, false)
	_, expires := numeral(r.words[3], math.MaxInt32, true)
	size, sized := numeral(r.words[4], math.MaxInt32, false)
	is = min(is, expires, sized)
	if string(r.words[0]) == "cas" {
		_, cas := numeral(r.words[5], math.MaxUint64, false)
		is = min(is, cas)
	}
	switch {
	case is == perhaps:
		return fault(0, "a number that servers read differently")
	case is == no || size > maxSize:
		return r.refuse(m, badFormat)
	}
	m.Put(prefixName, d.prefix(r.words[1]))
	return d.data(m, r, int(size))
}

// maxSize is the largest value that memcached reads.
const maxSize = math.MaxInt32 - 2

// data reads size bytes behind the line.
func (d *requests) data(m *codecs.Metadata, r *request, size int) (int, error) {
	n := r.end + size + len("\r\n")
	switch {
	case n > d.maxFrame:
		m.Release()
		return 0, &codecs.TooLarge{Size: n, Limit: d.maxFrame}
	case n > len(r.buf):
	case string(r.buf[n-2:n]) != "\r\n":
		m.Scratch[scratchReply] = cmp.Or(m.Scratch[scratchReply], badData)
		if m.Type == codecs.Quiet {
			m.Type = codecs.Request // of errors the client hears
		}
	}
	return n, nil
}

// meta reads a meta command.
func (d *requests) meta(m *codecs.Metadata, r *request) (int, error) {
	flags, size := 2, uint64(0)
	switch {
	case r.n < 2 || len(r.words[1]) > maxKey || r.kind == metaSet && r.n < 3:
		return r.refuse(m, badFormat)
	case r.kind == metaDebug:
		d.metaKey(m, r, r.n > 2 && string(r.words[2]) == "b", badFormat)
		return r.end, nil
	case r.n > maxFlags && r.kind == metaGet:
		return r.refuse(m, tooManyFlagsOfGet)
	case r.n > maxFlags:
		return r.refuse(m, tooManyFlags)
	case r.kind == metaSet:
		var is verdict
		if size, is = numeral(r.words[2], math.MaxInt32, false); is == perhaps {
			return fault(0, "a number that servers read differently")
		} else if is == no || size > maxSize {
			return r.refuse(m, badFormat)
		}
		flags = 3
	}
	invalid, duplicate := uint32(badKey), uint32(duplicateFlag)
	if r.kind == metaDelete || r.kind == metaArithmetic {
		invalid, duplicate = badFlag, badFlag
	}
	var seen [256]bool
	var opaque []byte
	for _, w := range r.words[flags:r.n] {
		switch w[0] {
		case 'O':
			opaque = w
		case 'q':
			m.Type = codecs.Quiet
			m.Scratch[scratchQuietAt] = uint32(cap(r.line) - cap(w))
			m.Scratch[scratchQuietLen] = uint32(len(w))
		}
		if seen[w[0]] {
			m.Scratch[scratchReply] = duplicate
		}
		seen[w[0]] = true
	}
	d.metaKey(m, r, seen['b'], invalid)
	m.ReplyInfo = append(m.ReplyInfo, opaque...)
	if m.Scratch[scratchReply] != 0 {
		m.Type = codecs.Request // of errors the client hears
	}
	if r.kind != metaSet {
		return r.end, nil
	}
	return d.data(m, r, int(size))
}

// maxFlags is how many words a meta command may have.
const maxFlags = 19

// metaKey keeps the key of a meta command, which may be in base64.
func (d *requests) metaKey(m *codecs.Metadata, r *request, binary bool, invalid uint32) {
	key := r.words[1]
	if binary {
		var err error
		if key, err = strict.AppendDecode(m.ReplyInfo[:0], key); err != nil {
			m.Scratch[scratchReply] = cmp.Or(m.Scratch[scratchReply], invalid)
			return
		}
		m.ReplyInfo = key
	} else {
		m.ReplyInfo = append(m.ReplyInfo[:0], key...)
	}
	m.Scratch[scratchKey] = uint32(len(key))
	m.Put(prefixName, d.prefix(key))
}

// strict is base64 as it can be written in one way only.
var strict = base64.StdEncoding.Strict()

// verdict is whether something is a number.
type verdict uint8

const (
	perhaps verdict = iota // servers differ, of one version or another
	no
	yes
)

// numeral reads a decimal up to a limit.
func numeral(w []byte, limit uint64, negative bool) (n uint64, is verdict) {
	digits := w
	if w[0] == '-' {
		digits = w[1:]
	}
	rest := bytes.TrimLeft(digits, "0123456789")
	switch {
	case bytes.ContainsAny(w, "\t\v\f\r") || w[0] == '+':
		return 0, perhaps
	case len(rest) > 0 || len(digits) == 0:
		return 0, no
	}
	n, err := strconv.ParseUint(string(digits), 10, 64)
	switch {
	case err != nil || n > limit || n == 0 && w[0] == '-':
		return 0, perhaps
	case w[0] == '-' && !negative:
		return 0, no
	}
	return n, yes
}
