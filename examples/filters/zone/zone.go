// Package zone is an example of an asynchronous filter: it asks a directory in
// which zone a tenant lives, without holding up the worker, and routes can
// decide on the answer.
//
//	meta_protocol_filters:
//	- name: example.filters.zone
//	- name: aeraki.meta_protocol.filters.router
package zone

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
)

// Name is the filter's config name.
const Name = "example.filters.zone"

func init() { filter.Register(Name, filter.Factory(newZone)) }

// Directory answers in which zone a tenant lives. It may take its time.
type Directory func(tenant string) (zone string, err error)

// directory stands for a database or service.
var directory atomic.Pointer[Directory]

func init() {
	d := Directory(slow)
	directory.Store(&d)
}

// SetDirectory replaces the directory and returns the former one.
func SetDirectory(d Directory) Directory { return *directory.Swap(&d) }

func slow(tenant string) (string, error) {
	time.Sleep(time.Millisecond)
	switch tenant {
	case "acme":
		return "south", nil
	case "":
		return "", errors.New("no tenant")
	default:
		return "north", nil
	}
}

type zone struct{}

func newZone(config *anypb.Any, _ *filter.Env) (filter.Filter, error) {
	if config != nil {
		return nil, errors.New("has no options")
	}
	return zone{}, nil
}

// OnRequest implements filter.Filter.
func (zone) OnRequest(m *filter.Message) filter.Verdict {
	name, _ := m.Request().Get("tenant")
	tenant := string(name) // the view does not outlive this hook
	return m.Go(func(context.Context) func(*filter.Message) filter.Verdict {
		z, err := (*directory.Load())(tenant)
		return func(m *filter.Message) filter.Verdict {
			if err != nil {
				return m.Reply(codecs.Denied, "zone lookup: "+err.Error())
			}
			m.Request().Set("zone", z)
			return filter.Continue
		}
	})
}
