package filter_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

// dbToy is a protocol without ids that has all of what such protocols have. Its
// servers want "req 0 login secret" first and answer "res 0 login welcome". Methods
// that begin with "mhold" lease a connection, with "mlast" give it back; "req 0 clean
// -" cleans it. The text of an answer must begin with that of its request, and
// answers "… silent" are not passed on.
type dbToy struct{ toy }

func init() {
	for name, t := range map[string]codecs.MessageType{"quiet": codecs.Quiet, "muted": codecs.Muted, "push": codecs.Push, "bye": codecs.Goodbye} {
		toyTypes[name] = t
	}
	register := func(name string, c codecs.Codec) {
		codecs.Register(name, func(*anypb.Any, codecs.Limits) (codecs.Codec, error) { return c, nil })
	}
	inOrder := toy{codecs.Traits{Correlation: codecs.InOrder, ShareByDefault: true}, 'd'}
	register("toy.db", dbToy{inOrder})
	register("toy.db.preface", prefaceToy{dbToy{inOrder}})
	register("toy.db.reset", resetToy{dbToy{inOrder}})
}

func (t dbToy) NewDecoder(codecs.Direction) codecs.Decoder { return t }

func (t dbToy) Decode(b []byte, m *codecs.Metadata) (int, error) {
	n, err := t.toy.Decode(b, m)
	if err != nil || n > len(b) {
		return n, err
	}
	f := strings.SplitN(string(b[:n-1]), " ", 4)
	switch {
	case strings.HasPrefix(f[2], "mhold"):
		m.Lease = codecs.LeaseHeld
	case strings.HasPrefix(f[2], "mlast"):
		m.Lease = codecs.LeaseEnds
	}
	m.ExpectsReply = m.ExpectsReply || m.Type == codecs.Goodbye
	m.Silent = strings.HasSuffix(f[3], "silent")
	m.GoesAway = strings.HasSuffix(f[3], "leaving")
	m.ReplyInfo = append(m.ReplyInfo[:0], f[3]...)
	return n, nil
}

// Encode makes no changes.
func (t dbToy) Encode(dst []byte, m *codecs.Metadata, _ *codecs.Mutation) ([]byte, error) {
	return t.toy.Encode(dst, m, nil)
}

func (t dbToy) DecodeAnswer(b []byte, m, req *codecs.Metadata) (int, error) {
	n, err := t.Decode(b, m)
	if err != nil || n > len(b) || m.Type != codecs.Response {
		return n, err
	}
	switch {
	case req == nil || bytes.HasPrefix(m.ReplyInfo, req.ReplyInfo):
		return n, nil
	case req.Type == codecs.Quiet:
		return 0, codecs.ErrUnanswered
	}
	return 0, fmt.Errorf("%q does not answer %q", m.ReplyInfo, req.ReplyInfo)
}

type prefaceToy struct{ dbToy }

func (t prefaceToy) AppendPreface(dst []byte, _ uint8) ([]byte, error) {
	return append(dst, "one 0 hello -\nreq 0 login secret\n"...), nil
}

func (t prefaceToy) CheckPreface(req, a *codecs.Metadata) error {
	if string(req.ReplyInfo) != "secret" || string(a.ReplyInfo) != "secret welcome" {
		return errors.New("the server does not know us")
	}
	return nil
}

type resetToy struct{ dbToy }

func (t resetToy) AppendReset(dst []byte, _ uint8) ([]byte, error) {
	return append(dst, "req 0 clean clean\n"...), nil
}

func (t resetToy) CheckReset(_, a *codecs.Metadata) error {
	if string(a.ReplyInfo) != "clean" {
		return errors.New("it cannot be cleaned")
	}
	return nil
}

// serveDB answers each two-way line with its own text, in order.
func serveDB(s *filtertest.Server, b []byte) int {
	for _, l := range lines(b) {
		f := strings.SplitN(l, " ", 4)
		switch f[0] {
		case "req", "muted":
			s.Send([]byte("res 0 - " + f[3] + "\n"))
		case "quiet":
			if strings.HasSuffix(f[3], "loud") {
				s.Send([]byte("res 0 - " + f[3] + "\n"))
			}
		}
	}
	return len(b)
}

func dbEnv(t *testing.T, codec string) *toyEnv {
	e := newToyEnv(t, codec, "")
	e.up.Serve = serveDB
	return e
}

