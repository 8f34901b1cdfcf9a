package codectest

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// echo is a protocol of lines without ids. A server answers "get" by "ok", and
// "list" by any lines up to a full stop: only the request tells which.
type echo struct {
	limit  int
	broken func(m, req *codecs.Metadata) error
}

const (
	echoGet = iota + 1
	echoList
)

func (*echo) Traits() codecs.Traits { return codecs.Traits{Correlation: codecs.InOrder} }

func (c *echo) NewDecoder(d codecs.Direction) codecs.Decoder { return &echoDecoder{c, d} }

func (*echo) Encode(dst []byte, m *codecs.Metadata, _ *codecs.Mutation) ([]byte, error) {
	return append(dst, m.Raw...), nil
}

func (*echo) EncodeError(dst []byte, req *codecs.Metadata, _ *codecs.LocalError) ([]byte, error) {
	if req.Scratch[0] == echoList {
		return append(dst, "-\n.\n"...), nil
	}
	return append(dst, "-\n"...), nil
}

type echoDecoder struct {
	c *echo
	d codecs.Direction
}

var errEcho = &codecs.ProtocolError{Protocol: "echo", Reason: "no line"}

func (d *echoDecoder) line(buf []byte) (n int, err error) {
	n = bytes.IndexByte(buf, '\n') + 1
	switch {
	case buf[0] < '+' || buf[0] > 'z', n > d.c.limit, n == 0 && len(buf) >= d.c.limit:
		return 0, errEcho
	case n == 0:
		return len(buf) + 1, nil
	}
	return n, nil
}

func (d *echoDecoder) Decode(buf []byte, m *codecs.Metadata) (int, error) {
	n, err := d.line(buf)
	if err != nil || n > len(buf) {
		return n, err
	}
	m.Raw, m.HeaderSize = buf[:n:n], n
	switch string(m.Raw) {
	case "get\n":
		m.Scratch[0] = echoGet
	case "list\n":
		m.Scratch[0] = echoList
	default:
		m.Malformed = "no command"
	}
	return n, nil
}

func (d *echoDecoder) DecodeAnswer(buf []byte, m, req *codecs.Metadata) (int, error) {
	n, err := d.line(buf)
	for err == nil && n < len(buf) && req != nil && req.Scratch[0] == echoList && !bytes.HasSuffix(buf[:n], []byte(".\n")) {
		var more int
		more, err = d.line(buf[n:])
		n += more
	}
	list := err == nil && n <= len(buf) && req != nil && req.Scratch[0] == echoList
	switch {
	case err != nil || n > len(buf):
		return n, err
	case list && !bytes.HasSuffix(buf[:n], []byte(".\n")):
		if n >= d.c.limit {
			return 0, errEcho
		}
		return n + 1, nil
	case n > d.c.limit:
		return 0, errEcho
	}
	m.Type, m.Raw, m.HeaderSize = codecs.Response, buf[:n:n], n
	if buf[0] == '-' {
		m.Type, m.Status = codecs.Error, codecs.StatusError
	}
	if d.c.broken != nil {
		return n, d.c.broken(m, req)
	}
	return n, nil
}

func echoSuite(broken func(m, req *codecs.Metadata) error) Suite {
	const c2s, s2c = codecs.ClientToServer, codecs.ServerToClient
	list := bytes.Repeat([]byte("line\n"), 500)
	return Suite{
		New: func(l codecs.Limits) (codecs.Codec, error) {
			if l.MaxFrameBytes == 0 {
				l.MaxFrameBytes = 1 << 12
			}
			return &echo{l.MaxFrameBytes, broken}, nil
		},
		NoErrorText: true,
		AnyAnswer:   true,
		Frames: []Frame{
			{Name: "get", Direction: c2s, Bytes: []byte("get\n")},
			{Name: "list", Direction: c2s, Bytes: []byte("list\n")},
			{Name: "ok", Direction: s2c, Bytes: []byte("ok\n"), Requests: []byte("get\n")},
			{Name: "error", Direction: s2c, Bytes: []byte("-no\n"), Requests: []byte("get\n")},
			{Name: "lines", Direction: s2c, Bytes: []byte("a\nb\n.\n"), Requests: []byte("list\n")},
			{Name: "ok behind lines", Direction: s2c, Prelude: []byte("a\nb\n.\n"), Bytes: []byte("ok\n"), Requests: []byte("list\nget\n")},
		},
		Invalid: []Invalid{{Name: "junk", Direction: s2c, Bytes: []byte("\x00")}},
		Hostile: []Frame{{Name: "lines", Direction: s2c, Bytes: list}},
	}
}

