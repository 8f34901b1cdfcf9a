"""The transports and protocols that the Python peers can speak."""

from thrift.protocol.TBinaryProtocol import TBinaryProtocolFactory
from thrift.protocol.TCompactProtocol import TCompactProtocolFactory
from thrift.protocol.THeaderProtocol import THeaderProtocolFactory
from thrift.transport.THeaderTransport import THeaderClientType, THeaderSubprotocolID, THeaderTransformID
from thrift.transport.TTransport import TBufferedTransportFactory, TFramedTransportFactory, TTransportFactoryBase


def add_flags(parser):
    parser.add_argument("-transport", choices=["framed", "unframed", "header"], default="framed")
    parser.add_argument("-protocol", choices=["strict", "lax", "compact"], default="strict",
                        help="strict or lax: binary with or without a version")
    parser.add_argument("-zlib", action="store_true", help="compress what the header transport carries")


class ZlibFactory(THeaderProtocolFactory):
    """Makes protocols that compress what they write."""

    def getProtocol(self, trans):
        protocol = THeaderProtocolFactory.getProtocol(self, trans)
        protocol.add_transform(THeaderTransformID.ZLIB)
        return protocol


def factories(o):
    """Gives the factories of the transport and of the protocol."""
    transport, protocol = o.transport, o.protocol
    compact = protocol == "compact"
    if transport == "header":
        factory = ZlibFactory if o.zlib else THeaderProtocolFactory
        inner = THeaderSubprotocolID.COMPACT if compact else THeaderSubprotocolID.BINARY
        # The protocol wraps the socket by itself.
        return TTransportFactoryBase(), factory(
            allowed_client_types=(
                THeaderClientType.HEADERS,
                THeaderClientType.FRAMED_BINARY, THeaderClientType.UNFRAMED_BINARY,
                THeaderClientType.FRAMED_COMPACT, THeaderClientType.UNFRAMED_COMPACT,
            ), default_protocol=inner)
    transports = {"framed": TFramedTransportFactory, "unframed": TBufferedTransportFactory}
    if compact:
        return transports[transport](), TCompactProtocolFactory()
    strict = protocol == "strict"
    return transports[transport](), TBinaryProtocolFactory(strictRead=strict, strictWrite=strict)
