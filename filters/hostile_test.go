package filters_test

import (
	"encoding/json"
	"flag"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter/config"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	proxyv1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/v1alpha"
)

var odd = flag.Int("odd", 100, "how many odd configurations of each filter are tried")

// examples are the whole configurations of a filter's README.
func examples(t *testing.T, filter string) (all []*proxyv1alpha.MetaProtocolProxy) {
	text, err := os.ReadFile(filepath.Join(filter, "README.md"))
	require.NoError(t, err)
	for _, s := range snippet.FindAllStringSubmatch(string(text), -1) {
		if strings.HasPrefix(s[1], "stat_prefix:") {
			var v any
			require.NoError(t, yaml.Unmarshal([]byte(s[1]), &v))
			b, err := json.Marshal(v)
			require.NoError(t, err)
			m, err := config.Parse(b)
			require.NoError(t, err)
			all = append(all, m)
		}
	}
	return all
}

// TestOddConfigurations are what the documents show, with some of it changed by chance:
// each is refused, or serves; nothing panics or is left behind.
func TestOddConfigurations(t *testing.T) {
	for _, name := range folders(t) {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, 2))
			served := 0
			for i := range *odd {
				m := proto.Clone(examples(t, name)[0]).(*proxyv1alpha.MetaProtocolProxy)
				x := &mutator{rng: rng, share: 0.01 + 0.15*rng.Float64()*float64(i%3)}
				for _, f := range m.GetMetaProtocolFilters() {
					x.any(t, f.GetConfig())
				}
				for _, r := range m.GetRouteConfig().GetRoutes() {
					for _, c := range r.GetTypedPerFilterConfig() {
						x.any(t, c)
					}
				}
				b, err := proto.Marshal(m)
				require.NoError(t, err)
				if serves(t, b) {
					served++
				}
			}
			t.Logf("%d of %d serve", served, *odd)
			require.Positive(t, served)
		})
	}
}

// serves reports whether a configuration is accepted, and then has it see requests.
func serves(t *testing.T, b []byte) (accepted bool) {
	return t.Run("", func(t *testing.T) {
		h := filtertest.New(t)
		for _, name := range []string{"orders", "greeter"} {
			h.Cluster(name, "h1").Serve = func(s *filtertest.Server, in []byte) int {
				calls, rest := dubbotest.Parse(in)
				for _, c := range calls {
					s.Send(dubbotest.Response(c.ID, "served"))
				}
				return len(in) - len(rest)
			}
		}
		cfg, err := h.Load(string(b))
		if err != nil {
			require.NotContains(t, err.Error(), "has panicked")
			accepted = false
			return
		}
		accepted = true
		c := h.Dial(cfg)
		for i := range 4 {
			r := dubbotest.Request{ID: uint64(i), Attachments: [][2]string{{"tenant", "acme"}, {"Tenant", ""}, {"x-envoy-fault-delay-request", "5"}, {"interface", "a"}}}
			c.Send(r.Bytes())
		}
		h.Advance(50 * time.Millisecond)
		c.Close()
		h.Advance(time.Second)
		cfg.Destroy()
	}) && accepted
}

// mutator changes a share of the fields of messages.
type mutator struct {
	rng   *rand.Rand
	share float64
}

func (x *mutator) any(t *testing.T, a *anypb.Any) {
	if a == nil {
		return
	}
	m, err := a.UnmarshalNew()
	require.NoError(t, err)
	x.message(m.ProtoReflect(), 0)
	a.Value, err = proto.Marshal(m)
	require.NoError(t, err)
}

func (x *mutator) message(m protoreflect.Message, depth int) {
	fs := m.Descriptor().Fields()
	for i := range fs.Len() {
		f := fs.Get(i)
		switch {
		case x.rng.Float64() >= x.share:
			if m.Has(f) {
				x.within(m, f, depth)
			}
		case x.rng.IntN(4) == 0:
			m.Clear(f)
		case depth < 8:
			x.set(m, f, depth)
		}
	}
}

// within changes what a field has.
func (x *mutator) within(m protoreflect.Message, f protoreflect.FieldDescriptor, depth int) {
	switch {
	case f.IsMap():
		if f.MapValue().Message() != nil {
			m.Get(f).Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				x.message(v.Message(), depth+1)
				return true
			})
		}
	case f.IsList():
		for i, l := 0, m.Get(f).List(); i < l.Len() && f.Message() != nil; i++ {
			x.message(l.Get(i).Message(), depth+1)
		}
	case f.Message() != nil:
		x.message(m.Mutable(f).Message(), depth+1)
	}
}

func (x *mutator) set(m protoreflect.Message, f protoreflect.FieldDescriptor, depth int) {
	made := func(v protoreflect.Value) protoreflect.Value {
		x.message(v.Message(), depth+1)
		return v
	}
	switch {
	case f.IsMap():
		k, mm := x.scalar(f.MapKey()).MapKey(), m.Mutable(f).Map()
		if f.MapValue().Message() != nil {
			mm.Set(k, made(mm.NewValue()))
		} else {
			mm.Set(k, x.scalar(f.MapValue()))
		}
	case f.IsList():
		l := m.Mutable(f).List()
		for range 1 + x.rng.IntN(3) {
			if f.Message() != nil {
				l.Append(made(l.NewElement()))
			} else {
				l.Append(x.scalar(f))
			}
		}
	case f.Message() != nil:
		m.Set(f, made(m.NewField(f)))
	default:
		m.Set(f, x.scalar(f))
	}
}

var (
	oddTexts = []string{
		"", "a", "tenant", "TENANT", "method", ":path", ":method", ":x", "(a|b)*", "(", `\1`, `\9`, "%REQ(tenant)%", "%REQ(:PATH)%", "%", "\x00", "\n", "é", "10.0.0.2",
		"::1", "::ffff:1.2.3.4", "meltemi", "orders", strings.Repeat("x", 300), strings.Repeat("(a?){50}", 40), strings.Repeat("y", 70_000),
	}
	oddNumbers = []int64{0, 0, 1, 1, 2, 3, 5, 20, 32, 33, 64, 100, 128, 129, 1000, 65535, 65536, 1 << 20, 1 << 30, math.MaxInt32, math.MaxUint32, math.MaxInt64, -1, -2, math.MinInt32, math.MinInt64, 315576000000, 999999999, 1000000000}
	oddFloats  = []float64{0, 1, 50, 100, 1000, -1, math.NaN(), math.Inf(1), math.Inf(-1), 1e-300, 1e300}
)

func (x *mutator) scalar(f protoreflect.FieldDescriptor) protoreflect.Value {
	n := oddNumbers[x.rng.IntN(len(oddNumbers))]
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(n&1 == 1)
	case protoreflect.EnumKind:
		if x.rng.IntN(4) > 0 {
			n = int64(f.Enum().Values().Get(x.rng.IntN(f.Enum().Values().Len())).Number())
		}
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(n))
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(oddTexts[x.rng.IntN(len(oddTexts))])
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(oddTexts[x.rng.IntN(len(oddTexts))]))
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(float32(oddFloats[x.rng.IntN(len(oddFloats))]))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(oddFloats[x.rng.IntN(len(oddFloats))])
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(int32(n))
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(uint32(n))
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(uint64(n))
	default:
		return protoreflect.ValueOfInt64(n)
	}
}
