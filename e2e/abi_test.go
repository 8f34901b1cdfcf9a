package e2e

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// envoySources are the versions of Envoy whose declarations of the golang network filter are read,
// each with the sum of its module: the first that has it, the one of the change of its functions for
// upstream connections, and the newest of which there is a module.
var envoySources = map[string]string{
	"v1.27.0": "h1:P+rysZQRISbf9Yx+dKqeSHRkXojD0+9/7k368bbxbgQ=",
	"v1.31.0": "h1:NsTo+medzu0bMffXAjl+zKaViLOShKuIZWQnKKYq0/4=",
	"v1.36.2": "h1:87+0C7ZCbGJdDfD9sVsvqGLVvGk2OIKuxzzm9oNpvDM=",
	"v1.39.0": "h1:XmcOmCafBtgAcm2FkdYvHTFHepTuPx/17CAVrOr/djM=",
}

// envoySource is the folder of a version of Envoy's module, in Go's cache of them.
func envoySource(t *testing.T, version, sum string) string {
	t.Helper()
	cmd := exec.Command("go", "mod", "download", "-json", "github.com/envoyproxy/envoy@"+version)
	cmd.Dir = t.TempDir() // of no module
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	out, err := cmd.Output()
	require.NoError(t, err, "%s", out)
	var m struct{ Dir, Sum string }
	require.NoError(t, json.Unmarshal(out, &m))
	require.Equal(t, sum, m.Sum)
	return m.Dir
}