func TestQuietRequestsAreAnsweredPerhaps(t *testing.T) {
	e := dbEnv(t, "toy.db")
	other := e.Dial(e.cfg)
	e.c.Send([]byte("quiet 0 m a:1\nquiet 0 m a:2loud\nquiet 0 m a:3\nreq 0 m a:4\n"))
	other.Send([]byte("quiet 0 m b:1\nreq 0 m b:2\n"))
	e.Settle()
	require.Equal(t, []string{"a:2loud", "a:4"}, texts(e.c.Take()))
	require.Equal(t, []string{"b:2"}, texts(other.Take()), "nobody gets another's answer")
	e.counts(map[string]int64{"request_unanswered": 3, "request_twoway": 6, "request_active": 0})

	// With nothing behind it, it ends in silence when its time is over.
	e.c.Send([]byte("quiet 0 m a:5\n"))
	e.Advance(time.Minute)
	require.Empty(t, e.c.Take())
	e.counts(map[string]int64{"request_unanswered": 4, "request_timeout": 0, "request_active": 0})

	// An error of the proxy itself is told.
	e.up.SetHosts()
	e.Advance(time.Minute)
	e.c.Send([]byte("quiet 0 m a:6\n"))
	require.Len(t, lines(e.c.Take()), 1)
}

func TestAnswersThatDoNotBelongCloseTheConnection(t *testing.T) {
	e := dbEnv(t, "toy.db")
	other := e.Dial(e.cfg)
	e.up.Serve = nil
	e.c.Send([]byte("req 0 m a:1\n"))
	other.Send([]byte("quiet 0 m b:1\n"))
	s := e.up.Servers()[0]
	s.Send([]byte("res 0 - b:1\n")) // one is missing
	e.Settle()
	require.Contains(t, string(e.c.Take()), "err")
	require.Contains(t, string(other.Take()), "err")
	e.counts(map[string]int64{"response_decoding_error": 1})
}

func TestMutedRequestsAreAnsweredForNobody(t *testing.T) {
	for _, mode := range []string{"SHARED", "EXCLUSIVE"} {
		t.Run(mode, func(t *testing.T) {
			e := dbEnv(t, "toy.db")
			e.cfg = e.MustLoad(toyConfig(`"connection_mode": "`+mode+`", "codec": {"name": "toy.db"}`, ""))
			c, other := e.Dial(e.cfg), e.Dial(e.cfg)
			hold := true
			e.up.Serve = func(s *filtertest.Server, b []byte) int {
				if hold {
					return 0
				}
				return serveDB(s, b)
			}
			c.Send([]byte("muted 0 m a:1\nreq 0 m a:2\nmuted 0 m a:3\n"))
			other.Send([]byte("req 0 m b:1\n"))
			c.Close() // what it has sent is delivered
			hold = false
			for range 4 {
				for _, s := range e.up.Servers() {
					if b := s.Take(); len(b) > 0 {
						serveDB(s, b)
					}
				}
				e.Settle()
			}
			require.Equal(t, []string{"b:1"}, texts(other.Take()))
			require.Empty(t, c.Take())
			other.Send([]byte("muted 0 m b:2\nreq 0 m b:3\n"))
			require.Equal(t, []string{"b:3"}, texts(other.Take()))
			e.counts(map[string]int64{"request_active": 0, "upstream_stray_response": 0})
		})
	}
}

func TestSilentAnswersKeepTheirPlace(t *testing.T) {
	e := dbEnv(t, "toy.db")
	e.c.Send([]byte("req 0 m 1\nreq 0 m 2silent\nreq 0 m 3\n"))
	require.Equal(t, []string{"1", "3"}, texts(e.c.Take()))
	e.counts(map[string]int64{"response_success": 3, "request_active": 0})
}

func TestHeartbeatsAreAnsweredInTheirTurn(t *testing.T) {
	e := dbEnv(t, "toy.db")
	e.up.Serve = nil
	e.c.Send([]byte("hb 1 - -\nreq 0 m a\nhb 2 - -\nhb 3 - -\n"))
	require.Equal(t, []string{"hb 1 - here"}, lines(e.c.Take()))
	s := e.up.Servers()[0]
	serveDB(s, s.Take())
	e.Settle()
	require.Equal(t, []string{"res 0 - a", "hb 2 - here", "hb 3 - here"}, lines(e.c.Take()))

	// A goodbye may want an answer too.
	e.c.Send([]byte("req 0 m b\nbye 4 - -\nreq 0 m c\n"))
	serveDB(s, s.Take())
	e.Settle()
	require.Equal(t, []string{"res 0 - b", "hb 4 - here"}, lines(e.c.Take()))
	require.True(t, e.c.Closed())
	e.counts(map[string]int64{"request_active": 0, "request_event": 4})
}

func TestHeartbeatsThatCannotBeAnsweredInTurnEndTheClient(t *testing.T) {
	e := dbEnv(t, "toy.db")
	e.MayPanic()
	e.up.Serve = nil
	e.c.Send([]byte("req 0 m a\nhb 2 - boom-heartbeat\nreq 0 m b\n"))
	s := e.up.Servers()[0]
	require.Equal(t, []string{"a"}, texts(s.Take()))
	s.Send([]byte("res 0 - a\n"))
	e.Settle()
	require.Equal(t, []string{"a"}, texts(e.c.Take()))
	require.True(t, e.c.Closed(), "its next answer would be taken for the one that is missing")
}

