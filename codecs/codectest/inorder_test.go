package codectest

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// till is a protocol of lines whose answers have no ids, and the codec of it, with
// all that such a codec can have. It can be broken in one way.
type till struct {
	limit  int
	broken string
}

// The commands of clients. In a session, between open and close, the connection is
// the client's own.
var tillCommands = map[string]struct {
	means codecs.MessageType
	lease codecs.Lease
	ok    string // how answers begin
}{
	"get":   {means: codecs.Request, ok: "VALUE "},
	"list":  {means: codecs.Request, ok: "- "}, // in lines, up to a full stop
	"if":    {means: codecs.Quiet, ok: "VALUE "},
	"soft":  {means: codecs.Quiet, ok: "VALUE "}, // given out as sure
	"sure":  {means: codecs.Request, ok: "VALUE "},
	"drop":  {means: codecs.Muted, ok: "OK"},
	"note":  {means: codecs.Oneway},
	"ping":  {means: codecs.Heartbeat, ok: "PONG"},
	"quit":  {means: codecs.Goodbye, ok: "BYE"},
	"user":  {means: codecs.Request, ok: "OK"},
	"clean": {means: codecs.Request, ok: "OK"},
	"open":  {means: codecs.Request, lease: codecs.LeaseHeld, ok: "OK"},
	"close": {means: codecs.Request, lease: codecs.LeaseEnds, ok: "OK"},
}

// tillOrder numbers the commands, as they go into Scratch.
var tillOrder = slices.Sorted(maps.Keys(tillCommands))

var tillKeyName = []byte("key")

const (
	tillCommand = iota // 1 + the place in tillOrder
	tillKey            // the hash of the key
)

func (*till) Traits() codecs.Traits {
	return codecs.Traits{Correlation: codecs.InOrder, Attributes: []string{"key"}}
}

func (c *till) NewDecoder(d codecs.Direction) codecs.Decoder {
	if d == codecs.ServerToClient {
		return &tillServer{till: c}
	}
	return &tillClient{till: c}
}

func tillFault(why string) (int, error) {
	return 0, &codecs.ProtocolError{Protocol: "till", Reason: why}
}

// line finds a line.
func (c *till) line(buf []byte) (n int, err error) {
	n = bytes.IndexByte(buf, '\n') + 1
	switch {
	case buf[0] < ' ' || buf[0] > 'z':
		return tillFault("no line")
	case n > c.limit && c.broken != "a limit for those who wait", n == 0 && len(buf) >= c.limit:
		return tillFault("too long")
	case n == 0:
		return len(buf) + 1, nil
	}
	return n, nil
}

type tillClient struct {
	*till
	session bool
}

func (d *tillClient) Decode(buf []byte, m *codecs.Metadata) (int, error) {
	n, err := d.line(buf)
	if err != nil || n > len(buf) {
		return n, err
	}
	name, key, _ := bytes.Cut(buf[:n-1], []byte(" "))
	m.Raw, m.HeaderSize = buf[:n:n], n
	cmd, known := tillCommands[string(name)]
	if !known {
		m.Malformed = "no command"
		return n, nil
	}
	m.Type, m.Lease = cmd.means, cmd.lease
	m.SetOperation(nil, key)
	m.Put(tillKeyName, key)
	m.ExpectsReply = m.Type == codecs.Heartbeat || m.Type == codecs.Goodbye
	m.Scratch[tillCommand] = uint32(1 + slices.Index(tillOrder, string(name)))
	m.Scratch[tillKey] = crc32.ChecksumIEEE(key)
	switch {
	case m.Lease != codecs.NotLeased:
		d.session = m.Lease == codecs.LeaseHeld
	case d.session && mayLease(m.Type):
		m.Lease = codecs.LeaseHeld
	}
	switch {
	case d.broken == "a lease of a heartbeat" && m.Type == codecs.Heartbeat:
		m.Lease = codecs.LeaseHeld
	case d.broken == "a lease that does not exist" && m.Lease != 0:
		m.Lease = 9
	case d.broken == "a client that is silent":
		m.Silent = true
	}
	return n, nil
}

type tillServer struct {
	*till
	at   int // up to where the lines of a list have been read
	seen int
	last uint32
}

