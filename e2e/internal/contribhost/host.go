package contribhost

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait: far longer than anything takes on a busy machine.
const patience = 60 * time.Second

// Options say how to run the program.
type Options struct {
	// Bin is Binary or BinaryWithAddressSanitizer.
	Bin    string
	Config Config
	// Concurrency is the number of workers; 0 is 1.
	Concurrency int
	// Drain is how long connections of replaced listeners have; 0 is none.
	Drain time.Duration
	// Level of the log, "" for info; ComponentLevels are those of parts of it, as Envoy's
	// --component-log-level has them.
	Level, ComponentLevels string
	// Env is added to the environment.
	Env []string
	// Log is written to.
	Log *os.File
	// Replaces is the one that this one takes over from, by a hot restart: it hands its sockets
	// over, and ends after ParentShutdown.
	Replaces       *Host
	ParentShutdown time.Duration
}

// Host is the running program.
type Host struct {
	t      testing.TB
	dir    string
	cmd    *exec.Cmd
	exited chan struct{}
	exit   error

	mu      sync.Mutex
	stdin   io.WriteCloser
	answers chan string
}

// Start runs the program until the end of the test, and waits until it serves.
func Start(t testing.TB, o Options) (*Host, error) {
	t.Helper()
	h := &Host{t: t, dir: t.TempDir(), exited: make(chan struct{}), answers: make(chan string, 1)}
	args := []string{
		h.write(o.Config), "--concurrency", strconv.Itoa(max(o.Concurrency, 1)),
		"--drain-time-s", strconv.FormatFloat(o.Drain.Seconds(), 'f', 3, 64),
	}
	if o.Level != "" {
		args = append(args, "-l", o.Level)
	}
	if o.ComponentLevels != "" {
		args = append(args, "--component-log-level", o.ComponentLevels)
	}
	parent := ""
	if o.Replaces != nil {
		dir, err := os.MkdirTemp("", "parent") // names of sockets are short
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
		parent = filepath.Join(dir, "socket")
		args = append(args, "--parent", parent)
	}
	h.cmd = exec.Command(o.Bin, args...)
	// What only a finalizer frees is no leak; what is left is asked for by Counts.
	h.cmd.Env = append(append(os.Environ(), "ASAN_OPTIONS=detect_leaks=0"), o.Env...)
	h.cmd.Stderr = o.Log
	// A test binary that is killed takes the program along.
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdout, err := h.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if h.stdin, err = h.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	started := make(chan error, 1)
	go func() {
		// The death signal is tied to the thread that started the child.
		defer close(h.exited)
		runtime.LockOSThread()
		err := h.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		for in := bufio.NewScanner(stdout); in.Scan(); {
			h.answers <- in.Text()
		}
		h.exit = h.cmd.Wait()
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		h.Kill()
		<-h.exited
	})
	if o.Replaces != nil {
		if err := h.says("waiting"); err != nil {
			return nil, err
		}
		if err := o.Replaces.do("pass " + parent); err != nil {
			return nil, err
		}
	}
	if err := h.says("ready"); err != nil {
		return nil, err
	}
	if o.Replaces != nil {
		time.AfterFunc(o.ParentShutdown, func() { o.Replaces.Signal(syscall.SIGTERM) })
		return h, o.Replaces.do("drain")
	}
	return h, nil
}

func (h *Host) says(what string) error {
	if a, err := h.answer(); err != nil || a != what {
		return fmt.Errorf("contribhost did not start: %q %w", a, err)
	}
	return nil
}

// do has the program do something that is answered by ok, or by what is wrong.
func (h *Host) do(what string) error {
	a, err := h.Ask(what)
	if err == nil && a != "ok" {
		err = errors.New(a)
	}
	return err
}

func (h *Host) write(c Config) string {
	path := filepath.Join(h.dir, "config")
	if err := os.WriteFile(path, []byte(c.String()), 0o644); err != nil {
		h.t.Fatal(err)
	}
	return path
}

func (h *Host) answer() (string, error) {
	select {
	case a := <-h.answers:
		return a, nil
	case <-h.exited:
		return "", fmt.Errorf("contribhost ended: %w", h.exit)
	case <-time.After(patience):
		return "", errors.New("no answer of contribhost")
	}
}

// Ask sends a line to the program and waits for the one that it answers.
func (h *Host) Ask(line string) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, err := io.WriteString(h.stdin, line+"\n"); err != nil {
		return "", err
	}
	return h.answer()
}

// Update replaces all listeners. An error says why they were refused, as Envoy would.
func (h *Host) Update(c Config) error { return h.do("update " + h.write(c)) }

// Listeners are the addresses by name.
func (h *Host) Listeners() (map[string]string, error) {
	a, err := h.Ask("listeners")
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	for words := strings.Fields(a); len(words) > 1; words = words[2:] {
		name, err := url.PathUnescape(words[0])
		if err != nil {
			return nil, err
		}
		all[name] = words[1]
	}
	return all, nil
}

// Stats are the counters and gauges of the listeners by Envoy's names for them.
func (h *Host) Stats() (map[string]int64, error) {
	a, err := h.Ask("stats")
	if err != nil {
		return nil, err
	}
	all := map[string]int64{}
	for words := strings.Fields(a); len(words) > 1; words = words[2:] {
		if all[words[0]], err = strconv.ParseInt(words[1], 10, 64); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// Counts is what there is of connections, filters, wrappers, upstreams and
// upstream_wrappers, and how many configs there have been.
func (h *Host) Counts() (map[string]int, error) {
	a, err := h.Ask("counts")
	if err != nil {
		return nil, err
	}
	counts := map[string]int{}
	for _, word := range strings.Fields(a) {
		name, value, _ := strings.Cut(word, "=")
		if counts[name], err = strconv.Atoi(value); err != nil {
			return nil, err
		}
	}
	return counts, nil
}

// Signal sends a signal to the program.
func (h *Host) Signal(s os.Signal) { h.cmd.Process.Signal(s) }

// Stop freezes the program, and waits until all its threads stand still.
func (h *Host) Stop() error {
	h.Signal(syscall.SIGSTOP)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", h.Pid()))
		if err != nil {
			return err
		}
		running := len(threads) == 0
		for _, stat := range threads {
			b, err := os.ReadFile(stat)
			// The state is behind the name in brackets.
			_, state, _ := strings.Cut(string(b), ") ")
			running = running || err != nil || !strings.HasPrefix(state, "T")
		}
		if !running {
			return nil
		}
	}
	return errors.New("contribhost does not stop")
}

// Kill ends the program as a crash would.
func (h *Host) Kill() { h.cmd.Process.Kill() }

// Exited is closed when the program has ended, Err says how.
func (h *Host) Exited() <-chan struct{} { return h.exited }

// Err is how the program has ended, nil for a regular end.
func (h *Host) Err() error {
	<-h.exited
	return h.exit
}

// Pid of the process.
func (h *Host) Pid() int { return h.cmd.Process.Pid }
