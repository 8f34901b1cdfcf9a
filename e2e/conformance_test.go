package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
)

// question is what the suite inside an Envoy wants to have done from outside.
type question struct {
	path   string
	form   url.Values
	answer chan<- string // "" for no
}

// TestHostsConform: what the pipeline relies on holds in Envoys, as in those that other tests play:
// the conformance suite for hosts runs inside them, as their shared object.
func TestHostsConform(t *testing.T) {
	t.Parallel()
	build(t, "./envoy-build/hostso", filepath.Join(filterSO(), "libhost.so"))
	everywhere(t, func(t *testing.T, v variant) {
		asked := make(chan question)
		control := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.ParseForm()
			answer := make(chan string, 1)
			select {
			case asked <- question{r.URL.Path, r.Form, answer}:
			case <-t.Context().Done():
				return
			}
			select {
			case text := <-answer:
				if text == "" {
					w.WriteHeader(http.StatusConflict)
				}
				fmt.Fprint(w, text)
			case <-t.Context().Done():
			}
		}))
		t.Cleanup(control.Close)

		loopback := envoytest.LoopbackOf("host", envoytest.Socket())
		listener := func(name, config string) envoytest.Resource {
			f := envoytest.Module("host", "meta_protocol_proxy", nil)
			f["typed_config"].(envoytest.M)["filter_config"] = envoytest.M{"@type": "type.googleapis.com/google.protobuf.StringValue", "value": config}
			return envoytest.Listener(name, f)
		}
		o := v.options()
		o.Modules = filterSO()
		o.MayPanic = true // caught, and logged
		o.Env = []string{"HOSTTEST_CONTROL=" + control.URL}
		if v.golang && v.connect {
			o.Env = append(o.Env, "HOSTTEST_LACKS=half close")
		} else if v.golang {
			o.Env = append(o.Env, "HOSTTEST_LACKS=readiness")
		}
		o.Clusters = []envoytest.Resource{
			envoytest.Cluster("served", envoytest.At(1)...), envoytest.Cluster("refused", envoytest.At(1)...),
		}
		o.Listeners = []envoytest.Resource{loopback, listener("first", "{}")}
		e := envoytest.Start(t, o)
		for loads := 1; ; {
			var q question
			select {
			case q = <-asked:
			case <-e.Exited():
				t.Fatal("it has ended")
			}
			switch q.path {
			case "/load":
				port, err := strconv.Atoi(q.form.Get("server"))
				require.NoError(t, err)
				e.SetEndpoints("served", envoytest.At(port)...)
				// The golang filter knows a configuration again that it has had before.
				config, name := q.form.Get("config")+strings.Repeat(" ", loads), fmt.Sprint("load-", loads)
				loads++
				if !e.SetListeners(loopback, listener(name, config)) {
					q.answer <- ""
					continue
				}
				q.answer <- fmt.Sprint("127.0.0.1:", e.Port(name))
			case "/counter":
				q.answer <- strconv.FormatInt(e.Stat("meta_protocol."+q.form.Get("name")), 10)
			case "/end":
				q.answer <- "good"
				if q.form.Get("passed") != "true" {
					log := e.Log()
					t.Fatal(log[max(0, strings.Index(log, "=== RUN")):])
				}
				return
			}
		}
	})
}
