// Package doctest holds the project's documents against its code: what they list is
// there and all of it, what they name exists, and their links lead somewhere.
package doctest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

const root = "../.."

// files are the repository's, by their slash-separated paths from its root: all but
// what is built, hidden or a test's data.
var files = sync.OnceValue(func() (all []string) {
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if p != root && (strings.HasPrefix(name, ".") || d.IsDir() && (name == "build" || name == "testdata" || name == "node_modules")) {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if !d.IsDir() {
			rel, err := filepath.Rel(root, p)
			if err != nil {
				return err
			}
			all = append(all, filepath.ToSlash(rel))
		}
		return nil
	})
	if err != nil {
		panic(err)
	}
	return all
})

// sources are the files that a document has to list: Go and C, but no tests.
func sources() (list []string) {
	for _, f := range files() {
		switch path.Ext(f) {
		case ".go", ".c", ".h":
			if !strings.HasSuffix(f, "_test.go") {
				list = append(list, f)
			}
		}
	}
	return list
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(file)))
	require.NoError(t, err)
	return string(b)
}

// section is the text below a heading, down to the next one of its level or a
// higher one.
func section(t *testing.T, text, heading string) string {
	t.Helper()
	_, below, found := strings.Cut("\n"+text, "\n"+heading+"\n")
	require.True(t, found, "there is no %q", heading)
	level := strings.Index(heading, " ")
	inCode := false
	var lines []string
	for line := range strings.SplitSeq(below, "\n") {
		if strings.HasPrefix(line, "```") {
			inCode = !inCode
		}
		marks := len(line) - len(strings.TrimLeft(line, "#"))
		if !inCode && marks > 0 && marks <= level && strings.HasPrefix(line[marks:], " ") {
			break
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

var (
	codeSpan = regexp.MustCompile("`([^`\n]+)`")
	fence    = regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$")
)

// spans are the code spans of a text, those of its blocks not included.
func spans(text string) (all []string) {
	for _, m := range codeSpan.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		all = append(all, m[1])
	}
	return all
}

// rows are the cells of a text's tables, without those of their heads.
func rows(text string) (all [][]string) {
	body := false
	for line := range strings.SplitSeq(text, "\n") {
		switch {
		case !strings.HasPrefix(line, "|"):
			body = false
		case strings.HasPrefix(line, "|---"):
			body = true
		case body:
			cells := strings.Split(strings.Trim(line, "|"), "|")
			for i, c := range cells {
				cells[i] = strings.TrimSpace(c)
			}
			all = append(all, cells)
		}
	}
	return all
}

// code is what the project's sources declare.
type code struct {
	// funcs are functions, methods as Type.Method, and the functions of C.
	funcs map[string]bool
	// fields are those of structs, as Type.field with the package's path before it.
	fields map[string][]string
	// consts are constants by the package's path and their type, in their order.
	consts map[string][]string
	// strings are all literals.
	strings []string
}

var cFunction = regexp.MustCompile(`(?m)^(?:static |MT_HOOK )*[a-z][\w ]*\*? ?\b(?:MT_ON\((\w+)\)|(\w+))\([^;{]*\) \{`)

// declared reads the sources of filter/ and envoy-build/.
var declared = sync.OnceValue(func() *code {
	c := &code{funcs: map[string]bool{}, fields: map[string][]string{}, consts: map[string][]string{}}
	for _, f := range sources() {
		dir := path.Dir(f)
		if !strings.HasPrefix(dir, "filter") && !strings.HasPrefix(dir, "envoy-build") && dir != "codecs" {
			continue
		}
		b, err := os.ReadFile(filepath.Join(root, f))
		if err != nil {
			panic(err)
		}
		if path.Ext(f) != ".go" {
			for _, m := range cFunction.FindAllStringSubmatch(string(b), -1) {
				c.funcs[m[1]+m[2]] = true
			}
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), f, b, 0)
		if err != nil {
			panic(err)
		}
		c.add(dir, parsed)
	}
	return c
})

func (c *code) add(dir string, f *ast.File) {
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			name := d.Name.Name
			if d.Recv == nil {
				c.funcs[name] = true
				c.funcs[f.Name.Name+"."+name] = true
				continue
			}
			if of := receiver(d.Recv.List[0].Type); of != "" {
				c.funcs[of+"."+name] = true
			}
		case *ast.GenDecl:
			c.declare(dir, d)
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
			c.strings = append(c.strings, strings.Trim(l.Value, "`\""))
		}
		return true
	})
}

func (c *code) declare(dir string, d *ast.GenDecl) {
	typ := ""
	for _, spec := range d.Specs {
		switch s := spec.(type) {
		case *ast.TypeSpec:
			switch t := s.Type.(type) {
			case *ast.InterfaceType:
				for _, m := range t.Methods.List {
					for _, n := range m.Names {
						c.funcs[s.Name.Name+"."+n.Name] = true
					}
				}
			case *ast.StructType:
				for _, m := range t.Fields.List {
					for _, n := range m.Names {
						key := dir + "." + s.Name.Name
						c.fields[key] = append(c.fields[key], n.Name)
					}
				}
			}
		case *ast.ValueSpec:
			if id, ok := s.Type.(*ast.Ident); ok {
				typ = id.Name
			} else if len(s.Values) > 0 {
				typ = ""
			}
			if d.Tok == token.CONST && typ != "" {
				for _, n := range s.Names {
					c.consts[dir+"."+typ] = append(c.consts[dir+"."+typ], n.Name)
				}
			}
		}
	}
}

func receiver(e ast.Expr) string {
	if p, ok := e.(*ast.StarExpr); ok {
		e = p.X
	}
	if id, ok := e.(*ast.Ident); ok {
		return id.Name
	}
	return ""
}

// literal reports whether the sources have a string of which s is a part.
func (c *code) literal(s string) bool {
	return slices.ContainsFunc(c.strings, func(l string) bool { return strings.Contains(l, s) })
}
