package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
)

// scrapeAddress is where Meltemi tells its metrics: Envoy's log says which port it is.
func (d *demo) scrapeAddress() (address string, err error) {
	said := regexp.MustCompile(`meltemi: admin address (\S+)`)
	err = await("the address of metrics", func() bool {
		b, err := os.ReadFile(filepath.Join(d.logs, "envoy.log"))
		if m := said.FindSubmatch(b); err == nil && m != nil {
			address = string(m[1])
		}
		return address != ""
	})
	return address, err
}

// scrape gets the metrics as Prometheus does that reads native histograms.
func scrape(address string) (families map[string]*dto.MetricFamily, err error) {
	req, err := http.NewRequest(http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", string(expfmt.NewFormat(expfmt.TypeProtoDelim)))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	d := expfmt.NewDecoder(resp.Body, expfmt.ResponseFormat(resp.Header))
	for families = map[string]*dto.MetricFamily{}; ; {
		f := &dto.MetricFamily{}
		if err := d.Decode(f); errors.Is(err, io.EOF) {
			return families, nil
		} else if err != nil {
			return nil, err
		}
		families[f.GetName()] = f
	}
}

// method is what metrics tell of one.
type method struct {
	requests int
	outcomes map[string]int
	times    map[int]uint64 // buckets of the native histogram
}

// methods adds up what metrics tell of each method, by its name.
func methods(families map[string]*dto.MetricFamily) map[string]*method {
	all := map[string]*method{}
	for _, m := range families["meltemi_request_duration_seconds"].GetMetric() {
		labels := map[string]string{}
		for _, l := range m.GetLabel() {
			labels[l.GetName()] = l.GetValue()
		}
		name := labels["service"] + "/" + labels["method"]
		of := all[name]
		if of == nil {
			of = &method{outcomes: map[string]int{}, times: map[int]uint64{}}
			all[name] = of
		}
		h := m.GetHistogram()
		of.requests += int(h.GetSampleCount())
		of.outcomes[labels["outcome"]] += int(h.GetSampleCount())
		bucket, n, deltas := 0, int64(0), h.GetPositiveDelta()
		for _, s := range h.GetPositiveSpan() {
			bucket += int(s.GetOffset())
			for range s.GetLength() {
				n += deltas[0]
				deltas = deltas[1:]
				of.times[bucket] += uint64(n)
				bucket++
			}
		}
	}
	return all
}

// quantile is within 9 % of what it was: a bucket's upper bound.
func (m *method) quantile(q float64) time.Duration {
	n := uint64(0)
	for _, b := range slices.Sorted(maps.Keys(m.times)) {
		if n += m.times[b]; float64(n) >= q*float64(m.requests) {
			return time.Duration(math.Exp2(float64(b)/8) * float64(time.Second)) // of schema 3
		}
	}
	return 0
}

// told prints the table of the run's own metrics, once they are of all calls.
func told(address string, calls int) error {
	var all map[string]*method
	err := await("the metrics of all calls", func() bool {
		families, err := scrape(address)
		if err != nil {
			return false
		}
		all = methods(families)
		n := 0
		for _, m := range all {
			n += m.requests
		}
		return n >= calls
	})
	if err != nil {
		return err
	}
	fmt.Printf("Meltemi tells Prometheus, at http://%s/metrics\n\n", address)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "METHOD\tREQUESTS\tOUTCOMES\tP50\tP99")
	total := 0
	for _, name := range slices.Sorted(maps.Keys(all)) {
		m := all[name]
		total += m.requests
		var outcomes []string
		for _, o := range slices.Sorted(maps.Keys(m.outcomes)) {
			outcomes = append(outcomes, fmt.Sprintf("%s %d", o, m.outcomes[o]))
		}
		ms := func(q float64) string { return fmt.Sprintf("%.2f ms", m.quantile(q).Seconds()*1000) }
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\n", name, m.requests, strings.Join(outcomes, ", "), ms(0.5), ms(0.99))
	}
	w.Flush()
	fmt.Println()
	if total != calls {
		return fmt.Errorf("%d calls were made, and metrics tell of %d", calls, total)
	}
	return nil
}
