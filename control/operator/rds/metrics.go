package rds

import "github.com/prometheus/client_golang/prometheus"

var (
	proxies = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "meltemi_operator_rds_proxies",
		Help: "Proxies that have streams to this replica.",
	})
	streams = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "meltemi_operator_rds_streams",
		Help: "Streams of these proxies.",
	})
	pushes = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "meltemi_operator_rds_pushes_total",
		Help: "Answers with routes that were sent.",
	})
	answers = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "meltemi_operator_rds_acknowledgements_total",
		Help: "What proxies said of them, by result: accepted, refused.",
	}, []string{"result"})
	acceptedTotal = answers.WithLabelValues("accepted")
	refusedTotal  = answers.WithLabelValues("refused")
	latency       = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "meltemi_operator_rds_push_seconds",
		Help:    "From a change of routes, or the request for them if it came later, until a proxy has accepted them.",
		Buckets: []float64{.001, .005, .01, .05, .1, .5, 1, 2, 5, 10, 30},
	})
)

// Metrics are what the servers of the process count.
func Metrics() []prometheus.Collector {
	return []prometheus.Collector{proxies, streams, pushes, answers, latency}
}
