// Package substitution reads Envoy's substitution formats: text with operators such as
// %REQ(X?Y):Z%. What the operators are is for those to say that use a format.
package substitution

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Operator is one of a format.
type Operator struct {
	// Name is what it is called, such as REQ.
	Name string
	// Argument is what stands in parentheses behind the name, Given whether there are any.
	// It may have percent signs: those of a time's format.
	Argument string
	Given    bool
	// Length is how many bytes the operator may say, 0: all.
	Length int
}

// operator is one behind its first %, as Envoy parses it.
var operator = regexp.MustCompile(`^([A-Z0-9_]+)(\((.*?)\))?(?::([0-9]+))?%`)

// Scan tells what a format consists of, in its order: text, in which %% has become a
// percent sign, in one piece or several, and operators. It ends with the first error, its
// own or that of op, which says of which operator it is.
func Scan(format string, text func(s string), op func(o Operator) error) error {
	for {
		before, rest, more := strings.Cut(format, "%")
		if before != "" {
			text(before)
		}
		if !more {
			return nil
		}
		if behind, ok := strings.CutPrefix(rest, "%"); ok {
			text("%")
			format = behind
			continue
		}
		m := operator.FindStringSubmatch(rest)
		if m == nil {
			return fmt.Errorf("no operator begins at %.20q: a percent sign is written %%%%", "%"+rest)
		}
		o := Operator{Name: m[1], Given: m[2] != "", Argument: m[3]}
		err := error(nil)
		if m[4] != "" {
			n, failed := strconv.ParseUint(m[4], 10, 31)
			if failed != nil || n == 0 {
				err = fmt.Errorf("length %s is not between 1 and 2147483647", m[4])
			}
			o.Length = int(n)
		}
		if err == nil {
			err = op(o)
		}
		if err != nil {
			return fmt.Errorf("%%%s%%: %w", o.Name, err)
		}
		format = rest[len(m[0]):]
	}
}

// Cut is where v ends that must have no more than most bytes, nor end within a
// character. most is 0: no bound.
func Cut[T string | []byte](v T, most int) int {
	n := len(v)
	if most > 0 && n > most {
		for n = most; n > 0 && !utf8.RuneStart(v[n]); n-- {
		}
	}
	return n
}
