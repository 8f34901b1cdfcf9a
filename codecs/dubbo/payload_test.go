package dubbo

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
)

func replaced(t *testing.T, d codecs.Direction, frame []byte, payload string) ([]byte, error) {
	t.Helper()
	c, err := New(nil, codecs.Limits{})
	require.NoError(t, err)
	var m codecs.Metadata
	_, err = c.NewDecoder(d).Decode(frame, &m)
	require.NoError(t, err)
	require.Empty(t, m.Malformed)
	var mut codecs.Mutation
	mut.SetPayload(codecs.Payload{Bytes: []byte(payload)})
	return c.Encode(nil, &m, &mut)
}

// TestAnAnswersKindFollowsItsPayload: null has none, and an exception stays one.
func TestAnAnswersKindFollowsItsPayload(t *testing.T) {
	answer := func(body string) []byte { return dubbotest.Frame(0x02, statusOK, 7, []byte(body)) }
	const attached = "H\x01k\x01vZ"
	for from, tt := range map[string]struct{ payload, want string }{
		"\x91\x01x":            {"\x01y", "\x91\x01y"},
		"\x91\x01xN":           {"", "\x92N"},
		"\x92":                 {"\x01y", "\x91\x01y"},
		"\x94\x01x" + attached: {"", "\x95" + attached},
		"\x95" + attached:      {"\x90", "\x94\x90" + attached},
		"\x90\x01x":            {"\x01y", "\x90\x01y"},
		"\x93\x01x" + attached: {"\x01y", "\x93\x01y" + attached},
		"\x90\x02xx":           {"", ""},
	} {
		got, err := replaced(t, codecs.ServerToClient, answer(from), tt.payload)
		if tt.want == "" {
			require.ErrorIs(t, err, codecs.ErrNoPayload)
			continue
		}
		require.NoError(t, err, "%q", from)
		require.Equal(t, answer(tt.want), got, "%q", from)
	}
}

// TestAttachmentsThatReferToAnythingStandBehindTheirOwnPayloadOnly: a reference is the
// number of a value before it.
func TestAttachmentsThatReferToAnythingStandBehindTheirOwnPayloadOnly(t *testing.T) {
	const list = "\x79\x01x" // of one string
	request := func(attachments string) []byte {
		return dubbotest.Frame(0xc2, 0, 7, []byte("\x052.0.2\x01i\x00\x01m\x12Ljava/lang/Object;"+list+attachments))
	}
	for attachments, fits := range map[string]bool{
		"H\x01k\x01vZ": true, "N": true, "": true, "H\x01k\x91Z": true,
		"H\x01kQ\x90Z": false, "H\x01k" + list + "Z": false, "H\x01kC\x01P\x90\x60Z": false, "M\x11java.util.HashMap\x01k\x01vZ": false,
	} {
		got, err := replaced(t, codecs.ClientToServer, request(attachments), "\x01y")
		if !fits {
			require.ErrorIs(t, err, codecs.ErrNoPayload, "%q", attachments)
			require.ErrorContains(t, err, "may refer to what stands before them")
		} else {
			require.NoError(t, err, "%q", attachments)
			require.Equal(t, dubbotest.Frame(0xc2, 0, 7, []byte("\x052.0.2\x01i\x00\x01m\x12Ljava/lang/Object;\x01y"+attachments)), got)
		}
		got, err = replaced(t, codecs.ClientToServer, request(attachments), list)
		require.NoError(t, err, "its own payload again")
		require.Equal(t, request(attachments), got)
	}
}

// TestWhichClientsReadAttachmentsOfAnswers is Version.isSupportResponseAttachment.
func TestWhichClientsReadAttachmentsOfAnswers(t *testing.T) {
	for version, want := range map[string]bool{
		"2.0.2": true, "2.0.3": true, "2.0.9": true, "2.7.0": true, "3.3.1": true, "2.9.0": true, "2.6.4": true,
		"2.0.0": false, "2.0.1": false, "2.0.10": false, "2.5.3": false, "2.6.2": false, "2.8.4": false, "": false, "2": false, "2.7": false, "x.y.z": false,
	} {
		require.Equal(t, want, accepts([]byte(version)), version)
	}
}

func TestARequestInAnotherSerializationHasNoSuccess(t *testing.T) {
	c, err := New(nil, codecs.Limits{})
	require.NoError(t, err)
	var m codecs.Metadata
	_, err = c.NewDecoder(codecs.ClientToServer).Decode(dubbotest.Frame(0xd7, 0, 1, []byte("?")), &m)
	require.NoError(t, err)
	_, err = c.(codecs.Payloader).EncodeReply(nil, &m, nil)
	require.ErrorIs(t, err, codecs.ErrNoPayload)
}
