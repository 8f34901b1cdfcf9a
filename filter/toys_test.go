package filter_test

import (
	"bytes"
	"errors"
	"strings"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
)

// next is a second filter of a chain.
var next *testFilter

func init() {
	filter.Register("next", filter.Factory(func(*anypb.Any, *filter.Env) (filter.Filter, error) { return next, nil }))
	register := func(name string, c func(t toy) codecs.Codec) {
		codecs.Register(name, func(*anypb.Any, codecs.Limits) (codecs.Codec, error) {
			return c(toy{codecs.Traits{Correlation: codecs.ByID, MaxID: 1<<31 - 1, ShareByDefault: true}, 'x'}), nil
		})
	}
	register("toy.bare", func(t toy) codecs.Codec { return bareToy{t} })
	register("toy.mute", func(t toy) codecs.Codec {
		return struct { // and no Mutator
			codecs.Codec
			codecs.Sniffer
		}{t, t}
	})
	register("toy.late", func(t toy) codecs.Codec { return lateToy{t} })
	register("toy.bounded", func(t toy) codecs.Codec { return boundedToy{t} })
	register("toy.leaver", func(t toy) codecs.Codec { return leaverToy{t} })
	register("toy.wordy", func(t toy) codecs.Codec {
		t.traits.HiddenOneway, t.traits.ShareByDefault = true, false
		return wordyToy{t}
	})
}

// bareToy returns nil with an error, over what is bad.
type bareToy struct{ toy }

var errBad = errors.New("cannot be encoded")

func (t bareToy) Encode(dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	if bytes.Contains(m.Raw, []byte("bad")) {
		return nil, errBad
	}
	return t.toy.Encode(dst, m, mut)
}

func (t bareToy) EncodeHeartbeat(dst []byte, hb *codecs.Metadata) ([]byte, error) {
	if bytes.Contains(hb.Raw, []byte("bad")) {
		return nil, errBad
	}
	return t.toy.EncodeHeartbeat(dst, hb)
}

// lateToy puts the property "first" when it is asked for.
type lateToy struct{ toy }

func (t lateToy) NewDecoder(codecs.Direction) codecs.Decoder { return t }

func (t lateToy) Decode(b []byte, m *codecs.Metadata) (int, error) {
	n, err := t.toy.Decode(b, m)
	if err == nil && n <= len(b) {
		m.Defer(firstLoader{})
	}
	return n, err
}

type firstLoader struct{}

func (firstLoader) Load(m *codecs.Metadata) { m.Put([]byte("first"), m.Raw[:4]) }

// boundedToy has lines of up to 40 bytes. Those that say how long they are, "req
// 7 m size=99;…", cost only themselves. "bye" is a goodbye.
type boundedToy struct{ toy }

func (t boundedToy) NewDecoder(codecs.Direction) codecs.Decoder { return t }

func (t boundedToy) Decode(b []byte, m *codecs.Metadata) (int, error) {
	const limit = 40
	if bytes.HasPrefix(b, []byte("bye\n")) {
		m.Type, m.Raw = codecs.Goodbye, b[:4]
		return 4, nil
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	if i := bytes.IndexByte(line, ';'); i >= 0 && i < limit && bytes.Contains(line[:i], []byte("size=")) {
		head := string(line[:i])
		size := 0
		for _, d := range head[strings.IndexByte(head, '=')+1:] {
			size = size*10 + int(d-'0')
		}
		if size > limit {
			if _, err := t.toy.Decode([]byte(head+"\n"), m); err != nil {
				return 0, err
			}
			m.Release()
			return 0, &codecs.TooLarge{Size: size, Limit: limit}
		}
	}
	n, err := t.toy.Decode(b, m)
	if err == nil && min(n, len(b)+1) > limit {
		err = &codecs.ProtocolError{Protocol: "toy", Reason: "too long"}
	}
	return n, err
}

// leaverToy tells its clients that it leaves, but those of variant 1.
type leaverToy struct{ toy }

func (leaverToy) EncodeGoAway(dst []byte, variant uint8) ([]byte, error) {
	if variant == 1 {
		return dst, nil
	}
	return append(dst, "away 0 - -\n"...), nil
}
