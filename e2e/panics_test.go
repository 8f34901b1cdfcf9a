package e2e

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// badHeartbeat makes the pipeline panic, which its host has to bear.
var badHeartbeat = dubbotest.Frame(0xe2, 0, 7, []byte("\x14boom in the pipeline"))

// TestAPanicOfACodecEndsItsConnection and nothing else: what waits on it is
// answered, other clients go on, and it is counted.
func TestAPanicOfACodecEndsItsConnection(t *testing.T) {
	t.Parallel()
	buildFilterSO(t)
	once(t, func(t *testing.T, v variant) {
		config := toOne("one")
		config["protocol"] = envoytest.M{"name": "dubbo", "codec": envoytest.M{"name": "test.codec.boom"}}
		config["request_timeout"] = "60s"                      // nothing here ends by it
		config["upstream"] = envoytest.M{"max_connections": 1} // by which the requests of a client go together
		barrier := "dynamicmodules.(*worker).barrier"
		if v.golang {
			barrier = "golang.(*worker).guard"
		}
		start := func(t *testing.T) (*envoytest.Envoy, chan func()) {
			held := make(chan func(), 1)
			s := scripted.Serve(t, func(c *scripted.Conn, req dubbotest.Parsed) {
				switch {
				case bytes.Contains(req.Body, []byte("hold")):
					held <- func() { c.Write(dubbotest.Response(req.ID, "one")) }
				case bytes.Contains(req.Body, []byte("bad to decode")):
					c.Write(dubbotest.Response(req.ID, "boom in decode server to client"))
				case bytes.Contains(req.Body, []byte("with a bad heartbeat")):
					c.Write(badHeartbeat)
				case bytes.Contains(req.Body, []byte("bad to encode")):
					c.Write(dubbotest.Response(req.ID, "boom in encode"))
				default:
					c.Write(dubbotest.Response(req.ID, "one"))
				}
			})
			return startCustom(t, v, config, nil, envoytest.Cluster("one", envoytest.At(s.Port)...)), held
		}
		for name, tc := range map[string]struct {
			method string
			// cold is before there is a connection upstream.
			cold bool
			// server tells that its connection ends, and not the client's.
			server         bool
			counter, stack string
			want           map[uint64]string
		}{
			"decoding a request":             {"boom in decode client to server", false, false, stats + "connection_panic", "filterso/main.go", map[uint64]string{2: "one"}},
			"encoding a request":             {"boom in encode", false, false, stats + "connection_panic", "filterso/main.go", map[uint64]string{2: "one", 3: "internal error"}},
			"encoding a request that waited": {"boom in encode", true, false, stats + "connection_panic", "filterso/main.go", map[uint64]string{2: "one", 3: "internal error"}},
			"encoding an answer":             {"bad to encode", false, false, stats + "connection_panic", "filterso/main.go", map[uint64]string{2: "one", 3: "internal error"}},
			"decoding an answer":             {"bad to decode", false, true, stats + "connection_panic", "filterso/main.go", map[uint64]string{2: "internal error", 3: "internal error"}},
			"an event of the client's":       {"", false, false, "meta_protocol.panics", barrier, map[uint64]string{}},
			"an event of the server's":       {"with a bad heartbeat", false, true, stats + "connection_panic", "upstream.(*conn).barrier", map[uint64]string{2: "internal error", 3: "internal error"}},
		} {
			t.Run(name, func(t *testing.T) {
				e, held := start(t)
				var others []*scripted.Client
				for range 4 {
					others = append(others, scripted.Dial(t, e.Port("dubbo")))
				}
				goOn := func(clients ...*scripted.Client) {
					t.Helper()
					for _, c := range clients {
						c.Ask(1, dubbotest.Request{})
						require.Equal(t, "one", c.Read().Text())
					}
				}
				c := scripted.Dial(t, e.Port("dubbo"))
				if !tc.cold {
					goOn(append(others, c)...)
				}
				c.Ask(2, dubbotest.Request{Method: "hold"})
				var release func()
				if !tc.cold {
					release = <-held
				}
				if tc.method != "" {
					c.Ask(3, dubbotest.Request{Method: tc.method})
				} else {
					c.Send(badHeartbeat...)
				}
				e.WaitStat(tc.counter, envoytest.Exactly(1))
				if tc.cold {
					release = <-held
				}
				got := map[uint64]string{}
				if tc.server {
					for id, a := range c.Answers(len(tc.want)) {
						got[id] = a.Text()
					}
					goOn(c)
				} else {
					release()
					for _, a := range c.Closed() {
						got[a.ID] = a.Text()
					}
				}
				require.Equal(t, tc.want, got)
				goOn(others...)
				e.WaitStat(stats+"request_active", envoytest.Exactly(0))
				require.EqualValues(t, 1, e.Stat(tc.counter))
				require.Contains(t, e.Log(), "panic")
				require.Contains(t, e.Log(), tc.stack, "the stack is logged")
			})
		}
	})
}