func (d *tillServer) Decode([]byte, *codecs.Metadata) (int, error) { panic("never called") }

// lines finds a line, or several up to a full stop.
func (d *tillServer) lines(buf []byte, several bool) (n int, err error) {
	if !several {
		return d.line(buf)
	}
	for d.at < len(buf) {
		n, err = d.line(buf[d.at:])
		if err != nil || d.at+n > d.limit {
			return tillFault("too long")
		}
		if d.at+n > len(buf) {
			return d.at + n, nil
		}
		last := string(buf[d.at:][:n]) == "- .\n"
		if d.at += n; last {
			if n = d.at; d.broken != "lines that are not forgotten" {
				d.at = 0
			}
			return n, nil
		}
	}
	if len(buf) >= d.limit {
		return tillFault("too long")
	}
	return len(buf) + 1, nil
}

func (d *tillServer) DecodeAnswer(buf []byte, m, req *codecs.Metadata) (int, error) {
	var name string
	if req != nil && req.Scratch[tillCommand] > 0 {
		name = tillOrder[req.Scratch[tillCommand]-1]
	}
	n, err := d.lines(buf, name == "list" && buf[0] == '-')
	if err == nil && n <= len(buf) && name == "get" && bytes.HasPrefix(buf, []byte("BLOB ")) {
		size, _ := strconv.ParseUint(string(buf[len("BLOB "):n-1]), 10, 16)
		n += int(size)
	}
	switch {
	case err != nil:
		return n, err
	case n > d.limit:
		m.Type = codecs.Response
		return 0, &codecs.TooLarge{Size: n, Limit: d.limit}
	case n > len(buf):
		if d.broken == "the first request that waited" && d.last == 0 && req != nil {
			d.last = req.Scratch[tillKey]
		}
		if d.broken == "nobody remembered" && req == nil {
			d.last = 1
		}
		return n, nil
	}
	line := buf[:bytes.IndexByte(buf, '\n')]
	m.Type, m.Raw, m.HeaderSize = codecs.Response, buf[:n:n], n
	quiet := req != nil && req.Type == codecs.Quiet
	belongs := req != nil && strings.HasPrefix(string(line), tillCommands[name].ok) && name != ""
	if value, ok := bytes.CutPrefix(line, []byte("VALUE ")); ok {
		key, _, _ := bytes.Cut(value, []byte(" "))
		belongs = belongs && crc32.ChecksumIEEE(key) == req.Scratch[tillKey]
	}
	switch {
	case bytes.HasPrefix(line, []byte("PUSH ")):
		m.Type = codecs.Push
		switch {
		case d.broken == "a push that answers":
			m.Type = codecs.Response
		case d.broken == "a push that needs a request" && req == nil:
			return tillFault("nobody waits")
		case d.broken == "a push behind a quiet request" && req != nil && req.Type == codecs.Quiet:
			return 0, codecs.ErrUnanswered
		}
		return n, nil
	case bytes.HasPrefix(line, []byte("NO ")):
		m.Type, m.Status = codecs.Error, codecs.StatusError
	case bytes.HasPrefix(line, []byte("BLOB ")) && name == "get":
	case string(line) == "MISS" && (name == "get" || name == "sure"):
	case string(line) == "MISS" && name == "soft":
		m.Silent = true
	case d.broken == "no answer to a request" && !belongs && req != nil:
		return 0, codecs.ErrUnanswered
	case d.broken == "no answer to nobody" && req == nil:
		return 0, codecs.ErrUnanswered
	case d.broken == "an answer for anybody":
	case quiet && !belongs && d.broken != "a quiet request that must be answered":
		return 0, codecs.ErrUnanswered
	case req == nil:
		return tillFault("nobody has asked")
	case !belongs:
		return tillFault("it is the answer to another request")
	}
	return n, d.spoil(m, req, string(line) == "MISS", string(line) == "PONG")
}

