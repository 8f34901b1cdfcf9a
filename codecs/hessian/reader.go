// Package hessian reads and skips Hessian 2 values in memory. It builds no
// objects, does not recurse, and never works more than in proportion to the
// bytes it is given: what a hostile peer sends costs what it sends.
//
// Tags are those of the Hessian 2.0 Serialization Protocol, section 4.
package hessian

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// MaxDepth is how deeply values may be nested.
const MaxDepth = 64

// MaxValues is how many values are moved over between two calls of Reset, their
// elements, classes, names of fields and parts of strings included: it bounds what a
// message costs.
const MaxValues = 1 << 19

// Faults of a value.
var (
	ErrTruncated = errors.New("hessian: value is cut off")
	ErrTag       = errors.New("hessian: unexpected tag")
	ErrDepth     = errors.New("hessian: nested too deeply")
	ErrClass     = errors.New("hessian: object of a class that was not defined")
	ErrUTF8      = errors.New("hessian: string is not UTF-8")
	ErrValues    = fmt.Errorf("hessian: more than %d values", MaxValues)
)

// Reader reads values one after the other. After the first error all methods
// return zero values and Err tells it. The zero Reader reads nothing; use
// Reset.
type Reader struct {
	b   []byte
	pos int
	err error
	// values may still come.
	values int
	// The number of fields of each class defined so far: of the first ones, of
	// which a message seldom has more, and of the others.
	classes int
	first   [32]int32
	others  []int32
}

// Reset makes r read b, which r keeps until the next Reset: Reset(nil) lets go
// of it.
func (r *Reader) Reset(b []byte) {
	r.b, r.pos, r.err, r.values, r.classes, r.others = b, 0, nil, MaxValues, 0, r.others[:0]
	if cap(r.others) > 1024 {
		r.others = nil
	}
}

// Classes returns how many classes have been defined so far.
func (r *Reader) Classes() int { return r.classes }

// Seek makes the value at pos the next one, without a look at those before it:
// classes that they define stay unknown. pos lies within the bytes of Reset.
func (r *Reader) Seek(pos int) { r.pos = pos }

// Rest returns all bytes that are left, a view.
func (r *Reader) Rest() []byte { return r.b[r.pos:] }

// Left returns how many values may still come.
func (r *Reader) Left() int { return r.values }

// Err returns the first error.
func (r *Reader) Err() error { return r.err }

// Pos returns the offset of the next value.
func (r *Reader) Pos() int { return r.pos }

// More reports whether bytes are left and nothing has gone wrong.
func (r *Reader) More() bool { return r.err == nil && r.pos < len(r.b) }

// Peek returns the next tag, 0 when there is none.
func (r *Reader) Peek() byte {
	if !r.More() {
		return 0
	}
	return r.b[r.pos]
}

