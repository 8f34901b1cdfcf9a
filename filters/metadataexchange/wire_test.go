package metadataexchange

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meltemi-mesh/meltemi/filter"
)

var wanted = map[string]bool{"app": true, "version": true}

func packed(t testing.TB, s *structpb.Struct) string {
	t.Helper()
	b, err := proto.Marshal(s)
	require.NoError(t, err)
	return base64.StdEncoding.EncodeToString(b)
}

// istios is what an Istio proxy sends.
const istios = "ChkKCU5BTUVTUEFDRRIMGgpwcm9kdWN0aW9u"

func TestWhatIsSentIsWhatIstioReads(t *testing.T) {
	w := &filter.Workload{
		ID: "sidecar~10.0.0.1~cart-1.shop~shop.svc.cluster.local", Name: "cart-1", Namespace: "shop", WorkloadName: "cart", ClusterID: "east",
		Owner: "kubernetes://apis/apps/v1/namespaces/shop/deployments/cart", Labels: map[string]string{"app": "cart", "version": "v1"},
	}
	metadata, err := encode(w)
	require.NoError(t, err)
	b, err := base64.StdEncoding.DecodeString(metadata)
	require.NoError(t, err)
	s := new(structpb.Struct)
	require.NoError(t, proto.Unmarshal(b, s))
	require.Equal(t, map[string]any{
		"NAME": "cart-1", "NAMESPACE": "shop", "WORKLOAD_NAME": "cart", "CLUSTER_ID": "east", "OWNER": w.Owner,
		"LABELS": map[string]any{"app": "cart", "version": "v1"},
	}, s.AsMap())
	require.Equal(t, w, decode([]byte(w.ID), []byte(metadata), wanted))
	require.Equal(t, w, decode([]byte(w.ID), []byte(strings.TrimRight(metadata, "=")), wanted), "with padding or not")
	again, _ := encode(w)
	require.Equal(t, metadata, again, "the same each time")

	require.Equal(t, &filter.Workload{Namespace: "production", Labels: map[string]string{}}, decode(nil, []byte(istios), wanted))
}

func TestWhatPeersSay(t *testing.T) {
	s, err := structpb.NewStruct(map[string]any{
		"NAME": "n", "NAMESPACE": 7, "WORKLOAD_NAME": nil, "PLATFORM_METADATA": map[string]any{"zone": "a"}, "ANNOTATIONS": []any{"x", true, nil},
		"LABELS": map[string]any{"app": "web", "version": 2, "secret": "x"},
	})
	require.NoError(t, err)
	require.Equal(t, &filter.Workload{ID: "id", Name: "n", Labels: map[string]string{"app": "web"}}, decode([]byte("id"), []byte(packed(t, s)), wanted))

	none := &filter.Workload{Labels: map[string]string{}}
	require.Equal(t, none, decode(nil, nil, wanted))
	for name, bad := range map[string]string{
		"no base64": "\x00", "cut off": istios[:len(istios)-4], "a length beyond the end": "Cv8B", "tag 0": "AAA=",
		"too long": strings.Repeat("A", maxMetadata+4), "not UTF-8": packed64("\n\t\n\x04NAME\x12\x01\x1a\xff"),
		"a group": packed64("\x0b\x0c"), "a length of 2^64-1": packed64("\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
	} {
		require.Nil(t, decode(nil, []byte(bad), wanted), name)
	}
	require.Nil(t, decode([]byte("\xff"), nil, wanted))
	require.Nil(t, decode([]byte(strings.Repeat("x", maxID+1)), nil, wanted))
}

func packed64(b string) string { return base64.StdEncoding.EncodeToString([]byte(b)) }

// FuzzDecode reads what protobuf's own library reads in the same way.
func FuzzDecode(f *testing.F) {
	f.Add([]byte("\n\x19\n\tNAMESPACE\x12\f\x1a\nproduction"))
	f.Add([]byte("\n\x10\n\x06LABELS\x12\x06*\x04\n\x02\x12\x00\n\x0e\n\x04NAME\x12\x06*\x00 \x01\x1a\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got := decode(nil, []byte(packed64(string(b))), wanted)
		s := new(structpb.Struct)
		if len(packed64(string(b))) > maxMetadata || proto.Unmarshal(b, s) != nil {
			return
		}
		if got == nil {
			return // groups, and what is not UTF-8 where it does not matter
		}
		text := func(s *structpb.Struct, key string) string { return s.GetFields()[key].GetStringValue() }
		want := &filter.Workload{
			Name: text(s, "NAME"), Namespace: text(s, "NAMESPACE"), WorkloadName: text(s, "WORKLOAD_NAME"),
			ClusterID: text(s, "CLUSTER_ID"), Owner: text(s, "OWNER"), Labels: map[string]string{},
		}
		for k, v := range s.GetFields()["LABELS"].GetStructValue().GetFields() {
			if _, is := v.GetKind().(*structpb.Value_StringValue); is && wanted[k] {
				want.Labels[k] = v.GetStringValue()
			}
		}
		require.Equal(t, want, got)
	})
}
