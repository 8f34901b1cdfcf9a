package codectest

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// opening is what a codec says by itself to a server, and how it looks at the
// answers.
type opening struct {
	appends, checks, field string
	append                 func(dst []byte, variant uint8) ([]byte, error)
	check                  func(req, answer *codecs.Metadata) error
	welcomes               []Welcome
}

// preface checks what is said on new connections.
func (c *check) preface() {
	p, ok := c.codec.(codecs.Prefacer)
	if !ok {
		c.skipped = "the codec is no Prefacer"
		return
	}
	c.opens(opening{"AppendPreface", "CheckPreface", "Prefaces", p.AppendPreface, p.CheckPreface, c.s.Prefaces})
}

// reset checks what makes leased connections clean.
func (c *check) reset() {
	r, ok := c.codec.(codecs.Resetter)
	if !ok {
		c.skipped = "the codec is no Resetter"
		return
	}
	if c.traits.Correlation != codecs.InOrder {
		c.errorf("the codec is a Resetter, but connections are leased only where answers come in order")
	}
	c.opens(opening{"AppendReset", "CheckReset", "Resets", r.AppendReset, r.CheckReset, c.s.Resets})
}

// opens checks that what is appended is requests, and that their answers are told
// from others.
func (c *check) opens(o opening) {
	appended := false
	for _, v := range c.variants() {
		c.attempt(func() {
			w := where{name: fmt.Sprintf("%s, variant %d", o.appends, v)}
			out, err := c.encode(w, nil, func(dst []byte) ([]byte, error) { return o.append(dst, v) })
			if err != nil {
				c.failf(w, nil, "%v", err)
			}
			if len(out) == 0 {
				return
			}
			appended = true
			requests := c.opening(w, out, v)
			c.welcomed(w, o, out, v, requests)
			c.answeredOtherwise(w, o, requests)
		})
	}
	if !appended {
		c.errorf("%s appends nothing: have Suite.New make a codec that does", o.appends)
	}
}

// opening reads what was appended as the server does, and returns the requests that
// want answers.
func (c *check) opening(w where, out []byte, v uint8) (requests []*codecs.Metadata) {
	dec := c.codec.NewDecoder(codecs.ClientToServer)
	for at := 0; at < len(out); {
		m := new(codecs.Metadata)
		n, err := c.decode(w, dec, m, out[at:])
		switch {
		case err != nil || n > len(out)-at:
			c.failf(w, out[at:], "it is not of whole frames: Decode returns %d, %v", n, err)
		case m.Type == codecs.Oneway:
		case m.Type == codecs.Request, m.Type == codecs.Muted, m.Type == codecs.Heartbeat && m.ExpectsReply:
			requests = append(requests, m.Outline())
		default:
			c.failf(w, out[at:at+n], "it is decoded as a %s, want a request or a oneway", m.Type)
		}
		switch {
		case m.Malformed != "":
			c.failf(w, out[at:at+n], "it is malformed: %s", m.Malformed)
		case m.Variant != v:
			c.failf(w, out[at:at+n], "it is of variant %d", m.Variant)
		}
		at += n
	}
	return requests
}

// welcomed has the suite's servers answer.
func (c *check) welcomed(w where, o opening, out []byte, v uint8, requests []*codecs.Metadata) {
	var seen [2]bool
	for _, wel := range o.welcomes {
		if wel.Variant != v {
			continue
		}
		if wel.Refused {
			seen[1] = true
		} else {
			seen[0] = true
		}
		c.attempt(func() {
			w := where{name: wel.Name, doing: "in answer to " + w.name, with: shown{"in answer to", out}}
			refusal := c.welcome(w, o, wel, requests)
			switch {
			case refusal != nil && !wel.Refused:
				c.failf(w, wel.Answers, "it is refused: %v", refusal)
			case refusal == nil && wel.Refused:
				c.failf(w, wel.Answers, "%s lets it pass", o.checks)
			}
		})
	}
	for i, what := range []string{"answers", "answers that are refused"} {
		if !seen[i] && len(requests) > 0 {
			c.errorf("the suite's %s have no %s to variant %d", o.field, what, v)
		}
	}
}

// welcome reads answers, and returns why the connection must not be used.
func (c *check) welcome(w where, o opening, wel Welcome, requests []*codecs.Metadata) (refusal error) {
	dec := answering(c.codec.NewDecoder(codecs.ServerToClient), codecs.ServerToClient, requests)
	waiting := slices.Clone(requests)
	var m codecs.Metadata
	for b := wel.Answers; len(b) > 0; {
		n, err := c.decode(w, dec, &m, b)
		if err != nil {
			return err
		}
		if n > len(b) {
			c.failf(w, b, "the answers are not whole frames: Decode asks for %d bytes, there are %d", n, len(b))
		}
		b = b[n:]
		if !isAnswer(m.Type) {
			continue
		}
		i := 0
		if c.traits.Correlation == codecs.ByID {
			i = slices.IndexFunc(waiting, func(req *codecs.Metadata) bool { return req.ID == m.ID })
		}
		if i < 0 || i >= len(waiting) {
			c.failf(w, wel.Answers, "there are more answers than requests")
		}
		if err := c.judge(w, o, waiting[i], &m); err != nil {
			return err
		}
		waiting = slices.Delete(waiting, i, i+1)
	}
	if len(waiting) > 0 && !wel.Refused {
		c.failf(w, wel.Answers, "%d of %d requests have no answer", len(waiting), len(requests))
	}
	return nil
}

// judge shows an answer to the codec's check.
func (c *check) judge(w where, o opening, req, answer *codecs.Metadata) (err error) {
	asked, raw := req.Outline(), bytes.Clone(answer.Raw)
	c.guard(w, raw, func() { err = o.check(req, answer) })
	switch d := difference(asked, req, views); {
	case d != "":
		c.failf(w, raw, "%s changes the request: %s", o.checks, d)
	case !bytes.Equal(raw, answer.Raw):
		c.failf(w, raw, "%s changes the answer to\n%s", o.checks, dump(answer.Raw))
	case err != nil:
		text := err.Error()
		answer.Release()
		c.mem.poison()
		if now := err.Error(); now != text {
			c.failf(w, raw, "the error of %s is a view of the answer: %q becomes %q", o.checks, text, now)
		}
	}
	return err
}

// answeredOtherwise shows any answers to the codec's check, which must survive them.
func (c *check) answeredOtherwise(w where, o opening, requests []*codecs.Metadata) {
	for _, st := range c.streams {
		if st.dir == codecs.ClientToServer {
			continue
		}
		c.walk(st, "in answer to "+w.name, func(w where, _ int, m *codecs.Metadata) {
			if isAnswer(m.Type) {
				for _, req := range requests {
					if _ = c.judge(w, o, req, m); m.Raw == nil {
						return
					}
				}
			}
		})
	}
}