func (r *Reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

// another counts a value.
func (r *Reader) another() bool {
	if r.values == 0 {
		r.fail(ErrValues)
		return false
	}
	r.values--
	return true
}

// advance moves over n bytes.
func (r *Reader) advance(n int) bool {
	if r.err != nil || n < 0 || n > len(r.b)-r.pos {
		r.fail(ErrTruncated)
		return false
	}
	r.pos += n
	return true
}

func (r *Reader) tag() byte {
	if r.err != nil || r.pos >= len(r.b) {
		r.fail(ErrTruncated)
		return 0
	}
	t := r.b[r.pos]
	r.pos++
	return t
}

func (r *Reader) be16() int {
	if !r.advance(2) {
		return 0
	}
	return int(binary.BigEndian.Uint16(r.b[r.pos-2:]))
}

// IsString reports whether a string begins with tag t.
func IsString(t byte) bool { return t <= 0x1f || t >= 0x30 && t <= 0x33 || t == 'R' || t == 'S' }

// String reads a string. The result is a view of the input where it can be; a
// string in several chunks, or with characters that Java encodes as surrogate
// pairs, is a fresh copy in proper UTF-8. null reads as nil.
func (r *Reader) String() []byte {
	if b := r.short(); b != nil {
		return b
	}
	return r.string()
}

// short reads what most strings are: ASCII, of less than 32 characters. It
// returns nil, and reads nothing, when another one comes.
func (r *Reader) short() []byte {
	if r.pos >= len(r.b) || r.err != nil {
		return nil
	}
	n := int(r.b[r.pos]) + 1
	if n > 0x20 || n > len(r.b)-r.pos {
		return nil
	}
	b := r.b[r.pos+1 : r.pos+n : r.pos+n]
	if !ascii(b) {
		return nil
	}
	r.pos += n
	return b
}

// ASCII reads a string of less than 1024 characters in one chunk, all of them ASCII. It
// returns nil, and reads nothing, when something else comes. The result is a view.
func (r *Reader) ASCII() []byte {
	if b := r.short(); b != nil {
		return b
	}
	if len(r.b)-r.pos < 2 || r.err != nil || r.b[r.pos]&^3 != 0x30 {
		return nil
	}
	from := r.pos + 2
	n := int(r.b[r.pos]&3)<<8 | int(r.b[r.pos+1])
	if n > len(r.b)-from || !ascii(r.b[from:from+n]) {
		return nil
	}
	r.pos = from + n
	return r.b[from:r.pos:r.pos]
}

// ASCIISize returns how many bytes the string at which b begins takes, if ASCII reads it.
func ASCIISize(b []byte) int {
	if b[0] <= 0x1f {
		return 1 + int(b[0])
	}
	return 2 + int(b[0]&3)<<8 + int(b[1])
}

func (r *Reader) string() []byte {
	if r.Peek() == 'N' && r.More() {
		r.pos++
		return nil
	}
	b, surrogates, final := r.chunk()
	if final && !surrogates {
		return b
	}
	all := append([]byte(nil), b...)
	for !final && r.another() && r.err == nil {
		var s bool
		b, s, final = r.chunk()
		surrogates = surrogates || s
		all = append(all, b...)
	}
	if r.err != nil {
		return nil
	}
	if surrogates {
		all = joinSurrogates(all)
	}
	return all
}

// chunk reads one chunk of a string.
func (r *Reader) chunk() (b []byte, surrogates, final bool) {
	t := r.tag()
	var n int
	switch {
	case r.err != nil:
		return nil, false, true
	case t <= 0x1f:
		n = int(t)
	case t >= 0x30 && t <= 0x33:
		n = int(t-0x30)<<8 | int(r.tag())
	case t == 'S' || t == 'R':
		n = r.be16()
	default:
		r.pos--
		r.fail(ErrTag)
		return nil, false, true
	}
	start := r.pos
	surrogates = r.chars(n)
	if r.err != nil {
		return nil, false, true
	}
	return r.b[start:r.pos:r.pos], surrogates, t != 'R'
}

const (
	lanes    = 0x0101010101010101
	highBits = lanes << 7
)

func ascii(b []byte) bool {
	if n := len(b); n >= 8 {
		bits := binary.LittleEndian.Uint64(b[n-8:])
		for ; len(b) >= 8; b = b[8:] {
			bits |= binary.LittleEndian.Uint64(b)
		}
		return bits&highBits == 0
	}
	var bits byte
	for _, c := range b {
		bits |= c
	}
	return bits < 0x80
}

// chars moves over n UTF-16 code units in UTF-8. Java writes a character
// beyond the BMP as two surrogates of three bytes each; others write four
// bytes, which count as two units as well.
func (r *Reader) chars(n int) (surrogates bool) {
	b := r.b[r.pos:]
	if n <= len(b) && ascii(b[:n]) {
		r.pos += n
		return false
	}
	if n > 8 {
		var bytes, units int
		bytes, units, surrogates = words(b, n)
		b, n = b[bytes:], n-units
	}
	for n > 0 && r.err == nil {
		if len(b) > 2 && b[0] > 0xe0 && b[0] < 0xed && b[1]>>6 == 2 && b[2]>>6 == 2 {
			b, n = b[3:], n-1
			continue
		}
		size, units, half := r.char(b)
		surrogates = surrogates || half
		b, n = b[size:], n-units
	}
	if n < 0 { // the first half of a four-byte character
		r.fail(ErrUTF8)
	}
	if r.err != nil {
		return false
	}
	r.pos = len(r.b) - len(b)
	return surrogates
}

// words moves over whole words of the n units at the start of b, as long as they
// are UTF-8 and more than a word is left, and stops before a character: eight
// bytes at a time, as a text of many scripts would cost too much by the character.
// Each mask has the highest bit of the bytes that it means.
func words(b []byte, n int) (bytes, units int, surrogates bool) {
	rest := b
	var over, halves uint64 // what the characters before the word need of it; halves of surrogates
	for ; n-units > 8 && len(rest) > 8; rest = rest[8:] {
		w := binary.LittleEndian.Uint64(rest)
		high := w & highBits
		if high|over == 0 {
			units += 8
			continue
		}
		// Characters of two bytes and more, of three and more, of four begin.
		two := high & (w << 1)
		three := two & (w << 2)
		four := three & (w << 3)
		follow := high ^ two
		if follow != two<<8|three<<16|four<<24|over {
			break
		}
		// Leads behind which not every byte may follow have a low nibble of 0, or are
		// C1, ED, or of four bytes.
		low := w & (lanes * 0x0f)
		zero := two &^ (low + lanes*0x7f)
		ed := three &^ ((low ^ lanes*0x0d) + lanes*0x7f)
		overlong := two &^ three &^ (w&(lanes*0x1e) + lanes*0x7e) // C0, C1
		if zero|ed|overlong|four != 0 {
			next := binary.LittleEndian.Uint64(rest[1:])
			n5, n54 := next<<2, next<<2|next<<3                  // of the second byte
			wrong := overlong | zero&three&^(n5|four&n54)        // E0 before less than A0, F0 before less than 90
			wrong |= four & (low + lanes*0x7b + n54&highBits>>7) // above F4 8F
			if wrong != 0 {
				break
			}
			halves |= ed & n5 // before A0 and more
		}
		units += bits.OnesCount64(highBits&^follow | four>>1)
		over = two>>56 | three>>48 | four>>40
	}
	bytes = len(b) - len(rest)
	if over != 0 { // back to where the last one begins
		for bytes--; b[bytes]>>6 == 2; bytes-- {
		}
		if units--; b[bytes] >= 0xf0 {
			units--
		}
	}
	return bytes, units, halves != 0
}

// char measures the character at the start of b. One that could be written
// with fewer bytes is refused: readers that accept it would see another name
// than those that compare bytes.
func (r *Reader) char(b []byte) (size, units int, surrogate bool) {
	if len(b) == 0 {
		r.fail(ErrTruncated)
		return 0, 0, false
	}
	least, most := byte(0x80), byte(0xbf) // of the second byte
	switch c := b[0]; {
	case c < 0x80:
		return 1, 1, false
	case c >= 0xc2 && c <= 0xdf:
		size, units = 2, 1
	case c >= 0xe0 && c <= 0xef:
		size, units = 3, 1
		if c == 0xe0 {
			least = 0xa0
		}
	case c >= 0xf0 && c <= 0xf4:
		size, units = 4, 2
		switch c {
		case 0xf0:
			least = 0x90
		case 0xf4:
			most = 0x8f
		}
	default:
		r.fail(ErrUTF8)
		return 0, 0, false
	}
	if len(b) < size {
		r.fail(ErrTruncated)
		return 0, 0, false
	}
	for _, c := range b[1:size] {
		if c>>6 != 2 {
			r.fail(ErrUTF8)
			return 0, 0, false
		}
	}
	if b[1] < least || b[1] > most {
		r.fail(ErrUTF8)
		return 0, 0, false
	}
	return size, units, b[0] == 0xed && b[1] >= 0xa0
}

// joinSurrogates turns pairs of three-byte surrogates into UTF-8.
func joinSurrogates(b []byte) []byte {
	half := func(b []byte) (rune, bool) {
		if len(b) < 3 || b[0] != 0xed || b[1] < 0xa0 {
			return 0, false
		}
		return rune(b[0]&0xf)<<12 | rune(b[1]&0x3f)<<6 | rune(b[2]&0x3f), true
	}
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); {
		hi, ok := half(b[i:])
		if !ok {
			out = append(out, b[i])
			i++
			continue
		}
		i += 3
		full := rune(utf8.RuneError)
		if lo, ok := half(b[i:]); ok {
			if full = utf16.DecodeRune(hi, lo); full != utf8.RuneError {
				i += 3
			}
		}
		out = utf8.AppendRune(out, full)
	}
	return out
}

