package thrift

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"strconv"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/property"
)

// The headers proper: both header transports have them as key-value parts,
// with varints in Apache's, with 16-bit numbers in Kitex's.

// infoReader reads these parts.
type infoReader struct {
	b     []byte // the frame up to the end of its header
	at    int
	end   int // of the last pair that was read; 0: there was none
	kitex bool
	err   error
}

func (r *infoReader) uvarint() uint64 {
	if r.err != nil {
		return 0
	}
	v, n := uvarint(r.b[r.at:])
	if n <= 0 || v>>32 != 0 { // of which servers take the lower bits
		r.err = errHeader
		return 0
	}
	r.at += n
	return v
}

func (r *infoReader) u16() uint64 {
	b := r.bytes(2)
	if b == nil {
		return 0
	}
	return uint64(binary.BigEndian.Uint16(b))
}

// number reads a count or length.
func (r *infoReader) number() uint64 {
	if r.kitex {
		return r.u16()
	}
	return r.uvarint()
}

func (r *infoReader) bytes(n uint64) []byte {
	if r.err != nil {
		return nil
	}
	if n > uint64(len(r.b)-r.at) {
		r.err = errHeader
		return nil
	}
	v := r.b[r.at : r.at+int(n) : r.at+int(n)]
	r.at += int(n)
	return v
}

// Kinds of parts.
const (
	partEnd      = iota
	partHeaders  // names and values
	partNumbered // numbers and values (TTHeader)
	partToken    // the value of one name (TTHeader)
	partUnknown  // cannot be read, nor what is behind it
)

// Ids of parts in a TTHeader.
const (
	infoTTKeyValue = 0x01
	infoTTNumbered = 0x10
	infoTTToken    = 0x11
)

// next reads the beginning of a part with n pairs.
func (r *infoReader) next() (kind int, n uint64) {
	for r.err == nil && r.at < len(r.b) {
		id := uint64(r.b[r.at])
		if r.kitex {
			r.at++
		} else {
			id = r.uvarint()
		}
		switch {
		case id == 0 && !r.kitex: // padding, behind which servers read nothing
			return partEnd, 0
		case id == 0: // padding, behind which Kitex reads on
		case r.kitex && id == infoTTNumbered:
			return partNumbered, r.u16()
		case r.kitex && id == infoTTToken:
			return partToken, 1
		case id == infoKeyValue:
			return partHeaders, r.number()
		default:
			return partUnknown, 0
		}
	}
	return partEnd, 0
}

func (r *infoReader) pair(kind int) (key, value []byte) {
	key = r.key(kind)
	return key, r.value()
}

// key reads what is before a value.
func (r *infoReader) key(kind int) []byte {
	switch kind {
	case partNumbered:
		return r.bytes(2)
	case partToken:
		return nameToken
	default:
		return r.bytes(r.number())
	}
}

func (r *infoReader) value() []byte {
	v := r.bytes(r.number())
	r.end = r.at
	return v
}

// putHeaders puts the headers of m as properties. Of two with one name servers
// take the later, over all parts of a kind.
func (d *decoder) putHeaders(r *infoReader, m *codecs.Metadata) {
	entries := property.EntriesOf(m)
	defer entries.Close()
	var has kinds
	for count := 0; ; {
		kind, n := r.next()
		if kind == partEnd || r.err != nil {
			break
		}
		if kind == partUnknown {
			m.Scratch[scratchForm] |= noInfo
			break
		}
		for ; n > 0; n-- {
			key, value := r.pair(kind)
			if r.err != nil {
				break
			}
			if count++; count > maxHeaders {
				d.costsCall(m, errHeaders)
				return
			}
			switch kind {
			case partNumbered:
				has.number(key)
				key = numberedName(key)
			case partToken:
				has.token = true
			}
			if key == nil || ownName(key) {
				continue
			}
			switch i := entries.Find(key, true); {
			case i == property.None:
				m.Put(key, value)
			case kind == partHeaders && has.numbered(key):
				// Kitex keeps numbers and names apart, and goes by the numbers.
			case has.token && string(key) == string(nameToken) && d.dir == codecs.ClientToServer && m.Malformed == "":
				m.Malformed = errToken
			default:
				m.Properties()[i].Value = value
			}
		}
	}
	if r.err != nil {
		d.costsCall(m, r.err)
	}
}

