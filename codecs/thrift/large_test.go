package thrift

import (
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/codectest"
)

// TestAFrameAboveTheLimitCostsOneCall: its head is enough for an error that the
// client takes for the answer, and its length for the next message.
func TestAFrameAboveTheLimitCostsOneCall(t *testing.T) {
	for _, limit := range []int{128, 4 << 10, 32 << 10} {
		t.Run(strconv.Itoa(limit), func(t *testing.T) { aFrameAboveTheLimit(t, limit) })
	}
}

func aFrameAboveTheLimit(t *testing.T, limit int) {
	c, err := New(nil, codecs.Limits{MaxFrameBytes: limit})
	require.NoError(t, err)
	body := "\x0b\x00\x01\x00\x01\x00\x00" + strings.Repeat("x", 64<<10) + "\x00"
	for name, frame := range map[string]func(kind byte) string{
		"framed":          func(k byte) string { return inFrame(call(k, "Svc:hello", 5, body)) },
		"framed, lax":     func(k byte) string { return inFrame(callLax(k, "Svc:hello", 5, body)) },
		"framed, compact": func(k byte) string { return inFrame(callCompact(k, "Svc:hello", 5, body)) },
		"header":          func(k byte) string { return inHeader(theader, 5, tenantPart, call(k, "Svc:hello", 5, body)) },
		"ttheader":        func(k byte) string { return inHeader(kitexHeader, 5, kitexParts, call(k, "Svc:hello", 5, body)) },
		"ttheader over frames": func(k byte) string {
			return inHeader(kitexHeader, 5, kitexParts, inFrame(call(k, "Svc:hello", 5, body)))
		},
		"header with much zlib": func(k byte) string {
			return inHeader(theader, 5, "\x00\x01\x01", deflated(call(k, "Svc:hello", 5, noise())))
		},
	} {
		t.Run(name, func(t *testing.T) {
			if limit < 16<<10 && strings.HasPrefix(name, "header") {
				t.Skip("a part of what may be compressed tells nothing")
			}
			for _, tc := range []struct {
				dir  codecs.Direction
				kind byte
				want codecs.MessageType
			}{{c2s, typeCall, codecs.Request}, {c2s, typeOneway, codecs.Oneway}, {s2c, typeReply, codecs.Response}, {s2c, typeException, codecs.Error}} {
				b := []byte(frame(tc.kind))
				dec := c.NewDecoder(tc.dir)
				var m codecs.Metadata
				need := 1
				for {
					m.Reset()
					n, err := dec.Decode(b[:need], &m)
					if err != nil {
						require.Equal(t, &codecs.TooLarge{Size: len(b), Limit: limit}, err)
						break
					}
					require.Greater(t, n, need)
					require.LessOrEqual(t, n, min(16<<10, limit), "no more than the head")
					need = n
				}
				require.Equal(t, tc.want, m.Type)
				require.EqualValues(t, 5, m.ID)
				require.Nil(t, m.Raw)
				require.Empty(t, m.Properties())
				if tc.dir == s2c {
					require.Equal(t, "hello", string(m.Method()), "it may come late, and tell that there are answers")
				}
				if tc.want == codecs.Request {
					e, err := c.EncodeError(nil, &m, &codecs.LocalError{Message: "too large"})
					require.NoError(t, err)
					var answer codecs.Metadata
					n, err := c.NewDecoder(s2c).Decode(e, &answer)
					require.NoError(t, err)
					require.Equal(t, len(e), n)
					require.EqualValues(t, 5, answer.ID)
					require.Equal(t, m.Variant, answer.Variant)
					require.Equal(t, "hello", string(answer.AppendOperation(nil)))
				}
				// The next one is another message.
				small := frame(tc.kind)[:0] + inFrame(call(tc.kind, "x", 6, "\x00"))
				if name == "framed" {
					m.Reset()
					n, err := dec.Decode([]byte(small), &m)
					require.NoError(t, err)
					require.Equal(t, len(small), n)
					require.Contains(t, codectest.Describe(&m), "id=6")
				}
			}
		})
	}
}

// noise is a body that does not become small.
func noise() string {
	var b strings.Builder
	x := uint32(1)
	for b.Len() < 64<<10 {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b.WriteByte(byte(x))
	}
	return "\x0b\x00\x01\x00\x01\x00\x00" + b.String() + "\x00"
}