// IsInt reports whether an int begins with tag t.
func IsInt(t byte) bool { return t >= 0x80 && t <= 0xd7 || t == 'I' }

// Int reads an int (section 4.5).
func (r *Reader) Int() int32 {
	t := r.tag()
	switch {
	case r.err != nil:
	case t >= 0x80 && t <= 0xbf:
		return int32(t) - 0x90
	case t >= 0xc0 && t <= 0xcf:
		return (int32(t)-0xc8)<<8 | int32(r.tag())
	case t >= 0xd0 && t <= 0xd7:
		return (int32(t)-0xd4)<<16 | int32(r.be16())
	case t == 'I':
		if r.advance(4) {
			return int32(binary.BigEndian.Uint32(r.b[r.pos-4:]))
		}
	default:
		r.pos--
		r.fail(ErrTag)
	}
	return 0
}

// small are the texts of the numbers that are written in one byte.
var small = func() (t [maxSmall - minSmall + 1][]byte) {
	for i := range t {
		t[i] = strconv.AppendInt(nil, int64(i)+minSmall, 10)
	}
	return t
}()

const minSmall, maxSmall = -16, 47

func number(n int64) []byte {
	if n >= minSmall && n <= maxSmall {
		return small[n-minSmall]
	}
	return strconv.AppendInt(nil, n, 10)
}

