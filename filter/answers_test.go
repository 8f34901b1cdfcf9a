package filter_test

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

// speaker is a toy whose servers say more: "leaves" in an answer, "unprocessed" in
// an error, and "huge" followed by a size and a space is a frame above the limit of
// 100, told by its head. Where there are no ids its answers begin with the text of
// their request.
type speaker struct{ toy }

func init() {
	for name, t := range map[string]codecs.Traits{
		"toy.speaker":         {Correlation: codecs.ByID, MaxID: 1<<31 - 1, ShareByDefault: true},
		"toy.speaker.inorder": {Correlation: codecs.InOrder, ShareByDefault: true},
		"toy.short":           {Correlation: codecs.ByID, MaxID: 1<<16 - 1, ShareByDefault: true},
	} {
		codecs.Register(name, func(*anypb.Any, codecs.Limits) (codecs.Codec, error) { return speaker{toy{t, 's'}}, nil })
	}
}

func (s speaker) NewDecoder(codecs.Direction) codecs.Decoder { return s }

func (s speaker) Decode(b []byte, m *codecs.Metadata) (int, error) {
	f := strings.SplitN(string(b), " ", 5)
	if len(f) == 5 && strings.HasPrefix(f[3], "huge") {
		size, _ := strconv.Atoi(f[3][len("huge"):])
		m.Type = toyTypes[f[0]]
		m.ID, _ = strconv.ParseUint(f[1], 10, 64)
		return 0, &codecs.TooLarge{Size: size, Limit: 100}
	}
	n, err := s.toy.Decode(b, m)
	if err != nil || n > len(b) {
		return n, err
	}
	text := bytes.TrimSuffix(b[:n], []byte("\n"))
	text = text[bytes.LastIndexByte(text, ' ')+1:]
	m.GoesAway = string(text) == "leaves"
	m.NotProcessed = string(text) == "unprocessed"
	m.Scratch[0] = uint32(len(text))
	m.ReplyInfo = append(m.ReplyInfo[:0], text...)
	return n, nil
}

// Encode returns nil with its error, as is usual in Go.
func (s speaker) Encode(dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	if bytes.Contains(m.Raw, []byte("wordless")) {
		return nil, errors.New("no words for it")
	}
	return s.toy.Encode(dst, m, mut)
}

// DecodeAnswer implements codecs.AnswerDecoder.
func (s speaker) DecodeAnswer(b []byte, m, req *codecs.Metadata) (int, error) {
	if s.traits.Correlation == codecs.ByID {
		panic("it is asked only where there are no ids")
	}
	n, err := s.Decode(b, m)
	if err != nil || n > len(b) || req == nil || m.GoesAway || m.Type == codecs.Error {
		return n, err
	}
	if key := m.ReplyInfo[:min(len(m.ReplyInfo), int(req.Scratch[0]))]; !bytes.Equal(key, req.ReplyInfo) {
		return 0, &codecs.ProtocolError{Protocol: "toy", Reason: fmt.Sprintf("%q does not answer %q", m.ReplyInfo, req.ReplyInfo)}
	}
	return n, nil
}

// hugeAnswer is an answer of so many bytes.
func hugeAnswer(id string, size int) []byte {
	b := fmt.Appendf(nil, "res %s m huge%d ", id, size)
	return append(b, bytes.Repeat([]byte{'\n'}, size-len(b))...)
}

