package peers

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"testing"
	"time"
)

// PrometheusServer is a running Prometheus.
type PrometheusServer struct {
	t    testing.TB
	port int
}

// Series is one of a query's result.
type Series struct {
	Labels map[string]string
	Value  float64 // NaN of a native histogram
}

// StartPrometheus starts one with a configuration, until the end of the test.
func StartPrometheus(t testing.TB, config string, flags ...string) *PrometheusServer {
	t.Helper()
	p := &PrometheusServer{t, RestartPort(t)}
	Prometheus.Start(t, func() bool { return p.get("/-/ready", nil) == nil }, append(flags,
		"--config.file="+config, "--storage.tsdb.path="+t.TempDir(), fmt.Sprintf("--web.listen-address=127.0.0.1:%d", p.port))...)
	return p
}

func (p *PrometheusServer) get(path string, answer any) error {
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d%s", p.port, path))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, b)
	}
	if err == nil && answer != nil {
		err = json.Unmarshal(b, answer)
	}
	return err
}

// Ask has the query evaluated now.
func (p *PrometheusServer) Ask(q string) (all []Series) {
	p.t.Helper()
	var answer struct {
		Data struct {
			Result []struct {
				Metric map[string]string
				Value  []any
			}
		}
	}
	if err := p.get("/api/v1/query?query="+url.QueryEscape(q), &answer); err != nil {
		p.t.Fatalf("%s: %v", q, err)
	}
	for _, r := range answer.Data.Result {
		s := Series{r.Metric, math.NaN()}
		if len(r.Value) == 2 {
			text, _ := r.Value[1].(string)
			v, err := strconv.ParseFloat(text, 64)
			if err != nil {
				p.t.Fatalf("%s: %v", q, err)
			}
			s.Value = v
		}
		all = append(all, s)
	}
	return all
}

// Only is the value of a query with one result.
func (p *PrometheusServer) Only(q string) float64 {
	p.t.Helper()
	all := p.Ask(q)
	if len(all) != 1 {
		p.t.Fatalf("%s: %v", q, all)
	}
	return all[0].Value
}

// WaitFor waits until a query has one result, and this value.
func (p *PrometheusServer) WaitFor(q string, want float64) {
	p.t.Helper()
	for end := time.Now().Add(Patience); ; time.Sleep(20 * time.Millisecond) {
		got := p.Ask(q)
		if len(got) == 1 && math.Abs(got[0].Value-want) < 1e-6 {
			return
		}
		if time.Now().After(end) {
			p.t.Fatalf("%s: %v, not %v", q, got, want)
		}
	}
}
