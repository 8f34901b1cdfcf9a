package loopback

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strconv"
)

// The PROXY protocol, version 2 (its section 2.2).
const (
	proxySignature = "\r\n\r\n\x00\r\nQUIT\n"
	proxyCommand   = 0x21 // version 2, PROXY
	proxyTCP4      = 0x11
	proxyTCP6      = 0x21
	tlvHeader      = 3 // bytes of a TLV's type and length
	tlvToken       = 0xe1
)

// The ports of the addresses that a carrier pretends to have been dialled at. The
// loopback listener has original_src disabled for the first.
const (
	portPlain  = 1
	portSource = 2
)

// mark is the byte that is behind the prologue, and that is sent again later: it is
// read when the carrier's server takes bytes.
const mark = '\n'

var localhost4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// prologue is what a carrier's dialing side sends first: a header of the PROXY
// protocol whose one TLV is the token. The addresses mean nothing, but for a source
// that the server shall see.
func prologue(token string, source netip.Addr) []byte {
	destination, port, family := localhost4, uint16(portSource), byte(proxyTCP4)
	switch {
	case !source.IsValid():
		source, port = destination, portPlain
	case source.Is6():
		destination, family = netip.IPv6Loopback(), proxyTCP6
	}
	addresses := append(source.AsSlice(), destination.AsSlice()...)
	addresses = binary.BigEndian.AppendUint16(addresses, port)
	addresses = binary.BigEndian.AppendUint16(addresses, port)
	b := append([]byte(proxySignature), proxyCommand, family)
	b = binary.BigEndian.AppendUint16(b, uint16(len(addresses)+tlvHeader+len(token)))
	b = append(b, addresses...)
	b = append(b, tlvToken)
	b = binary.BigEndian.AppendUint16(b, uint16(len(token)))
	return append(b, token...)
}

// nonce is the secret of the process, in all of its tokens.
type nonce string

func newNonce() nonce {
	b := make([]byte, 16)
	rand.Read(b) //nolint:errcheck // it never fails
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
