// Package register is for shared objects that link Envoy's own Go package for the golang
// network filter, as they have plugins of their own: Meltemi is one more of them. It is a
// Go module of its own, since that package comes with all of Envoy's sources.
//
// The process environment needs GODEBUG=cgocheck=0 only if other plugins do. Objects
// without such plugins are better off with package exports: Envoy's package does not
// recover panics of others, and keeps each configuration for ever.
package register

import (
	"sync"

	"github.com/envoyproxy/envoy/contrib/golang/common/go/api"
	_ "github.com/envoyproxy/envoy/contrib/golang/common/go/api_impl" // the log
	"github.com/envoyproxy/envoy/contrib/golang/filters/network/source/go/pkg/network"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/envoy-build/golang"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// Serve registers m as the plugin [golang.PluginName]. It is called once, from an init
// function. Configurations are loaded at their first connections, unless the parser that
// it returns is registered with [network.RegisterNetworkFilterConfigParser], which is for
// objects without another plugin: Envoy's package has one parser for all.
func Serve(m host.Module) network.ConfigParser {
	p := &plugin{
		host: sync.OnceValue(func() *golang.Host { return golang.New(m, golang.FromEnvironment(logf), logf) }),
		ids:  map[*anypb.Any]uint64{},
	}
	network.RegisterNetworkFilterConfigFactory(golang.PluginName, p)
	return p
}

// plugin implements network.ConfigFactory and network.ConfigParser.
type plugin struct {
	host func() *golang.Host

	mu  sync.Mutex
	ids map[*anypb.Any]uint64 // by what Envoy's package keeps of each configuration
}

// ParseConfig implements network.ConfigParser.
func (p *plugin) ParseConfig(a *anypb.Any) any {
	p.load(a)
	return a
}

// CreateFactoryFromConfig implements network.ConfigFactory. It is called for each
// connection.
func (p *plugin) CreateFactoryFromConfig(config any) network.FilterFactory {
	a, _ := config.(*anypb.Any) // nil, which is refused, if there is another parser
	return factory{p, p.load(a)}
}

func (p *plugin) load(a *anypb.Any) (id uint64) {
	defer p.barrier("loading a configuration")
	p.mu.Lock()
	defer p.mu.Unlock()
	if id, ok := p.ids[a]; ok {
		return id
	}
	b, err := proto.Marshal(a)
	if err != nil {
		logf(host.Error, "meltemi: plugin_config: %v", err)
	}
	id = p.host().Load(b)
	p.ids[a] = id
	return id
}

// factory implements network.FilterFactory.
type factory struct {
	p  *plugin
	id uint64
}

// CreateFilter implements network.FilterFactory.
func (f factory) CreateFilter(cb api.ConnectionCallback) api.DownstreamFilter {
	return &filter{factory: f, conn: &connection{cb: cb}}
}

// filter implements api.DownstreamFilter. When it is garbage Envoy's package frees what cb
// calls: so the connection keeps it until it is released.
type filter struct {
	factory
	conn   *connection
	client *golang.Client
	read   [1][]byte
}

// OnNewConnection implements api.DownstreamFilter.
func (f *filter) OnNewConnection() api.FilterStatus {
	defer f.p.barrier("taking a connection")
	f.conn.filter = f
	f.client = f.p.host().Accept(f.id, golang.PluginName, f.conn)
	return api.NetworkFilterContinue
}

// OnData implements api.DownstreamFilter.
func (f *filter) OnData(b []byte, end bool) api.FilterStatus {
	defer f.p.barrier("reading")
	if f.client != nil {
		f.read[0] = b
		f.client.Data(f.read[:], len(b), end)
	}
	return api.NetworkFilterStopIteration
}

// OnEvent implements api.DownstreamFilter.
func (f *filter) OnEvent(e api.ConnectionEvent) {
	defer f.p.barrier("ending a connection")
	if e != api.RemoteClose && e != api.LocalClose {
		return
	}
	if f.client != nil {
		f.client.Closed(e == api.RemoteClose)
	} else {
		f.conn.Release()
	}
}

// OnWrite implements api.DownstreamFilter.
func (f *filter) OnWrite([]byte, bool) api.FilterStatus { return api.NetworkFilterContinue }

// connection implements golang.Connection.
type connection struct {
	cb     api.ConnectionCallback
	filter *filter
}

// Write implements golang.Connection.
func (c *connection) Write(b []byte) { c.cb.Write(b, false) }

// Close implements golang.Connection.
func (c *connection) Close(how golang.CloseType) { c.cb.Close(api.ConnectionCloseType(how)) }

// Later implements golang.Connection: Envoy's package panics of a write of no bytes.
func (c *connection) Later() bool { return false }

// Addresses implements golang.Connection. Of a client's connection Envoy's package calls
// them the upstream's.
func (c *connection) Addresses() (local, remote string) {
	info := c.cb.StreamInfo()
	local, _ = info.UpstreamLocalAddress()
	remote, _ = info.UpstreamRemoteAddress()
	return local, remote
}

// Release implements golang.Connection.
func (c *connection) Release() { c.filter = nil }

func (p *plugin) barrier(doing string) {
	if r := recover(); r != nil {
		p.host().Caught(doing, r)
	}
}

func logf(level host.Level, format string, args ...any) {
	switch level {
	case host.Debug:
		api.LogDebugf(format, args...)
	case host.Info:
		api.LogInfof(format, args...)
	case host.Warn:
		api.LogWarnf(format, args...)
	default:
		api.LogErrorf(format, args...)
	}
}
