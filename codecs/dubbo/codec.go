// Package dubbo is the codec of Apache Dubbo's own protocol, version 2
// ("dubbo://"), with Hessian 2 bodies.
package dubbo

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/hessian"
)

// Name is the codec's config name.
const Name = "aeraki.meta_protocol.codec.dubbo"

const configType = "aeraki.meta_protocol.codec.DubboCodec"

// The 16-byte header: magic, flags, status, id, length of the body.
const (
	headerSize = 16
	magic      = 0xdabb

	flagRequest = 0x80
	flagTwoWay  = 0x40
	flagEvent   = 0x20
	maskSerial  = 0x1f

	// Serializations.
	hessian2  = 2
	fastjson2 = 23

	// maxNull is the longest body of a heartbeat that is answered in kind.
	maxNull = 64

	// maxBody is what Envoy's dubbo_proxy allows; Dubbo's own default is 8 MiB.
	maxBody = 16 << 20
)

// Response statuses (org.apache.dubbo.remoting.exchange.Response).
const (
	statusOK              = 20
	statusServerTimeout   = 31
	statusBadRequest      = 40
	statusBadResponse     = 50
	statusServiceNotFound = 60
	statusServiceError    = 70
	statusServerError     = 80
	statusThreadpool      = 100
)

// codeNames are those of the statuses, as Dubbo and OpenTelemetry write them.
var codeNames = map[int32]string{
	statusOK: "OK", 25: "SERIALIZATION_ERROR", 30: "CLIENT_TIMEOUT", statusServerTimeout: "SERVER_TIMEOUT",
	35: "CHANNEL_INACTIVE", statusBadRequest: "BAD_REQUEST", statusBadResponse: "BAD_RESPONSE",
	statusServiceNotFound: "SERVICE_NOT_FOUND", statusServiceError: "SERVICE_ERROR", statusServerError: "SERVER_ERROR",
	90: "CLIENT_ERROR", statusThreadpool: "SERVER_THREADPOOL_EXHAUSTED_ERROR",
}

// CodeName implements codecs.CodeNamer.
func (c *codec) CodeName(code int32) string { return codeNames[code] }

// failures are the statuses after which another attempt may help. Servers answer
// with 100 what their pool of threads has not taken (WrappedChannelHandler); with
// the others, what they have tried. 30, 35 and 90 are of clients, for themselves.
var failures = [256]codecs.FailureClass{
	statusServerTimeout: codecs.HostFailure,
	statusBadResponse:   codecs.HostFailure,
	statusServiceError:  codecs.HostFailure,
	statusServerError:   codecs.HostFailure,
	statusThreadpool:    codecs.Overloaded,
}

// Kinds of a response's body (org.apache.dubbo.rpc.protocol.dubbo.DubboCodec).
const (
	withException = iota
	withValue
	withNull
	withExceptionAndAttachments
	withValueAndAttachments
	withNullAndAttachments
)

func init() { codecs.Register(Name, New) }

// New makes the codec. It has no options.
func New(config *anypb.Any, limits codecs.Limits) (codecs.Codec, error) {
	if config != nil && config.MessageName() != configType {
		return nil, fmt.Errorf("type_url: want %s, got %s", configType, config.MessageName())
	}
	c := &codec{maxFrame: limits.MaxFrameBytes}
	if c.maxFrame == 0 {
		c.maxFrame = headerSize + maxBody
	}
	return c, nil
}

type codec struct{ maxFrame int }

// Traits implements codecs.Codec.
func (c *codec) Traits() codecs.Traits {
	return codecs.Traits{
		Correlation: codecs.ByID, MaxID: 1<<64 - 1, ShareByDefault: true, SuccessCode: statusOK,
		Attributes: []string{"interface", "method", "path", "version", "dubbo", "serialization"},
	}
}

// NewDecoder implements codecs.Codec.
func (c *codec) NewDecoder(d codecs.Direction) codecs.Decoder {
	return &decoder{codec: c, dir: d}
}

// Sniff implements codecs.Sniffer: by the magic number.
func (c *codec) Sniff(b []byte) codecs.Guess {
	switch {
	case b[0] != magic>>8 || len(b) > 1 && b[1] != magic&0xff:
		return codecs.No
	case len(b) < 2:
		return codecs.Maybe
	default:
		return codecs.Yes
	}
}

// What the codec keeps in Metadata.Scratch.
const (
	scratchSerial      = iota // serialization id
	scratchAttachments        // offset of the attachments in Raw; 0: not known
	scratchClasses            // how many classes were defined before the attachments
	scratchAccepts            // of a request: 1 if its client reads attachments of answers
)

