package filter_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

// modelDBToy is a modelToy that has all that protocols without ids have: messages
// that are quiet, muted, silent or pushed, goodbyes with answers, leases ("…hold" and
// "…last"). Its requests and their answers have the same key.
type modelDBToy struct{ modelToy }

func registerModelDBs() {
	t := modelDBToy{modelToy{boundedToy{toy{codecs.Traits{Correlation: codecs.InOrder, ShareByDefault: true}, 'r'}}}}
	for name, c := range map[string]codecs.Codec{
		"model.db": t, "model.db.preface": modelPreface{t}, "model.db.reset": modelReset{t},
		"model.db.all": struct {
			modelPreface
			modelResetter
		}{modelPreface{t}, modelResetter{}},
	} {
		codecs.Register(name, func(*anypb.Any, codecs.Limits) (codecs.Codec, error) { return c, nil })
	}
}

func (t modelDBToy) NewDecoder(codecs.Direction) codecs.Decoder { return t }

func (t modelDBToy) Decode(b []byte, m *codecs.Metadata) (int, error) {
	n, err := t.modelToy.Decode(b, m)
	if err != nil || n > len(b) {
		return n, err
	}
	switch method := string(m.Method()); {
	case strings.HasSuffix(method, "hold"):
		m.Lease = codecs.LeaseHeld
	case strings.HasSuffix(method, "last"):
		m.Lease = codecs.LeaseEnds
	}
	m.ExpectsReply = m.ExpectsReply || m.Type == codecs.Goodbye && n > len("bye\n")
	m.Silent = m.Type == codecs.Response && bytes.Contains(m.Raw, []byte("silent"))
	return n, nil
}

func (t modelDBToy) DecodeAnswer(b []byte, m, req *codecs.Metadata) (int, error) {
	n, err := t.Decode(b, m)
	switch {
	case err != nil || n > len(b) || req == nil, m.Type != codecs.Response && m.Type != codecs.Error,
		bytes.Equal(m.ReplyInfo, req.ReplyInfo):
		return n, err
	case req.Type == codecs.Quiet:
		return 0, codecs.ErrUnanswered
	}
	return 0, &codecs.ProtocolError{Protocol: "toy", Reason: "another one's answer"}
}

// EncodeError says whose error it is.
func (t modelDBToy) EncodeError(dst []byte, req *codecs.Metadata, e *codecs.LocalError) ([]byte, error) {
	return fmt.Appendf(dst, "err %d - %s;%s\n", req.ID, e.Message, req.ReplyInfo), nil
}

type modelPreface struct{ modelDBToy }

func (modelPreface) AppendPreface(dst []byte, _ uint8) ([]byte, error) {
	return append(dst, "one 0 hello -\nreq 0 login login\n"...), nil
}

func (modelPreface) CheckPreface(_, a *codecs.Metadata) error { return checkRite(a) }

type modelReset struct {
	modelDBToy
}

func (modelReset) AppendReset(dst []byte, v uint8) ([]byte, error) {
	return modelResetter{}.AppendReset(dst, v)
}

func (modelReset) CheckReset(_, a *codecs.Metadata) error { return checkRite(a) }

type modelResetter struct{}

func (modelResetter) AppendReset(dst []byte, _ uint8) ([]byte, error) {
	return append(dst, "req 0 clean clean\n"...), nil
}

func (modelResetter) CheckReset(_, a *codecs.Metadata) error { return checkRite(a) }

func checkRite(a *codecs.Metadata) error {
	if !bytes.Contains(a.Raw, []byte("fine;")) {
		return errors.New("the server does not like it")
	}
	return nil
}

// modelDB is what a server knows of a connection of such a protocol.
type modelDB struct {
	up      *filtertest.Cluster
	rites   string // what it has to answer before anything else comes: "login", "clean"
	greeted bool
	refused bool // nothing may come any more
	holder  *modelClient
	last    *modelClient // that has leased it
}

// arrival is the newest request of a client that has come to a cluster.
type arrival struct {
	index int
	gone  bool // its client had gone
}

// hold is what a client leases a connection of.
type hold struct {
	up      *filtertest.Cluster
	variant bool
}

