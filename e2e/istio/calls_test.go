package istio

import (
	"fmt"
	"testing"

	"github.com/meltemi-mesh/meltemi/e2e/internal/calls"
	"github.com/meltemi-mesh/meltemi/e2e/internal/mesh"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// TestCallsEndAsTheyDoWithoutAMesh makes the calls that the tests without a mesh
// make, between two pods.
func TestCallsEndAsTheyDoWithoutAMesh(t *testing.T) {
	ns := world.Namespace(t)
	pods := ns.Pods(
		mesh.PodSpec{Name: "client", Role: mesh.Sidecar, Labels: map[string]string{"app": "client"}},
		mesh.PodSpec{Name: "server", Role: mesh.Sidecar, Labels: map[string]string{"app": "server"}},
	)
	client, server := pods[0], pods[1]
	header := peers.Wire{Transport: "header", Protocol: "compact"}
	services := []struct {
		name, protocol string
		port           int
		serve          func(port int)
		call           func(t *testing.T, at peers.Place, port int)
	}{
		{"dubbo-go", "dubbo", 20001, provider(t, server, peers.DubboGo), consumers("dubbo-go")},
		{"dubbo-java", "dubbo", 20002, provider(t, server, peers.Java), consumers("dubbo-java")},
		{"thrift-framed", "thrift", 20003, func(port int) {
			peers.ThriftGo.ServerIn(t, at(server, server.IP), "thrift-framed", framed, port)
		}, thriftClients(framed, "thrift-framed")},
		{"thrift-header", "thrift", 20004, func(port int) {
			peers.ThriftPython.ServerIn(t, at(server, server.IP), "thrift-header", header, port)
		}, thriftClients(header, "thrift-header")},
		{"trpc", "trpc", 20005, func(port int) {
			peers.TRPCServer(t, peers.TRPCServerOptions{Place: at(server, server.IP), Name: "trpc", Port: port})
		}, func(t *testing.T, at peers.Place, port int) {
			for name, o := range map[string]peers.TRPCClientOptions{"pooled": {Place: at}, "multiplexed": {Place: at, Multiplexed: 1}} {
				t.Run(name, func(t *testing.T) { calls.TRPC(t, peers.TRPCClient(t, port, o), "trpc", false) })
			}
		}},
		{"auto", "auto", 20008, func(port int) {
			peers.ThriftGo.ServerIn(t, at(server, server.IP), "auto", framed, port)
		}, thriftClients(framed, "auto")},
		{"brpc-java", "brpc", 20006, brpcServer(t, server, peers.BRPCJava), brpcClients(peers.BRPCJava)},
		{"jprotobuf", "brpc", 20007, brpcServer(t, server, peers.JProtobuf), brpcClients(peers.JProtobuf)},
	}
	for _, s := range services {
		s.serve(s.port)
		ns.Apply(fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec: {selector: {app: server}, ports: [{name: tcp-%[2]s, port: %[3]d}]}
`, s.name, s.protocol, s.port))
		ns.Endpoints(s.name, map[string]int{"tcp-" + s.protocol: s.port}, server)
		ns.Apply(generate(t, fmt.Sprintf(`
host: %s.%s.svc.cluster.local
addresses: [%s]
ports: [{port: %d, protocol: %s}]
server: {selector: {app: server}}
`, s.name, ns.Name, ns.VIP(s.name), s.port, s.protocol)))
	}
	for _, s := range services {
		t.Run(s.name, func(t *testing.T) {
			client.WaitConfig("ecds_filters", fmt.Sprintf("outbound-%s[^\"]*-%d", s.name, s.port))
			server.WaitConfig("ecds_filters", fmt.Sprintf("inbound-%s[^\"]*-%d", s.name, s.port))
			s.call(t, at(client, ns.VIP(s.name)), s.port)
		})
	}
}

func provider(t *testing.T, p *mesh.Pod, l peers.Library) func(int) {
	return func(port int) {
		l.Provider(t, peers.ProviderOptions{Place: at(p, p.IP), Name: string(l), Port: port})
	}
}

func consumers(name string) func(*testing.T, peers.Place, int) {
	return func(t *testing.T, at peers.Place, port int) {
		for _, l := range []peers.Library{peers.DubboGo, peers.Java} {
			t.Run("from "+string(l), func(t *testing.T) {
				calls.Dubbo(t, l, l.Consumer(t, port, peers.ConsumerOptions{Place: at, Timeout: calls.Patience}), name)
			})
		}
	}
}

func thriftClients(w peers.Wire, name string) func(*testing.T, peers.Place, int) {
	return func(t *testing.T, at peers.Place, port int) {
		for _, l := range []peers.Thrift{peers.ThriftGo, peers.ThriftPython} {
			t.Run("from "+string(l), func(t *testing.T) {
				calls.Thrift(t, w, l.ClientIn(t, at, port, w, 0), name)
			})
		}
	}
}

func brpcServer(t *testing.T, p *mesh.Pod, l peers.BRPC) func(int) {
	return func(port int) { l.ServerIn(t, at(p, p.IP), string(l), port) }
}

func brpcClients(server peers.BRPC) func(*testing.T, peers.Place, int) {
	return func(t *testing.T, at peers.Place, port int) {
		for _, l := range []peers.BRPC{peers.BRPCJava, peers.JProtobuf} {
			t.Run("from "+string(l), func(t *testing.T) {
				calls.BRPC(t, l, server, l.Client(t, port, peers.BRPCOptions{Place: at}), string(server))
			})
		}
	}
}
