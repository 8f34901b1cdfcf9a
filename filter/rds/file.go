package rds

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/meltemi-mesh/meltemi/filter/config"
)

// lookTime is how often a file is looked at. Watches of the system would not see what
// a link leads to, nor files of every kind of folder.
const lookTime = 500 * time.Millisecond

// file is a file that has a DiscoveryResponse.
type file struct {
	path string
	last state
}

// state is how a file was found.
type state struct {
	seen    bool
	missing string // why it cannot be read
	info    os.FileInfo
}

func (s state) same(o state) bool {
	if !s.seen || !o.seen || s.missing != o.missing {
		return false
	}
	return s.info == nil && o.info == nil || s.info != nil && o.info != nil &&
		os.SameFile(s.info, o.info) && s.info.Size() == o.info.Size() && s.info.ModTime().Equal(o.info.ModTime())
}

func (*file) pause(int) time.Duration { return lookTime }

func (f *file) run(ctx context.Context, _ func() (string, bool), answered func(answer) error) error {
	for ctx.Err() == nil {
		now := state{seen: true}
		var err error
		if now.info, err = os.Stat(f.path); err != nil {
			now.missing = err.Error()
		}
		if !now.same(f.last) {
			f.last = now
			if err == nil {
				err = f.read(answered)
			}
			if err != nil {
				return err
			}
		}
		sleep(ctx, lookTime)
	}
	return ctx.Err()
}

// read hands over what the file has. Only that it cannot be read is an error; what is
// wrong in it is told to nobody but the log.
func (f *file) read(answered func(answer) error) error {
	in, err := os.Open(f.path)
	if err != nil {
		return err
	}
	defer in.Close()
	text, err := io.ReadAll(io.LimitReader(in, MaxBytes+1))
	if err != nil {
		return err
	}
	var r discoveryv3.DiscoveryResponse
	a := answer{}
	if len(text) > MaxBytes {
		a.fault = fmt.Errorf("the file has more than %d bytes", MaxBytes)
	} else if a.fault = parseFile(f.path, text, &r); a.fault == nil {
		a.version, a.resources = r.GetVersionInfo(), r.GetResources()
	}
	_ = answered(a) // logged
	return nil
}

// parseFile reads the forms that Envoy reads.
func parseFile(path string, text []byte, r *discoveryv3.DiscoveryResponse) error {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".pb":
		return proto.UnmarshalOptions{RecursionLimit: maxDepth}.Unmarshal(text, r)
	case ".pb_text":
		return prototext.Unmarshal(text, r)
	case ".yaml", ".yml":
		var v any
		if err := yaml.Unmarshal(text, &v); err != nil {
			return err
		}
		var err error
		if text, err = json.Marshal(v); err != nil {
			return err
		}
	}
	if errs := config.Shape(text, r); len(errs) > 0 {
		return errs[0]
	}
	return protojson.Unmarshal(text, r)
}
