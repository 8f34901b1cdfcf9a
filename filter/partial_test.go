package filter_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

// large is a request of about so many bytes.
func large(id uint64, size int) []byte {
	var att [][2]string
	for ; size > 0; size -= 50_000 {
		att = append(att, [2]string{"k", strings.Repeat("x", 50_000)})
	}
	return dubbotest.Request{ID: id, Attachments: att}.Bytes()
}

// sendSlowly sends b as a host does, in pieces of its buffer.
func sendSlowly(c *filtertest.Client, b []byte) {
	const piece = 64 << 10
	for len(b) > 0 {
		n := min(piece, len(b))
		c.Send(b[:n])
		b = b[n:]
	}
}

func dialMany(e *env, n int) (wl []*filtertest.Client) {
	for range n {
		wl = append(wl, e.Dial(e.cfg))
	}
	return wl
}

func open(wl []*filtertest.Client) (n int) {
	for _, c := range wl {
		if !c.Closed() {
			n++
		}
	}
	return n
}

// TestUnfinishedFramesHaveABudget over all clients of a worker: max_partial_bytes.
// Those that send the rest are served, small frames always; the memory is given
// back.
func TestUnfinishedFramesHaveABudget(t *testing.T) {
	const size, budget = 512 << 10, 2 << 20
	e := newEnv(t, fmt.Sprintf(`, "limits": {"max_partial_bytes": %d}`, budget))
	e.c.Send(req(1))
	e.c.Take()
	before := heapInUse()
	frame := large(7, size)
	hostile := dialMany(e, 20)
	for _, c := range hostile {
		sendSlowly(c, frame[:len(frame)-1])
	}
	waiting := 0
	for _, c := range hostile {
		if c.ReadDisabled() {
			waiting++
		}
	}
	require.Greater(t, waiting, 12)
	// What the host keeps of them is the host's: less than a frame each here.
	require.Less(t, heapInUse()-before, budget+2*size+2*waiting*size)

	e.c.Send(req(2))
	require.EqualValues(t, 2, one(t, e.c).ID, "small frames go on")
	honest := e.Dial(e.cfg)
	sendSlowly(honest, large(3, 2*size))
	require.Empty(t, replies(t, honest), "those before it have their turn")
	e.Advance(20 * time.Second)
	require.EqualValues(t, 3, one(t, honest).ID)
	require.LessOrEqual(t, open(hostile), budget/size, "there is room for those")
	e.Advance(15 * time.Second)
	require.Zero(t, open(hostile))
	require.EqualValues(t, 20, e.count("partial_frame_overflow")+e.count("partial_frame_timeout"))
	require.NotZero(t, e.count("partial_frame_wait"))
	require.False(t, e.c.Closed())
	require.Less(t, heapInUse()-before, 5*size, "what the test's own server and client have got")

	// Without others in the way nobody has to hurry.
	slow := e.Dial(e.cfg)
	b := large(4, 2*budget)
	for len(b) > 0 {
		n := min(len(b), 400<<10)
		slow.Send(b[:n])
		b = b[n:]
		e.Advance(1100 * time.Millisecond)
	}
	require.EqualValues(t, 4, one(t, slow).ID, "one frame always fits")
}

// TestFramesBehindOthersHaveTheBudgetToo: it makes no difference that one begins
// right behind another.
func TestFramesBehindOthersHaveTheBudgetToo(t *testing.T) {
	e := newEnv(t, `, "limits": {"max_partial_bytes": 100000}`)
	const n = 20
	wl := dialMany(e, n)
	frame := large(7, 1<<20)
	for _, c := range wl {
		c.Send(append(req(1), frame[:60<<10]...))
		require.EqualValues(t, 1, one(t, c).ID)
	}
	waiting := 0
	for _, c := range wl {
		if c.ReadDisabled() {
			waiting++
		}
	}
	require.Equal(t, n-2, waiting, "but for one within the budget and one beyond")
	for _, c := range wl {
		sendSlowly(c, frame[60<<10:])
	}
	for _, c := range wl {
		require.EqualValues(t, 7, one(t, c).ID)
	}
}