func TestAPrefaceGoesBeforeEverything(t *testing.T) {
	e := dbEnv(t, "toy.db.preface")
	e.up.Serve = nil
	e.c.Send([]byte("req 0 m a\n"))
	s := e.up.Servers()[0]
	require.Equal(t, []string{"one 0 hello -", "req 0 login secret"}, lines(s.Take()), "nothing else before its answer")
	s.Send([]byte("res 0 - secret "))
	s.Send([]byte("welcome\n"))
	e.Settle()
	require.Equal(t, []string{"req 0 m a"}, lines(s.Take()))
	s.Send([]byte("res 0 - a\n"))
	e.Settle()
	require.Equal(t, []string{"a"}, texts(e.c.Take()))
	e.counts(map[string]int64{"upstream_stray_response": 0, "response": 1})
}

func TestAPrefaceThatFailsIsTold(t *testing.T) {
	for name, tt := range map[string]struct {
		fail func(e *toyEnv, s *filtertest.Server)
		says string
	}{
		"refused":   {func(_ *toyEnv, s *filtertest.Server) { s.Send([]byte("res 0 - secret go away\n")) }, "its preface has failed: the server does not know us"},
		"closed":    {func(_ *toyEnv, s *filtertest.Server) { s.Close() }, "its preface has failed: connection closed by the server"},
		"unheard":   {func(e *toyEnv, _ *filtertest.Server) { e.Advance(6 * time.Second) }, "its preface has failed: no answer within 5s"},
		"gibberish": {func(_ *toyEnv, s *filtertest.Server) { s.Send([]byte("what?\n")) }, "undecodable response"},
		"too much":  {func(_ *toyEnv, s *filtertest.Server) { s.Send([]byte("res 0 - other\n")) }, `does not answer "secret"`},
	} {
		t.Run(name, func(t *testing.T) {
			e := dbEnv(t, "toy.db.preface")
			e.cfg = e.MustLoad(toyConfig(`"codec": {"name": "toy.db.preface"}`, `, "request_timeout": "20s"`))
			c := e.Dial(e.cfg)
			e.up.Serve = nil
			c.Send([]byte("req 0 m a\n"))
			tt.fail(e, e.up.Servers()[0])
			e.Settle()
			require.Contains(t, string(c.Take()), "upstream connect failure in cluster up")
			require.Contains(t, strings.Join(e.Log(), "\n"), tt.says)
			e.counts(map[string]int64{"upstream_connect_fail": 1})
			// The next one finds a server that has come to its senses.
			e.up.Serve = func(s *filtertest.Server, b []byte) int {
				serveDB(s, bytes.ReplaceAll(b, []byte("secret\n"), []byte("secret welcome\n")))
				return len(b)
			}
			for _, s := range e.up.Servers() {
				e.up.Serve(s, s.Take())
			}
			c.Send([]byte("req 0 m b\n"))
			e.Advance(time.Second)
			require.Equal(t, []string{"b"}, texts(c.Take()))
		})
	}
}

func TestALeasedConnectionIsItsClientsOwn(t *testing.T) {
	e := dbEnv(t, "toy.db")
	other := e.Dial(e.cfg)
	var seen []string // connection and text
	e.up.Serve = func(s *filtertest.Server, b []byte) int {
		for _, l := range lines(b) {
			seen = append(seen, fmt.Sprintf("%p", s)+" "+texts([]byte(l + "\n"))[0])
		}
		return serveDB(s, b)
	}
	conn := func(text string) string {
		for _, l := range seen {
			if c, ok := strings.CutSuffix(l, " "+text); ok {
				return c
			}
		}
		t.Fatalf("%s was not seen in %v", text, seen)
		return ""
	}
	e.c.Send([]byte("req 0 m a:0\nreq 0 mhold a:1\nreq 0 mhold a:2\n"))
	other.Send([]byte("req 0 mhold b:1\n"))
	e.c.Send([]byte("req 0 mhold a:3\n"))
	other.Send([]byte("req 0 mlast b:2\nreq 0 m b:3\n"))
	e.c.Send([]byte("req 0 mlast a:4\nreq 0 m a:5\n"))
	e.Settle()
	require.Equal(t, []string{"a:0", "a:1", "a:2", "a:3", "a:4", "a:5"}, texts(e.c.Take()))
	require.Equal(t, []string{"b:1", "b:2", "b:3"}, texts(other.Take()))
	for _, text := range []string{"a:2", "a:3", "a:4"} {
		require.Equal(t, conn("a:1"), conn(text))
	}
	require.Equal(t, conn("b:1"), conn("b:2"))
	require.NotEqual(t, conn("a:1"), conn("b:1"))
	require.Equal(t, conn("a:0"), conn("a:5"), "the others go over the shared one")
	require.Equal(t, conn("a:0"), conn("b:3"))

	// What was given back serves the next.
	other.Send([]byte("req 0 mlast b:4\n"))
	e.Settle()
	require.Contains(t, []string{conn("a:1"), conn("b:1")}, conn("b:4"))
}