// holding is the connection that a client holds, since its index-th request.
type holding struct {
	s     *filtertest.Server
	index int
}

func (ms *modelDB) lastName() string {
	if ms.last == nil {
		return "nobody"
	}
	return fmt.Sprintf("c%d", ms.last.n)
}

// dbLine makes a, a message of type typ, one of those that only such protocols have.
func (w *model) dbLine(a *asked, typ string) string {
	if w.chance(4) && a.method[0] == 'm' {
		a.method = pickOf(w, "mhold", "mhold", "mlast", "mbhold", "mblast")
	}
	if typ == "req" {
		switch w.rng.IntN(6) {
		case 0:
			a.maybe = true
			return "quiet"
		case 1:
			a.oneway = true
			return "muted"
		}
	}
	return typ
}

// rite takes what the codec itself says to a server, and checks that nothing else
// comes before it or before its answer.
func (w *model) rite(s *filtertest.Server, f []string) bool {
	ms := w.servers[s]
	switch {
	case f[0] == "hb": // that it has asked for
	case ms.rites != "":
		w.fail("a server gets %q before it has answered %s", f, ms.rites)
	case ms.refused:
		w.fail("a server gets %q after it has refused", f)
	case f[2] == "hello" && !ms.greeted:
		return true
	case f[2] == "login" && !ms.greeted, f[2] == "clean" && ms.holder != nil && len(ms.owed) == 0:
		w.logf("%s of %p is asked to %s", s.Host, s, f[2])
		ms.rites = f[2]
		switch n := w.rng.IntN(8); {
		case w.good || n > 3:
			w.endRite(s, true)
		case n == 0:
			w.endRite(s, false)
		case n == 1:
			s.Close()
		case n == 2:
			s.Send([]byte("away 0 - -\n"))
		}
		return true
	case w.preface && !ms.greeted:
		w.fail("a server gets %q before its preface", f)
	}
	return false
}

// endRite answers it.
func (w *model) endRite(s *filtertest.Server, fine bool) {
	ms := w.servers[s]
	what := ms.rites
	ms.rites = ""
	if !fine {
		ms.refused = true
		s.Send([]byte("res 0 " + what + " no;" + what + "\n"))
		return
	}
	ms.greeted, ms.holder = true, nil
	s.Send([]byte("res 0 " + what + " fine;" + what + "\n"))
}

// arrives checks that a request may come to a server now, over this connection: in
// its order and, if a connection is leased, over that one and no other.
func (w *model) arrives(s *filtertest.Server, f []string, a *asked) {
	ms, c := w.servers[s], a.client
	if last := c.arrived[ms.up]; a.index < last.index {
		patience := time.Second
		timedOut := func(o *asked) bool { return !o.oneway && w.now-o.at >= patience }
		if f[0] == "one" && !slices.ContainsFunc(c.asked[a.index+1:], timedOut) {
			patience = 5 * time.Second // else the line has not waited for what was behind it
		}
		if !a.answered && !last.gone && w.now-a.at < patience {
			w.fail("a server gets %q of %s behind %s", f, a.key, c.asked[last.index].key)
		}
	} else {
		c.arrived[ms.up] = arrival{a.index, c.Closed()}
	}
	if ms.holder != nil && ms.holder != c {
		w.fail("a server gets %q over the connection that c%d holds", f, ms.holder.n)
	}
	if !w.db || !strings.HasSuffix(a.method, "hold") && !strings.HasSuffix(a.method, "last") {
		return
	}
	k := hold{ms.up, f[0] == "vreq"}
	h, ok := c.holds[k]
	if ok && h.index > a.index { // late, as a server did not read: its client has been told
		return
	}
	if ok && h.s != s {
		given := false
		for _, o := range c.asked[h.index:a.index] {
			given = given || strings.HasSuffix(o.method, "last")
		}
		if !given {
			w.fail("a server gets %q not over the connection that c%d holds", f, c.n)
		}
	}
	if ms.last = c; strings.HasSuffix(a.method, "hold") {
		ms.holder, c.holds[k] = c, holding{s, a.index}
	} else {
		ms.holder = nil
		delete(c.holds, k)
	}
}
