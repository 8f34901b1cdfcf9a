// Command protodeps writes the .proto files that Meltemi's own import, directly
// or not: protodeps OURS OUT. Envoy's and validate come from their
// modules' sources; udpa's, xds's and google/api's, whose modules have generated code
// only, are printed from the descriptors linked into this program.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	_ "github.com/cncf/xds/go/udpa/annotations"
	_ "github.com/cncf/xds/go/xds/core/v3"
	_ "github.com/cncf/xds/go/xds/type/matcher/v3"
	"github.com/jhump/protoreflect/v2/protoprint"
	_ "google.golang.org/genproto/googleapis/api/expr/v1alpha1"
	"google.golang.org/protobuf/reflect/protoregistry"
)

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "protodeps:", err)
		os.Exit(1)
	}
}

// sources are the modules that carry .proto files, and where.
var sources = []struct{ module, dir string }{
	{"github.com/envoyproxy/envoy@v1.39.0", "api"},
	{"github.com/envoyproxy/protoc-gen-validate@v1.3.3", "."},
}

var importLine = regexp.MustCompile(`(?m)^import (?:public |weak )?"(.*?)";`)

// run lays out in out what the protos below ours import, directly or not.
func run(ours, out string) error {
	var roots []string
	for _, s := range sources {
		dir, err := download(s.module)
		if err != nil {
			return err
		}
		roots = append(roots, filepath.Join(dir, s.dir))
	}
	var todo []string
	err := filepath.WalkDir(ours, func(p string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(p) != ".proto" {
			return err
		}
		b, err := os.ReadFile(p)
		todo = append(todo, imports(b)...)
		return err
	})
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for len(todo) > 0 {
		path := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		// google/protobuf comes with buf, aeraki is ours.
		if seen[path] || strings.HasPrefix(path, "google/protobuf/") || strings.HasPrefix(path, "aeraki/") {
			continue
		}
		seen[path] = true
		b, err := source(roots, path)
		if err != nil {
			return err
		}
		todo = append(todo, imports(b)...)
		if err := write(filepath.Join(out, path), b); err != nil {
			return err
		}
	}
	return nil
}

func imports(b []byte) (paths []string) {
	for _, m := range importLine.FindAllSubmatch(b, -1) {
		paths = append(paths, string(m[1]))
	}
	return paths
}

func source(roots []string, path string) ([]byte, error) {
	for _, r := range roots {
		if b, err := os.ReadFile(filepath.Join(r, path)); err == nil {
			return b, nil
		}
	}
	fd, err := protoregistry.GlobalFiles.FindFileByPath(path)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = (&protoprint.Printer{}).PrintProtoFile(fd, &b)
	return b.Bytes(), err
}

func download(mod string) (dir string, err error) {
	cmd := exec.Command("go", "mod", "download", "-json", mod)
	cmd.Stderr = os.Stderr
	b, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go mod download %s: %w", mod, err)
	}
	var info struct{ Dir string }
	err = json.Unmarshal(b, &info)
	return info.Dir, err
}

func write(path string, b []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o644)
}
