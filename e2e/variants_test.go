package e2e

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// variant is an Envoy that a test runs on.
type variant struct {
	version string
	workers int
	// golang says that Meltemi is served by Envoy's golang network filter.
	golang bool
	// connect says that its loopback listener takes CONNECT.
	connect bool
}

func (v variant) String() string {
	s := fmt.Sprintf("envoy-%s-workers-%d", v.version, v.workers)
	if v.golang {
		s += "-golang"
	}
	if v.connect {
		s += "-connect"
	}
	return s
}

var (
	matrix = flag.String("matrix", "smoke", "`which` Envoys: smoke (everything on the newest with 2 workers, a little on the others), full, golang (the newest, with the golang filter)")
	only   = flag.String("variant", "", "run on this Envoy only, `such as` envoy-1.38.3-workers-1")
)

var (
	newest   = variant{version: "1.40.0", workers: 2}
	variants = []variant{
		newest,
		{version: "1.40.0", workers: 1},
		{version: "1.39.3", workers: 2},
		{version: "1.39.3", workers: 1},
		{version: "1.38.3", workers: 2},
		{version: "1.38.3", workers: 1},
		byGolang, byConnect,
	}
	// smokeOn is where smoke tests run besides the newest.
	smokeOn = map[variant]bool{variants[1]: true, variants[2]: true, variants[4]: true}
	// byGolang is the golang filter's host: imitated beside that Envoy, or of CONTRIB_ENVOY_BIN or
	// ISTIO_PROXY_BIN.
	byGolang  = variant{version: "1.40.0", workers: 2, golang: true}
	byConnect = variant{version: "1.40.0", workers: 2, golang: true, connect: true}
)

// smokeByGolang are the tests that a smoke run has with the golang filter too. -matrix=golang has all.
var smokeByGolang = map[string]bool{
	"TestDubboPairings": true, "TestThriftInPieces": true, "TestTRPCManyStreams": true, "TestBRPCStream": true,
	"TestMisbehavingServer": true, "TestDuplicateAndHostileIDs": true, "TestClientThatDoesNotReadIsClosed": true,
	"TestNoServer": true, "TestHostsConform": true,
}

// byTCPProxyToo are the tests that run over tunnels by tcp_proxy as well. All run over tunnels by
// CONNECT.
var byTCPProxyToo = map[string]bool{
	"TestTRPCManyStreams": true, "TestBRPCStream": true, "TestTRPCSharedConnection": true, "TestHostsConform": true,
	"TestASlowServerGetsAllBehindAClose": true,
}

// What Envoy's golang filter cannot do, by the sentence of its source that says it (contrib/golang/
// filters/network/source, and what it stands on).
const (
	// golang.cc, Filter::onData: data.drain(data.length()), whatever the filter says; golang.h has
	// nothing that disables reading, and no watermark callback that does anything.
	noBackpressure = "a client cannot be made to wait: it is closed at its limit"
	// golang.cc, Filter::initializeReadFilterCallbacks: no enableHalfClose. Without it
	// ConnectionImpl::onReadReady closes at the client's end of stream.
	noHalfClose = "a client's FIN is its end"
	// config.cc: a filter's configuration goes to the library of one library_id, which has no other
	// kind of filter: a loopback listener has none of ours.
	noCarrier = "there is no carrier filter: its loopback listener is Envoy's own filters, and its socket its owner's"
	// config.cc, createFilterFactoryFromProtoTyped: whatever the library says, the factory is made.
	noRefusal = "a configuration cannot be refused: it is logged and counted, and the one before it goes on"
	// Its functions (dso.h, NetworkFilterDsoImpl) know no cluster's hosts.
	noHosts = "nothing tells hosts: they are known as tunnels have led to them"
)

// notByConnect are tests that run over tunnels by tcp_proxy alone. Of a CONNECT's end of stream the
// server hears nothing but the end of both directions, by which what Envoy still has of it is lost:
// source/common/http/conn_manager_impl.cc, ConnectionManagerImpl::initializeReadFilterCallbacks: no
// enableHalfClose.
var notByConnect = map[string]bool{"TestASlowServerGetsAllBehindAClose": true}

