package route

import (
	"slices"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// Rules are rules on properties of messages, and on other texts, for somebody who
// combines them in a way of his own. They mean what those of routes mean, and what they
// cost is bounded as that is. Other than those of routes they do not choose a value of
// a property that is repeated: see [Look.Property].
type Rules struct {
	properties, texts []matcher
	keys              []string
	late              bool // as that of a table
}

// Rule is the number of a rule on a property, TextRule that of one on a text.
type (
	Rule     int
	TextRule int
)

// Property adds a rule on the property that h names. The path of an error is that
// within h, "" for h itself.
func (r *Rules) Property(h *routev3.HeaderMatcher) (Rule, *Error) {
	m, field, err := compileMatcher(h)
	if err != nil {
		return 0, &Error{Path: field, Reason: err.Error()}
	}
	r.properties = append(r.properties, m)
	return Rule(len(r.properties) - 1), nil
}

// Header adds a rule on a text that has the name of h, as if it were a property.
func (r *Rules) Header(h *routev3.HeaderMatcher) (TextRule, *Error) {
	m, field, err := compileMatcher(h)
	if err != nil {
		return 0, &Error{Path: field, Reason: err.Error()}
	}
	return r.text(m), nil
}

// Text adds a rule on a text. The path of an error is that within s.
func (r *Rules) Text(s *matcherv3.StringMatcher) (TextRule, *Error) {
	var m matcher
	if field, err := m.fromStringMatcher(s); err != nil {
		if field != "" {
			field = field[1:]
		}
		return 0, &Error{Path: field, Reason: err.Error()}
	}
	return r.text(m), nil
}

func (r *Rules) text(m matcher) TextRule {
	r.texts = append(r.texts, m)
	return TextRule(len(r.texts) - 1)
}

// Freeze is called once, when all rules have been added.
func (r *Rules) Freeze() {
	all := []Route{{matchers: r.properties}}
	r.keys = rank(all)
	r.late = late(r.keys)
	number(all)
}

// Shape returns the shape of a message if all that share it say the same by these rules, as far
// as they are on properties and on the operation, and nil otherwise.
func (r *Rules) Shape(md *codecs.Metadata) *codecs.Shape {
	s := md.Shape()
	if s == nil || r.late || md.Beside(r.keys) || slices.ContainsFunc(r.keys, s.Varies) {
		return nil
	}
	return s
}

// Exact returns the property and the value that it must have, and the number of its
// key for [Look.Only]. ok is false if the rule may hold otherwise, or the key has no
// number.
func (r *Rules) Exact(i Rule) (key int, value string, ok bool) {
	m := &r.properties[i]
	return m.key, m.text, m.indexable() && m.key != unnumbered
}

// Part is what a text rule asks for.
type Part uint8

// What a rule can ask of a text, if it is to hold: to be something, to begin or to end
// with it, or something else.
const (
	Other Part = iota
	Whole
	Start
	End
)

// Needs returns what a text must be, begin or end with, if a rule is to hold.
func (r *Rules) Needs(i TextRule) (Part, string) {
	m := &r.texts[i]
	switch {
	case m.indexable():
		return Whole, m.text
	case m.fold || m.invert || m.missingEmpty:
	case m.kind == prefix:
		return Start, m.text
	case m.kind == suffix:
		return End, m.text
	}
	return Other, ""
}

// Truth is what a rule says, if it can be told.
type Truth uint8

// What a rule can say.
const (
	No Truth = iota
	Yes
	Unknown
)

// Not is the opposite. That of what is unknown is unknown, too.
func (t Truth) Not() Truth {
	if t == Unknown {
		return t
	}
	return Yes - t
}

// Look looks at one message by Rules, between Begin and End. Its memory may be used
// again.
type Look struct {
	view  view
	rules *Rules
	fault error
}

// Begin looks where the properties are.
func (l *Look) Begin(r *Rules, properties []codecs.Property) {
	*l = Look{rules: r}
	if len(r.keys) > 0 {
		l.fault = l.view.locate(r.keys, properties)
	}
}

// End gives back what the look has taken.
func (l *Look) End() { l.view.done() }

// Property tells whether a rule holds. It is unknown if that would cost too much, as
// of routes, and if the message has the property several times (in several cases) and
// the rule says one thing of one of the values and another of another: a server may
// go by either.
func (l *Look) Property(i Rule) Truth {
	if l.fault != nil {
		return Unknown
	}
	m := &l.rules.properties[i]
	if m.kind != contains && m.kind != regex {
		return m.truth(&l.view, m.agreed(&l.view))
	}
	w := l.view.work()
	found, known := w.known(m.test)
	if !known {
		found = m.agreed(&l.view)
		w.learn(m.test, found)
	}
	return m.truth(&l.view, found)
}

// Text tells whether a rule holds for a text, or for there being none.
func (l *Look) Text(i TextRule, text []byte, there bool) Truth {
	m := &l.rules.texts[i]
	found := missing
	if there {
		found = m.value(&l.view, text)
	}
	return m.truth(&l.view, found)
}

// Only returns the one value of a numbered key. n is how many there are, 2 standing
// for more, and for when it cannot be told.
func (l *Look) Only(key int) (value []byte, n int) {
	switch n := l.view.n[key]; {
	case l.fault != nil || n > 1:
		return nil, 2
	case n == 0:
		return nil, 0
	}
	return l.view.props[l.view.first[key]].Value, 1
}

// agreed is look for rules of which all values shall say the same.
func (m *matcher) agreed(v *view) (found outcome) {
	if m.key != unnumbered {
		if v.n[m.key] == 0 {
			return missing
		}
		found = m.value(v, v.props[v.first[m.key]].Value)
		if v.n[m.key] > 1 {
			for at := v.again(m.key); at != nil; at = v.further(at) {
				found = agree(found, m.value(v, v.props[at.at].Value))
			}
		}
		return found
	}
	if v.spent += linear(2 * len(v.props)); v.spent > maxSteps {
		return tooMuch
	}
	for i := range v.props {
		if p := &v.props[i]; codecs.EqualFold(p.Name, m.name) {
			found = agree(found, m.value(v, p.Value))
		}
	}
	return found
}

// agree is what a further value adds to what has been found.
func agree(found, further outcome) outcome {
	switch {
	case found == missing || found == further:
		return further
	case found >= tooLong:
		return found
	case further >= tooLong:
		return further
	}
	return differ
}

// truth is what a rule says by what it has found.
func (m *matcher) truth(v *view, found outcome) Truth {
	found = m.orEmpty(v, found)
	switch {
	case found >= tooLong:
		return Unknown
	case m.holds(found):
		return Yes
	}
	return No
}
