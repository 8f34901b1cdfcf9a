package filter

import (
	"errors"
	"fmt"
	"strings"
	"unique"

	"google.golang.org/protobuf/proto"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/config"
	"github.com/meltemi-mesh/meltemi/filter/upstream"
)

const (
	// AutoCodec is the config name that stands for all registered codecs that
	// recognise their protocol.
	AutoCodec = "aeraki.meta_protocol.codec.auto"
	// sniffBytes is how much of a connection codecs may want to see.
	sniffBytes = 64
)

// protocol is a codec of a listener, and what follows from it.
type protocol struct {
	name    string
	codec   codecs.Codec
	sniffer codecs.Sniffer // set where first bytes decide
	profile unique.Handle[profile]

	// Of requests whose ids can be changed and cannot, of those that lease a
	// connection, and of streams.
	requests, fixed, leased, streams upstream.Options

	rewritesIDs  bool
	ordered      bool // clients get their answers in the order of their requests
	hiddenOneway bool
	successCode  int32
	streamer     codecs.Streamer  // nil: no streams
	deadliner    codecs.Deadliner // nil: no deadlines of clients
	remover      codecs.Remover   // nil: nothing can be removed
	payloader    codecs.Payloader // nil: payloads are not known
	mutates      bool             // or nothing can be changed at all

	// Of traces; see carrier. system is what spans call the protocol.
	system   string
	contexts codecs.ContextCarrier // nil: all requests carry context alike
	traces   codecs.TraceCarrier   // nil: there are no places of its own for a trace
	codes    codecs.CodeNamer      // nil: they have no names
}

// profile is what must be equal for two versions of a listener to go on with the
// same connections upstream.
type profile struct {
	codec, options string
	limits         config.Limits
	requests       upstream.Options
}

// makeProtocols makes the codecs of a configuration.
func makeProtocols(cfg *config.Proxy) (ps []*protocol, path string, err error) {
	exts := cfg.Codecs
	auto := len(exts) == 1 && exts[0].Name == AutoCodec
	if auto {
		if exts[0].Config != nil {
			return nil, "protocol.codec.config", fmt.Errorf("%s has no options", AutoCodec)
		}
		exts = nil
		for _, name := range codecs.Names() {
			exts = append(exts, config.Extension{Name: name})
		}
	}
	for i, ext := range exts {
		path := "protocol.codec"
		if len(cfg.Codecs) > 1 {
			path = fmt.Sprintf("protocol.codecs[%d]", i)
		}
		newCodec, ok := codecs.Lookup(ext.Name)
		if !ok {
			return nil, path + ".name", fmt.Errorf("unknown codec %q (built in: %s)",
				ext.Name, strings.Join(codecs.Names(), ", "))
		}
		codec, err := newCodec(ext.Config, codecs.Limits{MaxFrameBytes: cfg.Limits.MaxFrameBytes})
		if err != nil {
			return nil, path + ".config", err
		}
		if cfg.ConnectionMode == config.Shared && codec.Traits().Correlation == codecs.Exclusive {
			return nil, cfg.ModeField, fmt.Errorf("codec %s cannot share connections: its protocol has one request at a time on each", ext.Name)
		}
		p := newProtocol(cfg, ext, codec)
		if len(exts) > 1 || auto || cfg.Passthrough != "" {
			if p.sniffer, ok = codec.(codecs.Sniffer); !ok {
				switch {
				case auto:
					continue
				case len(exts) == 1:
					return nil, "passthrough", fmt.Errorf("codec %q does not recognise its protocol", ext.Name)
				}
				return nil, path + ".name", fmt.Errorf("codec %q cannot be one of several: it does not recognise its protocol", ext.Name)
			}
		}
		ps = append(ps, p)
	}
	if len(ps) == 0 {
		return nil, "protocol.codec.name", errors.New("no built-in codec recognises its protocol")
	}
	return ps, "", nil
}

func newProtocol(cfg *config.Proxy, ext config.Extension, codec codecs.Codec) *protocol {
	traits := codec.Traits()
	p := &protocol{
		name: ext.Name, codec: codec,
		rewritesIDs:  traits.Correlation == codecs.ByID,
		ordered:      traits.Correlation != codecs.ByID,
		hiddenOneway: traits.HiddenOneway,
		successCode:  traits.SuccessCode,
	}
	p.requests = poolOptions(cfg, traits)
	p.fixed = p.requests
	p.fixed.Mode, p.fixed.Shared = upstream.OneByOne, false
	p.leased = p.requests
	p.leased.Mode, p.leased.Shared, p.leased.MinConnections = upstream.Leased, false, 0
	p.streams = p.requests
	p.streams.Mode, p.streams.Shared = upstream.Streams, false
	p.streams.MinConnections = 0 // none is used twice
	p.streamer, _ = codec.(codecs.Streamer)
	p.deadliner, _ = codec.(codecs.Deadliner)
	p.remover, _ = codec.(codecs.Remover)
	p.payloader, _ = codec.(codecs.Payloader)
	_, p.mutates = codec.(codecs.Mutator)
	p.contexts, _ = codec.(codecs.ContextCarrier)
	p.traces, _ = codec.(codecs.TraceCarrier)
	p.codes, _ = codec.(codecs.CodeNamer)
	p.system = ext.Name[strings.LastIndexByte(ext.Name, '.')+1:]
	options, _ := proto.MarshalOptions{Deterministic: true}.Marshal(ext.Config) // what was read can be written
	p.profile = unique.Make(profile{ext.Name, string(options), cfg.Limits, p.requests})
	return p
}

