package filter_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

// accessLog is the configuration of a log of lines of text.
func accessLog(path, format string) string {
	b, _ := json.Marshal(format)
	return `{"name": "f", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
		"path": "` + path + `", "log_format": {"text_format_source": {"inline_string": ` + string(b) + `}}}}`
}

// logLines waits until there are n lines at path, and returns them.
func logLines(t *testing.T, h *filtertest.Host, path string, n int) []string {
	t.Helper()
	var ls []string
	deadline := time.Now().Add(10 * time.Second)
	for {
		h.Advance(time.Second)
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		if ls = strings.SplitAfter(string(b), "\n"); len(ls) > n || time.Now().After(deadline) {
			require.Len(t, ls, n+1)
			return ls[:n]
		}
		time.Sleep(time.Millisecond)
	}
}

// TestALineForEachEnd: whatever the end of a request, there is one line, with its flag and
// its details.
func TestALineForEachEnd(t *testing.T) {
	const format = "%PROTOCOL% %MESSAGE_TYPE% %REQ(:PATH)% %RESPONSE_CODE% %STATUS_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %UPSTREAM_HOST% %UPSTREAM_CLUSTER% %UPSTREAM_REQUEST_ATTEMPT_COUNT% %DURATION% %LOCAL_REPLY_BODY%\n"
	path := filepath.Join(t.TempDir(), "log")
	deny := false
	current = &testFilter{onRequest: func(m *filter.Message) filter.Verdict {
		if deny {
			m.SetDetails("denied_by_test")
			return m.Reply(codecs.Denied, "no")
		}
		return filter.Continue
	}}
	e := newEnv(t, `, "meta_protocol_filters": [{"name": "test"}, {"name": "aeraki.meta_protocol.filters.router"}],
		"access_log": [`+accessLog(path, format)+`]`)
	answer := true
	e.v2.Serve = func(s *filtertest.Server, b []byte) int {
		requests, rest := dubbotest.Parse(b)
		for _, r := range requests {
			if answer {
				s.Send(dubbotest.Response(r.ID, "x"))
			}
		}
		return len(b) - len(rest)
	}
	e.c.Send(req(1, acme))
	e.Settle()
	got := logLines(t, e.Host, path, 1)[0]
	require.Contains(t, got, " 200 20 - via_upstream h2 v2 1 0 -\n")
	require.True(t, strings.HasPrefix(got, "dubbo request /"), got)
	deny = true
	e.c.Send(req(2, acme))
	e.Settle()
	deny = false
	got = logLines(t, e.Host, path, 2)[1]
	require.Contains(t, got, " 403 - UAEX denied_by_test - - 0 0 no\n")
	answer = false
	e.c.Send(req(3, acme))
	e.Settle()
	e.Advance(time.Minute)
	got = logLines(t, e.Host, path, 3)[2]
	require.Contains(t, got, " 504 - UT response_timeout h2 v2 1 ")
	e.c.Send(req(4, acme))
	e.Settle()
	e.c.Close()
	other := e.Dial(e.cfg)
	other.Send(dubbotest.Request{ID: 5, Method: "other"}.Bytes())
	e.Settle()
	ls := logLines(t, e.Host, path, 5)
	require.Contains(t, ls[3], " 0 - DC downstream_remote_disconnect h2 v2 1 0 -\n")
	require.Contains(t, ls[4], " 404 - NR route_not_found - - 0 0 no route matches ")
}