// costsCall notes what is wrong with the headers of a message that can be read. A request
// is refused by it. What is in an answer is its client's to judge: nothing is added to it.
func (d *decoder) costsCall(m *codecs.Metadata, err error) {
	m.Scratch[scratchForm] |= noInfo
	if d.dir == codecs.ClientToServer && m.Malformed == "" {
		m.Malformed = err.Error()
	}
}

// errToken: Kitex takes the later of the two, others may keep the token apart.
const errToken = "its token occurs twice"

// kinds is which names the headers of a message have that are no names there.
type kinds struct {
	numbers uint32 // a bit for each
	token   bool
}

// number notes a numbered header.
func (k *kinds) number(key []byte) { k.numbers |= 1 << binary.BigEndian.Uint16(key) }

// numbered reports whether there was a numbered header of that name.
func (k *kinds) numbered(name []byte) bool {
	for n := k.numbers; n != 0; n &= n - 1 {
		if i := bits.TrailingZeros32(n); i < len(numbered) && string(numbered[i]) == string(name) {
			return true
		}
	}
	return false
}

// ownName reports whether a header has the name of a property of the protocol
// itself: rules must see what the server acts upon.
func ownName(key []byte) bool {
	switch len(key) {
	case len(propMethod):
		return codecs.EqualFold(key, propMethod)
	case len(propService):
		return codecs.EqualFold(key, propService)
	case len(propTransport):
		return codecs.EqualFold(key, propTransport)
	case len(propProtocol):
		return codecs.EqualFold(key, propProtocol)
	}
	return false
}

// isCall reports whether a header of that name says what is called, or how it
// has ended, or would pass for one of the protocol's own properties.
func isCall(key string) bool {
	return key == keyService || key == keyBizStatus || key == string(numbered[numberToService]) || ownName([]byte(key))
}

// change is what changes in the headers of a message.
type change struct {
	mut    *codecs.Mutation
	millis int32 // what a TTHeader tells as the timeout; 0: what it does
	retry  int   // and as the number of a retry
	stays  bool  // an answer does not say that its server leaves
}

func changeOf(m *codecs.Metadata, mut *codecs.Mutation) change {
	ch := change{mut: mut, stays: m.GoesAway}
	if mut != nil && hasMarks(m) {
		ch.millis, ch.retry = mut.Millis(), mut.Retry
	}
	return ch
}

// likeCall is isCall without regard to case, as keys are removed.
func likeCall(key string) bool {
	b := []byte(key)
	return isCall(key) || codecs.EqualFold(b, keyService) || codecs.EqualFold(b, keyBizStatus) || codecs.EqualFold(b, string(numbered[numberToService]))
}

