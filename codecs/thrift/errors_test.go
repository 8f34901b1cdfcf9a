package thrift

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/codectest"
)

// everyForm is a call in each transport and protocol.
func everyForm(name string, seqid uint32) map[string]string {
	forms := map[string]string{}
	for protocol, message := range map[string]string{
		"strict":  call(typeCall, name, seqid, "\x00"),
		"lax":     callLax(typeCall, name, seqid, "\x00"),
		"compact": callCompact(typeCall, name, uint64(seqid), "\x00"),
	} {
		id := "\x00"
		if protocol == "compact" {
			id = "\x02"
		}
		forms["unframed "+protocol] = message
		forms["framed "+protocol] = inFrame(message)
		forms["header "+protocol] = inHeader(theader, seqid, id+"\x00", message)
		forms["header zlib "+protocol] = inHeader(theader, seqid, id+"\x01\x01", deflated(message))
		forms["ttheader "+protocol] = inHeader(kitexHeader, seqid, id+"\x00", message)
		forms["ttheader framed "+protocol] = inHeader(kitexHeader, seqid, id+"\x00", inFrame(message))
	}
	return forms
}

// TestErrorsAreNamedAsServersNameTheirs: the service is part of the name in calls
// only. Node's clients look for the function of that name, Go's compare it.
func TestErrorsAreNamedAsServersNameTheirs(t *testing.T) {
	for _, name := range []string{"Calc:nowhere", "nowhere"} {
		for form, b := range everyForm(name, 77) {
			t.Run(name+" "+form, func(t *testing.T) {
				c := newCodec(t)
				var req, answer codecs.Metadata
				_, err := c.NewDecoder(c2s).Decode([]byte(b), &req)
				require.NoError(t, err)
				e, err := c.EncodeError(nil, &req, &codecs.LocalError{Type: codecs.RouteNotFound, Message: "no route"})
				require.NoError(t, err)
				n, err := c.NewDecoder(s2c).Decode(e, &answer)
				require.NoError(t, err)
				require.Equal(t, len(e), n)
				require.Equal(t, codecs.Error, answer.Type)
				require.Equal(t, "nowhere", string(answer.AppendOperation(nil)))
				require.EqualValues(t, 77, answer.ID)
				require.Equal(t, req.Variant, answer.Variant)
			})
		}
	}
}

// TestErrorsWithACode are read in each form, and say whatever an i32 can.
func TestErrorsWithACode(t *testing.T) {
	for form, b := range everyForm("x", 77) {
		for _, code := range []int32{1, 11, 63, 64, 8191, 8192, math.MaxInt32, -1, -65, math.MinInt32} {
			c := newCodec(t)
			var req, answer codecs.Metadata
			_, err := c.NewDecoder(c2s).Decode([]byte(b), &req)
			require.NoError(t, err)
			e, err := c.EncodeError(nil, &req, &codecs.LocalError{Type: codecs.OverLimit, Message: "no", Code: code})
			require.NoError(t, err)
			n, err := c.NewDecoder(s2c).Decode(e, &answer)
			require.NoError(t, err)
			require.Equal(t, len(e), n)
			require.Equal(t, codecs.Error, answer.Type)
			require.Equal(t, code, answer.Code, form)
		}
	}
}

// TestCallsThatServersReadDifferently are refused, each by an error.
func TestCallsThatServersReadDifferently(t *testing.T) {
	for _, name := range []string{"A:b:c", "A::b", ":b", "A:"} {
		for form, b := range everyForm(name, 5) {
			if name[0] == ':' && strings.HasSuffix(form, "lax") {
				continue // no message begins with such a name
			}
			require.Equal(t, errOperation, malformed(t, b), fmt.Sprint(name, ", ", form))
		}
	}
	one, two := call(typeCall, "Allowed:x", 1, "\x00"), call(typeCall, "Secret:y", 2, "\x00")
	const behind = "there are bytes behind the message"
	require.Equal(t, behind, malformed(t, inFrame(one+two)))
	require.Equal(t, behind, malformed(t, inFrame(one+"\x00")))
	require.Equal(t, behind, malformed(t, inHeader(theader, 1, "\x00\x00", one+two)))
	require.Equal(t, behind, malformed(t, inFrame(callCompact(typeCall, "x", 1, "\x00")+callCompact(typeCall, "y", 2, "\x00"))))
	require.Equal(t, behind, malformed(t, inFrame(callLax(typeOneway, "x", 1, "\x0b\x00\x01\x00\x00\x00\x01x\x00")+one)))
	require.Equal(t, "message ends before its arguments do", malformed(t, inFrame(call(typeCall, "x", 1, "\x0b\x00\x01\x00\x00\x00\x01"))))
	require.Equal(t, errField.Error(), malformed(t, inFrame(call(typeCall, "x", 1, "\x07\x00\x01"))))
	require.Empty(t, malformed(t, inFrame(one)))
}

func malformed(t *testing.T, b string) string {
	t.Helper()
	var m codecs.Metadata
	n, err := newCodec(t).NewDecoder(c2s).Decode([]byte(b), &m)
	require.NoError(t, err)
	require.Equal(t, len(b), n, codectest.Describe(&m))
	return m.Malformed
}
