package dubbo

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
)

func mutation(kv ...string) *codecs.Mutation {
	var mut codecs.Mutation
	for i := 0; i < len(kv); i += 2 {
		mut.Set(kv[i], kv[i+1])
	}
	return &mut
}

func TestMutatedRequests(t *testing.T) {
	const pojo = "C\x01P\x91\x01f\x60\x05value"
	for _, tc := range []struct{ name, before, want string }{
		{"none so far", call, call + "H\x01k\x03new\x01z\x01yZ"},
		{"null", call + "N", call + "H\x01k\x03new\x01z\x01yZ"},
		{"empty string", call + "\x00", call + "H\x01k\x03new\x01z\x01yZ"},
		{"empty map", call + "HZ", call + "H\x01k\x03new\x01z\x01yZ"},
		{"replaced in place", call + "H\x01a\x01b\x01k\x03old\x01c\x01dZ", call + "H\x01a\x01b\x01k\x03new\x01c\x01d\x01z\x01yZ"},
		{"key in chunks", call + "HR\x00\x00\x01k\x03oldZ", call + "HR\x00\x00\x01k\x03new\x01z\x01yZ"},
		{"null value", call + "H\x01kNZ", call + "H\x01k\x03new\x01z\x01yZ"},
		{"number", call + "H\x01k\x91Z", call + "H\x01k\x03new\x01z\x01yZ"},
		{"twice", call + "H\x01k\x01a\x01k\x01bZ", call + "H\x01k\x03new\x01k\x03new\x01z\x01yZ"},
		{"object", call + "H\x01k" + pojo + "Z", call + "H\x01k" + pojo + "\x01k\x03new\x01z\x01yZ"},
		{"string, then object", call + "H\x01k\x01a\x01k" + pojo + "Z", call + "H\x01k\x03new\x01k" + pojo + "\x01k\x03new\x01z\x01yZ"},
		{"object, then string", call + "H\x01k" + pojo + "\x01k\x01aZ", call + "H\x01k" + pojo + "\x01k\x03new\x01z\x01yZ"},
		{"reference as the value", call + "H\x01kQ\x90Z", call + "H\x01k\x03new\x01z\x01yZ"},
		{"key that is no string", call + "H\x91\x01a\x79\x91\x01bZ", call + "H\x91\x01a\x79\x91\x01b\x01k\x03new\x01z\x01yZ"},
		{"map with a type", call + "M\x11java.util.HashMap\x01k\x01aZ", call + "M\x11java.util.HashMap\x01k\x03new\x01z\x01yZ"},
		{
			"class of an argument", "\x052.0.2\x01i\x00\x01m\x01I" + pojo + "H\x01o\x60\x01x\x01k\x01a\x01pQ\x90Z",
			"\x052.0.2\x01i\x00\x01m\x01I" + pojo + "H\x01o\x60\x01x\x01k\x03new\x01pQ\x90\x01z\x01yZ",
		},
		{"bytes behind", call + "HZN", call + "H\x01k\x03new\x01z\x01yZN"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := requestOf(t, tc.before)
			require.Empty(t, m.Malformed)
			m.ID = 99
			raw := bytes.Clone(m.Raw)
			out, err := newCodec(t).Encode([]byte("before"), m, mutation("k", "new", "z", "y"))
			require.NoError(t, err)
			require.Equal(t, "before"+string(dubbotest.Frame(0xc2, 0, 99, []byte(tc.want))), string(out))
			require.Equal(t, raw, m.Raw)
		})
	}
}