// mutate appends the frame with other headers: parts of other kinds stay as
// they are but for numbered headers and the token of a name that is set or
// removed; names and values come in one part behind them.
func (c *codec) mutate(dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	f := form(m.Scratch[scratchForm] & 0xff)
	if !f.hasHeader() {
		if len(mut.Entries()) == 0 {
			return append(dst, m.Raw...), nil // nothing is there to be removed
		}
		return dst, fmt.Errorf("%w: %s transport has no headers", codecs.ErrNoMutation, transportNames[f.transport()])
	}
	if m.Scratch[scratchForm]&noInfo != 0 {
		return dst, fmt.Errorf("%w: its header has parts of an unknown kind", codecs.ErrNoMutation)
	}
	start, raw := len(dst), m.Raw
	end, err := headerEnd(raw)
	if err != nil {
		return dst, err
	}
	ch := changeOf(m, mut)
	for _, kv := range mut.Entries() {
		if isCall(kv.Key) { // a filter's
			return dst, fmt.Errorf("%w: %q belongs to the call itself", codecs.ErrNoMutation, kv.Key)
		}
	}
	for _, key := range mut.Removed() {
		if likeCall(key) {
			return dst, fmt.Errorf("%w: %q belongs to the call itself", codecs.ErrNoMutation, key)
		}
	}
	info := int(m.Scratch[scratchInfo])
	w := infoWriter{kitex: f.transport() != header}
	dst = append(dst, raw[:info]...)

	r := infoReader{b: raw[:end], at: info, kitex: w.kitex}
	count, others := uint64(len(mut.Entries())), uint64(0) // headers with names, and all others
	if ch.retry > 0 {
		count++
	}
	for at := r.at; ; at = r.at {
		kind, n := r.next()
		if kind == partEnd {
			break
		}
		if kind == partNumbered {
			dst = append(dst, raw[at:r.at]...)
		}
		pairs := len(dst)
		for ; n > 0 && r.err == nil; n-- {
			at := r.at
			key, _ := r.pair(kind)
			switch {
			case kind == partHeaders && ch.keeps(key):
				count++
			case kind == partNumbered && ch.gone(numberedName(key)):
				left := dst[pairs-2 : pairs]
				binary.BigEndian.PutUint16(left, binary.BigEndian.Uint16(left)-1)
			case kind == partNumbered:
				dst = w.numbered(dst, raw[at:r.at], &ch)
				others++
			case kind == partToken && !ch.touches(key): // else a header takes its place, or none
				dst = append(append(dst, infoTTToken), raw[at:r.at]...)
				others++
			}
		}
	}
	if ch.millis > 0 && !w.timeout {
		dst = append(dst, infoTTNumbered, 0, 1)
		dst = w.decimal(append(dst, 0, numberTimeout), int64(ch.millis))
		others++
	}
	if count > 0 {
		dst = w.number(append(dst, infoKeyValue), count)
	}
	r.at = info
	for {
		kind, n := r.next()
		if kind == partEnd {
			break
		}
		for ; n > 0 && r.err == nil; n-- {
			at := r.at
			if key, _ := r.pair(kind); kind == partHeaders && ch.keeps(key) {
				dst = append(dst, raw[at:r.at]...)
			}
		}
	}
	dst = w.entries(dst, mut.Entries())
	if ch.retry > 0 { // of two the later counts
		dst = append(w.number(dst, uint64(len(keyRetried))), keyRetried...)
		dst = w.decimal(dst, int64(ch.retry))
	}
	for (len(dst)-start-headerFixed)%wordSize != 0 {
		dst = append(dst, 0)
	}
	size := len(dst) - start - headerFixed
	dst = append(dst, raw[end:]...)
	if size > f.maxHeader() || len(dst)-start+room(m) > c.maxFrame || w.tooLong || count+others > maxHeaders {
		return dst, fmt.Errorf("%w: it would become larger than the limits", codecs.ErrNoMutation)
	}
	binary.BigEndian.PutUint16(dst[start+sizeAt:], uint16(size/wordSize))
	binary.BigEndian.PutUint32(dst[start:], uint32(len(dst)-start-4))
	return dst, r.err
}

// keeps reports whether a header goes out as it is.
func (ch *change) keeps(key []byte) bool {
	return !ch.touches(key) && (!ch.stays || string(key) != keyLeaves)
}

// touches reports whether a header gets another value, or goes.
func (ch *change) touches(key []byte) bool {
	return ch.retry > 0 && string(key) == keyRetried || ch.mut.Find(key) >= 0 || ch.mut.Removes(key)
}

// gone reports whether a numbered header of that name is removed.
func (ch *change) gone(name []byte) bool {
	return name != nil && ch.mut.Find(name) < 0 && ch.mut.Removes(name)
}

type infoWriter struct {
	kitex, tooLong bool
	timeout        bool // it has been written
}

// numbered appends the numbered header pair, with another value if its name is
// set.
func (w *infoWriter) numbered(dst, pair []byte, ch *change) []byte {
	if ch.millis > 0 && binary.BigEndian.Uint16(pair) == numberTimeout {
		w.timeout = true
		return w.decimal(append(dst, pair[:2]...), int64(ch.millis))
	}
	name := numberedName(pair)
	if name == nil {
		return append(dst, pair...)
	}
	i := ch.mut.Find(name)
	if i < 0 {
		return append(dst, pair...)
	}
	value := ch.mut.Entries()[i].Value
	return append(w.number(append(dst, pair[:2]...), uint64(len(value))), value...)
}

// entries appends names and values.
func (w *infoWriter) entries(dst []byte, kvs []codecs.KeyValue) []byte {
	for _, kv := range kvs {
		dst = append(w.number(dst, uint64(len(kv.Key))), kv.Key...)
		dst = append(w.number(dst, uint64(len(kv.Value))), kv.Value...)
		w.tooLong = w.tooLong || w.kitex && max(len(kv.Key), len(kv.Value)) > 1<<16-1
	}
	return dst
}

// number appends a count or length.
func (w *infoWriter) number(dst []byte, n uint64) []byte {
	if w.kitex {
		return binary.BigEndian.AppendUint16(dst, uint16(n))
	}
	return binary.AppendUvarint(dst, n)
}

// decimal appends n as the text of a header of Kitex's, behind its length.
func (w *infoWriter) decimal(dst []byte, n int64) []byte {
	var text [20]byte
	digits := strconv.AppendInt(text[:0], n, 10)
	return append(w.number(dst, uint64(len(digits))), digits...)
}
