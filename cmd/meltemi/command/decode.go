package command

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// decode prints the frames of a capture.
func (e *env) decode(args []string) int {
	fs := flag.NewFlagSet("decode", flag.ContinueOnError)
	dir := fs.String("d", "", "which way the bytes travel, `c2s` (client to server) or s2c; without it, what a part of the\nfile's name says, as in hello.s2c.bin, else c2s")
	asJSON := fs.Bool("json", false, "print one JSON object per frame and line")
	hex := fs.Bool("x", false, "print the bytes of each frame too")
	names, status, ok := e.flags(fs, decodeUsage, args, 2, 2)
	if !ok {
		return status
	}
	protocol, file := names[0], names[1]
	d, err := direction(*dir, file)
	if err != nil {
		return e.fail(statusUsage, "%v", err)
	}
	var name string
	var codec codecs.Codec // nil: sniffed
	switch {
	case protocol != "auto":
		if name, codec, err = find(protocol); err != nil {
			return e.fail(statusUsage, "%v", err)
		}
	case d == codecs.ServerToClient:
		return e.fail(statusUsage, "auto looks at what clients send first: name the protocol of what a server sends")
	}
	if codec != nil && d == codecs.ServerToClient {
		if _, ok := codec.NewDecoder(d).(codecs.AnswerDecoder); ok {
			return e.fail(statusUsage, "what answers of %s are depends on their requests, which a file of one direction does not have", short(name))
		}
	}
	b, err := e.read(file)
	if file == "-" {
		file = "standard input"
	}
	switch {
	case err != nil:
		return e.fail(statusFault, "%v", err)
	case len(b) == 0:
		return statusOK
	case codec == nil:
		if name, codec, err = sniff(b); err != nil {
			return e.undecodable(file, b, 0, err)
		}
	}
	return e.frames(file, b, codec.NewDecoder(d), &printer{w: e.stdout, protocol: name, ids: codec.Traits().MaxID > 0, json: *asJSON, hex: *hex})
}

// direction is what a flag says, or a part of a file's name.
func direction(dir, file string) (codecs.Direction, error) {
	if dir == "" {
		dir = "c2s"
		if slices.Contains(strings.Split(filepath.Base(file), "."), "s2c") {
			dir = "s2c"
		}
	}
	switch dir {
	case "c2s":
		return codecs.ClientToServer, nil
	case "s2c":
		return codecs.ServerToClient, nil
	default:
		return 0, fmt.Errorf("-d %s: want c2s or s2c", dir)
	}
}

func (e *env) read(file string) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(e.stdin)
	}
	return os.ReadFile(file)
}

// frames prints the frames of b.
func (e *env) frames(file string, b []byte, dec codecs.Decoder, p *printer) (status int) {
	at := 0
	defer func() {
		// Codecs under development do panic: tell where.
		if r := recover(); r != nil {
			status = e.fail(statusFault, "%s: the codec has panicked on the frame at offset %d: %v\n%s", file, at, r, debug.Stack())
		}
	}()
	var m codecs.Metadata
	for at < len(b) {
		m.Reset()
		n, err := dec.Decode(b[at:], &m)
		var large *codecs.TooLarge
		if errors.As(err, &large) && large.Size > 0 && large.Size <= len(b)-at {
			// What its head tells is shown, and what follows is read.
			n, err, m.Malformed = large.Size, nil, large.Error()
		}
		switch {
		case err != nil:
			return e.undecodable(file, b, at, err)
		case n <= 0:
			return e.fail(statusFault, "%s: the codec says that the frame at offset %d has %d bytes", file, at, n)
		case n > len(b)-at:
			return e.fail(statusFault, "%s: the capture ends in the middle of a frame: that at offset %d has at least %d bytes, %d are there\n%s",
				file, at, n, len(b)-at, excerpt(b, at, at))
		}
		if err := p.print(at, &m, b[at:at+n]); err != nil {
			return statusFault // Main reports it
		}
		at += n
	}
	return statusOK
}

// undecodable tells what is wrong with the frame at offset start, and shows it.
func (e *env) undecodable(file string, b []byte, start int, err error) int {
	at, reason := start, err.Error()
	var pe *codecs.ProtocolError
	if errors.As(err, &pe) {
		at, reason = min(start+max(pe.Offset, 0), len(b)), pe.Reason
	}
	where := ""
	if at > start {
		where = fmt.Sprintf(", in the frame that begins at %d", start)
	}
	return e.fail(statusFault, "%s: undecodable at offset %d%s: %s\n%s", file, at, where, reason, excerpt(b, start, at))
}
