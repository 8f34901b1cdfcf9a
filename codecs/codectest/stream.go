package codectest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// kind says which part of the suite a stream comes from.
type kind uint8

const (
	captured kind = 1 << iota
	handMade
	malformed

	sound = captured | handMade
	all   = sound | malformed
)

// stream is what one side of a connection sends: frames only.
type stream struct {
	name   string
	kind   kind
	dir    codecs.Direction
	bytes  []byte
	first  int // the first frame behind the prelude
	frames []frame
	// requests that the answers belong to, where that matters.
	requests []*codecs.Metadata
	excuses  Excuses
}

// frame is what it was found to be when the stream was decoded as a whole.
type frame struct {
	at, n int
	meta  *codecs.Metadata // detached
	taken int              // requests of the stream that do not wait any more behind it
}

func (st *stream) frame(k int) []byte { return st.bytes[st.frames[k].at:][:st.frames[k].n] }

// frameName is how a frame is called in failures and by Suite.Immutable.
func (st *stream) frameName(k int) string {
	if st.kind == captured {
		return fmt.Sprintf("%s frame %d", st.name, k)
	}
	return st.name
}

// load reads the suite's captures and frames and decodes each as a whole.
func (c *check) load() (ok bool) {
	ok = true
	add := func(name string, k kind, d codecs.Direction, prelude, b []byte, want string, requests []byte, excuses Excuses) {
		st := &stream{name: name, kind: k, dir: d, bytes: append(append([]byte(nil), prelude...), b...), excuses: excuses}
		fine := c.attempt(func() {
			st.requests = c.requestsOf(name, requests)
			if len(b) == 0 {
				c.failf(where{name: name}, nil, "it is empty")
			}
			c.decodeStream(st)
			c.onlyOneFrame(st, len(prelude), want)
		})
		ok = ok && fine
		c.streams = append(c.streams, st)
	}
	for _, file := range c.captures() {
		b, err := os.ReadFile(file)
		d, known := directionOf(file)
		if err != nil || !known {
			c.errorf("%s: %v; the name of a capture ends in .c2s.bin or .s2c.bin", file, err)
			ok = false
			continue
		}
		var requests []byte
		if d == codecs.ServerToClient && c.seesRequests() {
			// What the client has sent, if that was captured too.
			requests, _ = os.ReadFile(strings.TrimSuffix(file, ".s2c.bin") + ".c2s.bin")
		}
		add(filepath.Base(file), captured, d, nil, b, "", requests, c.s.CaptureExcuses[filepath.Base(file)])
	}
	for _, f := range c.s.Frames {
		add(f.Name, handMade, f.Direction, f.Prelude, f.Bytes, f.Want, f.Requests, f.Excuses)
	}
	for _, f := range c.s.Malformed {
		add(f.Name, malformed, f.Direction, f.Prelude, f.Bytes, f.Want, f.Requests, f.Excuses)
	}
	if len(c.streams) == 0 {
		c.errorf("the suite has neither captures nor frames")
		ok = false
	}
	names := map[string]bool{}
	for _, st := range c.streams {
		if names[st.name] {
			c.errorf("two captures or frames are called %q", st.name)
			ok = false
		}
		names[st.name] = true
	}
	return ok
}

func (c *check) captures() (files []string) {
	for _, pattern := range c.s.Captures {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) == 0 {
			c.errorf("no captures match %s (%v)", pattern, err)
		}
		files = append(files, found...)
	}
	return files
}

func directionOf(file string) (d codecs.Direction, ok bool) {
	switch {
	case strings.HasSuffix(file, ".c2s.bin"):
		return codecs.ClientToServer, true
	case strings.HasSuffix(file, ".s2c.bin"):
		return codecs.ServerToClient, true
	default:
		return 0, false
	}
}

// decodeStream finds the frames of st.
func (c *check) decodeStream(st *stream) {
	dec := c.decoder(st)
	for at := 0; at < len(st.bytes); {
		w := where{stream: st, frame: len(st.frames), doing: fmt.Sprintf("decoding from offset %d on", at)}
		m := new(codecs.Metadata)
		var n int
		var err error
		// What else may be wrong is for the properties to tell, by their names.
		c.guard(w, st.bytes[at:], func() {
			n, err = dec.Decode(bytes.Clone(st.bytes[at:]), m)
			m.Detach()
		})
		switch {
		case err != nil:
			c.failf(w, st.bytes[at:], "it is refused: %v", err)
		case n <= 0:
			c.failf(w, st.bytes[at:], "Decode returns a length of %d", n)
		case n > len(st.bytes)-at:
			c.failf(w, st.bytes[at:], "it ends in the midst of a frame: Decode asks for %d bytes, there are %d", n, len(st.bytes)-at)
		}
		st.frames = append(st.frames, frame{at, n, m, taken(dec)})
		at += n
	}
}

// onlyOneFrame checks what a frame made by hand is to be.
func (c *check) onlyOneFrame(st *stream, prelude int, want string) {
	if st.kind == captured {
		return
	}
	last := len(st.frames) - 1
	f := &st.frames[last]
	w := where{stream: st, frame: last}
	st.first = last
	if f.at != prelude {
		c.failf(w, st.bytes, "it is not one frame: the prelude has %d bytes, but the last frame is at %d", prelude, f.at)
	}
	if got := Describe(f.meta); want != "" && got != want {
		c.failf(w, st.frame(last), "it is described as\n%s\nwant\n%s", got, want)
	}
	if st.kind == malformed && f.meta.Malformed == "" {
		c.failf(w, st.frame(last), "Malformed is not set")
	}
}

// walk decodes st frame by frame and shows each that is not of the prelude, with
// its metadata and its bytes in memory that is valid until visit returns.
func (c *check) walk(st *stream, doing string, visit func(w where, k int, m *codecs.Metadata)) {
	dec := c.decoder(st)
	var m codecs.Metadata
	for k, f := range st.frames {
		w := where{stream: st, frame: k, doing: doing}
		c.whole(w, dec, &m, st.frame(k), f.n)
		if k >= st.first {
			visit(w, k, &m)
		}
	}
}
