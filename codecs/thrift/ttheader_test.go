package thrift

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/codectest"
)

func strings16(kv ...string) string {
	b := []byte{infoTTKeyValue, 0, byte(len(kv) / 2)}
	for _, s := range kv {
		b = append(append(b, 0, byte(len(s))), s...)
	}
	return string(b)
}

func decodeAnswer(t *testing.T, b string) *codecs.Metadata {
	t.Helper()
	m := new(codecs.Metadata)
	n, err := newCodec(t).NewDecoder(s2c).Decode([]byte(b), m)
	require.NoError(t, err)
	require.Equal(t, len(b), n)
	return m
}

func TestAKitexServerThatLeaves(t *testing.T) {
	leaving := "\x00\x00" + strings16("crrst", "1")
	none := call(typeReply, "none", 0, "\x00")
	require.Equal(t, codecs.GoAway, decodeAnswer(t, inHeader(kitexHeader, 0, leaving, none)).Type)
	require.Equal(t, codecs.GoAway, decodeAnswer(t, inHeader(kitexHeader, 0, leaving, inFrame(none))).Type)
	require.Equal(t, codecs.Ignored, decodeAnswer(t, inHeader(kitexHeader, 0, "\x00\x00", none)).Type)
	require.Equal(t, codecs.Ignored, decodeAnswer(t, inHeader(kitexHeader, 0, "\x00\x00"+strings16("crrst", ""), none)).Type)

	for _, message := range []string{
		call(typeReply, "hello", 5, "\x00"), inFrame(call(typeException, "hello", 5, "\x00")),
		call(typeReply, "none", 5, "\x00"), call(typeReply, "hello", 0, "\x00"),
	} {
		m := decodeAnswer(t, inHeader(kitexHeader, 5, leaving, message))
		require.True(t, m.GoesAway)
		require.Contains(t, []codecs.MessageType{codecs.Response, codecs.Error}, m.Type)
		require.False(t, decodeAnswer(t, inHeader(kitexHeader, 5, "\x00\x00"+strings16("crrst", ""), message)).GoesAway)
	}
	for _, kind := range []byte{typeCall, typeOneway} { // no answers
		require.False(t, decodeAnswer(t, inHeader(kitexHeader, 5, leaving, call(kind, "hello", 5, "\x00"))).GoesAway)
	}
}

// TestOnlyTheServerLeaves: a client of the proxy need not, and is not told.
func TestOnlyTheServerLeaves(t *testing.T) {
	parts := "\x00\x00\x10\x00\x01\x00\x02\x00\x03log" + strings16("a", "1", "crrst", "1", "b", "2", "crrst", "1")
	m := decodeAnswer(t, inHeader(kitexHeader, 5, parts, call(typeReply, "hello", 5, "\x00")))
	m.ID = 9
	var mut codecs.Mutation
	mut.Set("b", "3")
	for _, tc := range []struct {
		mut  *codecs.Mutation
		want string
	}{{nil, "2"}, {&mut, "3"}} {
		b, err := newCodec(t).Encode(nil, m, tc.mut)
		require.NoError(t, err)
		got := decodeAnswer(t, string(b))
		require.False(t, got.GoesAway)
		require.EqualValues(t, 9, got.ID)
		require.Contains(t, codectest.Describe(got), `log-id="log" a="1" b="`+tc.want+`"`)
		require.NotContains(t, string(b), "crrst")
	}

	m = decodeAnswer(t, inHeader(kitexHeader, 5, "\x00\x00"+strings16("crrst", "1"), call(typeReply, "hello", 5, "\x00")))
	b, err := newCodec(t).Encode(nil, m, nil)
	require.NoError(t, err)
	require.False(t, decodeAnswer(t, string(b)).GoesAway)

	// A header with parts that are not known stays as it is.
	m = decodeAnswer(t, inHeader(kitexHeader, 5, "\x00\x00"+strings16("crrst", "1")+"\x77", call(typeReply, "hello", 5, "\x00")))
	b, err = newCodec(t).Encode(nil, m, nil)
	require.NoError(t, err)
	require.Equal(t, m.Raw, b)
}