var (
	textTrue  = []byte("true")
	textFalse = []byte("false")
)

// Text reads a value that has a text in Java (String.valueOf): a string, a
// number, a boolean. ok is false for any other, which is moved over. The text
// is a view or memory of its own, and must not be changed.
func (r *Reader) Text() (text []byte, ok bool) {
	t := r.Peek()
	if IsString(t) {
		text = r.String()
		return text, r.err == nil
	}
	switch {
	case IsInt(t):
		text = number(int64(r.Int()))
	case t >= 0xd8, t >= 0x38 && t <= 0x3f, t == 'Y', t == 'L':
		text = number(r.long())
	case t >= '[' && t <= '_', t == 'D':
		text = appendDouble(nil, r.double())
	case t == 'T':
		r.pos++
		text = textTrue
	case t == 'F':
		r.pos++
		text = textFalse
	default:
		r.Skip()
		return nil, false
	}
	return text, r.err == nil
}

// IsList reports whether a list begins with tag t.
func IsList(t byte) bool { return t >= 0x70 && t <= 0x7f || t >= 'U' && t <= 'X' }

// First moves over a list, whose tag was looked at, and returns its first
// element if that is a string.
func (r *Reader) First() (text []byte, ok bool) {
	from := r.pos
	r.Skip()
	if r.err != nil {
		return nil, false
	}
	list := Reader{b: r.b[from:r.pos], values: MaxValues}
	switch t := list.tag(); {
	case t == 'V' || t == 'U' || t <= 0x77 && t >= 0x70:
		list.skipType()
		if t == 'V' {
			list.Int()
		}
	case t == 'X':
		list.Int()
	}
	if !list.More() || !IsString(list.Peek()) {
		return nil, false
	}
	text = list.String()
	return text, list.err == nil
}

// long reads a long (section 4.6), whose tag was looked at.
func (r *Reader) long() int64 {
	switch t := r.tag(); {
	case t >= 0xf0:
		return (int64(t)-0xf8)<<8 | int64(r.tag())
	case t >= 0xd8:
		return int64(t) - 0xe0
	case t <= 0x3f:
		return (int64(t)-0x3c)<<16 | int64(r.be16())
	case t == 'Y':
		return int64(int32(r.bits(4)))
	default:
		return int64(r.bits(8))
	}
}

