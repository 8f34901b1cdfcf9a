// A library for Envoy's golang network filter, linked with the official package: an echo that
// tells of every call that it gets. What Envoy's own Go code sees on a host is the measure of it.
package main

import (
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/envoyproxy/envoy/contrib/golang/common/go/api"
	_ "github.com/envoyproxy/envoy/contrib/golang/common/go/api_impl"
	"github.com/envoyproxy/envoy/contrib/golang/filters/network/source/go/pkg/network"
)

func main() {}

func init() {
	network.RegisterNetworkFilterConfigParser(parser{})
	network.RegisterNetworkFilterConfigFactory("echo", configs{})
}

// tell writes a line into Envoy's log: who, on which thread, what.
func tell(who, format string, args ...any) {
	api.LogInfof("echo %s thread=%d %s", who, syscall.Gettid(), fmt.Sprintf(format, args...))
}

type parser struct{}

func (parser) ParseConfig(a *anypb.Any) any {
	var s wrapperspb.StringValue
	if err := a.UnmarshalTo(&s); err != nil {
		tell("config", "parse: %v", err)
		return "?"
	}
	tell("config", "parse %s", s.Value)
	return s.Value
}

type configs struct{}

func (configs) CreateFactoryFromConfig(config any) network.FilterFactory {
	return factory(config.(string))
}

type factory string

var connections atomic.Int64

func (f factory) CreateFilter(cb api.ConnectionCallback) api.DownstreamFilter {
	c := &downstream{name: fmt.Sprintf("%s/%d", string(f), connections.Add(1)), cb: cb}
	tell(c.name, "create")
	return c
}

type downstream struct {
	name string
	cb   api.ConnectionCallback
	up   *upstream
	drop bool
}

func (d *downstream) OnNewConnection() api.FilterStatus {
	local, _ := d.cb.StreamInfo().UpstreamLocalAddress()
	remote, _ := d.cb.StreamInfo().UpstreamRemoteAddress()
	tell(d.name, "new %s %s", local, remote)
	return api.NetworkFilterContinue
}

// what shortens long data.
func what(b []byte, end bool) string {
	text := strconv.Quote(string(b))
	if len(b) > 100 {
		text = fmt.Sprintf("%d bytes", len(b))
	}
	if end {
		text += " end"
	}
	return text
}

func (d *downstream) OnData(b []byte, end bool) api.FilterStatus {
	tell(d.name, "data %s", what(b, end))
	command, argument, _ := strings.Cut(string(b), " ")
	switch command {
	case "close": // an answer, then a close of a type
		kind, _ := strconv.Atoi(argument)
		d.cb.Write([]byte("bye"), false)
		d.cb.Close(api.ConnectionCloseType(kind))
	case "twice":
		d.cb.Write([]byte("one"), false)
		d.cb.Write([]byte("two"), false)
		tell(d.name, "written")
	case "drop": // what is written next is dropped by OnWrite
		d.drop = true
		d.cb.Write([]byte("lost"), false)
		d.cb.Write([]byte("kept"), false)
	case "elsewhere": // from another thread
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread()
			tell(d.name, "writes")
			d.cb.Write([]byte("from elsewhere"), false)
		}()
		<-done
		tell(d.name, "written")
	case "state":
		d.cb.StreamInfo().FilterState().SetString("key", "value", api.StateTypeMutable, api.LifeSpanConnection, api.None)
		d.cb.Write([]byte("set"), false)
	case "end": // half close, which Envoy has not for clients
		d.cb.Write([]byte("last"), true)
	case "collect":
		runtime.GC()
		runtime.GC()
		d.cb.Write([]byte("collected"), false)
	case "dial":
		d.up = &upstream{name: d.name + "-up", to: d.cb}
		network.CreateUpstreamConn(argument, d.up)
	case "up":
		d.up.cb.Write([]byte(argument), false)
	case "up-close":
		d.up.cb.Close(api.NoFlush)
	case "panic":
		panic("as asked for")
	default:
		d.cb.Write(b, false)
	}
	return api.NetworkFilterStopIteration
}

func (d *downstream) OnWrite(b []byte, end bool) api.FilterStatus {
	tell(d.name, "write %s", what(b, end))
	if d.drop {
		d.drop = false
		return api.NetworkFilterStopIteration
	}
	return api.NetworkFilterContinue
}

func (d *downstream) OnEvent(event api.ConnectionEvent) {
	tell(d.name, "event %v", event)
	d.up = nil
}

type upstream struct {
	name string
	to   api.ConnectionCallback
	cb   api.ConnectionCallback
}

func (u *upstream) OnPoolReady(cb api.ConnectionCallback) {
	remote, _ := cb.StreamInfo().UpstreamRemoteAddress()
	tell(u.name, "ready %s", remote)
	u.cb = cb
	u.to.Write([]byte("ready"), false)
}

func (u *upstream) OnPoolFailure(reason api.PoolFailureReason, text string) {
	tell(u.name, "failure %v %q", reason, text)
	u.to.Write([]byte("failure "+reason.String()), false)
}

func (u *upstream) OnData(b []byte, end bool) {
	tell(u.name, "data %s", what(b, end))
	u.to.Write(b, false)
}

func (u *upstream) OnEvent(event api.ConnectionEvent) {
	tell(u.name, "event %v", event)
	if event == api.LocalClose || event == api.RemoteClose {
		u.to.Write([]byte(event.String()), false)
	}
}