// spoil breaks an answer.
func (d *tillServer) spoil(m, req *codecs.Metadata, miss, pong bool) error {
	d.seen++
	switch d.broken {
	case "an answer that is silent for all":
		m.Silent = m.Silent || miss
	case "an error that is silent":
		m.Silent = m.Silent || m.Type == codecs.Error && req != nil && req.Type == codecs.Quiet
	case "a heartbeat that fails":
		if pong {
			m.Status = codecs.StatusBusinessException
		}
	case "a second answer that is another":
		m.Scratch[5] = uint32(min(d.seen, 2))
	case "a request that is looked at twice":
		if req != nil && d.last == req.Scratch[tillKey] {
			m.Scratch[5] = 1
		} else if req != nil {
			d.last = req.Scratch[tillKey]
		}
	case "the first request that waited":
		m.Scratch[5], d.last = d.last, 0
	case "nobody remembered":
		m.Scratch[5], d.last = d.last, 0
	case "the frame of the request":
		if req != nil {
			m.Scratch[5] = uint32(req.Raw[0])
		}
	case "a lease of a server":
		m.Lease = codecs.LeaseHeld
	}
	return nil
}

func (c *till) Encode(dst []byte, m *codecs.Metadata, _ *codecs.Mutation) ([]byte, error) {
	rest, soft := bytes.CutPrefix(m.Raw, []byte("soft "))
	switch {
	case !soft:
		return append(dst, m.Raw...), nil
	case c.broken == "a quiet request that becomes another":
		return append(append(dst, "drip "...), rest...), nil
	case c.broken == "a quiet request that becomes a oneway":
		return append(append(dst, "note "...), rest...), nil
	case c.broken == "a quiet request that changes each time":
		return append(append(dst, "soft "...), append([]byte("x"), rest...)...), nil
	}
	if c.broken == "a quiet request that gets another key" {
		return append(append(dst, "sure x"...), rest...), nil
	}
	return append(append(dst, "sure "...), rest...), nil
}

func (c *till) EncodeError(dst []byte, _ *codecs.Metadata, e *codecs.LocalError) ([]byte, error) {
	text := strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, e.Message)
	switch c.broken {
	case "an error that is a push":
		return append(dst, "PUSH no\n"...), nil
	case "an error of several lines":
		return append(dst, "NO "+e.Message[:min(len(e.Message), 100)]+"\n"...), nil
	}
	return append(dst, "NO "+text[:min(len(text), 100)]+"\n"...), nil
}

func (c *till) EncodeHeartbeat(dst []byte, hb *codecs.Metadata) ([]byte, error) {
	switch {
	case hb.Type == codecs.Goodbye && c.broken != "a goodbye that is answered as a ping":
		return append(dst, "BYE\n"...), nil
	case c.broken == "a heartbeat that is answered by an error":
		return append(dst, "NO way\n"...), nil
	}
	return append(dst, "PONG\n"...), nil
}

func (c *till) AppendPreface(dst []byte, _ uint8) ([]byte, error) {
	switch c.broken {
	case "a preface that is cut off":
		return append(dst, "user joe\nuser"...), nil
	case "a preface that is none of requests":
		return append(dst, "quit\n"...), nil
	case "a preface that is malformed":
		return append(dst, "login joe\n"...), nil
	case "a preface that changes":
		c.limit++
		return fmt.Appendf(dst, "user joe%d\n", c.limit), nil
	case "a preface in the place of what was before":
		return append(dst[:0], "user joe\n"...), nil
	case "no preface":
		return dst, nil
	case "a preface that fails":
		return dst, errors.New("no credentials")
	}
	return append(dst, "note hello\nuser joe\nget x\n"...), nil
}

func (c *till) CheckPreface(req, answer *codecs.Metadata) error {
	switch {
	case c.broken == "a welcome that is never refused":
		return nil
	case c.broken == "a welcome that is always refused":
		return errors.New("refused")
	case c.broken == "a welcome that wants an answer of its own":
		_ = answer.Raw[7]
	case c.broken == "a request that the check changes":
		req.Scratch[0] = 0
	case c.broken == "an answer that the check changes":
		answer.Raw[0] = 'x'
	case c.broken == "an error that is a view" && answer.Type == codecs.Error:
		return &viewError{answer.Raw}
	case c.broken == "the frame of the preface":
		return errors.New(string(req.Raw[:2]))
	}
	if answer.Type == codecs.Error {
		return errors.New("the server refuses the user")
	}
	return nil
}

