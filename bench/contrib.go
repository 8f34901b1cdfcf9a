package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	_ "google.golang.org/protobuf/types/known/structpb" // of plugin_config
)

// golangSuffix tells what is served by Envoy's golang filter in place of dynamic modules.
// There is no Envoy with that filter here: e2e/contribhost, which imitates it, has the
// clients, and a stock Envoy behind it the loopback listener.
const golangSuffix = "-golang"

// contribHost builds the program, if it is not there.
var contribHost = sync.OnceValues(func() (string, error) {
	if _, err := exec.LookPath("g++"); err != nil {
		return "", fmt.Errorf("%w: %w", errNotInstalled, err)
	}
	out := filepath.Join("..", "build", "contribhost", "bench")
	if current(out, "../e2e/contribhost") {
		return out, nil
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return "", err
	}
	if b, err := exec.Command("../e2e/contribhost/build.sh", out, "-O2").CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, b)
	}
	return out, nil
})

// current reports whether a file is newer than all in a folder.
func current(file, dir string) bool {
	built, err := os.Stat(file)
	if err != nil {
		return false
	}
	sources, err := os.ReadDir(dir)
	for _, s := range sources {
		i, e := s.Info()
		if e != nil || i.ModTime().After(built.ModTime()) {
			return false
		}
	}
	return err == nil
}

// serveGolang starts the program in front of p, whose Envoy has the loopback listener.
// filter is the one of dynamic modules, of which the golang filter gets the configuration.
func (p *proxy) serveGolang(filter, so string, settings map[string]any, workers int, dir string) error {
	bin, err := contribHost()
	if err != nil {
		return err
	}
	plugin, err := pluginConfig(filter)
	if err != nil {
		return err
	}
	if so, err = filepath.Abs(so); err != nil {
		return err
	}
	conf := filepath.Join(dir, p.name+".contribhost")
	text := fmt.Sprintf("listener bench 127.0.0.1:0 %d\ngolang meltemi %s meta_protocol_proxy %s\n", 1<<20, url.PathEscape(so), url.PathEscape(string(plugin)))
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return err
	}
	env, err := json.Marshal(settings)
	if err != nil {
		return err
	}
	log, err := os.Create(conf + ".log")
	if err != nil {
		return err
	}
	cmd := exec.Command(bin, conf, "--concurrency", strconv.Itoa(workers), "-l", "warning")
	cmd.Env = append(os.Environ(), "MELTEMI_PROCESS="+string(env))
	cmd.Stderr = log
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	stop := p.stop
	p.stop = func() {
		cmd.Process.Kill() //nolint:errcheck // it may have ended
		cmd.Wait()         //nolint:errcheck // killed
		log.Close()
		stop()
	}
	p.pids = append(p.pids, cmd.Process.Pid)
	answers := bufio.NewScanner(out)
	if answers.Scan() && answers.Text() == "ready" {
		if _, err := io.WriteString(in, "listeners\n"); err != nil {
			return err
		}
		if answers.Scan() {
			_, p.addr, _ = strings.Cut(answers.Text(), " ")
			return nil
		}
	}
	said, _ := os.ReadFile(log.Name())
	return fmt.Errorf("contribhost did not get ready\n%s", said)
}

// pluginConfig is a filter's configuration in the form in which the golang filter hands it
// over: a serialized google.protobuf.Any.
func pluginConfig(filter string) ([]byte, error) {
	var list []struct {
		TypedConfig struct {
			FilterConfig map[string]any `yaml:"filter_config"`
		} `yaml:"typed_config"`
	}
	if err := yaml.Unmarshal([]byte(filter), &list); err != nil {
		return nil, err
	}
	b, err := json.Marshal(list[0].TypedConfig.FilterConfig)
	if err != nil {
		return nil, err
	}
	var a anypb.Any
	if err := protojson.Unmarshal(b, &a); err != nil {
		return nil, err
	}
	return proto.Marshal(&a)
}