// TestRequestsDoNotOvertakeThoseOfALease, nor are overtaken by them.
func TestRequestsDoNotOvertakeThoseOfALease(t *testing.T) {
	e := dbEnv(t, "toy.db")
	var order []string
	e.up.Serve = func(_ *filtertest.Server, b []byte) int {
		order = append(order, texts(b)...)
		return len(b)
	}
	e.c.Send([]byte("req 0 m 1\nreq 0 mhold 2\nreq 0 m 3\none 0 m 4\nreq 0 mlast 5\n"))
	e.Settle()
	require.Equal(t, []string{"1"}, order)
	require.True(t, e.c.ReadDisabled())
	servers := func(i int) *filtertest.Server { return e.up.Servers()[i] }
	servers(0).Send([]byte("res 0 - 1\n"))
	e.Settle()
	require.Equal(t, []string{"1", "2"}, order)
	leased := servers(1)
	leased.Send([]byte("res 0 - 2\n"))
	e.Settle()
	require.Equal(t, []string{"1", "2", "3", "4"}, order, "a connection that is only held is in nobody's way")
	servers(0).Send([]byte("res 0 - 3\n"))
	e.Settle()
	require.Len(t, order, 4, "the oneway may not have been read")
	e.Advance(6 * time.Second)
	require.Equal(t, "5", order[4])
	leased.Send([]byte("res 0 - 5\n"))
	e.Settle()
	require.Equal(t, []string{"1", "2", "3", "5"}, texts(e.c.Take()))
	require.False(t, e.c.ReadDisabled())
}

func TestALeaseIsGivenBackClean(t *testing.T) {
	t.Run("by what the codec says", func(t *testing.T) {
		e := dbEnv(t, "toy.db.reset")
		e.c.Send([]byte("req 0 mhold 1\n"))
		e.Settle()
		s := e.up.Servers()[0]
		e.up.Serve = nil
		e.c.Close()
		e.Settle()
		require.Equal(t, []string{"req 0 clean clean"}, lines(s.Take()))
		other := e.Dial(e.cfg)
		other.Send([]byte("req 0 mhold 2\n"))
		e.Settle()
		require.Empty(t, s.Take(), "it is not clean yet")
		s.Send([]byte("res 0 - clean\n"))
		e.Settle()
		e.Dial(e.cfg).Send([]byte("req 0 mhold 3\n"))
		require.Equal(t, []string{"req 0 mhold 3"}, lines(s.Take()))
		require.True(t, s.Open())
	})
	t.Run("that fails", func(t *testing.T) {
		e := dbEnv(t, "toy.db.reset")
		e.c.Send([]byte("req 0 mhold 1\n"))
		e.Settle()
		s := e.up.Servers()[0]
		e.up.Serve = nil
		e.c.Close()
		s.Send([]byte("res 0 - clean not\n"))
		e.Settle()
		require.False(t, s.Open())
		e.Dial(e.cfg)
		e.counts(map[string]int64{"upstream_abuse": 1})
	})
	t.Run("or is closed", func(t *testing.T) {
		e := dbEnv(t, "toy.db")
		e.c.Send([]byte("req 0 mhold 1\n"))
		e.Settle()
		s := e.up.Servers()[0]
		e.c.Close()
		e.Settle()
		require.True(t, s.Ended())
	})
	t.Run("or is closed in the middle of a call", func(t *testing.T) {
		e := dbEnv(t, "toy.db.reset")
		e.up.Serve = nil
		e.c.Send([]byte("req 0 mhold 1\nreq 0 mhold 2\n"))
		e.Settle()
		s := e.up.Servers()[0]
		require.Equal(t, []string{"1", "2"}, texts(s.Take()), "a lease is pipelined")
		e.c.Close()
		e.Settle()
		require.True(t, s.Ended())
		e.counts(map[string]int64{"request_abandoned": 2, "request_active": 0})
	})
}

func TestALostLeaseEndsItsClient(t *testing.T) {
	e := dbEnv(t, "toy.db")
	e.c.Send([]byte("req 0 mhold 1\n"))
	e.Settle()
	e.up.Servers()[0].Close()
	e.Settle()
	require.Equal(t, []string{"1"}, texts(e.c.Take()))
	require.True(t, e.c.Closed(), "what comes next would run outside its transaction")
	require.Contains(t, strings.Join(e.Log(), "\n"), "had leased has ended")
}

