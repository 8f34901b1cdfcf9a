package upstream

import (
	"errors"
	"fmt"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
	"github.com/meltemi-mesh/meltemi/filter/internal/timer"
)

// riteTime is how long a server may take to answer all that a rite asks.
const riteTime = 5 * time.Second

// rite is what the codec itself asks over a connection that serves nobody meanwhile:
// its preface, or what makes it clean of the client that has leased it. A connection
// over which it fails is closed.
type rite struct {
	cn      *conn
	what    string
	awaited []*codecs.Metadata // requests, in the order of their answers
	check   func(req, answer *codecs.Metadata) error
	done    func()
	timer   timer.Timer
}

// greet says the codec's preface, if it has one, and reports whether the connection
// has to wait for what comes of it.
func (cn *conn) greet() bool {
	pf, ok := cn.pool.codec.(codecs.Prefacer)
	if !ok {
		return false
	}
	cn.state = greeting
	return cn.perform(&rite{what: "preface", check: pf.CheckPreface, done: cn.begin}, pf.AppendPreface)
}

// giveBack takes the connection from the client that held it and has gone.
func (cn *conn) giveBack() {
	rs, ok := cn.pool.codec.(codecs.Resetter)
	switch {
	case cn.state == closed:
	case !ok || cn.state == draining || cn.inFlight > 0 || cn.spoilt:
		cn.retire() // the server still gets what was written
	case !cn.perform(&rite{what: "reset", check: rs.CheckReset, done: cn.rest}, rs.AppendReset):
		cn.rest()
	}
}

// perform begins r, and reports false if there is nothing to be answered.
func (cn *conn) perform(r *rite, say func(dst []byte, variant uint8) ([]byte, error)) bool {
	p := cn.pool
	r.cn, cn.rite = cn, r
	buf := cn.buffer(0)
	n := len(buf.B)
	b, err := guard.Append(buf.B, func(dst []byte) ([]byte, error) { return say(dst, p.key.Variant) })
	if err == nil {
		err = r.await(b[n:])
	}
	if err != nil {
		r.fail(err)
		return true
	}
	if buf.B = b; len(r.awaited) == 0 {
		cn.rite = nil
		return false
	}
	r.timer.Fire = func() { r.fail(fmt.Errorf("no answer within %v", riteTime)) }
	p.m.timers.Start(&r.timer, p.m.now()+riteTime)
	return true
}

// await notes which answers will come to what the codec says.
func (r *rite) await(b []byte) error {
	dec := r.cn.pool.codec.NewDecoder(codecs.ClientToServer)
	for len(b) > 0 {
		var md codecs.Metadata
		n, err := guard.Decode(dec, b, &md)
		switch {
		case err != nil:
			return err
		case n > len(b):
			return errors.New("it ends in the middle of a frame")
		case md.Type == codecs.Oneway:
		case md.Type == codecs.Request || md.Type == codecs.Muted || md.Type == codecs.Heartbeat && md.ExpectsReply:
			r.awaited = append(r.awaited, md.Outline())
		default:
			return fmt.Errorf("a message of type %s is not a request", md.Type)
		}
		b = b[n:]
	}
	return nil
}

// answered takes the answer to the first request that is not answered yet.
func (r *rite) answered(md *codecs.Metadata) {
	cn := r.cn
	req := r.awaited[0]
	r.awaited = r.awaited[1:]
	if err := r.check(req, md); err != nil {
		r.fail(err)
		return
	}
	if len(r.awaited) == 0 {
		r.end()
		r.done()
		cn.pool.kick()
	}
}

func (r *rite) end() {
	r.cn.pool.m.timers.Stop(&r.timer)
	r.cn.rite = nil
}

func (r *rite) fail(err error) {
	cn := r.cn
	reason := "its " + r.what + " has failed: " + err.Error()
	cn.failed()
	if cn.state == greeting {
		cn.refused(reason)
		return
	}
	cn.pool.obs.Closes(cn.pool.key.Cluster, cn.host, reason)
	cn.close(codecs.UpstreamReset, reason)
	cn.pool.kick()
}

// refused ends a connection that has never served as one that could not be made.
func (cn *conn) refused(why string) {
	cn.leave()
	cn.up.Close(false)
	cn.pool.connectFailed(cn.attempt, cn.wanted, host.ConnectFailed, why)
}

// leased reports whether a client holds the connection.
func (cn *conn) leased() bool { return cn.lease != nil && cn.lease.conn == cn && cn.lease.held }
