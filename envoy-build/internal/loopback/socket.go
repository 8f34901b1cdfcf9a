package loopback

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
)

// connectTime is how long the listener's queue may be full.
const connectTime = time.Second

// errSquatted is that another process has the socket.
var errSquatted = errors.New("the socket belongs to process")

// Connect connects to a unix socket on which this very process listens. Where
// another one has the socket that gets a connection, and not a byte.
func Connect(path string) (net.Conn, error) {
	c, err := connect(path)
	if err != nil {
		return nil, err
	}
	if err := checkPeer(c); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// connect waits for its turn where others connect as well: a connection that does
// not block fails as long as the listener's queue is full, which they can see to.
func connect(path string) (*net.UnixConn, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close() // FileConn has its own
	timeout := syscall.NsecToTimeval(int64(connectTime))
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_SNDTIMEO, &timeout); err != nil {
		return nil, os.NewSyscallError("setsockopt", err)
	}
	for {
		err = syscall.Connect(fd, &syscall.SockaddrUnix{Name: path})
		if err == nil {
			break
		}
		if !errors.Is(err, syscall.EINTR) {
			return nil, os.NewSyscallError("connect", err)
		}
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

// checkPeer makes sure that the listener is this very process, before it is
// told the secret. listen sets these credentials, also in a new process that
// has inherited the socket.
func checkPeer(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *syscall.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if cerr != nil {
		return cerr
	}
	if int(cred.Pid) != os.Getpid() {
		return fmt.Errorf("%w %d, not to this one (%d)", errSquatted, cred.Pid, os.Getpid())
	}
	return nil
}

// ErrBusy is that the listener's queue is full.
var ErrBusy = errors.New("the listener's queue is full")

// Open connects to a unix socket without waiting for anything: fd does not block. Where a
// process of another user has the socket that gets a connection, and not a byte. Another
// process of this user may be the next Envoy of a hot restart.
func Open(path string) (fd int, err error) {
	fd, err = syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	switch err = syscall.Connect(fd, &syscall.SockaddrUnix{Name: path}); {
	case errors.Is(err, syscall.EAGAIN):
		err = ErrBusy
	case err != nil:
		err = os.NewSyscallError("connect", err)
	default:
		err = checkUser(fd)
	}
	if err != nil {
		syscall.Close(fd) //nolint:errcheck // nothing was written
		return -1, err
	}
	return fd, nil
}

func checkUser(fd int) error {
	cred, err := syscall.GetsockoptUcred(fd, syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	if err != nil {
		return os.NewSyscallError("getsockopt", err)
	}
	if int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("the socket belongs to user %d, not to this one (%d)", cred.Uid, os.Geteuid())
	}
	return nil
}