type viewError struct{ b []byte }

func (e *viewError) Error() string { return string(e.b) }

func (c *till) AppendReset(dst []byte, _ uint8) ([]byte, error) {
	if c.broken == "a reset of oneways and quiet ones" {
		return append(dst, "note x\nif y\n"...), nil
	}
	return append(dst, "clean\n"...), nil
}

func (c *till) CheckReset(_, answer *codecs.Metadata) error {
	if answer.Type == codecs.Error && c.broken != "a reset that is never refused" {
		return errors.New("it is not clean")
	}
	return nil
}

func newTill(l codecs.Limits, broken string) *till {
	return &till{limit: cmp.Or(l.MaxFrameBytes, 1<<12), broken: broken}
}

// tillSuite is a new one each time.
func tillSuite(broken string) Suite {
	const c2s, s2c = codecs.ClientToServer, codecs.ServerToClient
	ask := func(line string, e ...Excuses) Frame {
		f := Frame{Name: line, Direction: c2s, Bytes: []byte(line + "\n")}
		for _, e := range e {
			f.Excuses = e
		}
		return f
	}
	answer := func(name, requests, lines string) Frame {
		return Frame{Name: name, Direction: s2c, Bytes: []byte(lines), Requests: []byte(requests)}
	}
	session := Excuses{Stateful: "it begins a session"}
	return Suite{
		New: func(l codecs.Limits) (codecs.Codec, error) { return newTill(l, broken), nil },
		Frames: []Frame{
			ask("get k"), ask("list"), ask("if k"), ask("soft k"), ask("sure k"), ask("drop k"), ask("note k"), ask("ping"), ask("quit"),
			ask("user joe"), ask("open", session), ask("close"),
			{Name: "get in a session", Direction: c2s, Prelude: []byte("open\n"), Bytes: []byte("get k\n"), Want: "request id=0 lease=1 status=0 reply=false size=6+0 op=k key=\"k\""},
			answer("hit", "get k\n", "VALUE k v\n"),
			answer("miss", "get k\n", "MISS\n"),
			answer("error", "get k\n", "NO way\n"),
			answer("lines", "list\n", "- a\n- b\n- .\n"),
			answer("one line", "get -\n", "VALUE - -\n"),
			answer("quiet hit", "if k\n", "VALUE k v\n"),
			answer("quiet miss, other hit", "if k\nget j\n", "VALUE j v\n"),
			answer("two quiet misses, other hit", "if k\nif l\nif j\n", "VALUE j v\n"),
			answer("silent miss", "soft k\n", "MISS\n"),
			answer("soft hit", "soft k\n", "VALUE k v\n"),
			answer("muted", "drop k\n", "OK\n"),
			answer("push", "", "PUSH x\n"),
			{Name: "answer behind a push", Direction: s2c, Prelude: []byte("PUSH x\n"), Bytes: []byte("MISS\n"), Requests: []byte("get k\n")},
			{Name: "push before an answer", Direction: s2c, Bytes: []byte("PUSH x\n"), Requests: []byte("get k\n")},
			answer("pong", "ping\n", "PONG\n"),
		},
		Malformed: []Frame{ask("set k")},
		Invalid: []Invalid{
			{Name: "junk", Direction: s2c, Bytes: []byte("\x00")},
			{Name: "another's answer", Direction: s2c, Bytes: []byte("VALUE j v\n"), Requests: []byte("get k\n")},
			{Name: "an answer to a request that is quiet, and to no other", Direction: s2c, Bytes: []byte("VALUE j v\n"), Requests: []byte("if k\nget i\n")},
			{Name: "lines for none", Direction: s2c, Bytes: []byte("- a\n- .\n"), Requests: []byte("get k\n")},
		},
		Hostile: []Frame{{Name: "lines", Direction: s2c, Bytes: bytes.Repeat([]byte("- line\n"), 500), Requests: []byte("list\n")}},
		Prefaces: []Welcome{
			{Name: "welcome", Answers: []byte("OK\nVALUE x 1\n")},
			{Name: "welcome, with a push", Answers: []byte("PUSH hello\nOK\nMISS\n")},
			{Name: "go away", Answers: []byte("NO entry\n"), Refused: true},
			{Name: "another protocol", Answers: []byte("SSH-2.0\n"), Refused: true},
		},
		Resets: []Welcome{
			{Name: "clean", Answers: []byte("OK\n")},
			{Name: "not clean", Answers: []byte("NO way\n"), Refused: true},
		},
	}
}