// TestRemovedAttachments leave the others where they were.
func TestRemovedAttachments(t *testing.T) {
	const pojo = "C\x01P\x91\x01f\x60\x05value"
	for _, tc := range []struct{ name, before, want string }{
		{"none so far", call, call},
		{"null", call + "N", call + "N"},
		{"empty string", call + "\x00", call + "\x00"},
		{"the only one", call + "H\x01k\x03oldZ", call + "HZ"},
		{"among others", call + "H\x01a\x01b\x01k\x03old\x01c\x01dZ", call + "H\x01a\x01b\x01c\x01dZ"},
		{"in every case, twice", call + "H\x01K\x01a\x01a\x01b\x01k\x01bZ", call + "H\x01a\x01bZ"},
		{"key in chunks", call + "HR\x00\x00\x01k\x03oldZ", call + "HZ"},
		{"null value", call + "H\x01kNZ", call + "HZ"},
		// A later reference may mean it: it loses its name only.
		{"object", call + "H\x01k" + pojo + "\x01rQ\x91Z", call + "H\x00" + pojo + "\x01rQ\x91Z"},
		{"key that is no string", call + "H\x91\x01a\x01k\x01bZ", call + "H\x91\x01aZ"},
		{"map with a type", call + "M\x11java.util.HashMap\x01k\x01aZ", call + "M\x11java.util.HashMapZ"},
		{"bytes behind", call + "H\x01k\x01aZN", call + "HZN"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := requestOf(t, tc.before)
			require.Empty(t, m.Malformed)
			var mut codecs.Mutation
			mut.Remove("k")
			out, err := newCodec(t).Encode(nil, m, &mut)
			require.NoError(t, err)
			require.Equal(t, string(dubbotest.Frame(0xc2, 0, m.ID, []byte(tc.want))), string(out))
			_, there := decodeOne(t, codecs.ClientToServer, out).Get("k")
			require.False(t, there)
			mut.Set("k", "new")
			out, err = newCodec(t).Encode(nil, m, &mut)
			require.NoError(t, err)
			k, _ := decodeOne(t, codecs.ClientToServer, out).Get("k")
			require.Equal(t, "new", string(k))
		})
	}
	// An answer without attachments stays as it is.
	for _, body := range []string{"\x94\x01v", "\x95", "\x91\x01vN"} {
		frame := dubbotest.Frame(0x02, 20, 1, []byte(body))
		var mut codecs.Mutation
		mut.Remove("k")
		out, err := newCodec(t).Encode(nil, decodeOne(t, codecs.ServerToClient, frame), &mut)
		require.NoError(t, err)
		require.Equal(t, frame, out)
	}
	// What is called stays, whoever asks.
	var mut codecs.Mutation
	mut.Remove("Path")
	_, err := newCodec(t).Encode(nil, requestOf(t, call), &mut)
	require.ErrorIs(t, err, codecs.ErrNoMutation)
	remover, _ := newCodec(t).(codecs.Remover)
	require.ErrorContains(t, remover.CheckRemoval(codecs.ClientToServer, "Path"), `key: "Path" belongs to the call itself`)
}

func TestMutatedAnswers(t *testing.T) {
	for _, tc := range []struct{ name, before, want string }{
		{"exception", "\x90\x01e", "\x93\x01eH\x01k\x03newZ"},
		{"value", "\x91\x01v", "\x94\x01vH\x01k\x03newZ"},
		{"null", "\x92", "\x95H\x01k\x03newZ"},
		{"exception and attachments", "\x93\x01eH\x01k\x01aZ", "\x93\x01eH\x01k\x03newZ"},
		{"value and attachments", "\x94\x01vH\x01a\x01bZ", "\x94\x01vH\x01a\x01b\x01k\x03newZ"},
		{"null and attachments", "\x95HZ", "\x95H\x01k\x03newZ"},
		{"null attachments", "\x94\x01vN", "\x94\x01vH\x01k\x03newZ"},
		{"attachments that are missing", "\x95", "\x95H\x01k\x03newZ"},
		{"dubbo-go's null behind a value", "\x91\x01vN", "\x94\x01vH\x01k\x03newZ"},
		{"dubbo-go's null behind attachments", "\x95HZN", "\x95H\x01k\x03newZN"},
		{"kind in five bytes", "I\x00\x00\x00\x01\x01v", "\x94\x01vH\x01k\x03newZ"},
		{"object", "\x91C\x01P\x91\x01f\x60N", "\x94C\x01P\x91\x01f\x60NH\x01k\x03newZ"},
		{"class of the value", "\x94C\x01P\x91\x01f\x60NH\x01o\x60N\x01k\x01aZ", "\x94C\x01P\x91\x01f\x60NH\x01o\x60N\x01k\x03newZ"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := answerOf(t, tc.before)
			out, err := newCodec(t).Encode(nil, m, mutation("k", "new"))
			require.NoError(t, err)
			require.Equal(t, dubbotest.Frame(0x02, statusOK, 7, []byte(tc.want)), out)
		})
	}
}

func TestWhatCannotBeMutatedSaysSo(t *testing.T) {
	many := call + "H" + strings.Repeat("\x91N", maxAttachments+1) + "Z"
	for _, tc := range []struct {
		name  string
		dir   codecs.Direction
		frame []byte
		want  string
	}{
		{"other serialization", codecs.ClientToServer, dubbotest.Frame(0xd7, 0, 1, []byte("?")), "serialization is 23"},
		{"error", codecs.ServerToClient, dubbotest.ErrorResponse(1, 40, "no"), "it is an error"},
		{"unreadable request", codecs.ClientToServer, dubbotest.Frame(0xc2, 0, 1, []byte("@")), "unexpected tag"},
		{"too many attachments", codecs.ClientToServer, dubbotest.Frame(0xc2, 0, 1, []byte(many)), tooManyAttachments},
		{"unreadable value", codecs.ServerToClient, dubbotest.Frame(2, 20, 1, []byte("\x94@HZ")), "unexpected tag"},
		{"unreadable value without attachments", codecs.ServerToClient, dubbotest.Frame(2, 20, 1, []byte("\x91@")), "unexpected tag"},
		{"no value", codecs.ServerToClient, dubbotest.Frame(2, 20, 1, []byte("\x91")), "cut off"},
		{"bytes behind a value", codecs.ServerToClient, dubbotest.Frame(2, 20, 1, []byte("\x91\x01v\x91")), "behind its value"},
		{"answer whose attachments are no map", codecs.ServerToClient, dubbotest.Frame(2, 20, 1, []byte("\x95\x91")), "unexpected tag"},
		{"answer with a map that does not end", codecs.ServerToClient, dubbotest.Frame(2, 20, 1, []byte("\x95H\x01k\x01a")), "cut off"},
		{"answer with too many", codecs.ServerToClient, dubbotest.Frame(2, 20, 1, []byte("\x95"+many[len(call):])), tooManyAttachments},
		{"answer of an unknown kind", codecs.ServerToClient, dubbotest.Frame(2, 20, 1, []byte("\x96HZ")), "unknown kind"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := decodeOne(t, tc.dir, tc.frame)
			c := newCodec(t)
			_, err := c.Encode(nil, m, mutation("k", "new"))
			require.ErrorIs(t, err, codecs.ErrNoMutation)
			require.ErrorContains(t, err, tc.want)
			out, err := c.Encode(nil, m, nil)
			require.NoError(t, err)
			require.Equal(t, tc.frame, out)
		})
	}
}

