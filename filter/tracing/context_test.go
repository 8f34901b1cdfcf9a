package tracing

import (
	"encoding/hex"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	trace  = "0af7651916cd43dd8448eb211c80319c"
	half   = "8448eb211c80319c"
	span   = "b7ad6b7169203331"
	caller = "00f067aa0ba902b7"
)

func TestTraceparents(t *testing.T) {
	for _, tc := range []struct {
		text        string
		ok, sampled bool
	}{
		{"00-" + trace + "-" + span + "-01", true, true},
		{"00-" + trace + "-" + span + "-00", true, false},
		{"00-" + trace + "-" + span + "-03", true, true}, // a flag that is not known
		{"cc-" + trace + "-" + span + "-01-what-comes-later", true, true},
		{"cc-" + trace + "-" + span + "-01.", false, false},
		{"00-" + trace + "-" + span + "-01-more", false, false},
		{"ff-" + trace + "-" + span + "-01", false, false},
		{"00-00000000000000000000000000000000-" + span + "-01", false, false},
		{"00-" + trace + "-0000000000000000-01", false, false},
		{"00-0AF7651916CD43DD8448EB211C80319C-" + span + "-01", false, false},
		{"00-" + trace + "-" + span + "-0", false, false},
		{"00-" + trace + "-" + span + "-0x", false, false},
		{"00_" + trace + "-" + span + "-01", false, false},
		{"", false, false},
	} {
		c, ok := parseW3C([]byte(tc.text))
		require.Equal(t, tc.ok, ok, tc.text)
		require.Equal(t, tc.sampled, c.sampled, tc.text)
		if ok {
			require.Equal(t, trace, hex.EncodeToString(c.trace[:]), tc.text)
			require.Equal(t, span, hex.EncodeToString(c.span[:]), tc.text)
			require.True(t, c.says, tc.text)
		}
	}
}

func TestB3(t *testing.T) {
	for _, tc := range []struct {
		text                             string
		ok, placed, says, sampled, debug bool
		trace, parent                    string
	}{
		{trace + "-" + span + "-1-" + caller, true, true, true, true, false, trace, caller},
		{trace + "-" + span + "-1", true, true, true, true, false, trace, ""},
		{half + "-" + span + "-0", true, true, true, false, false, "0000000000000000" + half, ""},
		{trace + "-" + span + "-d", true, true, true, true, true, trace, ""},
		{trace + "-" + span, true, true, false, false, false, trace, ""},
		{"0", true, false, true, false, false, "", ""},
		{"1", true, false, true, true, false, "", ""},
		{"d", true, false, true, true, true, "", ""},
		{"x", false, false, false, false, false, "", ""},
		{trace, false, false, false, false, false, "", ""},
		{trace + "-" + span + "-2", false, false, false, false, false, "", ""},
		{trace + "-" + span + "-1-" + caller + "0", false, false, false, false, false, "", ""},
		{"", false, false, false, false, false, "", ""},
	} {
		c, ok := parseB3([]byte(tc.text))
		require.Equal(t, tc.ok, ok, tc.text)
		require.Equal(t, []bool{tc.placed, tc.says, tc.sampled, tc.debug}, []bool{c.placed(), c.says, c.sampled, c.debug}, tc.text)
		if tc.placed {
			require.Equal(t, tc.trace, hex.EncodeToString(c.trace[:]), tc.text)
			require.Equal(t, span, hex.EncodeToString(c.span[:]), tc.text)
		}
		if tc.parent != "" {
			require.Equal(t, tc.parent, hex.EncodeToString(c.parent[:]), tc.text)
		}
	}
}

// TestAParentThatIsNone is no parent, as far as its digits may go.
func TestAParentThatIsNone(t *testing.T) {
	for parent, want := range map[string]string{caller: caller, caller[:14] + "BA": "0000000000000000", caller + "0": "0000000000000000"} {
		var a asked
		a.values[keyB3TraceID], a.values[keyB3SpanID], a.values[keyB3ParentSpanID] = []byte(trace), []byte(span), []byte(parent)
		var o origin
		require.True(t, a.readB3(&o))
		require.Equal(t, want, hex.EncodeToString(o.parent[:]))
	}
}

// FuzzContext: nothing that a client writes makes a place in a trace that is none.
func FuzzContext(f *testing.F) {
	f.Add("00-"+trace+"-"+span+"-01", trace+"-"+span+"-1-"+caller)
	f.Add("00-"+trace+"-"+span[:10]+"A00000-01", trace+"-"+span[:10]+"A00000-1")
	f.Fuzz(func(t *testing.T, w3c, b3 string) {
		for _, parse := range []func([]byte) (context, bool){parseW3C, parseB3} {
			for _, text := range []string{w3c, b3} {
				if c, ok := parse([]byte(text)); ok {
					require.True(t, c.placed() || c.says)
				} else {
					require.False(t, c.placed())
				}
			}
		}
	})
}