// Encode implements codecs.Codec.
func (c *codec) Encode(dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	start := len(dst)
	if mut.ChangesAttributes() || mut.Replaces() || mut.Millis() > 0 && saysTimeout(m) {
		var err error
		dst, err = c.mutate(dst, m, mut)
		switch {
		case err == nil:
		case !mut.ChangesAttributes() && !mut.Replaces(): // it cannot say how long its client waits
			dst = append(dst[:start], m.Raw...)
		default:
			return dst, err
		}
	} else {
		dst = append(dst, m.Raw...)
	}
	binary.BigEndian.PutUint64(dst[start+4:], m.ID)
	return dst, nil
}

// EncodeError implements codecs.Codec. The body is Hessian 2 whatever the
// request's serialization: that is how Dubbo's own servers refuse a
// serialization they do not accept.
func (c *codec) EncodeError(dst []byte, req *codecs.Metadata, e *codecs.LocalError) ([]byte, error) {
	start := len(dst)
	dst = appendHeader(dst, hessian2, c.statusOf(e), req.ID)
	dst = hessian.AppendString(dst, strings.ToValidUTF8(e.Message, "?"))
	binary.BigEndian.PutUint32(dst[start+12:], uint32(len(dst)-start-headerSize))
	return dst, nil
}

// EncodeHeartbeat implements codecs.Heartbeater. The body is a null: what it
// looks like in another serialization the heartbeat itself shows.
func (c *codec) EncodeHeartbeat(dst []byte, hb *codecs.Metadata) ([]byte, error) {
	null := []byte{'N'}
	if b := hb.Raw[headerSize:]; hb.Scratch[scratchSerial] != hessian2 && len(b) <= maxNull {
		null = b
	}
	dst = appendHeader(dst, flagEvent|byte(hb.Scratch[scratchSerial]), statusOK, hb.ID)
	dst[len(dst)-1] = byte(len(null))
	return append(dst, null...), nil
}

// EncodeGoAway implements codecs.Leaver: Dubbo's read-only event. Dubbo Java
// sends its next calls elsewhere, dubbo-go answers it as it does a heartbeat.
func (c *codec) EncodeGoAway(dst []byte, _ uint8) ([]byte, error) {
	start := len(dst)
	dst = append(appendHeader(dst, flagRequest|flagEvent|hessian2, 0, 0), "\x01R"...)
	dst[start+headerSize-1] = byte(len(dst) - start - headerSize)
	return dst, nil
}

func appendHeader(dst []byte, flags, status byte, id uint64) []byte {
	dst = binary.BigEndian.AppendUint16(dst, magic)
	dst = append(dst, flags, status)
	dst = binary.BigEndian.AppendUint64(dst, id)
	return append(dst, 0, 0, 0, 0)
}

// CheckCode implements codecs.CodeChecker: codes are statuses.
func (c *codec) CheckCode(code int32) error {
	if code < 1 || code > math.MaxUint8 || code == statusOK {
		return fmt.Errorf("must be between 1 and %d, and not %d, which is a success, is %d", math.MaxUint8, statusOK, code)
	}
	return nil
}

// statusOf chooses the status. Clients show the body as the message whatever it
// is; Dubbo Java tells timeouts (30, 31) and serialization (25) from the rest,
// dubbo-go nothing.
func (c *codec) statusOf(e *codecs.LocalError) byte {
	if e.Code != 0 && c.CheckCode(e.Code) == nil {
		return byte(e.Code)
	}
	switch e.Type {
	case codecs.RouteNotFound, codecs.ClusterNotFound:
		return statusServiceNotFound
	case codecs.Timeout:
		return statusServerTimeout
	case codecs.OverLimit:
		return statusThreadpool
	case codecs.BadResponse:
		return statusBadResponse
	case codecs.BadRequest, codecs.Denied:
		return statusBadRequest
	default:
		return statusServerError
	}
}

// ContextPrefix implements codecs.ContextCarrier: attachments carry context, if they can
// be changed.
func (c *codec) ContextPrefix(m *codecs.Metadata) (string, bool) {
	return "", m.Scratch[scratchSerial] == hessian2
}

// CheckMutation implements codecs.Mutator: keys are names of attachments.
func (c *codec) CheckMutation(_ codecs.Direction, key, value string) error {
	if err := codecs.CheckText(key, value); err != nil {
		return err
	}
	if isCall([]byte(key)) {
		return fmt.Errorf("key: %q belongs to the call itself and cannot be changed", key)
	}
	return nil
}

// CheckRemoval implements codecs.Remover.
func (c *codec) CheckRemoval(d codecs.Direction, key string) error {
	return c.CheckMutation(d, key, "")
}