// notByGolang are tests of that.
var notByGolang = map[string]string{
	"TestHalfClosedClientGetsItsAnswers":          noHalfClose,
	"TestTRPCStreamToAFrozenServer":               noBackpressure,
	"TestBRPCStreamToASlowServer":                 noBackpressure,
	"TestServerThatDoesNotReadCostsBoundedMemory": noBackpressure,
	"TestHostileStrangers":                        noCarrier,
	"TestHostileSquatter":                         noCarrier,
	"TestBadCarriersAreRefused":                   noCarrier,
	"TestAWrongLoopbackListener":                  noCarrier,
	"TestParkedCarriersLeaveADrainingListener":    noCarrier,
	"TestARefusedListenerLeavesTheOldOneServing":  noRefusal,
	"TestTheSecretIsNotToldToAStranger":           noCarrier,
	"TestTheLoopbackListenerKeepsStrangersOut":    noCarrier,
	"TestCarriersWithASourceFindTheBusierWorker":  noCarrier,
	"TestToldHostsAreEnvoys":                      noHosts,
	"TestToldHostsChangeUnderLoad":                noHosts,
	"TestTheGuidesToldHosts":                      noHosts,
	"TestRequestsGoToTheHostsOfTheirKeys":         noHosts,
	"TestTheHostWithTheLeastToDo":                 noHosts,
}

// everywhere runs a test on every variant, also in a smoke run.
func everywhere(t *testing.T, test func(*testing.T, variant)) { on(t, true, test) }

// once runs a test on the newest variant, and on all in a full run.
func once(t *testing.T, test func(*testing.T, variant)) { on(t, false, test) }

func on(t *testing.T, smoke bool, test func(*testing.T, variant)) {
	name, _, _ := strings.Cut(t.Name(), "/")
	for _, v := range variants {
		if os.Getenv("ENVOY_BIN") != "" {
			if v.version != newest.version {
				continue
			}
			v.version = "of-ENVOY_BIN"
		}
		run := v.version == "of-ENVOY_BIN" || v == newest || *matrix == "full" || smoke && smokeOn[v]
		if v.golang || *matrix == "golang" {
			run = (*matrix == "golang" || smokeByGolang[name]) && v.golang && (v.connect || byTCPProxyToo[name])
		}
		if *only != "" {
			run = v.String() == *only
		}
		if run {
			t.Run(v.String(), func(t *testing.T) {
				if why := notByGolang[name]; why != "" && v.golang {
					t.Skipf("not by the golang filter: %s", why)
				}
				if notByConnect[name] && v.connect {
					t.Skip("not by CONNECT: its end of stream is that of both directions")
				}
				test(t, v)
			})
		}
	}
}

// component is that of Envoy's log which Meltemi's lines are of.
func (v variant) component() string {
	if v.golang {
		return "golang"
	}
	return "dynamic_modules"
}

// options for an Envoy of the variant with Meltemi.
func (v variant) options() envoytest.Options {
	root := peers.Root()
	bin := os.Getenv("ENVOY_BIN")
	if bin == "" {
		bin = filepath.Join(root, "build", "envoy-"+v.version, "envoy")
	}
	o := envoytest.Options{Bin: bin, Concurrency: v.workers, Modules: filepath.Join(root, "build")}
	if v.golang {
		o.Golang = envoytest.Imitated
		if v.connect {
			o.Tunnels = envoytest.ByConnect
		}
		for _, env := range []string{"CONTRIB_ENVOY_BIN", "ISTIO_PROXY_BIN"} {
			if bin := os.Getenv(env); bin != "" {
				o.Bin, o.Golang = bin, envoytest.Built
			}
		}
	}
	return o
}

// shares checks that pools of one connection have had no more than one of each worker. By CONNECT
// it takes some more to learn which hosts there are: those go again.
func (v variant) shares(t *testing.T, e *envoytest.Envoy, cluster string) {
	t.Helper()
	if v.connect {
		e.WaitStat("cluster."+cluster+".upstream_cx_active", func(n int64) bool { return n <= int64(v.workers) })
		return
	}
	require.LessOrEqual(t, e.Stat("cluster."+cluster+".upstream_cx_total"), int64(v.workers))
}

// start runs an Envoy with a loopback listener and one listener, named as its
// protocol, with that configuration.
func (v variant) start(t *testing.T, config envoytest.M, clusters ...envoytest.Resource) *envoytest.Envoy {
	t.Helper()
	o := v.options()
	o.Clusters = clusters
	o.Listeners = []envoytest.Resource{
		envoytest.Loopback(envoytest.Socket()),
		envoytest.Listener(config["protocol"].(envoytest.M)["name"].(string), envoytest.Proxy(config)),
	}
	return envoytest.Start(t, o)
}

// toOne is a configuration that sends everything to one cluster.
func toOne(cluster string) envoytest.M {
	return envoytest.Dubbo("test", envoytest.Route(cluster, nil))
}

const stats = "meta_protocol.dubbo.test."
