package memcached_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	_ "example.org/memcached/memcached"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

const listener = `{
  "stat_prefix": "t", "protocol": {"name": "memcached", "codec": {"name": "example.codec.memcached"}},
  "request_timeout": "1s",
  "route_config": {"routes": [
    {"match": {"metadata": [{"name": "command", "string_match": {"exact": "flush_all"}}]}, "route": {"cluster": "nowhere"}},
    {"match": {"metadata": [{"name": "prefix", "string_match": {"exact": "session:"}}]}, "route": {"cluster": "sessions"}},
    {"match": {"metadata": [{"name": "prefix", "string_match": {"exact": "user:"}}]}, "route": {"cluster": "users"}}]}}`

type mesh struct {
	*filtertest.Host
	config          *filtertest.Config
	users, sessions *filtertest.Cluster
}

func newMesh(t *testing.T) *mesh {
	t.Helper()
	h := filtertest.New(t)
	m := &mesh{Host: h, users: h.Cluster("users", "10.0.0.1:11211"), sessions: h.Cluster("sessions", "10.0.0.2:11211")}
	m.config = h.MustLoad(listener)
	return m
}

// serve has the one connection of a cluster get want, and answer.
func (m *mesh) serve(t *testing.T, cluster *filtertest.Cluster, want, answer string) {
	t.Helper()
	require.Len(t, cluster.Servers(), 1)
	require.Equal(t, want, string(cluster.Servers()[0].Take()))
	cluster.Servers()[0].Send([]byte(answer))
	m.Settle()
}

func TestCommandsAreRoutedByPrefix(t *testing.T) {
	m := newMesh(t)
	c := m.Dial(m.config)
	c.Send([]byte("get session:1 session:2\r\nset user:1 0 0 2\r\nhi\r\nmg dXNlcjox b v\r\n"))
	m.serve(t, m.users, "set user:1 0 0 2\r\nhi\r\nmg dXNlcjox b v\r\n", "STORED\r\nVA 2\r\nhi\r\n")
	require.Empty(t, c.Take(), "answers come in order")
	m.serve(t, m.sessions, "get session:1 session:2\r\n", "VALUE session:2 0 1\r\nx\r\nEND\r\n")
	require.Equal(t, "VALUE session:2 0 1\r\nx\r\nEND\r\nSTORED\r\nVA 2\r\nhi\r\n", string(c.Take()))
}

func TestTheDelimiterIsAnOption(t *testing.T) {
	m := newMesh(t)
	option := `"name": "example.codec.memcached", "config": {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "r:"}`
	c := m.Dial(m.MustLoad(strings.Replace(listener, `"name": "example.codec.memcached"`, option, 1)))
	c.Send([]byte("get user:1 user:2\r\n"))
	m.serve(t, m.users, "get user:1 user:2\r\n", "END\r\n")
	c.Send([]byte("get us:er:1\r\n"))
	require.Equal(t, "END\r\nSERVER_ERROR no route matches get\r\n", string(c.Take()))
}

// TestNoKeyIsReadPastAnothersRule: whatever the rules are.
func TestNoKeyIsReadPastAnothersRule(t *testing.T) {
	m := newMesh(t)
	c := m.Dial(m.config)
	for _, b := range []string{"get user:1 session:1\r\n", "gets session:1 user:1\r\n", "gat 10 user:1 user:2 plain\r\n"} {
		c.Send([]byte(b))
		require.Equal(t, "CLIENT_ERROR the keys of one command must have one prefix\r\n", string(c.Take()))
	}
	require.Empty(t, m.users.Servers())
	require.Empty(t, m.sessions.Servers())
}

func TestWhatCannotBeServedIsAnsweredInItsTurn(t *testing.T) {
	m := newMesh(t)
	c := m.Dial(m.config)
	c.Send([]byte("get user:1\r\nshutdown\r\nget plain\r\nflush_all\r\nflush_all noreply\r\nmn\r\nset user:1 x 0 1 noreply\r\nset user:1 0 0 99000000\r\n"))
	require.Empty(t, c.Take())
	m.serve(t, m.users, "get user:1\r\n", "END\r\n")
	require.Equal(t, "END\r\nERROR\r\nSERVER_ERROR no route matches get\r\nSERVER_ERROR unknown cluster nowhere\r\nMN\r\n"+
		"SERVER_ERROR object too large for cache\r\n", string(c.Take()))
	c.Send([]byte(strings.Repeat("x", 99000000) + "\r\nget user:1\r\n"))
	m.Advance(2 * time.Second)
	require.Equal(t, "SERVER_ERROR upstream request timeout\r\n", string(c.Take()))
	require.False(t, c.Closed())
}