// TestDeclarationsAreThoseOfEnvoysGolangFilter: what the library exports to Envoy's golang network
// filter and takes from it, and what the imitated host of that filter has, is what Envoy declares.
func TestDeclarationsAreThoseOfEnvoysGolangFilter(t *testing.T) {
	t.Parallel()
	root := peers.Root()
	host := functions(t, filepath.Join(root, "e2e/contribhost/abi.h"))
	binding := filepath.Join(root, "envoy-build/golang/exports")
	imports := functions(t, filepath.Join(binding, "abi.h"))
	exports := functions(t, filepath.Join(binding, "hooks.c"))
	ours := constants(t, filepath.Join(binding, "exports.go"))
	for name, v := range constants(t, filepath.Join(root, "envoy-build/golang/golang.go")) {
		ours[name] = v
	}
	for name, v := range enumerators(read(t, filepath.Join(binding, "hooks.c"))) {
		ours[name] = v
	}

	for version, sum := range envoySources {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			dir := envoySource(t, version, sum)
			golang := filepath.Join(dir, "contrib/golang")
			// What a library calls.
			offered := functions(t, filepath.Join(golang, "common/go/api/api.h"))
			defined := functions(t, filepath.Join(golang, "filters/network/source/cgo.cc"))
			require.NotEmpty(t, defined)
			for name, f := range defined {
				require.Equal(t, offered[name], f, "Envoy's own: %s", name)
			}
			// What Envoy calls.
			called := loaded(t, filepath.Join(golang, "common/dso"))
			require.Len(t, called, 10)

			if version == "v1.27.0" {
				// Libraries could not log yet: the imports are weak, so that it loads.
				offered["envoyGoFilterLog"], offered["envoyGoFilterLogLevel"] = imports["envoyGoFilterLog"], imports["envoyGoFilterLogLevel"]
				// Connections had no id yet: of three functions the last argument is missing. The
				// library makes no such connections.
				const connect, ready, failure = "envoyGoFilterUpstreamConnect", "envoyGoFilterOnUpstreamConnectionReady", "envoyGoFilterOnUpstreamConnectionFailure"
				require.Equal(t, "void*(void*,void*)", offered[connect])
				require.Equal(t, "void(void*)", called[ready])
				require.Equal(t, "void(void*,i64)", called[failure])
				require.NotContains(t, imports, connect)
				called[ready], called[failure] = "void(void*,u64)", "void(void*,i64,u64)"
			} else {
				for name, f := range host {
					want, ok := offered[name]
					if !ok {
						want = called[name]
					}
					require.Equal(t, want, f, "e2e/contribhost: %s", name)
				}
				for name := range defined {
					require.Contains(t, host, name)
				}
			}
			require.Equal(t, called, exports)
			require.NotEmpty(t, imports)
			for name, f := range imports {
				require.Equal(t, offered[name], f, "%s", name)
			}

			// What Envoy shows of its buffers and strings.
			for _, f := range []string{"golang.cc", "upstream.cc"} {
				require.Regexp(t, `(?s)unsigned long long\* slices = new unsigned long long\[2 \* slice_num\];.*`+
					`slices\[2 \* i\] = reinterpret_cast<unsigned long long>\(s\.mem_\);\s*slices\[2 \* i \+ 1\] = s\.len_;`,
					read(t, filepath.Join(golang, "filters/network/source", f)))
			}
			text := regexp.MustCompile(`typedef struct \{\s*const char\s*\*\s*p;\s*ptrdiff_t n;\s*\} (_?GoString_?);`)
			require.Regexp(t, text, bare(read(t, filepath.Join(golang, "common/dso/libgolang.h"))))
			require.Regexp(t, text, read(t, filepath.Join(root, "e2e/contribhost/abi.h")))
			require.Regexp(t, `typedef struct \{\s*char\s*\*\s*ptr;\s*uint64_t length;\s*\} mg_slice;`, read(t, filepath.Join(binding, "hooks.h")))
			require.Regexp(t, `typedef struct \{\s*const char\s*\*\s*p;\s*intptr_t n;\s*\} mg_string;`, read(t, filepath.Join(binding, "exports.go")))

			// Numbers.
			status := enumerators(read(t, filepath.Join(golang, "common/go/api/api.h")))
			have := enumerators(read(t, filepath.Join(root, "e2e/contribhost/abi.h")))
			for name := range status {
				if strings.HasPrefix(name, "CAPI") && version == "v1.27.0" {
					require.Equal(t, status[name], have[name], "%s", name)
				}
			}
			for name, v := range have {
				if w, ok := status[name]; ok {
					require.Equal(t, w, v, "%s", name)
				}
			}
			network := enumerators(read(t, filepath.Join(dir, "envoy/network/connection.h")) +
				read(t, filepath.Join(dir, "envoy/network/filter.h")) + read(t, filepath.Join(dir, "envoy/common/conn_pool.h")))
			official := constants(t, filepath.Join(golang, "common/go/api/type.go"))
			for _, name := range []string{
				"RemoteClose", "LocalClose", "Connected", "ConnectedZeroRtt", "FlushWrite", "NoFlush", "FlushWriteAndDelay",
				"Overflow", "LocalConnectionFailure", "RemoteConnectionFailure", "Timeout",
			} {
				require.Contains(t, network, name)
				require.Equal(t, network[name], official[name], "%s", name)
			}
			require.Equal(t, network["Continue"], official["NetworkFilterContinue"])
			require.Equal(t, network["StopIteration"], official["NetworkFilterStopIteration"])
			info := enumerators(read(t, filepath.Join(golang, "filters/network/source/cgo.cc")))
			for name, want := range map[string]int64{
				"CONTINUE": network["Continue"], "STOP": network["StopIteration"],
				"REMOTE_CLOSE": network["RemoteClose"], "LOCAL_CLOSE": network["LocalClose"],
				"FlushWrite": network["FlushWrite"], "NoFlush": network["NoFlush"],
				"infoLocal": info["LocalAddr"], "infoRemote": info["RemoteAddr"],
			} {
				require.Contains(t, ours, name)
				require.Equal(t, want, ours[name], "%s", name)
			}
			for _, f := range []string{"connection.h", "upstream.h"} {
				for name, v := range enumerators(read(t, filepath.Join(root, "e2e/contribhost", f))) {
					if w, ok := network[name]; ok {
						require.Equal(t, w, v, "e2e/contribhost/%s: %s", f, name)
					}
				}
			}
		})
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(b)
}

var (
	blockComments = regexp.MustCompile(`(?s)/\*.*?\*/`)
	lineComments  = regexp.MustCompile(`//[^\n]*`)
	blanks        = regexp.MustCompile(`\s+`)
	// A declaration or a definition of C.
	function = regexp.MustCompile(`([\w ]+?[ *]+)(envoyGo(?:Filter)?[A-Z]\w*)\(([^()]*)\)\s*[;{]`)
	// A member of NetworkFilterDsoImpl: a pointer to a function.
	pointer = regexp.MustCompile(`([\w ]+?[ *]+)\(\*(\w+_)\)\(([^()]*)\) = \{nullptr\};`)
	lookup  = regexp.MustCompile(`dlsymInternal<decltype\((\w+)\)>\(\s*(\w+), handler_, dso_name,\s*"(\w+)"\)`)
	enum    = regexp.MustCompile(`enum (?:class )?\w*\s*\{([^}]*)\}`)
)