func TestALeaseWhoseRequestTimesOutIsLost(t *testing.T) {
	e := dbEnv(t, "toy.db")
	e.up.Serve = nil
	e.c.Send([]byte("req 0 mhold 1\nreq 0 mhold 2\n"))
	e.Advance(time.Minute)
	require.Len(t, lines(e.c.Take()), 2)
	require.True(t, e.c.Closed())
	require.False(t, e.up.Servers() != nil && e.up.Servers()[0].Open())
}

func TestALeaseOutlivesTheAgeOfItsConnection(t *testing.T) {
	e := dbEnv(t, "toy.db")
	e.cfg = e.MustLoad(toyConfig(`"codec": {"name": "toy.db"}`, `, "upstream": {"max_connection_age": "1s"}`))
	c := e.Dial(e.cfg)
	c.Send([]byte("req 0 mhold 1\n"))
	e.Settle()
	s := e.up.Servers()[0]
	e.Advance(time.Minute)
	require.True(t, s.Open())
	require.False(t, s.Ended())
	c.Send([]byte("req 0 mlast 2\n"))
	e.Settle()
	require.Equal(t, []string{"1", "2"}, texts(c.Take()))
	e.Advance(time.Second)
	require.True(t, s.Ended())
}

func TestPushesGoToWhoHoldsTheConnection(t *testing.T) {
	e := dbEnv(t, "toy.db")
	other := e.Dial(e.cfg)
	other.Send([]byte("req 0 m x\n"))
	e.c.Send([]byte("req 0 mhold sub\n"))
	e.Settle()
	for _, s := range e.up.Servers() {
		s.Send([]byte("push 0 - news\n"))
	}
	e.Settle()
	require.Equal(t, []string{"sub", "news"}, texts(e.c.Take()))
	require.Equal(t, []string{"x"}, texts(other.Take()))
	e.counts(map[string]int64{"upstream_stray_response": 1, "upstream_event": 1})
}

// TestAPausedRequestIsNotOvertaken where a client's requests keep their order.
func TestAPausedRequestIsNotOvertaken(t *testing.T) {
	var paused []filter.Resumer
	current = &testFilter{onRequest: func(m *filter.Message) filter.Verdict {
		if bytes.Contains(m.Request().Raw, []byte("slow")) {
			paused = append(paused, m.Resumer())
			return filter.Pause
		}
		return filter.Continue
	}}
	e := newToyEnv(t, "toy.db", "")
	e.up.Serve = serveDB
	e.cfg = e.MustLoad(toyConfig(`"codec": {"name": "toy.db"}`, `, "meta_protocol_filters": [{"name": "test"}, {"name": "aeraki.meta_protocol.filters.router"}]`))
	c := e.Dial(e.cfg)
	c.Send([]byte("one 0 m slow1\nreq 0 m 2\nreq 0 m slow3\nreq 0 m 4\n"))
	require.Empty(t, c.Take())
	require.True(t, c.ReadDisabled())
	for len(paused) > 0 {
		r := paused[0]
		paused = paused[1:]
		r.Continue()
		e.Settle()
	}
	require.Equal(t, []string{"2", "slow3", "4"}, texts(c.Take()))
	require.False(t, c.ReadDisabled())
}

// leaseEnv is one whose servers say what they get and answer nothing by themselves.
func leaseEnv(t *testing.T, codec, more string) (e *toyEnv, seen func() []string) {
	e = newToyEnv(t, codec, "")
	e.cfg = e.MustLoad(toyConfig(`"codec": {"name": "`+codec+`"}`, more))
	var got []string
	e.up.Serve = func(_ *filtertest.Server, b []byte) int {
		got = append(got, texts(b)...)
		return len(b)
	}
	return e, func() []string {
		e.Settle()
		s := got
		got = nil
		return s
	}
}

// TestALeaseThatAOnewayBegins is a lease also when no answer is behind it.
func TestALeaseThatAOnewayBegins(t *testing.T) {
	e, seen := leaseEnv(t, "toy.db", "")
	c, other := e.Dial(e.cfg), e.Dial(e.cfg)
	c.Send([]byte("req 0 mlast a:1\none 0 mhold a:2\n"))
	require.Equal(t, []string{"a:1"}, seen())
	s := e.up.Servers()[0]
	s.Send([]byte("res 0 - a:1\n"))
	require.Equal(t, []string{"a:2"}, seen())
	other.Send([]byte("req 0 mlast b:1\n"))
	require.Equal(t, []string{"b:1"}, seen())
	require.Len(t, e.up.Servers(), 2, "it goes over another connection")
}