func TestASoundCodecWithoutIDsPasses(t *testing.T) { Run(t, tillSuite("")) }

// TestCapturesOfACodecWithoutIDs: what frames are left out, as they are too large,
// leaves the others with their own requests.
func TestCapturesOfACodecWithoutIDs(t *testing.T) {
	dir := t.TempDir()
	blob := func(n int) string { return fmt.Sprintf("BLOB %d\n%s", n, strings.Repeat("x", n)) }
	for name, b := range map[string]string{
		"a.c2s.bin": "get a\nget b\nlist\nif i\nget c\nping\nget d\ndrop d\nquit\n",
		"a.s2c.bin": blob(300) + blob(200) + "- a\n- .\nVALUE c 1\nPONG\nMISS\nOK\nBYE\n",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(b), 0o600))
	}
	s := tillSuite("")
	s.Captures = []string{filepath.Join(dir, "*.bin")}
	Run(t, s)
}

func FuzzDecodeOfACodecWithoutIDs(f *testing.F) { FuzzDecode(f, tillSuite("")) }

func FuzzEncodeOfACodecWithoutIDs(f *testing.F) { FuzzEncode(f, tillSuite("")) }

// TestOneLocalAnswerIsEnough for a codecs.Heartbeater, and one way not to be answered
// for quiet requests that do not go out as such.
func TestOneLocalAnswerIsEnough(t *testing.T) {
	for _, without := range [][]string{
		{"ping", "pong"},
		{"quit"},
		{"if k", "quiet hit", "quiet miss, other hit", "two quiet misses, other hit"},
	} {
		s := tillSuite("")
		s.Frames = slices.DeleteFunc(s.Frames, func(f Frame) bool { return slices.Contains(without, f.Name) })
		require.Empty(t, failures(s, "coverage"))
	}
}