// bare is C without comments and line breaks.
func bare(text string) string {
	text = lineComments.ReplaceAllString(blockComments.ReplaceAllString(text, ""), "")
	return blanks.ReplaceAllString(text, " ")
}

// functions are those of a file that are between Envoy and a library, with their types.
func functions(t *testing.T, path string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, m := range function.FindAllStringSubmatch(bare(read(t, path)), -1) {
		if strings.Contains(m[2], "Http") {
			continue // of other filters
		}
		all[m[2]] = signature(m[1], m[3])
	}
	require.NotEmpty(t, all)
	return all
}

// loaded are the functions that Envoy looks for in a library, with the types by which it calls them.
func loaded(t *testing.T, dso string) map[string]string {
	t.Helper()
	_, header, ok := strings.Cut(bare(read(t, filepath.Join(dso, "dso.h"))), "class NetworkFilterDsoImpl")
	require.True(t, ok)
	header, _, _ = strings.Cut(header, "class ")
	types := map[string]string{}
	for _, m := range pointer.FindAllStringSubmatch(header, -1) {
		types[m[2]] = signature(m[1], m[3])
	}
	_, source, ok := strings.Cut(bare(read(t, filepath.Join(dso, "dso.cc"))), "NetworkFilterDsoImpl::NetworkFilterDsoImpl(")
	require.True(t, ok)
	source, _, _ = strings.Cut(source, "NetworkFilterDsoImpl::")
	all := map[string]string{}
	for _, m := range lookup.FindAllStringSubmatch(source, -1) {
		require.Equal(t, m[1], m[2])
		require.Contains(t, types, m[1])
		all[m[3]] = types[m[1]]
	}
	return all
}

// cTypes are the types that are the same to a caller.
var cTypes = map[string]string{
	"GoUint64": "u64", "uint64_t": "u64", "unsigned long long": "u64",
	"GoInt": "i64", "int64_t": "i64", "long long": "i64",
	"uint32_t": "u32", "int": "i32", "CAPIStatus": "i32", "void*": "void*", "void": "void",
}

func signature(result, args string) string {
	kind := func(s string) string {
		s = strings.TrimSpace(strings.ReplaceAll(strings.ReplaceAll(s, " *", "*"), "* ", "*"))
		for _, word := range []string{"extern ", "static ", "MG_WEAK ", "MG_HOOK ", "\"C\" "} {
			s = strings.TrimPrefix(s, word)
		}
		if k, ok := cTypes[s]; ok {
			return k
		}
		return "?" + s
	}
	var list []string
	for arg := range strings.SplitSeq(args, ",") {
		arg = strings.TrimSpace(arg)
		if arg == "" || arg == "void" {
			continue
		}
		// Without its name.
		i := strings.LastIndexAny(arg, " *")
		list = append(list, kind(arg[:i+1]))
	}
	return fmt.Sprintf("%s(%s)", kind(result), strings.Join(list, ","))
}

// enumerators are all of a file of C.
func enumerators(text string) map[string]int64 {
	all := map[string]int64{}
	for _, m := range enum.FindAllStringSubmatch(bare(text), -1) {
		next := int64(0)
		for entry := range strings.SplitSeq(m[1], ",") {
			name, value, given := strings.Cut(strings.TrimSpace(entry), "=")
			if name = strings.TrimSpace(name); name == "" {
				continue
			}
			if given {
				v, err := strconv.ParseInt(strings.TrimSpace(value), 0, 64)
				if err != nil {
					continue // of other things
				}
				next = v
			}
			all[name] = next
			next++
		}
	}
	return all
}

// constants are the integers of a file of Go.
func constants(t *testing.T, path string) map[string]int64 {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
	require.NoError(t, err)
	all := map[string]int64{}
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST {
			continue
		}
		for _, s := range g.Specs {
			s := s.(*ast.ValueSpec)
			for i, name := range s.Names {
				if i >= len(s.Values) {
					continue
				}
				tv, err := types.Eval(token.NewFileSet(), nil, token.NoPos, types.ExprString(s.Values[i]))
				if err == nil && tv.Value != nil && tv.Value.Kind() == constant.Int {
					all[name.Name], _ = constant.Int64Val(tv.Value)
				}
			}
		}
	}
	return all
}
