package command

import (
	"fmt"
	"strings"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// short is the last part of a codec's name.
func short(name string) string { return name[strings.LastIndexByte(name, '.')+1:] }

// find makes the codec of that name, long or short.
func find(protocol string) (name string, c codecs.Codec, err error) {
	var names []string
	for _, n := range codecs.Names() {
		if n == protocol {
			names = []string{n}
			break
		}
		if short(n) == protocol {
			names = append(names, n)
		}
	}
	switch len(names) {
	case 0:
		return "", nil, fmt.Errorf("unknown protocol %q; linked: %s", protocol, strings.Join(codecs.Names(), ", "))
	case 1:
		c, err = open(names[0])
		return names[0], c, err
	default:
		return "", nil, fmt.Errorf("%q may be %s", protocol, strings.Join(names, " or "))
	}
}

// open makes a registered codec, without options.
func open(name string) (codecs.Codec, error) {
	newCodec, ok := codecs.Lookup(name)
	if !ok {
		return nil, fmt.Errorf("unknown codec %q", name)
	}
	c, err := newCodec(nil, codecs.Limits{})
	if err != nil {
		return nil, fmt.Errorf("codec %s without options: %w", name, err)
	}
	return c, nil
}

// codecs lists what is linked.
func (e *env) codecs() int {
	for _, name := range codecs.Names() {
		e.printf("%s (%s)\n", short(name), name)
		c, err := open(name)
		if err != nil {
			e.printf("    %v\n", err)
			continue
		}
		t := c.Traits()
		row := func(title, text string) { e.printf("    %-13s %s\n", title, text) }
		row("correlation", correlation(t))
		if t.ShareByDefault {
			row("connections", "shared by default")
		} else {
			row("connections", "exclusive by default")
		}
		row("capabilities", list(capabilities(c)))
		if t.HiddenOneway {
			row("oneways", "may look like requests")
		}
		row("attributes", list(t.Attributes))
	}
	return statusOK
}

func correlation(t codecs.Traits) string {
	switch t.Correlation {
	case codecs.ByID:
		return fmt.Sprintf("by id, up to %d", t.MaxID)
	case codecs.InOrder:
		return "in order"
	default:
		return "one request at a time"
	}
}

func capabilities(c codecs.Codec) (can []string) {
	if c.Traits().MaxID > 0 {
		can = append(can, "ids")
	}
	if _, ok := c.(codecs.Heartbeater); ok {
		can = append(can, "heartbeats")
	}
	if _, ok := c.(codecs.Streamer); ok {
		can = append(can, "streams")
	}
	if _, ok := c.(codecs.Mutator); ok {
		can = append(can, "mutation")
	}
	if _, ok := c.(codecs.Remover); ok {
		can = append(can, "removal")
	}
	if _, ok := c.(codecs.Payloader); ok {
		can = append(can, "payloads")
	}
	if _, ok := c.(codecs.CodeChecker); ok {
		can = append(can, "codes")
	}
	if _, ok := c.(codecs.Deadliner); ok {
		can = append(can, "deadlines")
	}
	if _, ok := c.(codecs.Sniffer); ok {
		can = append(can, "sniffing")
	}
	if _, ok := c.(codecs.Leaver); ok {
		can = append(can, "leaving")
	}
	if _, ok := c.(codecs.Prefacer); ok {
		can = append(can, "preface")
	}
	if _, ok := c.(codecs.Resetter); ok {
		can = append(can, "reset")
	}
	return can
}

func list(s []string) string {
	if len(s) == 0 {
		return "none"
	}
	return strings.Join(s, ", ")
}

// sniffBytes is how much of a connection the pipeline lets codecs see.
const sniffBytes = 64

// sniff finds the codec that recognises the first bytes of a client, as a
// listener with several codecs does.
func sniff(b []byte) (name string, c codecs.Codec, err error) {
	var asked []string
	for _, name := range codecs.Names() {
		c, err := open(name)
		if err != nil {
			continue // it needs options, and cannot be one of "auto" on a listener either
		}
		if s, ok := c.(codecs.Sniffer); ok {
			if s.Sniff(b[:min(len(b), sniffBytes)]) == codecs.Yes {
				return name, c, nil
			}
			asked = append(asked, short(name))
		}
	}
	return "", nil, fmt.Errorf("no codec recognises the first bytes; asked: %s", list(asked))
}
