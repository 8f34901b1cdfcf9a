// Command meltemi-operator is the control plane: it keeps the EnvoyFilters of all services
// that have a port named tcp-metaprotocol-PROTOCOL as MetaRouters and Istio's own objects
// say. To have it know codecs and filters of your own, copy this file and import them too.
package main

import (
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"strconv"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime"

	_ "github.com/meltemi-mesh/meltemi/codecs/brpc"
	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	_ "github.com/meltemi-mesh/meltemi/codecs/thrift"
	_ "github.com/meltemi-mesh/meltemi/codecs/trpc"
	"github.com/meltemi-mesh/meltemi/control/operator/controller"
	_ "github.com/meltemi-mesh/meltemi/filters"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "meltemi-operator:", err)
		os.Exit(1)
	}
}

func run() error {
	var o controller.Options
	// -kubeconfig is there, too; without it the pod's own service account counts.
	flag.StringVar(&o.RootNamespace, "root-namespace", "istio-system", "Istio's root namespace")
	flag.StringVar(&o.Domain, "cluster-domain", "cluster.local", "the cluster's domain")
	flag.StringVar(&o.Namespace, "leader-election-namespace", os.Getenv("POD_NAMESPACE"), "where replicas agree who writes; empty if there is one only")
	flag.StringVar(&o.Metrics, "metrics-address", ":8080", "where metrics are served; 0 for nowhere")
	flag.StringVar(&o.Health, "health-address", ":8081", "where /healthz and /readyz are served; 0 for nowhere")
	flag.StringVar(&o.Profiles, "pprof-address", "0", "where profiles of the process are served, under /debug/pprof; 0 for nowhere")
	flag.IntVar(&o.Workers, "workers", 4, "how many services are worked on at once")
	flag.StringVar(&o.RDS.Address, "rds-address", "", "where routes are served to proxies, such as :15010; empty for nowhere")
	service := flag.String("rds-service", "", "HOST:PORT of the Service by which proxies find that; meltemi-operator in the pod's namespace, 15010 by default")
	flag.StringVar(&o.RDS.Files.Certificate, "rds-certificate", "", "file of the server's certificate; read again as it changes, as the other two")
	flag.StringVar(&o.RDS.Files.Key, "rds-key", "", "file of its key")
	flag.StringVar(&o.RDS.Files.Roots, "rds-roots", "", "file of the roots of the proxies' certificates")
	flag.BoolVar(&o.RDS.Insecure, "rds-insecure", false, "serve routes without TLS, to whoever asks")
	flag.StringVar(&o.RDS.TrustDomain, "rds-trust-domain", "", "the one that proxies must be of; empty for any that the roots vouch for")
	level := slog.LevelInfo
	flag.TextVar(&level, "log-level", slog.LevelInfo, "debug, info, warn or error")
	flag.Parse()
	// It waits most of the time, and holds what all services say: half as much memory again
	// as that, and not twice, costs it little.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	log := logr.FromSlogHandler(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	ctrl.SetLogger(log)
	if *service == "" {
		*service = "meltemi-operator." + os.Getenv("POD_NAMESPACE") + ".svc." + o.Domain + ":15010"
	}
	host, port, err := net.SplitHostPort(*service)
	if err == nil {
		o.RDS.Service.Host = host
		o.RDS.Service.Port, err = strconv.Atoi(port)
	}
	if err != nil {
		return fmt.Errorf("-rds-service: %w", err)
	}
	config, err := ctrl.GetConfig()
	if err != nil {
		return err
	}
	// Changes of many services at once are written as fast as the API server lets them.
	config.QPS, config.Burst = 200, 400
	m, err := controller.New(config, o, log)
	if err != nil {
		return err
	}
	return m.Start(ctrl.SetupSignalHandler())
}
