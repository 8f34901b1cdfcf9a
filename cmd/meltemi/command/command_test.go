package command

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	_ "github.com/meltemi-mesh/meltemi/codecs/brpc"
	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	_ "github.com/meltemi-mesh/meltemi/codecs/thrift"
	_ "github.com/meltemi-mesh/meltemi/codecs/trpc"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// odd has frames of one byte. Some bytes are trouble.
type odd struct{}

func init() {
	simple := func(*anypb.Any, codecs.Limits) (codecs.Codec, error) { return odd{}, nil }
	codecs.Register("test.odd", simple)
	codecs.Register("a.twin", simple)
	codecs.Register("b.twin", simple)
	codecs.Register("test.asked", func(*anypb.Any, codecs.Limits) (codecs.Codec, error) { return asked{}, nil })
	codecs.Register("test.picky", func(*anypb.Any, codecs.Limits) (codecs.Codec, error) { return nil, errors.New("config: required") })
}

// asked has answers that depend on their requests.
type asked struct{ odd }

func (asked) NewDecoder(codecs.Direction) codecs.Decoder { return asked{} }

func (asked) DecodeAnswer(b []byte, m, _ *codecs.Metadata) (int, error) { return odd{}.Decode(b, m) }

func (odd) Traits() codecs.Traits {
	return codecs.Traits{Correlation: codecs.InOrder, HiddenOneway: true}
}
func (odd) NewDecoder(codecs.Direction) codecs.Decoder { return odd{} }

func (odd) Encode(dst []byte, m *codecs.Metadata, _ *codecs.Mutation) ([]byte, error) {
	return append(dst, m.Raw...), nil
}

func (odd) EncodeError(dst []byte, _ *codecs.Metadata, _ *codecs.LocalError) ([]byte, error) {
	return dst, nil
}

func (odd) Decode(b []byte, m *codecs.Metadata) (int, error) {
	switch b[0] {
	case 'p':
		panic("no idea")
	case '0':
		return 0, nil
	case 'e':
		return 0, errors.New("an e")
	case 'f':
		return 0, fmt.Errorf("wrapped: %w", &codecs.ProtocolError{Offset: 100, Reason: "far away"})
	case 's':
		m.Type, m.StreamID, m.Variant = codecs.StreamData, 9, 2
	case 'm':
		m.Malformed = "an m"
	case 'b':
		m.Put([]byte("a name"), []byte{0xff, 'x'})
		m.Put([]byte{0xfe}, nil)
		m.SetOperation([]byte("esc\x1b"), nil)
	}
	m.Raw, m.HeaderSize = b[:1], 1
	return 1, nil
}

func captured(protocol, file string) string {
	return filepath.Join("../../../codecs", protocol, "testdata/captures", file)
}

// capture is the standard input of a test: a capture, cut or spoilt.
func capture(t *testing.T, file string, change func(b []byte) []byte) []byte {
	t.Helper()
	b, err := os.ReadFile(captured("dubbo", file))
	require.NoError(t, err)
	return change(b)
}

const thriftProxy = `
name: thrift
typed_config:
  "@type": type.googleapis.com/envoy.extensions.filters.network.thrift_proxy.v3.ThriftProxy
  stat_prefix: t
  route_config: {routes: [{match: {method_name: ""}, route: {cluster: a}}]}
`