func poolOptions(cfg *config.Proxy, traits codecs.Traits) upstream.Options {
	u := cfg.Upstream
	o := upstream.Options{
		MinConnections: u.MinConnections, MaxConnections: u.MaxConnections,
		MaxExclusive: u.MaxExclusiveConnections, MaxAge: u.MaxConnectionAge,
		IdleTimeout: u.IdleTimeout, TargetInFlight: u.TargetInFlight,
		MaxPending: u.MaxPendingRequests, MaxPendingBytes: u.MaxPendingBytes,
		BackoffMax: u.ConnectBackoffMax, MaxRequests: u.MaxRequests, Linger: cfg.Limits.StreamIdleTimeout,
		MaxPartialBytes: cfg.Limits.MaxPartialBytes,
	}
	if u.OriginalSrc {
		o.MinConnections = 0 // to each client's address, whoever called last
	}
	switch traits.Correlation {
	case codecs.ByID:
		o.Mode = upstream.ByID
	case codecs.InOrder:
		o.Mode = upstream.InOrder
	default:
		o.Mode = upstream.OneByOne
	}
	switch cfg.ConnectionMode {
	case config.Shared:
		o.Shared = true
	case config.Exclusive:
		o.Shared = false
	default:
		o.Shared = traits.ShareByDefault && traits.Correlation != codecs.Exclusive
	}
	return o
}

// sniff finds the protocol of a connection by its first bytes. It returns nil
// and true when more of them are needed, nil and false when nobody knows them.
func (l *listener) sniff(b []byte) (p *protocol, more bool) {
	b = b[:min(len(b), sniffBytes)]
	for _, p := range l.protocols {
		switch p.sniffer.Sniff(b) {
		case codecs.Yes:
			return p, false
		case codecs.Maybe:
			more = len(b) < sniffBytes
		}
	}
	return nil, more
}

// anyOf are a listener's protocols, one of which has to be able to make a
// mutation, and all to tell a code.
type anyOf []*protocol

// CheckMutation implements codecs.Mutator.
func (ps anyOf) CheckMutation(d codecs.Direction, key, value string) error {
	var first error
	for _, p := range ps {
		err := fmt.Errorf("codec %s cannot change messages", p.name)
		if m, ok := p.codec.(codecs.Mutator); ok {
			err = m.CheckMutation(d, key, value)
		}
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// CheckRemoval implements codecs.Remover.
func (ps anyOf) CheckRemoval(d codecs.Direction, key string) error {
	var first error
	for _, p := range ps {
		err := fmt.Errorf("codec %s cannot remove anything from messages", p.name)
		if p.remover != nil {
			err = p.remover.CheckRemoval(d, key)
		}
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// CheckCode implements codecs.CodeChecker: all have to be able to tell it, as any may
// be answered.
func (ps anyOf) CheckCode(code int32) error {
	for _, p := range ps {
		if err := codecs.CheckCode([]codecs.Codec{p.codec}, code); err != nil {
			return fmt.Errorf("codec %s: %w", p.name, err)
		}
	}
	return nil
}

// CheckReply is that of codecs.Payloader: all have to be able to give it, as any may be
// asked.
func (ps anyOf) CheckReply(reply codecs.Payload) error {
	for _, p := range ps {
		if p.payloader == nil {
			return fmt.Errorf("codec %s cannot answer with a payload", p.name)
		}
		if err := p.payloader.CheckReply(reply); err != nil {
			return fmt.Errorf("codec %s: %w", p.name, err)
		}
	}
	return nil
}

// skips reports whether an error of Encode says that a message cannot carry the changes.
func skips(err error) bool { return err != nil && errors.Is(err, codecs.ErrNoMutation) }

var (
	errCannotChange = fmt.Errorf("%w: its codec cannot change anything", codecs.ErrNoMutation)
	errCannotRemove = fmt.Errorf("%w: its codec cannot remove anything", codecs.ErrNoMutation)
)

// encode appends md with the changes of mut. If the message cannot carry them all, for the
// reason skipped, it is appended with those that are required; err skips, too, if it cannot
// carry these either.
func (p *protocol) encode(dst []byte, md *codecs.Metadata, mut *codecs.Mutation) (b []byte, skipped, err error) {
	if mut.Empty() {
		mut = nil
	} else if err := p.refuses(mut); err != nil {
		return dst, nil, err
	}
	if b, err = p.tryEncode(dst, md, mut); !skips(err) {
		return b, nil, err
	}
	skipped = err
	b, err = p.tryEncode(dst, md, mut.WithoutOptional())
	return b, skipped, err
}

func (p *protocol) tryEncode(dst []byte, md *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	switch {
	case len(mut.Removed()) > 0 && p.remover == nil:
		return dst, errCannotRemove
	case len(mut.Entries()) > 0 && !p.mutates:
		return dst, errCannotChange
	}
	return p.codec.Encode(dst, md, mut)
}