// TestALeaseIsNotEnteredBehindAOneway by the client whose oneway went over the
// connection before.
func TestALeaseIsNotEnteredBehindAOneway(t *testing.T) {
	e, seen := leaseEnv(t, "toy.db", "")
	c, other := e.Dial(e.cfg), e.Dial(e.cfg)
	other.Send([]byte("one 0 mlast b:1\n"))
	require.Equal(t, []string{"b:1"}, seen())
	c.Send([]byte("req 0 mhold a:1\n"))
	require.Equal(t, []string{"a:1"}, seen())
	s := e.up.Servers()
	require.Len(t, s, 1)
	s[0].Send([]byte("res 0 - a:1\n"))
	e.Settle()
	other.Send([]byte("req 0 mlast b:2\n"))
	require.Empty(t, seen(), "the oneway may not have been read, and the connection is another's")
	e.Advance(6 * time.Second)
	require.Equal(t, []string{"b:2"}, seen())
	require.Len(t, e.up.Servers(), 2)
}

// TestNothingOfALostLeaseIsServedElsewhere, neither what waits for its connection nor
// what filters hold.
func TestNothingOfALostLeaseIsServedElsewhere(t *testing.T) {
	t.Run("that waits", func(t *testing.T) {
		e, seen := leaseEnv(t, "toy.db", "")
		c := e.Dial(e.cfg)
		c.Send([]byte("req 0 mhold 1\n"))
		require.Equal(t, []string{"1"}, seen())
		s := e.up.Servers()[0]
		s.Block(true)
		c.Send([]byte("req 0 mhold 2\n")) // which it does not take
		c.Send([]byte("req 0 mhold 3\none 0 mhold 4\nreq 0 mlast 5\n"))
		s.Reset()
		e.Advance(time.Second)
		require.Empty(t, seen())
		require.Len(t, lines(c.Take()), 4, "each is told")
		require.True(t, c.Closed())
		e.counts(map[string]int64{"request_active": 0, "oneway_dropped": 1})
	})
	t.Run("that is paused", func(t *testing.T) {
		var paused []filter.Resumer
		current = &testFilter{onRequest: func(m *filter.Message) filter.Verdict {
			if bytes.Contains(m.Request().Raw, []byte("slow")) {
				paused = append(paused, m.Resumer())
				return filter.Pause
			}
			return filter.Continue
		}}
		e, seen := leaseEnv(t, "toy.db", `, "meta_protocol_filters": [{"name": "test"}, {"name": "aeraki.meta_protocol.filters.router"}]`)
		c := e.Dial(e.cfg)
		c.Send([]byte("req 0 mhold 1\nreq 0 mhold slow2\n"))
		require.Equal(t, []string{"1"}, seen())
		e.up.Servers()[0].Close()
		e.Settle()
		require.False(t, c.Closed())
		paused[0].Continue()
		e.Advance(time.Second)
		require.Empty(t, seen())
		require.Len(t, lines(c.Take()), 2)
		require.True(t, c.Closed())
	})
	t.Run("that halts", func(t *testing.T) {
		e, seen := leaseEnv(t, "toy.db", "")
		c := e.Dial(e.cfg)
		c.Send([]byte("req 0 mhold 1\nreq 0 m 2\n"))
		require.Equal(t, []string{"1"}, seen())
		e.up.Servers()[0].Close()
		require.Equal(t, []string{"2"}, seen(), "it has nothing to do with the lease")
		e.up.Servers()[0].Send([]byte("res 0 - 2\n"))
		e.Settle()
		require.Len(t, lines(c.Take()), 2)
		require.True(t, c.Closed(), "the loss is told though the client's line had another use already")
	})
}

// TestOnewaysOfALeaseGoWithTheirClient: outside of it they would do something else.
func TestOnewaysOfALeaseGoWithTheirClient(t *testing.T) {
	for name, send := range map[string]string{
		"behind a call": "req 0 mhold 1\nreq 0 mhold 2\none 0 mhold 3\n",
		"alone":         "one 0 mhold 1\none 0 mhold 2\none 0 mhold 3\n",
	} {
		t.Run(name, func(t *testing.T) {
			e, seen := leaseEnv(t, "toy.db", "")
			e.up.Hang = true
			c := e.Dial(e.cfg)
			l := strings.SplitAfter(send, "\n")
			c.Send([]byte(l[0]))
			e.up.Hang = false
			e.up.Admit()
			require.Equal(t, []string{"1"}, seen())
			e.up.Servers()[0].Block(true)
			c.Send([]byte(l[1]))
			c.Send([]byte(l[2]))
			c.Close()
			e.Advance(time.Second)
			require.Empty(t, seen())
			e.counts(map[string]int64{"request_active": 0, "oneway_dropped": 1})
			// The connection is nobody's.
			e.Dial(e.cfg).Send([]byte("req 0 mhold b:1\n"))
			require.Equal(t, []string{"b:1"}, seen())
			for _, s := range e.up.Servers() {
				s.Reset()
			}
			e.Settle()
			require.Zero(t, e.Panics())
		})
	}
}

