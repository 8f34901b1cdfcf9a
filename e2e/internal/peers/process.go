// Package peers builds and drives real clients and servers of all protocols,
// which speak the same protocol of JSON lines with us.
package peers

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// process is a child whose standard output is read line by line and whose log
// (standard error) is shown when the test fails.
type process struct {
	t      testing.TB
	name   string
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	exited chan struct{}
	log    *tail
}

func start(t testing.TB, name string, argv, env []string, line func([]byte)) *process {
	t.Helper()
	p := &process{t: t, name: name, exited: make(chan struct{}), log: &tail{}}
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stderr = p.log
	// A test binary that is killed takes its peers along.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	started := make(chan error, 1)
	go func() {
		// The death signal is tied to the thread that started the child.
		defer close(p.exited)
		runtime.LockOSThread()
		err := p.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		in := bufio.NewReaderSize(stdout, 64<<10)
		for {
			b, err := in.ReadBytes('\n')
			if len(bytes.TrimSpace(b)) > 0 {
				line(b)
			}
			if err != nil {
				break
			}
		}
		p.cmd.Wait()
	}()
	if err := <-started; err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("log of %s:\n%s", name, p.log)
		}
	})
	return p
}

// Kill ends the process at once, as a crash would.
func (p *process) Kill() {
	p.cmd.Process.Kill()
	<-p.exited
}

// Terminate asks the process to leave gracefully and waits for it.
func (p *process) Terminate(within time.Duration) error {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
		return nil
	case <-time.After(within):
		return fmt.Errorf("%s still runs %v after SIGTERM", p.name, within)
	}
}

// Asleep waits until a server of tRPC, Thrift in Go or bRPC has n calls that sleep for a
// minute or more: each has come there, which the proxy's counters do not tell.
func (p *process) Asleep(n int) {
	p.t.Helper()
	for end := time.Now().Add(Patience); strings.Count(p.log.String(), "asleep\n") < n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			p.t.Fatalf("%s has not got %d calls that sleep", p.name, n)
		}
	}
}

// Stop freezes the process: its connections stay open and nothing answers, once Stop has
// returned.
func (p *process) Stop() {
	p.cmd.Process.Signal(syscall.SIGSTOP)
	for end := time.Now().Add(Patience); time.Now().Before(end) && !p.frozen(); {
		time.Sleep(time.Millisecond)
	}
}

// frozen reports whether all threads have heard of the signal.
func (p *process) frozen() bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.Pid()))
	for _, path := range threads {
		b, err := os.ReadFile(path)
		// The name before the state may have whatever in it.
		if i := bytes.LastIndexByte(b, ')'); err == nil && (i+2 >= len(b) || b[i+2] != 'T') {
			return false
		}
	}
	return true
}

// Continue thaws it.
func (p *process) Continue() { p.cmd.Process.Signal(syscall.SIGCONT) }

// Pid of the process.
func (p *process) Pid() int { return p.cmd.Process.Pid }

// tail keeps the end of a log.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailSize = 16 << 10

func (l *tail) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = append(l.b, b...)
	if len(l.b) > 2*tailSize {
		l.b = append(l.b[:0], l.b[len(l.b)-tailSize:]...)
	}
	return len(b), nil
}

func (l *tail) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.ToValidUTF8(string(l.b[max(0, len(l.b)-tailSize):]), "?")
}