// TestAnAnswerAboveTheLimitCostsItsCall and no other, wherever its bytes are cut.
func TestAnAnswerAboveTheLimitCostsItsCall(t *testing.T) {
	const tooLarge = "response: a frame of 500 bytes is larger than the limit of 100"
	for _, codec := range []string{"toy.speaker", "toy.speaker.inorder"} {
		t.Run(codec, func(t *testing.T) {
			for _, cut := range []int{0, 1, 20, 21, 30, 499, 500, 501, 510} {
				e := newToyEnv(t, codec, "")
				other := e.Dial(e.cfg)
				e.say("req 1 m a")
				say(other, "req 1 m b")
				e.say("req 2 m c")
				s := e.server(0)
				got := ids(s)
				if codec != "toy.speaker" {
					got = []string{"0", "0", "0"}
				}
				b := hugeAnswer(got[0], 500)
				b = fmt.Appendf(b, "res %s m q=1;b\nres %s m q=1;c\n", got[1], got[2])
				if codec != "toy.speaker" {
					b = bytes.ReplaceAll(b, []byte("q=1;"), nil)
				}
				s.Send(b[:cut])
				e.Settle()
				s.Send(b[cut:])
				e.Settle()
				got = lines(e.c.Take())
				require.Equal(t, "err 1 - "+tooLarge, got[0])
				require.True(t, strings.HasPrefix(got[1], "res 2 m a=2;"))
				require.Contains(t, string(other.Take()), "res 1 m a=2;")
				require.True(t, s.Open())
				e.say("req 3 m d")
				require.Len(t, lines(s.Take()), 1)
				e.counts(map[string]int64{
					"response_decoding_error": 1, "response_error_caused_connection_close": 0, "request_active": 1,
					"upstream_stray_response": 0,
				})
				require.Contains(t, strings.Join(e.Log(), "\n"), "larger than the limit of 100")
			}
		})
	}
}

// TestWhatIsFarAboveTheLimitEndsTheConnection: nobody reads for ever what nobody
// wants. So does what ends before it begins.
func TestWhatIsFarAboveTheLimitEndsTheConnection(t *testing.T) {
	for _, size := range []int{1700, 1 << 30, 0, -1} {
		e := newToyEnv(t, "toy.speaker", "")
		e.say("req 1 m a", "req 2 m b")
		s := e.server(0)
		s.Send(fmt.Appendf(nil, "res %s m huge%d ", ids(s)[0], size))
		e.Settle()
		require.False(t, s.Open())
		require.Len(t, lines(e.c.Take()), 2)
		e.counts(map[string]int64{"response_error_caused_connection_close": 1})
	}
}

// TestAFrameAboveTheLimitThatIsNoAnswer is skipped too; an answer to nobody is a
// stray one.
func TestAFrameAboveTheLimitThatIsNoAnswer(t *testing.T) {
	e := newToyEnv(t, "toy.speaker", "")
	e.say("req 1 m a")
	s := e.server(0)
	id := ids(s)[0]
	s.Send(append([]byte("hb"), hugeAnswer("1", 200)[3:]...)) // 199 of them
	s.Send([]byte("\n"))
	s.Send(hugeAnswer("999", 300))
	e.Settle()
	e.answer(s, "res "+id+" m ok")
	require.Equal(t, "res 1 m a=2;ok\n", e.got())
	e.counts(map[string]int64{"response_decoding_error": 2, "upstream_stray_response": 1})
}

// TestAServerThatSaysInAnAnswerThatItLeaves gets no new request; the answer is one.
func TestAServerThatSaysInAnAnswerThatItLeaves(t *testing.T) {
	for _, codec := range []string{"toy.speaker", "toy.speaker.inorder"} {
		t.Run(codec, func(t *testing.T) {
			e := newToyEnv(t, codec, "")
			e.up.SetHosts("h1", "h2")
			leaving := ""
			e.up.Serve = func(s *filtertest.Server, b []byte) int {
				for _, l := range lines(b) {
					text := texts([]byte(l))[0]
					if s.Host == leaving {
						text = "leaves"
					}
					s.Send([]byte("res " + strings.Fields(l)[1] + " m " + text + "\n"))
				}
				return len(b)
			}
			for range 20 {
				e.say("req 1 m x")
				e.Advance(10 * time.Millisecond)
			}
			e.c.Take()
			leaving = "h2"
			left := 0
			for range 50 {
				e.say("req 1 m x")
				if strings.HasSuffix(e.got(), "leaves\n") {
					left++
				}
				e.Advance(10 * time.Millisecond)
			}
			require.Equal(t, 1, left)
			e.counts(map[string]int64{"request": 70, "response_success": 70})
		})
	}
}