// TestAClientThatLeavesCostsOneConnection at most, however much it has sent.
func TestAClientThatLeavesCostsOneConnection(t *testing.T) {
	e := newToyEnv(t, "toy.inorder", "")
	e.cfg = e.MustLoad(toyConfig(`"connection_mode": "EXCLUSIVE", "codec": {"name": "toy.inorder"}`, ""))
	for i := range 4 { // connections that rest
		c := e.Dial(e.cfg)
		c.Send(fmt.Appendf(nil, "req 0 m first%d\n", i))
		defer c.Close()
	}
	servers := e.up.Servers()
	require.Len(t, servers, 4)
	for _, s := range servers {
		s.Take()
		s.Send([]byte("res 0 - x\n"))
	}
	e.Settle()
	c := e.Dial(e.cfg)
	c.Send([]byte("req 0 m 1\nreq 0 m 2\nreq 0 m 3\none 0 m 4\n"))
	c.Close()
	e.Settle()
	var got []string
	ended := 0
	for _, s := range servers {
		got = append(got, texts(s.Take())...)
		if s.Ended() {
			ended++
		}
	}
	require.Equal(t, []string{"1", "4"}, got, "what nobody waits for is not sent")
	require.Equal(t, 1, ended)
}

// TestAPoolThatIsNeverUsedGoes, as the client that waited for its turn has left.
func TestAPoolThatIsNeverUsedGoes(t *testing.T) {
	mod := filter.NewModule()
	h := filtertest.NewWith(t, mod, 1)
	h.Cluster("up", "h1")
	c := h.Dial(h.MustLoad(toyConfig(`"codec": {"name": "toy.db"}`, "")))
	c.Send([]byte("req 0 m 1\nreq 0 mhold 2\n"))
	require.True(t, c.ReadDisabled())
	c.Close()
	h.Advance(time.Hour)
	require.Empty(t, mod.Left())
}

// TestPushesKeepTheirClient from being taken for idle.
func TestPushesKeepTheirClient(t *testing.T) {
	e, _ := leaseEnv(t, "toy.db", `, "idle_timeout": "10s"`)
	c := e.Dial(e.cfg)
	c.Send([]byte("req 0 mhold 1\n"))
	s := e.up.Servers()[0]
	s.Send([]byte("res 0 - 1\n"))
	for range 5 {
		e.Advance(4 * time.Second)
		s.Send([]byte("push 0 - news\n"))
		e.Settle()
	}
	require.False(t, c.Closed())
	e.Advance(11 * time.Second)
	require.True(t, c.Closed())
}

// TestALeaseThatDoesNotBegin is lost with all that the client has sent behind it.
func TestALeaseThatDoesNotBegin(t *testing.T) {
	t.Run("in time", func(t *testing.T) {
		e, seen := leaseEnv(t, "toy.db", `, "request_timeout": "2s"`)
		e.MayPanic()
		e.up.Hang = true
		c := e.Dial(e.cfg)
		c.Send([]byte("req 0 mhold 1\n"))
		e.Advance(time.Second)
		c.Send([]byte("req 0 mhold 2\nreq 0 mlast 3\n"))
		e.Advance(1500 * time.Millisecond)
		e.up.Hang = false
		e.up.Admit()
		require.Empty(t, seen())
		require.Len(t, lines(c.Take()), 3)
		require.True(t, c.Closed())
	})
	t.Run("as it is not encoded", func(t *testing.T) {
		e, seen := leaseEnv(t, "toy.db", "")
		e.MayPanic()
		c := e.Dial(e.cfg)
		c.Send([]byte("req 0 mhold 1\nreq 0 mhold boom-encode\nreq 0 mlast 3\n"))
		require.Empty(t, seen(), "what has begun does not go on without a part of it")
		require.Len(t, lines(c.Take()), 3)
		require.True(t, c.Closed())
		require.Empty(t, e.up.Servers())
	})
	t.Run("or end", func(t *testing.T) {
		e, seen := leaseEnv(t, "toy.db", `, "request_timeout": "2s"`)
		e.MayPanic()
		c := e.Dial(e.cfg)
		c.Send([]byte("req 0 mhold 1\n"))
		s := e.up.Servers()[0]
		s.Send([]byte("res 0 - 1\n"))
		require.Equal(t, []string{"1"}, seen())
		s.Block(true)
		c.Send([]byte("one 0 mhold 2\n")) // which it does not take
		c.Send([]byte("req 0 mlast 3\n"))
		e.Advance(3 * time.Second)
		require.Empty(t, seen())
		require.Len(t, lines(c.Take()), 2)
		require.True(t, c.Closed())
		require.Empty(t, e.up.Servers())
	})
}