func TestOutput(t *testing.T) {
	cut := func(b []byte) []byte { return b[:300] }
	wrongMagic := func(b []byte) []byte { b[213] = 0; return b }
	tooLarge := func(b []byte) []byte {
		const size = 17 << 20
		first := append(bytes.Clone(b[:12]), 1, 0x10, 0, 0) // as many bytes of body
		return slices.Concat(first, make([]byte, size), b)
	}
	tooLargeAndCut := func(b []byte) []byte { b[212+12] = 0xff; return b }
	stale, err := filepath.Glob("testdata/*.golden")
	require.NoError(t, err)
	for name, tc := range map[string]struct {
		args  string
		stdin []byte
	}{
		"requests":                 {args: "decode dubbo OF/dubbo/java-hello.c2s.bin"},
		"answers":                  {args: "decode aeraki.meta_protocol.codec.dubbo OF/dubbo/go-fail.s2c.bin"},
		"heartbeats with hex":      {args: "decode -x dubbo OF/dubbo/go-heartbeat-default-conn2.c2s.bin"},
		"JSON":                     {args: "decode -json dubbo OF/dubbo/java-group-version.c2s.bin"},
		"JSON with hex":            {args: "decode dubbo OF/dubbo/go-heartbeat-default-conn2.s2c.bin -json -x"},
		"auto":                     {args: "decode auto OF/dubbo/java-nullarg.c2s.bin"},
		"Thrift":                   {args: "decode thrift OF/thrift/kitex-ttheader-pool-conn4.c2s.bin"},
		"Thrift of any form":       {args: "decode auto OF/thrift/py-buffered-binary-nonstrict.c2s.bin"},
		"bRPC":                     {args: "decode auto OF/brpc/java-kv-attach.c2s.bin"},
		"tRPC":                     {args: "decode auto OF/trpc/stream-chat.c2s.bin"},
		"answers of tRPC":          {args: "decode trpc OF/trpc/fail.s2c.bin"},
		"auto knows nothing":       {args: "decode auto -", stdin: []byte("GET / HTTP/1.1\r\n\r\n")},
		"auto for answers":         {args: "decode auto OF/dubbo/java-nullarg.s2c.bin"},
		"direction":                {args: "decode -d s2c odd -", stdin: []byte("x")},
		"no such direction":        {args: "decode -d up odd -"},
		"cut":                      {args: "decode dubbo -", stdin: capture(t, "java-hello.c2s.bin", cut)},
		"wrong magic":              {args: "decode dubbo -", stdin: capture(t, "java-hello.c2s.bin", wrongMagic)},
		"too large":                {args: "decode dubbo -", stdin: capture(t, "java-hello.c2s.bin", tooLarge)},
		"too large and cut":        {args: "decode dubbo -", stdin: capture(t, "java-hello.c2s.bin", tooLargeAndCut)},
		"nothing":                  {args: "decode dubbo -"},
		"no such file":             {args: "decode dubbo nowhere"},
		"no file":                  {args: "decode dubbo"},
		"unknown flag":             {args: "decode -y dubbo -"},
		"unknown protocol":         {args: "decode unknown -"},
		"ambiguous":                {args: "decode twin -"},
		"needs options":            {args: "decode picky -"},
		"codec without length":     {args: "decode odd -", stdin: []byte("x0")},
		"error without an offset":  {args: "decode odd -", stdin: []byte("xe")},
		"fault behind the end":     {args: "decode odd -", stdin: []byte("xf")},
		"answers without requests": {args: "decode -d s2c asked -", stdin: []byte("s")},
		"odd frames":               {args: "decode odd -", stdin: []byte("smb")},
		"odd frames as JSON":       {args: "decode odd - -json", stdin: []byte("smb")},
		"EnvoyFilters by flags":    {args: "envoyfilter -host greeter.demo.svc.cluster.local -protocol dubbo -port 20880:20881 -address 10.96.0.50 -server app=greeter -clients app=web,tier=front -gateway istio-system/istio=ingressgateway:31400:20880 -delivery LISTENER"},
		"EnvoyFilters of nothing":  {args: "envoyfilter"},
		"file and flags":           {args: "envoyfilter -headless x.yaml"},
		"EnvoyFilters refused":     {args: "envoyfilter -", stdin: []byte("host: x.y.svc.cluster.local\nport: 1\n")},
		"flags refused":            {args: "envoyfilter -host x.y.svc.cluster.local -port 70000"},
		"no port":                  {args: "envoyfilter -port a:b"},
		"no label":                 {args: "envoyfilter -server greeter"},
		"what pods need":           {args: "envoyfilter -pods"},
		"help envoyfilter":         {args: "help envoyfilter"},
		"check":                    {args: "check ../../../examples/dubbo/envoy.yaml"},
		"check finds faults":       {args: "check ../../../control/check/testdata/message.yaml"},
		"check finds nothing":      {args: "check -", stdin: []byte("a: b\n")},
		"check of nowhere":         {args: "check nowhere"},
		"convert":                  {args: "convert ../../../control/convert/testdata/thrift-alone.in.yaml -partial"},
		"convert not all":          {args: "convert ../../../control/convert/testdata/thrift-alone.in.yaml"},
		"convert for golang":       {args: "convert -host golang -library /lib/x.so -", stdin: []byte(thriftProxy)},
		"convert nothing":          {args: "convert -", stdin: []byte("a: b\n")},
		"convert of nowhere":       {args: "convert nowhere"},
		"convert for nobody":       {args: "convert -host nobody -"},
		"convert for a path":       {args: "convert -library /lib/x.so -"},
		"convert what is no YAML":  {args: "convert -", stdin: []byte("a: [\n")},
		"help convert":             {args: "help convert"},
		"help check":               {args: "help check"},
		"routes of nowhere":        {args: "routes -address unix:/nowhere"},
		"routes without address":   {args: "routes"},
		"help routes":              {args: "help routes"},
		"logs of nowhere":          {args: "logs -address unix:/nowhere reopen"},
		"logs without address":     {args: "logs reopen"},
		"logs without a verb":      {args: "logs"},
		"logs with another verb":   {args: "logs rotate"},
		"help logs":                {args: "help logs"},
		"status of nowhere":        {args: "status -operator nowhere"},
		"status as YAML":           {args: "status -o yaml"},
		"help status":              {args: "help status"},
		"help new-codec":           {args: "help new-codec"},
		"help new-filter":          {args: "help new-filter"},
		"codecs":                   {args: "codecs"},
		"too much":                 {args: "codecs dubbo"},
		"help":                     {args: "help"},
		"help decode":              {args: "help decode"},
		"unknown command":          {args: "unknown"},
		"help for what is not":     {args: "help unknown"},
		"no command":               {args: ""},
	} {
		file := filepath.Join("testdata", strings.ReplaceAll(name, " ", "_")+".golden")
		stale = slices.DeleteFunc(stale, func(f string) bool { return f == file })
		t.Run(name, func(t *testing.T) {
			args := strings.Fields(tc.args)
			for i, arg := range args {
				if rest, ok := strings.CutPrefix(arg, "OF/"); ok {
					protocol, file, _ := strings.Cut(rest, "/")
					args[i] = captured(protocol, file)
				}
			}
			var stdout, stderr bytes.Buffer
			status := Main(args, bytes.NewReader(tc.stdin), &stdout, &stderr)
			golden(t, strings.ReplaceAll(name, " ", "_"), outcome(status, &stdout, &stderr))
		})
	}
	require.Empty(t, stale, "no test has these")
}