func TestAnswersThatDependOnTheirRequests(t *testing.T) { Run(t, echoSuite(nil)) }

func TestCapturedAnswersFindTheirRequests(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "a.c2s.bin"), []byte("list\nget\nlist\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "a.s2c.bin"), []byte("a\nb\n.\nok\n.\n"), 0o600))
	s := echoSuite(nil)
	s.Captures = []string{filepath.Join(dir, "*.bin")}
	require.Empty(t, failures(s))
	s.Golden = filepath.Join(dir, "golden")
	*update = true
	defer func() { *update = false }()
	require.Empty(t, failures(s))
	b, err := os.ReadFile(s.Golden)
	require.NoError(t, err)
	require.Equal(t, 3, bytes.Count(b, []byte("response id=0")))
}

func TestFaultsOfAnAnswerDecoderAreFound(t *testing.T) {
	var last *codecs.Metadata
	for _, tc := range []struct {
		fault, property, says string
		broken                func(m, req *codecs.Metadata) error
	}{
		{"a request that is changed", "loading", "DecodeAnswer changes the request: id is 9, not 0", func(_, req *codecs.Metadata) error {
			if req != nil {
				req.ID = 9
			}
			return nil
		}},
		{"an answer that nobody expects", "unasked", "asked for by nobody: the codec panics", func(m, req *codecs.Metadata) error {
			m.Scratch[1] = req.Scratch[0]
			return nil
		}},
		{"a request that is kept", "loading", "ok behind lines", func(_, req *codecs.Metadata) error {
			if last != nil && last.Type == 0xff {
				return errors.New("it has gone")
			}
			last = req
			return nil
		}},
	} {
		t.Run(tc.fault, func(t *testing.T) {
			last = nil
			require.Contains(t, failures(echoSuite(tc.broken))[tc.property], tc.says)
		})
	}
	s := echoSuite(nil)
	s.New = func(codecs.Limits) (codecs.Codec, error) { return numbered{&echo{limit: 1 << 12}}, nil }
	require.Contains(t, failures(s, "answers")["answers"], "but its messages correlate by id")
}

type numbered struct{ *echo }

func (numbered) Traits() codecs.Traits {
	return codecs.Traits{Correlation: codecs.ByID, MaxID: 9}
}

// TestNeighboursOfALargeFrame are decoded as if it had not been.
func TestNeighboursOfALargeFrame(t *testing.T) {
	dir := t.TempDir()
	big := toyFrame(toyCall, 7, "op=add", string(make([]byte, 100)))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "a.c2s.bin"), slices.Concat(theCall, big, theTell, big, theCall), 0o600))
	s := toySuite()
	s.Captures = []string{filepath.Join(dir, "*.bin")}
	require.Empty(t, failures(s))
	s.New = func(l codecs.Limits) (codecs.Codec, error) {
		return &broken{toy: newToy(l), newDecoder: func() codecs.Decoder {
			var large bool
			return decodeFunc(func(buf []byte, m *codecs.Metadata) (int, error) {
				n, err := newToy(l).Decode(buf, m)
				if large && err == nil && n <= len(buf) {
					m.Scratch[7] = 1
				}
				large = large || tooLarge(err)
				return n, err
			})
		}}, nil
	}
	require.Contains(t, failures(s, "limits")["limits"], "behind one that was too large")
}

// TestAnEncodeThatReturnsNilWithItsError does no harm: the caller cuts off.
func TestAnEncodeThatReturnsNilWithItsError(t *testing.T) {
	s := toySuite()
	s.New = func(l codecs.Limits) (codecs.Codec, error) {
		return &broken{toy: newToy(l), encode: func(c *toy, dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
			dst, err := c.Encode(dst, m, mut)
			if err != nil {
				return nil, err
			}
			return dst, nil
		}}, nil
	}
	require.Empty(t, failures(s))
}
