package golang

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/meltemi-mesh/meltemi/envoy-build/internal/loopback"
	"github.com/meltemi-mesh/meltemi/envoy-build/internal/process"
	"github.com/meltemi-mesh/meltemi/filter/config"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// SettingsEnv names the environment variable with the settings of the process: what
// under dynamic modules the configuration of the carrier filter is, which does not
// exist here.
const SettingsEnv = "MELTEMI_PROCESS"

// defaultPath is the loopback listener's socket if nothing else is said.
const defaultPath = "@meltemi"

var defaults = Settings{Carrier: config.Carrier{Path: defaultPath}, Connect: true}

// dialPause is between attempts of goroutines to dial a tunnel.
const dialPause = 50 * time.Millisecond

// Settings are what a process has one of: the loopback listener, where it tells about
// itself, where metrics are pushed to.
type Settings = settings

type settings struct {
	config.Carrier
	// Connect: the loopback listener takes HTTP's CONNECT, see [connectRequest]. Otherwise
	// it ends in tcp_proxy.
	Connect bool
}

// SettingsOf reads the value of [SettingsEnv]: the JSON of the carrier filter, see
// [config.LoadCarrier], and "connect", a boolean, true if absent. "" is the default.
func SettingsOf(value string) (s Settings, err error) {
	s = defaults
	if value == "" {
		return s, nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal([]byte(value), &fields); err != nil {
		return s, fmt.Errorf("%s: %w", SettingsEnv, err)
	}
	if fields == nil {
		return s, fmt.Errorf("%s: want an object, is null", SettingsEnv)
	}
	if v, ok := fields["connect"]; ok {
		if err := json.Unmarshal(v, &s.Connect); err != nil {
			return defaults, fmt.Errorf("%s: connect: want true or false, is %s", SettingsEnv, v)
		}
		delete(fields, "connect")
	}
	if _, ok := fields["path"]; !ok {
		fields["path"] = json.RawMessage(strconv.Quote(defaultPath))
	}
	carrier, err := json.Marshal(fields)
	if err != nil {
		return s, fmt.Errorf("%s: %w", SettingsEnv, err)
	}
	if s.Carrier, err = config.LoadCarrier(carrier); err != nil {
		return defaults, fmt.Errorf("%s: %w", SettingsEnv, err)
	}
	return s, nil
}

// FromEnvironment returns the settings of this process. What is wrong is logged, and the
// default counts.
func FromEnvironment(log process.Log) Settings {
	s, err := SettingsOf(os.Getenv(SettingsEnv))
	if err != nil {
		log(host.Error, "meltemi: %v: using %s", err, s.Path)
	}
	return s
}

// dial makes a tunnel for a goroutine. The listener may have to come first: it is tried
// until ctx is done.
func (s settings) dial(ctx context.Context, cluster string) (net.Conn, error) {
	for {
		c, err := s.dialOnce(cluster)
		if err == nil {
			return c, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("loopback listener: %w", err)
		case <-time.After(dialPause):
		}
	}
}

func (s settings) dialOnce(cluster string) (net.Conn, error) {
	fd, err := loopback.Open(s.Path)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), s.Path)
	defer f.Close() // FileConn has its own
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	if err := s.greet(c, cluster); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// greet says where c is to lead, and waits for the answer if there is one.
func (s settings) greet(c net.Conn, cluster string) error {
	t := host.Target{Cluster: cluster}
	if _, err := c.Write(s.greeting(t)); err != nil || !s.Connect {
		return err
	}
	var reply []byte
	for {
		var b [1]byte // what is behind the reply is not ours
		if _, err := c.Read(b[:]); err != nil {
			return fmt.Errorf("cluster %s: %w", cluster, err)
		}
		reply = append(reply, b[0])
		if a, n, err := parseReply(reply); err != nil {
			return fmt.Errorf("cluster %s: %w", cluster, err)
		} else if n > 0 {
			if a.failed {
				return fmt.Errorf("cluster %s: %s", cluster, a.reason)
			}
			return nil
		}
	}
}

// greeting is what the dialing side of a tunnel sends first.
func (s settings) greeting(t host.Target) []byte {
	b := loopback.TunnelPrologue(t)
	if s.Connect {
		b = append(b, connectRequest(t.Cluster)...)
	}
	return b
}
