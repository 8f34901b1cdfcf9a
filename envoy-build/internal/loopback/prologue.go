package loopback

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strconv"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

// The PROXY protocol, version 2 (its section 2.2).
const (
	proxySignature = "\r\n\r\n\x00\r\nQUIT\n"
	proxyCommand   = 0x21 // version 2, PROXY
	proxyTCP4      = 0x11
	proxyTCP6      = 0x21
	tlvToken       = 0xe1
	tlvCluster     = 0xe0
	tlvDestination = 0xe2
)

// The ports of the addresses that a carrier pretends to have been dialled at. The
// loopback listener has original_src disabled for the first.
const (
	portPlain  = 1
	portSource = 2
)

const maxCluster = 60000

// mark is the byte that is behind the prologue, and that is sent again later: it is
// read when the carrier's server takes bytes.
const mark = '\n'

var localhost4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// prologue is what a carrier's dialing side sends first: a header of the PROXY
// protocol whose one TLV is the token. The addresses mean nothing, but for a source
// that the server shall see.
func prologue(token string, source netip.Addr) []byte {
	destination, port := localhost4, uint16(portSource)
	switch {
	case !source.IsValid():
		source, port = destination, portPlain
	case source.Is6():
		destination = netip.IPv6Loopback()
	}
	return proxyHeader(netip.AddrPortFrom(source, port), netip.AddrPortFrom(destination, port), tlv(nil, tlvToken, token))
}

// TunnelPrologue is what the dialing side of a tunnel sends first where the loopback
// listener is made of stock filters only: the cluster is named to them. They take the
// destination for the one that the client wanted, if t has one, and may show the source to
// the server, if t has one; the destination has a TLV of its own then, as the port says
// that there is a source. What t.Cluster has beyond 60,000 bytes is cut off.
func TunnelPrologue(t host.Target) []byte {
	source := netip.AddrPortFrom(localhost4, portPlain)
	destination := source
	tlvs := tlv(nil, tlvCluster, t.Cluster[:min(len(t.Cluster), maxCluster)])
	wanted, err := netip.ParseAddrPort(t.OriginalDst)
	switch {
	case t.Source.IsValid():
		source = netip.AddrPortFrom(t.Source, portSource)
		destination = netip.AddrPortFrom(localhost4, portSource)
		if err == nil {
			tlvs = tlv(tlvs, tlvDestination, t.OriginalDst)
		}
	case err == nil:
		destination = wanted
	}
	if source.Addr().Is4() != destination.Addr().Is4() { // both have to be of one family
		source = netip.AddrPortFrom(netip.AddrFrom16(source.Addr().As16()), source.Port())
		destination = netip.AddrPortFrom(netip.AddrFrom16(destination.Addr().As16()), destination.Port())
	}
	return proxyHeader(source, destination, tlvs)
}

// tlv appends a TLV to those that are there.
func tlv(b []byte, kind byte, value string) []byte {
	b = append(b, kind)
	b = binary.BigEndian.AppendUint16(b, uint16(len(value)))
	return append(b, value...)
}

// proxyHeader is one of the PROXY protocol. The addresses are of one family.
func proxyHeader(source, destination netip.AddrPort, tlvs []byte) []byte {
	family := byte(proxyTCP4)
	if !source.Addr().Is4() {
		family = proxyTCP6
	}
	addresses := append(source.Addr().AsSlice(), destination.Addr().AsSlice()...)
	addresses = binary.BigEndian.AppendUint16(addresses, source.Port())
	addresses = binary.BigEndian.AppendUint16(addresses, destination.Port())
	b := append([]byte(proxySignature), proxyCommand, family)
	b = binary.BigEndian.AppendUint16(b, uint16(len(addresses)+len(tlvs)))
	b = append(b, addresses...)
	return append(b, tlvs...)
}

// nonce is the secret of the process, in all of its tokens.
type nonce string

func newNonce() nonce {
	b := make([]byte, 16)
	rand.Read(b)
	return nonce(hex.EncodeToString(b))
}

const tokenSeparator = ':'

// token is the secret and the number of one carrier.
func (n nonce) token(id uint64) string {
	return string(n) + string(tokenSeparator) + strconv.FormatUint(id, 16)
}

// id reads a token, and says whether it is one of this process.
func (n nonce) id(token []byte) (id uint64, ok bool) {
	if len(token) <= len(n) || string(token[:len(n)]) != string(n) || token[len(n)] != tokenSeparator {
		return 0, false
	}
	id, err := strconv.ParseUint(string(token[len(n)+1:]), 16, 64)
	return id, err == nil
}
