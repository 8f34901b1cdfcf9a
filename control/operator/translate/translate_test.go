package translate_test

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	istio "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	_ "github.com/meltemi-mesh/meltemi/codecs/brpc"
	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	_ "github.com/meltemi-mesh/meltemi/codecs/thrift"
	_ "github.com/meltemi-mesh/meltemi/codecs/trpc"
	"github.com/meltemi-mesh/meltemi/control/ir"
	dubbo "github.com/meltemi-mesh/meltemi/control/operator/api/dubbo/v1alpha1"
	api "github.com/meltemi-mesh/meltemi/control/operator/api/metaprotocol/v1alpha1"
	"github.com/meltemi-mesh/meltemi/control/operator/translate"
	"github.com/meltemi-mesh/meltemi/control/translate/envoyfilter"
	_ "github.com/meltemi-mesh/meltemi/filters"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// decode reads objects of a file.
func decode(t *testing.T, text []byte) (objects []runtime.Object) {
	t.Helper()
	scheme := runtime.NewScheme()
	require.NoError(t, clientgoscheme.AddToScheme(scheme))
	require.NoError(t, istio.AddToScheme(scheme))
	require.NoError(t, api.AddToScheme(scheme))
	require.NoError(t, dubbo.AddToScheme(scheme))
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	for doc := range bytes.SplitSeq(text, []byte("\n---\n")) {
		o, _, err := decoder.Decode(doc, nil, nil)
		require.NoError(t, err, string(doc))
		objects = append(objects, o)
	}
	return objects
}

// hosts are the inputs for all hosts that some objects tell of.
func hosts(objects []runtime.Object) map[string]*translate.Input {
	mesh := translate.Mesh{
		RootNamespace: "istio-system", Domain: "cluster.local",
		RDS: &ir.Destination{Host: "meltemi-operator.meltemi-system.svc.cluster.local", Port: 15010},
	}
	inputs := map[string]*translate.Input{}
	in := func(host string) *translate.Input {
		if inputs[host] == nil {
			inputs[host] = &translate.Input{Host: host, Gateways: map[string]*translate.Gateway{}, TargetPorts: map[string][]int32{
				"tcp-metaprotocol-dubbo-named": {7001}, "tcp-metaprotocol-dubbo-rolled": {7001, 7002},
			}}
		}
		return inputs[host]
	}
	for _, o := range objects {
		switch o := o.(type) {
		case *corev1.Service:
			in(translate.FullName(o.Name, o.Namespace, mesh.Domain)).Service = o
		case *istio.ServiceEntry:
			for _, h := range o.Spec.Hosts {
				in(h).Entries = append(in(h).Entries, o)
			}
		case *api.MetaRouter:
			h := translate.FullName(string(o.Spec.Hosts[0]), o.Namespace, mesh.Domain)
			in(h).Routers = append(in(h).Routers, o)
		case *istio.DestinationRule:
			if h := translate.FullName(o.Spec.Host, o.Namespace, mesh.Domain); !strings.HasPrefix(h, "*") {
				in(h).Rules = append(in(h).Rules, o)
			}
		case *corev1.ConfigMap:
			if _, err := mesh.Configure(o.Data["mesh"]); err != nil {
				panic(err)
			}
		}
	}
	for _, i := range inputs {
		i.Mesh = mesh
		for _, o := range objects {
			switch o := o.(type) {
			case *api.ApplicationProtocol:
				i.Protocols = append(i.Protocols, o)
			case *dubbo.DubboAuthorizationPolicy:
				i.Policies = append(i.Policies, o)
			case *istio.DestinationRule:
				h := translate.FullName(o.Spec.Host, o.Namespace, mesh.Domain)
				if domain, wild := strings.CutPrefix(h, "*"); wild && strings.HasSuffix(i.Host, domain) {
					i.Rules = append(i.Rules, o)
				}
			case *istio.Gateway:
				g := &translate.Gateway{Gateway: o}
				for _, other := range objects {
					if s, ok := other.(*corev1.Service); ok && len(o.Spec.Selector) > 0 && s.Spec.Selector["istio"] == o.Spec.Selector["istio"] {
						g.Services = append(g.Services, s)
					}
					if v, ok := other.(*istio.VirtualService); ok && slices.ContainsFunc(v.Spec.Gateways, func(n string) bool { return n == o.Name || n == o.Namespace+"/"+o.Name }) {
						g.VirtualServices = append(g.VirtualServices, v)
					}
					if beside, ok := other.(*istio.Gateway); ok && beside != o && beside.Spec.Selector["istio"] == o.Spec.Selector["istio"] {
						g.Beside = append(g.Beside, beside)
					}
				}
				i.Gateways[o.Namespace+"/"+o.Name] = g
			}
		}
		for _, other := range inputs {
			if other != i {
				i.Rivals = append(i.Rivals, other)
				i.Sharers = append(i.Sharers, other)
			}
		}
	}
	return inputs
}

// told is what a golden file has of outputs.
func told(t *testing.T, inputs map[string]*translate.Input) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, host := range slices.Sorted(maps.Keys(inputs)) {
		out := translate.Translate(inputs[host])
		fmt.Fprintf(&b, "# %s: governed %v, complete %v\n", host, out.Governed, out.Complete)
		if out.Unresolved {
			b.WriteString("# what servers have stays\n")
		}
		if out.Router != nil {
			fmt.Fprintf(&b, "# by %s/%s\n", out.Router.Namespace, out.Router.Name)
		}
		for _, f := range out.Faults {
			fmt.Fprintf(&b, "# %s: %s\n", f.Object, f.Error())
		}
		text, err := envoyfilter.YAML(out.Filters)
		require.NoError(t, err)
		b.Write(text)
		for _, rc := range out.Tables {
			text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(rc)
			require.NoError(t, err)
			text, err = yaml.JSONToYAML(text)
			require.NoError(t, err)
			fmt.Fprintf(&b, "---\n# served to %q\n%s", out.Readers, text)
		}
		for _, v := range out.VirtualServices {
			text, err := yaml.Marshal(v)
			require.NoError(t, err)
			b.WriteString("---\n")
			b.Write(text)
		}
	}
	return b.Bytes()
}

// TestGolden: objects → what is made of them, whatever their order.
func TestGolden(t *testing.T) {
	ins, err := filepath.Glob("testdata/*.in.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, ins)
	outs, err := filepath.Glob("testdata/*.out.yaml")
	require.NoError(t, err)
	for _, out := range outs {
		require.Contains(t, ins, strings.Replace(out, ".out.", ".in.", 1), "stale")
	}
	for _, in := range ins {
		t.Run(strings.TrimSuffix(filepath.Base(in), ".in.yaml"), func(t *testing.T) {
			text, err := os.ReadFile(in)
			require.NoError(t, err)
			objects := decode(t, text)
			got := told(t, hosts(objects))
			slices.Reverse(objects)
			require.Equal(t, string(got), string(told(t, hosts(objects))), "the order of objects counts")
			golden := strings.Replace(in, ".in.", ".out.", 1)
			if *update {
				require.NoError(t, os.WriteFile(golden, got, 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Equal(t, string(want), string(got))
		})
	}
}
