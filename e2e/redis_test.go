package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// redisClient is a client that speaks RESP2.
type redisClient struct {
	t testing.TB
	net.Conn
	r *bufio.Reader
}

func dialRedis(t testing.TB, network, address string) *redisClient {
	t.Helper()
	nc, err := net.Dial(network, address)
	require.NoError(t, err)
	t.Cleanup(func() { nc.Close() })
	return &redisClient{t, nc, bufio.NewReader(nc)}
}

// send sends one command, its arguments between spaces.
func (c *redisClient) send(commands ...string) {
	var b strings.Builder
	for _, command := range commands {
		args := strings.Fields(command)
		fmt.Fprintf(&b, "*%d\r\n", len(args))
		for _, a := range args {
			fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
		}
	}
	_, err := c.Write([]byte(b.String()))
	require.NoError(c.t, err)
}

// read returns the next answer, with spaces between what an array has.
func (c *redisClient) read() string {
	require.NoError(c.t, c.SetReadDeadline(time.Now().Add(20*time.Second)))
	v, err := c.value()
	require.NoError(c.t, err)
	return v
}

func (c *redisClient) value() (string, error) {
	line, err := c.r.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimSuffix(line, "\r\n")
	n, _ := strconv.Atoi(line[1:]) // if it is no number it is not looked at
	switch {
	case n < 0 && (line[0] == '$' || line[0] == '*'):
		return "nil", nil
	case line[0] == '$':
		b := make([]byte, n+2)
		_, err := io.ReadFull(c.r, b)
		return string(b[:n]), err
	case line[0] == '*':
		parts := make([]string, n)
		for i := range parts {
			if parts[i], err = c.value(); err != nil {
				return "", err
			}
		}
		return strings.Join(parts, " "), nil
	case line[0] == '-':
		return line, nil
	}
	return line[1:], nil
}

func (c *redisClient) do(command string) string {
	c.send(command)
	return c.read()
}