// double reads a double (section 4.4), whose tag was looked at.
func (r *Reader) double() float64 {
	switch r.tag() {
	case '[':
		return 0
	case '\\':
		return 1
	case ']':
		return float64(int8(r.tag()))
	case '^':
		return float64(int16(r.be16()))
	case '_': // thousandths: what Java means by it, the specification says a float
		return 0.001 * float64(int32(r.bits(4)))
	default:
		return math.Float64frombits(r.bits(8))
	}
}

// bits reads a number of n bytes.
func (r *Reader) bits(n int) (v uint64) {
	if r.advance(n) {
		for _, b := range r.b[r.pos-n : r.pos] {
			v = v<<8 | uint64(b)
		}
	}
	return v
}

// appendDouble appends f as Java's Double.toString does.
func appendDouble(dst []byte, f float64) []byte {
	switch abs := math.Abs(f); {
	case math.IsNaN(f):
		return append(dst, "NaN"...)
	case math.IsInf(f, 0):
		if f < 0 {
			dst = append(dst, '-')
		}
		return append(dst, "Infinity"...)
	case abs == 0 || abs >= 1e-3 && abs < 1e7:
		dst = strconv.AppendFloat(dst, f, 'f', -1, 64)
		if f == math.Trunc(f) {
			dst = append(dst, ".0"...)
		}
		return dst
	}
	mantissa, exponent, _ := strings.Cut(strconv.FormatFloat(f, 'e', -1, 64), "e")
	dst = append(dst, mantissa...)
	if !strings.Contains(mantissa, ".") {
		dst = append(dst, ".0"...)
	}
	n, _ := strconv.Atoi(exponent)
	return strconv.AppendInt(append(dst, 'E'), int64(n), 10)
}

// count reads the length of a list or class. Every element takes a byte at
// least, so a length beyond the bytes that are left is a lie.
func (r *Reader) count() int32 {
	n := r.Int()
	if n < 0 || int(n) > len(r.b)-r.pos {
		r.fail(ErrTruncated)
		return 0
	}
	return n
}

// skipType moves over the type of a map or list: a name or a reference to an
// earlier one.
func (r *Reader) skipType() {
	if IsString(r.Peek()) {
		r.skipString()
	} else {
		r.Int()
	}
}

func (r *Reader) skipString() {
	if r.More() && r.b[r.pos] <= 0x1f {
		r.pos++
		r.chars(int(r.b[r.pos-1]))
		return
	}
	for {
		if _, _, final := r.chunk(); final || !r.another() {
			return
		}
	}
}

func (r *Reader) skipBinary(t byte) {
	for ; t == 'A' && r.another() && r.err == nil; t = r.tag() {
		r.advance(r.be16())
	}
	switch {
	case r.err != nil:
	case t >= 0x20 && t <= 0x2f:
		r.advance(int(t - 0x20))
	case t >= 0x34 && t <= 0x37:
		r.advance(int(t-0x34)<<8 | int(r.tag()))
	case t == 'B':
		r.advance(r.be16())
	default:
		r.fail(ErrTag)
	}
}

// skipClass moves over a class definition, behind its 'C'.
func (r *Reader) skipClass() {
	if !r.another() {
		return
	}
	r.skipString()
	n := r.count()
	for i := int32(0); i < n && r.another() && r.err == nil; i++ {
		r.skipString()
	}
	if r.classes < len(r.first) {
		r.first[r.classes] = n
	} else {
		r.others = append(r.others, n)
	}
	r.classes++
}

func (r *Reader) fieldsOf(class int32) int32 {
	if class < 0 || int(class) >= r.classes {
		r.fail(ErrClass)
		return 0
	}
	if int(class) < len(r.first) {
		return r.first[class]
	}
	return r.others[int(class)-len(r.first)]
}

// untilZ in place of a number of elements: they end with a 'Z'.
const untilZ = -1

// Skip moves over one value, whatever it is. simple reports that it holds
// nothing that a later reference could mean.
func (r *Reader) Skip() (simple bool) {
	switch n := r.skipOne(); n {
	case none:
		return r.err == nil
	case 0:
	default:
		r.skipElements(n)
	}
	return false
}