// TestEveryFaultOfACodecWithoutIDsIsFound.
func TestEveryFaultOfACodecWithoutIDsIsFound(t *testing.T) {
	without := func(names ...string) func(s *Suite) {
		return func(s *Suite) {
			s.Frames = slices.DeleteFunc(s.Frames, func(f Frame) bool { return slices.Contains(names, f.Name) })
		}
	}
	for _, tc := range []struct {
		broken, property, says string
		suite                  func(s *Suite)
	}{
		{"a lease of a heartbeat", "loading", "Lease is set on a heartbeat, which is no request", nil},
		{"a lease that does not exist", "splits", "there is no lease 9", without("get in a session")},
		{"a client that is silent", "loading", "Silent is set on a request, which is no answer", nil},
		{"a lease of a server", "splits", "Lease is set on a response, which is no request", nil},
		{"a push that answers", "loading", "", nil},
		{"a push that needs a request", "answers", "when nobody waits: the frame is refused", without("push", "answer behind a push")},
		{"a push behind a quiet request", "answers", "when one waits that is quiet: quiet", nil},
		{"no answer to a request", "invalid", "ErrUnanswered is returned though the request is a request, not quiet", nil},
		{"no answer to nobody", "unasked", "ErrUnanswered is returned though no request waits", nil},
		{"an answer for anybody", "invalid", "another's answer: it is not refused", nil},
		{"a quiet request that must be answered", "loading", "it is the answer to another request", nil},
		{"an answer that is silent for all", "loading", "the answer is Silent though the request is a request, not quiet", nil},
		{"an error that is silent", "error_replies", "the answer is Silent: its client would not be told", nil},
		{"a heartbeat that fails", "heartbeats", "the answer is decoded as a failure", nil},
		{"a second answer that is another", "orders", "Scratch is", nil},
		{"lines that are not forgotten", "orders", "lines, server to client, behind lines", nil},
		{"a request that is looked at twice", "orders", "Scratch is", nil},
		{"the first request that waited", "answers", "behind one that is quiet", nil},
		{"nobody remembered", "answers", "its begin shown when nobody waited", nil},
		{"the frame of the request", "loading", "the codec panics: runtime error: index out of range", nil},
		{"a quiet request that becomes another", "round_trip", `as given out it has changed: Malformed is "no command"`, nil},
		{"a quiet request that gets another key", "round_trip", `attribute "key" has changed from ["k"] to ["xk"]`, nil},
		{"a quiet request that becomes a oneway", "round_trip", "as given out it has changed: type is oneway, not quiet", nil},
		{"a quiet request that changes each time", "round_trip", "given out once more it becomes", nil},
		{"an error that is a push", "error_replies", "the answer is decoded as a push", nil},
		{"an error of several lines", "error_replies", "a text of several lines: EncodeError wrote 24 bytes, of which Decode takes 8 for the frame: is there a line break of the text in it?", nil},
		{"a goodbye that is answered as a ping", "heartbeats", "it is the answer to another request", nil},
		{"a heartbeat that is answered by an error", "heartbeats", "the answer is decoded as a error", nil},
		{"a preface that is cut off", "preface", "it is not of whole frames", nil},
		{"a preface that is none of requests", "preface", "it is decoded as a goodbye, want a request or a oneway", nil},
		{"a preface that is malformed", "preface", "it is malformed: no command", nil},
		{"a preface that changes", "preface", "it is encoded differently a second time", nil},
		{"a preface in the place of what was before", "preface", "what stood before is gone", nil},
		{"no preface", "preface", "AppendPreface appends nothing", nil},
		{"a preface that fails", "preface", "no credentials", nil},
		{"a welcome that is never refused", "preface", "go away, in answer to AppendPreface, variant 0: CheckPreface lets it pass", nil},
		{"a welcome that is always refused", "preface", "welcome, in answer to AppendPreface, variant 0: it is refused", nil},
		{"a welcome that wants an answer of its own", "preface", "the codec panics", nil},
		{"a request that the check changes", "preface", "CheckPreface changes the request", nil},
		{"an answer that the check changes", "preface", "CheckPreface changes the answer", nil},
		{"an error that is a view", "preface", "the error of CheckPreface is a view of the answer", nil},
		{"the frame of the preface", "preface", "the codec panics", nil},
		{"a reset of oneways and quiet ones", "reset", "it is decoded as a quiet", nil},
		{"a reset that is never refused", "reset", "CheckReset lets it pass", nil},
		{"", "reset", "the suite's Resets have no answers that are refused", func(s *Suite) { s.Resets = s.Resets[:1] }},
		{"", "preface", "the suite's Prefaces have no answers to variant 0", func(s *Suite) { s.Prefaces = s.Prefaces[2:] }},
		{"", "preface", "1 of 2 requests have no answer", func(s *Suite) { s.Prefaces[0].Answers = []byte("OK\n") }},
		{"", "coverage", "no answer to a request that is muted", without("muted")},
		{"", "coverage", "no answer behind a request that is quiet and gets none, nor one that is Silent", without("silent miss", "quiet miss, other hit", "two quiet misses, other hit")},
		{"", "coverage", "if k, client to server, given out: it goes out quiet, but no answer of the suite passes it over", without("quiet miss, other hit", "two quiet misses, other hit")},
		{"", "coverage", "no heartbeat or goodbye that expects a reply", without("ping", "quit")},
		{"a limit for those who wait", "limits", "with 5 bytes there it is refused, but not when all 6 come at once", nil},
		{"", "coverage", "add Invalid answers with Requests", func(s *Suite) { s.Invalid = s.Invalid[:1] }},
		{"", "orders", "get k, client to server, behind open: it decodes to something else than the stream as a whole does: Lease is 1, not 0", func(s *Suite) { s.Frames[10].Excuses = nil }},
	} {
		t.Run(cmp.Or(tc.broken, tc.says), func(t *testing.T) {
			s := tillSuite(tc.broken)
			if tc.suite != nil {
				tc.suite(&s)
			}
			text := failures(s, tc.property)[tc.property]
			require.NotEmpty(t, text)
			require.Contains(t, text, tc.says)
		})
	}
}
