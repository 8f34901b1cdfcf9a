package setmetadata

import (
	"fmt"
	"regexp"
	"regexp/syntax"
	"strconv"

	"github.com/meltemi-mesh/meltemi/filter/fields"
	setmetadatav1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/set_metadata/v1alpha"
)

const (
	// maxValue is the longest value at which an expression looks, in bytes.
	maxValue = 8 << 10
	// maxInstructions are those of one expression.
	maxInstructions = 500
	// maxSteps bounds what the expressions may cost for one request, in bytes times
	// instructions, which is what package regexp needs at the most: some milliseconds.
	maxSteps = 500_000
)

// extraction is a frozen expression and what is made of its groups.
type extraction struct {
	re     *regexp.Regexp
	cost   int // of a byte
	pieces []piece
}

// piece is a text, or the number of a group; 0 is all of the value.
type piece struct {
	text  string
	group int // -1: text
}

func parseExtraction(m *setmetadatav1alpha.Extraction, path string, faults *fields.Faults) *extraction {
	x := &extraction{}
	fault := func(field string, err error) {
		if err != nil {
			faults.Add(path+"."+field, "%v", err)
		}
	}
	fault("pattern", x.compile(m.GetPattern()))
	if length(m.GetSubstitution(), path+".substitution", 1, faults) {
		fault("substitution", x.parse(m.GetSubstitution()))
	}
	return x
}

// compile compiles a pattern that has to match a value as a whole.
func (x *extraction) compile(pattern string) error {
	if pattern == "" {
		return fmt.Errorf("required")
	}
	// By itself first: it must not close the group that is put around it.
	if _, err := syntax.Parse(pattern, syntax.Perl); err != nil {
		return err
	}
	whole := `\A(?:` + pattern + `)\z`
	parsed, err := syntax.Parse(whole, syntax.Perl)
	if err != nil {
		return err
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return err
	}
	if x.cost = len(program.Inst); x.cost > maxInstructions {
		return fmt.Errorf("its program has %d instructions, at most %d are allowed", x.cost, maxInstructions)
	}
	x.re, err = regexp.Compile(whole)
	return err
}

// parse parses a substitution.
func (x *extraction) parse(s string) error {
	text := ""
	flush := func() {
		if text != "" {
			x.pieces = append(x.pieces, piece{text, -1})
			text = ""
		}
	}
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			text += s[i : i+1]
			continue
		}
		if i++; i == len(s) {
			return fmt.Errorf(`ends with a single \`)
		}
		switch c := s[i]; {
		case c == '\\':
			text += `\`
		case c >= '0' && c <= '9':
			group, _ := strconv.Atoi(s[i : i+1])
			if x.re != nil && group > x.re.NumSubexp() {
				return fmt.Errorf(`\%d is no group: the pattern has %d`, group, x.re.NumSubexp())
			}
			flush()
			x.pieces = append(x.pieces, piece{"", group})
		default:
			return fmt.Errorf(`\%c is neither a group nor \\`, c)
		}
	}
	flush()
	return nil
}

// append appends what x makes of v, nothing if it does not match. ok is false if that
// would cost more than what is left.
func (x *extraction) append(dst, v []byte, left *int) (_ []byte, ok bool) {
	if *left -= (len(v) + 1) * x.cost; len(v) > maxValue || *left < 0 {
		return dst, false
	}
	at := x.re.FindSubmatchIndex(v)
	if at == nil {
		return dst, true
	}
	for _, p := range x.pieces {
		if p.group < 0 {
			dst = append(dst, p.text...)
		} else if from := at[2*p.group]; from >= 0 {
			dst = append(dst, v[from:at[2*p.group+1]]...)
		}
	}
	return dst, true
}