// skipElements moves over n values, or those up to a 'Z', and all that belongs
// to them.
func (r *Reader) skipElements(n int32) {
	var left [MaxDepth]int32
	left[0] = n
	for depth := 1; depth > 0 && r.err == nil; {
		top := &left[depth-1]
		*top = r.skipFixed(*top)
		switch {
		case *top == untilZ && r.Peek() == 'Z':
			r.pos++
			depth--
			continue
		case *top == 0:
			depth--
			continue
		case *top > 0:
			*top--
		}
		n := r.skipOne()
		if n == none || n == 0 {
			continue
		}
		if depth == MaxDepth {
			r.fail(ErrDepth)
			return
		}
		left[depth] = n
		depth++
	}
}

// sizes of the values that have the same always, by their tags.
var sizes = func() (t [256]uint8) {
	for _, s := range []struct {
		from, to int
		size     uint8
	}{
		{0x38, 0x3f, 3},
		{0x80, 0xbf, 1},
		{0xc0, 0xcf, 2},
		{0xd0, 0xd7, 3},
		{0xd8, 0xef, 1},
		{0xf0, 0xff, 2}, // ints and longs
		{'N', 'N', 1},
		{'T', 'T', 1},
		{'F', 'F', 1},
		{'[', '\\', 1},
		{']', ']', 2},
		{'^', '^', 3},
		{'I', 'I', 5},
		{'_', '_', 5},
		{'K', 'K', 5},
		{'Y', 'Y', 5},
		{'D', 'D', 9},
		{'J', 'J', 9},
		{'L', 'L', 9},
	} {
		for tag := s.from; tag <= s.to; tag++ {
			t[tag] = s.size
		}
	}
	return t
}()

// skipFixed moves over values of that kind and short ASCII strings, n at most or
// those up to something else, and returns how many of n are left.
func (r *Reader) skipFixed(n int32) int32 {
	pos, most := r.pos, r.values
	if n != untilZ {
		most = min(most, int(n))
	}
	done := 0
	for ; done < most && pos < len(r.b); done++ {
		size := int(sizes[r.b[pos]])
		if size == 0 {
			size = int(r.b[pos]) + 1
			if size > 0x20 || size > len(r.b)-pos || !ascii(r.b[pos+1:pos+size]) {
				break
			}
		}
		pos += size
	}
	r.values -= done
	r.advance(pos - r.pos)
	if n == untilZ {
		return n
	}
	return n - int32(done)
}

// none is what skipOne returns for a value without elements of its own.
const none = -2

// skipOne moves over a value's own bytes and returns how many values follow
// that belong to it.
func (r *Reader) skipOne() int32 {
	if !r.another() {
		return none
	}
	t := r.tag()
	if n := int(sizes[t]); n > 0 {
		r.advance(n - 1)
		return none
	}
	if t == 'C' {
		for t == 'C' && r.err == nil {
			r.skipClass()
			t = r.tag()
		}
		// Writers define a class where its first object follows. Readers would
		// take any value there, and see strings that ours does not look for.
		if t != 'O' && t&0xf0 != 0x60 && r.err == nil {
			r.pos--
			r.fail(ErrTag)
		}
	}
	switch {
	case r.err != nil:
		return none
	case IsString(t):
		r.pos--
		r.skipString()
	case t <= 0x2f || t >= 0x34 && t <= 0x37 || t == 'A' || t == 'B':
		r.skipBinary(t)
	case t >= 0x60 && t <= 0x6f: // object of one of the first classes
		return r.fieldsOf(int32(t) - 0x60)
	case t >= 0x70 && t <= 0x77: // short list with a type
		r.skipType()
		return int32(t) - 0x70
	case t >= 0x78 && t <= 0x7f: // short list
		return int32(t) - 0x78
	default:
		return r.skipLetter(t)
	}
	return none
}

