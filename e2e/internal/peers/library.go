package peers

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meltemi-mesh/meltemi/e2e/internal/missing"
)

// Library is an implementation of Dubbo.
type Library string

// The libraries under test.
const (
	DubboGo Library = "dubbo-go"
	Java    Library = "dubbo-java"
)

// Provider starts a server. It is ready when Provider returns, and ends with
// the test.
func (l Library) Provider(t testing.TB, o ProviderOptions) *Provider {
	t.Helper()
	l.need(t)
	return l.provider(t, o)
}

// Consumer starts a client that calls a port. It ends with the test.
func (l Library) Consumer(t testing.TB, port int, o ConsumerOptions) *Consumer {
	t.Helper()
	l.need(t)
	return l.consumer(t, port, o)
}

// need builds the library's programs once per test binary. A missing JDK or
// Maven skips the test, unless CI=true.
func (l Library) need(t testing.TB) {
	t.Helper()
	build := buildGo
	if l == Java {
		build = buildJava
	}
	needed(t, string(l), "a JDK and Maven", build())
}

// needed ends the test when its peers could not be built: it is skipped if what
// they need is not installed, unless CI=true.
func needed(t testing.TB, name, needs string, err error) {
	t.Helper()
	switch {
	case err == nil:
	case errors.Is(err, exec.ErrNotFound):
		missing.Skip(t, "%s peers need %s: %v", name, needs, err)
	default:
		t.Fatalf("building the %s peers: %v", name, err)
	}
}

// Root of the repository.
var Root = sync.OnceValue(func() string {
	dir, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "e2e", "go.mod")); err == nil {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			panic("not within the repository")
		}
		dir = parent
	}
})

func bin(name string) string { return filepath.Join(Root(), "build", "peers", "dubbogo", name) }

var buildGo = sync.OnceValue(func() error {
	return run(filepath.Join(Root(), "e2e", "peers", "dubbogo"), "go", "build", "-trimpath", "-o", bin("")+"/", "./provider", "./consumer")
})

func javaDir() string { return filepath.Join(Root(), "build", "peers", "java") }

var buildJava = sync.OnceValue(func() error {
	return maven("java", javaDir(), "dependency:copy-dependencies", "-DoutputDirectory="+filepath.Join(javaDir(), "lib"))
})

// maven builds the peers in a folder of e2e/peers, unless they have not changed
// since it last did.
func maven(peers, out string, args ...string) error {
	for _, tool := range []string{"java", "javac", "mvn"} {
		if _, err := exec.LookPath(tool); err != nil {
			return err
		}
	}
	src := filepath.Join(Root(), "e2e", "peers", peers)
	built := filepath.Join(out, "built")
	if !newer(src, built) {
		return nil
	}
	if err := run(src, append([]string{"mvn", "-q", "-B", "-Dout=" + out, "package"}, args...)...); err != nil {
		return err
	}
	return os.WriteFile(built, nil, 0o644)
}

// newer tells whether a file under dir is newer than the stamp, or the stamp
// does not exist.
func newer(dir, stamp string) bool {
	st, err := os.Stat(stamp)
	if err != nil {
		return true
	}
	found := false
	filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if info, err := e.Info(); err == nil && info.ModTime().After(st.ModTime()) {
			found = true
		}
		return nil
	})
	return found
}

func run(dir string, argv ...string) error {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, out)
	}
	return nil
}

func (l Library) providerCommand(o ProviderOptions) (argv, env []string) {
	args := []string{"-name", o.Name, "-port", strconv.Itoa(o.Port), "-group", o.Group, "-version", o.Version}
	if o.Heartbeat > 0 {
		args = append(args, "-heartbeat", duration(l, o.Heartbeat))
	}
	if l == Java {
		return java(javaDir(), "org.meltemi.test.Provider", args), []string{"DUBBO_IP_TO_BIND=" + javaHost(o.Place)}
	}
	return append([]string{bin("provider"), "-host", o.host()}, args...), nil
}

func (l Library) consumerCommand(port int, o ConsumerOptions) (argv, env []string) {
	host := o.host()
	if l == Java {
		host = javaHost(o.Place)
	}
	args := []string{"-addr", host + ":" + strconv.Itoa(port)}
	if l == Java {
		o.Timeout = cmp.Or(o.Timeout, javaTimeout)
	}
	if o.Timeout > 0 {
		args = append(args, "-timeout", duration(l, o.Timeout))
	}
	if o.Heartbeat > 0 {
		args = append(args, "-heartbeat", duration(l, o.Heartbeat))
	}
	if o.Connections > 0 {
		args = append(args, "-connections", strconv.Itoa(o.Connections))
	}
	if l == Java {
		if o.Retries {
			args = append(args, "-retries", "own")
		}
		return java(javaDir(), "org.meltemi.test.Consumer", args), nil
	}
	return append([]string{bin("consumer")}, args...), nil
}

// javaHost is the address as Dubbo Java takes it: it refuses to bind to
// 127.0.0.1, and replaces it by the host's own address when it calls, but does
// neither if it is written like this.
func javaHost(p Place) string {
	if p.host() == "127.0.0.1" {
		return "2130706433"
	}
	return p.host()
}

func duration(l Library, d time.Duration) string {
	if l == Java {
		return strconv.FormatInt(d.Milliseconds(), 10)
	}
	return d.String()
}

// javaTimeout is that of calls of Java's clients. The first one takes seconds of a busy
// machine: what it needs is loaded and compiled then.
const javaTimeout = 10 * time.Second

// java runs a class of peers that Maven has built into dir.
func java(dir, class string, args []string) []string {
	cp := filepath.Join(dir, "classes") + ":" + filepath.Join(dir, "lib", "*")
	return append([]string{
		"java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.net.preferIPv4Stack=true",
		// brpc-java's proxies define classes.
		"--add-opens=java.base/java.lang=ALL-UNNAMED",
		"-Dorg.slf4j.simpleLogger.defaultLogLevel=error", "-cp", cp, class,
	}, args...)
}