// TestLargeFramesAreNotInEachOthersWay: many that are sent at the same time come
// through, one after the other if need be.
func TestLargeFramesAreNotInEachOthersWay(t *testing.T) {
	for _, budget := range []int{0, 300 << 10, 1 << 20, 64 << 20} {
		t.Run(fmt.Sprint(budget), func(t *testing.T) {
			e := newEnv(t, fmt.Sprintf(`, "limits": {"max_partial_bytes": %d}`, budget))
			const n, size = 8, 300 << 10
			wl := dialMany(e, n)
			frames := make([][]byte, n)
			for i := range frames {
				frames[i] = append(large(uint64(i), size), req(1000)...)
			}
			for left := n; left > 0; {
				left = 0
				for i, c := range wl {
					k := min(len(frames[i]), 70<<10)
					if c.ReadDisabled() {
						k = 0
					}
					c.Send(frames[i][:k])
					if frames[i] = frames[i][k:]; len(frames[i]) > 0 {
						left++
					}
				}
				e.Advance(20 * time.Millisecond)
			}
			for i, c := range wl {
				fs := replies(t, c)
				require.Len(t, fs, 2, "client %d", i)
				require.EqualValues(t, i, fs[0].ID)
				require.False(t, c.ReadDisabled())
			}
			require.Zero(t, e.count("partial_frame_overflow"))
			require.Equal(t, budget < n*size, e.count("partial_frame_wait") > 0)
		})
	}
}

// TestAClientThatWaitsForRoomMayEnd in whatever way.
func TestAClientThatWaitsForRoomMayEnd(t *testing.T) {
	e := newEnv(t, `, "limits": {"max_partial_bytes": 100000, "partial_frame_timeout": "0.9s"}`)
	frame := large(7, 1<<20)
	first := e.Dial(e.cfg)
	sendSlowly(first, frame[:len(frame)/2])
	wl := dialMany(e, 4)
	for _, c := range wl {
		sendSlowly(c, frame[:len(frame)/2])
		require.True(t, c.ReadDisabled())
	}
	wl[0].Close()
	wl[1].CloseWrite()
	sendSlowly(first, frame[len(frame)/2:])
	require.EqualValues(t, 7, one(t, first).ID)
	require.False(t, wl[2].ReadDisabled(), "the next one")
	sendSlowly(wl[2], frame[len(frame)/2:])
	require.EqualValues(t, 7, one(t, wl[2]).ID)
	e.Advance(time.Second)
	require.Equal(t, 1, open(wl))
	require.EqualValues(t, 2, e.count("partial_frame_timeout")+e.count("request_decoding_error"))
}

// TestUnfinishedAnswersHaveABudget over all servers of a worker: max_partial_bytes.
// Those that send the rest are read to the end, small answers always; those that do
// not are given up.
func TestUnfinishedAnswersHaveABudget(t *testing.T) {
	const n, size, budget = 20, 512 << 10, 2 << 20
	e := newToyEnv(t, "toy.exclusive", fmt.Sprintf(`, "limits": {"max_partial_bytes": %d}`, budget))
	e.sayMany(n)
	servers := e.up.Servers()
	require.Len(t, servers, n)
	for _, s := range servers {
		s.Take()
	}
	before := heapInUse()
	sendSlowly := func(s *filtertest.Server, b []byte) {
		const piece = 64 << 10
		for len(b) > 0 {
			k := min(piece, len(b))
			s.Send(b[:k])
			e.Settle()
			b = b[k:]
		}
	}
	text := []byte("res 0 m " + strings.Repeat("x", size))
	for _, s := range servers {
		sendSlowly(s, text)
	}
	unread := 0
	for _, s := range servers {
		unread += s.Unread()
	}
	require.Greater(t, unread, n*size/2)
	require.NotZero(t, e.count("upstream_partial_frame_wait"))
	// What is not read is with the test's servers.
	require.Less(t, heapInUse()-before-unread, 2*(budget+size)+n*(64<<10))

	other := e.Dial(e.cfg)
	say(other, "req 77 m -") // a small one passes
	e.answer(e.serverWith("req 77"), "res 0 m small")
	require.Contains(t, string(other.Take()), "small")

	for _, s := range servers[n/2:] {
		s.Send([]byte("\n"))
	}
	e.Advance(10 * time.Second) // the others have sent nothing more
	require.NotZero(t, e.count("upstream_abuse"))
	open := 0
	for _, s := range servers[:n/2] {
		if s.Open() {
			open++
		}
	}
	require.LessOrEqual(t, open, budget/size, "there is room for those")
	e.Advance(20 * time.Second)
	require.Zero(t, e.count("request_active"))
	require.Equal(t, n/2, strings.Count(e.got(), "res "), "those that went on have been read to the end")
}