// TestGoAwayIsForClientsThatShareConnections: others would take the frame for an
// answer that is out of order.
func TestGoAwayIsForClientsThatShareConnections(t *testing.T) {
	c := newCodec(t)
	goAway := func(b string) []byte {
		var m codecs.Metadata
		_, err := c.NewDecoder(c2s).Decode([]byte(b), &m)
		require.NoError(t, err)
		frame, err := c.(codecs.Leaver).EncodeGoAway([]byte("before"), m.Variant)
		require.NoError(t, err)
		require.Equal(t, "before", string(frame[:6]))
		return frame[6:]
	}
	hello := call(typeCall, "hello", 5, "\x00")
	muxed := []byte(inHeader(kitexHeader, 5, "\x00\x00", hello))
	muxed[flagsAt+1] = outOfOrder
	frame := goAway(string(muxed))
	m := decodeAnswer(t, string(frame))
	require.Equal(t, codecs.GoAway, m.Type)
	// As Kitex's own servers write it.
	require.Equal(t, inHeader(kitexHeader, 0, "\x00\x00"+strings16("crrst", "1"), call(typeReply, "none", 0, "\x00")), string(frame))
	for _, b := range everyForm("hello", 5) {
		require.Empty(t, goAway(b))
	}
}

// TestErrorsForClientsThatShareConnectionsAreOfTheirVariant: Kitex's clients take
// no notice of the flag in an answer.
func TestErrorsForClientsThatShareConnectionsAreOfTheirVariant(t *testing.T) {
	c := newCodec(t)
	for _, flags := range []byte{0, outOfOrder} {
		b := []byte(inHeader(kitexHeader, 5, "\x00\x00", call(typeCall, "hello", 5, "\x00")))
		b[flagsAt+1] = flags
		var req codecs.Metadata
		_, err := c.NewDecoder(c2s).Decode(b, &req)
		require.NoError(t, err)
		out, err := c.EncodeError(nil, &req, &codecs.LocalError{Type: codecs.Timeout, Message: "too late"})
		require.NoError(t, err)
		require.Equal(t, flags, out[flagsAt+1])
		answer := decodeAnswer(t, string(out))
		require.Equal(t, codecs.Error, answer.Type)
		require.Equal(t, req.Variant, answer.Variant)
	}
}

// TestHeadersThatCannotBeReadCostTheirCall: the end of the frame is known, and so is the
// call. An answer is its client's to judge.
func TestHeadersThatCannotBeReadCostTheirCall(t *testing.T) {
	many := binary.BigEndian.AppendUint16([]byte{0, 0, infoTTKeyValue}, maxHeaders+1)
	for range maxHeaders + 1 {
		many = append(many, "\x00\x01k\x00\x01v"...)
	}
	pairs := []byte{0, 0, infoKeyValue}
	pairs = binary.AppendUvarint(pairs, maxHeaders+1)
	for range maxHeaders + 1 {
		pairs = append(pairs, "\x01k\x01v"...)
	}
	for name, tc := range map[string]struct{ magic, head, fault string }{
		"too many of Kitex":  {kitexHeader, string(many), "too many headers"},
		"too many of Apache": {theader, string(pairs), "too many headers"},
		"one without an end": {kitexHeader, "\x00\x00\x01\x00\x01\x00\x09tenant", errHeader.Error()},
		"one that is longer": {theader, "\x00\x00\x01\x01\x06tenant\x44acme", errHeader.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			var m codecs.Metadata
			b := []byte(inHeader(tc.magic, 5, tc.head, call(typeCall, "hello", 5, "\x00")))
			n, err := newCodec(t).NewDecoder(c2s).Decode(append(b, "next"...), &m)
			require.NoError(t, err)
			require.Equal(t, len(b), n)
			require.Equal(t, tc.fault, m.Malformed)
			require.Equal(t, "hello", string(m.Method()))
			answer, err := newCodec(t).EncodeError(nil, &m, &codecs.LocalError{Type: codecs.BadRequest, Message: "no"})
			require.NoError(t, err)
			got := decodeAnswer(t, string(answer))
			require.Equal(t, codecs.Error, got.Type)
			require.EqualValues(t, 5, got.ID)

			a := decodeAnswer(t, inHeader(tc.magic, 5, tc.head, call(typeReply, "hello", 5, "\x00")))
			require.Empty(t, a.Malformed)
			require.Equal(t, codecs.Response, a.Type)
			a.ID = 9
			out, err := newCodec(t).Encode(nil, a, nil)
			require.NoError(t, err)
			require.EqualValues(t, 9, decodeAnswer(t, string(out)).ID)
		})
	}
}

