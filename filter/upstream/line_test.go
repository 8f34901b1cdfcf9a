package upstream_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/upstream"
)

// two has two connections that are up.
func two(t *testing.T, change func(o *upstream.Options)) *bed {
	t.Helper()
	b := newBed(t, inOrder, func(o *upstream.Options) {
		if o.MinConnections = 2; change != nil {
			change(o)
		}
	})
	b.send("first", nil, upstream.Send{})
	b.up()
	require.Len(t, b.open(), 2)
	b.servers[0].answers(0)
	b.servers[0].got = nil
	return b
}

// TestAClientsCallsFollowTheOnesBefore on their connection while an answer is owed
// there; others use both meanwhile, and so does the client afterwards.
func TestAClientsCallsFollowTheOnesBefore(t *testing.T) {
	b := two(t, nil)
	var a upstream.Lines
	used := map[*server]bool{}
	for round := range 10 {
		cs := []*caller{b.send("a0", &a, upstream.Send{})}
		mine, other := b.servers[0], b.servers[1]
		if len(mine.got) == 0 {
			mine, other = other, mine
		}
		used[mine] = true
		others := b.sends("x", "y")
		for i := 1; i < 5; i++ {
			cs = append(cs, b.send(fmt.Sprint("a", i), &a, upstream.Send{}))
		}
		var got []string
		for _, name := range mine.names() {
			if name[0] == 'a' {
				got = append(got, name)
			}
		}
		require.Equal(t, []string{"a0", "a1", "a2", "a3", "a4"}, got)
		require.NotEmpty(t, other.got, "round %d", round)
		for _, s := range b.servers {
			s.answers(seq(len(s.got))...)
			s.got = nil
		}
		for _, c := range append(cs, others...) {
			require.Equal(t, "answered", c.is())
		}
	}
	require.Len(t, used, 2)
}

// TestALineWaitsForWhatADrainingConnectionOwes, and its neighbours do not.
func TestALineWaitsForWhatADrainingConnectionOwes(t *testing.T) {
	b := newBed(t, inOrder, nil)
	var a upstream.Lines
	cs := []*caller{b.send("a0", &a, upstream.Send{})}
	b.up()
	b.servers[0].says("away")
	cs = append(cs, b.send("a1", &a, upstream.Send{}), b.send("a2", &a, upstream.Send{}))
	x := b.send("x", nil, upstream.Send{})
	b.up()
	require.Equal(t, []string{"x"}, b.servers[1].names())
	require.Equal(t, []string{"under way", "waits", "waits"}, all(cs))
	b.servers[0].answers(0)
	require.True(t, b.servers[0].ended)
	require.Equal(t, []string{"x", "a1", "a2"}, b.servers[1].names())
	b.servers[1].answers(0, 1, 2)
	require.Equal(t, []string{"answered", "answered", "answered", "answered"}, all(append(cs, x)))
}

func TestALineDoesNotWaitForWhatWillNotBeTold(t *testing.T) {
	for name, play := range map[string]func(b *bed, c *caller){
		"its deadline has passed": func(b *bed, _ *caller) { b.pass(1100 * time.Millisecond) },
		"its connection is lost":  func(b *bed, _ *caller) { b.servers[0].ends(host.Reset) },
		"it has been cancelled":   func(b *bed, c *caller) { b.cancel(c) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, inOrder, nil)
			var a upstream.Lines
			c := b.send("a0", &a, upstream.Send{Timeout: time.Second})
			b.up()
			b.servers[0].says("away")
			next := b.send("a1", &a, upstream.Send{})
			b.send("x", nil, upstream.Send{}) // for which there is a connection
			b.up()
			require.Equal(t, "waits", next.is())
			play(b, c)
			require.Equal(t, "under way", next.is())
			require.Equal(t, []string{"x", "a1"}, b.servers[1].names())
			b.servers[1].answers(0, 1)
			require.Equal(t, "answered", next.is())
		})
	}
}

// TestAnExclusiveLineGoesOneByOne, over the connection that it has just had, though
// others are idle.
func TestAnExclusiveLineGoesOneByOne(t *testing.T) {
	b := two(t, exclusive)
	var a upstream.Lines
	var cs []*caller
	for i := range 3 {
		cs = append(cs, b.send(fmt.Sprint("a", i), &a, upstream.Send{}))
	}
	require.Equal(t, []string{"under way", "waits", "waits"}, all(cs))
	x := b.send("x", nil, upstream.Send{})
	require.Equal(t, "under way", x.is(), "a neighbour has the other one")
	mine := b.servers[0]
	if mine.names()[0] != "a0" {
		mine = b.servers[1]
	}
	for i := range cs {
		require.Len(t, mine.got, i+1)
		mine.answers(i)
	}
	require.Equal(t, []string{"a0", "a1", "a2"}, mine.names())
	require.Equal(t, []string{"answered", "answered", "answered"}, all(cs))
	require.Len(t, b.servers, 2)
}

