package codectest

import (
	"reflect"
	"slices"
	"strings"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// coverage fails when a suite has nothing to check what the codec says it can
// do: a check without messages would pass.
func (c *check) coverage() {
	c.excusesAreKnown()
	var seen [2][codecs.Push + 1]bool
	var answered [codecs.Push + 1]bool // the types of requests that answers belong to
	asks, c2s, silent, unanswered := false, false, false, false
	for _, st := range c.streams {
		waiting := 0
		for _, f := range st.frames {
			if f.taken > waiting {
				answered[st.requests[f.taken-1].Type] = true
			}
			unanswered = unanswered || f.taken > waiting+1
			waiting = f.taken
		}
		for _, f := range st.frames[st.first:] {
			if f.meta.Malformed == "" && f.meta.Type <= codecs.Push {
				seen[st.dir][f.meta.Type] = true
			}
			asks = asks || (f.meta.Type == codecs.Heartbeat || f.meta.Type == codecs.Goodbye) && f.meta.ExpectsReply
			silent = silent || f.meta.Silent
		}
		c2s = c2s || st.dir == codecs.ClientToServer && st.kind != malformed
	}
	missing := func(cond bool, what string) {
		if cond {
			c.errorf("the suite has no %s: add a capture or a frame", what)
		}
	}
	client, server := seen[codecs.ClientToServer], seen[codecs.ServerToClient]
	missing(!client[codecs.Request], "request of a client")
	missing(!server[codecs.Response], "answer of a server")
	missing(!server[codecs.Error], "error of a server")
	_, beats := c.codec.(codecs.Heartbeater)
	missing(beats && !asks, "heartbeat or goodbye that expects a reply, though the codec is a Heartbeater")
	_, streams := c.codec.(codecs.Streamer)
	missing(streams && !client[codecs.StreamInit], "frame that opens a stream, though the codec is a Streamer")
	_, sniffs := c.codec.(codecs.Sniffer)
	missing(sniffs && !c2s, "client's bytes, though the codec is a Sniffer")
	if c.seesRequests() {
		missing(!answered[codecs.Request], "answer with its Requests, though the codec is an AnswerDecoder")
		missing(client[codecs.Muted] && !answered[codecs.Muted], "answer to a request that is muted, with its Requests")
		missing(client[codecs.Quiet] && !silent && !unanswered, "answer behind a request that is quiet and gets none, nor one that is Silent")
		if client[codecs.Quiet] && !unanswered {
			c.goOutLoud()
		}
		strays := slices.ContainsFunc(c.s.Invalid, func(in Invalid) bool { return len(in.Requests) > 0 })
		if strays == c.s.AnyAnswer {
			c.errorf("the codec is an AnswerDecoder: add Invalid answers with Requests to which they do not belong, or set AnyAnswer")
		}
	}
	if _, mutates := c.codec.(codecs.Mutator); mutates {
		if len(c.s.Mutations) == 0 {
			c.errorf("the codec is a Mutator: add Mutations to the suite")
		}
	} else if len(c.s.Mutations) > 0 {
		c.errorf("the suite has mutations, but the codec is no Mutator")
	}
	if len(c.s.Invalid) == 0 {
		c.errorf("the suite has nothing Invalid: every protocol can be broken, if by its limit")
	}
	if len(c.s.Hostile) == 0 {
		c.errorf("the suite has nothing Hostile: add the worst that the protocol allows")
	}
}

// goOutLoud fails for requests that are still quiet when they are given out, as
// no answer of the suite passes one over. One that is Silent shows nothing of them:
// their servers may never give it.
func (c *check) goOutLoud() {
	c.each(sound, func(st *stream) {
		if st.dir == codecs.ServerToClient {
			return
		}
		c.walk(st, "given out", func(w where, k int, m *codecs.Metadata) {
			if m.Type != codecs.Quiet || m.Malformed != "" {
				return
			}
			out, err := c.message(w, m, nil)
			if err != nil {
				return // round_trip tells
			}
			var o codecs.Metadata
			if c.givenOut(w, st, k, &o, out); o.Type == codecs.Quiet {
				c.failf(w, out, "it goes out quiet, but no answer of the suite passes it over with ErrUnanswered: have Encode ask for an answer in all cases, or add such answers")
			}
		})
	})
}

// traitsAreFixed checks what the pipeline freezes when it loads a codec.
func (c *check) traitsAreFixed() {
	for d := range 2 { // between two, some frames are decoded
		if got := c.codec.Traits(); !reflect.DeepEqual(got, c.traits) {
			c.errorf("Traits change: they were %+v, now they are %+v", c.traits, got)
		}
		c.codec.NewDecoder(codecs.Direction(d))
	}
	if c.traits.Correlation > codecs.Exclusive {
		c.errorf("there is no correlation %d", c.traits.Correlation)
	}
	if c.traits.Correlation == codecs.ByID && c.traits.MaxID == 0 {
		c.errorf("messages correlate by id, but MaxID is 0")
	}
	seen := map[string]bool{}
	for _, name := range c.traits.Attributes {
		if name == "" || name != strings.ToLower(name) || seen[name] {
			c.errorf("attribute %q is empty, not in lower case, or named twice", name)
		}
		seen[name] = true
	}
}

// attributes checks that nothing that a message brings along passes for an
// attribute of the protocol itself.
func (c *check) attributes() {
	own := map[string]bool{}
	for _, name := range c.traits.Attributes {
		own[name] = true
	}
	c.each(all, func(st *stream) {
		c.walk(st, "", func(w where, _ int, m *codecs.Metadata) {
			if st.dir == codecs.ServerToClient || m.Malformed != "" {
				return
			}
			seen, brought := map[string]bool{}, ""
			for _, p := range m.Properties() {
				switch name := strings.ToLower(string(p.Name)); {
				case !own[name]:
					brought = name
				case seen[name]:
					c.failf(w, m.Raw, "attribute %q of the protocol is there twice", name)
				case brought != "":
					c.failf(w, m.Raw, "attribute %q of the protocol comes behind %q, which the message brings along", name, brought)
				default:
					seen[name] = true
				}
			}
		})
	})
}