// TestKitexReadsNoOtherCall: what Kitex's servers would execute is what rules see, or the
// call is refused, and its connection lives.
func TestKitexReadsNoOtherCall(t *testing.T) {
	hidden, shown := call(typeCall, "hidden", 5, "\x00"), call(typeCall, "shown", 5, "\x00")
	padding := func(n int) string { return strings.Repeat("\x00", n) }
	streams := []byte(inHeader(kitexHeader, 5, "\x00\x00", shown))
	streams[flagsAt+1] = streaming
	for name, tc := range map[string]struct{ b, fault string }{
		// Of 65,540 bytes it reads 4.
		"a header whose size wraps": {inHeader(kitexHeader, 5, "\x00\x00\x00\x00"+hidden+padding(1<<16-len(hidden)), shown), errLongHeader},
		// Kitex takes as many bytes as the frame within says.
		"a shorter frame within":                {inHeader(kitexHeader, 5, "\x00\x00", inFrame(hidden)+"\x01\x00\x00\x00\x05\x00"), errControl},
		"a shorter frame within, with protobuf": {inHeader(kitexHeader, 5, "\x00\x00", inFrame("\x90"+hidden[1:])+"\x01\x00\x00\x00\x05\x00"), errControl},
		"a name that is a message":              {inHeader(kitexHeader, 5, "\x00\x00", callCompact(typeCall, hidden, 5, "\x00")), errControl},
		"a name that is a message, unframed":    {callCompact(typeCall, hidden, 5, "\x00"), errControl},
		"a name with the end of its id":         {callCompact(typeCall, "\x01\x01\x00\x00\x00\x06hidden", 1<<21, "\x00"), errControl},
		"a call behind":                         {inHeader(kitexHeader, 5, "\x00\x00", shown+inHeader(kitexHeader, 6, "\x00\x00", hidden)), errBehind.Error()},
		"a call behind, in the frame within":    {inHeader(kitexHeader, 5, "\x00\x00", inFrame(shown+hidden)), errBehind.Error()},
		"arguments without an end":              {inHeader(kitexHeader, 5, "\x00\x00", shown[:len(shown)-1]+"\x0b\x00\x01\x00\x00\x00\x09"), errEnds.Error()},
		"a stream, which to-method names":       {string(streams), errStreaming},
	} {
		t.Run(name, func(t *testing.T) {
			shapes := new(codecs.Shapes)
			for range 3 {
				d := learner(t, shapes)
				_, m := described(t, d, []byte(tc.b))
				require.Equal(t, tc.fault, m.Malformed)
				answer, err := newCodec(t).EncodeError(nil, m, &codecs.LocalError{Type: codecs.BadRequest, Message: "no"})
				require.NoError(t, err)
				require.Equal(t, m.ID, decodeAnswer(t, string(answer)).ID)
				if tc.b[0] == 0 { // behind what is sound, and before it
					_, m = described(t, d, []byte(inHeader(kitexHeader, 5, "\x00\x00", shown)))
					require.Empty(t, m.Malformed)
				}
			}
		})
	}
	_, m := described(t, newCodec(t).NewDecoder(c2s), []byte(inHeader(kitexHeader, 5, "\x00\x00"+padding(maxTTHeader-2), shown)))
	require.Empty(t, m.Malformed)
}

// TestNoHeaderOfKitexGrowsTooLong: its servers and clients would read another message.
func TestNoHeaderOfKitexGrowsTooLong(t *testing.T) {
	c := newCodec(t)
	long := strings.Repeat("x", codecs.MaxText)
	var mut codecs.Mutation
	for i := range 3 {
		mut.Set(string(rune('a'+i)), long)
	}
	var more codecs.Mutation
	for i := range 4 {
		more.Set(string(rune('a'+i)), long)
	}
	req := new(codecs.Metadata)
	_, err := c.NewDecoder(c2s).Decode([]byte(inHeader(kitexHeader, 5, "\x00\x00", call(typeCall, "hello", 5, "\x00"))), req)
	require.NoError(t, err)
	answer := decodeAnswer(t, inHeader(kitexHeader, 5, "\x00\x00", call(typeReply, "hello", 5, "\x00")))
	for _, m := range []*codecs.Metadata{req, answer} {
		_, err := c.Encode(nil, m, &mut)
		require.NoError(t, err)
		_, err = c.Encode(nil, m, &more)
		require.ErrorIs(t, err, codecs.ErrNoMutation)
	}
	_, err = c.(codecs.Payloader).EncodeReply(nil, req, &mut)
	require.NoError(t, err)
	_, err = c.(codecs.Payloader).EncodeReply(nil, req, &more)
	require.ErrorIs(t, err, codecs.ErrNoMutation)
}

// TestNumbersBeyond32Bits: servers take their lower bits, and would see a header here.
func TestNumbersBeyond32Bits(t *testing.T) {
	parts := "\x00\x00\x81\x80\x80\x80\x10\x01\x06tenant\x04acme"
	_, m := described(t, newCodec(t).NewDecoder(c2s), []byte(inHeader(theader, 5, parts, call(typeCall, "hello", 5, "\x00"))))
	require.Equal(t, errHeader.Error(), m.Malformed)
}
