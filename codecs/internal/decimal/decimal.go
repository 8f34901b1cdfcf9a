// Package decimal reads numbers that peers have written as text.
package decimal

import "math"

// Int32 reads the whole of text, an int with or without a sign. ok is false if it is
// none, or too large to be one. It allocates nothing, whatever the text.
func Int32(text []byte) (n int32, ok bool) {
	digits := text
	if len(text) > 0 && (text[0] == '-' || text[0] == '+') {
		digits = text[1:]
	}
	if len(digits) == 0 {
		return 0, false
	}
	var v int64
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false
		}
		if v = 10*v + int64(c-'0'); v > math.MaxInt32+1 {
			return 0, false
		}
	}
	if text[0] == '-' {
		v = -v
	}
	return int32(v), v <= math.MaxInt32
}
