package peers

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Debian is a program of a package of Debian's, which is unpacked for the tests and
// not installed.
type Debian struct {
	folder, program string
	unpack          func() error
}

// Redis is its server.
var Redis = debian("redis", "redis-server", "redis-server")

// Prometheus is its server, Promtool what comes with it.
var (
	Prometheus = debian("prometheus", "prometheus", "prometheus")
	Promtool   = Prometheus.with("promtool")
)

func debian(folder, program string, packages ...string) *Debian {
	folder = filepath.Join(Root(), "build", "debs", folder)
	return &Debian{folder, program, sync.OnceValue(func() error {
		return run(Root(), append([]string{"tools/debs.sh", folder}, packages...)...)
	})}
}

// with is another program of the same packages.
func (d *Debian) with(program string) *Debian { return &Debian{d.folder, program, d.unpack} }

// Paths are where the programs and their libraries are.
func (d *Debian) Paths(t testing.TB) (bin, lib string) {
	t.Helper()
	needed(t, d.program, "Debian's packages", d.unpack())
	libs, _ := filepath.Glob(filepath.Join(d.folder, "usr", "lib", "*-linux-gnu")) // the pattern is sound
	return filepath.Join(d.folder, "usr", "bin"), strings.Join(libs, ":")
}

// Run runs the program to its end.
func (d *Debian) Run(t testing.TB, args ...string) (output string, err error) {
	t.Helper()
	bin, lib := d.Paths(t)
	cmd := exec.Command(filepath.Join(bin, d.program), args...)
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+lib)
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Start starts the program until the end of the test, and waits until ready says so.
func (d *Debian) Start(t testing.TB, ready func() bool, args ...string) {
	t.Helper()
	bin, lib := d.Paths(t)
	said := &tail{}
	p := start(t, d.program, append([]string{filepath.Join(bin, d.program)}, args...), []string{"LD_LIBRARY_PATH=" + lib},
		func(line []byte) { said.Write(line) })
	for end := time.Now().Add(30 * time.Second); !ready(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s did not get ready:\n%s%s", d.program, said, p.log)
		}
	}
}
