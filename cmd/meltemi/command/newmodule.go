package command

import (
	"bytes"
	"embed"
	"errors"
	"flag"
	"fmt"
	"go/build"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
)

const newCodecUsage = `usage: meltemi new-codec [FLAGS] NAME

Writes a Go module into the new folder NAME, to begin a codec of one's own with:
the codec of a toy protocol, its test with codectest, the shared object for Envoy
and the tool with this codec linked, and an Envoy configuration. All of it builds
and works; its README says how.

NAME is the protocol's, in lower-case letters and digits, and becomes that of a
Go package.

`

const newFilterUsage = `usage: meltemi new-filter [FLAGS] NAME

Writes a Go module into the new folder NAME, to begin a filter of one's own with:
an example of a filter, its test with filtertest, the shared object for Envoy and
the tool with this filter linked, an Envoy configuration, and a program that calls
through it. All of it builds and works; its README says how.

NAME is the filter's, in lower-case letters and digits, and becomes that of a Go
package.

`

// newFiles are templates whose names end in .tmpl.
//
//go:embed templates
var newFiles embed.FS

// newModule is what the templates are given.
type newModule struct {
	kind   string // "codec" or "filter"
	Name   string // of the protocol, or the filter
	Path   string // of the module
	Module string // Meltemi's own path
	Go     string // version
	// Direct and Indirect are the modules that it requires, with their versions.
	Direct, Indirect []string
	// Replace is the folder where Meltemi is, "" if a released version is required.
	Replace string
}

// newCodec writes the module of a codec.
func (e *env) newCodec(args []string) int { return e.newModule("codec", newCodecUsage, args) }

// newFilter writes that of a filter.
func (e *env) newFilter(args []string) int { return e.newModule("filter", newFilterUsage, args) }

func (e *env) newModule(kind, usage string, args []string) int {
	fs := flag.NewFlagSet("new-"+kind, flag.ContinueOnError)
	parent := fs.String("dir", ".", "`folder` in which that of the module is made; it must be there")
	path := fs.String("module", "", "the module's `path`; default: example.com/NAME")
	repository := fs.String("meltemi", "", "`folder` with Meltemi's repository; default: the one around the working directory, else a\nreleased version is required")
	names, status, ok := e.flags(fs, usage, args, 1, 1)
	if !ok {
		return status
	}
	m := newModule{kind: kind, Name: names[0], Module: module, Path: *path}
	if m.Path == "" {
		m.Path = "example.com/" + m.Name
	}
	if err := checkNames(kind, m.Name, m.Path); err != nil {
		return e.fail(statusUsage, "%v", err)
	}
	dir := filepath.Join(*parent, m.Name)
	if _, err := os.Lstat(dir); err == nil {
		return e.fail(statusFault, "%s is there already", dir)
	} else if !errors.Is(err, os.ErrNotExist) {
		return e.fail(statusFault, "%v", err)
	}
	sums, err := m.require(*repository, dir)
	if err != nil {
		return e.fail(statusFault, "%v", err)
	}
	files, err := m.files()
	if err != nil {
		return e.fail(statusFault, "%v", err)
	}
	files["go.sum"] = sums
	if err := writeModule(dir, files); err != nil {
		return e.fail(statusFault, "%v", err)
	}
	e.printf("%s: a module with the %s %q and all that it needs\n", dir, kind, m.Name)
	if m.Replace == "" {
		e.printf("go mod tidy there finds what it requires\n")
	}
	e.printf("%s says what is next\n", filepath.Join(dir, "README.md"))
	return statusOK
}

var (
	protocolNames = regexp.MustCompile(`^[a-z][a-z0-9]*$`)
	// Go takes paths without a dot in their first element for its own, if it has them.
	standardPaths = regexp.MustCompile(`^[a-z0-9]+(/[a-z0-9]+)*$`)
	modulePaths   = regexp.MustCompile(`^[A-Za-z0-9_~-][A-Za-z0-9._~-]*(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*$`)
)

// takenNames mean something to Go, or to meltemi decode.
var takenNames = []string{"main", "internal", "vendor", "testdata", "auto"}

// newKinds are what modules are written of: what a name is one of, and those that there are.
var newKinds = map[string]struct {
	called string
	linked func() []string
}{
	"codec":  {"a protocol", codecs.Names},
	"filter": {"a filter", filter.Names},
}

