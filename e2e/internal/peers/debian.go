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

func (d *Debian) command(t testing.TB, args []string) *exec.Cmd {
	t.Helper()
	bin, lib := d.Paths(t)
	cmd := exec.Command(filepath.Join(bin, d.program), args...)
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+lib)
	cmd.Dir = t.TempDir()
	return cmd
}

// Run runs the program to its end.
func (d *Debian) Run(t testing.TB, args ...string) (output string, err error) {
	t.Helper()
	out, err := d.command(t, args).CombinedOutput()
	return string(out), err
}

// Start starts the program until the end of the test, and waits until ready says so.
func (d *Debian) Start(t testing.TB, ready func() bool, args ...string) {
	t.Helper()
	cmd := d.command(t, args)
	out, err := os.Create(filepath.Join(cmd.Dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		out.Close()
	})
	for end := time.Now().Add(30 * time.Second); !ready(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			log, _ := os.ReadFile(out.Name()) // if not, it is empty
			t.Fatalf("%s did not get ready:\n%s", d.program, log)
		}
	}
}