// TestAServerThatDoesNotStay is not asked again at once.
func TestAServerThatDoesNotStay(t *testing.T) {
	for name, tt := range map[string]struct{ text, says string }{
		"as it leaves":          {"away 0 - -\n", "the server leaves"},
		"as its answer says":    {"res 0 - secret welcome leaving\n", "the server leaves"},
		"as it refuses":         {"res 0 - secret go away\n", "the server does not know us"},
		"as the codec panics":   {"res 0 - boom-decode\n", "internal error"},
		"as it speaks too much": {"push 0 - x\nwhat?\n", "not a line of it"},
	} {
		t.Run(name, func(t *testing.T) {
			e := newToyEnv(t, "toy.db.preface", "")
			e.MayPanic()
			greeted := 0
			e.up.Serve = func(s *filtertest.Server, b []byte) int {
				if greeted++; greeted < 1000 {
					s.Send([]byte(tt.text))
				}
				return len(b)
			}
			e.c.Send([]byte("req 0 m 1\n"))
			require.Contains(t, string(e.c.Take()), tt.says)
			for range 10 {
				e.c.Send([]byte("req 0 m 2\n"))
			}
			require.Less(t, greeted, 4)
			e.Advance(time.Second)
			require.Less(t, greeted, 12)
		})
	}
}

// TestAPrefaceOverAWayThatIsReplaced fails nobody, as a connect does not.
func TestAPrefaceOverAWayThatIsReplaced(t *testing.T) {
	e := newToyEnv(t, "toy.db.preface", "")
	e.c.Send([]byte("req 0 m a\n"))
	s := e.up.Servers()[0]
	require.Contains(t, string(s.Take()), "secret")
	s.Drain()
	e.Advance(time.Second)
	require.Empty(t, e.c.Take())
	s = e.up.Servers()[0]
	require.Contains(t, string(s.Take()), "secret")
	s.Send([]byte("res 0 - secret welcome\n"))
	e.Settle()
	require.Equal(t, []string{"a"}, texts(s.Take()))
}

// TestOneClientsMutedRequestsAreBounded, though it waits for none of their answers.
func TestOneClientsMutedRequestsAreBounded(t *testing.T) {
	e, seen := leaseEnv(t, "toy.db", `, "upstream": {"max_connections": 1}`)
	c, other := e.Dial(e.cfg), e.Dial(e.cfg)
	c.Send(bytes.Repeat([]byte("muted 0 m a\n"), 10_000))
	require.Len(t, seen(), 4096)
	require.True(t, c.ReadDisabled())
	other.Send([]byte("req 0 m b\n"))
	require.Equal(t, []string{"b"}, seen())
	s := e.up.Servers()[0]
	got, owed := 4096, 4096
	for got < 10_000 {
		s.Send(bytes.Repeat([]byte("res 0 - a\n"), owed))
		s.Send([]byte("res 0 - b\n"))
		owed = len(seen())
		require.Equal(t, []string{"b"}, texts(other.Take()))
		require.Positive(t, owed)
		require.LessOrEqual(t, owed, 4096)
		got += owed
		other.Send([]byte("req 0 m b\n"))
		require.Equal(t, []string{"b"}, seen())
	}
	require.False(t, c.ReadDisabled())
}

// TestAClientThatLeavesItsLeaseIsNoFaultOfTheServer, whose answers nobody can tell
// apart any more.
func TestAClientThatLeavesItsLeaseIsNoFaultOfTheServer(t *testing.T) {
	e, seen := leaseEnv(t, "toy.db", "")
	c := e.Dial(e.cfg)
	c.Send([]byte("req 0 mhold 1\nmuted 0 mhold 2\n"))
	require.Equal(t, []string{"1", "2"}, seen())
	s := e.up.Servers()[0]
	c.Close()
	s.Send([]byte("res 0 - 1\nres 0 - 2\n"))
	e.Settle()
	require.True(t, s.Ended())
	e.Dial(e.cfg)
	e.counts(map[string]int64{"response_decoding_error": 0, "upstream_stray_response": 0})
}

func TestAClientIsNotAskedToLeaveInTheMiddleOfALease(t *testing.T) {
	e := dbEnv(t, "toy.db")
	config := toyConfig(`"codec": {"name": "toy.db"}`, `, "delivery": "LISTENER", "request_timeout": "600s"`)
	e.cfg = e.MustLoad(config)
	c := e.Dial(e.cfg)
	c.Send([]byte("req 0 mhold 1\n"))
	e.Settle()
	e.MustLoad(config) // which replaces the first one
	e.Advance(time.Minute)
	require.False(t, c.Closed())
	serve := e.up.Serve
	e.up.Serve = nil
	c.Send([]byte("req 0 mhold 1\n"))
	e.Advance(time.Minute)
	require.False(t, c.Closed())
	e.up.Serve = serve
	serve(e.server(0), e.server(0).Take())
	c.Send([]byte("req 0 mlast 2\n"))
	e.Advance(time.Second)
	require.Equal(t, []string{"1", "1", "2"}, texts(c.Take()))
	require.True(t, c.Closed())
}