func (r *Reader) skipLetter(t byte) int32 {
	switch t {
	case 'Q': // reference
		r.Int()
	case 'H': // map
		return untilZ
	case 'M': // map with a type
		r.skipType()
		return untilZ
	case 'O':
		return r.fieldsOf(r.Int())
	case 'U': // list with a type, up to a Z
		r.skipType()
		return untilZ
	case 'V': // list with a type and a length
		r.skipType()
		return r.count()
	case 'W': // list, up to a Z
		return untilZ
	case 'X': // list with a length
		return r.count()
	default:
		r.pos--
		r.fail(ErrTag)
	}
	return none
}

// AppendString appends s as a string.
func AppendString(dst []byte, s string) []byte {
	const most = 0x8000 // units in a chunk, as Java's writer has it
	if len(s) <= 0x3ff && isASCII(s) {
		if len(s) <= 0x1f {
			dst = append(dst, byte(len(s)))
		} else {
			dst = append(dst, 0x30|byte(len(s)>>8), byte(len(s)))
		}
		return append(dst, s...)
	}
	for {
		n, size := units(s, most)
		switch last := size == len(s); {
		case !last:
			dst = append(dst, 'R', byte(n>>8), byte(n))
		case n <= 0x1f:
			dst = append(dst, byte(n))
		case n <= 0x3ff:
			dst = append(dst, 0x30|byte(n>>8), byte(n))
		default:
			dst = append(dst, 'S', byte(n>>8), byte(n))
		}
		dst = appendUnits(dst, s[:size])
		if s = s[size:]; s == "" {
			return dst
		}
	}
}

// AppendInt appends n as an int, in the fewest bytes.
func AppendInt(dst []byte, n int32) []byte {
	switch {
	case n >= minSmall && n <= maxSmall:
		return append(dst, 0x90+byte(n))
	case n >= -0x800 && n <= 0x7ff:
		return append(dst, 0xc8+byte(n>>8), byte(n))
	case n >= -0x40000 && n <= 0x3ffff:
		return append(dst, 0xd4+byte(n>>16), byte(n>>8), byte(n))
	default:
		return binary.BigEndian.AppendUint32(append(dst, 'I'), uint32(n))
	}
}

func isASCII(s string) bool {
	for ; len(s) >= 8; s = s[8:] {
		if word(s)&highBits != 0 {
			return false
		}
	}
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// word is the first eight bytes of s.
func word(s string) uint64 {
	_ = s[7]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}

// units returns how many code units, at most, the first size bytes of s have.
func units(s string, most int) (n, size int) {
	for i, c := range s {
		w := 1
		if c > 0xffff {
			w = 2
		}
		if n+w > most {
			return n, i
		}
		n += w
	}
	return n, len(s)
}

// appendUnits appends s as Java does: surrogates for what is beyond the BMP.
func appendUnits(dst []byte, s string) []byte {
	for _, c := range s {
		if c <= 0xffff {
			dst = utf8.AppendRune(dst, c)
			continue
		}
		hi, lo := utf16.EncodeRune(c)
		for _, h := range [...]rune{hi, lo} {
			dst = append(dst, 0xe0|byte(h>>12), 0x80|byte(h>>6)&0x3f, 0x80|byte(h)&0x3f)
		}
	}
	return dst
}

// Open moves into a map, behind its tag and type. Keys and values follow, up
// to a 'Z' that Close moves over.
func (r *Reader) Open() bool {
	if r.opens() == 'M' {
		r.skipType()
	}
	return r.err == nil
}

// OpenTyped is Open, and returns the name of the map's type, which is a view of the input
// where that is possible: "" if it has none. It is nil if it is given by a reference to
// an earlier one.
func (r *Reader) OpenTyped() (name []byte, ok bool) {
	name = noType
	if r.opens() == 'M' {
		if IsString(r.Peek()) {
			name = r.String()
		} else {
			r.Int()
			name = nil
		}
	}
	return name, r.err == nil
}

var noType = []byte{}

func (r *Reader) opens() (tag byte) {
	t := r.tag()
	if t != 'H' && t != 'M' && r.err == nil {
		r.pos--
		r.fail(ErrTag)
	}
	return t
}

// Close moves over the end of a map.
func (r *Reader) Close() bool {
	if r.tag() != 'Z' && r.err == nil {
		r.pos--
		r.fail(ErrTag)
	}
	return r.err == nil
}