// TestWhatComesBehindAOnewayFollowsIt where the connection drains: the server may
// not have read it yet.
func TestWhatComesBehindAOnewayFollowsIt(t *testing.T) {
	b := newBed(t, inOrder, nil)
	var a upstream.Lines
	b.send("a0", &a, upstream.Send{Oneway: true})
	b.up()
	b.servers[0].says("away")
	next := b.send("a1", &a, upstream.Send{})
	x := b.send("x", nil, upstream.Send{})
	b.up()
	require.Equal(t, []string{"a0", "a1"}, b.servers[0].names())
	require.Equal(t, []string{"x"}, b.servers[1].names())
	b.servers[0].answers(1)
	b.servers[1].answers(0)
	require.Equal(t, []string{"answered", "answered"}, all([]*caller{next, x}))
}

func TestACrowdedLineStopsItsClientOnly(t *testing.T) {
	b := two(t, exclusive)
	var a, other upstream.Lines
	var cs []*caller
	for i := range 64 + 1 {
		require.False(t, b.pool.Full(a.To(b.pool)))
		cs = append(cs, b.send(fmt.Sprint("a", i), &a, upstream.Send{}))
	}
	require.True(t, b.pool.Full(a.To(b.pool)))
	require.False(t, b.pool.Full(other.To(b.pool)))
	resumed := 0
	b.pool.Wait(&upstream.Waiter{Resume: func() { resumed++ }}, a.To(b.pool))
	mine := b.servers[0]
	if len(mine.got) == 0 {
		mine = b.servers[1]
	}
	for i := range 32 {
		require.Zero(t, resumed)
		mine.answers(i)
	}
	require.Equal(t, 1, resumed)
	for i := 32; i < len(cs); i++ {
		mine.answers(i)
	}
	for i, c := range cs {
		require.Equal(t, "answered", c.is())
		require.Equal(t, fmt.Sprint("a", i), mine.names()[i])
	}
}

// TestLinesKeepTheirOrder whatever becomes of connections: when a call reaches a
// server, those of its client before it have ended, or are on that connection, too.
func TestLinesKeepTheirOrder(t *testing.T) {
	for _, change := range []func(o *upstream.Options){nil, exclusive} {
		for seed := range uint64(30) {
			rnd := rand.New(rand.NewPCG(seed, 3))
			b := newBed(t, inOrder, change)
			b.has(2)
			const clients = 5
			var lines [clients]upstream.Lines
			var calls [clients][]*caller
			at := map[string]*server{}
			answered := map[*server]int{}
			check := func() {
				for _, s := range b.servers {
					for _, name := range s.names() {
						if at[name] == nil {
							at[name] = s
							var client, nth int
							_, err := fmt.Sscanf(name, "%d-%d", &client, &nth)
							require.NoError(t, err)
							for _, c := range calls[client][:nth] {
								if c.is() == "waits" || c.is() == "under way" {
									require.Same(t, s, at[c.name], "%s came before %s", name, c.name)
								}
							}
						}
					}
				}
			}
			for range 400 {
				open := b.open()
				switch op := rnd.IntN(20); {
				case op < 9:
					i := rnd.IntN(clients)
					name := fmt.Sprintf("%d-%d", i, len(calls[i]))
					calls[i] = append(calls[i], nil)
					c := &caller{name: name}
					calls[i][len(calls[i])-1] = c
					c.call.Init(c)
					b.pool.Send(&c.call, &upstream.Send{Line: lines[i].To(b.pool), Size: 1, Timeout: 2 * time.Second})
					b.manager.Flush()
				case op < 11:
					b.up()
				case len(open) == 0: // the next one may come behind a pause
					b.pass(time.Millisecond)
				case op < 17:
					s := open[rnd.IntN(len(open))]
					if answered[s] < len(s.got) {
						s.answers(answered[s])
						answered[s]++
					}
				case op == 17:
					open[rnd.IntN(len(open))].says("away")
				case op == 18:
					open[rnd.IntN(len(open))].ends(host.Reset)
				default:
					b.pass(time.Duration(rnd.IntN(300)) * time.Millisecond)
				}
				check()
			}
			b.pass(5 * time.Second)
			answers := 0
			for _, cs := range calls {
				for _, c := range cs {
					require.NotContains(t, []string{"waits", "under way"}, c.is())
					if len(c.answered) > 0 {
						require.Equal(t, "answered", c.is())
						answers++
					}
				}
			}
			require.Greater(t, answers, 20)
		}
	}
}