// TestAnErrorThatSaysThatNothingWasDone is not passed on: its client would take the
// proxy for the one that leaves.
func TestAnErrorThatSaysThatNothingWasDone(t *testing.T) {
	for _, codec := range []string{"toy.speaker", "toy.speaker.inorder"} {
		e := newToyEnv(t, codec, "")
		e.say("req 1 m a", "req 2 m b")
		s := e.server(0)
		got := ids(s)
		e.answer(s, "err "+got[0]+" m unprocessed")
		require.Equal(t, "err 1 - the server leaves and has not processed the request\n", e.got())
		require.True(t, s.Open(), "it owes another answer")
		e.answer(s, "err "+got[1]+" m unprocessed")
		require.Equal(t, "err 2 - the server leaves and has not processed the request\n", e.got())
		require.False(t, s.Open())
		e.counts(map[string]int64{"upstream_reset": 2, "request_active": 0})
	}
}

func TestAStreamThatAServerThatLeavesHasNotProcessed(t *testing.T) {
	e := newToyEnv(t, "toy.speaker", "")
	e.say("init 1 m -", "init 2 m -")
	first, second := e.serverWith("init 1"), e.serverWith("init 2")
	e.answer(first, "err 1 m unprocessed")
	require.Equal(t, "err 1 - the server leaves and has not processed the request\n", e.got())
	require.False(t, first.Open())
	e.answer(second, "init 2 m leaves")
	require.Equal(t, "init 2 m a=2;leaves\n", e.got())
	require.True(t, second.Open(), "it goes on")
	e.say("end 2 - bye")
	require.False(t, second.Open())
	e.counts(map[string]int64{"stream_active": 0, "request_active": 0})
}

// TestAnAnswerTooManyIsNoticedWhereTheCodecCanTell: nobody gets another's, not even
// behind requests that nobody waits for any more.
func TestAnAnswerTooManyIsNoticedWhereTheCodecCanTell(t *testing.T) {
	e := newToyEnv(t, "toy.speaker.inorder", `, "request_timeout": "1s"`)
	other, gone := e.Dial(e.cfg), e.Dial(e.cfg)
	s := func() *filtertest.Server { return e.server(0) }
	e.say("req 1 m a")
	say(gone, "req 1 m gone")
	say(other, "req 1 m b")
	gone.Close()
	for _, b := range []byte("res 0 m a-yes\nres 0 m gone-yes\n") { // in pieces
		s().Send([]byte{b})
	}
	e.Settle()
	require.Equal(t, "res 1 m a=2;a-yes\n", e.got())
	e.answer(s(), "res 0 m a-again", "res 0 m b-yes")
	require.Equal(t, `err 1 - undecodable response: toy: "a-again" does not answer "b" at offset 0`+"\n", string(other.Take()))
	require.Empty(t, e.up.Servers())

	e.say("req 2 m c")
	e.answer(s(), "res 0 m c-yes", "res 0 m c-again")
	require.Equal(t, "res 2 m a=2;c-yes\n", e.got())
	require.Empty(t, e.up.Servers())
	e.counts(map[string]int64{"upstream_stray_response": 1, "response_decoding_error": 1})

	e.say("req 3 m d", "req 4 m e")
	e.Advance(1100 * time.Millisecond) // both time out
	require.Len(t, lines(e.c.Take()), 2)
	say(other, "req 2 m f")
	e.answer(e.serverWith("f"), "res 0 m f-yes")
	require.Equal(t, "res 2 m a=2;f-yes\n", string(other.Take()))
}

// TestARequestThatCannotBeEncodedCostsItself, and nothing that goes out with it or
// waits behind it.
func TestARequestThatCannotBeEncodedCostsItself(t *testing.T) {
	for _, codec := range []string{"toy.speaker", "toy.speaker.inorder"} {
		for _, waits := range []bool{false, true} {
			e := newToyEnv(t, codec, "")
			e.up.Hang = waits
			e.say("req 1 m a", "req 2 m wordless", "one 3 m wordless", "req 4 m d")
			e.up.Hang = false
			e.up.Admit()
			s := e.server(0)
			b := s.Take()
			require.Equal(t, []string{"a", "d"}, texts(b))
			for _, l := range lines(b) {
				e.answer(s, "res "+strings.Fields(l)[1]+" m "+texts([]byte(l))[0])
			}
			require.ElementsMatch(t, []string{"res 1 m a=2;a", "err 2 - no words for it", "res 4 m a=2;d"}, lines(e.c.Take()))
			require.False(t, e.c.Closed())
			e.counts(map[string]int64{"request_active": 0, "connection_panic": 0})
		}
	}
}
