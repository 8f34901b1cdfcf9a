package mesh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// netnsPrefix begins the names of all network namespaces of meshes; the id of
// the process that made them follows.
const netnsPrefix = "meltemi-"

// dirPrefix is netnsPrefix for the folders of meshes.
const dirPrefix = "meltemi-mesh-"

// Netns is a network namespace with one address.
type Netns struct {
	// ID as `ip netns` knows it.
	ID string
	// IP of its only interface besides lo.
	IP string
}

// do runs f on a thread that is in the namespace: sockets that f makes and
// processes that it starts belong there. Goroutines that f starts do not.
func (n Netns) do(f func() error) error {
	failed := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		failed <- n.enter(f)
	}()
	return <-failed
}

// enter moves the calling thread into the namespace.
func (n Netns) enter(f func() error) error {
	file, err := os.Open(filepath.Join("/run/netns", n.ID))
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering network namespace %s: %w", n.ID, err)
	}
	return f()
}

// Dial connects from within the namespace to an address without names.
func (n Netns) Dial(addr string) (c net.Conn, err error) {
	err = n.do(func() error {
		c, err = net.DialTimeout("tcp", addr, 5*time.Second)
		return err
	})
	return c, err
}

// Listen accepts connections within the namespace.
func (n Netns) Listen(addr string) (l net.Listener, err error) {
	err = n.do(func() error {
		l, err = net.Listen("tcp", addr)
		return err
	})
	return l, err
}

// ip runs commands of `ip -batch`.
func ip(lines ...string) error {
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip: %w\n%s", err, out)
	}
	return nil
}

// ip runs commands of `ip -batch` within the namespace.
func (n Netns) ip(lines ...string) error {
	return n.do(func() error { return ip(lines...) })
}

// fabric is a bridge with the namespaces that hang on it. The bridge's own
// namespace is the node's: what pods reach of the control plane is there.
type fabric struct {
	node Netns
	next int
}

// newFabric makes the node's namespace.
func newFabric() (*fabric, error) {
	sweep()
	f := &fabric{node: Netns{ID: fmt.Sprintf("%s%d-node", netnsPrefix, os.Getpid()), IP: "10.244.0.1"}}
	if err := ip("netns add " + f.node.ID); err != nil {
		return nil, err
	}
	return f, f.node.ip(
		"link set lo up",
		"link add br0 type bridge",
		"addr add "+f.node.IP+"/16 dev br0",
		"link set br0 up",
	)
}

// add makes a namespace that reaches the node and all others. An address is not
// given twice.
func (f *fabric) add() (Netns, error) {
	f.next++
	n := Netns{
		ID: fmt.Sprintf("%s%d-%d", netnsPrefix, os.Getpid(), f.next),
		IP: fmt.Sprintf("10.244.%d.%d", 1+f.next/250, 1+f.next%250),
	}
	outer := fmt.Sprintf("p%d", f.next)
	if err := ip("netns add " + n.ID); err != nil {
		return n, err
	}
	if err := f.node.ip(
		"link add "+outer+" type veth peer name eth0 netns "+n.ID,
		"link set "+outer+" master br0 up",
	); err != nil {
		return n, err
	}
	return n, n.ip(
		"link set lo up",
		"addr add "+n.IP+"/16 dev eth0",
		"link set eth0 up",
		"route add default via "+f.node.IP,
	)
}

// remove ends a namespace. What still runs there keeps it alive, without a
// name.
func (f *fabric) remove(n Netns) error { return ip("netns delete " + n.ID) }

// sweep removes namespaces and folders of processes that ended without doing so.
func sweep() {
	for _, pattern := range []string{filepath.Join("/run/netns", netnsPrefix+"*"), filepath.Join(os.TempDir(), dirPrefix+"*")} {
		paths, _ := filepath.Glob(pattern)
		for _, path := range paths {
			name := strings.TrimPrefix(strings.TrimPrefix(filepath.Base(path), dirPrefix), netnsPrefix)
			id, _, _ := strings.Cut(name, "-")
			pid, err := strconv.Atoi(id)
			switch {
			case err != nil || !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH):
			case strings.HasPrefix(path, os.TempDir()):
				os.RemoveAll(path)
			default:
				ip("netns delete " + filepath.Base(path))
			}
		}
	}
}

func (n Netns) dialContext(_ context.Context, _, addr string) (net.Conn, error) { return n.Dial(addr) }

// Run runs a command in the namespace and waits for it.
func (n Netns) Run(argv ...string) error {
	return n.do(func() error {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, out)
		}
		return nil
	})
}

// DialUnix connects from within the namespace to a unix socket.
func (n Netns) DialUnix(path string) (c net.Conn, err error) {
	err = n.do(func() error {
		c, err = net.Dial("unix", path)
		return err
	})
	return c, err
}