// TestRedisByACodecOfOnesOwn tries on a real server what codecs of protocols without
// ids can say of connections.
func TestRedisByACodecOfOnesOwn(t *testing.T) {
	t.Parallel()
	buildFilterSO(t)
	once(t, func(t *testing.T, v variant) {
		serve := func(password string) (socket string) {
			socket = filepath.Join(t.TempDir(), "redis")
			peers.Redis.Start(t, func() bool {
				nc, err := net.Dial("unix", socket)
				if err == nil {
					nc.Close()
				}
				return err == nil
			}, "--port", "0", "--unixsocket", socket, "--requirepass", password, "--save", "", "--appendonly", "no")
			return socket
		}
		socket := serve("sesame")
		config := envoytest.Protocol("resp", "redis", envoytest.Route("redis", nil))
		config["protocol"] = envoytest.M{"name": "resp", "codec": envoytest.M{"name": "test.codec.resp"}}
		e := startCustom(t, v, config, nil, envoytest.Cluster("redis", envoytest.Endpoint{Pipe: socket}))
		dial := func(t testing.TB) *redisClient {
			return dialRedis(t, "tcp", fmt.Sprintf("127.0.0.1:%d", e.Port("dubbo")))
		}
		direct := dialRedis(t, "unix", socket)
		require.Equal(t, "OK", direct.do("AUTH sesame"))

		t.Run("a preface, pipelining, heartbeats in their turn", func(t *testing.T) {
			c := dial(t)
			c.send("SET a 1", "GET a", "PING", "INCR a", "GET a", "NONSENSE", "PING", "QUIT", "GET a")
			for _, want := range []string{"OK", "1", "PONG", "2", "2"} {
				require.Equal(t, want, c.read())
			}
			require.Contains(t, c.read(), "-ERR unknown command")
			require.Equal(t, "PONG", c.read())
			require.Equal(t, "OK", c.read())
			_, err := c.value()
			require.ErrorIs(t, err, io.EOF)
		})
		t.Run("compare and swap", func(t *testing.T) {
			const clients, each = 8, 40
			var wg sync.WaitGroup
			for range clients {
				wg.Go(func() {
					c := dial(t)
					for n := 0; n < each; {
						c.do("WATCH counter")
						old, _ := strconv.Atoi(c.do("GET counter")) // nil is 0
						c.send("MULTI", fmt.Sprintf("SET counter %d", old+1), "EXEC")
						require.Equal(t, "OK", c.read())
						require.Equal(t, "QUEUED", c.read())
						if c.read() != "nil" {
							n++
						}
						c.do("INCR uncompared")
					}
				})
			}
			wg.Wait()
			require.Equal(t, strconv.Itoa(clients*each), direct.do("GET counter"), "no increment is lost")
		})
		t.Run("a transaction whose client leaves is nobody's", func(t *testing.T) {
			c := dial(t)
			require.Equal(t, "OK", c.do("MULTI"))
			require.Equal(t, "QUEUED", c.do("SET left 1"))
			c.Close()
			e.WaitStat("meta_protocol.resp.redis.request_active", envoytest.Exactly(0))
			for range 20 {
				o := dial(t)
				require.Equal(t, "OK", o.do("MULTI"), "it has been made clean")
				require.Empty(t, o.do("EXEC"))
				o.Close()
			}
			require.Equal(t, "nil", direct.do("GET left"))
		})
		t.Run("who blocks is in nobody's way, and takes nothing when it has left", func(t *testing.T) {
			gone, c := dial(t), dial(t)
			gone.send("BLPOP list 0")
			blocked := func(n int) func() bool {
				return func() bool { return strings.Contains(direct.do("INFO clients"), fmt.Sprintf("blocked_clients:%d", n)) }
			}
			require.True(t, eventually(20*time.Second, blocked(1)))
			require.Equal(t, "PONG", c.do("PING"))
			require.Equal(t, "OK", c.do("SET b 1"))
			gone.Close()
			require.True(t, eventually(20*time.Second, blocked(0)), "its connection is closed")
			c.send("BLPOP list 0")
			require.True(t, eventually(20*time.Second, blocked(1)))
			require.Equal(t, "1", direct.do("RPUSH list x"))
			require.Equal(t, "list x", c.read())
			require.Equal(t, "1", c.do("GET b"))
		})
		t.Run("pushes", func(t *testing.T) {
			c := dial(t)
			require.Equal(t, "subscribe news 1", c.do("SUBSCRIBE news"))
			for i := range 100 {
				require.Equal(t, "1", direct.do(fmt.Sprintf("PUBLISH news %d", i)))
			}
			for i := range 100 {
				require.Equal(t, fmt.Sprintf("message news %d", i), c.read())
			}
			require.Equal(t, "unsubscribe news 0", c.do("UNSUBSCRIBE news"))
			require.Equal(t, "OK", c.do("SET p 1"))
		})
		t.Run("a lease that is lost ends its client", func(t *testing.T) {
			c := dial(t)
			require.Equal(t, "OK", c.do("MULTI"))
			require.Equal(t, "QUEUED", c.do("SET lost 1"))
			leased := regexp.MustCompile(`(?m)^id=(\d+) .* multi=1 `).FindStringSubmatch(direct.do("CLIENT LIST"))
			require.NotNil(t, leased)
			direct.do("CLIENT KILL ID " + leased[1])
			require.NoError(t, c.SetReadDeadline(time.Now().Add(20*time.Second)))
			_, err := c.value()
			require.ErrorIs(t, err, io.EOF)
			require.Equal(t, "OK", dial(t).do("SET lost 2"))
		})
		t.Run("a preface that is refused is told", func(t *testing.T) {
			e.SetEndpoints("redis", envoytest.Endpoint{Pipe: serve("other")})
			c := dial(t)
			require.True(t, eventually(20*time.Second, func() bool {
				direct.do("CLIENT KILL TYPE normal SKIPME yes") // a good connection would serve on
				return strings.Contains(c.do("GET a"), "its preface has failed: the answer to AUTH is")
			}))
			require.Contains(t, e.Log(), "its preface has failed")
		})
		checkCountersOf(t, e, "meta_protocol.resp.redis.")
	})
}
