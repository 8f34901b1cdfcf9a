package golang

import (
	"context"
	"fmt"
	"net"
	"os"
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

// dialPause is between attempts of goroutines to dial a tunnel.
const dialPause = 50 * time.Millisecond

// Settings are what a process has one of: the loopback listener, where it tells about
// itself, where metrics are pushed to.
type Settings = settings

type settings struct{ config.Carrier }

// SettingsOf reads the value of [SettingsEnv]: the JSON of the carrier filter, see
// [config.LoadCarrier]. "" is the default.
func SettingsOf(value string) (Settings, error) {
	if value == "" {
		return Settings{config.Carrier{Path: defaultPath}}, nil
	}
	c, err := config.LoadCarrier([]byte(value))
	if err != nil {
		return Settings{config.Carrier{Path: defaultPath}}, fmt.Errorf("%s: %w", SettingsEnv, err)
	}
	return Settings{c}, nil
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
		c, err := loopback.Connect(s.Path)
		if err == nil {
			if _, err = c.Write(loopback.TunnelPrologue(host.Target{Cluster: cluster})); err == nil {
				return c, nil
			}
			c.Close()
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("loopback listener: %w", err)
		case <-time.After(dialPause):
		}
	}
}