func checkNames(kind, name, path string) error {
	of := newKinds[kind]
	switch {
	case !protocolNames.MatchString(name) || len(name) > 40:
		return fmt.Errorf("%q is no name of %s: want lower-case letters and digits, a letter first, 40 at most", name, of.called)
	case name == "meltemi", kind == "filter" && name == "try":
		return fmt.Errorf("the module has a folder %q already, for a tool: choose another name", name)
	case token.IsKeyword(name) || slices.Contains(takenNames, name):
		return fmt.Errorf("%q is a word that means something else to Go or to this tool: choose another name", name)
	case slices.ContainsFunc(of.linked(), func(linked string) bool { return short(linked) == name }):
		return fmt.Errorf("there is a %s %q already", kind, name)
	case !modulePaths.MatchString(path):
		return fmt.Errorf("%q is no path of a module", path)
	case standardPaths.MatchString(path) && isStandard(path):
		return fmt.Errorf("%s is a package of Go's own: choose another path for the module", path)
	case path == module || strings.HasPrefix(path, module+"/"):
		return fmt.Errorf("%s is Meltemi's own path: choose another for the module", path)
	}
	return nil
}

// isStandard reports whether Go has a package of its own at path.
func isStandard(path string) bool {
	_, err := build.Default.Import(path, "", build.FindOnly)
	return err == nil
}

// require decides where the module gets Meltemi from, and returns its go.sum.
func (m *newModule) require(repository, dir string) (sums []byte, err error) {
	if repository == "" {
		repository = repositoryAround()
	}
	if repository == "" {
		return nil, m.requireRelease()
	}
	mod, err := os.ReadFile(filepath.Join(repository, "go.mod"))
	if err != nil {
		return nil, fmt.Errorf("%s is not Meltemi's repository: %w", repository, err)
	}
	if !isMeltemi(mod) {
		return nil, fmt.Errorf("%s is not Meltemi's repository: its go.mod is that of another module", repository)
	}
	if sums, err = os.ReadFile(filepath.Join(repository, "go.sum")); err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(mod)) {
		switch words := strings.Fields(line); {
		case len(words) == 2 && words[0] == "go":
			m.Go = words[1]
		case !strings.HasPrefix(line, "\t") || len(words) < 2: // not within require ( … )
		case words[0] == "google.golang.org/protobuf":
			m.Direct = append(m.Direct, words[0]+" "+words[1])
		default:
			m.Indirect = append(m.Indirect, words[0]+" "+words[1])
		}
	}
	slices.Sort(m.Indirect)
	m.Direct = append([]string{module + " v0.0.0"}, m.Direct...)
	if m.Replace, err = from(dir, repository); strings.ContainsAny(m.Replace, " \t\"'`(),[]{}") {
		m.Replace = strconv.Quote(m.Replace)
	}
	return sums, err
}

// requireRelease has the version required that this program is.
func (m *newModule) requireRelease() error {
	version := ""
	if info, ok := debug.ReadBuildInfo(); ok {
		version = info.Main.Version
		for _, d := range info.Deps {
			if d.Path == module && d.Replace == nil {
				version = d.Version
			} else if d.Path == module {
				version = "" // of a folder
			}
		}
	}
	if !strings.HasPrefix(version, "v") || strings.Contains(version, "+dirty") {
		return errors.New("this program is of no released version: say where Meltemi's repository is, with -meltemi")
	}
	m.Go = strings.TrimPrefix(runtime.Version(), "go")
	m.Direct = []string{module + " " + version}
	return nil
}

// repositoryAround is the folder above the working directory that has Meltemi's
// go.mod, "" if none has.
func repositoryAround() string {
	dir, err := os.Getwd()
	for err == nil {
		if mod, err := os.ReadFile(filepath.Join(dir, "go.mod")); err == nil && isMeltemi(mod) {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			break
		}
		dir = up
	}
	return ""
}

func isMeltemi(mod []byte) bool {
	return bytes.HasPrefix(mod, []byte("module "+module+"\n"))
}

// from is how go.mod in dir names a folder: relative if dir is below it.
func from(dir, folder string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if folder, err = filepath.Abs(folder); err != nil {
		return "", err
	}
	if rel, err := filepath.Rel(dir, folder); err == nil && filepath.Base(rel) == ".." {
		return rel, nil
	}
	return folder, nil
}

// files are the module's by their paths, without go.sum.
func (m *newModule) files() (map[string][]byte, error) {
	root := "templates/new" + m.kind
	files := map[string][]byte{}
	err := fs.WalkDir(newFiles, root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := newFiles.ReadFile(path)
		if err != nil {
			return err
		}
		// Not the usual delimiters, as Go's composite literals have those too.
		t, err := template.New(path).Delims("[[", "]]").Option("missingkey=error").Parse(string(text))
		if err != nil {
			return err
		}
		var b bytes.Buffer
		if err := t.Execute(&b, m); err != nil {
			return err
		}
		name := strings.TrimSuffix(strings.TrimPrefix(path, root+"/"), ".tmpl")
		files[strings.Replace(name, "NAME/", m.Name+"/", 1)] = b.Bytes()
		return nil
	})
	return files, err
}

// writeModule writes the files into dir, which it makes: all of them, or nothing.
func writeModule(dir string, files map[string][]byte) (err error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(dir) // it was made here
		}
	}()
	for name, b := range files {
		if b == nil {
			continue
		}
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, b, 0o644); err != nil {
			return err
		}
	}
	return nil
}