// outcome is what a command line has brought.
func outcome(status int, stdout, stderr fmt.Stringer) string {
	return fmt.Sprintf("status %d\n--- stdout\n%s--- stderr\n%s", status, stdout, stderr)
}

// golden compares with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".golden")
	if *update {
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, []byte(got), 0o600))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), got)
}

// TestTheTrafficPage has whole RouteConfigurations, whole configurations of the filter,
// and descriptions of services.
func TestTheTrafficPage(t *testing.T) {
	page, err := os.ReadFile("../../../docs/traffic.md")
	require.NoError(t, err)
	blocks := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$").FindAllSubmatch(page, -1)
	require.Len(t, blocks, bytes.Count(page, []byte("```yaml")))
	require.NotEmpty(t, blocks)
	for _, b := range blocks {
		config := b[1]
		switch {
		case bytes.HasPrefix(config, []byte("host: ")), bytes.HasPrefix(config, []byte("stat_prefix: ")):
		case regexp.MustCompile("(?m)^routes:").Match(config):
			config = append([]byte(`
stat_prefix: test
protocol: {name: dubbo, codec: {name: aeraki.meta_protocol.codec.dubbo}}
traffic_direction: INBOUND
route_config:
`), regexp.MustCompile("(?m)^").ReplaceAll(config, []byte("  "))...)
		default: // what stands beside them, such as a server's answer: the e2e suite runs it
			continue
		}
		var stdout, stderr bytes.Buffer
		require.Zero(t, Main([]string{"check", "-"}, bytes.NewReader(config), &stdout, &stderr), "%s%s%s", &stdout, &stderr, b[1])
	}
}

// TestTheGuideOfIstio says what check finds in what envoyfilter has made of its service:
// the mesh suite follows it, too, and is the last to notice.
func TestTheGuideOfIstio(t *testing.T) {
	page, err := os.ReadFile("../../../docs/istio.md")
	require.NoError(t, err)
	description := regexp.MustCompile("(?ms)^cat > greeter.yaml <<END\n(.*?)^END$").FindSubmatch(page)
	said := regexp.MustCompile("(?ms)^-: Kubernetes objects.*?(?:^```$)").Find(page)
	require.NotNil(t, description)
	require.NotNil(t, said)
	service := bytes.Replace(description[1], []byte("$address"), []byte("10.96.0.10"), 1)
	var filters, found, stderr bytes.Buffer
	require.Zero(t, Main([]string{"envoyfilter", "-"}, bytes.NewReader(service), &filters, &stderr), &stderr)
	require.Zero(t, Main([]string{"check", "-"}, &filters, &found, &stderr), &stderr)
	require.Equal(t, string(bytes.TrimSuffix(said, []byte("```"))), found.String())
}

func TestAPanicOfTheCodecIsLocated(t *testing.T) {
	var stdout, stderr bytes.Buffer
	require.Equal(t, statusFault, Main([]string{"decode", "odd", "-"}, strings.NewReader("xxp"), &stdout, &stderr))
	require.Contains(t, stdout.String(), "1: request, 1 bytes")
	require.Contains(t, stderr.String(), "the codec has panicked on the frame at offset 2: no idea")
	require.Contains(t, stderr.String(), "command_test.go", "the stack")
}

func TestVersion(t *testing.T) {
	var stdout, stderr bytes.Buffer
	require.Equal(t, statusOK, Main([]string{"version"}, nil, &stdout, &stderr))
	require.Contains(t, stdout.String(), module)
	require.Contains(t, stdout.String(), "go1.")
	require.Empty(t, stderr.String())
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left") }

func TestOutputThatCannotBeWrittenIsAFault(t *testing.T) {
	var stderr bytes.Buffer
	long := strings.NewReader(strings.Repeat("x", 10000))
	for _, stdin := range []io.Reader{strings.NewReader("x"), long} {
		require.Equal(t, statusFault, Main([]string{"decode", "odd", "-"}, stdin, full{}, &stderr))
		require.Equal(t, "meltemi: no space left\n", stderr.String())
		stderr.Reset()
	}
}
