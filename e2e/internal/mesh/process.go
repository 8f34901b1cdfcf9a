package mesh

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// program says how to run a process.
type program struct {
	name  string
	netns Netns
	// hostname is what the process takes for the machine's; "": as it is.
	hostname string
	dir      string
	env      []string
	argv     []string
	// log is where its output is appended to.
	log string
	// uid and gid it runs as; 0 is root.
	uid, gid uint32
	// init makes it the first process of a process namespace, as that of a
	// container is: nothing that it started outlives it.
	init bool
}

// process is a running program.
type process struct {
	program
	cmd    *exec.Cmd
	exited chan struct{}
	ending atomic.Bool
}

func (p program) start() (*process, error) {
	log, err := os.OpenFile(p.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	r := &process{program: p, exited: make(chan struct{})}
	r.cmd = exec.Command(p.argv[0], p.argv[1:]...)
	r.cmd.Dir = p.dir
	r.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + p.dir}, p.env...)
	r.cmd.Stdout, r.cmd.Stderr = log, log
	// A test binary that is killed takes its processes along.
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if p.uid != 0 || p.gid != 0 {
		r.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: p.uid, Gid: p.gid}
	}
	if p.init {
		r.cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID
	}
	started := make(chan error, 1)
	go func() {
		defer close(r.exited)
		// The death signal is tied to the thread that started the child.
		runtime.LockOSThread()
		err := p.netns.enter(func() error {
			if err := p.rename(); err != nil {
				return err
			}
			return r.cmd.Start()
		})
		started <- err
		if err == nil {
			r.cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("%s: %w", p.name, err)
	}
	return r, nil
}

// rename has the thread, and what it starts, be on a machine of another name.
func (p program) rename() error {
	if p.hostname == "" {
		return nil
	}
	if err := unix.Unshare(unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("a host name of its own: %w", err)
	}
	return unix.Sethostname([]byte(p.hostname))
}

// until waits for something that the process will do.
func (p *process) until(what string, done func() bool) error {
	for deadline := time.Now().Add(patience); !done(); time.Sleep(20 * time.Millisecond) {
		select {
		case <-p.exited:
			return fmt.Errorf("%s ended (%v) before %s:\n%s", p.name, p.cmd.ProcessState, what, p.tail())
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not %s after %v:\n%s", p.name, what, patience, p.tail())
		}
	}
	return nil
}

// kill ends the process at once.
func (p *process) kill() {
	p.ending.Store(true)
	p.cmd.Process.Kill()
	<-p.exited
}

// terminate asks the process to end, and waits.
func (p *process) terminate() error {
	p.ending.Store(true)
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
		return nil
	case <-time.After(patience):
		p.kill()
		return fmt.Errorf("%s still ran %v after SIGTERM", p.name, patience)
	}
}

// died tells whether the process ended without having been asked to.
func (p *process) died() bool {
	select {
	case <-p.exited:
		return !p.ending.Load()
	default:
		return false
	}
}

func (p *process) output() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return strings.ToValidUTF8(string(b), "?")
}

func (p *process) tail() string {
	log := p.output()
	return log[max(0, len(log)-6000):]
}