// TestNoreplyKeepsItsPlace: what is written without waiting is read.
func TestNoreplyKeepsItsPlace(t *testing.T) {
	m := newMesh(t)
	a, b := m.Dial(m.config), m.Dial(m.config)
	a.Send([]byte("set user:1 0 0 1 noreply\r\nx\r\nget user:1\r\n"))
	b.Send([]byte("delete user:2 noreply\r\nincr user:3 1\r\n"))
	m.serve(t, m.users, "set user:1 0 0 1 noreply\r\nx\r\nget user:1\r\ndelete user:2 noreply\r\nincr user:3 1\r\n", "VALUE user:1 0 1\r\nx\r\nEND\r\n7\r\n")
	require.Equal(t, "VALUE user:1 0 1\r\nx\r\nEND\r\n", string(a.Take()))
	require.Equal(t, "7\r\n", string(b.Take()))
}

// TestAnAnswerThatDoesNotBelongIsNobodys: the connection is closed before anybody
// gets it.
func TestAnAnswerThatDoesNotBelongIsNobodys(t *testing.T) {
	for _, answer := range []string{"VALUE user:2 0 6\r\nsecret\r\nEND\r\n", "STORED\r\n", "VALUE user:1 0 1\r\nx\r\nEND\r\nEND\r\n"} {
		m := newMesh(t)
		a, b := m.Dial(m.config), m.Dial(m.config)
		a.Send([]byte("get user:1\r\n"))
		b.Send([]byte("mg user:3 v k\r\n"))
		m.serve(t, m.users, "get user:1\r\nmg user:3 v k\r\n", answer)
		require.NotContains(t, string(a.Received())+string(b.Received()), "secret")
		require.True(t, strings.HasPrefix(string(b.Take()), "SERVER_ERROR "), answer)
		require.Empty(t, m.users.Servers())
		a.Send([]byte("get user:1\r\n"))
		require.Len(t, m.users.Servers(), 1)
	}
}

func TestQuitIsNoError(t *testing.T) {
	m := newMesh(t)
	c := m.Dial(m.config)
	c.Send([]byte("get user:1\r\nquit\r\nget user:2\r\n"))
	require.False(t, c.Closed())
	m.serve(t, m.users, "get user:1\r\n", "END\r\n")
	require.Equal(t, "END\r\n", string(c.Take()))
	require.True(t, c.Closed())
	require.Zero(t, m.config.Counter("memcached.t.request_decoding_error"))
	require.True(t, m.users.Servers()[0].Open())
}

// TestQuietCommandsAreAnsweredUpstream: nobody waits for what may never come.
func TestQuietCommandsAreAnsweredUpstream(t *testing.T) {
	m := newMesh(t)
	a, b := m.Dial(m.config), m.Dial(m.config)
	a.Send([]byte("mg user:1 v q\r\nmg user:2 v q\r\nms user:3 1 q\r\nx\r\nmd user:4 q\r\nmn\r\n"))
	b.Send([]byte("mg user:1 v q\r\n"))
	require.Len(t, m.users.Servers(), 1)
	require.Equal(t, "mg user:1 v  \r\nmg user:2 v  \r\nms user:3 1  \r\nx\r\nmd user:4  \r\nmg user:1 v  \r\n", string(m.users.Servers()[0].Take()))
	m.users.Servers()[0].Send([]byte("EN\r\nVA 1\r\n2\r\nHD\r\n"))
	m.Settle()
	require.Equal(t, "VA 1\r\n2\r\n", string(a.Take()))
	m.users.Servers()[0].Send([]byte("NF\r\nEN\r\n"))
	m.Settle()
	require.Equal(t, "NF\r\nMN\r\n", string(a.Take()))
	require.Empty(t, b.Take())
}