func TestMutationStaysWithinTheFrameLimit(t *testing.T) {
	frame := dubbotest.Request{ID: 1}.Bytes()
	for room, ok := range map[int]bool{len("\x01k\x03new"): true, len("\x01k\x03new") - 1: false} {
		c, err := New(nil, codecs.Limits{MaxFrameBytes: len(frame) + room})
		require.NoError(t, err)
		var m codecs.Metadata
		_, err = c.NewDecoder(codecs.ClientToServer).Decode(frame, &m)
		require.NoError(t, err)
		_, err = c.Encode(nil, &m, mutation("k", "new"))
		if ok {
			require.NoError(t, err)
		} else {
			require.ErrorIs(t, err, codecs.ErrNoMutation)
		}
	}
}

// TestMoreKeysThanAreRemembered are set all the same, some of them twice.
func TestMoreKeysThanAreRemembered(t *testing.T) {
	var kv []string
	body := call + "H"
	for i := range 100 {
		key := string(rune('A'+i/10)) + string(rune('0'+i%10))
		kv = append(kv, key, "new")
		body += "\x02" + key + "\x03old"
	}
	m := requestOf(t, body+"Z")
	mut := mutation(kv...)
	out, err := newCodec(t).Encode(nil, m, mut)
	require.NoError(t, err)
	sameButFor(t, m, decodeOne(t, codecs.ClientToServer, out), mut)
}

// FuzzMutate: what is mutated differs in its attachments only, as a decoder
// that is not ours sees it.
func FuzzMutate(f *testing.F) {
	add := func(d codecs.Direction, frame []byte) { f.Add(d == codecs.ClientToServer, frame, "k", "new") }
	for _, file := range captures(f) {
		b, err := os.ReadFile(file)
		require.NoError(f, err)
		if len(b) < 1<<12 {
			add(direction(file), b)
		}
	}
	for _, rest := range []string{
		"", "N", "\x00", "H\x01k\x01aZ", "H\x01kQ\x90Z", "HR\x00\x00\x01k\x01aZ", // ways to have attachments
		"H\x01kC\x01P\x91\x01f\x60N\x01o\x60NZ", // an object that is kept, its class used again
	} {
		add(codecs.ClientToServer, dubbotest.Frame(0xc2, 0, 1, []byte(call+rest)))
		add(codecs.ServerToClient, dubbotest.Frame(0x02, 20, 1, []byte("\x94\x01v"+rest)))
		add(codecs.ServerToClient, dubbotest.Frame(0x02, 20, 1, []byte("\x95"+rest)))
	}
	add(codecs.ServerToClient, dubbotest.Frame(0x02, 20, 1, []byte("\x91\x01vN"))) // a null behind a value
	f.Fuzz(func(t *testing.T, toServer bool, b []byte, key, value string) {
		d := codecs.ServerToClient
		if toServer {
			d = codecs.ClientToServer
		}
		c := newCodec(t)
		if len(b) == 0 || c.(codecs.Mutator).CheckMutation(d, key, value) != nil {
			return
		}
		var before, after codecs.Metadata
		if n, err := c.NewDecoder(d).Decode(b, &before); err != nil || n > len(b) {
			return
		}
		mut := mutation(key, value, "another", "one")
		out, err := c.Encode(nil, &before, mut)
		if err != nil {
			require.ErrorIs(t, err, codecs.ErrNoMutation)
			return
		}
		n, err := c.NewDecoder(d).Decode(out, &after)
		require.NoError(t, err)
		require.Equal(t, len(out), n)
		require.Empty(t, after.Malformed)
		if _, err := contentOf(&before); err == nil {
			sameButFor(t, &before, &after, mut)
		}
	})
}
