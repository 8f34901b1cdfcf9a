package codecs_test

import (
	"bytes"
	"cmp"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/codectest"
)

// notes is the codec of README.md's chapter on protocols without ids. "get KEY" is
// answered by "=", lines and a full stop, "put KEY VALUE" by "+", "putq KEY VALUE" by
// nothing; any of them by "-" and what was wrong.
type notes struct{ limit int }

func (notes) Traits() codecs.Traits {
	return codecs.Traits{Correlation: codecs.InOrder, ShareByDefault: true, Attributes: []string{"command"}}
}

func (c notes) NewDecoder(codecs.Direction) codecs.Decoder { return c }

const command = 0 // in Scratch: how the answers of success begin

var commandName = []byte("command")

func (c notes) Decode(buf []byte, m *codecs.Metadata) (int, error) {
	n, err := c.find(buf, "\n")
	if err != nil || n > len(buf) {
		return n, err
	}
	m.Raw, m.HeaderSize = buf[:n:n], n
	name, _, _ := bytes.Cut(m.Raw, []byte(" "))
	switch string(name) {
	case "get":
		m.Scratch[command] = '='
	case "putq":
		m.Type = codecs.Quiet
		name = name[:len("put")] // as which it goes out
		fallthrough
	case "put":
		m.Scratch[command] = '+'
	default:
		m.Malformed = "unknown command"
		return n, nil
	}
	m.Put(commandName, name)
	m.SetOperation(nil, name)
	return n, nil
}

func (c notes) find(buf []byte, end string) (int, error) {
	i := bytes.Index(buf[:min(len(buf), c.limit)], []byte(end))
	switch {
	case buf[0] < ' ':
		return fault("not printable")
	case i < 0 && len(buf) < c.limit:
		return len(buf) + 1, nil
	case i < 0:
		return fault("too long")
	}
	return i + len(end), nil
}

func fault(reason string) (int, error) {
	return 0, &codecs.ProtocolError{Protocol: "notes", Reason: reason}
}

// DecodeAnswer implements codecs.AnswerDecoder.
func (c notes) DecodeAnswer(buf []byte, m, req *codecs.Metadata) (int, error) {
	first, end := uint32(buf[0]), "\n"
	switch {
	case req == nil:
		return fault("nobody has asked")
	case first != '-' && first != req.Scratch[command]:
		return fault("it does not answer what was asked")
	case first == '=':
		end = "\n.\n"
	}
	n, err := c.find(buf, end)
	if err != nil || n > len(buf) {
		return n, err
	}
	m.Type, m.Raw, m.HeaderSize = codecs.Response, buf[:n:n], n
	if first == '-' {
		m.Type, m.Status = codecs.Error, codecs.StatusError
	}
	m.Silent = req.Type == codecs.Quiet && first == '+'
	return n, nil
}

// Encode implements codecs.Codec. Servers are always asked for an answer.
func (notes) Encode(dst []byte, m *codecs.Metadata, _ *codecs.Mutation) ([]byte, error) {
	if rest, quiet := bytes.CutPrefix(m.Raw, []byte("putq ")); quiet {
		return append(append(dst, "put "...), rest...), nil
	}
	return append(dst, m.Raw...), nil
}

func (notes) EncodeError(dst []byte, _ *codecs.Metadata, e *codecs.LocalError) ([]byte, error) {
	text := strings.NewReplacer("\r", " ", "\n", " ").Replace(e.Message)
	return append(dst, "-"+text[:min(len(text), 200)]+"\n"...), nil
}

func TestTheExampleWithoutIDs(t *testing.T) {
	const c2s, s2c = codecs.ClientToServer, codecs.ServerToClient
	request := func(line string) codectest.Frame {
		return codectest.Frame{Name: line, Direction: c2s, Bytes: []byte(line + "\n")}
	}
	answer := func(name, request, lines string) codectest.Frame {
		return codectest.Frame{Name: name, Direction: s2c, Bytes: []byte(lines), Requests: []byte(request + "\n")}
	}
	codectest.Run(t, codectest.Suite{
		New: func(l codecs.Limits) (codecs.Codec, error) { return notes{cmp.Or(l.MaxFrameBytes, 4096)}, nil },
		Frames: []codectest.Frame{
			request("get k"), request("put k v"), request("putq k v"),
			answer("value", "get k", "=\na\nb\n.\n"),
			answer("done", "put k v", "+\n"),
			answer("refused", "put k v", "-full\n"),
			answer("silence", "putq k v", "+\n"),
			answer("quiet error", "putq k v", "-full\n"),
		},
		Invalid: []codectest.Invalid{
			{Name: "value for a put", Direction: s2c, Bytes: []byte("=\n.\n"), Requests: []byte("put k v\n")},
			{Name: "value for nobody", Direction: s2c, Bytes: []byte("=\n.\n")},
		},
		Malformed: []codectest.Frame{request("del k")},
		Hostile:   []codectest.Frame{answer("lines", "get k", "="+strings.Repeat("\n", 4096))},
	})
}

// TestREADMEHasTheExample as it is.
func TestREADMEHasTheExample(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	source, err := os.ReadFile("example_test.go")
	require.NoError(t, err)
	snippets := regexp.MustCompile("(?ms)^```go\n(.*?)^```$").FindAllStringSubmatch(string(readme), -1)
	require.NotEmpty(t, snippets)
	for _, snippet := range snippets {
		require.Contains(t, string(source), "\n"+snippet[1])
	}
}
