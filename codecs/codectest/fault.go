package codectest

import (
	"encoding/hex"
	"fmt"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
)

// fault is something that is wrong.
type fault struct {
	kind  string // what it has in common with others of its cause
	where string // which message, and what was being done with it
	text  string
	shown []shown
}

// shown are bytes that show a fault.
type shown struct {
	title string
	bytes []byte
}

func (f fault) size() (n int) {
	for _, s := range f.shown {
		n += len(s.bytes)
	}
	return n
}

func (f fault) String() string {
	var b strings.Builder
	if f.where != "" {
		b.WriteString(f.where + ": ")
	}
	b.WriteString(strings.TrimSuffix(f.text, "\n") + "\n")
	for _, s := range f.shown {
		if s.title != "" {
			b.WriteString(s.title + "\n")
		}
		b.WriteString(dump(s.bytes))
	}
	return b.String()
}

// particular is what differs in texts on one fault of several messages.
var particular = regexp.MustCompile(`"(\\.|[^"\\])*"|\d+`)

// kindOf is the first line of what is said of a fault, with that of its panicSite,
// and without what is particular to one message.
func kindOf(text string) string {
	line, rest, _ := strings.Cut(text, "\n")
	if strings.HasPrefix(rest, siteIndent) {
		site, _, _ := strings.Cut(rest, "\n")
		line += site
	}
	return particular.ReplaceAllString(line, "#")
}

// reporter takes faults.
type reporter interface {
	Helper()
	fault(f fault)
}

// directly reports faults one by one.
type directly struct {
	t interface {
		Helper()
		Errorf(format string, args ...any)
	}
}

func (d directly) Helper() { d.t.Helper() }

func (d directly) fault(f fault) {
	d.t.Helper()
	d.t.Errorf("%s", f)
}

// faults are what was found by all properties. What several properties find in
// several messages is one fault if the same is said of it; the message with the
// fewest bytes shows it.
type faults struct {
	mu       sync.Mutex
	all      []*finding
	property string // the one that is being checked
}

// finding is one fault.
type finding struct {
	fault
	properties, places []string
}

func (*faults) Helper() {}

func (fs *faults) fault(f fault) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	i := slices.IndexFunc(fs.all, func(g *finding) bool { return g.kind == f.kind })
	if i < 0 {
		i = len(fs.all)
		fs.all = append(fs.all, &finding{fault: f})
	}
	g := fs.all[i]
	if f.size() < g.size() {
		g.fault = f
	}
	if !slices.Contains(g.properties, fs.property) {
		g.properties = append(g.properties, fs.property)
	}
	if !slices.Contains(g.places, f.where) {
		g.places = append(g.places, f.where)
	}
}

// of names the faults that a property has found, "" if none.
func (fs *faults) of(property string) string {
	var numbers []string
	for i, g := range fs.all {
		if slices.Contains(g.properties, property) {
			numbers = append(numbers, fmt.Sprint(i+1))
		}
	}
	switch len(numbers) {
	case 0:
		return ""
	case 1:
		return "fault " + numbers[0]
	default:
		return "faults " + strings.Join(numbers, ", ")
	}
}

// String is a page on all of them, "" if there are none.
func (fs *faults) String() string {
	if len(fs.all) == 0 {
		return ""
	}
	var failed []string
	for _, p := range properties {
		if fs.of(p.name) != "" {
			failed = append(failed, p.name)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "failed: %s\n", strings.Join(failed, ", "))
	for i, g := range fs.all {
		fmt.Fprintf(&b, "\nfault %d, by %s", i+1, strings.Join(g.properties, ", "))
		if n := len(g.places); n > 1 {
			fmt.Fprintf(&b, ", in %d places", n)
		}
		fmt.Fprintf(&b, ":\n%s", g.fault)
	}
	return b.String()
}

const (
	// maxDump is the longest piece that a fault shows as a whole, in bytes.
	maxDump = 512
	// Of a longer one it shows the first and the last.
	dumpFirst, dumpLast = 128, 64
)

func dump(b []byte) string {
	switch {
	case len(b) == 0:
		return "(no bytes)\n"
	case len(b) <= maxDump:
		return hex.Dump(b)
	}
	return fmt.Sprintf("%s... (%d bytes in all, the last of them:)\n%s",
		hex.Dump(b[:dumpFirst]), len(b), hex.Dump(b[len(b)-dumpLast:]))
}

const (
	// maxPanicFrames of a codec's calls are shown.
	maxPanicFrames = 8
	siteIndent     = "    "
)

// panicSite tells where the codec has panicked: its own calls, the innermost first.
// It is called from the function that recovers.
func panicSite() string {
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)])
	var lines []string
	panicked := false
	for len(lines) < maxPanicFrames {
		f, more := frames.Next()
		_, name, _ := strings.Cut(filepath.Base(f.Function), ".")
		switch {
		case strings.HasPrefix(f.Function, "runtime."):
			panicked = panicked || strings.HasPrefix(f.Function, "runtime.gopanic")
		case !panicked:
		case strings.HasPrefix(name, "(*check).") || strings.HasPrefix(name, "(*job)."):
			return strings.Join(lines, "")
		default:
			lines = append(lines, fmt.Sprintf("%s%s:%d, %s\n", siteIndent, filepath.Base(f.File), f.Line, name))
		}
		if !more {
			break
		}
	}
	return strings.Join(lines, "")
}
